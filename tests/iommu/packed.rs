//! Packed rings (virtio 1.2, section 2.8) whose addresses are translated, and an IOMMU that has such rings itself.

use devisor::virtio::{
    VirtioDevice,
    block::{Block, BlockOptions, MemoryStorage},
    entropy::{Entropy, SeededRandom, Source},
    features::{self, EVENT_IDX, IN_ORDER, RING_PACKED},
    iommu::Iommu,
    queue::QueueLayout,
    transport::{
        SavedDevice, TransportOptions,
        status::{DEVICE_NEEDS_RESET, DRIVER_OK},
    },
};

use crate::{
    behind::PLATFORM,
    both::{ANSWER, BOTH, Guest, REQUEST, Transport},
    driver::*,
    late::{FILLED, Held, Late, Stopped},
    packed_ring::PackedRing,
    rest,
    ring::{self, Buffer, INDIRECT, readable, writable},
};

/// What a driver of packed rings accepts, in turn.
const DRIVERS: [u64; 3] = [
    PLATFORM | RING_PACKED,
    PLATFORM | RING_PACKED | EVENT_IDX,
    PLATFORM | RING_PACKED | EVENT_IDX | IN_ORDER,
];

/// What has come back of requests that are under way.
pub const NOTHING: [u32; 0] = [];

const RINGS: u64 = 0x1_0000;
/// Where tables are, and buffers.
const TABLE: u64 = 0xa_0000;
const DATA: u64 = 0xc_0000;

const A: u64 = 0x10_0000;
const B: u64 = 0x20_0000;

const R: u32 = 0x101;
const W: u32 = 0x102;
const BOTH_WAYS: u32 = R | W;

fn offered(kind: Transport) -> TransportOptions {
    TransportOptions {
        packed: true,
        in_order: true,
        ..kind.options()
    }
}

/// A guest whose driver makes packed rings.
pub struct Packed<D> {
    pub guest: Guest<D>,
    rings: Vec<PackedRing>,
    features: u64,
    size: u16,
}

impl<D: VirtioDevice + 'static> Packed<D> {
    /// With a driver that accepts these features and has made so many rings of this size.
    pub fn start(guest: Guest<D>, features: u64, rings: u16, size: u16) -> Self {
        let rings = (0..rings).map(|queue| {
            let base = RINGS + 0x4000 * u64::from(queue);
            guest.put(base, &[0; 0x4000]);
            PackedRing::new(&guest.memory, base, size)
        });
        let rings = rings.collect();
        let mut packed = Self {
            guest,
            rings,
            features,
            size,
        };
        packed.drive();
        packed
    }

    fn drive(&mut self) {
        let guest = &self.guest;
        assert!(guest.negotiate(self.features), "{:#x} is refused", self.features);
        for (queue, ring) in (0..).zip(&self.rings) {
            let QueueLayout {
                descriptor_area,
                driver_area,
                device_area,
                ..
            } = ring.layout;
            guest.write(0x30, 0x16, guest.width(2), queue);
            guest.write(0x38, 0x18, guest.width(2), self.size.into());
            for (mmio, pci, address) in [
                (0x80, 0x20, descriptor_area),
                (0x90, 0x28, driver_area),
                (0xa0, 0x30, device_area),
            ] {
                let address = address + guest.shift;
                guest.write(mmio, pci, 4, address & 0xffff_ffff);
                guest.write(mmio + 4, pci + 4, 4, address >> 32);
            }
            guest.write(0x44, 0x1c, guest.width(2), 1);
        }
        guest.set_status(guest.status() | DRIVER_OK);
    }

    /// Makes it anew, rings and all.
    fn restart(self) -> Self {
        let Self {
            mut guest,
            rings,
            features,
            size,
        } = self;
        guest.reset();
        Self::start(guest, features, rings.len() as u16, size)
    }

    fn needs_reset(&self) -> bool {
        self.guest.status() & DEVICE_NEEDS_RESET != 0
    }

    pub fn used(&mut self, queue: usize) -> Vec<u32> {
        self.rings[queue].used().into_iter().map(|(_, len)| len).collect()
    }

    /// Makes a chain available and kicks. The used lengths of what came back.
    pub fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> Vec<u32> {
        self.rings[queue].request(buffers);
        self.guest.kick(queue as u16);
        self.used(queue)
    }

    /// The same in a table at this place in the driver's memory.
    fn offer_table(&mut self, queue: usize, table: u64, buffers: &[Buffer]) -> Vec<u32> {
        let shift = self.guest.shift;
        let ring = &mut self.rings[queue];
        for (at, buffer) in (0..).map(|index| table + 16 * index).zip(buffers) {
            ring.put(at, buffer.address);
            ring.put(at + 8, buffer.len);
            ring.put(at + 12, 0_u16);
            ring.put(at + 14, if buffer.writable { ring::WRITE } else { 0 });
        }
        let id = ring.raw(&[(table + shift, 16 * buffers.len() as u32, INDIRECT)]);
        ring.offer(id);
        self.guest.kick(queue as u16);
        self.used(queue)
    }

    /// A request of bytes with room for an answer: its used length, and the answer.
    fn ask(&mut self, queue: usize, request: &[u8], room: u32) -> (Vec<u32>, Vec<u8>) {
        let shift = self.guest.shift;
        self.guest.put(REQUEST, request);
        self.guest.put(ANSWER, &vec![0xee; room as usize]);
        let buffers = [
            readable(REQUEST + shift, request.len() as u32),
            writable(ANSWER + shift, room),
        ];
        let used = self.offer(queue, &buffers);
        (used, self.guest.get(ANSWER, room as usize))
    }
}

