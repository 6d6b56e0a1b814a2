//! Requests under way: in any order, on several queues, stopped, canceled, saved and restored.

use std::{io, time::Duration};

use devisor::virtio::{
    DeviceState, QueueIndex, VirtioDevice, VirtioTransport,
    block::{Block, BlockOptions, Operation},
    queue::QueueCounters,
    transport::status::DEVICE_NEEDS_RESET,
};

use crate::{guest::Guest, late::Late, rest, support::*};

fn over(late: &Late, queues: u16) -> Block {
    let options = BlockOptions {
        queues,
        ..BlockOptions::default()
    };
    Block::with_async(late.clone(), options).expect("valid options")
}

/// A guest of a disk of 64 sectors over a storage that is told when to end what, with everything negotiated.
fn guest(queues: u16) -> (Late, Guest) {
    let late = Late::new(64);
    (late.clone(), Guest::new(over(&late, queues), queues, u64::MAX >> 16))
}

fn sector(of: usize) -> Vec<u8> {
    pattern(64 * 512)[of * 512..][..512].to_vec()
}

const READ: fn(u64) -> Operation = |sector| Operation::Read { offset: sector * 512 };

#[test]
fn requests_end_in_any_order_each_with_its_own_data() {
    let (late, mut guest) = guest(1);
    let asked: Vec<_> = (0..5).map(|at| guest.ask(0, T_IN, at, &[], 512)).collect();
    guest.kick(0);
    assert_eq!(late.under_way(), (0..5).map(READ).collect::<Vec<_>>());
    assert!(guest.used(0).is_empty());
    for (which, of) in [(3, 3), (0, 0), (2, 4), (0, 1), (0, 2)] {
        late.end(which);
        assert!(guest.run_if_rung(), "the storage has the queue looked at");
        assert_eq!(guest.used(0), [asked[of].head]);
        assert_eq!(guest.answer(asked[of]), (OK, sector(of)));
    }
}

#[test]
fn what_has_ended_together_is_shown_together() {
    let (late, mut guest) = guest(1);
    let asked = [0, 1].map(|at| guest.ask(0, T_IN, at, &[], 512));
    guest.kick(0);
    late.end(1);
    late.end(0);
    guest.device.run();
    assert_eq!(guest.used(0), [asked[1].head, asked[0].head]);
    assert_eq!(guest.device.counters().requests, 2);
}

#[test]
fn a_queue_does_not_wait_for_another() {
    let (late, mut guest) = guest(2);
    let slow = guest.ask(0, T_IN, 0, &[], 512);
    guest.kick(0);
    let fast = guest.ask(1, T_IN, 1, &[], 512);
    guest.kick(1);
    late.end(1);
    guest.device.run();
    assert_eq!((guest.used(0), guest.used(1)), (vec![], vec![fast.head]));
    late.end(0);
    guest.device.run();
    assert_eq!(guest.answer(slow), (OK, sector(0)));
}

#[test]
fn a_flush_is_asked_for_once_what_it_covers_has_ended_on_any_queue() {
    let (late, mut guest) = guest(2);
    guest.ask(0, T_OUT, 0, &[7; 512], 0);
    guest.kick(0);
    late.end(0);
    guest.device.run();
    assert_eq!(guest.used(0).len(), 1);
    // The storage hears of it after the write has ended there: that is what it covers.
    let flush = guest.ask(1, T_FLUSH, 0, &[], 0);
    guest.kick(1);
    assert_eq!(
        late.asked(),
        [Operation::Write { offset: 0, fua: false }, Operation::Flush]
    );
    assert!(guest.used(1).is_empty());
    late.end(0);
    guest.device.run();
    assert_eq!(guest.answer(flush).0, OK);
}

#[test]
fn without_writeback_a_write_ends_after_its_flush() {
    let late = Late::new(64);
    let mut guest = Guest::new(over(&late, 1), 1, 0);
    let asked = guest.ask(0, T_OUT, 3, &[7; 512], 0);
    guest.kick(0);
    late.end(0);
    guest.device.run();
    assert_eq!((guest.used(0), late.under_way()), (vec![], vec![Operation::Flush]));
    assert_eq!(guest.answer(asked).0, 0xee);
    late.end(0);
    guest.device.run();
    assert_eq!(guest.answer(asked).0, OK);

    let failing = guest.ask(0, T_OUT, 3, &[8; 512], 0);
    guest.kick(0);
    late.end(0);
    guest.device.run();
    late.end_as(0, Err(io::Error::other("no")));
    guest.device.run();
    assert_eq!(guest.answer(failing).0, IOERR);
}

