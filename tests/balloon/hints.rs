//! Free page hinting (section 5.5.6.3).

use std::sync::{Arc, Mutex};

use devisor::virtio::{
    VirtioDevice,
    balloon::{Balloon, BalloonError, BalloonOptions, FreePageHints},
    reclaim::Recorded,
};

use crate::{
    CMD_ID, HINTS, MEMORY, World,
    both::{BOTH, COMMON, Guest, REQUEST, Transport},
    discarded, memory,
    ring::{readable, writable},
};

const STOP: u32 = 0;
const DONE: u64 = 1;

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Event>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Hinted(u32, u64, u64),
    Ended,
}
use Event::*;

impl Log {
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl FreePageHints for Log {
    fn hinted(&self, command: u32, address: u64, len: u64) {
        self.0.lock().unwrap().push(Hinted(command, address, len));
    }

    fn ended(&self) {
        self.0.lock().unwrap().push(Ended);
    }
}

pub fn balloon(log: &Log) -> (Balloon, Arc<Recorded>) {
    let pages = Arc::new(Recorded::new([MEMORY]));
    let balloon = Balloon::new(Arc::clone(&pages), BalloonOptions::default()).unwrap();
    (balloon.with_hints(log.clone()), pages)
}

struct Setup {
    guest: Guest<Balloon>,
    log: Log,
    pages: Arc<Recorded>,
}

fn world(kind: Transport) -> Setup {
    let log = Log::default();
    let (balloon, pages) = balloon(&log);
    let features = COMMON | balloon.features();
    let guest = Guest::start(kind, balloon, &memory(), features, &[0, 1, 2, HINTS, 4]);
    Setup { guest, log, pages }
}

impl Setup {
    fn start(&self) -> u32 {
        self.guest
            .change_config(|balloon| balloon.start_hinting())
            .expect("negotiated")
    }

    /// The driver answers a command, or ends.
    fn say(&mut self, id: u32) {
        self.guest.put(REQUEST, &id.to_le_bytes());
        assert_eq!(self.guest.run(HINTS, &[readable(REQUEST, 4)]), 0);
    }

