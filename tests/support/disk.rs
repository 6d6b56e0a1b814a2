//! A disk behind either transport, whose driver has rings of either format and keeps to the rules unless a test has it break them.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::sync::Arc;

use devisor::virtio::{
    QueueIndex,
    block::{Block, BlockOptions, MemoryStorage},
    features::{EVENT_IDX, INDIRECT_DESC, NOTIFICATION_DATA, RING_PACKED, VERSION_1},
    queue::{QueueCounters, QueueLayout},
    transport::{
        TransportOptions,
        status::{DEVICE_NEEDS_RESET, DRIVER_OK},
    },
};

use crate::{
    both::{ANSWER, Guest, REQUEST, Transport},
    packed_ring::PackedRing,
    ring::{NEXT, Ring, WRITE},
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// How long the rings are.
pub const SIZE: u16 = 64;
/// Guest memory ends here: so far up that a chain can describe 4 GiB of it.
pub const TOP: u64 = 80 << 20;
/// Where no memory is.
pub const NOWHERE: u64 = 1 << 40;
/// Sectors of the disk.
pub const SECTORS: u64 = 64;
/// Where requests are, their data and their status.
pub const HEADER: u64 = REQUEST;
pub const DATA: u64 = 0xb_0000;
pub const STATUS: u64 = ANSWER;
/// Where tables are.
pub const TABLE: u64 = 0xa_0000;

/// Types of requests, and what is said of them (virtio 1.2, section 5.2.6).
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const OK: u8 = 0;
pub const IOERR: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Split,
    Packed,
}

/// What the driver accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// No more than it has to.
    Least,
    /// All that is offered.
    All,
}

/// A ring of either format.
pub enum AnyRing {
    Split(Ring),
    Packed(PackedRing),
}

/// A descriptor: address, length, flags.
pub type Raw = (u64, u32, u16);

impl AnyRing {
    pub fn layout(&self) -> QueueLayout {
        match self {
            Self::Split(ring) => ring.layout,
            Self::Packed(ring) => ring.layout,
        }
    }

    /// Writes a chain, NEXT on all but the last, and makes it available. Its head, or buffer ID.
    pub fn chain(&mut self, descriptors: &[Raw]) -> u16 {
        match self {
            Self::Split(ring) => {
                let head = ring.raw(descriptors);
                ring.offer(head);
                head
            }
            Self::Packed(ring) => {
                let id = ring.raw(descriptors);
                ring.offer(id);
                id
            }
        }
    }

    pub fn used(&mut self) -> Vec<(u32, u32)> {
        match self {
            Self::Split(ring) => ring.used(),
            Self::Packed(ring) => ring.used(),
        }
    }

    pub fn split(&mut self) -> &mut Ring {
        match self {
            Self::Split(ring) => ring,
            Self::Packed(_) => panic!("of split rings alone"),
        }
    }

    pub fn packed(&mut self) -> &mut PackedRing {
        match self {
            Self::Packed(ring) => ring,
            Self::Split(_) => panic!("of packed rings alone"),
        }
    }
}

/// What a driver sees of what it has made available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All came back, none of it malformed.
    Served,
    /// All came back with a used length of 0, and was counted as malformed.
    Refused,
    /// Nothing came back, and the device goes on.
    Kept,
    /// The device needs a reset.
    NeedsReset,
    Other(&'static str),
}

/// A machine with one disk of two queues.
pub struct Disk {
    pub guest: Guest<Block>,
    pub rings: Vec<AnyRing>,
    pub storage: Arc<MemoryStorage>,
    pub format: Format,
    pub accepts: Accepts,
    pub features: u64,
}

impl Disk {
    pub fn new(kind: Transport, format: Format, accepts: Accepts) -> Self {
        Self::with_options(kind, format, accepts, kind.options())
    }

