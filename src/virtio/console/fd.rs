//! Peers that are open files: a pair of descriptors, and the process's standard input and output.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use vm_memory::VolatileSlice;

use super::{Interest, Peer, Size};
use crate::virtio::{Wait, host_io};

/// A pair of descriptors: one that is read, and one that is written. Pipes, terminals, sockets, whatever can be waited for.
///
/// They do not block from here on (O_NONBLOCK is a property of the open file, which others may share), and are as they were when this
/// is dropped. The end of what is read is the end of input, and nothing more: output goes on until nobody takes it.
///
/// ```
/// use devisor::virtio::console::{FdPair, Port};
/// use std::{io::pipe, os::fd::OwnedFd};
///
/// let (input, typed) = pipe()?;
/// let (printed, output) = pipe()?;
/// let port = Port::console(FdPair::new(OwnedFd::from(input), OwnedFd::from(output))?);
/// # drop((port, typed, printed));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct FdPair {
    input: File,
    output: File,
    /// There is nothing more to read.
    ended: AtomicBool,
    /// Nobody takes output any more.
    broken: AtomicBool,
}

/// A descriptor that does not block, and how it was before.
struct File {
    fd: OwnedFd,
    flags: libc::c_int,
}

impl File {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = host_io::set_nonblocking(fd.as_raw_fd())?;
        Ok(Self { fd, flags })
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // It may be the last user.
        let _ = host_io::set_flags(self.raw(), self.flags);
    }
}

impl FdPair {
    /// Input from `input`, and output to `output`.
    ///
    /// # Errors
    /// The operating system refused to have them not block.
    pub fn new(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        let input = File::new(input)?;
        let mut output = File::new(output)?;
        // If they are one open file, this one found the other's mark.
        if output.flags & libc::O_NONBLOCK != 0 && same_file(input.raw(), output.raw()) {
            output.flags = input.flags;
        }
        Ok(Self {
            input,
            output,
            ended: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        })
    }
}

/// Whether two descriptors are of the same inode, which is as much as can be found out everywhere.
fn same_file(a: RawFd, b: RawFd) -> bool {
    let status = |fd| {
        // SAFETY: a structure of plain numbers.
        let mut status: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: it is there for the call.
        let asked = unsafe { libc::fstat(fd, &mut status) };
        (asked == 0).then_some((status.st_dev, status.st_ino))
    };
    status(a).is_some() && status(a) == status(b)
}

impl Peer for FdPair {
    fn is_open(&self) -> bool {
        !self.broken.load(Ordering::SeqCst)
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        if self.ended.load(Ordering::SeqCst) {
            return Ok(0);
        }
        let read = host_io::read(self.input.raw(), room);
        let blocked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let ended = match &read {
            Ok(len) => *len == 0,
            Err(error) => !blocked(error),
        };
        if ended {
            self.ended.store(true, Ordering::SeqCst);
        }
        read
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = host_io::write(self.output.raw(), data);
        if let Err(error) = &written
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.broken.store(true, Ordering::SeqCst);
        }
        written
    }

    fn wait(&self, interest: Interest) -> Option<Wait> {
        match interest {
            Interest::Read if !self.ended.load(Ordering::SeqCst) => Some(Wait::Readable(self.input.raw())),
            Interest::Write if self.is_open() => Some(Wait::Writable(self.output.raw())),
            _ => None,
        }
    }

    fn size(&self) -> Option<Size> {
        window_size(self.output.raw())
    }
}

impl fmt::Debug for FdPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FdPair")
            .field("input", &self.input.raw())
            .field("output", &self.output.raw())
            .finish_non_exhaustive()
    }
}

/// The size of the terminal at `fd`, if it is one that has any.
pub(super) fn window_size(fd: RawFd) -> Option<Size> {
    // SAFETY: a structure of plain numbers.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure, which is there.
    let asked = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) };
    (asked == 0 && (size.ws_col, size.ws_row) != (0, 0)).then_some(Size {
        cols: size.ws_col,
        rows: size.ws_row,
    })
}

