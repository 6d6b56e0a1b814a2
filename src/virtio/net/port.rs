//! What stands behind a queue pair.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use vm_memory::VolatileSlice;

use super::{Header, Incoming, Offloads, Outgoing};
use crate::{
    sync::lock,
    virtio::{Handle, QueueIndex, Wait},
};

/// How far something got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// It is done.
    Done(T),
    /// Not now. To be tried again when this is there; or, if it is `None`, when the [`Waker`] is called.
    Later(Option<Wait>),
}

/// A frame was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// What is left to do for it.
    pub header: Header,
    /// Its length in bytes.
    pub len: usize,
}

/// What a port leaves to others, and lets others leave to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortOffloads {
    /// What the guest may leave to it, in frames that are sent. Partial checksums that it does not take are completed by the device.
    pub send: Offloads,
    /// What it can leave to the guest, in frames that are received. It does so as far as it was [told](Port::set_offloads).
    pub receive: Offloads,
}

/// A device, as its ports know it: of several that have had the same port, the last that was [attached](Port::attach) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder(u64);

impl Holder {
    /// Another one.
    pub(super) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Relaxed))
    }
}

/// The network, as one queue pair of a device sees it: frames with their headers, straight from and to guest memory.
///
/// *For who implements it*: everything is `&self`, and [`send`](Self::send) is called on one thread while
/// [`receive`](Self::receive) is on another; several queue pairs may send by the same port. No call may block. The guest can change the
/// memory of a slice at any time. A frame begins with its Ethernet header, and has no frame check sequence.
///
/// *For who calls it* (a device): an `Err` is a failure of the host, and is counted; the frame is lost, as on a wire. After an `Err`
/// of `receive` nothing is received until somebody looks again: the driver kicks, or the [`Waker`] is called; but for one that says that
/// what was sent before has found nobody (connection refused, host or network unreachable).
///
/// ```
/// use devisor::virtio::net::{Header, Net, NetOptions, Port, Progress, Received};
/// use std::io;
/// use vm_memory::VolatileSlice;
///
/// /// A cable that leads nowhere.
/// struct Nowhere;
///
/// impl Port for Nowhere {
///     fn send(&self, _: &Header, _: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
///         Ok(Progress::Done(()))
///     }
///
///     fn receive(&self, _: &[VolatileSlice<'_>], _: &mut [u8]) -> io::Result<Progress<Received>> {
///         Ok(Progress::Later(None))
///     }
/// }
///
/// let nic = Net::new([Nowhere], NetOptions::default())?;
/// # let _ = nic;
/// # Ok::<(), devisor::virtio::net::NetError>(())
/// ```
pub trait Port: Send + Sync {
    /// What it leaves to others and others to it. Asked once.
    fn offloads(&self) -> PortOffloads {
        PortOffloads::default()
    }

    /// The device is behind a transport now: whom to call when a frame has come, or there is room again. A port that outlives its device
    /// may be given to another one: the last that was attached [has](Waker::holder) the port, and is called.
    fn attach(&self, waker: Waker) {
        let _ = waker;
    }

    /// Whether what is behind several ports gives each the frames of the flows that were sent by it. If not, the device does so.
    fn steers(&self) -> bool {
        false
    }

    /// Whether its queue pair is in use: frames for one that is not go to another, if that can be. What a device says that does not
    /// have the port any more, because another one was attached, is nothing to it.
    ///
    /// # Errors
    /// It is as it was.
    fn set_active(&self, by: Holder, active: bool) -> io::Result<()> {
        let _ = (by, active);
        Ok(())
    }

    /// What the guest takes from here on in frames that are received: never more than [`offloads`](Self::offloads) says. Who says it
    /// counts as for [`set_active`](Self::set_active).
    ///
    /// # Errors
    /// It is as it was.
    fn set_offloads(&self, by: Holder, offloads: Offloads) -> io::Result<()> {
        let _ = (by, offloads);
        Ok(())
    }

    /// Sends a frame. The header has been checked against it: it asks for nothing but what [`offloads`](Self::offloads) says, the
    /// checksum is within the frame, and `num_buffers` is zero.
    ///
    /// # Errors
    /// The host failed. The frame is lost.
    fn send(&self, header: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>>;

    /// Goes on with a frame that was sent in part. Called before other frames are sent, and when what it waits for is there.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    fn flush(&self) -> io::Result<Progress<()>> {
        Ok(Progress::Done(()))
    }

    /// Receives a frame into `room`, in order, and what has no place there into `overflow`, which has room for a frame of
    /// [`MAX_FRAME`](super::MAX_FRAME) bytes.
    ///
    /// # Errors
    /// The host failed.
    fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>>;

