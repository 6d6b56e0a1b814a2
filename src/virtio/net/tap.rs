//! A TAP interface of Linux (Documentation/networking/tuntap).

use std::{
    ffi::CStr,
    fs::{File, OpenOptions},
    io, mem,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use vm_memory::VolatileSlice;

use super::{
    Header, Holder, Incoming, Offloads, Outgoing, Port, PortOffloads, Progress, Received, Waker,
    header::HEADROOM,
    port::Attached,
    registers::header::LEN,
    transmit::{Ends, Sink},
    vectored::{gather, scatter, scatter_two, uninterrupted},
};
use crate::virtio::Wait;

/// A queue of a TAP interface: frames go from and to guest memory with one system call each and no copy in this process.
///
/// The interface is in the network namespace of the thread that opens it. What is done to it (an address, a bridge, up and down) is the
/// embedder's. The guest may leave all checksums and segmentation to it, and be left them.
pub struct Tap {
    file: File,
    /// One of several.
    several: bool,
    active: AtomicBool,
    offloads: Offloads,
    waker: Attached,
}

/// A TAP interface cannot be used as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// No such name.
    #[error(
        "{0:?} is no name of an interface: 1 to 15 bytes without a zero are accepted, or none to have the host choose one"
    )]
    Name(String),
    /// No queue.
    #[error("no queue: at least one is needed")]
    NoQueue,
    /// A descriptor that is something else, or was opened otherwise.
    #[error(
        "the interface has the flags {0:#x}: IFF_TAP (2), IFF_NO_PI (0x1000) and IFF_VNET_HDR (0x4000) are needed, and no others but IFF_MULTI_QUEUE (0x100)"
    )]
    Flags(i32),
    /// The host refuses.
    #[error("{what}: {error}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> TapError {
    move |error| TapError::Host { what, error }
}

/// Reads as it is written: the name of an interface and its flags.
fn request(name: &str, flags: i32) -> Result<libc::ifreq, TapError> {
    let wrong = || TapError::Name(name.to_owned());
    if name.len() >= libc::IFNAMSIZ || name.as_bytes().contains(&0) {
        return Err(wrong());
    }
    // SAFETY: all of it is numbers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (place, &byte) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    Ok(request)
}

impl Tap {
    /// One queue of the interface `name`, which is made if it is not there. An empty name has the host choose one.
    ///
    /// # Errors
    /// The host refuses.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let mut queues = Self::open_queues(name, 1)?;
        queues.pop().ok_or(TapError::NoQueue)
    }

    /// So many queues of the interface `name`, one for each pair of a device. Of more than one, the interface gives each the frames of
    /// the flows that were sent by it.
    ///
    /// # Errors
    /// The host refuses.
    pub fn open_queues(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        if queues == 0 {
            return Err(TapError::NoQueue);
        }
        let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let mut opened = Vec::new();
        let mut name = name.to_owned();
        for _ in 0..queues {
            let mut request = request(&name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several)?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .map_err(host("/dev/net/tun"))?;
            // SAFETY: the call reads and writes an `ifreq`, which `request` is.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
            if result != 0 {
                return Err(host("TUNSETIFF")(io::Error::last_os_error()));
            }
            name = name_of(&request);
            opened.push(Self::prepared(file, several != 0)?);
        }
        Ok(opened)
    }

    /// A queue that somebody else has opened, with IFF_NO_PI and IFF_VNET_HDR: a privileged helper, or of a macvtap.
    ///
    /// # Errors
    /// It is none, or was opened otherwise, or the host refuses.
    pub fn from_fd(queue: OwnedFd) -> Result<Self, TapError> {
        let request = flags_of(&queue)?;
        // SAFETY: the kernel has written this part of the union.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags }) & 0xffff;
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // What says how the interface is, and not how it was opened.
        let kinds = libc::IFF_TUN | needed;
        if flags & kinds != needed {
            return Err(TapError::Flags(flags));
        }
        // SAFETY: the descriptor is open; the call changes its flags.
        let current = unsafe { libc::fcntl(queue.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: as above.
        if current < 0 || unsafe { libc::fcntl(queue.as_raw_fd(), libc::F_SETFL, current | libc::O_NONBLOCK) } < 0 {
            return Err(host("O_NONBLOCK")(io::Error::last_os_error()));
        }
        Self::prepared(File::from(queue), flags & libc::IFF_MULTI_QUEUE != 0)
    }

    fn prepared(file: File, several: bool) -> Result<Self, TapError> {
        set(&file, libc::TUNSETVNETHDRSZ, LEN as libc::c_int).map_err(host("TUNSETVNETHDRSZ"))?;
        set(&file, libc::TUNSETVNETLE, 1).map_err(host("TUNSETVNETLE"))?;
        // Not all kernels can cut UDP.
        let without = Offloads {
            uso4: false,
            uso6: false,
            ..Offloads::ALL
        };
        let possible = [Offloads::ALL, without];
        let offloads = possible
            .into_iter()
            .find(|&offloads| set_offload(&file, offloads).is_ok());
        let offloads = offloads.unwrap_or(Offloads::NONE);
        set_offload(&file, Offloads::NONE).map_err(host("TUNSETOFFLOAD"))?;
        Ok(Self {
            file,
            several,
            active: AtomicBool::new(true),
            offloads,
            waker: Attached::default(),
        })
    }

    /// The name of the interface.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn name(&self) -> Result<String, TapError> {
        flags_of(&self.file).map(|request| name_of(&request))
    }
}