pub fn behind<D: VirtioDevice + 'static>(world: &World, endpoint: u32, device: D) -> Guest<D> {
    world.put_behind_with(endpoint, device, offered(world.kind))
}

/// A device with one packed ring, whose driver's memory is mapped.
fn run<D: VirtioDevice + 'static>(world: &mut World, endpoint: u32, device: D, features: u64, size: u16) -> Packed<D> {
    assert_eq!(world.attach(endpoint, endpoint, 0), OK);
    assert_eq!(world.map_own(endpoint), OK);
    Packed::start(behind(world, endpoint, device), features, 1, size)
}

fn disk() -> Block {
    Block::new(MemoryStorage::new(1 << 16), BlockOptions::default()).expect("a disk")
}

fn each(test: impl Fn(World, u64)) {
    for kind in BOTH {
        for features in DRIVERS {
            test(World::new(kind), features);
        }
    }
}

#[test]
fn a_packed_ring_of_any_size_works_through_what_is_mapped() {
    for size in [1, 3, 7, 64] {
        each(|mut world, features| {
            let mut rng = run(&mut world, ONE, Entropy::seeded(7), features, size);
            let mut expected = SeededRandom::new(7);
            let mut wanted = |len: usize| {
                let mut bytes = vec![0; len];
                expected.fill(&mut bytes).expect("it has no end");
                bytes
            };
            for round in 0..3 * u32::from(size) + 2 {
                let len = 10 + round;
                let used = match round % 2 {
                    0 => rng.offer(0, &[writable(SHIFT + DATA, len)]),
                    _ => rng.offer_table(0, TABLE, &[writable(SHIFT + DATA, len)]),
                };
                assert_eq!(used, [len], "{size}, {round}");
                assert_eq!(rng.guest.get(DATA, len as usize), wanted(len as usize));
            }
            assert!(!rng.needs_reset());
            assert_eq!(world.faults(), []);
        });
    }
}

#[test]
fn two_disks_read_and_write_by_the_same_addresses_in_packed_rings() {
    each(|mut world, features| {
        let mut disks = [ONE, TWO].map(|endpoint| run(&mut world, endpoint, disk(), features, 5));
        for (number, disk) in (1_u8..).zip(&mut disks) {
            // Ten laps of the ring.
            for sector in 0..17_u8 {
                let transfer = |write: u8| [&[write, 0, 0, 0, 0, 0, 0, 0, sector][..], &[0; 7]].concat();
                let request = |data| [readable(SHIFT + REQUEST, 16), data, writable(SHIFT + ANSWER, 1)];
                disk.guest.put(DATA, &[number * 100 + sector; 512]);
                disk.guest.put(REQUEST, &transfer(1));
                assert_eq!(disk.offer(0, &request(readable(SHIFT + DATA, 512))), [1]);
                disk.guest.put(REQUEST, &transfer(0));
                let read = request(writable(SHIFT + DATA + 0x1000, 512));
                assert_eq!(disk.offer_table(0, TABLE, &read), [513]);
                assert_eq!(disk.guest.get(ANSWER, 1), [0]);
                assert_eq!(disk.guest.get(DATA + 0x1000, 512), [number * 100 + sector; 512]);
            }
        }
        assert_eq!(world.faults(), []);
    });
}

