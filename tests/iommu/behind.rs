//! Devices that see memory as it is mapped for them.

use devisor::virtio::{
    VirtioDevice,
    block::{Block, BlockOptions, MemoryStorage},
    entropy::{Entropy, SeededRandom, Source},
    features,
    iommu::{Bypass, F_BYPASS, Iommu, IommuOptions},
};

use crate::{
    both::{ANSWER, BOTH, COMMON, Guest, REQUEST},
    driver::*,
    ring::{Buffer, INDIRECT, readable, writable},
};

pub const PLATFORM: u64 = COMMON | features::ACCESS_PLATFORM;

pub fn disk() -> Block {
    Block::new(MemoryStorage::new(1 << 16), BlockOptions::default()).expect("a disk")
}

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SeededRandom::new(7).fill(&mut bytes).expect("it has no end");
    bytes
}

/// A request of a disk, at the driver's own addresses: its status.
fn transfer<D: VirtioDevice + 'static>(block: &mut Guest<D>, write: bool, sector: u64, data: Buffer) -> u8 {
    block.put(
        REQUEST,
        &[&[u8::from(write), 0, 0, 0, 0, 0, 0, 0][..], &sector.to_le_bytes()].concat(),
    );
    block.put(ANSWER, &[0xee]);
    let shift = block.shift;
    let buffers = [readable(REQUEST + shift, 16), data, writable(ANSWER + shift, 1)];
    block.run(0, &buffers);
    block.get(ANSWER, 1)[0]
}

#[test]
fn two_devices_work_through_what_is_mapped_for_each_at_the_same_addresses() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let mut rng = world.run_behind(ONE, Entropy::seeded(7), &[0]);
        let mut block = world.run_behind(TWO, disk(), &[0]);
        for _ in 0..3 {
            assert_eq!(rng.run(0, &[writable(SHIFT + 0xc_0000, 100)]), 100);
        }
        rng.run(0, &[writable(SHIFT + 0xc_0000, 10), writable(SHIFT + 0xc_0100, 22)]);
        assert_eq!(block.get(0xc_0000, 16), [0; 16], "another's memory");
        block.put(0xc_0000, b"written through");
        assert_eq!(transfer(&mut block, true, 3, readable(SHIFT + 0xc_0000, 512)), 0);
        assert_eq!(transfer(&mut block, false, 3, writable(SHIFT + 0xd_0000, 512)), 0);
        assert_eq!(&block.get(0xd_0000, 15), b"written through");
        assert_eq!(world.faults(), []);
    }
    // The same bytes as without an IOMMU.
    let mut world = World::new(BOTH[0]);
    let mut rng = world.run_behind(ONE, Entropy::seeded(7), &[0]);
    assert_eq!(rng.run(0, &[writable(SHIFT + 0xc_0000, 64)]), 64);
    assert_eq!(rng.get(0xc_0000, 64), random(64));
}

#[test]
fn a_driver_that_does_not_accept_access_platform_is_not_let_at_the_device() {
    for kind in BOTH {
        let world = World::new(kind);
        let guest = world.put_behind(ONE, Entropy::from_os());
        assert_ne!(guest.offered() & features::ACCESS_PLATFORM, 0);
        assert!(!guest.negotiate(COMMON));
        guest.set_status(0);
        assert!(guest.negotiate(PLATFORM));
        // And where nothing is translated, it is not offered.
        let plain = Guest::new(kind, Entropy::from_os(), &world.ram.own[0]);
        assert_eq!(plain.offered() & features::ACCESS_PLATFORM, 0);
    }
}

#[test]
fn a_buffer_may_lie_in_any_number_of_mappings_and_only_in_their_directions() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let mut block = world.run_behind(ONE, disk(), &[0]);
        // 128 pages in reverse order.
        const AT: u64 = 0x1_0000_0000;
        for page in 0..128 {
            let physical = 0xf_f000 - page * 0x1000;
            assert_eq!(world.map(ONE, (AT + page * 0x1000, 0x1000), physical, READ | WRITE), OK);
        }
        for page in 0..128_u64 {
            block.put(0xf_f000 - page * 0x1000, &[page as u8; 0x1000]);
        }
        // One buffer through 8 of them, from the middle of the first; and back into one piece.
        assert_eq!(
            transfer(
                &mut block,
                true,
                0,
                readable(AT + 100 * 0x1000 + 0x600, 7 * 0x1000 + 0x200)
            ),
            0
        );
        assert_eq!(
            transfer(&mut block, false, 0, writable(SHIFT + 0x2_0000, 7 * 0x1000 + 0x200)),
            0
        );
        let back = block.get(0x2_0000, 7 * 0x1000 + 0x200);
        let expected: Vec<_> = (0x600..0x7800).map(|at: u32| 100 + (at >> 12) as u8).collect();
        assert!(back == expected);
        // A chain with more translations than a queue keeps, for each of its requests.
        let mut pieces = vec![readable(REQUEST + SHIFT, 16)];
        pieces.extend((0..64).map(|page| readable(AT + page * 0x1000, 512)));
        pieces.push(writable(ANSWER + SHIFT, 1));
        block.put(REQUEST, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for _ in 0..3 {
            let ring = block.ring(0);
            let head = ring.add_indirect(0x4_0000, &pieces);
            ring.descriptor(head, SHIFT + 0x4_0000, 16 * pieces.len() as u32, INDIRECT, 0);
            ring.offer(head);
            block.kick(0);
            assert_eq!(block.used(0), [1]);
        }
        assert_eq!(transfer(&mut block, false, 63, writable(SHIFT + 0x2_0000, 512)), 0);
        assert_eq!(block.get(0x2_0000, 512), [63; 512]);
        assert_eq!(world.faults(), []);
    }
}

