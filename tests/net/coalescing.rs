//! Coalescing of notifications (virtio 1.2, section 5.1.6.5.8; of a queue by itself since 1.3), by a clock that the test moves.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use devisor::virtio::{
    QueueIndex, VirtioTransport, Wait,
    net::{Header, Net, Wire},
};

use crate::guest::*;

const COAL: u8 = 6;
const TX_SET: u8 = 0;
const RX_SET: u8 = 1;
const VQ_SET: u8 = 2;
const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);

fn guest() -> (Arc<Wire>, Guest) {
    let wire = Arc::new(Wire::new(64));
    let guest = Guest::new(&wire, options(), CTRL_VQ | NOTF_COAL | VQ_NOTF_COAL);
    (wire, guest)
}

fn set(packets: u32, usecs: u32) -> Vec<u8> {
    [packets.to_le_bytes(), usecs.to_le_bytes()].concat()
}

fn micros(n: u64) -> Duration {
    Duration::from_micros(n)
}

/// How many interrupts come while something is done.
fn told(guest: &mut Guest, act: impl FnOnce(&mut Guest)) -> u64 {
    let before = guest.interrupts.load(SeqCst);
    act(guest);
    guest.interrupts.load(SeqCst) - before
}

fn receive(wire: &Wire, guest: &mut Guest, n: usize) -> u64 {
    told(guest, |guest| {
        for _ in 0..n {
            assert!(wire.put(plain(OWN, 60)));
            guest.buffer(0, 1526);
        }
    })
}

fn send(guest: &mut Guest, n: usize) -> u64 {
    told(guest, |guest| {
        (0..n).for_each(|_| guest.transmit(Header::default(), &frame(OTHER, 60)));
    })
}

#[test]
fn without_a_clock_it_is_not_offered() {
    let features = |nic: Net| devisor::virtio::VirtioDevice::features(&nic) & (NOTF_COAL | VQ_NOTF_COAL);
    let nic = || Net::new([Wire::new(1)], options()).unwrap();
    assert_eq!(features(nic()), 0);
    assert_eq!(
        features(nic().with_clock(devisor::time::ManualClock::default())),
        NOTF_COAL | VQ_NOTF_COAL
    );
}

#[test]
fn received_frames_are_seen_at_once_and_told_when_there_are_enough() {
    let (wire, mut guest) = guest();
    assert_eq!(receive(&wire, &mut guest, 1), 1, "nothing is set yet");
    assert_eq!(guest.command(COAL, RX_SET, &set(4, 100)), OK);
    guest.received(0);
    assert_eq!(receive(&wire, &mut guest, 3), 0);
    assert_eq!(guest.received(0).len(), 3, "a driver that looks sees them");
    assert_eq!(receive(&wire, &mut guest, 1), 1);
    assert_eq!(receive(&wire, &mut guest, 3), 0, "counted anew");
}

#[test]
fn frames_that_are_not_enough_are_told_in_time() {
    let (wire, mut guest) = guest();
    assert_eq!(guest.command(COAL, RX_SET, &set(4, 100)), OK);
    guest.clock.advance(micros(1000));
    assert_eq!(receive(&wire, &mut guest, 1), 0);
    guest.clock.advance(micros(60));
    assert_eq!(receive(&wire, &mut guest, 1), 0);
    assert!(guest.nic.waits(RX).contains(&Wait::Until(micros(1100))), "of the first");
    guest.clock.advance(micros(39));
    assert_eq!(told(&mut guest, |guest| guest.nic.process(RX)), 0);
    guest.clock.advance(micros(1));
    assert_eq!(told(&mut guest, |guest| guest.nic.process(RX)), 1);
    guest.clock.advance(micros(1000));
    assert_eq!(told(&mut guest, |guest| guest.nic.process(RX)), 0, "once");
    assert_eq!(guest.received(0).len(), 2);
}

