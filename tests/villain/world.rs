//! A device of each kind, what is behind it, and a driver that keeps to the rules unless a case has it break them.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use devisor::{
    time::ManualClock,
    virtio::{
        QueueIndex, VirtioDevice,
        balloon::{Balloon, BalloonOptions},
        block::{Block, BlockOptions, MemoryStorage, ZoneLimits, ZoneState, ZonedStorage},
        console::{Console, ConsoleOptions, MemoryPeer, Port, Ports, Size},
        entropy::Entropy,
        features,
        mem::{MemoryDevice, MemoryDeviceOptions},
        net::{Mac, Net, NetFrame, NetOptions, Offloads, Speed, Wire},
        pmem::{Pmem, PmemOptions, Volatile},
        queue::QueueCounters,
        reclaim::{ReclaimCall, Recorded},
        transport::TransportOptions,
        vsock::{MemoryHost, SocketKind, Vsock, VsockOptions},
    },
};

use crate::{
    both::{ANSWER, Guest, REQUEST, Transport},
    driver::Seen,
    ring::{self, Buffer, readable, writable},
    worn::Worn,
};

/// What a driver accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Nothing, and not VERSION_1 either: before a transport that takes it all the same.
    Bare,
    /// VERSION_1 alone.
    Modern,
    /// All that is offered, and that goes with split rings.
    Full,
}

/// How a case is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub transport: Transport,
    pub driver: Driver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Net,
    /// With one port, and no control queues.
    Console,
    /// With ports and control queues.
    Multiport,
    Vsock,
    Balloon,
    Mem,
    Pmem,
    Entropy,
    Block,
    /// A disk that cannot be written.
    BlockReadOnly,
    /// A disk that erases for good, and says how worn it is.
    BlockWorn,
    /// A disk of zones, which has a driver that knows of them alone.
    Zoned,
}

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
/// VIRTIO_F_RING_PACKED (section 6).
pub const RING_PACKED: u64 = 1 << 34;
/// Guest memory ends here.
pub const TOP: u64 = 1 << 20;
/// Where no memory is.
pub const NOWHERE: u64 = 1 << 40;
/// Where registers of a device are, and no memory.
pub const REGISTERS: u64 = 0x4000_0000;
/// The memory device's blocks.
pub const BLOCK: u64 = 1 << 20;
pub const BASE: u64 = 1 << 32;
pub const BLOCKS: u64 = 32;
pub const USABLE: u64 = 20;
pub const REQUESTED: u64 = 16;
/// The memory that a PMEM device is.
pub const REGION: Range<u64> = 0x1_0000_0000..0x1_0020_0000;
/// Of the disk.
pub const SECTORS: u64 = 64;
/// Zones of the disk that has them, in sectors.
pub const ZONE: u64 = 16;
/// VIRTIO_BLK_F_ZONED (virtio 1.3, section 5.2.3).
pub const ZONED: u64 = 1 << 17;
/// The host's port that takes connections.
pub const LISTENER: u32 = 80;

/// What is behind the device.
#[derive(Default)]
pub struct Host {
    wire: Option<Arc<Wire>>,
    peer: Option<MemoryPeer>,
    pub ports: Option<Ports>,
    sockets: Option<MemoryHost>,
    pages: Option<Arc<Recorded>>,
    pub persist: Option<Arc<Volatile>>,
    pub disk: Option<Arc<MemoryStorage>>,
    zones: Option<Arc<ZonedStorage<MemoryStorage>>>,
    pub hints: Arc<Mutex<Vec<(u32, u64, u64)>>>,
}

pub struct World {
    pub guest: Guest<Box<dyn VirtioDevice>>,
    pub way: Way,
    pub kind: Kind,
    pub host: Host,
    /// What the driver has accepted.
    pub features: u64,
}