    /// Sends what a queue has: one frame after the other, as long as there are any and each is [done](Progress::Done). There is nothing
    /// to be gained by another one than this, but for a port in front of another that leaves frames as they are: it hands this on.
    fn send_all(&self, frames: &mut Outgoing<'_, '_>) {
        frames.each(&mut |header, frame| self.send(header, frame));
    }

    /// Receives what there is for a queue, as long as it takes any. As [`send_all`](Self::send_all).
    fn receive_all(&self, frames: &mut Incoming<'_, '_>) {
        frames.each(&mut |room, overflow| self.receive(room, overflow));
    }
}

/// A port's way to the queues of its device: for one whose frames come from this process. None of its calls waits.
#[derive(Clone)]
pub struct Waker {
    pub(super) handle: Handle,
    pub(super) holder: Holder,
    pub(super) receive: QueueIndex,
    pub(super) transmit: QueueIndex,
    /// Further ones that send by the port are at this distance from each other, up to the last of the device.
    pub(super) distance: u16,
    pub(super) last: QueueIndex,
}

impl Waker {
    /// Which device it leads to.
    pub fn holder(&self) -> Holder {
        self.holder
    }

    /// A frame has come, where there was none.
    pub fn receive(&self) {
        self.handle.look(self.receive);
    }

    /// There is room to send, where there was none.
    pub fn send(&self) {
        for queue in (self.transmit.0..=self.last.0).step_by(self.distance.into()) {
            self.handle.look(QueueIndex(queue));
        }
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker")
            .field("receive", &self.receive)
            .field("transmit", &self.transmit)
            .finish_non_exhaustive()
    }
}

/// Whom a port calls, and who has it.
#[derive(Default)]
pub(super) struct Attached(Mutex<Option<Waker>>);

impl Attached {
    pub fn set(&self, waker: Waker) {
        *lock(&self.0) = Some(waker);
    }

    /// Does what `by` says, unless another device has the port. That stays so while it is done.
    pub fn if_held<R: Default>(&self, by: Holder, act: impl FnOnce() -> R) -> R {
        let waker = lock(&self.0);
        match &*waker {
            Some(waker) if waker.holder != by => R::default(),
            _ => act(),
        }
    }

    /// As [`Waker::receive`]; so the next. With nothing locked.
    pub fn receive(&self) {
        if let Some(waker) = self.get() {
            waker.receive();
        }
    }

    pub fn send(&self) {
        if let Some(waker) = self.get() {
            waker.send();
        }
    }

    fn get(&self) -> Option<Waker> {
        lock(&self.0).clone()
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<P: Port + ?Sized> Port for $pointer {
            fn offloads(&self) -> PortOffloads {
                (**self).offloads()
            }

            fn attach(&self, waker: Waker) {
                (**self).attach(waker)
            }

            fn steers(&self) -> bool {
                (**self).steers()
            }

            fn set_active(&self, by: Holder, active: bool) -> io::Result<()> {
                (**self).set_active(by, active)
            }

            fn set_offloads(&self, by: Holder, offloads: Offloads) -> io::Result<()> {
                (**self).set_offloads(by, offloads)
            }

            fn send(&self, header: &Header, frame: &[VolatileSlice<'_>]) -> io::Result<Progress<()>> {
                (**self).send(header, frame)
            }

            fn flush(&self) -> io::Result<Progress<()>> {
                (**self).flush()
            }

            fn receive(&self, room: &[VolatileSlice<'_>], overflow: &mut [u8]) -> io::Result<Progress<Received>> {
                (**self).receive(room, overflow)
            }

            fn send_all(&self, frames: &mut Outgoing<'_, '_>) {
                (**self).send_all(frames)
            }

            fn receive_all(&self, frames: &mut Incoming<'_, '_>) {
                (**self).receive_all(frames)
            }
        }
    )*};
}

forward!(Box<P>, Arc<P>);

/// Bytes of all slices.
pub(super) fn length(frame: &[VolatileSlice<'_>]) -> usize {
    frame.iter().map(VolatileSlice::len).sum()
}

/// Copies from the front of `frame` as much as there is and `data` has room for. How much that was.
pub(super) fn copy_from(frame: &[VolatileSlice<'_>], data: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in frame {
        if done == data.len() {
            break;
        }
        done += slice.copy_to(&mut data[done..]);
    }
    done
}

/// Copies `data` into `room`, and the rest of it into `overflow`. What fits into neither is cut off.
pub(super) fn copy_to(data: &[u8], room: &[VolatileSlice<'_>], overflow: &mut [u8]) {
    let mut rest = data;
    for slice in room {
        if rest.is_empty() {
            return;
        }
        let (here, after) = rest.split_at(slice.len().min(rest.len()));
        slice.copy_from(here);
        rest = after;
    }
    let len = rest.len().min(overflow.len());
    overflow[..len].copy_from_slice(&rest[..len]);
}
