//! Save and restore of a queue.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Queue, QueueError, QueueIndex, QueueLayout, Shared, VirtioInterrupt,
    chain::{MAX_SEGMENTS, Segments},
    in_order::{InOrder, Kept},
    spot::Spot,
    used::Returned,
    view::View,
};
use crate::{
    memory::{Memory, Segment},
    virtio::features,
};

/// A queue's state as plain data. Rings themselves are in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Where the queue is.
    pub layout: QueueLayout,
    /// The features that were negotiated for the device.
    pub features: u64,
    /// Index of the next entry of the available ring. In a packed ring: offset of the next descriptor that will be available, and the
    /// wrap counter there in bit 15.
    pub next_avail: u16,
    /// Index of the next entry of the used ring. In a packed ring: offset and wrap counter of the next used descriptor.
    pub next_used: u16,
    /// Heads taken off the available ring that are not used yet, in the order in which they were taken. They are handed to
    /// the device again after a restore, in that order: to a stream of bytes, it matters.
    pub in_flight: Vec<u16>,
    /// In a packed ring, what each of these is: its descriptors may be overwritten. Of a request that has not come back when the state
    /// is saved it is not known; such a state is refused.
    pub chains: Vec<ChainState>,
    /// Of those in flight, which have ended and wait for earlier ones: with
    /// [`IN_ORDER`](crate::virtio::features::IN_ORDER), they are used after these and not handed out again.
    pub ended: Vec<Ended>,
    /// A signal that was not delivered.
    pub signal_owed: bool,
}

/// A request in flight in a packed ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainState {
    /// How many descriptors of the ring it takes.
    pub descriptors: u16,
    /// What the driver wrote for the device; nothing of one that has [ended](QueueState::ended).
    pub readable: Vec<Segment>,
    /// Where the device may write; nothing of one that has ended.
    pub writable: Vec<Segment>,
}

/// A request that has ended before an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its head.
    pub head: u16,
    /// How many bytes were written into it.
    pub written: u32,
}

/// A saved queue is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueStateError {
    /// The layout would not be accepted from a driver either.
    #[error(transparent)]
    Layout(#[from] QueueError),
    /// Indices and requests in flight contradict each other.
    #[error(
        "{in_flight} distinct heads in flight between used {next_used} and avail {next_avail}: \
         next_avail - next_used of them are needed, each below the queue size"
    )]
    InFlight {
        /// How many distinct valid heads the state has.
        in_flight: usize,
        /// Its index into the used ring.
        next_used: u16,
        /// Its index into the available ring.
        next_avail: u16,
    },
    /// A place in a packed ring is beyond its end.
    #[error(
        "place {place:#x} in a packed ring of {size}: an offset below the size, and the wrap counter in bit 15, is possible"
    )]
    Place {
        /// What the state says.
        place: u16,
        /// The queue size.
        size: u16,
    },
    /// What requests in flight are contradicts the format of the ring, or its places.
    #[error(
        "{chains} requests with {descriptors} descriptors are described: of a packed ring all {in_flight} in flight are needed, \
         with the {needed} descriptors between its places, each of a length that a driver can make; of a split one none"
    )]
    Chains {
        /// How many the state describes.
        chains: usize,
        /// Their descriptors together.
        descriptors: u64,
        /// How many are in flight.
        in_flight: usize,
        /// How many descriptors there are between the places.
        needed: u32,
    },
    /// A request has ended that is not in flight, or is the first that is, or twice; or the queue is not one that keeps the order.
    #[error(
        "head {0} has ended out of order: one in flight after another that has not, of a queue in order, is possible"
    )]
    Ended(u16),
}

impl Queue {
    /// The queue's state, for [`restore`](Self::restore). What is in flight is in it as long as it has not been completed: a queue that
    /// is to be saved is brought to rest before. Of a packed ring, a state with requests that have not come back cannot be restored.
    pub fn save(&self) -> QueueState {
        let Shared {
            index: _,
            layout,
            features,
            // By the features.
            plain: _,
            taking: _,
            // Plugged in.
            memory: _,
            interrupt: _,
            word: _,
            tracker: _,
            used,
            // In the heads in flight.
            places: _,
            spilled: _,
            ended: _,
            // When it is still, it is back: see below.
            away: _,
            returned: _,
            closed: _,
            stranded: _,
            // A count of this process.
            ..
        } = &*self.shared;
        let used = used.lock();
        let in_flight = self.shared.in_flight();
        let kept = |head| {
            used.order
                .iter()
                .flat_map(InOrder::iter)
                .find(move |kept| kept.head == head)
        };
        let ended = in_flight.iter().filter_map(|&head| {
            let written = kept(head)?.written?;
            Some(Ended { head, written })
        });
        let chain = |head: u16| {
            let returned = used.resubmit.iter().find(|returned| returned.head == head);
            match returned.and_then(|returned| returned.chain.as_ref()) {
                Some((outline, segments)) => Some(ChainState {
                    descriptors: outline.descriptors,
                    readable: segments.readable(outline).to_vec(),
                    writable: segments.writable(outline).to_vec(),
                }),
                None => kept(head).filter(|kept| kept.written.is_some()).map(|kept| ChainState {
                    descriptors: kept.descriptors,
                    ..ChainState::default()
                }),
            }
        };
        let chains = match self.shared.is_packed() {
            false => Vec::new(),
            true => in_flight.iter().filter_map(|&head| chain(head)).collect(),
        };
        QueueState {
            layout: *layout,
            features: *features,
            next_avail: self.next_avail(),
            next_used: used.ring.next(),
            ended: ended.collect(),
            chains,
            in_flight,
            signal_owed: self.shared.owes() || self.shared.holds(),
        }
    }