fn device(kind: Kind, host: &mut Host) -> Box<dyn VirtioDevice> {
    match kind {
        Kind::Net => {
            let wire = host
                .wire
                .get_or_insert_with(|| Arc::new(Wire::new(256).with_offloads(Offloads::ALL, Offloads::ALL)));
            let options = NetOptions {
                mac: Some(Mac(MAC)),
                pairs: 3,
                queue_size: 64,
                mtu: Some(1500),
                speed: Some(Speed {
                    megabits: 1000,
                    full_duplex: true,
                }),
                ..NetOptions::default()
            };
            let device = Net::new([Arc::clone(wire)], options).expect("a network device");
            Box::new(device.with_clock(ManualClock::default()))
        }
        Kind::Console | Kind::Multiport => {
            let peer = host.peer.get_or_insert_with(|| MemoryPeer::new(1 << 16)).clone();
            let options = ConsoleOptions {
                size: Some(Size { cols: 80, rows: 25 }),
                max_ports: (kind == Kind::Multiport).then_some(4),
                ..ConsoleOptions::default()
            };
            let console = Console::new(options).expect("a console");
            let ports = console.ports();
            ports.plug(0, Port::console(peer)).expect("room for a port");
            host.ports = Some(ports);
            Box::new(console)
        }
        Kind::Vsock => {
            let sockets = host.sockets.get_or_insert_with(|| MemoryHost::new(1 << 16)).clone();
            sockets.listen(LISTENER, SocketKind::Stream);
            sockets.listen(LISTENER, SocketKind::Seqpacket);
            let clock = Arc::new(ManualClock::default());
            Box::new(Vsock::new(sockets, clock, VsockOptions::default()).expect("a socket device"))
        }
        Kind::Balloon => {
            let pages = host.pages.get_or_insert_with(|| Arc::new(Recorded::new([0..TOP])));
            let balloon = Balloon::new(Arc::clone(pages), BalloonOptions::default()).expect("a balloon");
            let hints = Arc::clone(&host.hints);
            let log = move |command, address, len| hints.lock().unwrap().push((command, address, len));
            Box::new(balloon.with_hints(log))
        }
        Kind::Mem => {
            let options = MemoryDeviceOptions {
                block_size: BLOCK,
                requested_size: REQUESTED * BLOCK,
                usable_extra: (USABLE - REQUESTED) * BLOCK,
                node_id: Some(1),
                ..MemoryDeviceOptions::new(BASE..BASE + BLOCKS * BLOCK)
            };
            let region = options.region.clone();
            let pages = host.pages.get_or_insert_with(|| Arc::new(Recorded::new([region])));
            Box::new(MemoryDevice::new(Arc::clone(pages), options).expect("a memory device"))
        }
        Kind::Pmem => {
            let persist = host.persist.get_or_insert_with(Arc::default);
            let options = PmemOptions {
                shared_memory: true,
                ..PmemOptions::new(REGION)
            };
            Box::new(Pmem::new(Arc::clone(persist), options).expect("a PMEM device"))
        }
        Kind::Entropy => Box::new(Entropy::seeded(7)),
        Kind::Zoned => {
            let zones = host.zones.get_or_insert_with(|| {
                let limits = ZoneLimits {
                    zone_size: 512 * ZONE,
                    max_open: 2,
                    max_active: 3,
                    max_append: 512 * 8,
                    write_granularity: 512,
                };
                let disk = MemoryStorage::new(512 * SECTORS as usize);
                Arc::new(ZonedStorage::new(disk, limits).expect("zones"))
            });
            let options = BlockOptions {
                queues: 2,
                ..BlockOptions::default()
            };
            Box::new(Block::new(Arc::clone(zones), options).expect("a disk of zones"))
        }
        Kind::Block | Kind::BlockReadOnly | Kind::BlockWorn => {
            let disk = host
                .disk
                .get_or_insert_with(|| Arc::new(MemoryStorage::new(512 * SECTORS as usize)));
            let options = BlockOptions {
                read_only: kind == Kind::BlockReadOnly,
                queues: 2,
                ..BlockOptions::default()
            };
            let disk = Arc::clone(disk);
            let block = match kind {
                Kind::BlockWorn => Block::new(Worn(disk), options),
                _ => Block::new(disk, options),
            };
            Box::new(block.expect("a disk"))
        }
    }
}

/// What a driver needs is not what is there by default, if it does without VERSION_1.
fn options(way: Way) -> TransportOptions {
    let mut options = way.transport.options();
    options.without_version_1 = way.driver == Driver::Bare;
    options
}

impl World {
    /// A device whose driver has set it up.
    pub fn new(kind: Kind, way: Way) -> Self {
        let mut world = Self::cold(kind, way);
        world.start();
        world
    }

    /// One whose driver has not begun.
    pub fn cold(kind: Kind, way: Way) -> Self {
        let mut host = Host::default();
        let device = device(kind, &mut host);
        let memory = ring::memory();
        Self {
            guest: Guest::with_options(way.transport, device, &memory, options(way)),
            way,
            kind,
            host,
            features: 0,
        }
    }

    /// What its driver accepts.
    pub fn wanted(&self) -> u64 {
        // Who does not know of zones does not get them.
        let least = if self.kind == Kind::Zoned { ZONED } else { 0 };
        match self.way.driver {
            Driver::Bare => least,
            Driver::Modern => least | features::VERSION_1,
            // Rings of the other format have a table of their own.
            Driver::Full => self.guest.offered() & !RING_PACKED,
        }
    }

    /// The driver sets up the device and all of its queues.
    pub fn start(&mut self) {
        self.start_with(self.wanted());
    }

