//! Who serves a queue, and when: kicks, rounds, and bringing queues to rest. Knows no register.
//!
//! Each queue that the driver enables has a *lane*: its handler, and the [word](crate::virtio::queue) that all threads agree on.
//! Lanes know nothing of each other, so queues are served at the same time and wait for themselves alone.
//!
//! A lane is **stopped** by setting a reason in its word: nobody begins a round from there on, the handler is told, and chains that are
//! out come back. When all that has happened the lane is *still*: the device changes no byte of guest memory for it, and no signal is
//! under way. A pause, a queue's reset, the device's, a bus that does not let it at memory: they differ in the reason alone, and in
//! what is done when it is still.
//!
//! *Lock order* (checked in debug builds, see [`order`]): registers, lane, control face. A lane's lock is its word: who serves has the
//! handler and the queue to itself. What the device has of its own may be locked under any of them, and the used side of a queue comes
//! last, but that a round in which no chain is out needs no lock for it: nobody else has a part in it then. Who does not serve a lane
//! holds its word for a moment, in which nothing is waited for: under any lock. Interrupts are triggered under at most the lane: what
//! they call may kick and mark, and never waits.

mod lane;
#[cfg(all(test, loom))]
mod loom_tests;
pub(crate) mod order;
mod turn;

use std::sync::Arc;
use std::time::Instant;

#[cfg(not(loom))]
use super::queue::is_inside;
use super::queue::{QueueIndex, Stillness, Stop};

pub(crate) use lane::{Around, Lane, Running, Untold};

/// The lanes of a device.
pub(crate) struct Lanes {
    lanes: Box<[Lane]>,
    pub stillness: crate::sync::Arc<Stillness>,
}

impl Lanes {
    pub fn new(queues: usize) -> Self {
        let stillness = crate::sync::Arc::new(Stillness::default());
        Self {
            lanes: (0..queues)
                .map(|_| Lane::new(crate::sync::Arc::clone(&stillness)))
                .collect(),
            stillness,
        }
    }

    pub fn get(&self, index: usize) -> Option<&Lane> {
        self.lanes.get(index)
    }

    pub fn iter(&self) -> impl Iterator<Item = (QueueIndex, &Lane)> {
        // Not zipped the other way round: there may be as many as the index can count.
        self.lanes
            .iter()
            .zip(0..)
            .map(|(lane, index)| (QueueIndex(index), lane))
    }

    /// A round of each marked lane in turn, until none is marked or others are at them.
    pub fn run(&self, around: impl Fn(QueueIndex, &Lane) -> bool) {
        // Not `any`, which would stop at the first.
        while self.iter().filter(|(index, lane)| around(*index, lane)).count() != 0 {}
    }

    pub fn resume(&self, reason: Stop) {
        self.lanes.iter().for_each(|lane| lane.word.resume(reason));
    }

    pub fn are_still(&self) -> bool {
        self.lanes.iter().all(|lane| lane.word.is_still())
    }

    /// Which queues have chains out, and how many.
    pub fn waiting(&self) -> Vec<(QueueIndex, u64)> {
        let busy = self.iter().filter(|(_, lane)| !lane.word.is_still());
        busy.map(|(index, lane)| (index, lane.word.chains())).collect()
    }

    /// Waits until `still` says so, which the lanes' stillness is told of. Not while this thread serves one, or signals. Whether it does.
    #[cfg(not(loom))]
    pub fn wait_for(&self, deadline: Option<Instant>, still: impl Fn() -> bool) -> bool {
        match deadline {
            _ if still() => true,
            _ if is_inside() => false,
            Some(deadline) => self.stillness.wait_until(deadline, still),
            None => {
                self.stillness.wait(still);
                true
            }
        }
    }

    #[cfg(loom)]
    pub fn wait_for(&self, _: Option<Instant>, still: impl Fn() -> bool) -> bool {
        still()
    }
}

/// Shared by who made it and who waits.
pub(crate) type SharedWord = Arc<super::queue::Word>;
