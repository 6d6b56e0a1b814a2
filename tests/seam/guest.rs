//! A driver at the registers and rings of a disk that is written for `QueueT`, on both transports.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use devisor::virtio::{
    DeviceState, Fault, QueueIndex,
    block::{Block, BlockOptions, MemoryStorage},
    features,
    iommu::{EndpointId, Iommu, IommuEndpoint, IommuOptions},
    transport::{TransportOptions, status::DEVICE_NEEDS_RESET},
};
use vm_memory::GuestMemoryMmap;

use crate::{
    both::{ANSWER, BOTH, COMMON, Guest, REQUEST, Transport},
    device::{Behind, Disk, QUEUE, SECTOR},
    ring::{self, readable, writable},
};

type DiskGuest = Guest<Disk>;

fn world(kind: Transport, features: u64) -> (Arc<Behind>, DiskGuest) {
    let (behind, memory) = (Behind::new(64), ring::memory());
    let guest = Guest::start(kind, Disk::new(&behind, &memory), &memory, features, &[0]);
    (behind, guest)
}

/// Makes a read of `sector` available, with room for it apart from that of others.
fn offer<D: devisor::virtio::VirtioDevice + 'static>(guest: &mut Guest<D>, sector: u64) {
    let (request, answer) = (REQUEST + 0x40 * sector, ANSWER + 0x400 * sector);
    let mut header = [0; 16];
    header[8..].copy_from_slice(&sector.to_le_bytes());
    guest.put(request, &header);
    guest.put(answer, &[0xee; SECTOR + 1]);
    guest.ring(0).request(&[
        readable(request, 16),
        writable(answer, SECTOR as u32),
        writable(answer + SECTOR as u64, 1),
    ]);
}

/// Whether a read of `sector` was answered well.
fn is_read<D: devisor::virtio::VirtioDevice + 'static>(guest: &Guest<D>, sector: u64) -> bool {
    let answer = guest.get(ANSWER + 0x400 * sector, SECTOR + 1);
    answer[..SECTOR] == [sector as u8; SECTOR] && answer[SECTOR] == 0
}

fn read(guest: &mut DiskGuest, sector: u64) {
    offer(guest, sector);
    guest.kick(0);
    assert_eq!(guest.used(0), [SECTOR as u32 + 1]);
    assert!(is_read(guest, sector));
}

#[test]
fn requests_are_answered_and_counted() {
    for kind in BOTH {
        let (behind, mut guest) = world(kind, COMMON);
        for sector in 0..20 {
            read(&mut guest, sector);
        }
        // Several with one kick, and more than the ring is long in all.
        for _ in 0..20 {
            (0..10).for_each(|sector| offer(&mut guest, sector));
            guest.kick(0);
            assert_eq!(guest.used(0).len(), 10);
            assert!((0..10).all(|sector| is_read(&guest, sector)));
        }
        let counters = guest.counters(0);
        assert_eq!((counters.requests, counters.delivered), (220, 40));
        assert_eq!(behind.answered(), 220);
    }
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    for kind in BOTH {
        let (_, mut guest) = world(kind, COMMON);
        guest.ring(0).set_no_interrupt(true);
        (0..5).for_each(|sector| read(&mut guest, sector));
        assert_eq!(guest.counters(0).delivered, 0, "{kind:?}");
        guest.ring(0).set_no_interrupt(false);
        read(&mut guest, 5);
        assert_eq!(guest.counters(0).delivered, 1, "{kind:?}");
    }
}

#[test]
fn with_event_indices_a_driver_is_told_where_it_asked() {
    for kind in BOTH {
        let (_, mut guest) = world(kind, COMMON | features::EVENT_IDX);
        // After the fifth.
        guest.ring(0).set_used_event(4);
        for sector in 0..10 {
            read(&mut guest, sector);
            assert_eq!(
                guest.counters(0).delivered,
                u64::from(sector >= 4),
                "{kind:?}, {sector}"
            );
        }
        // The device asks for a kick for whatever comes next.
        assert_eq!(guest.ring(0).avail_event(), 10);
    }
}

