//! How a back end is reached.

use std::{
    io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::PathBuf,
};

/// Reaches a back end: the first time, and again after it has gone.
///
/// Any `FnMut() -> io::Result<UnixStream>` does: one that starts the daemon, or takes one that was accepted on a socket of the embedder's.
/// It may be called on the thread of a vCPU, and does not wait.
pub trait Connect: Send {
    /// A new connection.
    ///
    /// # Errors
    /// There is none to be had now; it is tried again later.
    fn connect(&mut self) -> io::Result<UnixStream>;
}

impl<F: FnMut() -> io::Result<UnixStream> + Send> Connect for F {
    fn connect(&mut self) -> io::Result<UnixStream> {
        self()
    }
}

/// A back end that listens at a path.
#[derive(Clone, Debug)]
pub struct SocketPath(pub PathBuf);

impl Connect for SocketPath {
    /// Not by the standard library's, which waits for a listener that does not accept.
    fn connect(&mut self) -> io::Result<UnixStream> {
        let path = self.0.as_os_str().as_bytes();
        // SAFETY: all zeros are a valid address.
        let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
        address.sun_family = libc::AF_UNIX as _;
        if path.len() >= address.sun_path.len() || path.contains(&0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a socket's path of {} bytes: {} are accepted",
                    path.len(),
                    address.sun_path.len() - 1
                ),
            ));
        }
        for (place, &byte) in address.sun_path.iter_mut().zip(path) {
            *place = byte as _;
        }
        // SAFETY: the call takes numbers, and its result is a descriptor that nobody else has, or none.
        let socket = unsafe {
            let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            match libc::socket(libc::AF_UNIX, kind, 0) {
                ..0 => return Err(io::Error::last_os_error()),
                descriptor => OwnedFd::from_raw_fd(descriptor),
            }
        };
        let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        // SAFETY: the address outlives the call, and is as long as it says.
        if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket.into())
    }
}
