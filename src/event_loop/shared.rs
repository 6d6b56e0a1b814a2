//! What the threads of a loop share: who polls, who serves, who sleeps.

use std::{
    io,
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use polling::{Event, Events, Poller};

use super::state::{State, Target, Waiting, Watched};
use crate::{sync::lock, virtio::Wait};

pub(super) struct Shared {
    pub(super) poller: Poller,
    /// Where the clock began.
    pub(super) origin: Instant,
    pub(super) state: Mutex<State>,
    /// For threads that have nothing to do while another is at the poller.
    pub(super) idle: Condvar,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            poller: Poller::new()?,
            origin: Instant::now(),
            state: Mutex::default(),
            idle: Condvar::new(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Something is due, for one more thread than before.
    fn wake(&self, state: &mut State) {
        if !self.wake_idle(state) && state.polled {
            let _ = self.poller.notify();
        }
    }

    /// Whether there was a thread to wake: each is woken for one thing.
    fn wake_idle(&self, state: &mut State) -> bool {
        let sleeping = state.idle > state.woken;
        if sleeping {
            state.woken += 1;
            self.idle.notify_one();
        }
        sleeping
    }

    pub(super) fn make_due(&self, state: &mut State, target: Target) {
        if state.is_due.insert(target) {
            state.due.push_back(target);
            self.wake(state);
        }
    }

    /// Waits at the poller, and puts in line what has come.
    pub(super) fn poll<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        events: &mut Events,
        limit: Option<Duration>,
    ) -> io::Result<MutexGuard<'a, State>> {
        let next = state.deadlines.first_key_value().map(|(&(deadline, _), _)| deadline);
        let left = next.map(|deadline| deadline.saturating_sub(self.origin.elapsed()));
        let timeout = match (left, limit) {
            (Some(left), Some(limit)) => Some(left.min(limit)),
            (left, limit) => left.or(limit),
        };
        state.polled = true;
        drop(state);
        events.clear();
        let polled = self.poller.wait(events, timeout);
        let mut state = self.state();
        state.polled = false;
        // Another thread is to be at the poller while this one serves.
        self.wake_idle(&mut state);
        polled?;
        for event in events.iter() {
            self.event(&mut state, event);
        }
        let now = self.origin.elapsed();
        while let Some((&(deadline, target), ())) = state.deadlines.first_key_value()
            && deadline <= now
        {
            state.set_deadline(target, None);
            self.make_due(&mut state, target);
        }
        state.turns = state.due.len();
        Ok(state)
    }

    /// A descriptor is ready: whoever waits for that is due, and waits no more.
    fn event(&self, state: &mut State, event: Event) {
        let Some(&descriptor) = state.keys.get(&event.key) else {
            return;
        };
        let Some(watched) = state.descriptors.get_mut(&descriptor) else {
            return;
        };
        let is_for = |waiting: &Waiting| waiting.readable && event.readable || waiting.writable && event.writable;
        let hit: Vec<_> = watched
            .waiting
            .iter()
            .filter(|waiting| is_for(waiting))
            .map(|waiting| waiting.target)
            .collect();
        watched.waiting.retain(|waiting| !is_for(waiting) || waiting.always);
        for target in hit {
            self.make_due(state, target);
        }
        // What is waited for always is armed when its callback has returned.
        state.rearm(&self.poller, descriptor, false);
    }

    pub(super) fn serve(&self, target: Target) {
        match target {
            Target::Queue(seat, queue) => {
                let device = self.state().seated(seat, target);
                if device.is_some_and(|device| device.serve(queue)) {
                    self.make_due(&mut self.state(), target);
                }
            }
            Target::Call(id) => {
                let call = self.state().calls.get(&id).cloned();
                if let Some(call) = call {
                    let _called = Called(self, target);
                    call();
                }
            }
        }
    }

    /// What `target` waits for, in place of what it waited for before.
    pub(super) fn wait(&self, target: Target, waits: &[Wait]) {
        let mut state = self.state();
        let before = state.waits.remove(&target).unwrap_or_default();
        for descriptor in &before {
            state.forget(*descriptor, target);
        }
        let mut descriptors = Vec::new();
        let mut deadline = None;
        for &wait in waits {
            let (descriptor, readable, writable) = match wait {
                Wait::Readable(descriptor) => (descriptor, true, false),
                Wait::Writable(descriptor) => (descriptor, false, true),
                Wait::Until(until) => {
                    deadline = Some(deadline.map_or(until, |other: Duration| other.min(until)));
                    continue;
                }
            };
            let waiting = Waiting {
                target,
                readable,
                writable,
                always: false,
            };
            match state.add(&self.poller, descriptor, waiting) {
                Ok(()) => descriptors.push(descriptor),
                // Regular files, say, are always ready. A descriptor that is none any more is found out by who uses it.
                Err(_) => self.make_due(&mut state, target),
            }
        }
        for descriptor in before {
            state.let_go(&self.poller, descriptor);
        }
        state.set_deadline(target, deadline);
        if !descriptors.is_empty() {
            state.waits.insert(target, descriptors);
        }
        // The thread at the poller knows of an earlier deadline, or of none.
        if deadline.is_some() && state.polled {
            let _ = self.poller.notify();
        }
    }
}

/// A callback is under way. When it returns, or panics, its descriptor is waited for again.
struct Called<'a>(&'a Shared, Target);

impl Drop for Called<'_> {
    fn drop(&mut self) {
        let Self(shared, target) = *self;
        let mut state = shared.state();
        let always = |watched: &Watched| watched.waiting.iter().any(|waiting| waiting.target == target);
        let descriptor = state.descriptors.iter().find(|(_, watched)| always(watched));
        if let Some((&descriptor, _)) = descriptor {
            state.rearm(&shared.poller, descriptor, true);
        }
    }
}