#[test]
fn a_storage_with_forced_unit_access_needs_no_flush() {
    let late = Late::new(64).with_fua();
    let mut guest = Guest::new(over(&late, 1), 1, 0);
    let asked = guest.ask(0, T_OUT, 3, &[7; 1024], 0);
    guest.kick(0);
    late.end_short(0, 512);
    guest.device.run();
    late.end(0);
    guest.device.run();
    let write = |offset| Operation::Write { offset, fua: true };
    assert_eq!(late.asked(), [write(1536), write(2048)]);
    assert_eq!(guest.answer(asked).0, OK);

    // Where a flush comes, it is for that.
    let mut guest = Guest::new(over(&late, 1), 1, F_FLUSH);
    guest.ask(0, T_OUT, 3, &[7; 512], 0);
    guest.kick(0);
    assert_eq!(
        late.asked(),
        [Operation::Write {
            offset: 1536,
            fua: false
        }]
    );
}

#[test]
fn what_is_left_of_a_short_transfer_is_asked_for_where_it_is() {
    let (late, mut guest) = guest(1);
    let asked = guest.ask(0, T_IN, 4, &[], 3072);
    guest.kick(0);
    for len in [100, 412, 1, 2000] {
        late.end_short(0, len);
        guest.device.run();
    }
    late.end_as(0, Err(io::ErrorKind::Interrupted.into()));
    guest.device.run();
    late.end(0);
    guest.device.run();
    let offsets = [0, 100, 512, 513, 2513, 2513];
    let reads = offsets.map(|offset| Operation::Read { offset: 2048 + offset });
    assert_eq!(late.asked(), reads);
    assert_eq!(guest.answer(asked), (OK, pattern(64 * 512)[2048..][..3072].to_vec()));
}

#[test]
fn a_storage_that_lies_costs_the_request_alone() {
    let (late, mut guest) = guest(1);
    let asked = [0, 1, 2, 3].map(|at| guest.ask(0, T_IN, at, &[], 512));
    guest.kick(0);
    late.end_nobodys(1 << 40, 0);
    late.end_nobodys(77, 0);
    late.end_as(0, Ok(513));
    late.end_as(0, Ok(0));
    late.end_canceled(0);
    late.end(0);
    guest.device.run();
    let status = asked.map(|asked| guest.answer(asked).0);
    assert_eq!(status, [IOERR, IOERR, IOERR, OK]);
    assert_eq!(guest.device.with_device(|disk| disk.host_failures().count), 5);
    assert_eq!(guest.used(0).len(), 4);
}

#[test]
fn a_malformed_request_is_answered_while_others_are_under_way() {
    let (late, mut guest) = guest(1);
    guest.ask(0, T_IN, 0, &[], 512);
    let beyond = guest.ask(0, T_IN, 64, &[], 512);
    let unknown = guest.ask(0, 77, 0, &[], 16);
    let id = guest.ask(0, T_GET_ID, 0, &[], 20);
    guest.kick(0);
    assert_eq!(guest.answer(beyond), (IOERR, vec![0; 512]));
    assert_eq!(guest.answer(unknown), (UNSUPP, vec![0; 16]));
    assert_eq!(guest.answer(id).0, OK);
    assert_eq!(late.under_way().len(), 1);
}

// Stopped.

#[test]
fn a_pause_gives_back_what_is_canceled_and_waits_for_the_rest() {
    let (late, mut guest) = guest(1);
    let asked = [0, 1, 2].map(|at| guest.ask(0, T_IN, at, &[], 512));
    guest.kick(0);
    guest.device.pause();
    assert!(late.cancels() != 0 && !guest.device.is_still());
    assert_eq!(guest.device.waiting(), [(QueueIndex(0), 3)]);
    late.end_canceled(1);
    late.end(0);
    guest.device.run();
    assert!(!guest.device.is_still());
    assert_eq!(guest.used(0), [asked[0].head]);
    // Asked again by an embedder whose patience ends.
    late.obey(true);
    guest.device.cancel();
    guest.device.run();
    assert!(guest.device.is_still());
    assert!(guest.waits(0).is_empty());

    guest.device.resume();
    guest.device.run();
    assert_eq!(
        late.under_way(),
        [READ(1), READ(2)],
        "in the order in which they were asked"
    );
    late.end(0);
    late.end(0);
    guest.device.run();
    assert_eq!(guest.used(0), [asked[1].head, asked[2].head]);
    assert_eq!(guest.answer(asked[2]), (OK, sector(2)));
}

#[test]
fn requests_that_come_back_after_a_pause_has_ended_are_served_again() {
    let (late, mut guest) = guest(1);
    let asked = guest.ask(0, T_OUT, 5, &[9; 512], 0);
    guest.kick(0);
    guest.device.pause();
    guest.device.resume();
    late.end_canceled(0);
    while guest.run_if_rung() {}
    assert_eq!(late.under_way().len(), 1);
    late.end(0);
    while guest.run_if_rung() {}
    assert_eq!(guest.answer(asked).0, OK);
    assert_eq!(late.contents()[5 * 512..][..512], [9; 512]);
}

