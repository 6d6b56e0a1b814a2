//! The handler of a queue that the back end serves: passes kicks on and calls back, and sees that it is served again after the back end has
//! gone.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{Ordering::SeqCst, fence},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    channel::{Ends, wrong},
    link::{Described, Events, user_addresses},
    shared::{Raised, Shared},
};
use crate::{
    memory::Pin,
    virtio::{
        Fault, QueueHandler, QueueIndex, Round, Wait, features,
        queue::{AwayQueue, HandAwayError},
    },
};

pub(super) struct RemoteRing {
    shared: Arc<Shared>,
    index: QueueIndex,
    lent: Option<Lent>,
}

/// The ring, while it is the back end's.
struct Lent {
    away: AwayQueue,
    pin: Pin,
    /// The connection in which the back end has it; zero if it has not.
    era: u64,
    /// It was the back end's before.
    was_up: bool,
    ends: Option<Arc<Ends>>,
    /// Those of the connection before: whoever was told to wait for them is told of others after this round.
    old_ends: Option<Arc<Ends>>,
    /// The avail index of the last kick that was passed on.
    kicked: Option<u16>,
    /// Where both rings were when nothing was in flight: as last seen.
    quiet: u16,
}

impl RemoteRing {
    pub fn new(shared: Arc<Shared>, index: QueueIndex) -> Self {
        shared.started.fetch_add(1, SeqCst);
        let lent = None;
        Self { shared, index, lent }
    }

    fn lend(&mut self, round: &mut Round<'_>) -> Result<bool, Fault> {
        if self.lent.is_some() {
            return Ok(true);
        }
        let away = match round.hand_away() {
            Ok(away) => away,
            Err(HandAwayError::Stopped) => return Ok(false),
            Err(HandAwayError::Ring(error)) => return Err(error.into()),
            Err(error) => return Err(Fault::Elsewhere(error.to_string())),
        };
        self.lent = Some(Lent {
            pin: away.memory().pin(),
            quiet: away.place(),
            away,
            era: 0,
            was_up: false,
            ends: None,
            old_ends: None,
            kicked: None,
        });
        Ok(true)
    }

    /// Has the ring back, at the place that the back end has come to.
    fn take_back(&mut self) {
        let Some(mut lent) = self.lent.take() else { return };
        let events = &self.shared.events[usize::from(self.index.0)];
        let before = lent.away.place();
        if lent.era == self.shared.era() {
            let deadline = Instant::now().checked_add(self.shared.options.drain);
            let deadline = deadline.unwrap_or_else(Instant::now);
            if let Some(place) = lent.stop(&self.shared, self.index.0, deadline) {
                lent.away.came_to(place);
            }
        }
        if lent.was_up && !lent.is_packed() {
            // What cannot be is found by who serves it next.
            let inflight = crate::sync::lock(&self.shared.link).tracks_inflight();
            let _ = lent.note_used() && (inflight || lent.put_in_order().is_some());
        }
        if events.call.take() || lent.away.place() != before {
            lent.away.notifier().signal();
        }
        let place = lent.away.place();
        lent.away.give_back(place);
    }
}

impl Lent {
    fn is_packed(&self) -> bool {
        self.away.features() & features::RING_PACKED != 0
    }

    fn load(&self, address: u64) -> Option<u16> {
        let mut bytes = [0; 2];
        self.pin.read(address, &mut bytes).ok()?;
        Some(u16::from_le_bytes(bytes))
    }

    /// Indices are behind the flags of their rings (virtio 1.2, sections 2.7.6 and 2.7.8).
    fn avail(&self) -> Option<u16> {
        self.load(self.away.layout().driver_area.checked_add(2)?)
    }

    fn used(&self) -> Option<u16> {
        self.load(self.away.layout().device_area.checked_add(2)?)
    }

    /// A split ring says how far it has come. Whether that can be.
    fn note_used(&mut self) -> bool {
        let (Some(used), Some(avail)) = (self.used(), self.avail()) else {
            return false;
        };
        let can_be = avail.wrapping_sub(used) <= self.away.layout().size;
        if can_be {
            self.away.came_to(used);
        }
        can_be
    }

