//! A receive queue (virtio 1.2, sections 5.1.6.3 and 5.1.6.4).

mod incoming;
mod memory;
mod merge;
mod taken;
mod waiting;

use std::{
    mem,
    sync::{
        Arc, OnceLock,
        atomic::Ordering::{Relaxed, SeqCst},
    },
};

use super::{
    Port,
    backlog::frame_buffer,
    coalesce::Coalescer,
    hash::LOOK,
    shared::{Seen, Shared},
    verdict::Verdict,
};
use crate::virtio::{
    Fault, Handle, QueueHandler, QueueIndex, Round,
    queue::{AheadRoom, Chain, OwnedChain, QueueError, Slices},
};

pub use incoming::Incoming;
use waiting::Delivery;

/// As many frames that are not for this queue end a round, which nothing else does.
const OTHERS: u32 = 256;

/// Serves `receiveqN`.
pub(super) struct Receiver {
    shared: Arc<Shared>,
    pair: usize,
    handle: Arc<OnceLock<Handle>>,
    seen: Seen,
    room: Slices,
    ahead: AheadRoom,
    /// What a frame has beyond the first buffer.
    overflow: Box<[u8]>,
    /// Buffers that were gathered for the frame that waits first, and are not enough.
    held: Vec<OwnedChain>,
    coalescer: Coalescer,
}

impl Receiver {
    pub fn new(shared: Arc<Shared>, pair: usize, handle: Arc<OnceLock<Handle>>) -> Self {
        shared.set_receiving(pair, true);
        Self {
            seen: Seen::new(&shared),
            shared,
            pair,
            handle,
            room: Slices::default(),
            ahead: AheadRoom::default(),
            overflow: frame_buffer(),
            held: Vec::new(),
            coalescer: Coalescer::default(),
        }
    }

    /// How many frames the guest has got.
    fn receive(&mut self, port: &dyn Port, round: &mut Round<'_>) -> Result<u32, QueueError> {
        let (mut got, mut others) = (0, 0);
        loop {
            if self.pair >= self.seen.active {
                self.hand_over();
                return Ok(got);
            }
            if self.waits() {
                match self.deliver(round)? {
                    Delivery::Done => {
                        got += 1;
                        continue;
                    }
                    Delivery::NoRoom => return Ok(got),
                }
            }
            if !self.shared.pairs[self.pair].reads {
                return Ok(got);
            }
            let mut room = mem::take(&mut self.ahead);
            let mut frames = Incoming {
                by: self,
                ahead: round.ahead(&mut room, true),
                got,
                others,
                again: false,
                broken: Ok(()),
            };
            port.receive_all(&mut frames);
            let Incoming {
                got: all,
                others: not_here,
                again,
                broken,
                ..
            } = frames;
            (got, others) = (all, not_here);
            self.ahead = room;
            broken?;
            if !again {
                return Ok(got);
            }
        }
    }

    /// Whether there is a frame in the backlog.
    #[inline]
    fn waits(&self) -> bool {
        self.shared.pairs[self.pair].waits.load(SeqCst)
    }

    fn look(&self, pair: usize) {
        if let Some(handle) = self.handle.get() {
            handle.look(QueueIndex(pair as u16 * 2));
        }
    }

    fn count(&self, verdict: Verdict) {
        let counters = &self.shared.counters;
        let counter = match verdict {
            Verdict::Filtered => &counters.filtered,
            _ if !self.seen.settings.link_up => &counters.link_down,
            _ => &counters.dropped,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// Whether a chain can be one of the buffers of a frame: all of it is for the device to write, and "each buffer MUST be at least the
/// size of the struct virtio_net_hdr" (section 5.1.6.3.1).
fn is_buffer(chain: &Chain<'_, '_>, header_len: usize) -> bool {
    chain.readable().is_empty() && chain.writable_len() as usize >= header_len
}

fn start_of(data: &[u8]) -> &[u8] {
    &data[..data.len().min(LOOK)]
}

impl QueueHandler for Receiver {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let shared = Arc::clone(&self.shared);
        let entered = shared.enter(self.pair);
        self.seen.refresh(&shared, entered.generation);
        let coalescing = self.seen.coalescing(QueueIndex(self.pair as u16 * 2));
        // Ports may have something locked while they look for frames.
        round.hold_signals(true);
        let received = self.receive(&*shared.pairs[self.pair].port, round);
        // Before those who wait for this round believe that it is over.
        let published = round.publish();
        drop(entered);
        let got = received?;
        published?;
        self.coalescer.end(coalescing, shared.clock.as_deref(), got, round);
        Ok(())
    }

    /// The frame that they were for is in the backlog.
    fn pause(&mut self) {
        self.held.clear();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.set_receiving(self.pair, false);
    }
}
