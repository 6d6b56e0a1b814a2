//! What calls back: descriptors and alarms.

use std::{fmt, mem, sync::Arc, time::Duration};

use super::{shared::Shared, state::Target};
use crate::time::Alarm;
#[cfg(unix)]
use crate::virtio::Descriptor;

/// Ends a [watch](super::EventLoop::watch) when it is dropped. A call that is under way ends by itself.
#[cfg(unix)]
#[must_use = "a watch that is dropped has ended"]
pub struct Watch {
    pub(super) shared: Arc<Shared>,
    pub(super) id: usize,
    pub(super) descriptor: Descriptor,
    /// Keeps the descriptor open for as long as it is polled.
    pub(super) _source: Arc<dyn Send + Sync>,
}

#[cfg(unix)]
impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let call = state.calls.remove(&self.id);
        state.forget(self.descriptor, Target::Call(self.id));
        state.let_go(&self.shared.poller, self.descriptor);
        drop(state);
        // Outside of the lock: what it holds is the embedder's.
        drop(call);
    }
}

#[cfg(unix)]
impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("descriptor", &self.descriptor)
            .finish_non_exhaustive()
    }
}

/// An [`Alarm`] of an [`EventLoop`](super::EventLoop).
pub struct LoopAlarm {
    pub(super) shared: Arc<Shared>,
    pub(super) id: usize,
}

impl Alarm for LoopAlarm {
    fn set(&self, deadline: Option<Duration>) {
        let mut state = self.shared.state();
        let target = Target::Call(self.id);
        let earliest = state.deadlines.first_key_value().map(|(&(earliest, _), ())| earliest);
        state.set_deadline(target, deadline);
        let sooner = deadline.is_some_and(|deadline| earliest.is_none_or(|earliest| deadline < earliest));
        if sooner && state.polled {
            let _ = self.shared.poller.notify();
        }
    }
}

impl Drop for LoopAlarm {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.set_deadline(Target::Call(self.id), None);
        let call = mem::take(&mut state.calls.remove(&self.id));
        drop(state);
        drop(call);
    }
}

impl fmt::Debug for LoopAlarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopAlarm").finish_non_exhaustive()
    }
}
