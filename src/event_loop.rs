//! A ready-made event loop for devices, on threads of the embedder's (feature `event-loop`, on the crate `polling`).
//!
//! Nothing needs it: a device says [what it waits for](crate::virtio::Wait), and any loop that can do that does; a test drives its
//! devices one call at a time. This is the loop for an embedder that has none.
//!
//! - A virtio device takes a [`Seat`] as its doorbell. Each queue that was kicked, or whose wait is over, is served for one bounded
//!   round by one of the threads, and goes to the end of the line if there is more: no queue waits for another to be drained.
//! - A descriptor that the embedder watches (an ioeventfd, a socket) calls back: [`EventLoop::watch`].
//! - Time is a [`Clock`], and deadlines are [`Alarm`]s: [`EventLoop::alarm`].
//!
//! As many threads as call [`run`](EventLoop::run) do the work; one of them waits at the poller when there is none. A callback or a
//! device that panics takes its own thread with it, and nothing else: the others go on, and so does the queue with its next kick.
//!
//! ```
//! use devisor::{
//!     event_loop::EventLoop,
//!     interrupt::NoInterrupt,
//!     virtio::{VirtioMmio, VirtioTransport, entropy::Entropy, transport::mmio::Line},
//! };
//! use std::{sync::Arc, thread};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! let events = EventLoop::new()?;
//! let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! let seat = events.seat();
//! let rng = VirtioMmio::new(Entropy::from_os(), memory, Line::Edge(Arc::new(NoInterrupt)))?.with_doorbell(seat.clone());
//! let rng = Arc::new(rng);
//! seat.take(&(rng.clone() as Arc<dyn VirtioTransport>));
//!
//! thread::scope(|scope| {
//!     let workers = [(); 2].map(|()| scope.spawn(|| events.run()));
//!     // The guest runs...
//!     events.stop();
//!     workers.map(|worker| worker.join().expect("no device panicked").expect("the poller works"))
//! });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt, io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use polling::{Event, Events, Poller};

use crate::{
    sync::lock,
    time::{Alarm, Clock},
    virtio::{Descriptor, QueueIndex, VirtioTransport, Wait, transport::Doorbell},
};

/// Devices, descriptors and deadlines, served by the threads that [`run`](Self::run) it. Clones are the same loop.
#[derive(Clone)]
pub struct EventLoop(Arc<Shared>);

struct Shared {
    poller: Poller,
    /// Where the clock began.
    origin: Instant,
    state: Mutex<State>,
    /// For threads that have nothing to do while another is at the poller.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// What is to be served, in the order in which it became so.
    due: VecDeque<Target>,
    /// The same, to look up.
    is_due: HashSet<Target>,
    descriptors: HashMap<Descriptor, Watched>,
    /// Descriptors by the key that the poller knows them by.
    keys: HashMap<usize, Descriptor>,
    /// Deadlines, and whose they are.
    deadlines: BTreeMap<(Duration, Target), ()>,
    deadline_of: HashMap<Target, Duration>,
    /// What each queue waits for, so that it can be told otherwise.
    waits: HashMap<Target, Vec<Descriptor>>,
    seats: HashMap<usize, Weak<dyn VirtioTransport>>,
    calls: HashMap<usize, Arc<dyn Fn() + Send + Sync>>,
    /// The next number of a seat, a call or a key.
    next: usize,
    /// A thread is at the poller.
    polled: bool,
    /// Threads that have nothing to do.
    idle: usize,
    /// Of those, threads that were woken and have not come back yet.
    woken: usize,
    /// How many of what is due are served before the poller is asked again.
    turns: usize,
    /// Queues that became due before their device took its seat.
    early: HashSet<Target>,
    stopped: bool,
}

/// Whom something is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Target {
    /// A queue of the device on a seat.
    Queue(usize, QueueIndex),
    /// A callback.
    Call(usize),
}

/// A descriptor at the poller, and who waits for it.
struct Watched {
    key: usize,
    waiting: Vec<Waiting>,
}

#[derive(Clone, Copy)]
struct Waiting {
    target: Target,
    readable: bool,
    writable: bool,
    /// It is waited for again by itself.
    always: bool,
}