#[test]
fn a_packed_chain_that_is_not_mapped_so_comes_back_and_is_told_of() {
    each(|mut world, features| {
        world.take_reports(8);
        let mut rng = run(&mut world, ONE, Entropy::seeded(1), features, 7);
        assert_eq!(world.map(ONE, (A, 0x1000), DATA, READ), OK);
        assert_eq!(world.map(ONE, (B, 0x1000), DATA, WRITE), OK);
        for (refused, fault) in [
            (writable(0x9000, 16), (2, W, ONE, 0x9000)),
            (writable(A + 0x10, 16), (2, W, ONE, A + 0x10)),
            (writable(B + 0xff8, 16), (2, W, ONE, B + 0x1000)),
        ] {
            rng.guest.put(DATA, &[0; 32]);
            let chain = [writable(SHIFT + DATA, 16), refused];
            assert_eq!(rng.offer(0, &chain), [0], "{refused:x?}");
            assert_eq!(rng.offer_table(0, TABLE, &chain), [0], "{refused:x?}");
            assert_eq!(rng.guest.get(DATA, 32), [0; 32], "nothing is written");
            assert_eq!(world.faults(), [fault; 2]);
            world.take_reports(2);
        }
        // The table itself.
        let id = rng.rings[0].raw(&[(0x5000, 32, INDIRECT)]);
        rng.rings[0].offer(id);
        rng.guest.kick(0);
        assert_eq!(rng.used(0), [0]);
        assert_eq!(world.faults(), [(2, R, ONE, 0x5000)]);
        assert_eq!(rng.guest.counters(0).malformed, 7);
        assert_eq!(rng.offer(0, &[writable(B, 16)]), [16], "and it goes on");
        assert!(!rng.needs_reset());
    });
}

// What is taken back.

fn late(world: &mut World, features: u64, stopped: Stopped) -> (Packed<Late>, Held) {
    let device = Late::new(&[64], stopped);
    let held = device.held();
    let guest = run(world, ONE, device, features, 8);
    assert_eq!(world.map(ONE, (A, 0x1000), DATA, WRITE), OK);
    assert_eq!(world.map(ONE, (B, 0x1000), DATA + 0x1000, WRITE), OK);
    (guest, held)
}

/// Makes a request to unmap available. Its answer, if it has come.
fn begin_unmap(world: &mut World, range: (u64, u64)) -> Vec<u32> {
    world.iommu.put(REQUEST, &unmap(ONE, range));
    world.iommu.offer(0, &[readable(REQUEST, 28), writable(ANSWER, 4)])
}

#[test]
fn an_unmap_waits_for_the_packed_request_that_uses_it_and_for_no_other() {
    each(|mut world, features| {
        let in_order = features & IN_ORDER != 0;
        let (mut guest, held) = late(&mut world, features, Stopped::GoesOn);
        assert_eq!(guest.offer(0, &[writable(A, 64)]), NOTHING);
        assert_eq!(guest.offer(0, &[writable(B, 64)]), NOTHING);
        assert_eq!(begin_unmap(&mut world, (A, 0x1000)), NOTHING);
        // It is not there for whoever looks now; in order, that is told after those before.
        let refused = guest.offer(0, &[writable(A, 64)]);
        assert_eq!(refused, if in_order { NOTHING.into() } else { vec![0] });
        assert!(held.complete(1), "of the other page");
        assert_eq!(guest.used(0), if in_order { NOTHING.into() } else { vec![64] });
        assert_eq!(world.iommu.used(0), NOTHING);
        assert!(held.complete(0));
        assert_eq!(world.iommu.used(0), [4]);
        assert_eq!(world.iommu.get(ANSWER, 4), [OK, 0, 0, 0]);
        assert_eq!(guest.used(0), if in_order { vec![64, 64, 0] } else { vec![64] });
        assert_eq!(guest.guest.get(DATA, 64), [FILLED; 64], "it was there until its end");
        assert_eq!(world.unmap(ONE, (B, 0x1000)), OK);
    });
}

