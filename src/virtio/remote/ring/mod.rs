//! The handler of a queue that the back end serves: passes kicks on and calls back, and sees that it is served again after the back end has
//! gone.

mod lent;
mod ours;

use std::{
    io,
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use super::{
    peer::{after, timed_out, wrong},
    shared::{Raised, Shared},
};
use crate::virtio::{Fault, QueueHandler, QueueIndex, Round, Wait, queue::HandAwayError};
use lent::Lent;

pub(super) use ours::OurRing;

pub(super) struct RemoteRing {
    shared: Arc<Shared>,
    index: QueueIndex,
    lent: Option<Lent>,
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
        let lent = Lent::new(away);
        // Whoever had it last.
        if !lent.is_packed() && !lent.can_be() {
            return Err(used_too_far());
        }
        self.lent = Some(lent);
        Ok(true)
    }

    /// Has the ring back, at the place that the back end has come to.
    fn take_back(&mut self) {
        let Some(mut lent) = self.lent.take() else { return };
        let events = &self.shared.events[usize::from(self.index.0)];
        let before = lent.away.place();
        let mut said = None;
        if lent.era == self.shared.era() {
            said = stop(&lent, &self.shared, after(self.shared.options.drain));
        }
        if let Some(place) = said {
            lent.away.came_to(place);
        }
        if lent.was_up && !lent.is_packed() {
            // What cannot be is found by who serves it next.
            let _ = lent.note_used() && lent.put_in_order().is_some();
        }
        if events.call.take() || lent.away.place() != before {
            lent.away.notifier().signal();
        }
        let is_lost = said.is_none() && lent.is_packed() && lent.was_up && !lent.was_tracked;
        let place = lent.away.place();
        lent.away.give_back(place);
        if is_lost && let Some(handle) = self.shared.handle.get() {
            handle.fail(PACKED_IS_LOST);
        }
    }

    /// Sees to a back end that has gone or come back, and to memory that has changed. Whether the ring was handed over anew; `None`:
    /// nobody has it for now.
    fn see_that_it_is_served(lent: &mut Lent, shared: &Shared, round: &mut Round<'_>) -> Result<Option<bool>, Fault> {
        let memory_changed = !lent.away.memory().is_current(&lent.pin);
        if lent.era == shared.era() && !memory_changed {
            return Ok(Some(false));
        }
        if lent.away.memory().is_translated() {
            return Err(Fault::Host(
                "memory behind an IOMMU is not shared with a back end".into(),
            ));
        }
        // The map of before lives until the back end knows of the one that is now.
        let now = lent.away.memory().pin();
        let _before = std::mem::replace(&mut lent.pin, now);
        if lent.era == shared.era() && shared.keep_ring(&lent.described()) {
            return Ok(Some(false));
        }
        if lent.era == shared.era() {
            // To be described anew.
            let deadline = after(shared.options.patience);
            if let Some(place) = stop(lent, shared, deadline) {
                lent.is_back(place);
            }
        }
        recover(lent)?;
        // What was said before is not of the ring as it is handed over now.
        shared.events[usize::from(lent.away.index().0)].error.take();
        let raised = shared.raise(lent.described())?;
        lent.was_tracked = crate::sync::lock(&shared.link).tracks_inflight();
        match raised {
            Raised::Up(era, ends) => {
                lent.old_ends = lent.ends.replace(ends);
                lent.era = era;
                // What was said to the one before, and by it, may have been lost with it.
                lent.kicked = None;
                lent.was_up = true;
                Ok(Some(true))
            }
            Raised::Later { after, begun } => {
                // A table may say of a packed one, too, how far it has come.
                lent.was_up |= begun && !(lent.is_packed() && lent.was_tracked);
                lent.old_ends = lent.ends.take();
                wait_for(shared, after, round);
                Ok(None)
            }
        }
    }
}

/// Has the ring looked at again after so long, if there is a clock.
fn wait_for(shared: &Shared, time: Duration, round: &mut Round<'_>) {
    if let Some(clock) = &shared.clock {
        round.wait(Wait::Until(clock.now().saturating_add(time)));
    }
}

/// Has the back end stop: where it has come to, if it says so and has used it all in time.
fn stop(lent: &Lent, shared: &Shared, deadline: Instant) -> Option<u16> {
    let base = shared.with_link(|link| link.stop_ring(lent.away.index().0, deadline))?;
    // The link is others' meanwhile.
    match drain(lent, base, deadline) {
        Ok(place) => Some(place),
        Err(error) => shared.with_link(|_| Err(error)),
    }
}

/// Waits for what the back end has taken up to `base` and not used yet: some answer before.
fn drain(lent: &Lent, base: u16, deadline: Instant) -> io::Result<u16> {
    if lent.is_packed() {
        return Ok(base);
    }
    loop {
        let used = lent.used().ok_or_else(|| wrong("the ring is gone"))?;
        let left = base.wrapping_sub(used);
        if left == 0 {
            return Ok(base);
        }
        if left > lent.away.layout().size {
            return Err(wrong(format!(
                "a ring that was used up to {used} and taken up to {base}"
            )));
        }
        if Instant::now() >= deadline {
            return Err(timed_out(format!(
                "{left} requests of a queue that is stopped have not ended"
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

const PACKED_IS_LOST: &str =
    "the back end has gone, and a packed ring does not say how far it has come: it is set up anew after a reset";

fn used_too_far() -> Fault {
    Fault::Elsewhere("the back end has left a ring that was used further than it was filled".into())
}

/// Where a ring goes on that another connection had.
fn recover(lent: &mut Lent) -> Result<(), Fault> {
    if !lent.was_up {
        return Ok(());
    }
    if lent.is_packed() {
        // Which descriptors were used is not in the ring, and few tables of requests in flight know of packed ones.
        return Err(Fault::Elsewhere(PACKED_IS_LOST.into()));
    }
    if !lent.note_used() {
        return Err(used_too_far());
    }
    let _ = lent.put_in_order();
    Ok(())
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
        let (mut called, mut is_told) = (false, false);
        if let Some(ends) = lent.ends.as_ref().filter(|_| lent.era == shared.era()) {
            let (unasked, [call, error]) = ends.ready([events.call.descriptor(), events.error.descriptor()]);
            called = call && events.call.take();
            if error && events.error.take() {
                return Err(Fault::Elsewhere("the back end has given the ring up".into()));
            }
            is_told = called || unasked;
            let looks = unasked || shared.config_changed.load(SeqCst);
            if looks && shared.look() {
                wait_for(&shared, shared.options.retry, round);
            }
        }

        let Some(is_new) = Self::see_that_it_is_served(lent, &shared, round)? else {
            return Ok(());
        };
        lent.kick(events, is_told);
        if called || is_new {
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
            for end in ends.descriptors() {
                round.wait(Wait::Readable(end));
            }
        }
        Ok(())
    }

    fn pause(&mut self) {
        self.take_back();
        // What was said before is told by whoever goes on with the device.
        if self.shared.is_connected() {
            self.shared.look();
        }
    }
}

impl Drop for RemoteRing {
    fn drop(&mut self) {
        self.take_back();
        self.shared.started.fetch_sub(1, SeqCst);
    }
}
