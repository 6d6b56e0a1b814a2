//! A ready-made event loop for devices, on threads of the embedder's (feature `event-loop`, on the crate `polling`).
//!
//! Nothing needs it: a device says [what it waits for](crate::virtio::Wait), and any loop that can do that does; a test drives its
//! devices one call at a time. This is the loop for an embedder that has none.
//!
//! - A virtio device takes a [`Seat`] as its doorbell. Each queue that was kicked, or whose wait is over, is served for one bounded
//!   round by one of the threads, and goes to the end of the line if there is more: no queue waits for another to be drained.
//! - A descriptor that the embedder watches (an ioeventfd, a socket) calls back: [`EventLoop::watch`].
//! - Time is a [`Clock`], and deadlines are [`Alarm`](crate::time::Alarm)s: [`EventLoop::alarm`].
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

mod seat;
mod shared;
mod state;
mod watch;

use std::{
    fmt, io,
    sync::{Arc, PoisonError},
    time::Duration,
};

use polling::Events;

use crate::time::Clock;
use shared::Shared;
#[cfg(unix)]
use state::{Target, Waiting};

pub use seat::Seat;
pub use watch::LoopAlarm;
#[cfg(unix)]
pub use watch::Watch;

/// Devices, descriptors and deadlines, served by the threads that [`run`](Self::run) it. Clones are the same loop.
#[derive(Clone)]
pub struct EventLoop(Arc<Shared>);

impl EventLoop {
    /// A loop without a thread.
    ///
    /// # Errors
    /// The operating system has no poller to give.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared::new()?)))
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
        Seat::new(&self.0)
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
