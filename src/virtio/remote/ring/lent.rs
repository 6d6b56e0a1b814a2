//! A ring while it is the back end's: what can be seen of it in guest memory.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{Ordering::SeqCst, fence},
    },
};

use super::super::{
    event::{Ends, Events},
    peer::Described,
};
use crate::{
    memory::Pin,
    virtio::{features, queue::AwayQueue},
};

pub(super) struct Lent {
    pub away: AwayQueue,
    pub pin: Pin,
    /// The connection in which the back end has it; zero if it has not.
    pub era: u64,
    /// It was the back end's before.
    pub was_up: bool,
    /// There was a table of requests in flight then.
    pub was_tracked: bool,
    pub ends: Option<Arc<Ends>>,
    /// Those of the connection before: whoever was told to wait for them is told of others after this round.
    pub old_ends: Option<Arc<Ends>>,
    /// The avail index of the last kick that was passed on.
    pub kicked: Option<u16>,
    /// Where both rings were when nothing was in flight: as last seen.
    quiet: u16,
}

impl Lent {
    pub fn new(away: AwayQueue) -> Self {
        Self {
            pin: away.memory().pin(),
            quiet: away.place(),
            away,
            era: 0,
            was_up: false,
            was_tracked: false,
            ends: None,
            old_ends: None,
            kicked: None,
        }
    }

    /// As the back end is told of it.
    pub fn described(&self) -> Described {
        Described {
            index: self.away.index().0,
            layout: self.away.layout(),
            features: self.away.features(),
            place: self.away.place(),
        }
    }

    /// The back end has given it back at this place: nothing is in flight.
    pub fn is_back(&mut self, place: u16) {
        if place != self.away.place() {
            // Who called for it may be gone before that is heard.
            self.away.notifier().signal();
        }
        self.away.came_to(place);
        (self.era, self.was_up, self.quiet) = (0, false, place);
    }

    pub fn is_packed(&self) -> bool {
        self.described().is_packed()
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

    pub fn used(&self) -> Option<u16> {
        self.load(self.away.layout().device_area.checked_add(2)?)
    }

    /// How far a split ring has come, by what it says; if that can be.
    fn come_to(&self) -> Option<u16> {
        let used = self.used()?;
        let waiting = self.avail()?.wrapping_sub(used);
        (waiting <= self.away.layout().size).then_some(used)
    }

    /// Whether what a split ring says can be: it was used no further than it was filled.
    pub fn can_be(&self) -> bool {
        self.come_to().is_some()
    }

    /// Notes how far a split ring has come. Whether that can be.
    pub fn note_used(&mut self) -> bool {
        let used = self.come_to();
        if let Some(used) = used {
            self.away.came_to(used);
        }
        used.is_some()
    }

    /// Has what was not used come next in the available ring of a back end that has gone without saying what it was at, and has used later
    /// requests before earlier ones. It is done if all since nothing was in flight is still in the rings: drivers do not read there what
    /// they have made available. To whoever goes on by a table of what was in flight it makes no difference: that comes first, and what
    /// was not taken stays where it is. But the table does not move with the device.
    pub fn put_in_order(&mut self) -> Option<()> {
        // Where all is used in its order, it is so; and entries of the used ring may be skipped (virtio 1.2, section 2.7.9).
        if self.away.features() & features::IN_ORDER != 0 {
            return Some(());
        }
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
        // How often each head was used.
        let mut ended = HashMap::new();
        for position in positions(self.quiet, used) {
            let head = self.load(layout.device_area.checked_add(4 + 8 * slot(position))?)?;
            *ended.entry(head).or_insert(0_u32) += 1;
        }
        let mut heads = Vec::new();
        for position in positions(self.quiet, avail) {
            let head = self.load(head_at(position)?)?;
            match ended.get_mut(&head) {
                Some(times @ 1..) => *times -= 1,
                _ => heads.push(head),
            }
        }
        // As many are left as are missing, if each that was used had been made available.
        if heads.len() != usize::from(waiting) {
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
    pub fn note_quiet(&mut self) {
        let used = self.used();
        // In this order: the used index does not overtake the other.
        fence(SeqCst);
        if let (Some(used), Some(avail)) = (used, self.avail())
            && used == avail
        {
            self.quiet = used;
        }
    }

    /// Passes a kick on. One that may be none is passed on if anything was made available since the last; of one that is, the index does not
    /// say: as many requests may have gone by as it counts.
    pub fn kick(&mut self, events: &Events, may_be_none: bool) {
        let avail = if self.is_packed() { None } else { self.avail() };
        if !may_be_none || avail.is_none() || avail != self.kicked {
            events.kick();
            self.kicked = avail;
        }
    }
}
