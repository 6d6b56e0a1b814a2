//! Message-signalled interrupts: the message, and the two ways in which a platform delivers it.

#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::{
    fmt, io,
    sync::{Arc, PoisonError},
};

use super::Interrupt;
use crate::sync::{AtomicU64, Lock, Ordering};

/// What a device writes to interrupt the guest: `data`, to `address` (PCI Local Bus 3.0, section 6.8).
///
/// *For who sends it*: both fields are what the guest has programmed, whatever they are. *For who delivers it*: they are
/// hostile.
///
/// ```
/// use devisor::interrupt::MsiMessage;
///
/// // INTID 80 at the doorbell of a GICv2m frame.
/// let message = MsiMessage { address: 0x0802_0040, data: 80 };
/// assert_ne!(message, MsiMessage::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Guest physical address that the write goes to. It names a doorbell, not memory.
    pub address: u64,
    /// The 32 bits that are written.
    pub data: u32,
}

/// Who sends a message: bus, device and function of the PCI function, as on the bus (`bus << 8 | device << 3 | function`).
/// An interrupt translation service or a remapper decides by it; a controller that does not look at it takes any.
///
/// ```
/// use devisor::interrupt::RequesterId;
///
/// let (bus, device, function) = (0, 3, 1);
/// assert_eq!(RequesterId(bus << 8 | device << 3 | function), RequesterId(0x19));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequesterId(pub u16);

/// Takes any message at any time: what a software controller, `KVM_SIGNAL_MSI` or `hv_gic_send_msi` offers.
///
/// *For who calls it*: as [`Interrupt::trigger`]; a message to an address that nothing listens to is an `Err`.
/// *For who implements it*: address and data come from the guest and are hostile; refuse with `Err`, never panic.
///
/// ```
/// use devisor::interrupt::{MsiMessage, MsiSink, RequesterId};
/// use std::{io, sync::Mutex};
///
/// #[derive(Default)]
/// struct Doorbells(Mutex<Vec<u32>>);
///
/// impl MsiSink for Doorbells {
///     fn send(&self, _requester: RequesterId, message: MsiMessage) -> io::Result<()> {
///         match message.address {
///             0xfee0_0000 => Ok(self.0.lock().unwrap().push(message.data)),
///             _ => Err(io::Error::other("no doorbell at this address")),
///         }
///     }
/// }
///
/// let sink = Doorbells::default();
/// sink.send(RequesterId(8), MsiMessage { address: 0xfee0_0000, data: 33 })?;
/// assert!(sink.send(RequesterId(8), MsiMessage { address: 0, data: 33 }).is_err());
/// # Ok::<(), io::Error>(())
/// ```
pub trait MsiSink: Send + Sync {
    /// Delivers `message` as if the function `requester` had written it.
    ///
    /// One that nobody takes, because whom it is for is not there or takes none, is gone, as on a bus: that is `Ok`.
    ///
    /// # Errors
    /// The message was not delivered.
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()>;

    /// Delivers `message` as [`send`](Self::send) does, and tells whether anyone has accepted it: for an IOAPIC, whose level is
    /// still up if nobody has.
    ///
    /// *For who implements it*: a sink that can tell does, and one in front of others passes this on as well as `send`. Without,
    /// what is delivered counts as accepted.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    fn offer(&self, requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        self.send(requester, message)?;
        Ok(Acceptance::Accepted)
    }
}

/// Whether anyone has taken a message: see [`MsiSink::offer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// At least one has.
    Accepted,
    /// Nobody is there, or nobody takes it now.
    Dropped,
}

impl From<bool> for Acceptance {
    fn from(accepted: bool) -> Self {
        if accepted { Self::Accepted } else { Self::Dropped }
    }
}

