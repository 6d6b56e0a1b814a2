//! What a queue keeps from one round to the next.

use std::mem;

use super::super::{
    available::Available,
    chain::{Pool, Segments},
    shared::Shared,
    whereabouts::Where,
};
use crate::virtio::{Wait, features};

/// For so many chains that are taken a queue has room at least, before it looks for that of those that came back.
const SPARE: u16 = 16;

/// What a queue keeps from one round to the next besides its place in the ring.
#[derive(Default)]
pub(in super::super) struct Hands {
    /// The chain that was looked at last.
    pub segments: Segments,
    /// How many chains were taken away from their rounds.
    pub order: u64,
    /// How many descriptors of a packed ring these took. Wraps.
    pub descriptors: u32,
    /// Room for chains that are taken.
    spare: Pool,
    /// How many there is room for, in `spare`, in those that are out, and among those that came back.
    made: u16,
    /// What the handler waits for since the last round.
    pub waits: Vec<Wait>,
    /// The ring was handed away, and no round has seen it come back.
    pub away: bool,
    /// How many of the chains that are set aside were given back untouched before, and when the last of them was taken. None between
    /// two rounds.
    pub aside_again: usize,
    pub aside_last: u64,
}

impl Hands {
    /// A chain is taken, or waits for one that was: the number by which it is the last of them.
    #[inline(always)]
    pub fn taken(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// Room for another chain, in place of one that is taken. Those that came back are fetched several at a time.
    #[inline]
    pub fn spare(&mut self, shared: &Shared) -> Segments {
        if let Some(segments) = self.spare.pop() {
            return segments;
        }
        if self.made >= SPARE {
            mem::swap(&mut shared.used.lock().pool, &mut self.spare);
        }
        self.spare.pop().unwrap_or_else(|| {
            self.made = self.made.saturating_add(1);
            Segments::default()
        })
    }

    /// Takes back a ring that was handed away and is back. Whether it is still away.
    pub fn is_still_away(&mut self, shared: &Shared, available: &mut Available) -> bool {
        let mut place = shared.away.lock();
        if let Where::Back(next) = *place {
            let kicks = available.kicks();
            let event_idx = shared.features & features::EVENT_IDX != 0;
            *available = Available::new(shared.layout.size, event_idx, shared.is_packed(), next);
            available.set_kicks(kicks);
            self.away = false;
            *place = Where::Here;
        }
        self.away
    }
}