    pub fn with_options(kind: Transport, format: Format, accepts: Accepts, options: TransportOptions) -> Self {
        let storage = Arc::new(MemoryStorage::new(512 * SECTORS as usize));
        let device = BlockOptions {
            queues: 2,
            ..BlockOptions::default()
        };
        let block = Block::new(Arc::clone(&storage), device).expect("a disk");
        let options = TransportOptions {
            packed: true,
            ..options
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), TOP as usize)]).expect("memory");
        let guest = Guest::with_options(kind, block, &Arc::new(memory), options);
        let mut disk = Self {
            guest,
            rings: Vec::new(),
            storage,
            format,
            accepts,
            features: 0,
        };
        disk.start();
        disk
    }

    pub fn start(&mut self) {
        self.start_with(|_| ());
        assert!(!self.needs_reset(), "a device that was only set up");
    }

    /// The same, with the first queue laid out so.
    pub fn start_with(&mut self, change: impl Fn(&mut QueueLayout)) {
        let format = match self.format {
            Format::Split => 0,
            Format::Packed => RING_PACKED,
        };
        self.features = match self.accepts {
            Accepts::Least => VERSION_1,
            // What it takes to kick so is tried elsewhere.
            Accepts::All => self.guest.offered() & !(RING_PACKED | NOTIFICATION_DATA),
        } | format;
        assert!(self.guest.negotiate(self.features), "features are refused");
        let no_change = |_: &mut QueueLayout| ();
        self.rings = vec![self.enable(0, &change), self.enable(1, &no_change)];
        self.guest.set_status(self.guest.status() | DRIVER_OK);
    }

    fn enable(&self, queue: u16, change: &dyn Fn(&mut QueueLayout)) -> AnyRing {
        let (guest, base) = (&self.guest, 0x1_0000 + 0x8000 * u64::from(queue));
        let ring = match self.format {
            Format::Split => AnyRing::Split(Ring::new(&guest.memory, base, SIZE)),
            Format::Packed => {
                guest.put(base, &[0; 0x4000]);
                AnyRing::Packed(PackedRing::new(&guest.memory, base, SIZE))
            }
        };
        let mut layout = ring.layout();
        change(&mut layout);
        guest.write(0x30, 0x16, guest.width(2), queue.into());
        guest.write(0x38, 0x18, guest.width(2), layout.size.into());
        for (mmio, pci, address) in [
            (0x80, 0x20, layout.descriptor_area),
            (0x90, 0x28, layout.driver_area),
            (0xa0, 0x30, layout.device_area),
        ] {
            guest.write(mmio, pci, 4, address & 0xffff_ffff);
            guest.write(mmio + 4, pci + 4, 4, address >> 32);
        }
        guest.write(0x44, 0x1c, guest.width(2), 1);
        ring
    }

    pub fn restart(&mut self) {
        self.guest.reset();
        self.start();
    }

    pub fn needs_reset(&self) -> bool {
        self.guest.status() & DEVICE_NEEDS_RESET != 0
    }

    pub fn has_tables(&self) -> bool {
        self.features & INDIRECT_DESC != 0
    }

    pub fn has_event_idx(&self) -> bool {
        self.features & EVENT_IDX != 0
    }

    pub fn counters(&self) -> QueueCounters {
        let counters = self.guest.transport().queue_counters(QueueIndex(0));
        counters.unwrap_or_default()
    }

    /// Kicks for what `offer` makes available, so many chains, and says what came of it.
    pub fn watch(&mut self, chains: usize, offer: impl FnOnce(&mut AnyRing)) -> Outcome {
        let before = self.counters().malformed;
        offer(&mut self.rings[0]);
        self.guest.kick(0);
        if self.needs_reset() {
            return Outcome::NeedsReset;
        }
        let used = self.rings[0].used();
        let malformed = (self.counters().malformed - before) as usize;
        match used.len() {
            0 => Outcome::Kept,
            all if all != chains => Outcome::Other("some came back and others did not"),
            all if malformed == all => match used.iter().all(|(_, len)| *len == 0) {
                true => Outcome::Refused,
                false => Outcome::Other("a used length of a malformed chain"),
            },
            _ if malformed == 0 => Outcome::Served,
            _ => Outcome::Other("some were served and others refused"),
        }
    }

    /// Writes a header of a request.
    pub fn put_header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.guest.put(HEADER, &header);
        self.guest.put(STATUS, &[0xee; 16]);
    }

    /// A read of the first sector.
    pub fn good(&self) -> [Raw; 3] {
        self.put_header(IN, 0);
        self.guest.put(DATA, &[0xee; 512]);
        [(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]
    }

    /// A chain as it is.
    pub fn offer(&mut self, descriptors: &[Raw]) -> Outcome {
        self.watch(1, |ring| _ = ring.chain(descriptors))
    }

    /// A good request but for one of its descriptors.
    pub fn hurt(&mut self, which: usize, change: impl FnOnce(&mut Raw)) -> Outcome {
        let mut good = self.good();
        change(&mut good[which]);
        self.offer(&good)
    }

    /// Writes a table of the ring's format.
    pub fn put_table(&self, table: u64, entries: &[Raw]) {
        for (index, &(address, len, flags)) in (0_u16..).zip(entries) {
            let last = usize::from(index) + 1 == entries.len();
            // Entries of a packed ring follow each other without saying so.
            let (first, second) = match self.format {
                Format::Split if last => (flags, 0),
                Format::Split => (flags | NEXT, index + 1),
                Format::Packed => (0xffff, flags),
            };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&first.to_le_bytes());
            bytes[14..].copy_from_slice(&second.to_le_bytes());
            self.guest.put(table + 16 * u64::from(index), &bytes);
        }
    }

    /// The status of the last request.
    pub fn status(&self) -> u8 {
        self.guest.get(STATUS, 1)[0]
    }

    /// A good request is answered.
    pub fn answers(&mut self) {
        let good = self.good();
        assert_eq!(self.offer(&good), Outcome::Served);
        assert_eq!(self.status(), OK);
        assert_eq!(self.guest.get(DATA, 512), self.storage.contents()[..512]);
    }

    /// It does so now, if it needs no reset, and after one.
    pub fn lives_on(&mut self) {
        if !self.needs_reset() {
            self.answers();
        }
        self.restart();
        self.answers();
    }
}