    pub fn start_with(&mut self, features: u64) {
        self.features = features;
        let queues: Vec<_> = (0..self.guest.queues()).collect();
        self.guest.drive(features, &queues);
        assert!(!self.needs_reset(), "a device that was only set up");
        if self.is_multiport() {
            self.bring_ports_up();
        }
    }

    pub fn restart(&mut self) {
        self.guest.reset();
        self.start();
    }

    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    pub fn is_full(&self) -> bool {
        self.way.driver == Driver::Full
    }

    /// Whether the embedder lets drivers do without VERSION_1.
    pub fn is_lenient(&self) -> bool {
        options(self.way).without_version_1
    }

    /// These bits of the status, where a driver without VERSION_1 gets so far.
    pub fn lenient(&self, bits: u32) -> u32 {
        if self.is_lenient() { bits } else { 0 }
    }

    pub fn is_pci(&self) -> bool {
        self.way.transport == Transport::Pci
    }

    pub fn needs_reset(&self) -> bool {
        self.guest.status() & 0x40 != 0
    }

    /// The device answers a good request; and again after a reset.
    pub fn lives_on(&mut self) {
        if !self.needs_reset() && self.guest.status() & 4 != 0 {
            self.answers();
        }
        self.restart();
        self.answers();
    }

    // Requests.

    pub fn kick(&self, queue: u16) {
        if self.has(features::NOTIFICATION_DATA) {
            let next = self.guest.rings[usize::from(queue)]
                .as_ref()
                .map_or(0, |ring| ring.avail_idx());
            let data = u64::from(queue) | u64::from(next) << 16;
            self.guest.write(0x50, 0x3000 + 4 * u64::from(queue), 4, data);
        } else {
            self.guest.kick(queue);
        }
        self.guest.transport().run();
    }

    fn counters(&self, queue: u16) -> QueueCounters {
        let counters = self.guest.transport().queue_counters(QueueIndex(queue));
        counters.unwrap_or_default()
    }

    /// How many chains of a queue were malformed.
    pub fn malformed(&self, queue: u16) -> u64 {
        self.counters(queue).malformed
    }

    /// Kicks for what `offer` makes available, and says what came of it.
    pub fn watch(&mut self, queue: u16, offer: impl FnOnce(&mut ring::Ring)) -> Seen {
        self.watch_lens(queue, offer).0
    }

    /// The same, with the used lengths.
    pub fn watch_lens(&mut self, queue: u16, offer: impl FnOnce(&mut ring::Ring)) -> (Seen, Vec<u32>) {
        let before = self.counters(queue);
        let ring = self.guest.ring(queue);
        let first = ring.avail_idx();
        offer(ring);
        let offered = usize::from(ring.avail_idx().wrapping_sub(first));
        self.kick(queue);
        if self.needs_reset() {
            return (Seen::NeedsReset, Vec::new());
        }
        let used = self.guest.used(queue);
        let malformed = (self.counters(queue).malformed - before.malformed) as usize;
        let seen = match used.len() {
            0 => Seen::Kept,
            all if all < offered => Seen::Other("some chains came back and others did not"),
            all if malformed == all => match used.iter().all(|len| *len == 0) {
                true => Seen::Refused,
                false => Seen::Other("a used length of a malformed chain"),
            },
            _ if malformed == 0 => Seen::Served,
            _ => Seen::Other("some chains were served and others refused"),
        };
        (seen, used)
    }

    /// Makes a chain available and kicks.
    pub fn offer(&mut self, queue: u16, buffers: &[Buffer]) -> Seen {
        self.watch(queue, |ring| _ = ring.request(buffers))
    }

    /// A good request of the kind that this queue takes.
    pub fn good(&mut self, queue: u16) -> Vec<Buffer> {
        let (request, room): (Vec<u8>, Vec<u32>) = match self.kind {
            Kind::Net if queue == self.control() => (vec![0, 0, 1], vec![1]),
            Kind::Net if queue.is_multiple_of(2) => (vec![], vec![2048]),
            Kind::Net => (self.packet(&[], 60), vec![]),
            Kind::Console | Kind::Multiport if queue.is_multiple_of(2) => (vec![], vec![256]),
            Kind::Multiport if queue == 3 => (crate::console::message(0, 3, 1).to_vec(), vec![]),
            Kind::Console | Kind::Multiport => (b"hello".to_vec(), vec![]),
            Kind::Vsock if queue == 1 => (crate::vsock::packet(crate::vsock::RST).bytes(), vec![]),
            Kind::Vsock => (vec![], vec![4096]),
            Kind::Balloon if queue == 2 => (vec![0; 10], vec![]),
            Kind::Balloon if queue == 3 => (vec![0; 4], vec![]),
            Kind::Balloon if queue == 4 => (vec![], vec![4096]),
            Kind::Balloon => (0x90_u32.to_le_bytes().to_vec(), vec![]),
            Kind::Mem => (crate::memory::request(crate::memory::STATE, BASE, 1), vec![10]),
            Kind::Pmem => (vec![0; 4], vec![4]),
            Kind::Entropy => (vec![], vec![16]),
            Kind::Block | Kind::BlockReadOnly | Kind::BlockWorn | Kind::Zoned => {
                (crate::block::header(crate::block::IN, 0).to_vec(), vec![512, 1])
            }
        };
        self.guest.put(REQUEST, &request);
        let mut buffers = Vec::new();
        if !request.is_empty() {
            buffers.push(readable(REQUEST, request.len() as u32));
        }
        let mut at = ANSWER;
        for len in room {
            self.guest.put(at, &vec![0xee; len as usize]);
            buffers.push(writable(at, len));
            at += u64::from(len);
        }
        buffers
    }

