//! What is written through translations is marked where it is.

use std::sync::Arc;

use devisor::virtio::{
    block::{Block, BlockOptions, MemoryStorage},
    entropy::Entropy,
    features::RING_PACKED,
    iommu::Iommu,
};
use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion,
    bitmap::{AtomicBitmap, NewBitmap},
};

use crate::{
    behind::PLATFORM,
    both::{BOTH, Guest},
    copied::{self, Copied},
    driver::*,
    late::{Late, Stopped},
    packed::{self, Packed},
    ring::{readable, writable},
};

type Tracked = Arc<GuestMemoryMmap<AtomicBitmap>>;

const PAGE: u64 = 0x1000;
/// Of a ring, where the device writes: used entries of a split one; used descriptors and the event structure of a packed one.
const SPLIT: &[u64] = &[0x1_2000];
const PACKED: &[u64] = &[0x1_0000, 0x1_2000];

/// The pages that were marked since this was last asked.
fn marked(memory: &Tracked) -> Vec<u64> {
    let pages = memory.iter().flat_map(|region| {
        let start = region.start_addr().0;
        let mapping: &MmapRegion<AtomicBitmap> = region;
        let words = mapping.bitmap().get_and_reset();
        let pages = (0..region.len() / PAGE).filter(move |page| words[*page as usize / 64] >> (page % 64) & 1 != 0);
        pages.map(move |page| start + PAGE * page)
    });
    pages.collect()
}

/// These pages of the second driver's memory, and those that are somewhere.
fn expected(own: &[u64], others: &[u64]) -> Vec<u64> {
    let mut pages: Vec<_> = own
        .iter()
        .map(|page| OWN + page)
        .chain(others.iter().copied())
        .collect();
    pages.sort_unstable();
    pages
}

/// A world whose IOMMU is before memory that keeps marks.
fn world<B: NewBitmap + Send + Sync + 'static>(kind: crate::both::Transport) -> (World, Arc<GuestMemoryMmap<B>>) {
    let mut world = World::untouched(kind, options());
    let tracked = world.ram.tracked();
    let iommu = Iommu::new(Arc::clone(&tracked), options()).expect("valid options");
    world.iommu = Guest::new(kind, iommu, &crate::ring::memory());
    world.drive(u64::MAX);
    (world, tracked)
}

#[test]
fn what_a_device_writes_is_marked_where_it_was_mapped_and_nothing_else_is() {
    for kind in BOTH {
        let (mut world, tracked): (_, Tracked) = world(kind);
        let mut rng = world.run_behind(TWO, Entropy::seeded(1), &[0]);
        marked(&tracked);
        assert_eq!(rng.run(0, &[writable(SHIFT + 0xc_0ff8, 16)]), 16);
        assert_eq!(
            marked(&tracked),
            expected(&[&[0xc_0000, 0xc_1000][..], SPLIT].concat(), &[])
        );
        // In several mappings, and in one after another.
        for physical in [0x5000, 0x9000] {
            assert_eq!(world.map(TWO, (0x7000, PAGE), physical, WRITE), OK);
            assert_eq!(world.map(TWO, (0x8000, PAGE), 0x2000, WRITE), OK);
            assert_eq!(
                rng.run(0, &[writable(0x7ff0, 0x20), writable(SHIFT + 0xd_0000, 1)]),
                0x21
            );
            let own = [&[0xd_0000][..], SPLIT].concat();
            assert_eq!(marked(&tracked), expected(&own, &[0x2000, physical]));
            assert_eq!(world.unmap(TWO, (0x7000, 2 * PAGE)), OK);
        }
        // What is refused writes nothing but that.
        assert_eq!(rng.run(0, &[writable(0x7000, 16)]), 0);
        assert_eq!(marked(&tracked), expected(SPLIT, &[]));
    }
}

#[test]
fn what_ends_late_and_in_a_packed_ring_is_marked_when_it_ends() {
    for kind in BOTH {
        let (mut world, tracked): (_, Tracked) = world(kind);
        let device = Late::new(&[64], Stopped::GoesOn);
        let held = device.held();
        assert_eq!(world.attach(TWO, TWO, 0), OK);
        assert_eq!(world.map_own(TWO), OK);
        assert_eq!(world.map(TWO, (0x7000, PAGE), 0x5000, WRITE), OK);
        let mut guest = Packed::start(packed::behind(&world, TWO, device), PLATFORM | RING_PACKED, 1, 8);
        marked(&tracked);
        assert_eq!(
            guest.offer(0, &[writable(0x7800, 64), writable(SHIFT + 0xc_0000, 8)]),
            packed::NOTHING
        );
        let before = marked(&tracked);
        assert!(
            !before.contains(&0x5000) && !before.contains(&(OWN + 0xc_0000)),
            "{before:x?}"
        );
        world.iommu.put(crate::both::REQUEST, &unmap(TWO, (0x7000, PAGE)));
        let request = [readable(crate::both::REQUEST, 28), writable(crate::both::ANSWER, 4)];
        assert_eq!(world.iommu.offer(0, &request), packed::NOTHING);
        held.complete_all();
        assert_eq!(world.iommu.used(0), [4]);
        assert_eq!(guest.used(0), [72]);
        let after = marked(&tracked);
        assert!(
            after.contains(&0x5000) && after.contains(&(OWN + 0xc_0000)),
            "{after:x?}"
        );
        assert!(after.contains(&(OWN + PACKED[0])), "{after:x?}");
        let all = expected(&[&[0xc_0000][..], PACKED].concat(), &[0x5000]);
        assert!(after.iter().all(|page| all.contains(page)), "{after:x?}");
    }
}

#[test]
fn what_a_device_writes_is_there_when_it_is_marked() {
    for kind in BOTH {
        let (mut world, ram) = world::<Copied>(kind);
        let storage = MemoryStorage::from(vec![7; 512]);
        let disk = Block::new(storage, BlockOptions::default()).expect("valid options");
        let mut disk = world.run_behind(TWO, disk, &[0]);
        assert_eq!(world.map(TWO, (0x7000, PAGE), 0x5000, WRITE), OK);
        assert_eq!(world.map(TWO, (0x8000, PAGE), 0x2000, WRITE), OK);
        // In one mapping, and in two that lead elsewhere: a sector, and the name.
        for data in [SHIFT + 0xc_0ff8, 0x7ff8] {
            for (request, len) in [(0, 512), (8, 20)] {
                disk.put(0xd_0000, &[[request, 0, 0, 0], [0; 4], [0; 4], [0; 4]].concat());
                disk.put(0xe_0000, &[0xee]);
                disk.ring(0).request(&[
                    readable(SHIFT + 0xd_0000, 16),
                    writable(data, len),
                    writable(SHIFT + 0xe_0000, 1),
                ]);
                copied::begin(&ram);
                disk.kick(0);
                assert_eq!((disk.used(0), disk.get(0xe_0000, 1)), (vec![len + 1], vec![0]));
                assert_eq!(copied::missing(&ram), [0_u64; 0], "request {request} at {data:#x}");
            }
        }
    }
}
