//! Split virtqueues (virtio 1.2, section 2.7), contained: whatever the driver writes into a ring, the device sees a valid
//! chain, nothing, or a [`QueueError`].
//!
//! The ring's indices and notification state are `virtio-queue`'s; walking descriptors, the checks and the signal are here.

mod buffers;
mod chain;

use std::{
    fmt, io, mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

pub use buffers::{Reader, Writer};
pub use chain::{Chain, Segment};

use super::features;

/// Which queue of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueIndex(pub u16);

/// How the driver broke the rules of a virtqueue or of a request on it. The device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The queue size is zero, no power of two or above the maximum.
    #[error("queue size {size}: a power of two up to {max} is needed")]
    Size {
        /// What the driver asked for.
        size: u16,
        /// What the device offers.
        max: u16,
    },
    /// A part of the ring is misaligned.
    #[error("the {area} area at {address:#x} is not aligned to {align} bytes")]
    Alignment {
        /// `descriptor`, `driver` or `device`.
        area: &'static str,
        /// Where the driver put it.
        address: u64,
        /// What the specification asks for.
        align: u64,
    },
    /// A part of the ring, an indirect table or a buffer is not in guest memory.
    #[error("{len} bytes at {address:#x} are not all in guest memory")]
    Outside {
        /// First address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// `avail.idx` runs further ahead of what was seen than the queue is long.
    #[error("avail.idx is {ahead} ahead of the device, in a queue of {size}")]
    AvailIndex {
        /// How far.
        ahead: u16,
        /// The queue size.
        size: u16,
    },
    /// A head or a `next` names a descriptor beyond its table.
    #[error("descriptor {index} named in a table of {len}")]
    DescriptorIndex {
        /// What was named.
        index: u16,
        /// How long the table is.
        len: u16,
    },
    /// A head was made available again before it was used.
    #[error("head {0} is in flight already")]
    InFlight(u16),
    /// A chain has more descriptors than the queue, or a loop.
    #[error("a chain is longer than the queue of {0}")]
    ChainTooLong(u16),
    /// The lengths of a chain add up to 2^32 bytes or more.
    #[error("a chain describes 4 GiB or more")]
    ChainTooLarge,
    /// A device-readable descriptor comes after a device-writable one.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// An indirect table where there must be none, or of a length that cannot be.
    #[error("bad indirect descriptor: {0}")]
    Indirect(&'static str),
    /// The request in a chain is not what the device type prescribes.
    #[error("malformed request: {0}")]
    Request(&'static str),
    /// A device read or wrote beyond what the chain gave.
    #[error("the chain is {0} bytes short")]
    Short(usize),
}

/// What is left after a device has processed a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Round {
    /// Nothing is available, and the driver will kick when there is.
    Drained,
    /// The budget is used up and more may be available; no kick will announce it.
    More,
}

/// Where a queue says that it has used buffers: made by the transport, which knows the status register, the line or the
/// vector.
///
/// `Err` means that the driver was not told; the queue tells again with its next call.
pub trait VirtioInterrupt: Send + Sync {
    /// Buffers were used on these queues: sets the status that the driver will look for, then interrupts it once.
    ///
    /// # Errors
    /// The interrupt was not delivered; the status stands.
    fn used(&self, queues: &[QueueIndex]) -> io::Result<()>;

    /// The device configuration changed, or the device needs a reset.
    ///
    /// # Errors
    /// As [`used`](Self::used).
    fn config_changed(&self) -> io::Result<()>;

    /// The driver is ready: from here to the next [`reset`](Self::reset), and only there, events are for it. An event that
    /// was decided on before a reset and comes after it is dropped. The transport's locks are held: this calls no line.
    fn ready(&self) {}

    /// The device was reset: nothing is pending any more. The transport's locks are held: the line hears of it when
    /// [`settle`](Self::settle) is called.
    fn reset(&self);

    /// Tells the line what it should have heard and has not. Called after a reset and with every kick, without a lock.
    fn settle(&self) {}
}

/// Where a queue is and how long it is, as the driver programmed it (virtio 1.2, section 2.7; the areas are also known as
/// descriptor table, available ring and used ring).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Number of descriptors.
    pub size: u16,
    /// Guest physical address of the descriptor area.
    pub descriptor_area: u64,
    /// Guest physical address of the driver area.
    pub driver_area: u64,
    /// Guest physical address of the device area.
    pub device_area: u64,
}

/// What a queue has done since it was set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Chains that were completed.
    pub completed: u64,
    /// Signals that were delivered.
    pub signalled: u64,
    /// Completions that the driver did not want to hear of.
    pub suppressed: u64,
    /// Signals that the transport's line refused; each was tried again.
    pub failed: u64,
}

