//! Sockets at whose other end the network is: what `passt`, `gvproxy` and QEMU's `-netdev stream` and `-netdev dgram` speak.

use std::{
    fmt, io, mem,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex},
};

use vm_memory::VolatileSlice;

use super::{
    Header, MAX_FRAME, Port, Progress, Received, Waker,
    port::{Attached, copy_from, copy_to, length},
    vectored::{gather, scatter, uninterrupted},
};
use crate::{sync::lock, virtio::Wait};

/// No call waits, and none raises a signal.
#[cfg(not(target_vendor = "apple"))]
const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
#[cfg(target_vendor = "apple")]
const FLAGS: libc::c_int = libc::MSG_DONTWAIT;

/// The length of a frame before it, in network order.
const PREFIX: usize = 4;

/// Bytes that are read at a time.
const READ_AHEAD: usize = 2 * (PREFIX + MAX_FRAME);

/// A stream socket over which each frame goes after its length, 4 bytes in network order.
///
/// *A peer that goes* is one failure of the host, in each direction at most; from then on frames are dropped, as by a cable that leads
/// nowhere, until the embedder [plugs in](Self::connect) another socket. What was sent or received in part by then is gone with it.
///
/// Up to two frames that were read from the socket may wait in here for the guest, and a part of one for the socket; a state of the
/// device does not have them.
///
/// ```
/// use devisor::virtio::net::{Net, NetOptions, StreamSocket};
/// use std::{os::unix::net::UnixStream, sync::Arc};
///
/// let (ours, theirs) = UnixStream::pair()?;
/// let socket = Arc::new(StreamSocket::new(ours)?);
/// let nic = Net::new([Arc::clone(&socket)], NetOptions::default())?;
/// assert!(socket.is_connected());
/// # drop((nic, theirs));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StreamSocket {
    socket: Mutex<Option<Arc<OwnedFd>>>,
    sending: Mutex<Sending>,
    receiving: Mutex<Receiving>,
    waker: Attached,
}

/// What is left of a frame that was sent in part.
#[derive(Default)]
struct Sending {
    rest: Vec<u8>,
    sent: usize,
}

/// What was read.
struct Receiving {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl StreamSocket {
    /// The network is at the other end of `socket`, a stream socket that is connected.
    ///
    /// # Errors
    /// The host refuses to keep the socket from raising signals.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let this = Self::unconnected();
        this.connect(socket)?;
        Ok(this)
    }

    /// The network is not there yet.
    pub fn unconnected() -> Self {
        Self {
            socket: Mutex::new(None),
            sending: Mutex::default(),
            receiving: Mutex::new(Receiving {
                buffer: vec![0; READ_AHEAD].into(),
                start: 0,
                end: 0,
            }),
            waker: Attached::default(),
        }
    }

    /// Plugs in another socket, instead of the one that is there.
    ///
    /// # Errors
    /// As [`new`](Self::new); it is as it was.
    pub fn connect(&self, socket: impl Into<OwnedFd>) -> io::Result<()> {
        let socket = socket.into();
        quiet(&socket)?;
        {
            let (mut sending, mut receiving) = (lock(&self.sending), lock(&self.receiving));
            *sending = Sending::default();
            (receiving.start, receiving.end) = (0, 0);
            *lock(&self.socket) = Some(Arc::new(socket));
        }
        self.waker.receive();
        self.waker.send();
        Ok(())
    }

    /// Whether there is a peer, as far as is known.
    pub fn is_connected(&self) -> bool {
        lock(&self.socket).is_some()
    }

    fn current(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.socket).clone()
    }

    /// The peer of `gone` is no more: one failure, whoever finds it first.
    fn disconnect(&self, gone: &Arc<OwnedFd>) -> bool {
        let mut socket = lock(&self.socket);
        let is_it = socket.as_ref().is_some_and(|socket| Arc::ptr_eq(socket, gone));
        if is_it {
            *socket = None;
        }
        is_it
    }

    fn failed<T>(&self, gone: &Arc<OwnedFd>, error: io::Error, otherwise: Progress<T>) -> io::Result<Progress<T>> {
        match self.disconnect(gone) {
            true => Err(error),
            false => Ok(otherwise),
        }
    }

    /// Sends what is left. Whether that is nothing, or the peer is gone.
    fn flush_rest(&self, socket: &Arc<OwnedFd>, sending: &mut Sending) -> io::Result<Progress<()>> {
        while sending.sent < sending.rest.len() {
            let rest = &mut sending.rest[sending.sent..];
            match gather(rest, &[], |vectors| send(socket.as_raw_fd(), vectors)) {
                Ok(sent) => sending.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Later(Some(Wait::Writable(socket.as_raw_fd()))));
                }
                Err(error) => {
                    *sending = Sending::default();
                    return self.failed(socket, error, Progress::Done(()));
                }
            }
        }
        sending.rest.clear();
        sending.sent = 0;
        Ok(Progress::Done(()))
    }
}

impl Port for StreamSocket {
    fn attach(&self, waker: Waker) {
        self.waker.set(waker);
    }

