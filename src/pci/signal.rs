//! One message-signalled vector: its pending bit, its gate, and the backend's vector behind it.
//!
//! MSI and MSI-X are the same from here on. Whoever decodes the registers opens and shuts the gate under its lock, which calls
//! nobody, and settles after the unlock; devices trigger from any thread. One word holds everything that these have to
//! agree on. One thread at a time, the one that set `BUSY`, talks to the backend, with no lock held that a call back
//! could want, and goes on until the backend knows what the word says. Others leave a mark and return at once.
//!
//! A vector's descriptor may be held by others, who signal past this word. The backend lets them through while the vector
//! has a message, and that is while the gate is open. What they signal meanwhile waits in the descriptor: it is
//! looked at wherever the pending bit is, and becomes the pending bit when the gate opens.

#[cfg(unix)]
use std::os::fd::OwnedFd;
use std::{
    io, mem,
    sync::{Arc, Mutex},
};

use crate::{
    interrupt::{MsiMessage, MsiVector},
    sync::{AtomicU64, Guarded, Ordering, lock},
};

/// A signal is owed. The guest sees it as the pending bit.
const PENDING: u64 = 1 << 0;
/// The capability is enabled.
const ON: u64 = 1 << 1;
/// Enabled, and masked by nothing.
const OPEN: u64 = 1 << 2;
/// The message was rewritten since the backend was told.
const STALE: u64 = 1 << 3;
/// What was owed is not any more: a delivery that fails now must not bring it back, and a vector of before is given back.
const FORGET: u64 = 1 << 4;
/// The backend has given a vector. Changed under `BUSY` alone, as `PROGRAMMED` is.
const ALLOCATED: u64 = 1 << 5;
/// The backend's vector has a message.
const PROGRAMMED: u64 = 1 << 6;
/// A thread talks to the backend.
const BUSY: u64 = 1 << 7;
/// Another one came meanwhile.
const AGAIN: u64 = 1 << 8;
/// Somebody has the descriptor, or wants it: there is a vector also while it is masked, and it is asked what waits in it.
const EXPORTED: u64 = 1 << 9;
/// The backend is to give a vector also while it is masked, and to say whether it can.
const RESERVED: u64 = 1 << 10;
/// The backend is not to give a vector, whatever the gate, before somebody next signals, asks for it or sets the gate.
const RELEASED: u64 = 1 << 11;

/// A signal can go out at once, and nothing else is to be done.
const READY: u64 = ON | OPEN | ALLOCATED | PROGRAMMED;
/// Whatever these say about such a vector.
const ANY: u64 = EXPORTED | RESERVED;

/// Whether a signal may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// The capability is disabled: signals are nobody's, nothing is owed, and the backend's vector is given back.
    Off,
    /// Signals stay pending. The backend's vector is kept, without a message.
    Masked,
    /// Signals go out.
    Open,
}

/// What became of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// The message was sent, or is being sent by another thread.
    Sent,
    /// The vector is masked, or the function may not master the bus: its pending bit is set, and it is sent later.
    Pending,
    /// The capability is not enabled. Nothing was kept: the function interrupts by other means.
    Disabled,
}

/// Where a signal gets its backend's vector and its message from. Called with nothing locked but the signal itself.
pub(super) trait Source {
    fn vector(&self) -> io::Result<Box<dyn MsiVector>>;
    fn message(&self) -> MsiMessage;
}

#[derive(Default)]
pub(super) struct Signal {
    state: AtomicU64,
    /// Of who is `BUSY` alone.
    vector: Guarded<Option<Arc<dyn MsiVector>>>,
    /// The same, for who looks at its descriptor. Locked for no more than a copy.
    shown: Mutex<Option<Arc<dyn MsiVector>>>,
}

impl Signal {
    /// Opens or shuts the gate. Calls nobody: follow it with [`settle`](Self::settle) once your locks are released.
    pub fn set(&self, gate: Gate) {
        self.change(|state| match gate {
            Gate::Off => state & !(ON | OPEN | PENDING | RESERVED | RELEASED) | FORGET | STALE,
            Gate::Masked => state & !(OPEN | RELEASED) | ON,
            Gate::Open => state & !RELEASED | ON | OPEN,
        });
    }