#[test]
fn a_saved_disk_serves_what_was_canceled_elsewhere() {
    let (late, mut guest) = guest(2);
    late.obey(true);
    let read = guest.ask(0, T_IN, 7, &[], 512);
    let write = guest.ask(1, T_OUT, 8, &[3; 512], 0);
    guest.kick(0);
    guest.kick(1);
    let state = rest::at_rest(&*guest.device);
    assert!(matches!(state.device, DeviceState::Block(_)));
    assert_eq!(guest.status() & DEVICE_NEEDS_RESET, 0);

    let other = Late::new(64);
    let mut there = Guest::plugged(over(&other, 2), guest.memory.clone(), std::mem::take(&mut guest.rings));
    there.device.restore(&state).expect("its own state");
    there.device.resume();
    there.device.run();
    assert_eq!(
        other.under_way(),
        [
            READ(7),
            Operation::Write {
                offset: 8 * 512,
                fua: false
            }
        ]
    );
    other.end(1);
    other.end(0);
    there.device.run();
    assert_eq!((there.used(0), there.used(1)), (vec![read.head], vec![write.head]));
    assert_eq!(there.answer(read), (OK, sector(7)));
    assert_eq!(other.contents()[8 * 512..][..512], [3; 512]);
    assert_eq!(late.contents(), pattern(64 * 512), "nothing was written where it was");
}

#[test]
fn a_reset_cancels_and_shows_the_driver_nothing_more() {
    let (late, mut guest) = guest(2);
    late.obey(true);
    guest.ask(0, T_OUT, 0, &[7; 512], 0);
    guest.ask(1, T_IN, 0, &[], 512);
    guest.kick(0);
    guest.kick(1);
    guest.reset();
    assert_eq!(guest.status(), 0);
    assert_eq!((guest.used(0), guest.used(1)), (vec![], vec![]));
    assert_eq!(late.contents(), pattern(64 * 512));

    guest.rings.iter_mut().for_each(|ring| ring.start_at(0));
    guest
        .rings
        .iter()
        .for_each(|ring| ring.put(ring.layout.device_area, 0_u32));
    guest.start(u64::MAX >> 16);
    let asked = guest.ask(0, T_IN, 1, &[], 512);
    guest.kick(0);
    late.end(0);
    guest.device.run();
    assert_eq!(guest.answer(asked), (OK, sector(1)));
}

#[test]
fn a_reset_ends_when_what_cannot_be_canceled_has_ended() {
    let (late, mut guest) = guest(1);
    guest.ask(0, T_IN, 0, &[], 512);
    guest.kick(0);
    let device = guest.device.clone();
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| guest.reset());
        while device.waiting_for().is_none() {
            std::thread::yield_now();
        }
        assert!(!reset.is_finished());
        late.end(0);
        // What an event loop does.
        while !reset.is_finished() {
            device.run();
        }
    });
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.device.counters(), QueueCounters::default());
}

#[test]
fn a_queue_that_is_stopped_cancels_its_own_requests() {
    let (late, mut guest) = guest(2);
    late.obey(true);
    guest.ask(0, T_IN, 0, &[], 512);
    let other = guest.ask(1, T_IN, 1, &[], 512);
    guest.kick(0);
    guest.kick(1);
    guest.stop_queue(0);
    assert_eq!(late.under_way(), [READ(1)]);
    late.end(0);
    guest.device.run();
    assert_eq!(guest.answer(other), (OK, sector(1)));
}

#[test]
fn a_device_that_goes_leaves_its_memory_to_what_is_under_way() {
    let (late, mut guest) = guest(1);
    guest.ask(0, T_IN, 0, &[], 512);
    guest.kick(0);
    let memory = std::sync::Arc::downgrade(&guest.memory);
    drop(guest);
    assert!(memory.upgrade().is_some(), "it may still be written");
    late.end(0);
    assert!(memory.upgrade().is_none());
}

#[test]
fn a_storage_without_a_channel_costs_the_device() {
    let late = Late::new(64);
    let block = over(&late, 1);
    late.refuse();
    let guest = Guest::new(block, 1, 0);
    assert_ne!(guest.status() & DEVICE_NEEDS_RESET, 0);
    let fault = guest.device.fault().expect("a reason").to_string();
    assert!(fault.contains("no channel today"), "{fault}");
}

#[test]
fn nothing_changes_in_a_device_that_is_still() {
    let (late, mut guest) = guest(1);
    guest.ask(0, T_IN, 0, &[], 512);
    guest.kick(0);
    guest.device.pause();
    assert!(!guest.device.wait_until_still(Some(Duration::from_millis(1))));
    late.end(0);
    guest.device.run();
    assert!(guest.device.wait_until_still(Some(Duration::ZERO)));
    let before = get(&guest.memory, 0, MEMORY_SIZE as usize);
    guest.ask(0, T_IN, 1, &[], 512);
    let asked = get(&guest.memory, 0, MEMORY_SIZE as usize);
    assert_ne!(before, asked);
    guest.kick(0);
    assert_eq!(late.under_way(), []);
    assert!(get(&guest.memory, 0, MEMORY_SIZE as usize) == asked);
}

#[test]
fn a_disk_behind_no_transport_can_be_canceled_all_the_same() {
    let mut block = over(&Late::new(4), 1);
    block.cancel(QueueIndex(0));
    block.cancel(QueueIndex(7));
}
