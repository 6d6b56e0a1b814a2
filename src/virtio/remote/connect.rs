//! How a back end is reached.

use std::{
    fmt, io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::PathBuf,
};

use super::peer::Peer;

/// Reaches a back end: the first time, and again after it has gone.
///
/// Any `FnMut() -> io::Result<UnixStream>` does: one that starts the daemon, or takes one that was accepted on a socket of the embedder's.
/// So do [`SocketPath`] and what reaches [the kernel's](super::kernel). It may be called on the thread of a vCPU, and does not wait.
pub trait Connect: Send {
    /// A new connection.
    ///
    /// # Errors
    /// There is none to be had now; it is tried again later.
    fn connect(&mut self) -> io::Result<Connection>;
}

/// A back end that was reached: a stream to a vhost-user back end, or [one in the kernel](super::kernel).
pub struct Connection(pub(super) Reached);

pub(super) enum Reached {
    Socket(UnixStream),
    Here(Box<dyn Peer>),
}

impl From<UnixStream> for Connection {
    fn from(stream: UnixStream) -> Self {
        Self(Reached::Socket(stream))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reached::Socket(stream) => f.debug_tuple("Connection").field(stream).finish(),
            Reached::Here(_) => f.debug_struct("Connection").finish_non_exhaustive(),
        }
    }
}

impl<F: FnMut() -> io::Result<UnixStream> + Send> Connect for F {
    fn connect(&mut self) -> io::Result<Connection> {
        self().map(Into::into)
    }
}

/// A back end that listens at a path.
#[derive(Clone, Debug)]
pub struct SocketPath(pub PathBuf);

impl Connect for SocketPath {
    /// Not by the standard library's, which waits for a listener that does not accept.
    fn connect(&mut self) -> io::Result<Connection> {
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
        Ok(UnixStream::from(socket).into())
    }
}