    /// Nothing is owed any more, and the backend has its vector back until it is next needed. The gate stays, so that a
    /// signal which comes right after this is one of those to come. As [`set`](Self::set), it calls nobody.
    pub fn release(&self) {
        self.change(|state| match state & ON {
            0 => state,
            _ => state & !(PENDING | RESERVED) | FORGET | STALE | RELEASED,
        });
    }

    /// The message is another one now. As [`set`](Self::set), it calls nobody.
    pub fn rewritten(&self) {
        self.state.fetch_or(STALE, Ordering::SeqCst);
    }

    /// Sets or clears what is owed, for a restore.
    pub fn set_pending(&self, pending: bool) {
        self.change(|state| if pending { state | PENDING } else { state & !PENDING });
    }

    /// The pending bit.
    pub fn is_pending(&self) -> bool {
        const WAITING: u64 = ON | EXPORTED | ALLOCATED;
        let state = self.state.load(Ordering::SeqCst);
        state & PENDING != 0
            || state & (WAITING | PROGRAMMED | FORGET) == WAITING
                && self.shown().is_some_and(|vector| vector.is_signalled())
    }

    /// Whether the capability is enabled.
    pub fn is_on(&self) -> bool {
        self.state.load(Ordering::SeqCst) & ON != 0
    }

    fn shown(&self) -> Option<Arc<dyn MsiVector>> {
        lock(&self.shown).clone()
    }

