//! What is at the other end of a port.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, Mutex},
};

use vm_memory::VolatileSlice;

use super::Size;
use crate::{
    sync::lock,
    virtio::{
        FailureLog, Handle, QueueIndex, Wait,
        bytes::{put_back, take_front},
    },
};

/// What a port waits for at its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Somebody at the other end.
    Open,
}

/// The other end of a port: a terminal, a socket, a program of the embedder's.
///
/// *For who implements it*: no call waits. What is not possible now is [`io::ErrorKind::WouldBlock`]; [`wait`](Self::wait) says what
/// ends that, or [`News::tell`] does when it has. Transfers may be short. The guest can change the memory of a buffer at any time.
/// Reading and writing come from two threads at the same time.
///
/// *For who calls it* (a device): any other error means that the other end has gone, and is counted.
///
/// ```
/// use devisor::virtio::console::{Interest, Peer};
/// use devisor::virtio::Wait;
/// use std::io;
/// use vm_memory::VolatileSlice;
///
/// /// Takes everything, and says nothing.
/// struct Null;
///
/// impl Peer for Null {
///     fn read(&self, _: &[VolatileSlice<'_>]) -> io::Result<usize> {
///         Err(io::ErrorKind::WouldBlock.into())
///     }
///
///     fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
///         Ok(data.iter().map(VolatileSlice::len).sum())
///     }
///
///     fn wait(&self, _: Interest) -> Option<Wait> {
///         None
///     }
/// }
/// ```
pub trait Peer: Send + Sync {
    /// It was plugged into a port, which this tells of news.
    fn plugged(&self, news: News) {
        let _ = news;
    }

    /// Whether somebody is at the other end. A peer that comes and goes looks for who has come here, and says `false` at least once
    /// between two.
    fn is_open(&self) -> bool {
        true
    }

    /// Whether who is there takes output. One who has gone, and has left input that was not read yet, does not: the peer is open until that
    /// was read, and output is as without a listener.
    fn listens(&self) -> bool {
        true
    }

    /// Fills `room`, in order, with what there is for the guest. Zero is the end of it: nothing comes any more, until
    /// [`is_open`](Self::is_open) has said `false` and `true` again.
    ///
    /// # Errors
    /// Nothing was read.
    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Takes output of the guest. Returns how much it took, at least a byte of what is not empty.
    ///
    /// # Errors
    /// Nothing was taken.
    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// What to wait for, if there is a descriptor for it.
    fn wait(&self, interest: Interest) -> Option<Wait>;

    /// The size of the terminal, if it is one. Asked when somebody has come, and when the embedder says that it has changed.
    fn size(&self) -> Option<Size> {
        None
    }

    /// The guest has opened its end, or closed it.
    fn guest_opened(&self, open: bool) {
        let _ = open;
    }
}

/// How a [`Peer`] tells its port that there is something to read, room to write, or somebody who came or went. Clones are the same.
#[derive(Clone, Debug)]
pub struct News {
    handle: Option<Handle>,
    receive: QueueIndex,
    transmit: QueueIndex,
    failures: Arc<FailureLog>,
}

impl News {
    pub(super) fn new(handle: Option<Handle>, receive: u16, failures: Arc<FailureLog>) -> Self {
        Self {
            handle,
            receive: QueueIndex(receive),
            transmit: QueueIndex(receive + 1),
            failures,
        }
    }

    /// Has both queues of the port looked at again. Call it with nothing locked that the peer's other methods need.
    pub fn tell(&self) {
        if let Some(handle) = &self.handle {
            handle.look(self.receive);
            handle.look(self.transmit);
        }
    }

    /// Something has failed that no call of the peer's could say: it is among the [failures](super::Console::host_failures) of the device.
    pub fn failed(&self, error: io::Error) {
        self.failures.record(error);
    }
}

/// A peer in memory: for tests, and for programs that are the other end themselves. Clones are the same.
///
/// Open at first. Each direction holds so many bytes at most.
///
/// ```
/// use devisor::virtio::console::MemoryPeer;
///
/// let peer = MemoryPeer::new(4096);
/// assert_eq!(peer.type_in(b"hello"), 5);
/// assert!(peer.output().is_empty());
/// ```
#[derive(Clone)]
pub struct MemoryPeer(Arc<Shared>);

struct Shared {
    bound: usize,
    state: Mutex<State>,
    news: Mutex<Option<News>>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Closed, and not said so yet.
    was_closed: bool,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    size: Option<Size>,
    guest_open: bool,
}

impl MemoryPeer {
    /// A peer with room for `bound` bytes in each direction.
    pub fn new(bound: usize) -> Self {
        Self(Arc::new(Shared {
            bound,
            state: Mutex::default(),
            news: Mutex::default(),
        }))
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut lock(&self.0.state));
        let news = lock(&self.0.news).clone();
        if let Some(news) = news {
            news.tell();
        }
        result
    }

    /// Input for the guest. Returns for how much of it there is room.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        self.change(|state| {
            let len = bytes.len().min(self.0.bound.saturating_sub(state.input.len()));
            state.input.extend(&bytes[..len]);
            len
        })
    }

    /// What the guest has put out since this was last called.
    pub fn output(&self) -> Vec<u8> {
        self.change(|state| state.output.drain(..).collect())
    }

    /// Somebody comes, or goes; what was typed in and not read is gone with them.
    pub fn open(&self, open: bool) {
        self.change(|state| {
            if !open {
                state.input.clear();
                state.was_closed |= !state.closed;
            }
            state.closed = !open;
        });
    }

    /// The size that the terminal says it has from now on.
    pub fn resize(&self, size: Size) {
        self.change(|state| state.size = Some(size));
    }

    /// Whether the guest has its end open.
    pub fn is_guest_open(&self) -> bool {
        lock(&self.0.state).guest_open
    }
}

impl Peer for MemoryPeer {
    fn plugged(&self, news: News) {
        *lock(&self.0.news) = Some(news);
    }

    fn is_open(&self) -> bool {
        let mut state = lock(&self.0.state);
        !state.closed && !std::mem::take(&mut state.was_closed)
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut state = lock(&self.0.state);
        if state.closed {
            return Ok(0);
        }
        take_front(&mut state.input, room)
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut state = lock(&self.0.state);
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        put_back(&mut state.output, data, self.0.bound)
    }

    fn wait(&self, _: Interest) -> Option<Wait> {
        None
    }

    fn size(&self) -> Option<Size> {
        lock(&self.0.state).size
    }

    fn guest_opened(&self, open: bool) {
        lock(&self.0.state).guest_open = open;
    }
}

impl fmt::Debug for MemoryPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryPeer").field(&self.0.state).finish()
    }
}
