//! A peer that is a pseudo-terminal: whoever opens its other side is at the guest's console.

use std::{
    ffi::CStr,
    fmt, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use vm_memory::VolatileSlice;

use super::{
    Interest, Peer, Size,
    fd::{set_raw, window_size},
};
use crate::virtio::{Wait, host_io};

/// A pseudo-terminal. Programs that open [`path`](Self::path) come and go; it is closed while none has it open.
///
/// It begins raw. Its size is what a program has set on its side; there is no event for that, so have it asked for
/// ([`Ports::refresh_size`](super::Ports::refresh_size)) when you know of one. On Linux the next program that comes is waited for; where
/// there is no such event, have the device [look](super::News::tell), or the embedder run it.
///
/// ```
/// use devisor::virtio::console::{Peer, Port, Pty};
///
/// let pty = Pty::open()?;
/// assert!(!pty.is_open());
/// println!("screen {}", pty.path().display());
/// let port = Port::console(pty);
/// # drop(port);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Pty {
    master: OwnedFd,
    path: PathBuf,
    opened: Option<OwnedFd>,
    /// The end was read, and that somebody has gone was not told yet.
    gone: AtomicBool,
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    match fd {
        // SAFETY: a call has just returned it, and nobody else knows it.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn check(returned: libc::c_int) -> io::Result<()> {
    match returned {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Pty {
    /// A new pseudo-terminal.
    ///
    /// # Errors
    /// The operating system has none.
    pub fn open() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let master = owned(unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) })?;
        let raw = master.as_raw_fd();
        // SAFETY: no memory is involved.
        check(unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) })?;
        // SAFETY: no memory is involved.
        check(unsafe { libc::grantpt(raw) })?;
        // SAFETY: no memory is involved.
        check(unsafe { libc::unlockpt(raw) })?;
        let path = name(raw)?;
        host_io::set_nonblocking(raw)?;
        let opened = sys::opened(&path);
        // Opened once and closed again, it says so until somebody comes; before that, nobody has hung up.
        let mut options = std::fs::OpenOptions::new();
        let options = std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true).write(true), libc::O_NOCTTY);
        let slave = options.open(&path)?;
        // SAFETY: a structure of plain numbers.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the call fills the structure, which is there.
        check(unsafe { libc::tcgetattr(slave.as_raw_fd(), &mut modes) })?;
        set_raw(slave.as_raw_fd(), modes)?;
        drop(slave);
        let gone = AtomicBool::new(false);
        let pty = Self {
            master,
            path,
            opened,
            gone,
        };
        pty.drain_opened();
        Ok(pty)
    }

    /// What programs open.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn raw(&self) -> RawFd {
        self.master.as_raw_fd()
    }

    /// What was told of those who came so far is of no interest any more.
    fn drain_opened(&self) {
        if let Some(opened) = &self.opened {
            let mut events = [0_u8; 1024];
            let room = [VolatileSlice::from(&mut events[..])];
            while host_io::read(opened.as_raw_fd(), &room).is_ok_and(|len| len != 0) {}
        }
    }

    fn is_hung_up(&self) -> bool {
        host_io::poll(self.raw(), 0) & libc::POLLHUP != 0
    }
}

/// The path of the other side.
#[cfg(target_os = "linux")]
fn name(master: RawFd) -> io::Result<PathBuf> {
    let mut name = [0; 128];
    // SAFETY: the call writes up to so many bytes, which are there.
    match unsafe { libc::ptsname_r(master, name.as_mut_ptr(), name.len()) } {
        0 => {
            // SAFETY: the call has succeeded, so there is a NUL.
            let name = unsafe { CStr::from_ptr(name.as_ptr()) };
            Ok(std::ffi::OsStr::from_bytes(name.to_bytes()).into())
        }
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The path of the other side.
#[cfg(not(target_os = "linux"))]
fn name(master: RawFd) -> io::Result<PathBuf> {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = crate::sync::lock(&ONE_AT_A_TIME);
    // SAFETY: nobody here calls it at the same time.
    let name = unsafe { libc::ptsname(master) };
    if name.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded, and what it returned stays until it is called again.
    let name = unsafe { CStr::from_ptr(name) };
    Ok(std::ffi::OsStr::from_bytes(name.to_bytes()).into())
}

#[cfg(target_os = "linux")]
mod sys {
    use std::{ffi::CString, os::fd::AsRawFd, os::fd::OwnedFd, os::unix::ffi::OsStrExt, path::Path};

    /// A descriptor that is readable when somebody has opened `path`. None, if the system has no more of them.
    pub fn opened(path: &Path) -> Option<OwnedFd> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        // SAFETY: no memory is involved.
        let events = super::owned(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) }).ok()?;
        // SAFETY: the path ends with a NUL and is there for the call.
        let watch = unsafe { libc::inotify_add_watch(events.as_raw_fd(), path.as_ptr(), libc::IN_OPEN) };
        (watch >= 0).then_some(events)
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    /// There is nothing that says so.
    pub fn opened(_: &std::path::Path) -> Option<std::os::fd::OwnedFd> {
        None
    }
}

impl Peer for Pty {
    fn is_open(&self) -> bool {
        // Once, though somebody else may have come since: what was typed by the one ends before what is typed by the other.
        if self.gone.swap(false, Ordering::SeqCst) {
            return false;
        }
        // In this order, so that who comes in between is heard of.
        self.drain_opened();
        !self.is_hung_up()
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        match host_io::read(self.raw(), room) {
            // It is closed, and what was typed has been read.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                self.gone.store(true, Ordering::SeqCst);
                Ok(0)
            }
            read => read,
        }
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        host_io::write(self.raw(), data)
    }

    fn wait(&self, interest: Interest) -> Option<Wait> {
        match interest {
            Interest::Read => Some(Wait::Readable(self.raw())),
            Interest::Write => Some(Wait::Writable(self.raw())),
            Interest::Open => self.opened.as_ref().map(|opened| Wait::Readable(opened.as_raw_fd())),
        }
    }

    fn size(&self) -> Option<Size> {
        window_size(self.raw())
    }
}

impl fmt::Debug for Pty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pty").field("path", &self.path).finish_non_exhaustive()
    }
}