#[test]
fn a_driver_that_never_stops_is_served_in_turns() {
    for kind in BOTH {
        let (behind, mut guest) = world(kind, COMMON);
        behind.one_at_a_time.store(true, Ordering::SeqCst);
        (0..10).for_each(|sector| offer(&mut guest, sector));
        guest.kick(0);
        assert_eq!(guest.used(0).len(), 10);
        assert!(behind.calls() >= 10, "a call for each");
    }
}

#[test]
fn what_was_left_is_served_when_the_queue_is_looked_at() {
    for kind in BOTH {
        let (behind, mut guest) = world(kind, COMMON);
        behind.leaves.store(true, Ordering::SeqCst);
        offer(&mut guest, 3);
        guest.kick(0);
        let calls = behind.calls();
        assert!(calls <= 3, "a device that waits is asked again and again");
        assert_eq!(guest.used(0).len(), 0);
        behind.leaves.store(false, Ordering::SeqCst);
        let handle = behind.handle.lock().unwrap().clone().expect("attached");
        handle.look(QueueIndex(0));
        guest.transport().run();
        assert_eq!(guest.used(0).len(), 1);
        assert!(is_read(&guest, 3));
    }
}

#[test]
fn a_paused_queue_is_still_and_what_comes_meanwhile_is_served_afterwards() {
    for kind in BOTH {
        let (behind, mut guest) = world(kind, COMMON);
        read(&mut guest, 1);
        guest.transport().pause();
        assert!(guest.transport().is_still());
        offer(&mut guest, 2);
        guest.kick(0);
        guest.transport().run();
        assert_eq!((behind.answered(), guest.used(0).len()), (1, 0));
        guest.transport().resume();
        guest.transport().run();
        assert_eq!(guest.used(0).len(), 1);
        assert!(is_read(&guest, 2));
        read(&mut guest, 3);
    }
}

#[test]
fn a_pause_waits_for_chains_that_the_device_has_popped() {
    for kind in BOTH {
        let (behind, mut guest) = world(kind, COMMON);
        behind.hold(true);
        (0..3).for_each(|sector| offer(&mut guest, sector));
        guest.kick(0);
        assert_eq!(guest.used(0).len(), 0);
        guest.transport().pause();
        assert!(!guest.transport().is_still(), "three requests are under way");
        assert!(guest.transport().save().is_err());
        assert!(!guest.transport().wait_until_still(Some(Duration::from_millis(20))));
        behind.hold(false);
        guest.transport().process(QueueIndex(0));
        assert!(guest.transport().is_still());
        assert_eq!(guest.used(0).len(), 3);
        // One interrupt told of all three, before it was still.
        assert_eq!(guest.counters(0).delivered, 1);
        assert!(guest.transport().save().is_ok());
        guest.transport().resume();
        read(&mut guest, 4);
    }
}

#[test]
fn a_reset_begins_anew() {
    for kind in BOTH {
        let (behind, mut guest) = world(kind, COMMON);
        (0..5).for_each(|sector| read(&mut guest, sector));
        guest.reset();
        guest.drive(COMMON | features::EVENT_IDX, &[0]);
        (0..5).for_each(|sector| read(&mut guest, sector));
        // With a request that is held, the reset ends when that does.
        behind.hold(true);
        offer(&mut guest, 9);
        guest.kick(0);
        behind.hold(false);
        guest.reset();
        guest.drive(COMMON, &[0]);
        read(&mut guest, 7);
        assert_eq!(guest.transport().fault(), None);
    }
}

#[test]
fn a_queue_that_is_reset_by_itself_begins_anew() {
    let (_, mut guest) = world(Transport::Pci, COMMON | features::RING_RESET);
    (0..5).for_each(|sector| read(&mut guest, sector));
    guest.write(0, 0x16, 2, 0);
    guest.write(0, 0x3a, 2, 1);
    assert_eq!(guest.read(0, 0x3a, 2), 0, "it is done");
    guest.enable(0);
    (0..5).for_each(|sector| read(&mut guest, sector));
}