    fn hint(&mut self, address: u64, len: u32) {
        assert_eq!(self.guest.run(HINTS, &[writable(address, len)]), 0);
    }
}

#[test]
fn a_round_is_a_command_its_pages_and_an_end() {
    for kind in BOTH {
        let mut w = world(kind);
        assert_eq!(w.guest.config(CMD_ID, 4), 0);
        w.guest.was_told();
        let id = w.start();
        assert!(id >= 2);
        assert!(w.guest.was_told());
        assert_eq!(w.guest.config(CMD_ID, 4), u64::from(id));
        w.say(id);
        w.hint(0x4_0000, 0x1000);
        w.guest
            .run(HINTS, &[writable(0x5_0000, 0x2000), writable(0x6_0000, 0x1000)]);
        w.say(STOP);
        assert_eq!(
            w.log.take(),
            [
                Hinted(id, 0x4_0000, 0x1000),
                Hinted(id, 0x5_0000, 0x2000),
                Hinted(id, 0x6_0000, 0x1000),
                Ended
            ]
        );
        w.guest.change_config(|balloon| balloon.finish_hinting());
        assert!(w.guest.was_told());
        assert_eq!(w.guest.config(CMD_ID, 4), DONE);
        assert_eq!(w.guest.with(|balloon| balloon.counters().hinted), 0x4000);
        assert_eq!(w.guest.counters(HINTS).malformed, 0);
        assert!(discarded(&w.pages).is_empty(), "a hint is no reason to discard");
    }
}

#[test]
fn pages_of_no_command_or_of_an_old_one_are_ignored() {
    for kind in BOTH {
        let mut w = world(kind);
        w.hint(0x4_0000, 0x1000);
        let first = w.start();
        w.hint(0x4_0000, 0x1000);
        w.say(first + 1);
        w.hint(0x4_0000, 0x1000);
        w.say(first);
        let second = w.start();
        assert_ne!(first, second);
        w.hint(0x4_0000, 0x1000);
        w.say(first);
        w.hint(0x4_0000, 0x1000);
        assert_eq!(w.log.take(), []);
        w.say(second);
        w.hint(0x4_0000, 0x1000);
        assert_eq!(w.log.take(), [Hinted(second, 0x4_0000, 0x1000)]);
        // After the device has stopped it, and after the driver has.
        w.guest.change_config(|balloon| balloon.stop_hinting());
        assert_eq!(w.guest.config(CMD_ID, 4), u64::from(STOP));
        w.hint(0x4_0000, 0x1000);
        w.say(second);
        w.hint(0x4_0000, 0x1000);
        w.say(1);
        w.hint(0x4_0000, 0x1000);
        assert_eq!(w.log.take(), []);
    }
}

#[test]
fn the_end_is_told_once_and_of_a_round_that_there_was() {
    for kind in BOTH {
        let mut w = world(kind);
        w.say(STOP);
        let id = w.start();
        w.say(STOP);
        w.say(id);
        w.say(STOP);
        w.say(STOP);
        w.hint(0x4_0000, 0x1000);
        assert_eq!(w.log.take(), [Ended]);
    }
}

#[test]
fn a_command_and_pages_may_come_in_one() {
    for kind in BOTH {
        let mut w = world(kind);
        let id = w.start();
        w.guest.put(REQUEST, &id.to_le_bytes());
        let parts = [
            readable(REQUEST, 1),
            readable(REQUEST + 1, 3),
            writable(0x4_0000, 0x1000),
        ];
        assert_eq!(w.guest.run(HINTS, &parts), 0);
        assert_eq!(w.log.take(), [Hinted(id, 0x4_0000, 0x1000)]);
    }
}

#[test]
fn what_is_neither_costs_that_request_alone() {
    for kind in BOTH {
        let mut w = world(kind);
        let id = w.start();
        w.say(id);
        for (number, buffers) in (1..).zip([
            [readable(REQUEST, 3)],
            [readable(REQUEST, 5)],
            [readable(REQUEST, 0)],
            [writable(REQUEST, 0)],
            [writable(0x4000_0000, 0x1000)],
        ]) {
            assert_eq!(w.guest.run(HINTS, &buffers), 0);
            assert_eq!(w.guest.counters(HINTS).malformed, number);
        }
        w.hint(0x4_0000, 0x1000);
        assert_eq!(w.log.take(), [Hinted(id, 0x4_0000, 0x1000)]);
    }
}

#[test]
fn command_ids_are_not_used_again_also_over_a_reset() {
    for kind in BOTH {
        let mut w = world(kind);
        let first = w.start();
        let second = w.start();
        w.guest.reset();
        assert_eq!(w.guest.config(CMD_ID, 4), u64::from(STOP));
        let features = COMMON | w.guest.offered();
        w.guest.drive(features, &[0, 1, 2, HINTS, 4]);
        let third = w.start();
        assert!(first < second && second < third);
    }
}

#[test]
fn a_round_goes_on_in_another_device_that_has_its_state() {
    for kind in BOTH {
        let mut w = world(kind);
        let id = w.start();
        w.say(id);
        let log = Log::default();
        let (balloon, pages) = balloon(&log);
        let guest = w.guest.moved(balloon);
        let mut w = Setup { guest, log, pages };
        assert_eq!(w.guest.config(CMD_ID, 4), u64::from(id));
        w.hint(0x4_0000, 0x1000);
        assert_eq!(w.log.take(), [Hinted(id, 0x4_0000, 0x1000)]);
        assert_eq!(w.start(), id + 1);
    }
}

#[test]
fn hints_are_asked_for_where_they_were_negotiated() {
    for kind in BOTH {
        let w = World::new(kind);
        let error = w.guest.change_config(|balloon| balloon.start_hinting()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the driver has not accepted VIRTIO_BALLOON_F_FREE_PAGE_HINT: it must have, and be ready"
        );
        assert!(matches!(error, BalloonError::NotNegotiated(_)));
    }
}