/// The process's standard input and output. A terminal is raw for as long as this lives: what is typed goes to the guest, control
/// characters too.
///
/// ```no_run
/// use devisor::virtio::console::{Console, Port, Stdio};
///
/// let console = Console::single(Port::console(Stdio::new()?))?;
/// let ports = console.ports();
/// // After each SIGWINCH:
/// ports.refresh_size(0)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Stdio {
    /// Before the descriptors that it belongs to.
    _raw: Option<Raw>,
    pair: FdPair,
}

impl Stdio {
    /// Takes standard input and output; nobody else should read the one.
    ///
    /// # Errors
    /// They are closed, or the terminal cannot be made raw.
    pub fn new() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        let raw = Raw::new(input.try_clone()?)?;
        Ok(Self {
            _raw: raw,
            pair: FdPair::new(input, output)?,
        })
    }
}

impl Peer for Stdio {
    fn is_open(&self) -> bool {
        self.pair.is_open()
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.pair.read(room)
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.pair.write(data)
    }

    fn wait(&self, interest: Interest) -> Option<Wait> {
        self.pair.wait(interest)
    }

    fn size(&self) -> Option<Size> {
        self.pair.size()
    }
}

/// A terminal that is raw until this is dropped.
struct Raw {
    fd: OwnedFd,
    before: libc::termios,
}

impl Raw {
    /// `None`, if it is no terminal.
    fn new(fd: OwnedFd) -> io::Result<Option<Self>> {
        // SAFETY: a structure of plain numbers.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the call fills the structure, which is there.
        if unsafe { libc::tcgetattr(fd.as_raw_fd(), &mut before) } != 0 {
            return Ok(None);
        }
        set_raw(fd.as_raw_fd(), before)?;
        Ok(Some(Self { fd, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: the structure is there for the call.
        let _ = unsafe { libc::tcsetattr(self.fd.as_raw_fd(), libc::TCSANOW, &self.before) };
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Raw").field(&self.fd).finish()
    }
}

/// Makes the terminal `fd`, which has these modes, raw.
pub(super) fn set_raw(fd: RawFd, mut modes: libc::termios) -> io::Result<()> {
    // SAFETY: the structure is there for the call.
    unsafe { libc::cfmakeraw(&mut modes) };
    // SAFETY: as above.
    match unsafe { libc::tcsetattr(fd, libc::TCSANOW, &modes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Pty, *};

    #[test]
    fn a_terminal_is_raw_for_as_long_as_it_is_used() {
        let Ok(pty) = Pty::open() else {
            eprintln!("skipped: there are no pseudo-terminals");
            return;
        };
        let terminal = std::fs::File::options().read(true).write(true).open(pty.path());
        let terminal = OwnedFd::from(terminal.unwrap());
        let modes = |fd: &OwnedFd| {
            // SAFETY: a structure of plain numbers, which the call fills.
            unsafe {
                let mut modes: libc::termios = std::mem::zeroed();
                assert_eq!(libc::tcgetattr(fd.as_raw_fd(), &mut modes), 0);
                modes
            }
        };
        let mut cooked = modes(&terminal);
        cooked.c_lflag |= libc::ECHO | libc::ICANON;
        // SAFETY: the structure is there for the call.
        let set = unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &cooked) };
        assert_eq!(set, 0);
        let raw = Raw::new(terminal.try_clone().unwrap()).unwrap();
        assert_eq!(modes(&terminal).c_lflag & (libc::ECHO | libc::ICANON), 0);
        drop(raw);
        assert_ne!(modes(&terminal).c_lflag & libc::ECHO, 0);
        let (pipe, _end) = io::pipe().unwrap();
        assert!(Raw::new(OwnedFd::from(pipe)).unwrap().is_none());
    }
}