#[test]
fn a_packed_chain_that_was_given_back_untouched_is_looked_up_as_it_is_mapped_then() {
    each(|mut world, features| {
        for mapped_again in [false, true] {
            let (mut guest, held) = late(&mut world, features, Stopped::GoesOn);
            world.take_reports(1);
            assert_eq!(guest.offer(0, &[writable(A, 64)]), NOTHING);
            assert!(held.give_back(0));
            assert_eq!(world.unmap(ONE, (A, 0x1000)), OK, "nobody uses it");
            if mapped_again {
                assert_eq!(world.map(ONE, (A, 0x1000), DATA + 0x5000, WRITE), OK);
            }
            guest.guest.put(DATA, &[0; 64]);
            guest.guest.kick(0);
            held.complete_all();
            assert_eq!(guest.used(0), [if mapped_again { 64 } else { 0 }]);
            assert_eq!(guest.guest.get(DATA, 64), [0; 64], "it is another's by now");
            let told = world.faults();
            if mapped_again {
                assert_eq!(guest.guest.get(DATA + 0x5000, 64), [FILLED; 64]);
                assert_eq!(told, []);
                assert_eq!(world.unmap(ONE, (A, 0x1000)), OK);
            } else {
                assert_eq!(told, [(2, W, ONE, A)]);
            }
            assert_eq!(world.detach(ONE, ONE), OK);
        }
    });
}

#[test]
fn threads_that_use_a_page_of_a_packed_request_and_one_that_takes_it_away_agree() {
    let mut world = World::new(BOTH[0]);
    let (mut guest, held) = late(&mut world, DRIVERS[1], Stopped::GoesOn);
    for round in 0..300_u64 {
        let (page, physical) = [(A, DATA), (B, DATA + 0x1000)][round as usize % 2];
        assert_eq!(guest.offer(0, &[writable(page, 64)]), NOTHING);
        let chain = held.take(0).expect("it is under way");
        let user = std::thread::spawn(move || {
            chain.writer().fill(0x77, 64).expect("it is there until the end");
            chain.complete(64);
        });
        let mut answer = begin_unmap(&mut world, (page, 0x1000));
        while answer.is_empty() {
            std::thread::yield_now();
            answer = world.iommu.used(0);
        }
        // From here on nobody writes there.
        assert_eq!(guest.guest.get(physical, 64), [0x77; 64], "{round}");
        guest.guest.put(physical, &[0; 64]);
        user.join().expect("no panic");
        assert_eq!(guest.guest.get(physical, 64), [0; 64], "{round}");
        assert_eq!(guest.used(0), [64]);
        assert_eq!(world.map(ONE, (page, 0x1000), physical, WRITE), OK);
    }
}

// Rings.

/// What is told of faults; with as many buffers as before for the next.
fn reported(world: &mut World) -> Vec<(u8, u32, u32, u64)> {
    let told = world.faults();
    world.take_reports(told.len() as u16);
    told
}

/// The three areas of a ring, by page, and how each is accessed.
fn areas(size: u16) -> [(u64, u32); 3] {
    let layout = PackedRing::new(&ring::memory(), RINGS, size).layout;
    [
        (layout.descriptor_area, BOTH_WAYS),
        (layout.driver_area, R),
        (layout.device_area, W),
    ]
}

/// Maps all of a driver's memory, but for one page with what it may be accessed for.
fn map_around(world: &mut World, hole: u64, flags: u32) {
    let below = (SHIFT, hole);
    let above = (SHIFT + hole + 0x1000, OWN - hole - 0x1000);
    assert_eq!(world.map(ONE, below, 0, READ | WRITE), OK);
    assert_eq!(world.map(ONE, above, hole + 0x1000, READ | WRITE), OK);
    if flags != 0 {
        assert_eq!(world.map(ONE, (SHIFT + hole, 0x1000), hole, flags), OK);
    }
}

#[test]
fn an_area_of_a_packed_ring_that_is_not_mapped_as_it_is_used_costs_the_device_and_is_told_of() {
    each(|mut world, features| {
        world.take_reports(16);
        for (area, access) in areas(8) {
            for flags in [0, READ, WRITE] {
                // Every area can be mapped for more than it is used for.
                let enough = flags != 0 && access == [0, R, W][flags as usize];
                assert_eq!(world.attach(ONE, ONE, 0), OK);
                map_around(&mut world, area, flags);
                let guest = behind(&world, ONE, Entropy::seeded(1));
                let mut rng = Packed::start(guest, features, 1, 8);
                assert_eq!(rng.needs_reset(), !enough, "{area:#x}, {flags}");
                let told = reported(&mut world);
                if enough {
                    assert_eq!(rng.offer(0, &[writable(SHIFT + DATA, 16)]), [16]);
                    assert_eq!(told, []);
                } else {
                    assert_eq!(told.first(), Some(&(2, access, ONE, SHIFT + area)), "{told:x?}");
                }
                // As it should be, a reset revives it.
                assert_eq!(world.unmap(ONE, (0, 0)), OK);
                assert_eq!(world.map_own(ONE), OK);
                let mut rng = rng.restart();
                assert_eq!(rng.offer(0, &[writable(SHIFT + DATA, 16)]), [16]);
                assert_eq!(world.detach(ONE, ONE), OK);
                reported(&mut world);
            }
        }
    });
}

