//! What is taken back while it is in use.

use std::sync::Arc;

use crate::{
    both::{ANSWER, BOTH, Guest, REQUEST},
    driver::*,
    late::{FILLED, Held, Late, Stopped},
    rest,
    ring::{readable, writable},
};

const A: u64 = 0x10_0000;
const B: u64 = 0x20_0000;

/// A device that ends its requests when it is told to, with two pages mapped besides its driver's memory.
fn late(world: &mut World, stopped: Stopped) -> (Guest<Late>, Held) {
    let device = Late::new(&[64], stopped);
    let held = device.held();
    let guest = world.run_behind(ONE, device, &[0]);
    assert_eq!(world.map(ONE, (A, 0x1000), 0xc_0000, WRITE), OK);
    assert_eq!(world.map(ONE, (B, 0x1000), 0xd_0000, WRITE), OK);
    (guest, held)
}

/// Makes a request available whose answer may come later: at once, or nothing.
fn begin(world: &mut World, bytes: &[u8]) -> Option<u8> {
    world.iommu.put(REQUEST, bytes);
    world.iommu.put(ANSWER, &[0xee; 4]);
    let used = world
        .iommu
        .offer(0, &[readable(REQUEST, bytes.len() as u32), writable(ANSWER, 4)]);
    match used[..] {
        [] => None,
        [4] => Some(world.iommu.get(ANSWER, 1)[0]),
        _ => panic!("{used:?}"),
    }
}

/// The answer to what was [begun](begin), if it has come.
fn end(world: &mut World) -> Option<u8> {
    match world.iommu.used(0)[..] {
        [] => None,
        [4] => Some(world.iommu.get(ANSWER, 1)[0]),
        _ => panic!("more than one"),
    }
}

#[test]
fn an_unmap_waits_for_the_request_that_uses_it_and_for_no_other() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let (mut guest, held) = late(&mut world, Stopped::GoesOn);
        assert_eq!(guest.offer(0, &[writable(A, 64)]), [] as [u32; 0]);
        assert_eq!(guest.offer(0, &[writable(B, 64)]), [] as [u32; 0]);
        assert_eq!(held.count(), 2);
        assert_eq!(begin(&mut world, &unmap(ONE, (A, 0x1000))), None);
        // It is not there for whoever looks now, and others are answered meanwhile.
        assert_eq!(guest.offer(0, &[writable(A, 64)]), [0]);
        assert!(held.complete(1), "of the other page");
        assert_eq!(guest.used(0), [64]);
        assert_eq!(end(&mut world), None);
        assert!(held.complete(0));
        assert_eq!(end(&mut world), Some(OK));
        assert_eq!(guest.used(0), [64]);
        assert_eq!(guest.get(0xc_0000, 64), [FILLED; 64], "it was there until its end");
        // And the other needs nobody's patience.
        assert_eq!(world.unmap(ONE, (B, 0x1000)), OK);
    }
}

#[test]
fn requests_behind_one_that_waits_are_answered() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let (mut guest, held) = late(&mut world, Stopped::GoesOn);
        guest.offer(0, &[writable(A, 64)]);
        assert_eq!(begin(&mut world, &unmap(ONE, (A, 0x1000))), None);
        world.iommu.put(REQUEST + 0x1000, &map(ONE, (0x5000, 0x1000), 0, READ));
        let beside = [readable(REQUEST + 0x1000, 36), writable(ANSWER + 0x1000, 4)];
        assert_eq!(world.iommu.offer(0, &beside), [4]);
        assert_eq!(world.iommu.get(ANSWER + 0x1000, 4), [OK, 0, 0, 0]);
        held.complete_all();
        assert_eq!(end(&mut world), Some(OK));
    }
}

#[test]
fn a_detachment_waits_for_all_that_its_endpoint_uses_and_so_does_an_attachment_elsewhere() {
    for kind in BOTH {
        for request in [words(2, &[ONE, ONE, 0, 0]), words(1, &[77, ONE, 0, 0])] {
            let mut world = World::new(kind);
            let (mut guest, held) = late(&mut world, Stopped::GoesOn);
            guest.offer(0, &[writable(A, 64)]);
            guest.offer(0, &[writable(B, 64), writable(SHIFT + 0xe_0000, 1)]);
            assert_eq!(begin(&mut world, &request), None);
            assert!(held.complete(0));
            assert_eq!(end(&mut world), None);
            assert!(held.complete(0));
            assert_eq!(end(&mut world), Some(OK));
            assert_eq!(guest.get(0xe_0000, 1), [FILLED]);
            // There is no ring to tell of them in.
            assert_eq!(guest.used(0), [] as [u32; 0]);
        }
    }
}