/// Hands out vectors that are programmed with a message first and triggered later: what irqfd and GSI routes offer.
///
/// *For who calls it*: ask for a vector when the guest first needs one, and drop it when it no longer does. *For who
/// implements it*: a vector is worth something (a GSI, a file descriptor), so refuse with `Err` when there is none left. A
/// platform that has an [`MsiSink`] gets this from [`SinkVectors`].
///
/// ```
/// use devisor::interrupt::{MsiMessage, MsiVectors, RequesterId, SinkVectors};
/// # use devisor::interrupt::MsiSink;
/// # struct Nowhere;
/// # impl MsiSink for Nowhere {
/// #     fn send(&self, _: RequesterId, _: MsiMessage) -> std::io::Result<()> { Ok(()) }
/// # }
/// # let platform = SinkVectors::new(std::sync::Arc::new(Nowhere));
///
/// fn connect(platform: &dyn MsiVectors, message: MsiMessage) -> std::io::Result<()> {
///     let vector = platform.vector(RequesterId(0x18))?;
///     vector.program(Some(message))?;
///     vector.trigger()
/// }
/// connect(&platform, MsiMessage { address: 0x0802_0040, data: 80 })?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait MsiVectors: Send + Sync {
    /// A vector for the function `requester`, with no message yet. Dropping it gives its resources back.
    ///
    /// # Errors
    /// The platform has no vector left, or refuses the requester.
    fn vector(&self, requester: RequesterId) -> io::Result<Box<dyn MsiVector>>;
}

/// One programmable vector of [`MsiVectors`]: an [`Interrupt`] that sends the message it was last given.
///
/// *For who calls it*: triggering a vector without a message is an `Err` and delivers nothing. *For who implements it*: a
/// `trigger` that begins after `program` has returned sends the new message.
///
/// Some platforms signal a vector through a file descriptor, which others can hold and use past its owner: a vhost
/// device, another process. A vector that shows its `descriptor` keeps what is signalled there while it has no message: it
/// [says so](Self::is_signalled), gives it [to be sent by other means](Self::take_signal), and otherwise sends it, once, with
/// the next message that it is given. All others implement `program` alone.
///
/// ```
/// use devisor::interrupt::{Interrupt, MsiMessage, MsiVector};
/// use std::{io, sync::Mutex};
///
/// /// A vector of a platform that has one route, and pulses it.
/// #[derive(Default)]
/// struct Route(Mutex<Option<MsiMessage>>);
///
/// impl Interrupt for Route {
///     fn trigger(&self) -> io::Result<()> {
///         match *self.0.lock().unwrap() {
///             Some(_message) => Ok(()), // platform_signal(message)
///             None => Err(io::ErrorKind::NotConnected.into()),
///         }
///     }
/// }
///
/// impl MsiVector for Route {
///     fn program(&self, message: Option<MsiMessage>) -> io::Result<()> {
///         Ok(*self.0.lock().unwrap() = message)
///     }
/// }
///
/// let route = Route::default();
/// assert!(route.trigger().is_err());
/// route.program(Some(MsiMessage { address: 0xfee0_0000, data: 33 }))?;
/// route.trigger()?;
/// # Ok::<(), io::Error>(())
/// ```
pub trait MsiVector: Interrupt {
    /// Sets the message that the next [`trigger`](Interrupt::trigger) sends, or takes it away.
    ///
    /// # Errors
    /// The platform cannot deliver such a message; the vector has none now.
    fn program(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// The descriptor that signals the vector when 8 bytes with the number 1 are written to it, always the same, if there is
    /// one. It is dead once the vector is dropped.
    #[cfg(unix)]
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether a signal waits in the descriptor for a message.
    fn is_signalled(&self) -> bool {
        false
    }

    /// Takes the signals that wait in the descriptor. Whether there were any: they are one interrupt, which the caller owes
    /// the guest now.
    fn take_signal(&self) -> bool {
        false
    }
}

/// Makes [`MsiVectors`] of an [`MsiSink`]: each vector remembers its message and sends it when triggered.
///
/// ```
/// use devisor::interrupt::{Interrupt, MsiMessage, MsiSink, MsiVectors, RequesterId, SinkVectors};
/// use std::{io, sync::{Arc, Mutex}};
///
/// struct Log(Mutex<Vec<(RequesterId, MsiMessage)>>);
/// impl MsiSink for Log {
///     fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
///         Ok(self.0.lock().unwrap().push((requester, message)))
///     }
/// }
///
/// let log = Arc::new(Log(Mutex::default()));
/// let vector = SinkVectors::new(Arc::clone(&log)).vector(RequesterId(0x18))?;
/// assert!(vector.trigger().is_err(), "it has no message yet");
///
/// let message = MsiMessage { address: 0x0802_0040, data: 80 };
/// vector.program(Some(message))?;
/// vector.trigger()?;
/// assert_eq!(*log.0.lock().unwrap(), [(RequesterId(0x18), message)]);
/// # Ok::<(), io::Error>(())
/// ```
pub struct SinkVectors<S: ?Sized> {
    sink: Arc<S>,
}

impl<S: MsiSink + ?Sized> SinkVectors<S> {
    /// Vectors that all send to `sink`.
    pub fn new(sink: Arc<S>) -> Self {
        Self { sink }
    }
}

impl<S: MsiSink + ?Sized + 'static> MsiVectors for SinkVectors<S> {
    fn vector(&self, requester: RequesterId) -> io::Result<Box<dyn MsiVector>> {
        Ok(Box::new(SinkVector {
            sink: Arc::clone(&self.sink),
            requester,
            message: Message::default(),
        }))
    }
}