#[test]
fn a_packed_ring_that_is_unmapped_between_two_requests_costs_the_device_until_its_reset() {
    each(|mut world, features| {
        world.take_reports(16);
        for (area, access) in areas(8) {
            assert_eq!(world.attach(ONE, ONE, 0), OK);
            map_around(&mut world, area, READ | WRITE);
            let mut rng = Packed::start(behind(&world, ONE, Entropy::seeded(1)), features, 1, 8);
            assert_eq!(rng.offer(0, &[writable(SHIFT + DATA, 16)]), [16]);
            assert_eq!(world.unmap(ONE, (SHIFT + area, 0x1000)), OK, "an idle queue lets go");
            assert_eq!(rng.offer(0, &[writable(SHIFT + DATA, 16)]), NOTHING);
            assert!(rng.needs_reset(), "{area:#x}");
            let told = reported(&mut world);
            assert_eq!(told.first(), Some(&(2, access, ONE, SHIFT + area)), "{told:x?}");
            assert_eq!(world.map(ONE, (SHIFT + area, 0x1000), area, READ | WRITE), OK);
            let mut rng = rng.restart();
            assert_eq!(rng.offer(0, &[writable(SHIFT + DATA, 16)]), [16]);
            assert_eq!(world.detach(ONE, ONE), OK);
            reported(&mut world);
        }
    });
}

#[test]
fn a_packed_ring_that_is_unmapped_with_a_request_under_way_is_written_to_no_more() {
    each(|mut world, features| {
        world.take_reports(16);
        let device = Late::new(&[64], Stopped::GoesOn);
        let held = device.held();
        let (ring, access) = areas(8)[0];
        assert_eq!(world.attach(ONE, ONE, 0), OK);
        map_around(&mut world, ring, READ | WRITE);
        let mut guest = Packed::start(behind(&world, ONE, device), features, 1, 8);
        assert_eq!(guest.offer(0, &[writable(SHIFT + DATA, 64)]), NOTHING);
        assert_eq!(
            world.unmap(ONE, (SHIFT + ring, 0x1000)),
            OK,
            "its buffer is elsewhere, so it holds up nobody"
        );
        let before = guest.guest.get(ring, 0x1000);
        held.complete_all();
        assert_eq!(guest.guest.get(DATA, 64), [FILLED; 64]);
        assert!(guest.guest.get(ring, 0x1000) == before, "it is another's");
        guest.guest.kick(0);
        assert!(guest.needs_reset());
        let told = reported(&mut world);
        assert!(
            !told.is_empty() && told.iter().all(|fault| *fault == (2, access, ONE, SHIFT + ring)),
            "{told:x?}"
        );
        assert_eq!(world.map(ONE, (SHIFT + ring, 0x1000), ring, READ | WRITE), OK);
        let mut guest = guest.restart();
        assert_eq!(guest.offer(0, &[writable(SHIFT + DATA, 16)]), NOTHING);
        held.complete_all();
        assert_eq!(guest.used(0), [16]);
    });
}

// State.

#[test]
fn a_packed_ring_behind_an_iommu_is_restored_with_its_request_under_way() {
    each(|mut world, features| {
        let (mut guest, held) = late(&mut world, features, Stopped::IsReturned);
        // Not at the beginning of a lap.
        for _ in 0..3 {
            assert_eq!(
                guest.offer(0, &[writable(B, 8), writable(SHIFT + DATA + 0x2000, 8)]),
                NOTHING
            );
            held.complete_all();
            assert_eq!(guest.used(0), [16]);
        }
        assert_eq!(guest.offer(0, &[writable(A, 64), writable(B + 0x100, 8)]), NOTHING);
        let saved = rest::at_rest(guest.guest.transport());
        let iommu = rest::at_rest(world.iommu.transport());
        assert_eq!(held.count(), 0);

        let mut after = moved(&mut world, &iommu);
        let device = Late::new(&[64], Stopped::GoesOn);
        let held = device.held();
        let behind = behind(&after, ONE, device);
        behind.transport().restore(&saved).expect("it was saved so");
        guest.guest = behind;
        after.iommu.transport().resume();
        guest.guest.transport().resume();
        assert_eq!(held.count(), 1);
        assert_eq!(begin_unmap(&mut after, (A, 0x1000)), NOTHING);
        held.complete_all();
        assert_eq!(after.iommu.used(0), [4]);
        assert_eq!(guest.used(0), [72]);
        assert_eq!(guest.guest.get(DATA, 64), [FILLED; 64]);
        assert_eq!(guest.offer(0, &[writable(A, 64)]), [0], "it is unmapped");
        assert_eq!(guest.offer(0, &[writable(B, 64)]), NOTHING);
        held.complete_all();
        assert_eq!(guest.used(0), [64]);
    });
}