#[test]
fn a_saved_device_goes_on_in_another() {
    for kind in BOTH {
        for features in [COMMON, COMMON | features::EVENT_IDX] {
            let (behind, mut guest) = world(kind, features);
            for round in 0..30 {
                guest.ring(0).want_signal();
                (0..3).for_each(|step| read(&mut guest, (round + step) % 64));
                // And what is made available while it is saved.
                guest.transport().pause();
                offer(&mut guest, 40);
                guest = guest.moved(Disk::new(&behind, &guest.memory.clone()));
                guest.transport().run();
                assert_eq!(guest.used(0).len(), 1, "{kind:?}, {round}");
                assert!(is_read(&guest, 40));
            }
        }
    }
}

/// The state of the transport is the same, whoever serves the queue.
#[test]
fn a_device_of_ours_goes_on_from_the_state_and_the_other_way_around() {
    fn block() -> Block {
        // Of zeros, as the first sector of the other.
        let storage = MemoryStorage::new(64 * SECTOR);
        let options = BlockOptions {
            queue_size: QUEUE,
            ..BlockOptions::default()
        };
        Block::new(storage, options).expect("a disk")
    }
    for kind in BOTH {
        let (_, mut foreign) = world(kind, COMMON);
        (0..70).for_each(|sector| read(&mut foreign, sector % 64));
        let state = crate::rest::at_rest(foreign.transport());
        let mut ours = Guest::new(kind, block(), &foreign.memory);
        let mut into_ours = state.clone();
        into_ours.device = ours.saved().device;
        ours.transport().restore(&into_ours).expect("a queue is a queue");
        ours.transport().resume();
        ours.rings = std::mem::take(&mut foreign.rings);
        offer(&mut ours, 0);
        ours.kick(0);
        assert_eq!(ours.used(0).len(), 1);
        assert!(is_read(&ours, 0));

        let mut back = crate::rest::at_rest(ours.transport());
        back.device = DeviceState::None;
        let mut again: DiskGuest = Guest::new(kind, Disk::new(&Behind::new(64), &foreign.memory), &foreign.memory);
        again.transport().restore(&back).expect("a queue is a queue");
        again.transport().resume();
        again.rings = std::mem::take(&mut ours.rings);
        read(&mut again, 6);
    }
}

#[test]
fn a_ring_that_the_foreign_queue_finds_broken_costs_the_device_and_a_reset_revives_it() {
    for kind in BOTH {
        let (_, mut guest) = world(kind, COMMON);
        read(&mut guest, 0);
        let ahead = guest.ring(0).avail_idx().wrapping_add(200);
        guest.ring(0).set_avail_idx(ahead);
        guest.kick(0);
        assert_eq!(guest.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
        assert!(guest.was_told());
        assert!(matches!(guest.transport().fault(), Some(Fault::Elsewhere(_))));
        guest.reset();
        guest.drive(COMMON, &[0]);
        read(&mut guest, 1);
    }
}

/// It is popped, and cannot be used: the foreign queue has one in flight for good.
#[test]
fn a_head_that_cannot_be_costs_the_device_and_a_reset_revives_it() {
    for kind in BOTH {
        let (_, mut guest) = world(kind, COMMON);
        read(&mut guest, 0);
        guest.ring(0).offer(QUEUE);
        guest.kick(0);
        assert_eq!(guest.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
        assert_eq!(guest.transport().waiting(), [], "or the driver would wait for ever");
        guest.reset();
        guest.drive(COMMON, &[0]);
        read(&mut guest, 1);
    }
}

#[test]
fn a_handler_that_panics_loses_no_request_and_holds_up_no_pause() {
    for kind in BOTH {
        let (behind, mut guest) = world(kind, COMMON);
        read(&mut guest, 0);
        (1..4).for_each(|sector| offer(&mut guest, sector));
        // One is answered, the next is popped.
        behind.panics_at.store(3, Ordering::SeqCst);
        let kick = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| guest.kick(0)));
        assert!(kick.is_err());
        guest.transport().pause();
        assert!(guest.transport().is_still());
        guest.transport().resume();
        guest.transport().run();
        assert_eq!(guest.used(0).len(), 3, "{kind:?}: each once");
        assert!((1..4).all(|sector| is_read(&guest, sector)));
        read(&mut guest, 4);
    }
}