#[test]
fn a_mapping_that_has_changed_is_used_as_it_is_now() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let mut rng = world.run_behind(ONE, Entropy::seeded(1), &[0]);
        const AT: u64 = 0x7000;
        for round in 0..200 {
            let physical = 0xc_0000 + round % 5 * 0x1000;
            rng.put(physical, &[0; 64]);
            assert_eq!(world.map(ONE, (AT, 0x1000), physical, WRITE), OK);
            assert_eq!(rng.run(0, &[writable(AT, 64)]), 64);
            assert_ne!(rng.get(physical, 64), [0; 64], "{round}");
            assert_eq!(world.unmap(ONE, (AT, 0x1000)), OK);
            assert_eq!(rng.run(0, &[writable(AT, 64)]), 0, "{round}");
        }
        assert_eq!(rng.counters(0).malformed, 200);
    }
}

#[test]
fn regions_side_by_side_and_their_end_are_what_they_are_without_translation() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let mut rng = world.run_behind(ONE, Entropy::seeded(1), &[0]);
        const AT: u64 = 0x100_0000;
        assert_eq!(world.map(ONE, (AT, 4 * OWN), 0, READ | WRITE), OK);
        assert_eq!(rng.run(0, &[writable(AT + OWN - 10, 20)]), 20, "across two regions");
        assert_eq!(rng.run(0, &[writable(AT + 2 * OWN - 10, 10)]), 10, "the last bytes");
        assert_eq!(rng.run(0, &[writable(AT + 2 * OWN - 10, 11)]), 0, "behind the end");
        assert_eq!(rng.run(0, &[writable(AT + 3 * OWN, 1)]), 0);
        // What is mapped and leads nowhere is not a fault of translation.
        assert_eq!(world.faults(), []);
    }
}

// Bypass.

#[test]
fn who_is_attached_to_nothing_bypasses_as_the_configuration_says() {
    for kind in BOTH {
        let bypassing = |bypass, drive: fn(&mut World)| {
            let mut world = World::untouched(kind, IommuOptions { bypass, ..options() });
            let mut rng = world.put_behind(ONE, Entropy::seeded(1));
            rng.shift = 0;
            drive(&mut world);
            rng.drive(PLATFORM, &[]);
            rng.reset();
            assert!(rng.negotiate(PLATFORM));
            rng.enable(0);
            rng.set_status(15);
            if rng.status() & 64 != 0 {
                return None;
            }
            Some(rng.run(0, &[writable(0xc_0000, 16)]))
        };
        // Firmware that knows no IOMMU, and no driver yet.
        assert_eq!(bypassing(Bypass::Config(true), |_| ()), Some(16));
        assert_eq!(bypassing(Bypass::Config(false), |_| ()), None);
        assert_eq!(bypassing(Bypass::Never, |_| ()), None);
        assert_eq!(bypassing(Bypass::Never, |world| world.drive(u64::MAX)), None);
        assert_eq!(bypassing(Bypass::Feature, |_| ()), None);
        assert_eq!(bypassing(Bypass::Feature, |world| world.drive(F_BYPASS)), Some(16));
        assert_eq!(bypassing(Bypass::Feature, |world| world.drive(0)), None);
        assert_eq!(
            bypassing(Bypass::Config(true), |world| {
                world.drive(u64::MAX);
                world.iommu.set_config(36, 1, 0);
            }),
            None
        );
        // A domain that bypasses, while those outside of domains do not.
        assert_eq!(
            bypassing(Bypass::Config(false), |world| {
                world.drive(u64::MAX);
                assert_eq!(world.attach(1, ONE, 1), OK);
            }),
            Some(16)
        );
    }
}

#[test]
fn an_endpoint_that_bypasses_does_not_reach_what_it_keeps_for_itself() {
    for kind in BOTH {
        let mut options = options();
        options.endpoints[0].reserved[0].addresses = 0xc_0000..=0xc_0fff;
        let mut world = World::with(kind, options, u64::MAX);
        let mut rng = world.put_behind(ONE, Entropy::seeded(1));
        rng.shift = 0;
        rng.drive(PLATFORM, &[0]);
        world.take_reports(4);
        assert_eq!(rng.run(0, &[writable(0xc_0800, 4)]), 0);
        assert_eq!(rng.run(0, &[writable(0xb_fff0, 0x20)]), 0);
        assert_eq!(rng.run(0, &[writable(0xb_fff0, 0x10)]), 16);
        assert_eq!(rng.run(0, &[writable(0xc_1000, 0x10)]), 16);
        let told = world.faults();
        assert_eq!(told, [(2, 0x102, ONE, 0xc_0800), (2, 0x102, ONE, 0xc_0000)]);
    }
}

