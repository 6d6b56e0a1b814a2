//! The host side of a socket device.

use std::{io, sync::Arc, time::Duration};

use vm_memory::VolatileSlice;

use super::registers::{RX, TYPE_SEQPACKET, TYPE_STREAM};
use crate::virtio::{FailureLog, Handle, QueueIndex, Wait};

/// The type of a socket (virtio 1.2, section 5.10.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketKind {
    /// Bytes in order.
    Stream,
    /// Messages in order.
    Seqpacket,
}

impl SocketKind {
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Stream => TYPE_STREAM,
            Self::Seqpacket => TYPE_SEQPACKET,
        }
    }
}

/// What ends with a piece of a seqpacket connection (section 5.10.6.6.1). Of a stream, nothing does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Boundary {
    /// There is more of the message.
    #[default]
    None,
    /// The message: VIRTIO_VSOCK_SEQ_EOM.
    Message,
    /// The message, and a record: VIRTIO_VSOCK_SEQ_EOR, which is MSG_EOR to programs.
    Record,
}

/// What was read for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, and what ends with them. An empty message has none.
    Data(usize, Boundary),
    /// The other end sends nothing more.
    End,
}

/// Names a connection to the [`Host`] that keeps its other end. None is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What has become possible at a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// To read, or to hear that there is no more.
    pub readable: bool,
    /// To write, or to hear that nobody takes it.
    pub writable: bool,
    /// The other end sends nothing more than what is there now.
    pub ended: bool,
}

/// A direction of a connection, from where the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Guest to host.
    Send,
    /// Host to guest.
    Receive,
}

/// A connection that somebody on the host side asks for.
pub struct Incoming {
    /// The guest's port.
    pub port: u32,
    /// The type of socket.
    pub kind: SocketKind,
    /// The other end.
    pub stream: Box<dyn Stream>,
}

/// Where the guest's connections lead: whatever the host has for addresses.
///
/// *For who implements it*: no call waits. Calls come from several threads.
pub trait Host: Send + Sync {
    /// It is behind a device, which this wakes.
    fn attach(&self, waker: Waker) {
        let _ = waker;
    }

    /// The guest asks for a connection from its `guest_port` to `port`. Both can be anything.
    ///
    /// # Errors
    /// There is nobody, or no room. The guest is refused.
    fn connect(&self, port: u32, guest_port: u32, kind: SocketKind, token: Token) -> io::Result<Box<dyn Stream>>;

    /// The next connection that somebody asks for, which is `token` from here on.
    fn accept(&self, token: Token) -> Option<Incoming>;

    /// Tells for which connections something has become possible since they said [`io::ErrorKind::WouldBlock`]; too much is no harm. It
    /// is `now` on the device's clock, for those who have to say within a time whom they ask for.
    fn poll(&self, now: Duration, tell: &mut dyn FnMut(Token, Ready));

    /// Whether a stream that fills less than the room it was given has nothing more, and [`poll`](Self::poll) tells of what comes, and
    /// of the end if it is near.
    fn tells_of_more(&self) -> bool {
        false
    }

    /// What to wait for before it is asked again. `full` says that no connection would be accepted.
    fn waits(&self, full: bool, wait: &mut dyn FnMut(Wait));
}

/// The other end of a connection.
///
/// *For who implements it*: no call waits. What is not possible now is [`io::ErrorKind::WouldBlock`]; [`Host::poll`] tells when it is.
/// Any other error means that the other end has gone, and is counted. The guest can change the memory of a buffer at any time. It is
/// closed by being dropped.
pub trait Stream: Send + Sync {
    /// The guest has answered the connection that was asked for. `port` is the host's end of it.
    ///
    /// # Errors
    /// Who asked has gone.
    fn established(&self, port: u32) -> io::Result<()> {
        let _ = port;
        Ok(())
    }

    /// Fills `room`, in order, with what there is for the guest, of one message at most.
    ///
    /// # Errors
    /// Nothing was read.
    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<Received>;

    /// Takes data of the guest, of one message at most. Returns how much it took: all of it, and `boundary` with it, or less, and what
    /// is left comes again.
    ///
    /// # Errors
    /// Nothing was taken.
    fn write(&self, data: &[VolatileSlice<'_>], boundary: Boundary) -> io::Result<usize>;

    /// The guest does nothing more in this direction.
    fn shutdown(&self, direction: Direction);

    /// Whether the other end is closed for good, both ways. Asked when it sends nothing more.
    fn is_gone(&self) -> bool;
}

/// Has a device ask its [`Host`] again, and count what that fails at. Clones are the same.
#[derive(Clone, Debug)]
pub struct Waker {
    handle: Handle,
    failures: Arc<FailureLog>,
}

impl Waker {
    pub(super) fn new(handle: Handle, failures: Arc<FailureLog>) -> Self {
        Self { handle, failures }
    }

    /// There is something for the guest. Call it with nothing locked that the host's other methods need.
    pub fn wake(&self) {
        self.handle.look(QueueIndex(RX));
    }

    /// Something has failed that no call of the host's could say: it is among the [failures](super::Vsock::host_failures) of the device.
    pub fn failed(&self, error: io::Error) {
        self.failures.record(error);
    }
}