/// Rounds are over when it stops, and it has ended nothing.
#[test]
fn a_device_that_cannot_drain_a_broken_ring_is_stopped_all_the_same() {
    for kind in BOTH {
        let (behind, mut guest) = world(kind, COMMON);
        behind.hold(true);
        guest.ring(0).offer(QUEUE);
        guest.kick(0);
        behind.hold(false);
        assert_eq!(guest.status() & DEVICE_NEEDS_RESET, 0, "it is held");
        guest.transport().pause();
        assert!(guest.transport().is_still());
        guest.transport().resume();
        guest.transport().run();
        assert_eq!(guest.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
        guest.reset();
        guest.drive(COMMON, &[0]);
        read(&mut guest, 1);
    }
}

#[test]
fn a_request_that_is_malformed_costs_that_request() {
    for kind in BOTH {
        let (_, mut guest) = world(kind, COMMON);
        // No header, and a header that is short.
        assert_eq!(guest.offer(0, &[writable(ANSWER, 16)]), [0]);
        assert_eq!(guest.offer(0, &[readable(REQUEST, 8), writable(ANSWER, 16)]), [0]);
        read(&mut guest, 2);
    }
}

#[test]
fn a_device_behind_an_iommu_would_not_be_held_to_what_is_mapped_and_is_not_let_at_memory() {
    for kind in BOTH {
        let (behind, memory) = (Behind::new(64), ring::memory());
        let options = IommuOptions {
            endpoints: vec![IommuEndpoint::new(EndpointId(1))],
            ..IommuOptions::default()
        };
        let iommu = Iommu::new(Arc::clone(&memory), options).expect("an IOMMU");
        let space = iommu.memory(EndpointId(1)).expect("an endpoint");
        let device = Disk::new(&behind, &memory);
        let mut guest = Guest::behind(kind, device, (&memory, space, 0), kind.options());
        guest.drive(COMMON | features::ACCESS_PLATFORM, &[0]);
        offer(&mut guest, 3);
        guest.kick(0);
        assert_eq!(
            behind.answered(),
            0,
            "its ring is where the driver says, translated or not"
        );
        assert_eq!(guest.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
        assert!(
            matches!(guest.transport().fault(), Some(Fault::Host(_))),
            "{:?}",
            guest.transport().fault()
        );
        guest.reset();
    }
}

#[test]
fn packed_rings_are_refused_when_features_are_agreed_on() {
    for kind in BOTH {
        let memory: Arc<GuestMemoryMmap> = ring::memory();
        let options = TransportOptions {
            packed: true,
            ..kind.options()
        };
        let device = Disk::new(&Behind::new(64), &memory);
        let mut guest = Guest::with_options(kind, device, &memory, options);
        assert!(!guest.negotiate(COMMON | features::RING_PACKED));
        guest.reset();
        guest.drive(COMMON, &[0]);
        read(&mut guest, 0);
    }
}

#[test]
fn kicks_of_several_threads_and_pauses_between_lose_nothing() {
    for kind in BOTH {
        let (behind, mut guest) = world(kind, COMMON);
        for round in 0..100_u64 {
            (0..10).for_each(|sector| offer(&mut guest, sector));
            std::thread::scope(|scope| {
                let guest = &guest;
                scope.spawn(|| guest.transport().process(QueueIndex(0)));
                scope.spawn(|| guest.transport().run());
                if round % 2 == 0 {
                    guest.transport().pause();
                    assert!(guest.transport().wait_until_still(Some(Duration::from_secs(20))));
                    let still = behind.answered();
                    std::thread::yield_now();
                    assert_eq!(behind.answered(), still, "a device at rest");
                    guest.transport().resume();
                }
            });
            guest.transport().process(QueueIndex(0));
            assert_eq!(guest.used(0).len(), 10, "{kind:?}, {round}");
            assert!((0..10).all(|sector| is_read(&guest, sector)));
        }
    }
}
