//! The vectors of a function, of MSI or of MSI-X, and the platform behind them.

#[cfg(unix)]
use std::os::fd::OwnedFd;
use std::{io, sync::Arc};

use super::signal::{Gate, Signal, Signalled, Source};
use crate::{
    interrupt::{MsiMessage, MsiVector, MsiVectors, RequesterId},
    sync::{AtomicU64, Ordering},
};

pub(super) struct Messages {
    requester: RequesterId,
    platform: Arc<dyn MsiVectors>,
    signals: Box<[Signal]>,
    failures: AtomicU64,
}

/// Where the message of a vector is read from: the registers, under their own short lock.
struct Programmed<'a, M> {
    messages: &'a Messages,
    message: M,
}

impl<M: Fn() -> MsiMessage> Source for Programmed<'_, M> {
    fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
        self.messages.platform.vector(self.messages.requester)
    }

    fn message(&self) -> MsiMessage {
        (self.message)()
    }
}

impl Messages {
    pub fn new(requester: RequesterId, platform: Arc<dyn MsiVectors>, count: u16) -> Self {
        Self {
            requester,
            platform,
            signals: (0..count).map(|_| Signal::default()).collect(),
            failures: AtomicU64::new(0),
        }
    }

    #[inline]
    pub fn len(&self) -> u16 {
        self.signals.len() as u16
    }

    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Calls nobody, as [`Self::release`], [`Self::rewritten`] and [`Self::set_pending`]: settle after the unlock.
    pub fn set(&self, vector: usize, gate: Gate) {
        self.signals[vector].set(gate);
    }

    pub fn release(&self) {
        self.signals.iter().for_each(Signal::release);
    }

    pub fn rewritten(&self, vector: usize) {
        self.signals[vector].rewritten();
    }

    pub fn set_pending(&self, vector: usize, pending: bool) {
        self.signals[vector].set_pending(pending);
    }

    /// Whether the capability is enabled: what all vectors have been told.
    #[inline]
    pub fn are_on(&self) -> bool {
        self.signals.first().is_some_and(Signal::is_on)
    }

    pub fn is_pending(&self, vector: usize) -> bool {
        self.signals.get(vector).is_some_and(Signal::is_pending)
    }

    /// The pending bits of the vectors from `first` on, as a byte of a pending bit array.
    pub fn pending_byte(&self, first: usize) -> u8 {
        (0..8).fold(0, |byte, bit| byte | u8::from(self.is_pending(first + bit)) << bit)
    }

    #[inline]
    pub fn trigger(&self, vector: u16, message: impl Fn() -> MsiMessage) -> io::Result<Signalled> {
        let Some(signal) = self.signals.get(usize::from(vector)) else {
            return Err(no_vector());
        };
        let messages = self;
        self.counted(signal.trigger(&Programmed { messages, message }))
    }

    pub fn reserve(&self, vector: u16, message: impl Fn() -> MsiMessage) -> io::Result<()> {
        let signal = self.signals.get(usize::from(vector)).ok_or_else(no_vector)?;
        let messages = self;
        self.counted(signal.reserve(&Programmed { messages, message }))
    }

    #[cfg(unix)]
    pub fn export(&self, vector: u16, message: impl Fn() -> MsiMessage) -> io::Result<OwnedFd> {
        let signal = self.signals.get(usize::from(vector)).ok_or_else(no_vector)?;
        let messages = self;
        signal.export(&Programmed { messages, message })
    }

    /// A refusal is counted; the vector tries again when it is next settled or triggered.
    pub fn settle(&self, vector: usize, message: impl Fn() -> MsiMessage) {
        let messages = self;
        let _ = self.counted(self.signals[vector].settle(&Programmed { messages, message }));
    }

    #[inline]
    fn counted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

#[cold]
fn no_vector() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the function has fewer vectors")
}

/// For a platform without message-signalled interrupts: no vector is ever given. Leave the capabilities out too, so that
/// guests do not try.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMessages;

impl MsiVectors for NoMessages {
    fn vector(&self, _requester: RequesterId) -> io::Result<Box<dyn MsiVector>> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the platform has no message-signalled interrupts",
        ))
    }
}
