//! What a recorder hands out: each implements a trait of [`crate::interrupt`], logs the call and passes it on.

#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::{
    fmt, io,
    sync::{Arc, Mutex},
};

use super::{Action, Line, Recorder, log::Kind};
use crate::{
    interrupt::{
        Acceptance, Interrupt, LevelInterrupt, MsiMessage, MsiSink, MsiVector, MsiVectors, NoInterrupt, RequesterId,
        SinkVectors,
    },
    sync::lock,
};

/// A recorded edge line: see [`Recorder::edge`] and [`Recorder::wrap_edge`].
#[derive(Clone)]
pub struct RecordedEdge<I = NoInterrupt> {
    line: Line,
    inner: I,
}

/// A recorded level line: see [`Recorder::level`] and [`Recorder::wrap_level`].
///
/// Repeats are logged and passed on as they come: that a device does not repeat itself is for the test to assert.
#[derive(Clone)]
pub struct RecordedLevel<L = NoInterrupt> {
    line: Line,
    inner: L,
}

/// A recorded sink for messages: see [`Recorder::sink`] and [`Recorder::wrap_sink`].
#[derive(Clone)]
pub struct RecordedSink<S = AnyDoorbell> {
    line: Line,
    inner: S,
}

/// Recorded vectors: see [`Recorder::vectors`] and [`Recorder::wrap_vectors`].
///
/// A vector's event tells the message that it was last given. A trigger that races with
/// [`program`](MsiVector::program) may be logged with the message before or after.
pub struct RecordedVectors<V = SinkVectors<AnyDoorbell>> {
    recorder: Recorder,
    name: String,
    inner: V,
    lines: Arc<Mutex<Vec<Slot>>>,
}

/// A sink that takes every message, whatever its address, and drops it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnyDoorbell;

impl MsiSink for AnyDoorbell {
    fn send(&self, _requester: RequesterId, _message: MsiMessage) -> io::Result<()> {
        Ok(())
    }
}

macro_rules! accessors {
    ($($of:ident),*) => {$(
        impl<T> $of<T> {
            pub(super) fn new(line: Line, inner: T) -> Self {
                Self { line, inner }
            }

            /// What the recorder knows of it.
            pub fn line(&self) -> &Line {
                &self.line
            }

            /// What it passes its calls on to.
            pub fn inner(&self) -> &T {
                &self.inner
            }
        }

        impl<T> fmt::Debug for $of<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($of)).field("line", &self.line).finish_non_exhaustive()
            }
        }
    )*};
}

accessors!(RecordedEdge, RecordedLevel, RecordedSink);

impl<I: Interrupt> Interrupt for RecordedEdge<I> {
    fn trigger(&self) -> io::Result<()> {
        self.line.record(Action::Trigger, || self.inner.trigger())
    }
}

impl<L: LevelInterrupt> Interrupt for RecordedLevel<L> {
    fn trigger(&self) -> io::Result<()> {
        self.line.record(Action::Raise, || self.inner.trigger())
    }
}

impl<L: LevelInterrupt> LevelInterrupt for RecordedLevel<L> {
    fn clear(&self) -> io::Result<()> {
        self.line.record(Action::Clear, || self.inner.clear())
    }
}

impl<S: MsiSink> MsiSink for RecordedSink<S> {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        let action = Action::Send { requester, message };
        self.line.record(action, || self.inner.send(requester, message))
    }

    /// Recorded as what is sent is: whether anyone has accepted it, the record does not say.
    fn offer(&self, requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        let action = Action::Send { requester, message };
        self.line.record(action, || self.inner.offer(requester, message))
    }
}

/// A line of [`RecordedVectors`] that vectors use one after the other.
struct Slot {
    line: Line,
    free: bool,
}

impl<V: MsiVectors> RecordedVectors<V> {
    pub(super) fn new(recorder: Recorder, name: &str, inner: V) -> Self {
        Self {
            recorder,
            name: name.to_owned(),
            inner,
            lines: Arc::default(),
        }
    }

    /// What it gets its vectors from.
    pub fn inner(&self) -> &V {
        &self.inner
    }
}

impl<V: MsiVectors> MsiVectors for RecordedVectors<V> {
    fn vector(&self, requester: RequesterId) -> io::Result<Box<dyn MsiVector>> {
        let inner = self.inner.vector(requester)?;
        let mut lines = lock(&self.lines);
        let slot = lines.iter().position(|slot| slot.free).unwrap_or(lines.len());
        if slot == lines.len() {
            let line = self.recorder.add(&format!("{}.{slot}", self.name), Kind::Message);
            lines.push(Slot { line, free: true });
        }
        lines[slot].free = false;
        Ok(Box::new(RecordedVector {
            line: lines[slot].line.clone(),
            requester,
            message: Mutex::new(None),
            inner,
            lines: Arc::clone(&self.lines),
            slot,
        }))
    }
}

struct RecordedVector {
    line: Line,
    requester: RequesterId,
    message: Mutex<Option<MsiMessage>>,
    inner: Box<dyn MsiVector>,
    lines: Arc<Mutex<Vec<Slot>>>,
    slot: usize,
}

impl Interrupt for RecordedVector {
    fn trigger(&self) -> io::Result<()> {
        let requester = self.requester;
        let message = *lock(&self.message);
        let action = message.map_or(Action::Trigger, |message| Action::Send { requester, message });
        self.line.record(action, || self.inner.trigger())
    }
}

impl MsiVector for RecordedVector {
    fn program(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let result = self
            .line
            .record(Action::Program(message), || self.inner.program(message));
        *lock(&self.message) = message.filter(|_| result.is_ok());
        if result.is_err() {
            // By the contract of `program` it has no message now. The inner vector does not know if the failure is ours.
            let _ = self.inner.program(None);
        }
        result
    }

    /// What is signalled through it is not logged: it does not pass here.
    #[cfg(unix)]
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }

    fn is_signalled(&self) -> bool {
        self.inner.is_signalled()
    }

    fn take_signal(&self) -> bool {
        self.inner.take_signal()
    }
}

impl Drop for RecordedVector {
    fn drop(&mut self) {
        lock(&self.lines)[self.slot].free = true;
    }
}

impl<V> fmt::Debug for RecordedVectors<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedVectors")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