/// A queue's state as plain data. Rings themselves are in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Where the queue is.
    pub layout: QueueLayout,
    /// The features that were negotiated for the device.
    pub features: u64,
    /// Index of the next entry of the available ring.
    pub next_avail: u16,
    /// Index of the next entry of the used ring.
    pub next_used: u16,
    /// Heads taken off the available ring that are not used yet, in the order in which they were taken. They are handed to
    /// the device again after a restore, in that order: to a stream of bytes, it matters.
    pub in_flight: Vec<u16>,
    /// A signal that was not delivered.
    pub signal_owed: bool,
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
}

/// One virtqueue in use: a frozen copy of what the driver programmed, and the device's progress in it.
///
/// *For device authors*: [`serve`](Self::serve) is all that a device needs which answers each request at once. One that
/// answers later takes chains with [`pop`](Self::pop) and gives each back to [`complete`](Self::complete), in any order.
/// A chain that is dropped instead stays in flight until the device is reset.
///
/// *Cost*: no lock and, once warm, no allocation; one signal at most for each completion, none that the driver did not
/// ask for.
pub struct Queue {
    // Configured.
    index: QueueIndex,
    features: u64,
    /// Distinguishes this queue from every other of the process, also from one that has its index after a reset.
    identity: u64,
    // Plugged in.
    interrupt: Arc<dyn VirtioInterrupt>,
    // What the guest moves.
    ring: virtio_queue::Queue,
    /// `avail.idx` when it was last read: up to it, entries are there for the taking.
    avail_seen: u16,
    in_flight: InFlight,
    /// Heads that were in flight when the state was saved, the next one last.
    resubmit: Vec<u16>,
    /// The driver is owed a signal that was refused.
    signal_owed: bool,
    counters: QueueCounters,
    /// Buffers of completed chains, for the next ones.
    spare: Vec<Vec<Segment>>,
}

/// The request that brings a round to so many bytes is its last: who waits for the device, to reset it, say, waits no
/// longer than for these.
const ROUND_BYTES: u64 = 16 << 20;

/// How many descriptor lists a queue keeps for reuse. More than a device has in flight at a time is of no use.
const SPARE_LISTS: usize = 64;

/// The identity of the next queue. Nothing else hangs on it, so it is a counter and no state.
static IDENTITIES: AtomicU64 = AtomicU64::new(0);