#[test]
fn two_requests_for_the_same_range_both_wait() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let (mut guest, held) = late(&mut world, Stopped::GoesOn);
        guest.offer(0, &[writable(A, 64)]);
        assert_eq!(begin(&mut world, &unmap(ONE, (A, 0x1000))), None);
        world.iommu.put(REQUEST + 0x1000, &unmap(ONE, (0, 0x100_0000)));
        let beside = [readable(REQUEST + 0x1000, 28), writable(ANSWER + 0x1000, 4)];
        assert_eq!(world.iommu.offer(0, &beside), [] as [u32; 0]);
        held.complete_all();
        assert_eq!(world.iommu.used(0), [4, 4]);
    }
}

#[test]
fn a_buffer_in_several_mappings_holds_each_of_them() {
    for kind in BOTH {
        for unmapped in [0, 1, 2] {
            let mut world = World::new(kind);
            let (mut guest, held) = late(&mut world, Stopped::GoesOn);
            for (page, physical) in [(1, 0xe_0000), (2, 0xe_8000)] {
                assert_eq!(world.map(ONE, (A + page * 0x1000, 0x1000), physical, WRITE), OK);
            }
            guest.offer(0, &[writable(A + 0xff0, 0x1020)]);
            assert_eq!(begin(&mut world, &unmap(ONE, (A + unmapped * 0x1000, 0x1000))), None);
            held.complete_all();
            assert_eq!(end(&mut world), Some(OK));
            assert_eq!(guest.get(0xe_0000, 0x1000), [FILLED; 0x1000], "{unmapped}");
            assert_eq!(guest.get(0xe_8000, 0x10), [FILLED; 0x10]);
        }
    }
}

#[test]
fn a_request_that_is_given_back_untouched_holds_nothing_and_faults_when_it_is_served_again() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let (mut guest, held) = late(&mut world, Stopped::GoesOn);
        guest.offer(0, &[writable(A, 64)]);
        assert_eq!(begin(&mut world, &unmap(ONE, (A, 0x1000))), None);
        assert!(held.give_back(0));
        assert_eq!(end(&mut world), Some(OK));
        guest.transport().run();
        guest.kick(0);
        assert_eq!(guest.used(0), [0]);
    }
}

#[test]
fn an_iommu_comes_to_rest_while_a_request_waits_and_goes_on_with_it() {
    for kind in BOTH {
        for ended_while_paused in [false, true] {
            let mut world = World::new(kind);
            let (mut guest, held) = late(&mut world, Stopped::GoesOn);
            guest.offer(0, &[writable(A, 64)]);
            assert_eq!(begin(&mut world, &unmap(ONE, (A, 0x1000))), None);
            let _ = rest::at_rest(world.iommu.transport());
            assert_eq!(end(&mut world), None);
            if ended_while_paused {
                held.complete_all();
                assert_eq!(end(&mut world), None);
            }
            // A mapping that was made meanwhile would be another one's: nothing is unmapped twice.
            world.iommu.transport().resume();
            assert_eq!(end(&mut world), ended_while_paused.then_some(OK));
            held.complete_all();
            assert_eq!(end(&mut world), (!ended_while_paused).then_some(OK));
            assert_eq!(guest.used(0), [64]);
        }
    }
}

#[test]
fn a_reset_of_the_iommu_drops_what_waits() {
    for kind in BOTH {
        let mut world = World::new(kind);
        let (mut guest, held) = late(&mut world, Stopped::GoesOn);
        guest.offer(0, &[writable(A, 64)]);
        assert_eq!(begin(&mut world, &unmap(ONE, (A, 0x1000))), None);
        world.iommu.reset();
        world.drive(u64::MAX);
        held.complete_all();
        assert_eq!(world.iommu.used(0), [] as [u32; 0]);
        assert_eq!(world.attach(ONE, ONE, 0), OK);
    }
}

#[test]
fn threads_that_use_a_page_and_one_that_takes_it_away_agree() {
    let mut world = World::new(BOTH[0]);
    let (mut guest, held) = late(&mut world, Stopped::GoesOn);
    for round in 0..300_u64 {
        let page = [A, B][round as usize % 2];
        let physical = [0xc_0000, 0xd_0000][round as usize % 2];
        guest.offer(0, &[writable(page, 64)]);
        let chain = held.take(0).expect("it is under way");
        let ram = Arc::clone(&world.ram.own[0]);
        let user = std::thread::spawn(move || {
            chain.writer().fill(0x77, 64).expect("it is there until the end");
            chain.complete(64);
            drop(ram);
        });
        let mut answer = begin(&mut world, &unmap(ONE, (page, 0x1000)));
        while answer.is_none() {
            answer = end(&mut world);
            std::thread::yield_now();
        }
        // From here on nobody writes there.
        let bytes = guest.get(physical, 64);
        assert_eq!(bytes, [0x77; 64], "{round}");
        guest.put(physical, &[0; 64]);
        user.join().unwrap();
        assert_eq!(guest.get(physical, 64), [0; 64], "{round}");
        assert_eq!(guest.used(0), [64]);
        assert_eq!(world.map(ONE, (page, 0x1000), physical, WRITE), OK);
    }
}
