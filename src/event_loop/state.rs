//! What a loop knows: what is due, who waits for which descriptor and until when.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use polling::{Event, Poller};

use crate::virtio::{Descriptor, QueueIndex, VirtioTransport};

#[derive(Default)]
pub(super) struct State {
    /// What is to be served, in the order in which it became so.
    pub(super) due: VecDeque<Target>,
    /// The same, to look up.
    pub(super) is_due: HashSet<Target>,
    pub(super) descriptors: HashMap<Descriptor, Watched>,
    /// Descriptors by the key that the poller knows them by.
    pub(super) keys: HashMap<usize, Descriptor>,
    /// Deadlines, and whose they are.
    pub(super) deadlines: BTreeMap<(Duration, Target), ()>,
    pub(super) deadline_of: HashMap<Target, Duration>,
    /// What each queue waits for, so that it can be told otherwise.
    pub(super) waits: HashMap<Target, Vec<Descriptor>>,
    pub(super) seats: HashMap<usize, Weak<dyn VirtioTransport>>,
    pub(super) calls: HashMap<usize, Arc<dyn Fn() + Send + Sync>>,
    /// The next number of a seat, a call or a key.
    pub(super) next: usize,
    /// A thread is at the poller.
    pub(super) polled: bool,
    /// Threads that have nothing to do.
    pub(super) idle: usize,
    /// Of those, threads that were woken and have not come back yet.
    pub(super) woken: usize,
    /// How many of what is due are served before the poller is asked again.
    pub(super) turns: usize,
    /// Queues that became due before their device took its seat.
    pub(super) early: HashSet<Target>,
    pub(super) stopped: bool,
}

/// Whom something is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Target {
    /// A queue of the device on a seat.
    Queue(usize, QueueIndex),
    /// A callback.
    Call(usize),
}

/// A descriptor at the poller, and who waits for it.
pub(super) struct Watched {
    pub(super) key: usize,
    pub(super) waiting: Vec<Waiting>,
}

#[derive(Clone, Copy)]
pub(super) struct Waiting {
    pub(super) target: Target,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// It is waited for again by itself.
    pub(super) always: bool,
}

impl State {
    pub(super) fn number(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    pub(super) fn take_due(&mut self) -> Option<Target> {
        let target = self.due.pop_front()?;
        self.is_due.remove(&target);
        self.turns = self.turns.saturating_sub(1);
        Some(target)
    }

    /// The device on a seat. If none has taken it yet, `target` is kept for the one that will.
    pub(super) fn seated(&mut self, seat: usize, target: Target) -> Option<Arc<dyn VirtioTransport>> {
        match self.seats.get(&seat) {
            Some(device) => device.upgrade(),
            None => {
                self.early.insert(target);
                None
            }
        }
    }

    pub(super) fn set_deadline(&mut self, target: Target, deadline: Option<Duration>) {
        if let Some(before) = self.deadline_of.remove(&target) {
            self.deadlines.remove(&(before, target));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, target), ());
            self.deadline_of.insert(target, deadline);
        }
    }

    /// Waits for `descriptor` on behalf of somebody.
    pub(super) fn add(&mut self, poller: &Poller, descriptor: Descriptor, waiting: Waiting) -> io::Result<()> {
        if !self.descriptors.contains_key(&descriptor) {
            let key = self.number();
            self.keys.insert(key, descriptor);
            let watched = Watched {
                key,
                waiting: Vec::new(),
            };
            self.descriptors.insert(descriptor, watched);
        }
        if let Some(watched) = self.descriptors.get_mut(&descriptor) {
            watched.waiting.push(waiting);
        }
        match self.rearm(poller, descriptor, true) {
            true => Ok(()),
            false => {
                self.forget(descriptor, waiting.target);
                self.let_go(poller, descriptor);
                Err(io::Error::other("the descriptor cannot be polled"))
            }
        }
    }

    /// Has the poller look for what is waited for: one event of each descriptor. `all`: also for what is waited for always. Whether it
    /// does.
    pub(super) fn rearm(&mut self, poller: &Poller, descriptor: Descriptor, all: bool) -> bool {
        let Some(Watched { key, waiting }) = self.descriptors.get(&descriptor) else {
            return false;
        };
        let wanted = || waiting.iter().filter(|waiting| all || !waiting.always);
        let event = Event::new(
            *key,
            wanted().any(|waiting| waiting.readable),
            wanted().any(|waiting| waiting.writable),
        );
        if !event.readable && !event.writable {
            // Its event is used up. Armed for nothing, it would still say that the other end has gone, again and again.
            return true;
        }
        let source = source(descriptor);
        if poller.modify(source, event).is_ok() {
            return true;
        }
        // New, or another one that has got the number of one that was closed.
        // SAFETY: who waits for a descriptor says otherwise before it closes it; a watch holds it. One that is closed all the same is
        // let go of by the operating system's poller itself.
        unsafe { poller.add(descriptor, event) }.is_ok()
    }

    /// `target` waits no more.
    pub(super) fn forget(&mut self, descriptor: Descriptor, target: Target) {
        if let Some(watched) = self.descriptors.get_mut(&descriptor) {
            watched.waiting.retain(|waiting| waiting.target != target);
        }
    }

    /// Lets go of a descriptor for which nobody waits any more.
    pub(super) fn let_go(&mut self, poller: &Poller, descriptor: Descriptor) {
        if self
            .descriptors
            .get(&descriptor)
            .is_some_and(|watched| watched.waiting.is_empty())
            && let Some(watched) = self.descriptors.remove(&descriptor)
        {
            self.keys.remove(&watched.key);
            // It may have been closed already.
            let _ = poller.delete(source(descriptor));
        }
    }
}

/// A descriptor as the poller takes it.
#[cfg(unix)]
fn source(descriptor: Descriptor) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: it is used for the one call for which it is made; a descriptor that is closed is an error of that call.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) }
}

/// A descriptor as the poller takes it.
#[cfg(windows)]
fn source(descriptor: Descriptor) -> std::os::windows::io::BorrowedSocket<'static> {
    // SAFETY: as on Unix.
    unsafe { std::os::windows::io::BorrowedSocket::borrow_raw(descriptor) }
}