fn name_of(request: &libc::ifreq) -> String {
    let name = request.ifr_name.map(|byte| byte as u8);
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn flags_of(file: &impl AsRawFd) -> Result<libc::ifreq, TapError> {
    let mut request = request("", 0)?;
    // SAFETY: the call writes an `ifreq`, which `request` is.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } {
        0 => Ok(request),
        _ => Err(host("TUNGETIFF")(io::Error::last_os_error())),
    }
}

/// One of the requests that read an `int`.
fn set(file: &File, request: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: each request that this is called with reads one `int` from the pointer.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, &raw const value) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_offload(file: &File, offloads: Offloads) -> io::Result<()> {
    let Offloads {
        checksum,
        tso4,
        tso6,
        ecn,
        ufo,
        uso4,
        uso6,
    } = offloads.consistent();
    let bits = [
        (checksum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        (ecn, libc::TUN_F_TSO_ECN),
        (ufo, libc::TUN_F_UFO),
        // Linux refuses all if one of them is without the other.
        (uso4 && uso6, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    let bits = bits.iter().fold(0, |all, &(on, bit)| if on { all | bit } else { all });
    // SAFETY: the request has a number as its argument, and no pointer.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Port for Tap {
    fn offloads(&self) -> PortOffloads {
        PortOffloads {
            send: self.offloads,
            receive: self.offloads,
        }
    }

    fn steers(&self) -> bool {
        self.several
    }

    fn attach(&self, waker: Waker) {
        self.waker.set(waker);
    }

    /// A queue that is not in use is detached, so that the interface gives its frames to others.
    fn set_active(&self, by: Holder, active: bool) -> io::Result<()> {
        if !self.several {
            return Ok(());
        }
        let switched = self.waker.if_held(by, || Some(self.switch(active)));
        switched.unwrap_or(Ok(()))
    }

    /// Of the interface: all its queues have the same.
    fn set_offloads(&self, by: Holder, offloads: Offloads) -> io::Result<()> {
        let set = self.waker.if_held(by, || {
            let active = self.active.load(SeqCst);
            active.then(|| set_offload(&self.file, offloads.and(self.offloads)))
        });
        set.unwrap_or(Ok(()))
    }

    fn send(&self, header: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
        let mut header = header.to_bytes();
        let sent = gather(&mut header, frame, |vectors| {
            // SAFETY: each vector is the header or the memory of a slice, valid for reads of its length for as long as these
            // are borrowed; the kernel makes no reference of it. There are at most IOV_MAX of them.
            uninterrupted(|| unsafe {
                libc::writev(self.file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int)
            })
        });
        self.sent(sent)
    }

    fn send_all(&self, frames: &mut Outgoing<'_, '_>) {
        let mut sink = Copied {
            tap: self,
            packet: frames.take_scratch(),
        };
        frames.each_copied_up_to(COPIED, &mut sink, &mut |header, frame| self.send(header, frame));
        frames.put_scratch(sink.packet);
    }

    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
        let mut header = [0; LEN];
        let received = scatter(&mut header, room, overflow, |vectors| self.read(vectors));
        self.received(received, |len| match len.checked_sub(LEN) {
            Some(len) => Ok(Received {
                header: Header::from_bytes(&header),
                len,
            }),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        })
    }

    fn receive_all(&self, frames: &mut Incoming<'_, '_>) {
        frames.each_with_header(
            &mut |room, overflow| {
                let received = scatter_two(room, overflow, |vectors| self.read(vectors));
                self.received(received, Ok)
            },
            &mut |room, overflow| self.receive(room, overflow),
        );
    }
}

/// Packets up to this length are copied before they are sent: that costs less than to have the host look for two pieces.
const COPIED: u32 = 2048;

/// Packets that are sent in one piece, header and all.
struct Copied<'a> {
    tap: &'a Tap,
    packet: Box<[u8]>,
}

impl Sink for Copied<'_> {
    #[inline]
    fn room(&mut self, _: usize, _: u64) -> &mut [u8] {
        &mut self.packet
    }

    #[inline]
    fn send(&mut self, header: &Header, len: usize, _: &Ends) -> io::Result<Progress<()>> {
        self.packet[HEADROOM - LEN..HEADROOM].copy_from_slice(&header.to_bytes());
        let packet = &self.packet[HEADROOM - LEN..HEADROOM + len];
        // SAFETY: the packet is valid for reads of its length.
        let sent =
            uninterrupted(|| unsafe { libc::write(self.tap.file.as_raw_fd(), packet.as_ptr().cast(), packet.len()) });
        self.tap.sent(sent)
    }
}

