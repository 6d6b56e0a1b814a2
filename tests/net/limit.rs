//! A port through which so much passes and no more.

use std::{sync::Arc, time::Duration};

use devisor::{
    rate::Rate,
    time::ManualClock,
    virtio::{
        QueueIndex, VirtioTransport, Wait,
        net::{Header, Limited, RateLimit, Wire},
    },
};

use crate::guest::*;

const SECOND: Duration = Duration::from_secs(1);

struct Setup {
    clock: Arc<ManualClock>,
    port: Arc<Limited<Wire, Arc<ManualClock>>>,
    guest: Guest,
}

impl Setup {
    fn new(send: RateLimit, receive: RateLimit) -> Self {
        let clock = Arc::new(ManualClock::new(SECOND));
        let port = Arc::new(Limited::new(Wire::new(64), send, receive, Arc::clone(&clock)).unwrap());
        let guest = Guest::over([Arc::clone(&port)], options(), 0);
        Self { clock, port, guest }
    }

    fn sent(&self) -> usize {
        std::iter::from_fn(|| self.port.port().take()).count()
    }
}

fn packets(per_second: u64, burst: u64) -> RateLimit {
    RateLimit {
        packets: Some(Rate { per_second, burst }),
        ..RateLimit::default()
    }
}

fn bytes(per_second: u64, burst: u64) -> RateLimit {
    RateLimit {
        bytes: Some(Rate { per_second, burst }),
        ..RateLimit::default()
    }
}

#[test]
fn what_is_too_much_to_send_waits_for_its_time_in_the_queue() {
    let mut setup = Setup::new(packets(10, 3), RateLimit::default());
    for _ in 0..8 {
        setup.guest.transmit(Header::default(), &frame(OTHER, 60));
    }
    assert_eq!(setup.sent(), 3);
    assert_eq!(setup.guest.used(1).len(), 3);
    let when = SECOND + SECOND / 10;
    assert_eq!(setup.guest.nic.waits(QueueIndex(1)), [Wait::Until(when)]);
    setup.clock.advance(SECOND / 10);
    setup.guest.nic.process(QueueIndex(1));
    assert_eq!(setup.sent(), 1);
    setup.clock.advance(SECOND * 10);
    setup.guest.nic.process(QueueIndex(1));
    assert_eq!(setup.sent(), 3, "no more than a burst");
}

#[test]
fn bytes_and_packets_are_limited_together() {
    let both = RateLimit {
        bytes: Some(Rate {
            per_second: 1000,
            burst: 250,
        }),
        packets: Some(Rate {
            per_second: 1000,
            burst: 3,
        }),
    };
    let mut setup = Setup::new(both, RateLimit::default());
    (0..4).for_each(|_| setup.guest.transmit(Header::default(), &frame(OTHER, 100)));
    assert_eq!(setup.sent(), 2, "by bytes");
    setup.clock.advance(SECOND);
    setup.guest.nic.process(QueueIndex(1));
    assert_eq!(setup.sent(), 2);
    setup.clock.advance(SECOND);
    (0..4).for_each(|_| setup.guest.transmit(Header::default(), &frame(OTHER, 20)));
    assert_eq!(setup.sent(), 3, "by packets");
}

#[test]
fn what_is_too_much_to_receive_waits_where_it_comes_from() {
    let mut setup = Setup::new(RateLimit::default(), bytes(1000, 100));
    for _ in 0..4 {
        assert!(setup.port.port().put(plain(OWN, 80)));
        setup.guest.buffer_quietly(0, 1526);
    }
    setup.guest.kick(0);
    // The second is paid for afterwards.
    assert_eq!(setup.guest.received(0).len(), 2);
    assert_eq!(setup.port.port().waiting(), 2);
    let when = SECOND + Duration::from_millis(61);
    assert_eq!(setup.guest.nic.waits(QueueIndex(0)), [Wait::Until(when)]);
    setup.clock.advance_to(when);
    setup.guest.nic.process(QueueIndex(0));
    assert_eq!(setup.guest.received(0).len(), 1);
}

#[test]
fn a_frame_that_the_network_has_no_room_for_costs_nothing() {
    let clock = Arc::new(ManualClock::new(SECOND));
    let port = Arc::new(Limited::new(Wire::new(1), packets(1, 2), RateLimit::default(), clock).unwrap());
    let mut guest = Guest::over([Arc::clone(&port)], options(), 0);
    for _ in 0..5 {
        guest.transmit(Header::default(), &frame(OTHER, 60));
    }
    assert!(port.port().take().is_some());
    guest.nic.run();
    assert!(port.port().take().is_some(), "the second token is there");
    guest.nic.run();
    assert!(port.port().take().is_none());
}

#[test]
fn a_limit_of_nothing_is_refused_and_another_can_be_set() {
    let clock = ManualClock::default();
    let port = Limited::new(Wire::new(1), packets(1, 1), RateLimit::default(), &clock).unwrap();
    assert!(port.set(packets(0, 1), RateLimit::default()).is_err());
    assert!(port.set(packets(1, 0), RateLimit::default()).is_err());
    assert!(port.set(RateLimit::default(), bytes(1, 1)).is_ok());
    assert!(Limited::new(Wire::new(1), bytes(1, 0), RateLimit::default(), &clock).is_err());
}
