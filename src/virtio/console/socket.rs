//! A peer that listens at a Unix socket: one program at a time is at the other end.

use std::{
    fmt, io,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use vm_memory::VolatileSlice;

use super::{Interest, News, Peer};
use crate::{
    sync::lock,
    time::Clock,
    virtio::{Wait, host_io},
};

/// A Unix socket that listens. The first that connects is the other end until it goes; others wait for their turn in the socket's
/// backlog. One that has shut down its sending side has gone; of one that has closed, what it has written last is still read.
///
/// Who cannot be let in, because the host has no descriptors left, say, is tried again after a while by the clock, which has to be that of
/// who [waits](Wait::Until) for the device. That is counted among the device's failures.
///
/// ```
/// use devisor::{
///     time::HostClock,
///     virtio::console::{Peer, SocketPeer},
/// };
/// use std::{os::unix::net::UnixStream, sync::Arc, time::Duration};
///
/// # let path = std::env::temp_dir().join(format!("devisor-doc-{}", std::process::id()));
/// let clock = Arc::new(HostClock::starting_at(Duration::ZERO));
/// let peer = SocketPeer::bind(&path, clock)?;
/// assert!(!peer.is_open());
/// let other = UnixStream::connect(&path)?;
/// assert!(peer.is_open());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SocketPeer {
    listener: UnixListener,
    /// The path that goes with this.
    path: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// How long nobody is let in after the host could not.
const RETRY_TIME: Duration = Duration::from_millis(100);

#[derive(Default)]
struct State {
    stream: Option<Arc<UnixStream>>,
    /// It has gone, and there is something of it to read.
    left: bool,
    /// Somebody has gone, and that was not told yet.
    gone: bool,
    /// Nobody is let in before that.
    retry: Option<Duration>,
    news: Option<News>,
}

impl SocketPeer {
    /// Listens at `path`, which must not be there, and is removed when this is dropped.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn bind(path: impl AsRef<Path>, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let mut peer = Self::new(UnixListener::bind(&path)?, clock)?;
        peer.path = Some(path.as_ref().into());
        Ok(peer)
    }

    /// Listens at a socket that is there already.
    ///
    /// # Errors
    /// It cannot be had not to block.
    pub fn new(listener: UnixListener, clock: Arc<dyn Clock>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path: None,
            clock,
            state: Mutex::default(),
        })
    }

    fn stream(&self) -> Option<Arc<UnixStream>> {
        lock(&self.state).stream.clone()
    }

    /// `stream` has gone, if it is still the one. With `left`, there is something of it to read.
    fn end(&self, stream: &Arc<UnixStream>, left: bool) {
        let mut state = lock(&self.state);
        let present = state.stream.as_ref();
        if !present.is_some_and(|present| Arc::ptr_eq(present, stream)) {
            return;
        }
        if left {
            state.left = true;
        } else {
            (state.stream, state.left, state.gone) = (None, false, true);
        }
    }
}

impl State {
    /// Lets the next one in, if somebody is there.
    fn accept(&mut self, listener: &UnixListener, now: Duration) {
        if self.retry.is_some_and(|retry| now < retry) {
            return;
        }
        self.retry = None;
        let accepted = listener.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        match accepted {
            Ok(stream) => self.stream = Some(Arc::new(stream)),
            Err(error) if GONE_AGAIN.contains(&error.kind()) => {}
            Err(error) => {
                // They are still there, and nothing tells when it is worth while to try again.
                self.retry = Some(now.saturating_add(RETRY_TIME));
                if let Some(news) = &self.news {
                    news.failed(error);
                }
            }
        }
    }
}

/// What `accept` says if nobody is there.
const GONE_AGAIN: [io::ErrorKind; 3] = [
    io::ErrorKind::WouldBlock,
    io::ErrorKind::ConnectionAborted,
    io::ErrorKind::Interrupted,
];

/// Whether there is something to read at once.
fn has_input(stream: &UnixStream) -> bool {
    let mut byte = 0_u8;
    // SAFETY: there is room for a byte.
    let peeked = unsafe {
        libc::recv(
            stream.as_raw_fd(),
            (&raw mut byte).cast(),
            1,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    peeked == 1
}

impl Peer for SocketPeer {
    fn plugged(&self, news: News) {
        lock(&self.state).news = Some(news);
    }

    fn is_open(&self) -> bool {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.gone) {
            return false;
        }
        if state.stream.is_none() {
            state.accept(&self.listener, self.clock.now());
        }
        state.stream.is_some()
    }

    fn listens(&self) -> bool {
        !lock(&self.state).left
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let Some(stream) = self.stream() else { return Ok(0) };
        let read = host_io::read(stream.as_raw_fd(), room);
        match &read {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => self.end(&stream, false),
        }
        read
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let stream = self.stream().ok_or(io::ErrorKind::BrokenPipe)?;
        let sent = host_io::send(stream.as_raw_fd(), data);
        if let Err(error) = &sent
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.end(&stream, has_input(&stream));
        }
        sent
    }

    fn wait(&self, interest: Interest) -> Option<Wait> {
        let state = lock(&self.state);
        match (interest, &state.stream) {
            (Interest::Read, Some(stream)) => Some(Wait::Readable(stream.as_raw_fd())),
            (Interest::Write, Some(stream)) if !state.left => Some(Wait::Writable(stream.as_raw_fd())),
            // When that was read, the next is let in.
            (_, Some(_)) if state.left => None,
            // A look takes who is there.
            _ => Some(match state.retry {
                Some(retry) => Wait::Until(retry),
                None => Wait::Readable(self.listener.as_raw_fd()),
            }),
        }
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