    /// Has the back end stop: where it has come to, if it says so and has used it all in time.
    fn stop(&self, shared: &Shared, index: u16, deadline: Instant) -> Option<u16> {
        let base = shared.with_link(|link| link.stop_ring(index, deadline))?;
        // The link is others' meanwhile.
        match self.drain(base, deadline) {
            Ok(place) => Some(place),
            Err(error) => shared.with_link(|_| Err(error)),
        }
    }

    /// Waits for what the back end has taken up to `base` and not used yet: some answer before.
    fn drain(&self, base: u16, deadline: Instant) -> io::Result<u16> {
        if self.is_packed() {
            return Ok(base);
        }
        loop {
            let used = self.used().ok_or_else(|| wrong("the ring is gone"))?;
            let left = base.wrapping_sub(used);
            if left == 0 {
                return Ok(base);
            }
            if left > self.away.layout().size {
                return Err(wrong(format!(
                    "a ring that was used up to {used} and taken up to {base}"
                )));
            }
            if Instant::now() >= deadline {
                let what = format!("{left} requests of a queue that is stopped have not ended");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Where a ring goes on that another connection had.
    fn recover(&mut self, shared: &Shared) -> Result<(), Fault> {
        if !self.was_up {
            return Ok(());
        }
        if self.is_packed() {
            // Which descriptors were used is not in the ring, and few tables of requests in flight know of packed ones.
            return Err(Fault::Elsewhere(
                "the back end has gone, and a packed ring does not say how far it has come: it is set up anew after a reset".into(),
            ));
        }
        match self.note_used() {
            true if crate::sync::lock(&shared.link).tracks_inflight() => Ok(()),
            true => {
                let _ = self.put_in_order();
                Ok(())
            }
            false => Err(Fault::Elsewhere(
                "the back end has left a ring that was used further than it was filled".into(),
            )),
        }
    }

    /// Has what was not used come next in the available ring of a back end that has gone without saying what it was at, and has used later
    /// requests before earlier ones. It is done if all since nothing was in flight is still in the rings: drivers do not read there what
    /// they have made available.
    fn put_in_order(&mut self) -> Option<()> {
        let layout = self.away.layout();
        let (used, avail) = (self.used()?, self.avail()?);
        let waiting = avail.wrapping_sub(used);
        if waiting == 0 {
            self.quiet = used;
            return Some(());
        }
        if avail.wrapping_sub(self.quiet) > layout.size {
            return None;
        }
        let positions = |from: u16, to: u16| (0..to.wrapping_sub(from)).map(move |at| from.wrapping_add(at));
        let slot = |position: u16| u64::from(position % layout.size);
        let head_at = |position| layout.driver_area.checked_add(4 + 2 * slot(position));
        let mut ended = Vec::new();
        for position in positions(self.quiet, used) {
            ended.push(self.load(layout.device_area.checked_add(4 + 8 * slot(position))?)?);
        }
        let mut heads = Vec::new();
        for position in positions(self.quiet, avail) {
            let head = self.load(head_at(position)?)?;
            match ended.iter().position(|other| *other == head) {
                Some(at) => _ = ended.swap_remove(at),
                None => heads.push(head),
            }
        }
        if !ended.is_empty() || heads.len() != usize::from(waiting) {
            return None;
        }
        for (position, head) in positions(used, avail).zip(heads) {
            self.pin.write(head_at(position)?, &head.to_le_bytes()).ok()?;
        }
        // All from here on is in the rings, and nothing before it is in flight.
        self.quiet = used;
        Some(())
    }

    /// Whether nothing is in flight; noted.
    fn note_quiet(&mut self) {
        let used = self.used();
        // In this order: the used index does not overtake the other.
        fence(SeqCst);
        if let (Some(used), Some(avail)) = (used, self.avail())
            && used == avail
        {
            self.quiet = used;
        }
    }

    /// Passes a kick on, if anything was made available since the last.
    fn kick(&mut self, events: &Events) {
        let avail = if self.is_packed() { None } else { self.avail() };
        if avail.is_none() || avail != self.kicked {
            events.kick.signal();
            self.kicked = avail;
        }
    }
}

impl QueueHandler for RemoteRing {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        if round.is_stopping() {
            self.take_back();
            return Ok(());
        }
        if !self.lend(round)? {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let Some(lent) = &mut self.lent else { return Ok(()) };
        lent.old_ends = None;
        let events = &shared.events[usize::from(self.index.0)];

        // What has come from there.
        let mut called = false;
        if let Some(ends) = lent.ends.as_ref().filter(|_| lent.era == shared.era()) {
            let (unasked, [call, error]) = ends.ready([events.call.descriptor(), events.error.descriptor()]);
            called = call && events.call.take();
            if error && events.error.take() {
                return Err(Fault::Elsewhere("the back end has given the ring up".into()));
            }
            if unasked {
                shared.look();
            }
        }

        // A back end that has gone, or come back; memory that has changed.
        let memory_changed = !lent.away.memory().is_current(&lent.pin);
        if lent.era != shared.era() || memory_changed {
            if memory_changed {
                lent.pin = lent.away.memory().pin();
            }
            if lent.away.memory().is_translated() {
                return Err(Fault::Host(
                    "memory behind an IOMMU is not shared with a back end".into(),
                ));
            }
            let up = lent.era == shared.era();
            let keeps = up && memory_changed && {
                // A ring that stays where it is goes on.
                let layout = lent.away.layout();
                let features = lent.away.features();
                let known = shared.with_link(|link| {
                    let regions = (shared.regions)().map_err(io::Error::other)?;
                    let before = link.knows_ring(&layout, features);
                    let now = user_addresses(&regions, &layout, features);
                    if before != now {
                        return Ok(false);
                    }
                    link.set_memory(regions)?;
                    Ok(true)
                });
                known == Some(true)
            };
            if !keeps {
                if lent.era == shared.era() {
                    // To be described anew.
                    let deadline = Instant::now()
                        .checked_add(shared.options.patience)
                        .unwrap_or_else(Instant::now);
                    let index = self.index.0;
                    if let Some(place) = lent.stop(&shared, index, deadline) {
                        lent.away.came_to(place);
                    }
                }
                lent.recover(&shared)?;
                let ring = Described {
                    index: self.index.0,
                    layout: lent.away.layout(),
                    features: lent.away.features(),
                    place: lent.away.place(),
                };
                // What fails on the way may have been served for a while.
                lent.was_up |= !lent.is_packed();
                match shared.raise(ring)? {
                    Raised::Up(era, ends) => {
                        lent.old_ends = lent.ends.replace(ends);
                        lent.era = era;
                        // What was said to the one before, and by it, may have been lost with it.
                        lent.kicked = None;
                        called = true;
                        lent.was_up = true;
                    }
                    Raised::Later(after) => {
                        lent.old_ends = lent.ends.take();
                        if let Some(clock) = &shared.clock {
                            round.wait(Wait::Until(clock.now().saturating_add(after)));
                        }
                        return Ok(());
                    }
                }
            }
        }

        lent.kick(events);
        if called {
            if !lent.is_packed() {
                lent.note_used();
            }
            lent.away.notifier().signal();
        }
        if !lent.is_packed() {
            lent.note_quiet();
        }
        round.wait(Wait::Readable(events.call.descriptor()));
        round.wait(Wait::Readable(events.error.descriptor()));
        if let Some(ends) = &lent.ends {
            round.wait(Wait::Readable(ends.main.as_raw_fd()));
            if let Some(back) = &ends.back {
                round.wait(Wait::Readable(back.as_raw_fd()));
            }
        }
        Ok(())
    }

    fn pause(&mut self) {
        self.take_back();
    }
}

impl Drop for RemoteRing {
    fn drop(&mut self) {
        self.take_back();
        self.shared.started.fetch_sub(1, SeqCst);
    }
}