impl Tap {
    fn switch(&self, active: bool) -> io::Result<()> {
        if self.active.load(SeqCst) == active {
            return Ok(());
        }
        let flags = if active {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        let request = request("", flags).map_err(io::Error::other)?;
        // SAFETY: the call reads an `ifreq`, which `request` is.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) } {
            0 => {
                self.active.store(active, SeqCst);
                Ok(())
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    #[inline]
    fn sent(&self, sent: io::Result<usize>) -> io::Result<Progress<()>> {
        match sent {
            Ok(_) => Ok(Progress::Done(())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Progress::Later(Some(Wait::Writable(self.file.as_raw_fd()))))
            }
            Err(error) => Err(error),
        }
    }

    #[inline]
    fn received<T>(
        &self,
        received: io::Result<usize>,
        done: impl FnOnce(usize) -> io::Result<T>,
    ) -> io::Result<Progress<T>> {
        match received {
            Ok(len) => Ok(Progress::Done(done(len)?)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Progress::Later(Some(Wait::Readable(self.file.as_raw_fd()))))
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, vectors: &mut [libc::iovec]) -> io::Result<usize> {
        // SAFETY: each vector is memory that is valid for writes of its length for as long as they are borrowed; the kernel makes no
        // reference of it. There are at most IOV_MAX of them.
        uninterrupted(|| unsafe { libc::readv(self.file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap")
            .field("file", &self.file)
            .field("several", &self.several)
            .field("active", &self.active)
            .field("offloads", &self.offloads)
            .finish()
    }
}