    /// The queue as it was saved. What was in flight is found by [`Round::next`](super::Round::next) first; counters start at zero.
    ///
    /// # Errors
    /// The state contradicts itself, or the layout would not be accepted from a driver.
    pub fn restore(
        index: QueueIndex,
        max_size: u16,
        state: &QueueState,
        memory: &Memory,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Result<Self, QueueStateError> {
        let &QueueState {
            layout,
            features,
            next_avail,
            next_used,
            ref in_flight,
            ref chains,
            ended: _,
            signal_owed,
        } = state;
        let packed = features & features::RING_PACKED != 0;
        let view = View::new(memory.pin(), &layout, max_size, packed)?;
        let shared = Shared::new(index, layout, features, (view, next_used), memory.clone(), interrupt);
        for (place, &head) in (1..).zip(in_flight.iter().filter(|&&head| head < layout.size)) {
            shared.places[usize::from(head)].store(place, Ordering::SeqCst);
        }
        let distinct = shared.in_flight().len();
        let mismatch = !packed && distinct != usize::from(next_avail.wrapping_sub(next_used));
        if distinct != in_flight.len() || mismatch {
            return Err(QueueStateError::InFlight {
                in_flight: distinct,
                next_used,
                next_avail,
            });
        }
        let ended = check_ended(state)?;
        let found = check_chains(state, &ended)?;
        let descriptors = |at: usize| chains.get(at).map_or(0, |chain| chain.descriptors);
        let kept = in_flight.iter().zip(&ended).enumerate();
        let kept = kept.map(|(at, (&head, &written))| Kept {
            head,
            descriptors: descriptors(at),
            written,
        });
        let spilled = found.iter().flatten().map(|(outline, _)| outline.spilled()).sum();
        let resubmit = in_flight.iter().zip(&ended).zip(found);
        let resubmit = resubmit.filter(|((_, written), _)| written.is_none());
        let resubmit: Vec<_> = resubmit.map(|((&head, _), chain)| Returned { head, chain }).collect();
        shared.returned.store(!resubmit.is_empty(), Ordering::SeqCst);
        shared.spilled.store(spilled, Ordering::SeqCst);
        let mut used = shared.used.lock();
        if let Some(order) = &mut used.order {
            *order = InOrder::new(kept);
        }
        used.resubmit = resubmit;
        drop(used);
        shared.owe(signal_owed);
        let mut queue = Self::with_shared(shared, next_avail);
        queue.hands.order = distinct as u64;
        queue.hands.descriptors = chains.iter().map(|chain| u32::from(chain.descriptors)).sum();
        Ok(queue)
    }
}

/// With how many bytes each of those in flight has ended, if it has.
fn check_ended(state: &QueueState) -> Result<Vec<Option<u32>>, QueueStateError> {
    let mut all = vec![None; state.in_flight.len()];
    for &Ended { head, written } in &state.ended {
        let at = state.in_flight.iter().position(|&other| other == head);
        let possible = at.filter(|&at| at != 0 && all[at].is_none() && state.features & features::IN_ORDER != 0);
        match possible {
            Some(at) => all[at] = Some(written),
            None => return Err(QueueStateError::Ended(head)),
        }
    }
    Ok(all)
}

type Found = Option<(super::chain::Outline, Segments)>;

/// What each of those in flight is, in a packed ring, unless it has ended.
fn check_chains(state: &QueueState, ended: &[Option<u32>]) -> Result<Vec<Found>, QueueStateError> {
    let QueueState {
        layout,
        next_avail,
        next_used,
        in_flight,
        chains,
        ..
    } = state;
    let descriptors = chains.iter().map(|chain| u64::from(chain.descriptors)).sum();
    let contradiction = |needed| QueueStateError::Chains {
        chains: chains.len(),
        descriptors,
        in_flight: in_flight.len(),
        needed,
    };
    if state.features & features::RING_PACKED == 0 {
        let nothing = in_flight.iter().map(|_| None).collect();
        return if chains.is_empty() {
            Ok(nothing)
        } else {
            Err(contradiction(0))
        };
    }
    let size = layout.size;
    for &place in [next_avail, next_used] {
        if Spot::new(place).slot >= size {
            return Err(QueueStateError::Place { place, size });
        }
    }
    let needed = Spot::new(*next_used).distance(Spot::new(*next_avail), size);
    if chains.len() != in_flight.len() || descriptors != u64::from(needed) || needed > size.into() {
        return Err(contradiction(needed));
    }
    let mut spilled = 0;
    let found = in_flight.iter().zip(chains).zip(ended).map(|((&head, chain), ended)| {
        let ChainState {
            descriptors,
            readable,
            writable,
        } = chain;
        if *descriptors == 0 || ended.is_some() {
            let empty = readable.is_empty() && writable.is_empty();
            return if *descriptors != 0 && empty {
                Ok(None)
            } else {
                Err(contradiction(needed))
            };
        }
        let found = Segments::restored((head, *descriptors), readable, writable, size);
        let found = found.ok_or_else(|| contradiction(needed))?;
        spilled += found.0.spilled();
        match spilled <= MAX_SEGMENTS {
            true => Ok(Some(found)),
            false => Err(contradiction(needed)),
        }
    });
    found.collect()
}