    fn send(&self, _: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
        let mut sending = lock(&self.sending);
        let Some(socket) = self.current() else {
            return Ok(Progress::Done(()));
        };
        match self.flush_rest(&socket, &mut sending)? {
            Progress::Done(()) => {}
            later => return Ok(later),
        }
        let len = length(frame);
        let mut prefix = (len as u32).to_be_bytes();
        let sent = match gather(&mut prefix, frame, |vectors| send(socket.as_raw_fd(), vectors)) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Progress::Later(Some(Wait::Writable(socket.as_raw_fd()))));
            }
            Err(error) => return self.failed(&socket, error, Progress::Done(())),
        };
        if sent < PREFIX + len {
            // The guest may change its memory once the frame is done with, so the rest is ours.
            sending.rest.extend(prefix);
            sending.rest.resize(PREFIX + len, 0);
            copy_from(frame, &mut sending.rest[PREFIX..]);
            sending.sent = sent;
        }
        Ok(Progress::Done(()))
    }

    fn flush(&self) -> io::Result<Progress<()>> {
        let mut sending = lock(&self.sending);
        if sending.rest.is_empty() {
            return Ok(Progress::Done(()));
        }
        match self.current() {
            Some(socket) => self.flush_rest(&socket, &mut sending),
            None => {
                *sending = Sending::default();
                Ok(Progress::Done(()))
            }
        }
    }

    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
        let mut receiving = lock(&self.receiving);
        let Some(socket) = self.current() else {
            return Ok(Progress::Later(None));
        };
        loop {
            let Receiving { buffer, start, end } = &mut *receiving;
            let there = &buffer[*start..*end];
            if let Some((prefix, rest)) = there.split_first_chunk::<PREFIX>() {
                let len = u32::from_be_bytes(*prefix) as usize;
                if len > MAX_FRAME {
                    // Where the next frame begins cannot be known any more.
                    let error = io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long");
                    return self.failed(&socket, error, Progress::Later(None));
                }
                if let Some(frame) = rest.get(..len) {
                    copy_to(frame, room, overflow);
                    *start += PREFIX + len;
                    let header = Header::default();
                    return Ok(Progress::Done(Received { header, len }));
                }
            }
            buffer.copy_within(*start..*end, 0);
            (*start, *end) = (0, *end - *start);
            // There is room, or the frame would be whole.
            match receive(socket.as_raw_fd(), &mut buffer[*end..]) {
                Ok(0) => {
                    let error = io::ErrorKind::UnexpectedEof.into();
                    return self.failed(&socket, error, Progress::Later(None));
                }
                Ok(read) => *end += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Later(Some(Wait::Readable(socket.as_raw_fd()))));
                }
                Err(error) => return self.failed(&socket, error, Progress::Later(None)),
            }
        }
    }
}

impl fmt::Debug for StreamSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSocket")
            .field("socket", &lock(&self.socket))
            .finish_non_exhaustive()
    }
}

/// A datagram socket, connected, over which each frame is a datagram.
///
/// Each frame that the socket refuses is a failure of the host, and lost.
///
/// ```
/// use devisor::virtio::net::{DatagramSocket, Net, NetOptions};
/// use std::os::unix::net::UnixDatagram;
///
/// let (ours, theirs) = UnixDatagram::pair()?;
/// let nic = Net::new([DatagramSocket::new(ours)?], NetOptions::default())?;
/// # drop((nic, theirs));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DatagramSocket(OwnedFd);

impl DatagramSocket {
    /// The network is at the other end of `socket`.
    ///
    /// # Errors
    /// The host refuses to keep the socket from raising signals.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let socket = socket.into();
        quiet(&socket)?;
        Ok(Self(socket))
    }
}

impl Port for DatagramSocket {
    fn send(&self, _: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
        match gather(&mut [], frame, |vectors| send(self.0.as_raw_fd(), vectors)) {
            Ok(_) => Ok(Progress::Done(())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Progress::Later(Some(Wait::Writable(self.0.as_raw_fd()))))
            }
            Err(error) => Err(error),
        }
    }

    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
        let limit = length(room) + overflow.len();
        let mut cut = false;
        let received = scatter(&mut [], room, overflow, |vectors| {
            let mut message = message(vectors);
            // SAFETY: the vectors are the memory of slices, valid for writes of their lengths while these are borrowed; there
            // is no address and no control data to be written.
            let read = uninterrupted(|| unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, FLAGS) });
            cut = message.msg_flags & libc::MSG_TRUNC != 0;
            read
        });
        match received {
            // One that was cut is longer than anything that is taken.
            Ok(len) => Ok(Progress::Done(Received {
                header: Header::default(),
                len: if cut { limit + 1 } else { len },
            })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Progress::Later(Some(Wait::Readable(self.0.as_raw_fd()))))
            }
            Err(error) => Err(error),
        }
    }
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all of it is numbers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len() as _;
    message
}

fn send(socket: RawFd, vectors: &mut [libc::iovec]) -> io::Result<usize> {
    let message = message(vectors);
    // SAFETY: the vectors are memory that is valid for reads of their lengths while they are borrowed; there is no address and no
    // control data.
    uninterrupted(|| unsafe { libc::sendmsg(socket, &raw const message, FLAGS) })
}

fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for writes of its length.
    uninterrupted(|| unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), FLAGS) })
}

/// Keeps a socket from raising SIGPIPE, where that is no flag of a call.
#[cfg(target_vendor = "apple")]
fn quiet(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = mem::size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option is an `int`, which the pointer leads to.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NOSIGPIPE,
            (&raw const on).cast(),
            len,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_vendor = "apple"))]
fn quiet(_: &OwnedFd) -> io::Result<()> {
    Ok(())
}
