//! Split and packed virtqueues (virtio 1.2, sections 2.7 and 2.8), contained: whatever the driver writes into a ring, the device sees a
//! valid chain, nothing, or a [`QueueError`]. Which of them a queue is, the driver has said by
//! [`RING_PACKED`](super::features::RING_PACKED); a device does not notice.
//!
//! A queue has two sides. The *available* side belongs to who serves the queue, a [`Round`] at a time. The *used* side takes chains
//! back from any thread. Both look their areas of guest memory up once for each map of it, and go through host addresses then; memory
//! that has no stable host addresses (behind an IOMMU, say) is translated at each access.
//!
//! | file | what is in it |
//! |---|---|
//! | `view`, `area` | where a ring lies |
//! | `split_ring`, `packed_ring`, `format` | its loads and stores |
//! | `table`, `spot` | descriptors, and places in a packed ring |
//! | `chain`, `walk`, `walk_near` | a chain, walked and checked: the long way, and the short one |
//! | `available`, `split`, `packed` | what the driver has made available |
//! | `used`, `split_used`, `packed_used`, `in_order` | what is used |
//! | `shared` | giving back from any thread, and the signal |
//! | `round`, `lent`, `several`, `owned` | what a handler sees |
//! | `away`, `whereabouts` | a queue that is served elsewhere |
//! | `counters`, `state` | what its embedder sees |
//! | `word`, `inside` | what all threads agree on |
//! | `track` | who is told what is in flight |
//!
//! *What a request costs*: no allocation. A chain that is completed in its round costs no lock and no atomic read-modify-write, a
//! fence (which the specification asks for). A chain that is taken and completed elsewhere costs nine: the used side locked and unlocked,
//! the fence, and two each for the count of what is in flight, for the queue and for the map of memory, which are kept alive; and for
//! every sixteenth or so another lock of the used side, to fetch the room of those that came back. A queue allocates that room for its
//! first sixteen chains, and for as many as are in flight at a time.
//!
//! *Packed rings*: buffer IDs are below the queue size, or the ring is broken. Used descriptors overwrite available ones, so what is in
//! flight is known by its segments, which are in the saved state.
//!
//! *In order* ([`IN_ORDER`](super::features::IN_ORDER)): each chain has a used element of its own; one that ends before an earlier one
//! waits for that. Packets that are sent from a packed ring share one, as far as they are one buffer each and are shown at once.
//!
//! A queue runs without a transport too:
//!
//! ```
//! use devisor::{memory::Memory, virtio::{QueueIndex, queue::{Queue, QueueLayout, Rest, Silent}}};
//! use std::sync::Arc;
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! let ram = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 16)])?);
//! let layout = QueueLayout { size: 8, descriptor_area: 0x1000, driver_area: 0x2000, device_area: 0x3000 };
//! let memory = Memory::new(ram.clone());
//! let mut queue = Queue::new(QueueIndex(0), 8, layout, 0, &memory, Arc::new(Silent))?;
//!
//! // The driver: a buffer of 4 bytes at 0x4000 that the device writes, as descriptor 0, made available.
//! ram.write_obj([0x4000u64, 4 | 2 << 32], GuestAddress(0x1000))?;
//! ram.write_obj(1u16, GuestAddress(0x2002))?;
//!
//! // The device.
//! let mut round = queue.round()?;
//! while let Some(chain) = round.next()? {
//!     chain.writer().write(b"pong")?;
//!     chain.complete(4)?;
//! }
//! assert_eq!(round.end()?, Rest::Drained);
//! assert_eq!(ram.read_obj::<[u8; 4]>(GuestAddress(0x4000))?, *b"pong");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ahead;
mod area;
mod available;
mod away;
mod buffers;
mod chain;
mod counters;
mod error;
mod format;
mod in_order;
mod inside;
mod lent;
mod owned;
mod packed;
mod packed_ring;
mod packed_used;
mod round;
mod several;
mod shared;
mod split;
mod split_ring;
mod split_used;
mod spot;
mod state;
mod stillness;
mod table;
mod track;
mod used;
mod view;
mod walk;
mod walk_near;
mod whereabouts;
mod word;

use std::{fmt, io, sync::Arc};

pub use away::{AwayNotifier, AwayQueue, HandAwayError};
pub use buffers::{Reader, Slices, Writer};
pub use chain::{MAX_INDIRECT, MAX_SEGMENTS};
pub use counters::{Malformed, QueueCounters};
pub use error::{ChainError, Fault, QueueError};
pub use lent::Chain;
pub use owned::OwnedChain;
pub use round::{Rest, Round};
pub use several::{Found, Several, SeveralRoom};
pub use shared::Silent;
pub use state::{ChainState, Ended, QueueState, QueueStateError};

pub(crate) use ahead::{Ahead, AheadRoom};
pub(crate) use available::Kicks;
pub(crate) use inside::{Inside, is_inside};
pub(crate) use stillness::Stillness;
#[cfg_attr(
    not(all(target_os = "linux", feature = "vhost-user")),
    allow(unused_imports, reason = "a transport's")
)]
pub(crate) use track::Taken;
pub(crate) use track::Tracker;
#[cfg_attr(
    not(all(target_os = "linux", feature = "vhost-user")),
    allow(unused_imports, reason = "a transport's")
)]
pub(crate) use view::areas;
pub(crate) use view::is_size;

pub(crate) use word::{Begin, End, Stop, Word};