struct SinkVector<S: ?Sized> {
    sink: Arc<S>,
    requester: RequesterId,
    message: Message,
}

/// A message that was programmed, if one was. It is read far more often than it is written, so who reads it writes nothing: it is read
/// again if it was another one meanwhile.
#[derive(Default)]
struct Message {
    /// Odd while it is written.
    version: AtomicU64,
    address: AtomicU64,
    /// And above the data, that there is one.
    data: AtomicU64,
    /// Locked by who writes.
    writing: Lock<()>,
}

/// There is a message.
const PRESENT: u64 = 1 << 32;

impl Message {
    #[inline]
    fn get(&self) -> Option<MsiMessage> {
        let before = self.version.load(Ordering::Acquire);
        let found = self.load();
        if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
            return found;
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.load()
    }

    /// Both words, before anything that is loaded later.
    #[inline]
    fn load(&self) -> Option<MsiMessage> {
        let (address, data) = (self.address.load(Ordering::Acquire), self.data.load(Ordering::Acquire));
        let message = MsiMessage {
            address,
            data: data as u32,
        };
        (data & PRESENT != 0).then_some(message)
    }

    fn set(&self, message: Option<MsiMessage>) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (address, data) = match message {
            Some(MsiMessage { address, data }) => (address, u64::from(data) | PRESENT),
            None => (0, 0),
        };
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // Who sees one of these sees that it is being written.
        self.address.store(address, Ordering::Release);
        self.data.store(data, Ordering::Release);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }
}

impl<S: MsiSink + ?Sized> Interrupt for SinkVector<S> {
    fn trigger(&self) -> io::Result<()> {
        match self.message.get() {
            Some(message) => self.sink.send(self.requester, message),
            None => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the vector has no message: program it first",
            )),
        }
    }
}

impl<S: MsiSink + ?Sized> MsiVector for SinkVector<S> {
    fn program(&self, message: Option<MsiMessage>) -> io::Result<()> {
        self.message.set(message);
        Ok(())
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T: MsiSink + ?Sized> MsiSink for $pointer {
            fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
                (**self).send(requester, message)
            }

            fn offer(&self, requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
                (**self).offer(requester, message)
            }
        }

        impl<T: MsiVectors + ?Sized> MsiVectors for $pointer {
            fn vector(&self, requester: RequesterId) -> io::Result<Box<dyn MsiVector>> {
                (**self).vector(requester)
            }
        }

        impl<T: MsiVector + ?Sized> MsiVector for $pointer {
            fn program(&self, message: Option<MsiMessage>) -> io::Result<()> {
                (**self).program(message)
            }

            #[cfg(unix)]
            fn descriptor(&self) -> Option<BorrowedFd<'_>> {
                (**self).descriptor()
            }

            fn is_signalled(&self) -> bool {
                (**self).is_signalled()
            }

            fn take_signal(&self) -> bool {
                (**self).take_signal()
            }
        }
    )*};
}

forward!(&T, Box<T>, Arc<T>);

impl<S: ?Sized> fmt::Debug for SinkVectors<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkVectors").finish_non_exhaustive()
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn loom_a_message_is_read_whole_while_it_is_rewritten() {
        loom::model(|| {
            let of = |n: u32| MsiMessage {
                address: n.into(),
                data: n,
            };
            let message = Arc::new(Message::default());
            message.set(Some(of(1)));
            let guest = {
                let message = Arc::clone(&message);
                thread::spawn(move || {
                    message.set(Some(of(2)));
                    message.set(None);
                })
            };
            let seen = [message.get(), message.get()];
            guest.join().unwrap();
            for seen in seen {
                assert!(
                    seen.is_none_or(|seen| [1, 2].map(of).contains(&seen)),
                    "{seen:?} was never set"
                );
            }
            // What was seen once stays seen.
            let at = |seen: Option<MsiMessage>| seen.map_or(3, |seen| seen.data);
            assert!(at(seen[0]) <= at(seen[1]));
            assert_eq!(message.get(), None);
        });
    }
}