/// A second world in the memory of the first, whose IOMMU was restored.
fn moved(world: &mut World, saved: &SavedDevice) -> World {
    let iommu = Iommu::new(world.ram.all.clone(), options()).expect("valid options");
    let mut iommu = Guest::new(world.kind, iommu, &world.iommu.memory);
    iommu.transport().restore(saved).expect("it was saved so");
    iommu.rings = std::mem::take(&mut world.iommu.rings);
    World {
        ram: world.ram.again(),
        iommu,
        kind: world.kind,
    }
}

// An IOMMU that has such rings itself.

#[test]
fn an_iommu_with_packed_rings_attaches_maps_waits_and_tells_of_faults() {
    for kind in BOTH {
        for extra in [0, EVENT_IDX] {
            let mut world = World::untouched(kind, options());
            let iommu = Iommu::new(world.ram.all.clone(), options()).expect("valid options");
            world.iommu = Guest::with_options(kind, iommu, &ring::memory(), offered(kind));
            let device = Late::new(&[64], Stopped::GoesOn);
            let held = device.held();
            let guest = behind(&world, ONE, device);
            let features = world.iommu.offered() & ALL | features::VERSION_1 | RING_PACKED | extra;
            let mut iommu = Packed::start(world.iommu, features, 2, 5);
            let mut request = |bytes: &[u8]| {
                let (used, answer) = iommu.ask(0, bytes, 4);
                (used == [4]).then_some(answer[0])
            };
            assert_eq!(request(&words(1, &[ONE, 77, 0, 0])), Some(NOENT));
            assert_eq!(request(&words(1, &[ONE, ONE, 0, 0])), Some(OK));
            assert_eq!(request(&map(ONE, (SHIFT, OWN), 0, READ | WRITE)), Some(OK));
            assert_eq!(request(&map(ONE, (A, 0x1000), DATA, WRITE)), Some(OK));
            assert_eq!(request(&map(ONE, (A, 0x1000), DATA, WRITE)), Some(INVAL));
            let (used, properties) = iommu.ask(0, &words(5, &[&[ONE][..], &[0; 16]].concat()), 516);
            assert_eq!((used, properties[0], properties[512]), (vec![516], 1, OK));

            let mut guest = Packed::start(guest, DRIVERS[0], 1, 8);
            assert_eq!(guest.offer(0, &[writable(A, 64)]), NOTHING);
            let (used, _) = iommu.ask(0, &unmap(ONE, (A, 0x1000)), 4);
            assert_eq!(used, NOTHING);
            // Those behind it are answered, into places of their own.
            iommu.guest.put(REQUEST + 0x1000, &map(ONE, (B, 0x1000), DATA, READ));
            let beside = [readable(REQUEST + 0x1000, 36), writable(ANSWER + 0x1000, 4)];
            assert_eq!(iommu.offer(0, &beside), [4]);
            assert_eq!(iommu.guest.get(ANSWER + 0x1000, 4), [OK, 0, 0, 0]);
            held.complete_all();
            assert_eq!(iommu.used(0), [4]);
            assert_eq!(iommu.guest.get(ANSWER, 4), [OK, 0, 0, 0]);
            assert_eq!(guest.used(0), [64]);
            // A buffer for a report before the fault, and one after it.
            assert_eq!(iommu.offer(1, &[writable(0xb_0000, 24)]), NOTHING);
            for page in [A, B] {
                assert_eq!(guest.offer(0, &[writable(page, 8)]), [0]);
            }
            assert_eq!(iommu.used(1), [24]);
            assert_eq!(iommu.offer(1, &[writable(0xb_0100, 24)]), [24]);
            for (report, page) in [(0xb_0000, A), (0xb_0100, B)] {
                let report = iommu.guest.get(report, 24);
                assert_eq!((report[0], &report[16..]), (2, &page.to_le_bytes()[..]));
            }
        }
    }
}
