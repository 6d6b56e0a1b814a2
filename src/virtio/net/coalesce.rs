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
    /// A round begins.
    #[inline]
    pub fn begin(&self, wanted: Coalescing, round: &mut Round<'_>) {
        if wanted.is_some() {
            round.hold_signals(true);
        }
    }

    /// It ends, after so many packets: from none on, `max_packets` of them, or `max_usecs` after the first, whichever comes first.
    #[inline]
    pub fn end(&mut self, wanted: Coalescing, clock: Option<&dyn Clock>, packets: u32, round: &mut Round<'_>) {
        if !wanted.is_some() {
            // Whatever was held is told with this round.
            *self = Self::default();
        } else if let Some(clock) = clock {
            self.end_late(wanted, clock.now(), packets, round);
        } else {
            round.hold_signals(false);
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
            round.hold_signals(false);
        } else {
            self.deadline = Some(deadline);
            round.wait(Wait::Until(deadline));
        }
    }
}
