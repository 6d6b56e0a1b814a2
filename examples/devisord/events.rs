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

/// Whom something is for: of which device, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Queue(usize, u16),
    Connection(usize),
    Listener(usize),
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
    watched: HashMap<RawFd, Watched>,
    /// How often the kernel was told what to look for.
    told: u32,
    deadlines: HashMap<Target, Duration>,
}

/// A descriptor.
#[derive(Default)]
struct Watched {
    /// Who waits for it, and for what of it.
    by: Vec<(Target, u32)>,
    /// What the kernel says with its events. Those of another descriptor that has had this number say something else.
    name: u64,
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
        Ok(Self {
            epoll: new_epoll()?,
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
            told,
            deadlines,
            ..
        } = &mut *state;
        let before = all.entry(target).or_default();
        if before == waits {
            return;
        }
        let mut touched: Vec<(RawFd, u32)> = Vec::new();
        let mut touch = |watched: &HashMap<RawFd, Watched>, descriptor| {
            if !touched.iter().any(|(other, _)| *other == descriptor) {
                touched.push((descriptor, wanted_of(watched, descriptor)));
            }
        };
        for descriptor in before.iter().filter_map(descriptor_of) {
            touch(watched, descriptor);
            if let Some(entry) = watched.get_mut(&descriptor) {
                entry.by.retain(|(other, _)| *other != target);
            }
        }
        deadlines.remove(&target);
        for wait in waits {
            let (descriptor, bits) = match *wait {
                Wait::Readable(descriptor) => (descriptor, libc::EPOLLIN as u32),
                Wait::Writable(descriptor) => (descriptor, libc::EPOLLOUT as u32),
                Wait::Until(time) => {
                    let earliest = deadlines.get(&target).map_or(time, |&other| other.min(time));
                    deadlines.insert(target, earliest);
                    continue;
                }
                _ => continue,
            };
            touch(watched, descriptor);
            watched.entry(descriptor).or_default().by.push((target, bits));
        }
        before.clear();
        before.extend_from_slice(waits);
        let mut hopeless = false;
        for (descriptor, had) in touched {
            // What nobody waits for any more stays with the kernel until it has an event: most is waited for again at once.
            let wanted = wanted_of(watched, descriptor);
            if let Some(entry) = watched.get_mut(&descriptor)
                && wanted != had
                && wanted != 0
            {
                *told = told.wrapping_add(1);
                entry.name = u64::from(*told) << 32 | descriptor as u64;
                hopeless |= !self.control(descriptor, wanted, entry.name);
            }
        }
        // A regular file is always ready.
        if hopeless {
            state.make_due(target);
        }
    }

    /// `target` is to be served in a while, and waits for nothing else.
    pub fn put_off(&self, target: Target) {
        let later = self.clock.now() + Duration::from_millis(100);
        self.wait(target, &[Wait::Until(later)]);
    }

    /// Has the kernel look for this; whether it does.
    fn control(&self, descriptor: RawFd, wanted: u32, name: u64) -> bool {
        let mut event = libc::epoll_event {
            events: wanted,
            u64: name,
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

    /// Looks for what is waited for with another `epoll`. A front end may have a descriptor open that was closed here: the old one goes on
    /// looking for it, and nobody can name it any more.
    fn begin_anew(&self, watched: &HashMap<RawFd, Watched>) {
        let Ok(other) = new_epoll() else { return };
        // SAFETY: both are open, and this one is replaced in one step.
        if unsafe { libc::dup3(other.as_raw_fd(), self.epoll.as_raw_fd(), libc::O_CLOEXEC) } < 0 {
            return;
        }
        for (&descriptor, entry) in watched.iter().filter(|(_, entry)| !entry.by.is_empty()) {
            self.control(descriptor, wanted_of(watched, descriptor), entry.name);
        }
    }

    /// Takes what is due; if there is nothing, after waiting for it if that is wanted.
    pub fn next(&self, due: &mut Vec<Target>, patient: bool) -> io::Result<()> {
        due.clear();
        let timeout = {
            let state = self.state();
            let earliest = state.deadlines.values().min().copied();
            match (state.due.is_empty() && patient, earliest) {
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
        let found = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as i32,
                timeout,
            )
        };
        if found < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        let mut state = self.state();
        let state = &mut *state;
        let mut is_stale = false;
        for event in &events[..found as usize] {
            let gone = event.events & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
            let bits = event.events;
            let name = event.u64;
            let descriptor = name as u32 as RawFd;
            let Some(watched) = state.watched.get(&descriptor).filter(|watched| watched.name == name) else {
                is_stale = true;
                continue;
            };
            if watched.by.is_empty() {
                state.watched.remove(&descriptor);
                is_stale |= !self.control(descriptor, 0, name);
                continue;
            }
            for &(target, wanted) in &watched.by {
                if (gone || bits & wanted != 0) && state.is_due.insert(target) {
                    state.due.push_back(target);
                }
            }
        }
        if is_stale {
            self.begin_anew(&state.watched);
        }
        if !state.deadlines.is_empty() {
            let now = self.clock.now();
            let over: Vec<_> = state
                .deadlines
                .iter()
                .filter(|(_, time)| **time <= now)
                .map(|(target, _)| *target)
                .collect();
            for target in over {
                state.deadlines.remove(&target);
                // What is waited for next is news.
                state
                    .waits
                    .entry(target)
                    .or_default()
                    .retain(|wait| !matches!(wait, Wait::Until(_)));
                state.make_due(target);
            }
        }
        due.extend(state.due.drain(..));
        state.is_due.clear();
        Ok(())
    }
}

/// All that is waited for of a descriptor.
fn wanted_of(watched: &HashMap<RawFd, Watched>, descriptor: RawFd) -> u32 {
    let entry = watched.get(&descriptor);
    entry.map_or(0, |entry| entry.by.iter().fold(0, |all, (_, bits)| all | bits))
}

fn new_epoll() -> io::Result<OwnedFd> {
    // SAFETY: the call takes a number, and its result is a descriptor that nobody else has, or none.
    unsafe {
        match libc::epoll_create1(libc::EPOLL_CLOEXEC) {
            ..0 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

fn descriptor_of(wait: &Wait) -> Option<RawFd> {
    match wait {
        Wait::Readable(descriptor) | Wait::Writable(descriptor) => Some(*descriptor),
        _ => None,
    }
}

/// The loop as the doorbell of a device.
#[derive(Clone)]
pub struct Bell {
    pub events: Arc<Events>,
    pub device: usize,
    /// Its queues are served all the time.
    pub polled: bool,
}

impl Doorbell for Bell {
    fn ring(&self, queue: QueueIndex) -> io::Result<()> {
        if !self.polled {
            self.events.make_due(Target::Queue(self.device, queue.0));
        }
        Ok(())
    }

    fn wait(&self, queue: QueueIndex, waits: &[Wait]) {
        self.events.wait(Target::Queue(self.device, queue.0), waits);
    }
}