    /// A duplicate of the descriptor of the backend's vector, which is asked for now if there is none yet.
    ///
    /// # Errors
    /// `NotConnected` while the gate is off, `WouldBlock` while another thread talks to the backend, `Unsupported` if
    /// the backend's vectors have no descriptor; what the backend answered, or the operating system.
    #[cfg(unix)]
    pub fn export(&self, source: &impl Source) -> io::Result<OwnedFd> {
        let state = self.change(|state| {
            if state & ON == 0 {
                state
            } else {
                state & !RELEASED | EXPORTED
            }
        });
        if state & ON == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the guest has not enabled the capability: there is no vector",
            ));
        }
        let settled = self.settle(source);
        // One that is about to be given back is of before the capability was last enabled.
        let state = self.state.load(Ordering::SeqCst);
        let shown = self.shown().filter(|_| state & (ON | FORGET) == ON);
        let Some(vector) = shown else {
            return Err(settled.err().unwrap_or_else(|| io::ErrorKind::WouldBlock.into()));
        };
        match vector.descriptor() {
            Some(descriptor) => descriptor.try_clone_to_owned(),
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the platform's vectors have no descriptor: trigger the vector instead",
            )),
        }
    }

    /// Signals the guest, or remembers that it is owed.
    #[inline]
    pub fn trigger(&self, source: &impl Source) -> io::Result<Signalled> {
        let state = self.state.load(Ordering::SeqCst);
        if state & !ANY == READY
            && self
                .state
                .compare_exchange(state, state | BUSY, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            return self.send(state, source).map(|()| Signalled::Sent);
        }
        self.trigger_among(source)
    }

    /// Sends a signal that can go out at once, where the word was `state`. `BUSY` is ours.
    #[inline]
    fn send(&self, state: u64, source: &impl Source) -> io::Result<()> {
        let mut worker = Worker {
            state: &self.state,
            owed: true,
        };
        let sent = self.signal();
        worker.owed = false;
        let busy = state | BUSY;
        if sent.is_ok()
            && self
                .state
                .compare_exchange(busy, state, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            mem::forget(worker);
            return Ok(());
        }
        // It was refused, or others have come.
        self.go_on(source, worker, Some(sent))
    }

    /// Has the backend's vector signal. `BUSY` is ours.
    #[inline]
    fn signal(&self) -> io::Result<()> {
        // SAFETY: `BUSY` is ours.
        match &*unsafe { self.vector.open() } {
            Some(vector) => vector.trigger(),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Signals when there is something else to do, or others are at it.
    fn trigger_among(&self, source: &impl Source) -> io::Result<Signalled> {
        let state = self.change(|state| match state & (ON | OPEN | BUSY) {
            on if on & ON == 0 => state,
            open if open & OPEN == 0 => state & !RELEASED | PENDING,
            busy if busy & BUSY != 0 => state & !RELEASED | PENDING | AGAIN,
            _ => state & !RELEASED | PENDING | BUSY,
        });
        match state & (ON | OPEN | BUSY) {
            on if on & ON == 0 => Ok(Signalled::Disabled),
            open if open & OPEN == 0 => Ok(Signalled::Pending),
            busy if busy & BUSY != 0 => Ok(Signalled::Sent),
            _ => self.work(source).map(|()| Signalled::Sent),
        }
    }

    /// Has the backend give a vector now, if the capability is enabled, though it may be masked.
    ///
    /// # Errors
    /// The backend has none. It is asked again when the vector is unmasked. If another thread talks to it now, that one
    /// hears of it.
    pub fn reserve(&self, source: &impl Source) -> io::Result<()> {
        self.change(|state| {
            if state & ON == 0 {
                state
            } else {
                state & !RELEASED | RESERVED
            }
        });
        self.settle(source)
    }

    /// Tells the backend what has changed, and sends what is owed and may go; or leaves that to the thread that is at it.
    ///
    /// # Errors
    /// What the backend answered. Nothing is lost: the next `settle` or `trigger` tries again.
    pub fn settle(&self, source: &impl Source) -> io::Result<()> {
        let state = self.change(|state| match state & BUSY {
            0 if !wants(state) => state,
            0 => state | BUSY,
            _ => state | AGAIN,
        });
        if state & BUSY == 0 && wants(state) {
            self.work(source)
        } else {
            Ok(())
        }
    }

    /// Goes on until the backend knows what the word says, or refuses and nobody has come meanwhile. `BUSY` is ours.
    fn work(&self, source: &impl Source) -> io::Result<()> {
        let worker = Worker {
            state: &self.state,
            owed: false,
        };
        self.go_on(source, worker, None)
    }

    /// As [`work`](Self::work), when a signal has come to `signalled` already.
    fn go_on(
        &self,
        source: &impl Source,
        mut worker: Worker<'_>,
        mut signalled: Option<io::Result<()>>,
    ) -> io::Result<()> {
        // What became of the last signal, and of the last change of the backend's vector.
        let (mut sent, mut connected) = (Ok(()), Ok(()));
        loop {
            if signalled.is_none() {
                let seen = self.change(|state| state & !claim(state));
                worker.owed = seen & claim(seen) & PENDING != 0;
                if worker.owed {
                    signalled = Some(self.signal());
                    worker.owed = false;
                } else {
                    // SAFETY: `BUSY` is ours.
                    let mut vector = unsafe { self.vector.open() };
                    connected = self.connect(seen, &mut vector, source);
                }
            }
            let accepted = match signalled.take() {
                Some(result) => {
                    sent = result;
                    if sent.is_err() {
                        self.change(owe);
                    }
                    sent.is_ok()
                }
                None => connected.is_ok(),
            };
            let left = self.change(|state| if stays(state, accepted) { state } else { state & !BUSY });
            if !stays(left, accepted) {
                mem::forget(worker);
                return sent.and(connected);
            }
        }
    }

    /// Brings the backend's vector to where `seen` wants it.
    fn connect(&self, mut seen: u64, vector: &mut Option<Arc<dyn MsiVector>>, source: &impl Source) -> io::Result<()> {
        // Also if the gate was off only since the backend was told: what waits in the descriptor is of before.
        if (seen & ON == 0 || seen & FORGET != 0)
            && let Some(vector) = vector.take()
        {
            self.state
                .fetch_and(!(ALLOCATED | PROGRAMMED | EXPORTED), Ordering::SeqCst);
            drop(lock(&self.shown).take());
            // Dropped after its message is gone, so that a descriptor that was handed out is dead also where the
            // backend keeps it open.
            if seen & PROGRAMMED != 0 {
                let _ = vector.program(None);
            }
            seen &= !(ALLOCATED | PROGRAMMED | EXPORTED);
        }
        if seen & ON == 0 || seen & RELEASED != 0 {
            return Ok(());
        }
        if vector.is_none() && seen & (OPEN | EXPORTED | RESERVED) != 0 {
            // A reservation ends with the answer, whatever it is.
            self.state.fetch_and(!RESERVED, Ordering::SeqCst);
            let new = Arc::from(source.vector()?);
            *lock(&self.shown) = Some(Arc::clone(&new));
            *vector = Some(new);
            self.state.fetch_or(ALLOCATED, Ordering::SeqCst);
        }
        if seen & OPEN == 0 {
            if let (Some(vector), true) = (vector, seen & PROGRAMMED != 0) {
                // After a refusal nobody knows: it is tried again, and an unmask meanwhile programs it anew.
                if let Err(refusal) = vector.program(None) {
                    self.rewritten();
                    return Err(refusal);
                }
                self.state.fetch_and(!PROGRAMMED, Ordering::SeqCst);
            }
            return Ok(());
        }
        if seen & PROGRAMMED != 0 && seen & STALE == 0 {
            return Ok(());
        }
        // Not live until `program` has said so: a vector that refuses has no message.
        self.state.fetch_and(!PROGRAMMED, Ordering::SeqCst);
        let Some(vector) = vector else { return Ok(()) };
        if seen & EXPORTED != 0 && vector.take_signal() {
            self.change(owe);
        }
        let message = source.message();
        // Of a table that was emptied meanwhile it would be zeros. Who empties one shuts the gate first.
        if self.state.load(Ordering::SeqCst) & FORGET != 0 {
            return Ok(());
        }
        vector.program(Some(message))?;
        self.state.fetch_or(PROGRAMMED, Ordering::SeqCst);
        Ok(())
    }

    /// One atomic step. Returns what was there before it; `change` may run more than once.
    #[inline]
    fn change(&self, change: impl Fn(u64) -> u64) -> u64 {
        let mut state = self.state.load(Ordering::SeqCst);
        loop {
            // Exchanged also when nothing changes: who unmasks and looks at the ring afterwards must see what the device
            // did before it found the vector masked.
            match self
                .state
                .compare_exchange_weak(state, change(state), Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return state,
                Err(now) => state = now,
            }
        }
    }
}

/// Whether the backend has to hear something.
fn wants(state: u64) -> bool {
    match state & (ON | OPEN) {
        0 => state & ALLOCATED != 0,
        _ if state & FORGET != 0 && state & ALLOCATED != 0 => true,
        _ if state & RELEASED != 0 => false,
        ON => state & PROGRAMMED != 0 || state & ALLOCATED == 0 && state & (EXPORTED | RESERVED) != 0,
        _ => state & PROGRAMMED == 0 || state & (PENDING | STALE) != 0,
    }
}

/// What the worker takes out of the word before it acts on it: a signal only if it can go out at once.
fn claim(state: u64) -> u64 {
    let ready = state & (OPEN | PROGRAMMED | STALE) == OPEN | PROGRAMMED;
    AGAIN | FORGET | STALE | if ready { PENDING } else { 0 }
}

/// A signal that was refused is owed again, unless it was forgotten meanwhile.
fn owe(state: u64) -> u64 {
    if state & FORGET == 0 { state | PENDING } else { state }
}

/// Whether the worker has to go on: for who came meanwhile also after a refusal, for theirs is the later signal that
/// carries the lost one.
fn stays(state: u64, accepted: bool) -> bool {
    state & AGAIN != 0 || accepted && wants(state)
}

/// Holds `BUSY`. Dropped only if the backend panics: the call counts as refused, and the next one tries again.
struct Worker<'a> {
    state: &'a AtomicU64,
    owed: bool,
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let owed = if self.owed { PENDING } else { 0 };
        if self.state.load(Ordering::SeqCst) & (ON | FORGET) == ON {
            self.state.fetch_or(owed, Ordering::SeqCst);
        }
        self.state.fetch_and(!(BUSY | AGAIN | PROGRAMMED), Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