impl EventLoop {
    /// A loop without a thread.
    ///
    /// # Errors
    /// The operating system has no poller to give.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            poller: Poller::new()?,
            origin: Instant::now(),
            state: Mutex::default(),
            idle: Condvar::new(),
        })))
    }

    /// Serves what comes, on this thread, until [`stop`](Self::stop). Any number of threads may.
    ///
    /// # Errors
    /// The poller failed. The other threads find out for themselves.
    pub fn run(&self) -> io::Result<()> {
        let mut events = Events::new();
        let mut state = self.0.state();
        while !state.stopped {
            let more = !state.due.is_empty();
            if !state.polled && (!more || state.turns == 0) {
                // What is due again and again keeps nothing else from being seen.
                let limit = more.then_some(Duration::ZERO);
                state = self.0.poll(state, &mut events, limit)?;
            } else if let Some(target) = state.take_due() {
                drop(state);
                self.0.serve(target);
                state = self.0.state();
            } else {
                state.idle += 1;
                state = self.0.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                state.woken = state.woken.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Serves what there is, on this thread, and waits for so long at most until there is something. Whether there was: for an embedder
    /// that has its own loop around this one, and for tests.
    ///
    /// # Errors
    /// The poller failed.
    pub fn run_once(&self, limit: Duration) -> io::Result<bool> {
        let mut state = self.0.state();
        if !state.polled {
            let limit = if state.due.is_empty() { limit } else { Duration::ZERO };
            state = self.0.poll(state, &mut Events::new(), Some(limit))?;
        }
        // No more than there is now: what becomes due meanwhile is for the next call.
        let due = state.due.len();
        for _ in 0..due {
            let Some(target) = state.take_due() else { break };
            drop(state);
            self.0.serve(target);
            state = self.0.state();
        }
        Ok(due != 0)
    }

    /// Has every thread come back from [`run`](Self::run) once it has ended what it is at, for good. What is still to be served stays
    /// with its devices, marked.
    pub fn stop(&self) {
        self.0.state().stopped = true;
        self.0.idle.notify_all();
        // A poller that cannot be woken has failed, and its thread comes back for that.
        let _ = self.0.poller.notify();
    }

    /// A place for a virtio device.
    pub fn seat(&self) -> Seat {
        let seat = self.0.state().number();
        Seat(Arc::new(Occupied {
            shared: Arc::clone(&self.0),
            seat,
        }))
    }

    /// Calls `f` on a thread of the loop whenever `source` is readable, until what this returns is dropped. It has to read what is
    /// there, or is called again.
    ///
    /// # Errors
    /// The descriptor cannot be polled.
    #[cfg(unix)]
    pub fn watch<S, F>(&self, source: S, f: F) -> io::Result<Watch>
    where
        S: std::os::fd::AsRawFd + Send + Sync + 'static,
        F: Fn(&S) + Send + Sync + 'static,
    {
        let source = Arc::new(source);
        let descriptor = source.as_raw_fd();
        let called = Arc::clone(&source);
        let mut state = self.0.state();
        let id = state.number();
        state.calls.insert(id, Arc::new(move || f(&called)));
        let waiting = Waiting {
            target: Target::Call(id),
            readable: true,
            writable: false,
            always: true,
        };
        let added = state.add(&self.0.poller, descriptor, waiting);
        let watch = Watch {
            shared: Arc::clone(&self.0),
            id,
            descriptor,
            _source: source,
        };
        drop(state);
        added.map(|()| watch)
    }

    /// An alarm that calls `f` on a thread of the loop when its deadline has come, by the loop's own clock.
    pub fn alarm(&self, f: impl Fn() + Send + Sync + 'static) -> LoopAlarm {
        let mut state = self.0.state();
        let id = state.number();
        state.calls.insert(id, Arc::new(f));
        LoopAlarm {
            shared: Arc::clone(&self.0),
            id,
        }
    }
}

impl Clock for EventLoop {
    /// Since the loop was made.
    fn now(&self) -> Duration {
        self.0.origin.elapsed()
    }
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state();
        f.debug_struct("EventLoop")
            .field("due", &state.due)
            .field("stopped", &state.stopped)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
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

    fn make_due(&self, state: &mut State, target: Target) {
        if state.is_due.insert(target) {
            state.due.push_back(target);
            self.wake(state);
        }
    }

    /// Waits at the poller, and puts in line what has come.
    fn poll<'a>(
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

    fn serve(&self, target: Target) {
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
    fn wait(&self, target: Target, waits: &[Wait]) {
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

impl State {
    fn number(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    fn take_due(&mut self) -> Option<Target> {
        let target = self.due.pop_front()?;
        self.is_due.remove(&target);
        self.turns = self.turns.saturating_sub(1);
        Some(target)
    }

    /// The device on a seat. If none has taken it yet, `target` is kept for the one that will.
    fn seated(&mut self, seat: usize, target: Target) -> Option<Arc<dyn VirtioTransport>> {
        match self.seats.get(&seat) {
            Some(device) => device.upgrade(),
            None => {
                self.early.insert(target);
                None
            }
        }
    }

    fn set_deadline(&mut self, target: Target, deadline: Option<Duration>) {
        if let Some(before) = self.deadline_of.remove(&target) {
            self.deadlines.remove(&(before, target));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, target), ());
            self.deadline_of.insert(target, deadline);
        }
    }

    /// Waits for `descriptor` on behalf of somebody.
    fn add(&mut self, poller: &Poller, descriptor: Descriptor, waiting: Waiting) -> io::Result<()> {
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
    fn rearm(&mut self, poller: &Poller, descriptor: Descriptor, all: bool) -> bool {
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
    fn forget(&mut self, descriptor: Descriptor, target: Target) {
        if let Some(watched) = self.descriptors.get_mut(&descriptor) {
            watched.waiting.retain(|waiting| waiting.target != target);
        }
    }

    /// Lets go of a descriptor for which nobody waits any more.
    fn let_go(&mut self, poller: &Poller, descriptor: Descriptor) {
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

/// A virtio device's place at an [`EventLoop`]: its doorbell. Clones are the same place.
#[derive(Clone)]
pub struct Seat(Arc<Occupied>);

struct Occupied {
    shared: Arc<Shared>,
    seat: usize,
}

impl Seat {
    /// The device whose doorbell this is sits here: its queues are served from now on, those that were kicked before too. The loop does
    /// not keep it alive.
    pub fn take(&self, device: &Arc<dyn VirtioTransport>) {
        let Occupied { shared, seat } = &*self.0;
        let mut state = shared.state();
        state.seats.insert(*seat, Arc::downgrade(device));
        let here = |target: &Target| matches!(target, Target::Queue(other, _) if other == seat);
        let early: Vec<_> = state.early.extract_if(here).collect();
        for target in early {
            shared.make_due(&mut state, target);
        }
    }

    /// Has `queue` looked at: because its doorbell was caught by the hypervisor.
    pub fn look(&self, queue: QueueIndex) {
        self.0.due(queue);
    }
}

impl Occupied {
    fn due(&self, queue: QueueIndex) {
        let mut state = self.shared.state();
        self.shared.make_due(&mut state, Target::Queue(self.seat, queue));
    }
}

impl Doorbell for Seat {
    fn ring(&self, queue: QueueIndex) -> io::Result<()> {
        self.0.due(queue);
        Ok(())
    }

    fn wait(&self, queue: QueueIndex, waits: &[Wait]) {
        self.0.shared.wait(Target::Queue(self.0.seat, queue), waits);
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.seats.remove(&self.seat);
        let elsewhere = |target: &Target| !matches!(target, Target::Queue(seat, _) if *seat == self.seat);
        state.due.retain(elsewhere);
        state.is_due.retain(elsewhere);
        state.early.retain(elsewhere);
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seat").field(&self.0.seat).finish()
    }
}

/// Ends a [watch](EventLoop::watch) when it is dropped. A call that is under way ends by itself.
#[cfg(unix)]
#[must_use = "a watch that is dropped has ended"]
pub struct Watch {
    shared: Arc<Shared>,
    id: usize,
    descriptor: Descriptor,
    /// Keeps the descriptor open for as long as it is polled.
    _source: Arc<dyn Send + Sync>,
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

/// An [`Alarm`] of an [`EventLoop`].
pub struct LoopAlarm {
    shared: Arc<Shared>,
    id: usize,
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
