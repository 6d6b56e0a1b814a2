//! A descriptor that another process has too, and with it all flags: it is not waited for, whatever that process makes of them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
};

use crate::virtio::host_io;

/// A pipe, a socket, an eventfd, a file.
#[derive(Debug)]
pub(crate) struct Foreign {
    file: File,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Its flags are nobody else's: it was opened once more. Or it is a file, whose bytes do not hang on anybody.
    Own,
    /// Each call says that it is not to wait.
    Socket,
    /// As much as the kernel has for it: see [`read`](Foreign::read) and [`write`](Foreign::write).
    Other,
}

impl Foreign {
    /// One that is read.
    pub fn to_read(descriptor: OwnedFd) -> io::Result<Self> {
        Self::new(descriptor, libc::O_RDONLY)
    }

    /// One that is written.
    pub fn to_write(descriptor: OwnedFd) -> io::Result<Self> {
        Self::new(descriptor, libc::O_WRONLY)
    }

    /// An eventfd. Its flags stay as they are.
    pub fn eventfd(descriptor: OwnedFd) -> Self {
        Self {
            file: descriptor.into(),
            how: How::Other,
        }
    }

    fn new(descriptor: OwnedFd, access: libc::c_int) -> io::Result<Self> {
        let file = File::from(descriptor);
        // To open it once more is not to be more than the other end may do.
        let open_for = host_io::flags(file.as_raw_fd())? & (libc::O_ACCMODE | libc::O_PATH);
        if open_for != access && open_for != libc::O_RDWR {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let kind = file.metadata()?.file_type();
        let how = match () {
            () if kind.is_fifo() => {
                let mut options = OpenOptions::new();
                options.read(access == libc::O_RDONLY).write(access == libc::O_WRONLY);
                // Refused to who is another user, and where there is no such folder.
                if let Ok(own) = options.custom_flags(libc::O_NONBLOCK).open(path_of(file.as_fd())) {
                    return Ok(Self {
                        file: own,
                        how: How::Own,
                    });
                }
                How::Other
            }
            () if kind.is_socket() => How::Socket,
            () if kind.is_file() => How::Own,
            () => How::Other,
        };
        if how == How::Other {
            host_io::set_nonblocking(file.as_raw_fd())?;
        }
        Ok(Self { file, how })
    }

    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether it is an eventfd, a pipe or a socket. Where there is nobody to ask for the name of what is in no file system, that is
    /// taken for an eventfd.
    pub fn is_event(&self) -> io::Result<bool> {
        let kind = self.file.metadata()?.file_type();
        if kind.is_fifo() || kind.is_socket() {
            return Ok(true);
        }
        let is_file = kind.is_file() || kind.is_dir() || kind.is_block_device() || kind.is_char_device();
        let name = fs::read_link(path_of(self.file.as_fd()));
        Ok(name.map_or(!is_file, |name| name.as_os_str() == "anon_inode:[eventfd]"))
    }

    /// Whether it is a pipe, a socket or a file.
    pub fn is_stream(&self) -> io::Result<bool> {
        let kind = self.file.metadata()?.file_type();
        Ok(kind.is_fifo() || kind.is_socket() || kind.is_file())
    }

    /// Whether a [`write`](Self::write) is still waited for if whoever shares this comes at the wrong time.
    pub fn may_be_waited_for(&self) -> bool {
        self.how == How::Other
    }

    /// Reads what is there; `WouldBlock` if that is nothing.
    pub fn read(&self, data: &mut [u8]) -> io::Result<usize> {
        match self.how {
            How::Own => (&self.file).read(data),
            How::Socket => {
                let flags = libc::MSG_DONTWAIT;
                // SAFETY: the buffer is as long as is said, and outlives the call.
                moved(unsafe { libc::recv(self.descriptor(), data.as_mut_ptr().cast(), data.len(), flags) })
            }
            How::Other => {
                let iov = [libc::iovec {
                    iov_base: data.as_mut_ptr().cast(),
                    iov_len: data.len(),
                }];
                // SAFETY: one buffer of the length that is said, which outlives the call.
                let read = unsafe { libc::preadv2(self.descriptor(), iov.as_ptr(), 1, -1, libc::RWF_NOWAIT) };
                match moved(read) {
                    Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                        self.if_ready(libc::POLLIN, || (&self.file).read(data))
                    }
                    result => result,
                }
            }
        }
    }

    /// Writes what there is room for; `WouldBlock` if there is none.
    pub fn write(&self, data: &[u8]) -> io::Result<usize> {
        match self.how {
            How::Own => (&self.file).write(data),
            How::Socket => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: as in `read`.
                moved(unsafe { libc::send(self.descriptor(), data.as_ptr().cast(), data.len(), flags) })
            }
            How::Other => self.if_ready(libc::POLLOUT, || (&self.file).write(data)),
        }
    }

    /// Where the kernel has no call that says for itself that it is not to wait: whoever shares this can still come between both.
    fn if_ready(&self, events: libc::c_short, call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        match host_io::poll(self.descriptor(), events) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => call(),
        }
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where it can be named.
fn path_of(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/thread-self/fd/{}", descriptor.as_raw_fd())
}

fn moved(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
