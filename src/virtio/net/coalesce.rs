//! Coalescing of notifications (virtio 1.2, section 5.1.6.5.8; of a queue by itself since 1.3).

use std::time::Duration;

use super::Coalescing;
use crate::{
    time::Clock,
    virtio::{Round, Wait},
};

/// What a queue has not told its driver of. The driver sees it: notifications are late, and nothing else is.
#[derive(Default)]
pub(super) struct Coalescer {
    packets: u32,
    /// When the first of them may be told at the latest.
    deadline: Option<Duration>,
}

impl Coalescer {
    /// A round ends whose signals were held, after so many packets: the driver is told of them now, or when there are `max_packets`, or
    /// `max_usecs` after the first.
    #[inline]
    pub fn end(&mut self, wanted: Coalescing, clock: Option<&dyn Clock>, packets: u32, round: &mut Round<'_>) {
        round.hold_signals(false);
        match clock {
            Some(clock) if wanted.is_some() => self.end_late(wanted, clock.now(), packets, round),
            // Whatever was held is told with this round.
            _ => *self = Self::default(),
        }
    }

    fn end_late(&mut self, wanted: Coalescing, now: Duration, packets: u32, round: &mut Round<'_>) {
        self.packets = self.packets.saturating_add(packets);
        if self.packets == 0 {
            return;
        }
        let late = Duration::from_micros(wanted.max_usecs.into());
        let deadline = *self.deadline.get_or_insert(now.saturating_add(late));
        // What the driver has set meanwhile counts from now on.
        let deadline = deadline.min(now.saturating_add(late));
        let enough = wanted.max_packets != 0 && self.packets >= wanted.max_packets;
        if enough || now >= deadline {
            *self = Self::default();
        } else {
            self.deadline = Some(deadline);
            round.hold_signals(true);
            round.wait(Wait::Until(deadline));
        }
    }
}