    /// A good request is answered, or what it is about.
    fn answers(&mut self) {
        match self.kind {
            Kind::Net => {
                self.taken();
                let packet = self.packet(&[], 60);
                assert_eq!(self.transmit(&packet), Seen::Served);
                assert_eq!(self.taken().len(), 1, "a frame that is sent");
            }
            Kind::Console | Kind::Multiport => {
                self.peer().output();
                let good = self.good(1);
                assert_eq!(self.offer(1, &good), Seen::Served);
                assert_eq!(self.peer().output(), b"hello");
            }
            Kind::Vsock => crate::vsock::answers(self),
            Kind::Balloon => {
                self.discarded();
                let good = self.good(0);
                assert_eq!(self.offer(0, &good), Seen::Served);
                assert_eq!(self.discarded(), [0x9_0000..0x9_1000]);
            }
            Kind::Mem => {
                let good = self.good(0);
                assert_eq!(self.offer(0, &good), Seen::Served);
                assert_eq!(self.guest.get(ANSWER, 2), [0, 0], "an acknowledgement");
            }
            Kind::Pmem => {
                let good = self.good(0);
                assert_eq!(self.offer(0, &good), Seen::Served);
                assert_eq!(self.guest.get(ANSWER, 4), [0; 4], "a flush that succeeds");
            }
            Kind::Entropy => {
                let good = self.good(0);
                let (seen, used) = self.watch_lens(0, |ring| _ = ring.request(&good));
                assert_eq!((seen, &used[..]), (Seen::Served, &[16][..]));
            }
            Kind::Block | Kind::BlockReadOnly | Kind::BlockWorn | Kind::Zoned => {
                let good = self.good(0);
                assert_eq!(self.offer(0, &good), Seen::Served);
                assert_eq!(self.guest.get(ANSWER + 512, 1), [0], "a read that succeeds");
            }
        }
    }

    // The host's side.

    pub fn wire(&self) -> &Wire {
        self.host.wire.as_ref().expect("a network")
    }

    /// What the guest has sent since this was last asked.
    pub fn taken(&self) -> Vec<NetFrame> {
        std::iter::from_fn(|| self.wire().take()).collect()
    }

    pub fn peer(&self) -> &MemoryPeer {
        self.host.peer.as_ref().expect("a console")
    }

    pub fn sockets(&self) -> &MemoryHost {
        self.host.sockets.as_ref().expect("a socket device")
    }

    /// What the host was given back since this was last asked.
    pub fn discarded(&self) -> Vec<Range<u64>> {
        let calls = self.host.pages.as_ref().expect("a balloon").take_calls().into_iter();
        calls
            .filter_map(|call| match call {
                // It is asked for what is no memory too, and gives none of that.
                ReclaimCall::Discard(range) if range.start < TOP => Some(range),
                _ => None,
            })
            .collect()
    }

    pub fn disk(&self) -> &MemoryStorage {
        self.host.disk.as_ref().expect("a disk")
    }

    /// State and write pointer, in sectors, of a zone.
    pub fn zone(&self, index: usize) -> (ZoneState, u64) {
        let zone = self.host.zones.as_ref().expect("zones").save()[index];
        (zone.state, zone.write_pointer / 512)
    }

    /// Another device of the same make over the same host, in the state of this one.
    pub fn moved(&mut self) {
        let state = crate::rest::at_rest(self.guest.transport());
        let mut moved = Guest::with_options(
            self.way.transport,
            device(self.kind, &mut self.host),
            &self.guest.memory,
            options(self.way),
        );
        moved.transport().restore(&state).expect("it was saved so");
        moved.transport().resume();
        moved.rings = std::mem::take(&mut self.guest.rings);
        self.guest = moved;
    }
}