#[test]
fn each_direction_has_its_own_and_each_queue_can() {
    let (wire, mut guest) = guest();
    assert_eq!(guest.command(COAL, TX_SET, &set(3, 50)), OK);
    assert_eq!(receive(&wire, &mut guest, 1), 1);
    assert_eq!(send(&mut guest, 2), 0);
    assert_eq!(guest.used(1).len(), 2);
    assert_eq!(send(&mut guest, 1), 1);
    assert_eq!(send(&mut guest, 1), 0);
    guest.clock.advance(micros(50));
    assert_eq!(told(&mut guest, |guest| guest.nic.process(TX)), 1);
    let of_queue = |queue: u16| [queue.to_le_bytes(), [0, 0]].concat();
    assert_eq!(guest.command(COAL, VQ_SET, &[of_queue(0), set(2, 50)].concat()), OK);
    assert_eq!(receive(&wire, &mut guest, 1), 0);
    assert_eq!(receive(&wire, &mut guest, 1), 1);
}

#[test]
fn zero_is_any_number_of_packets_and_no_time() {
    let (wire, mut guest) = guest();
    assert_eq!(guest.command(COAL, RX_SET, &set(0, 10)), OK);
    assert_eq!(receive(&wire, &mut guest, 20), 0);
    guest.clock.advance(micros(10));
    assert_eq!(told(&mut guest, |guest| guest.nic.process(RX)), 1);
    assert_eq!(guest.command(COAL, RX_SET, &set(100, 0)), OK);
    assert_eq!(receive(&wire, &mut guest, 1), 1);
}

#[test]
fn what_was_held_is_told_when_it_is_turned_off() {
    let (wire, mut guest) = guest();
    assert_eq!(guest.command(COAL, RX_SET, &set(9, 1_000_000)), OK);
    assert_eq!(receive(&wire, &mut guest, 1), 0);
    assert_eq!(guest.command(COAL, RX_SET, &set(0, 0)), OK);
    assert_eq!(told(&mut guest, |guest| guest.nic.process(RX)), 1);
}

#[test]
fn a_pause_loses_no_notification() {
    let (wire, mut guest) = guest();
    assert_eq!(guest.command(COAL, RX_SET, &set(9, 100)), OK);
    assert_eq!(receive(&wire, &mut guest, 1), 0);
    guest.nic.pause();
    assert!(guest.nic.is_still());
    guest.clock.advance(micros(100));
    assert_eq!(told(&mut guest, |guest| guest.nic.run()), 0, "it stands still");
    assert_eq!(
        told(&mut guest, |guest| {
            guest.nic.resume();
            guest.nic.run();
        }),
        1
    );
}

#[test]
fn what_is_held_when_a_state_is_saved_is_told_after_it_is_restored() {
    let (wire, mut guest) = guest();
    assert_eq!(guest.command(COAL, RX_SET, &set(9, 100)), OK);
    assert_eq!(receive(&wire, &mut guest, 1), 0);
    let mut guest = guest.moved([Arc::clone(&wire)], options());
    assert_eq!(guest.interrupts.load(SeqCst), 1);
    assert_eq!(guest.received(0).len(), 1);
    assert_eq!(receive(&wire, &mut guest, 1), 0, "and goes on as it was set");
    guest.clock.advance(micros(100));
    assert_eq!(told(&mut guest, |guest| guest.nic.process(RX)), 1);
}

#[test]
fn after_a_reset_nothing_is_told_of_before_and_nothing_is_set() {
    let (wire, mut guest) = guest();
    assert_eq!(guest.command(COAL, RX_SET, &set(9, 100)), OK);
    assert_eq!(receive(&wire, &mut guest, 1), 0);
    guest.restart_queue(0);
    guest.clock.advance(micros(100));
    assert_eq!(told(&mut guest, |guest| guest.nic.process(RX)), 0);
    assert_eq!(
        receive(&wire, &mut guest, 1),
        0,
        "the queue is as new, what was set is the device's"
    );
    guest.start(CTRL_VQ | NOTF_COAL);
    assert_eq!(receive(&wire, &mut guest, 1), 1);
}
