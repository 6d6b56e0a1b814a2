//! Sockets that never wait, with TLS on them or not.

use std::{
    io, mem,
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
};

use super::vectors::{Vector, Vectors};
use crate::virtio::{Wait, host_io};

/// What bytes go over.
pub enum Stream {
    Plain(Arc<OwnedFd>),
    #[cfg(feature = "nbd-tls")]
    Tls(Box<super::tls::TlsStream>),
}

impl Stream {
    pub fn socket(&self) -> &Arc<OwnedFd> {
        match self {
            Self::Plain(socket) => socket,
            #[cfg(feature = "nbd-tls")]
            Self::Tls(stream) => stream.socket(),
        }
    }

    /// Reads; zero is the end.
    ///
    /// # Safety
    /// The memory of the vectors is there, and may be written.
    pub unsafe fn read(&mut self, room: &Vectors) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => {
                let vectors = room.as_slice();
                again(|| {
                    // SAFETY: as the caller promises; `Vector` is an `iovec`.
                    unsafe {
                        libc::readv(
                            socket.as_raw_fd(),
                            vectors.as_ptr().cast(),
                            vectors.len() as libc::c_int,
                        )
                    }
                })
            }
            #[cfg(feature = "nbd-tls")]
            // SAFETY: as the caller promises.
            Self::Tls(stream) => unsafe { stream.read(room) },
        }
    }

    /// Writes; what was written is on its way, or kept to be on it.
    ///
    /// # Safety
    /// The memory of the vectors is there.
    pub unsafe fn write(&mut self, data: &Vectors) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => {
                let vectors = data.as_slice();
                again(|| {
                    // SAFETY: a message header of zeros is an empty one.
                    let mut message: libc::msghdr = unsafe { mem::zeroed() };
                    message.msg_iov = vectors.as_ptr().cast_mut().cast();
                    message.msg_iovlen = vectors.len() as _;
                    // SAFETY: as the caller promises; `Vector` is an `iovec`, and is not written.
                    unsafe { libc::sendmsg(socket.as_raw_fd(), &message, host_io::NO_SIGNAL) }
                })
            }
            #[cfg(feature = "nbd-tls")]
            // SAFETY: as the caller promises.
            Self::Tls(stream) => unsafe { stream.write(data) },
        }
    }

    /// Sends what is kept. Whether anything is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(false),
            #[cfg(feature = "nbd-tls")]
            Self::Tls(stream) => stream.flush(),
        }
    }

    /// Writes bytes of this process.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut vectors = Vectors::new();
        vectors.push(Vector::of(bytes));
        // SAFETY: it is lent for the call.
        unsafe { self.write(&vectors) }
    }

    /// Reads into memory of this process.
    pub fn read_bytes(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut vectors = Vectors::new();
        vectors.push(Vector::of_mut(room));
        // SAFETY: it is lent for the call.
        unsafe { self.read(&vectors) }
    }
}

/// A call, again if a signal has interrupted it.
fn again(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(moved) = usize::try_from(call()) {
            return Ok(moved);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Begins to connect to a Unix socket.
pub fn unix(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: an address of zeros is one without a name.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as _;
    let bytes = path.as_os_str().as_bytes();
    // One byte is left for the zero at the end.
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of the socket is too long for one",
        ));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let socket = socket(libc::AF_UNIX)?;
    // SAFETY: an address of that length.
    unsafe { connect(&socket, (&raw const address).cast(), mem::size_of_val(&address)) }?;
    Ok(socket)
}

/// Begins to connect over TCP.
pub fn tcp(address: &SocketAddr) -> io::Result<OwnedFd> {
    let socket;
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: a plain structure.
            let mut raw: libc::sockaddr_in = unsafe { mem::zeroed() };
            raw.sin_family = libc::AF_INET as _;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            socket = self::socket(libc::AF_INET)?;
            // SAFETY: an address of that length.
            unsafe { connect(&socket, (&raw const raw).cast(), mem::size_of_val(&raw)) }?;
        }
        SocketAddr::V6(v6) => {
            // SAFETY: a plain structure.
            let mut raw: libc::sockaddr_in6 = unsafe { mem::zeroed() };
            raw.sin6_family = libc::AF_INET6 as _;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_flowinfo = v6.flowinfo();
            raw.sin6_scope_id = v6.scope_id();
            socket = self::socket(libc::AF_INET6)?;
            // SAFETY: an address of that length.
            unsafe { connect(&socket, (&raw const raw).cast(), mem::size_of_val(&raw)) }?;
        }
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream.into())
}

fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no memory is involved.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    prepare(socket)
}

/// Makes a socket one that never waits and raises no signal.
pub fn prepare(socket: OwnedFd) -> io::Result<OwnedFd> {
    host_io::set_nonblocking(socket.as_raw_fd())?;
    #[cfg(target_vendor = "apple")]
    {
        let on: libc::c_int = 1;
        // SAFETY: an integer of that length.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NOSIGPIPE,
                (&raw const on).cast(),
                mem::size_of_val(&on) as libc::socklen_t,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(socket)
}

/// Connects, or begins to.
///
/// # Safety
/// `address` is an address of `len` bytes.
unsafe fn connect(socket: &OwnedFd, address: *const libc::sockaddr, len: usize) -> io::Result<()> {
    // SAFETY: as the caller promises.
    if unsafe { libc::connect(socket.as_raw_fd(), address, len as libc::socklen_t) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // A signal leaves it going on too.
        Some(libc::EINPROGRESS | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}

/// Whether it is connected by now; an error if it will not be.
pub fn is_connected(socket: &OwnedFd) -> io::Result<bool> {
    if host_io::poll(socket.as_raw_fd(), libc::POLLOUT) == 0 {
        return Ok(false);
    }
    // Either kind answers for what every socket has.
    let stream = UnixStream::from(socket.try_clone()?);
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(true),
    }
}

/// Waits on this thread until one of `waits` is there, or for so many milliseconds.
pub fn wait_for(waits: &[Wait], milliseconds: libc::c_int) {
    let mut polled: Vec<_> = waits
        .iter()
        .filter_map(|wait| match *wait {
            Wait::Readable(fd) => Some((fd, libc::POLLIN)),
            Wait::Writable(fd) => Some((fd, libc::POLLOUT)),
            Wait::Until(_) => None,
        })
        .map(|(fd, events)| libc::pollfd { fd, events, revents: 0 })
        .collect();
    // SAFETY: a list of that length. Whatever comes of it, the caller looks itself.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, milliseconds) };
}
