//! A peer that listens at a Unix socket: one program at a time is at the other end.

use std::{
    fmt, io,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use vm_memory::VolatileSlice;

use super::{Interest, Peer};
use crate::{
    sync::lock,
    virtio::{Wait, host_io},
};

/// A Unix socket that listens. The first that connects is the other end until it goes; others wait for their turn in the socket's
/// backlog. One that has shut down its sending side has gone.
///
/// ```
/// use devisor::virtio::console::{Peer, SocketPeer};
/// use std::os::unix::net::UnixStream;
///
/// # let path = std::env::temp_dir().join(format!("devisor-doc-{}", std::process::id()));
/// let peer = SocketPeer::bind(&path)?;
/// assert!(!peer.is_open());
/// let other = UnixStream::connect(&path)?;
/// assert!(peer.is_open());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SocketPeer {
    listener: UnixListener,
    /// The path that goes with this.
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stream: Option<Arc<UnixStream>>,
    /// Somebody has gone, and that was not told yet.
    gone: bool,
}

impl SocketPeer {
    /// Listens at `path`, which must not be there, and is removed when this is dropped.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let mut peer = Self::new(UnixListener::bind(&path)?)?;
        peer.path = Some(path.as_ref().into());
        Ok(peer)
    }

    /// Listens at a socket that is there already.
    ///
    /// # Errors
    /// It cannot be had not to block.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path: None,
            state: Mutex::default(),
        })
    }

    fn stream(&self) -> Option<Arc<UnixStream>> {
        lock(&self.state).stream.clone()
    }

    /// `stream` has gone, if it is still the one.
    fn end(&self, stream: &Arc<UnixStream>) {
        let mut state = lock(&self.state);
        if state
            .stream
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(present, stream))
        {
            *state = State {
                stream: None,
                gone: true,
            };
        }
    }
}

impl Peer for SocketPeer {
    fn is_open(&self) -> bool {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.gone) {
            return false;
        }
        if state.stream.is_none()
            && let Ok((stream, _)) = self.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            state.stream = Some(Arc::new(stream));
        }
        state.stream.is_some()
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let Some(stream) = self.stream() else { return Ok(0) };
        let read = host_io::read(stream.as_raw_fd(), room);
        match &read {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => self.end(&stream),
        }
        read
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let stream = self.stream().ok_or(io::ErrorKind::BrokenPipe)?;
        let sent = host_io::send(stream.as_raw_fd(), data);
        if let Err(error) = &sent
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.end(&stream);
        }
        sent
    }

    fn wait(&self, interest: Interest) -> Option<Wait> {
        let stream = self.stream();
        Some(match (interest, stream) {
            (Interest::Read, Some(stream)) => Wait::Readable(stream.as_raw_fd()),
            (Interest::Write, Some(stream)) => Wait::Writable(stream.as_raw_fd()),
            // A look takes who is there.
            _ => Wait::Readable(self.listener.as_raw_fd()),
        })
    }
}

impl Drop for SocketPeer {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl fmt::Debug for SocketPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketPeer")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}