use super::{Wait, features};
use crate::memory::Memory;
use available::Available;
use error::Gone;
use round::Hands;
use shared::{Shared, Taking};
use spot::Spot;
use view::View;

/// Which queue of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueIndex(pub u16);

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

    /// Whether the configuration is read by who keeps it, and not by the driver: a change is told also if there has been no driver
    /// since, or another one.
    fn keeps_config(&self) -> bool {
        false
    }

    /// Tells the line what it should have heard and has not. Called after a reset and with every kick, without a lock.
    fn settle(&self) {}
}

/// Where a queue is and how long it is, as the driver programmed it (virtio 1.2, sections 2.7 and 2.8; the areas are also known as
/// descriptor table, available ring and used ring, or descriptor ring, driver and device event suppression).
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

/// One virtqueue in use: a frozen copy of what the driver programmed, and the device's progress in it.
pub struct Queue {
    available: Available,
    /// Not there when memory is let go of: looked up again by the next round.
    view: Option<View>,
    hands: Hands,
    shared: Arc<Shared>,
}

impl Queue {
    /// A queue at `layout` in `memory`, of a device whose driver accepted `features`. `max_size` is what was offered.
    ///
    /// # Errors
    /// The layout breaks the specification (sections 2.7 and 2.8.10.1) or is not in guest memory.
    pub fn new(
        index: QueueIndex,
        max_size: u16,
        layout: QueueLayout,
        features: u64,
        memory: &Memory,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Result<Self, QueueError> {
        let packed = features & features::RING_PACKED != 0;
        let view = View::new(memory.pin(), &layout, max_size, packed)?;
        let first = if packed { Spot::FIRST.raw() } else { 0 };
        let shared = Shared::new(index, layout, features, (view, first), memory.clone(), interrupt);
        Ok(Self::with_shared(shared, first))
    }

    /// `next_avail`: how far the device has come.
    fn with_shared(shared: Shared, next_avail: u16) -> Self {
        let view = shared.used.lock().view.clone();
        Self {
            available: Available::new(
                shared.layout.size,
                shared.features & features::EVENT_IDX != 0,
                shared.is_packed(),
                next_avail,
            ),
            view,
            hands: Hands::default(),
            shared: Arc::new(shared),
        }
    }

    /// As [`new`](Self::new), with the word of who runs the queue. `kicks`: when somebody looks at it without one.
    pub(crate) fn run_by(mut self, word: Arc<Word>, kicks: Kicks) -> Self {
        self.available.set_kicks(kicks);
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.word = word;
        }
        self
    }

    /// What is in flight is told to `tracker` from here on.
    #[cfg_attr(
        not(all(target_os = "linux", feature = "vhost-user")),
        allow(dead_code, reason = "a transport's")
    )]
    pub(crate) fn track(mut self, tracker: Arc<dyn Tracker>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            // The long way tells it.
            (shared.plain, shared.taking, shared.tracker) = (false, Taking::Told, Some(tracker));
        }
        self
    }

    /// The queue's index in its device.
    pub fn index(&self) -> QueueIndex {
        self.shared.index
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.shared.layout.size
    }

    /// What this queue has done so far.
    pub fn counters(&self) -> QueueCounters {
        self.shared.counters()
    }

    /// What can be asked of it while it is served.
    pub(crate) fn face(&self) -> Face {
        Face(Arc::clone(&self.shared))
    }

    /// Begins a round: looks the ring up again if guest memory is another one than before, and signals again what was refused.
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    #[inline]
    pub fn round(&mut self) -> Result<Round<'_>, QueueError> {
        self.begin(false)
    }

    /// As [`round`](Self::round). `closed`: no chain is to be found.
    #[inline(always)]
    pub(crate) fn begin(&mut self, closed: bool) -> Result<Round<'_>, QueueError> {
        let away = self.hands.away && self.look_whether_away();
        let Self {
            available,
            view,
            hands,
            shared,
        } = self;
        if shared.stranded.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(shared.gone());
        }
        let is_current = |view: &View| shared.memory.is_current(&view.pin);
        if !view.as_ref().is_some_and(is_current) {
            Self::look_up(view, shared)?;
        }
        let Some(view) = view else { return Err(shared.gone()) };
        Ok(Round::new(shared, available, view, hands, closed | away))
    }

    #[cold]
    fn look_up(view: &mut Option<View>, shared: &Shared) -> Result<(), QueueError> {
        *view = None;
        let found = shared.look_up()?;
        let old = shared.used.lock().view.replace(found.clone());
        // With nothing locked: somebody may wait for it.
        drop(old);
        *view = Some(found);
        Ok(())
    }

    /// What was [waited](Round::wait) for in the last round.
    pub fn waits(&self) -> &[Wait] {
        &self.hands.waits
    }

    pub(crate) fn waits_mut(&mut self) -> &mut Vec<Wait> {
        &mut self.hands.waits
    }

    /// Lets go of guest memory: the next round looks it up again.
    pub(crate) fn let_go(&mut self) {
        self.view = None;
        let old = self.shared.used.lock().view.take();
        // With nothing locked: somebody may wait for it.
        drop(old);
    }
}

/// A queue as seen from outside of its rounds.
#[derive(Clone)]
pub(crate) struct Face(Arc<Shared>);

impl Face {
    pub fn counters(&self) -> QueueCounters {
        self.0.counters()
    }

    /// Nothing is written to the ring any more, by whoever completes a chain of it.
    pub fn close(&self) {
        self.0.closed.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("shared", &self.shared)
            .field("next_avail", &self.available.next())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
