//! The daemon's own loop: one thread, `epoll`, and what is due.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use devisor::{
    time::Clock,
    virtio::{QueueIndex, Wait, transport::Doorbell},
};

/// Whom something is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Queue(u16),
    Connection,
    Listener,
    Signal,
}

/// What is waited for, and what is due.
pub struct Events {
    epoll: OwnedFd,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    due: VecDeque<Target>,
    is_due: HashSet<Target>,
    waits: HashMap<Target, Vec<Wait>>,
    /// Who waits for a descriptor, and for what of it.
    watched: HashMap<RawFd, Vec<(Target, u32)>>,
    deadlines: HashMap<Target, Duration>,
}

impl State {
    fn make_due(&mut self, target: Target) {
        if self.is_due.insert(target) {
            self.due.push_back(target);
        }
    }
}

impl Events {
    pub fn new(clock: Arc<dyn Clock>) -> io::Result<Self> {
        // SAFETY: the call takes a number, and its result is a descriptor that nobody else has, or none.
        let epoll = unsafe {
            match libc::epoll_create1(libc::EPOLL_CLOEXEC) {
                ..0 => return Err(io::Error::last_os_error()),
                descriptor => OwnedFd::from_raw_fd(descriptor),
            }
        };
        Ok(Self {
            epoll,
            clock,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `target` is to be served.
    pub fn make_due(&self, target: Target) {
        self.state().make_due(target);
    }

    /// What `target` waits for, in place of what it waited for before. The same again costs no system call.
    pub fn wait(&self, target: Target, waits: &[Wait]) {
        let mut state = self.state();
        let State {
            waits: all,
            watched,
            deadlines,
            ..
        } = &mut *state;
        let before = all.entry(target).or_default();
        if before == waits {
            return;
        }
        let mut touched: Vec<RawFd> = Vec::new();
        for descriptor in before.iter().filter_map(descriptor_of) {
            if let Some(entry) = watched.get_mut(&descriptor) {
                entry.retain(|(other, _)| *other != target);
            }
            touched.push(descriptor);
        }
        deadlines.remove(&target);
        let mut hopeless = false;
        for wait in waits {
            match *wait {
                Wait::Readable(descriptor) => {
                    watched.entry(descriptor).or_default().push((target, libc::EPOLLIN as u32));
                    touched.push(descriptor);
                }
                Wait::Writable(descriptor) => {
                    watched.entry(descriptor).or_default().push((target, libc::EPOLLOUT as u32));
                    touched.push(descriptor);
                }
                Wait::Until(time) => {
                    let earliest = deadlines.get(&target).map_or(time, |&other| other.min(time));
                    deadlines.insert(target, earliest);
                }
                _ => {}
            }
        }
        before.clear();
        before.extend_from_slice(waits);
        touched.sort_unstable();
        touched.dedup();
        for descriptor in touched {
            let wanted = watched.get(&descriptor).map_or(0, |entry| entry.iter().fold(0, |all, (_, bits)| all | bits));
            if wanted == 0 {
                watched.remove(&descriptor);
            }
            hopeless |= !self.control(descriptor, wanted) && wanted != 0;
        }
        // A regular file is always ready.
        if hopeless {
            state.make_due(target);
        }
    }

    /// Has the kernel look for this; whether it does.
    fn control(&self, descriptor: RawFd, wanted: u32) -> bool {
        let mut event = libc::epoll_event {
            events: wanted,
            u64: descriptor as u64,
        };
        let control = |operation, event: &mut libc::epoll_event| {
            // SAFETY: the event outlives the call.
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, descriptor, &raw mut *event) == 0 }
        };
        match wanted {
            // It may be closed already.
            0 => control(libc::EPOLL_CTL_DEL, &mut event),
            _ => control(libc::EPOLL_CTL_MOD, &mut event) || control(libc::EPOLL_CTL_ADD, &mut event),
        }
    }

    /// Takes what is due, after waiting for it if there is nothing.
    pub fn next(&self, due: &mut Vec<Target>) -> io::Result<()> {
        due.clear();
        let timeout = {
            let state = self.state();
            let earliest = state.deadlines.values().min().copied();
            match (state.due.is_empty(), earliest) {
                (false, _) => 0,
                (true, None) => -1,
                (true, Some(time)) => {
                    let left = time.saturating_sub(self.clock.now());
                    left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32
                }
            }
        };
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 32];
        // SAFETY: there is room for as many events as are said to fit.
        let found = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, timeout) };
        if found < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        let mut state = self.state();
        let state = &mut *state;
        for event in &events[..found as usize] {
            let gone = event.events & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
            let bits = event.events;
            let Some(watching) = state.watched.get(&(event.u64 as RawFd)) else {
                continue;
            };
            for &(target, wanted) in watching {
                if (gone || bits & wanted != 0) && state.is_due.insert(target) {
                    state.due.push_back(target);
                }
            }
        }
        if !state.deadlines.is_empty() {
            let now = self.clock.now();
            let over: Vec<_> = state.deadlines.iter().filter(|(_, time)| **time <= now).map(|(target, _)| *target).collect();
            for target in over {
                state.deadlines.remove(&target);
                // What is waited for next is news.
                state.waits.entry(target).or_default().retain(|wait| !matches!(wait, Wait::Until(_)));
                state.make_due(target);
            }
        }
        due.extend(state.due.drain(..));
        state.is_due.clear();
        Ok(())
    }
}

fn descriptor_of(wait: &Wait) -> Option<RawFd> {
    match wait {
        Wait::Readable(descriptor) | Wait::Writable(descriptor) => Some(*descriptor),
        _ => None,
    }
}

/// The loop as a device's doorbell.
#[derive(Clone)]
pub struct Bell(pub Arc<Events>);

impl Doorbell for Bell {
    fn ring(&self, queue: QueueIndex) -> io::Result<()> {
        self.0.make_due(Target::Queue(queue.0));
        Ok(())
    }

    fn wait(&self, queue: QueueIndex, waits: &[Wait]) {
        self.0.wait(Target::Queue(queue.0), waits);
    }
}