impl Queue {
    /// A queue at `layout` in `memory`, of a device whose driver accepted `features`. `max_size` is what was offered.
    ///
    /// # Errors
    /// The layout breaks the specification (section 2.7) or is not in guest memory.
    pub fn new<M: GuestMemory>(
        index: QueueIndex,
        max_size: u16,
        layout: QueueLayout,
        features: u64,
        memory: &M,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Result<Self, QueueError> {
        check_layout(&layout, max_size, memory)?;
        let QueueLayout {
            size,
            descriptor_area,
            driver_area,
            device_area,
        } = layout;
        let refused = |_| QueueError::Size { size, max: max_size };
        let mut ring = virtio_queue::Queue::new(max_size).map_err(refused)?;
        ring.try_set_size(size).map_err(refused)?;
        // Aligned, as checked above: these do not fail.
        let _ = ring.try_set_desc_table_address(GuestAddress(descriptor_area));
        let _ = ring.try_set_avail_ring_address(GuestAddress(driver_area));
        let _ = ring.try_set_used_ring_address(GuestAddress(device_area));
        ring.set_event_idx(features & features::EVENT_IDX != 0);
        ring.set_ready(true);
        Ok(Self {
            index,
            features,
            identity: IDENTITIES.fetch_add(1, Ordering::Relaxed),
            interrupt,
            ring,
            avail_seen: 0,
            in_flight: InFlight::new(size),
            resubmit: Vec::new(),
            signal_owed: false,
            counters: QueueCounters::default(),
            spare: Vec::new(),
        })
    }

    /// The queue's index in its device.
    pub fn index(&self) -> QueueIndex {
        self.index
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// What this queue has done so far.
    pub fn counters(&self) -> QueueCounters {
        self.counters
    }

    /// Handles what is available, at most a queue's length of it or the request that completes 16 MiB, and arranges for
    /// the next kick. To find nothing where something was announced counts as well: a driver that takes back what it
    /// offers does not hold the round.
    ///
    /// `handle` answers one request and returns how many bytes it wrote into the chain; it is completed and, if the
    /// driver wants to hear of it, signalled before the next is taken. `Err` from it ends the round: the device is broken.
    ///
    /// # Errors
    /// The ring or a request breaks the rules.
    pub fn serve<M: GuestMemory>(
        &mut self,
        memory: &M,
        mut handle: impl FnMut(&Chain, &M) -> Result<u32, QueueError>,
    ) -> Result<Round, QueueError> {
        self.signal_again();
        let (mut budget, mut bytes) = (self.size(), 0);
        while budget != 0 {
            self.suppress_kicks(memory)?;
            while let Some(chain) = self.pop(memory)? {
                bytes += u64::from(chain.readable_len()) + u64::from(chain.writable_len());
                let written = handle(&chain, memory)?;
                self.complete(memory, chain, written)?;
                budget -= 1;
                if budget == 0 || bytes >= ROUND_BYTES {
                    return Ok(Round::More);
                }
            }
            if self.expect_kicks(memory)? == Round::Drained {
                return Ok(Round::Drained);
            }
            budget -= 1;
        }
        Ok(Round::More)
    }

    /// Takes the next available chain, if there is one.
    ///
    /// # Errors
    /// The ring or the chain breaks the rules; the chain is not taken.
    pub fn pop<M: GuestMemory>(&mut self, memory: &M) -> Result<Option<Chain>, QueueError> {
        if let Some(&head) = self.resubmit.last() {
            let chain = self.walk(memory, head)?;
            self.resubmit.pop();
            return Ok(Some(chain));
        }
        let next = self.ring.next_avail();
        if next == self.avail_seen {
            let avail = self.ring.avail_idx(memory, Ordering::Acquire);
            let idx = avail.map_err(|_| self.ring_gone(self.ring.avail_ring()))?.0;
            let (ahead, size) = (idx.wrapping_sub(next), self.size());
            if ahead > size {
                return Err(QueueError::AvailIndex { ahead, size });
            }
            if ahead == 0 {
                return Ok(None);
            }
            self.avail_seen = idx;
        }
        // Within the ring, which was checked not to wrap around the address space.
        let entry = self.ring.avail_ring() + RING_HEADER + AVAIL_ENTRY * u64::from(next % self.size());
        let head = memory.load::<u16>(GuestAddress(entry), Ordering::Relaxed);
        let head = u16::from_le(head.map_err(|_| self.ring_gone(entry))?);
        if head >= self.size() {
            return Err(QueueError::DescriptorIndex {
                index: head,
                len: self.size(),
            });
        }
        if self.in_flight.contains(head) {
            return Err(QueueError::InFlight(head));
        }
        let chain = self.walk(memory, head)?;
        self.in_flight.insert(head);
        self.ring.set_next_avail(next.wrapping_add(1));
        Ok(Some(chain))
    }

    /// Gives a chain back: puts it into the used ring with the number of bytes that were written into it, decides
    /// whether the driver wants to hear of it, and signals it.
    ///
    /// A signal that the line refuses is owed: the next call of any kind carries it.
    ///
    /// # Errors
    /// The ring is no longer in guest memory, or the chain is not of this queue.
    pub fn complete<M: GuestMemory>(&mut self, memory: &M, chain: Chain, written: u32) -> Result<(), QueueError> {
        self.complete_all(memory, [(chain, written)])
    }

    /// [`complete`](Self::complete) for several chains at once, with one signal at most.
    ///
    /// # Errors
    /// As `complete`; chains before the failing one are in the used ring, and signalled.
    pub fn complete_all<M: GuestMemory>(
        &mut self,
        memory: &M,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), QueueError> {
        let before = self.counters.completed;
        let published = chains
            .into_iter()
            .try_for_each(|(chain, written)| self.publish(memory, chain, written));
        // Also for those before one that failed: no later call would see that they were added.
        let completed = self.counters.completed - before;
        if completed != 0 && self.signal_wanted(memory)? {
            self.signal();
        } else {
            self.counters.suppressed += completed;
            self.signal_again();
        }
        published
    }

    /// Signals again if the last signal was refused by the line.
    pub fn signal_again(&mut self) {
        if self.signal_owed {
            self.signal();
        }
    }

    /// Asks the driver not to kick, as far as it can be asked: from here on, look again by yourself.
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    pub fn suppress_kicks<M: GuestMemory>(&mut self, memory: &M) -> Result<(), QueueError> {
        let done = self.ring.disable_notification(memory);
        done.map_err(|_| self.ring_gone(self.ring.used_ring()))
    }

    /// Asks the driver to kick for the next entry, and looks whether one has come before it could know:
    /// [`Round::More`] then.
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    pub fn expect_kicks<M: GuestMemory>(&mut self, memory: &M) -> Result<Round, QueueError> {
        let more = self.ring.enable_notification(memory);
        let more = more.map_err(|_| self.ring_gone(self.ring.used_ring()))?;
        Ok(if more || !self.resubmit.is_empty() {
            Round::More
        } else {
            Round::Drained
        })
    }

    /// The queue's state, for [`restore`](Self::restore).
    pub fn save(&self) -> QueueState {
        QueueState {
            layout: QueueLayout {
                size: self.size(),
                descriptor_area: self.ring.desc_table(),
                driver_area: self.ring.avail_ring(),
                device_area: self.ring.used_ring(),
            },
            features: self.features,
            next_avail: self.ring.next_avail(),
            next_used: self.ring.next_used(),
            in_flight: self.in_flight.heads(),
            signal_owed: self.signal_owed,
        }
    }

    /// The queue as it was saved. What was in flight comes out of [`pop`](Self::pop) again; counters start at zero.
    ///
    /// # Errors
    /// The state contradicts itself, or the layout would not be accepted from a driver.
    pub fn restore<M: GuestMemory>(
        index: QueueIndex,
        max_size: u16,
        state: &QueueState,
        memory: &M,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Result<Self, QueueStateError> {
        let &QueueState {
            layout,
            features,
            next_avail,
            next_used,
            ref in_flight,
            signal_owed,
        } = state;
        let mut queue = Self::new(index, max_size, layout, features, memory, interrupt)?;
        for &head in in_flight.iter().filter(|&&head| head < layout.size) {
            queue.in_flight.insert(head);
        }
        let distinct = queue.in_flight.heads().len();
        if distinct != in_flight.len() || distinct != usize::from(next_avail.wrapping_sub(next_used)) {
            return Err(QueueStateError::InFlight {
                in_flight: distinct,
                next_used,
                next_avail,
            });
        }
        queue.resubmit = in_flight.iter().rev().copied().collect();
        queue.ring.set_next_avail(next_avail);
        queue.ring.set_next_used(next_used);
        queue.avail_seen = next_avail;
        queue.signal_owed = signal_owed;
        Ok(queue)
    }

    fn walk<M: GuestMemory>(&mut self, memory: &M, head: u16) -> Result<Chain, QueueError> {
        let indirect = self.features & features::INDIRECT_DESC != 0;
        let list = self.spare.pop().unwrap_or_default();
        Chain::walk(
            memory,
            GuestAddress(self.ring.desc_table()),
            self.size(),
            (self.identity, head),
            indirect,
            list,
        )
    }

    fn publish<M: GuestMemory>(&mut self, memory: &M, chain: Chain, written: u32) -> Result<(), QueueError> {
        if chain.queue() != self.identity || !self.in_flight.remove(chain.head()) {
            return Err(QueueError::Request(
                "completed a chain that is not in flight on this queue",
            ));
        }
        let written = written.min(chain.writable_len());
        let added = self.ring.add_used(memory, chain.head(), written);
        added.map_err(|_| self.ring_gone(self.ring.used_ring()))?;
        self.counters.completed += 1;
        if self.spare.len() < SPARE_LISTS {
            self.spare.push(chain.into_list());
        }
        Ok(())
    }

    /// Whether the driver wants to hear of what was added to the used ring since this was last asked (sections 2.7.7
    /// and 2.7.10).
    fn signal_wanted<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, QueueError> {
        if self.ring.event_idx_enabled() {
            let wanted = self.ring.needs_notification(memory);
            return wanted.map_err(|_| self.ring_gone(self.ring.avail_ring()));
        }
        // The used index is out before the flag is read: a driver that clears the flag and then finds nothing new in
        // the used ring is signalled. Pairs with the driver's barrier between the two.
        fence(Ordering::SeqCst);
        let flags = memory.load::<u16>(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed);
        let flags = u16::from_le(flags.map_err(|_| self.ring_gone(self.ring.avail_ring()))?);
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    fn signal(&mut self) {
        // Owed until it has returned: a line that panics has not told the driver.
        self.signal_owed = true;
        self.signal_owed = self.interrupt.used(&[self.index]).is_err();
        match self.signal_owed {
            false => self.counters.signalled += 1,
            true => self.counters.failed += 1,
        }
    }

    /// A ring that was in guest memory when the queue was made is there no longer: the embedder took memory away.
    fn ring_gone(&self, address: u64) -> QueueError {
        let len = u64::from(self.size());
        QueueError::Outside { address, len }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("index", &self.index)
            .field("ring", &self.ring)
            .field("signal_owed", &self.signal_owed)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Bytes of flags and index before the entries of either ring.
const RING_HEADER: u64 = 4;
/// Bytes of the event index after the entries of either ring.
const RING_TAIL: u64 = 2;
const DESCRIPTOR: u64 = 16;
const AVAIL_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;

/// Checks a layout as section 2.7 asks for it: sizes, alignment, and all three areas in guest memory.
fn check_layout<M: GuestMemory>(layout: &QueueLayout, max: u16, memory: &M) -> Result<(), QueueError> {
    let &QueueLayout {
        size,
        descriptor_area,
        driver_area,
        device_area,
    } = layout;
    if !size.is_power_of_two() || size > max {
        return Err(QueueError::Size { size, max });
    }
    let n = u64::from(size);
    for (area, address, align, len, access) in [
        ("descriptor", descriptor_area, 16, DESCRIPTOR * n, Permissions::Read),
        (
            "driver",
            driver_area,
            2,
            RING_HEADER + AVAIL_ENTRY * n + RING_TAIL,
            Permissions::Read,
        ),
        (
            "device",
            device_area,
            4,
            RING_HEADER + USED_ENTRY * n + RING_TAIL,
            Permissions::Write,
        ),
    ] {
        if address % align != 0 {
            return Err(QueueError::Alignment { area, address, align });
        }
        chain::check_range(memory, GuestAddress(address), len, access)?;
    }
    Ok(())
}

/// The heads that are in flight, in the order in which they were taken.
struct InFlight {
    /// When each head was taken; zero if it is not in flight.
    places: Vec<u64>,
    last: u64,
}

impl InFlight {
    fn new(size: u16) -> Self {
        Self {
            places: vec![0; usize::from(size)],
            last: 0,
        }
    }

    fn contains(&self, head: u16) -> bool {
        self.places[usize::from(head)] != 0
    }

    fn insert(&mut self, head: u16) {
        self.last += 1;
        self.places[usize::from(head)] = self.last;
    }

    /// Whether it was in flight. A head that is beyond the queue was not.
    fn remove(&mut self, head: u16) -> bool {
        let place = self.places.get_mut(usize::from(head));
        place.is_some_and(|place| mem::take(place) != 0)
    }

    /// The heads, the one that was taken first to begin with.
    fn heads(&self) -> Vec<u16> {
        let mut heads: Vec<_> = (0..self.size()).filter(|&head| self.contains(head)).collect();
        heads.sort_unstable_by_key(|&head| self.places[usize::from(head)]);
        heads
    }

    fn size(&self) -> u16 {
        self.places.len() as u16
    }
}