// Rings.

#[test]
fn a_ring_that_is_no_longer_mapped_costs_the_device_until_its_reset() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let mut rng = world.run_behind(ONE, Entropy::seeded(1), &[0]);
        let mut block = world.run_behind(TWO, disk(), &[0]);
        assert_eq!(rng.run(0, &[writable(SHIFT + 0xc_0000, 16)]), 16);
        assert_eq!(world.unmap(ONE, (SHIFT, OWN)), OK);
        rng.ring(0).request(&[writable(SHIFT + 0xc_0000, 16)]);
        rng.kick(0);
        assert_eq!(rng.status() & 64, 64);
        assert_eq!(rng.used(0), [] as [u32; 0]);
        assert_eq!(
            transfer(&mut block, false, 0, writable(SHIFT + 0xc_0000, 512)),
            0,
            "another goes on"
        );
        assert_eq!(world.map_own(ONE), OK);
        rng.reset();
        rng.drive(PLATFORM, &[0]);
        assert_eq!(rng.run(0, &[writable(SHIFT + 0xc_0000, 16)]), 16);
    }
}

#[test]
fn an_iommu_that_is_gone_lets_nobody_at_memory() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let mut rng = world.run_behind(ONE, Entropy::seeded(1), &[0]);
        assert_eq!(rng.run(0, &[writable(SHIFT + 0xc_0000, 16)]), 16);
        world.iommu = Guest::new(
            kind,
            Iommu::new(world.ram.all.clone(), options()).unwrap(),
            &world.ram.own[0],
        );
        rng.ring(0).request(&[writable(SHIFT + 0xc_0000, 16)]);
        // What is known already is in use, as of a device that goes on for a moment.
        rng.reset();
        assert!(rng.negotiate(PLATFORM));
        rng.enable(0);
        rng.set_status(15);
        assert_eq!(rng.status() & 64, 64);
    }
}

/// A device that is written for another crate's queues: it accesses its own guest memory by the driver's addresses.
#[cfg(feature = "virtio-queue")]
mod foreign {
    use std::sync::Arc;

    use devisor::virtio::{
        DeviceId, Fault, QueueHandler, QueueIndex, VirtioDevice,
        queue::Rest,
        seam::{
            Foreign, QueueTHandler, Signal, accepts,
            virtio_queue::{Queue, QueueT},
        },
    };
    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    struct Loops;

    impl QueueTHandler<Arc<GuestMemoryMmap>> for Loops {
        fn serve(&mut self, queue: &mut Queue, memory: &Arc<GuestMemoryMmap>, _: &Signal<'_>) -> Result<Rest, Fault> {
            while let Some(chain) = queue.pop_descriptor_chain(Arc::clone(memory)) {
                let head = chain.head_index();
                let room = chain.writable().next();
                let written = room.is_some_and(|room| memory.write_obj(7_u8, room.addr()).is_ok());
                queue.add_used(&**memory, head, written.into())?;
            }
            Ok(Rest::Drained)
        }
    }

    struct Device(Arc<GuestMemoryMmap>);

    impl VirtioDevice for Device {
        fn device_id(&self) -> DeviceId {
            DeviceId::ENTROPY
        }

        fn queue_sizes(&self) -> &[u16] {
            &[64]
        }

        fn accepts(&self, features: u64) -> bool {
            accepts(features)
        }

        fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
            Box::new(Foreign::new(Loops, Arc::clone(&self.0), 64))
        }
    }

    #[test]
    fn a_device_that_sees_no_translation_is_not_let_at_memory_by_translated_addresses() {
        for kind in BOTH {
            let mut world = World::new(kind);
            let mut guest = world.put_behind(TWO, Device(Arc::clone(&world.ram.all)));
            // Where a driver has its ring as the first driver's memory has it: that is what it would reach.
            assert_eq!(world.attach(TWO, TWO, 0), OK);
            assert_eq!(world.map(TWO, (0, OWN), OWN, READ | WRITE), OK);
            guest.shift = 0;
            guest.drive(PLATFORM & !features::INDIRECT_DESC, &[0]);
            guest.ring(0).request(&[writable(0xc_0000, 16)]);
            let theirs = guest.ring(0).layout.descriptor_area;
            let ring = guest.get(theirs, 0x4000);
            world.ram.own[0]
                .write_slice(&ring, vm_memory::GuestAddress(theirs))
                .expect("the same ring, in the memory of another driver");
            guest.kick(0);
            assert_eq!(guest.status() & 64, 64);
            let mut byte = [0];
            world.ram.own[0]
                .read_slice(&mut byte, vm_memory::GuestAddress(0xc_0000))
                .expect("in memory");
            assert_eq!(byte, [0], "another driver's memory");
        }
    }
}
