//! Shutting down (section 5.10.6.5).

use std::time::Duration;

use devisor::virtio::vsock::VsockOptions;

use crate::{machine::BUSES, support::*};

const BOTH: u32 = NO_MORE_RECEIVE | NO_MORE_SEND;

fn shutdown(ports: Ports, flags: u32) -> Packet {
    Packet {
        flags,
        ..ports.packet(SHUTDOWN)
    }
}

#[test]
fn a_guest_that_shuts_down_both_ways_is_answered_with_rst() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&A.data(b"bye"));
        world.send(&shutdown(A, BOTH));
        assert_eq!(world.ops(), [RST]);
        assert_eq!(socket.read(), b"bye");
        assert!(socket.is_closed() && socket.has_ended());
        assert_eq!(world.connections(), 0);
    }
}

#[test]
fn what_was_in_flight_arrives_before_the_end() {
    for bus in BUSES {
        let mut world = World::negotiated(bus, VsockOptions::default(), 10, F_STREAM);
        let socket = world.open(A);
        world.send(&A.data(b"0123456789abcdefghijKLMNO"));
        world.send(&shutdown(A, BOTH));
        assert_eq!(world.ops(), NONE, "not before all of it has gone");
        assert!(!socket.has_ended());
        assert_eq!(socket.read(), b"0123456789");
        world.guest.run();
        assert_eq!(socket.read(), b"abcdefghij");
        assert_eq!(world.ops(), [RST]);
        assert_eq!(socket.read(), b"KLMNO");
        assert!(socket.has_ended());
    }
}

#[test]
fn a_half_closed_connection_goes_on_the_other_way() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&A.data(b"request"));
        world.send(&shutdown(A, NO_MORE_SEND));
        assert!(socket.has_ended());
        assert_eq!(socket.read(), b"request");
        socket.write(b"response");
        assert_eq!(world.hear()[0].data, b"response");
        // The other hint comes later: both hold.
        world.send(&shutdown(A, NO_MORE_RECEIVE));
        assert_eq!((world.ops(), world.connections()), (vec![RST], 0));
    }
}

#[test]
fn a_guest_that_receives_no_more_still_sends() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&shutdown(A, NO_MORE_RECEIVE));
        assert!(socket.is_refused());
        assert_eq!(socket.write(b"x"), 0);
        world.send(&A.data(b"y"));
        assert_eq!(socket.read(), b"y");
        assert_eq!(world.ops(), NONE);
    }
}

#[test]
fn hints_are_permanent_and_none_is_no_hint() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&shutdown(A, 0));
        world.send(&shutdown(A, 0xffff_fffc));
        assert!(!socket.has_ended() && !socket.is_refused());
        world.send(&shutdown(A, NO_MORE_SEND));
        world.send(&shutdown(A, 0));
        assert!(socket.has_ended());
        // "will not send any more data".
        world.send(&A.data(b"after all"));
        assert_eq!(
            (world.ops(), socket.is_closed(), socket.read()),
            (vec![RST], true, vec![])
        );
    }
}

#[test]
fn a_host_that_sends_no_more_is_heard_after_its_last_byte() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        socket.write(b"last");
        socket.end();
        let heard = world.hear();
        assert_eq!((heard[0].op, &heard[0].data[..]), (RW, &b"last"[..]));
        assert_eq!((heard[1].op, heard[1].flags, heard.len()), (SHUTDOWN, NO_MORE_SEND, 2));
        world.send(&A.data(b"still"));
        assert_eq!(socket.read(), b"still");
    }
}

#[test]
fn a_host_that_closes_is_told_at_once_and_the_guests_rst_ends_it() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        socket.write(b"last");
        drop(socket);
        let heard = world.hear();
        assert_eq!(heard[0].data, b"last");
        assert_eq!((heard[1].op, heard[1].flags), (SHUTDOWN, BOTH));
        // What was under way is for nobody, and costs no credit.
        world.send(&A.data(b"lost"));
        world.send(&A.packet(CREDIT_REQUEST));
        assert_eq!(world.hear()[0].fwd_cnt, 4);
        world.send(&A.packet(RST));
        assert_eq!((world.ops(), world.connections()), (vec![], 0));
    }
}

#[test]
fn a_guest_that_does_not_end_what_both_have_shut_down_is_reset() {
    for bus in BUSES {
        let options = VsockOptions {
            shutdown_timeout: Duration::from_secs(8),
            ..VsockOptions::default()
        };
        let mut world = World::with(bus, options);
        drop(world.open(A));
        assert_eq!(world.ops(), [SHUTDOWN]);
        world.advance(Duration::from_millis(7999));
        assert_eq!((world.ops(), world.connections()), (vec![], 1));
        world.advance(Duration::from_millis(1));
        assert_eq!((world.ops(), world.connections()), (vec![RST], 0));
    }
}

#[test]
fn a_host_that_never_takes_what_is_in_flight_does_not_keep_the_connection() {
    for bus in BUSES {
        let mut world = World::negotiated(bus, VsockOptions::default(), 4, F_STREAM);
        let socket = world.open(A);
        world.send(&A.data(b"more than four"));
        world.send(&shutdown(A, BOTH));
        assert_eq!(world.ops(), NONE);
        world.advance(Duration::from_secs(8));
        assert_eq!(
            (world.ops(), world.connections(), socket.is_closed()),
            (vec![RST], 0, true)
        );
    }
}

#[test]
fn an_end_that_waits_for_room_is_not_forgotten() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        // Uses up the buffers that are there.
        for _ in 0..4 {
            socket.write(b".");
            world.guest.run();
        }
        drop(socket);
        world.guest.run();
        let heard = world.hear();
        assert_eq!(
            heard.last().map(|packet| (packet.op, packet.flags)),
            Some((SHUTDOWN, BOTH))
        );
    }
}
