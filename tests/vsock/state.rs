//! Configuration, reset, save and restore, and the events that tell of it (sections 5.10.4 and 5.10.6.7).

use std::sync::Arc;

use devisor::{
    time::ManualClock,
    virtio::{
        DeviceState, VirtioDevice,
        vsock::{MemoryHost, SocketKind, Vsock, VsockError, VsockOptions, VsockState},
    },
};

use crate::{
    machine::{BUSES, Machine},
    ring::readable,
    support::*,
};

#[test]
fn the_configuration_is_the_guests_cid() {
    for bus in BUSES {
        let options = VsockOptions {
            guest_cid: 0x1234_5678,
            ..VsockOptions::default()
        };
        let world = World::with(bus, options);
        let mut expected = vec![0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0];
        let low = world.guest.read_config(0, 4);
        let high = world.guest.read_config(4, 4);
        assert_eq!([low, high].concat(), expected);
        assert_eq!(world.guest.read_config(0, 8), expected);
        world.guest.write_config(0, &[9; 4]);
        expected.truncate(4);
        assert_eq!(world.guest.read_config(0, 4), expected);
        assert_eq!(world.guest.read_config(8, 4), [0; 4]);
    }
}

#[test]
fn options_that_cannot_be_are_refused() {
    let make = |options| Vsock::new(MemoryHost::new(1), Arc::new(ManualClock::default()), options).err();
    let default = VsockOptions::default;
    for guest_cid in [0, 1, 2, u32::MAX] {
        assert_eq!(
            make(VsockOptions { guest_cid, ..default() }),
            Some(VsockError::Cid(guest_cid))
        );
    }
    assert_eq!(
        make(VsockOptions {
            queue_size: 3,
            ..default()
        }),
        Some(VsockError::QueueSize(3))
    );
    assert_eq!(
        make(VsockOptions {
            buf_alloc: 0,
            ..default()
        }),
        Some(VsockError::BufAlloc(0))
    );
    // The lengths of pieces have two bits for what ends with them.
    assert_eq!(
        make(VsockOptions {
            max_message: 1 << 30,
            ..default()
        }),
        Some(VsockError::MaxMessage(1 << 30))
    );
    assert_eq!(
        make(VsockOptions {
            max_connections: 0,
            ..default()
        }),
        Some(VsockError::Zero("max_connections"))
    );
    assert_eq!(make(default()), None);
}

#[test]
fn seqpacket_is_offered_as_the_options_say() {
    for seqpacket in [false, true] {
        let options = VsockOptions {
            seqpacket,
            ..VsockOptions::default()
        };
        let vsock = vsock(&MemoryHost::new(1), &Arc::default(), options);
        assert_eq!(vsock.features() & F_SEQPACKET != 0, seqpacket);
        assert_ne!(vsock.features() & F_STREAM, 0);
    }
}

/// The device in a state that was saved, with its guest.
fn restored(world: World, options: VsockOptions) -> World {
    let host = MemoryHost::new(HOST_ROOM);
    let other = vsock(&host, &world.clock, options);
    World {
        guest: world.guest.move_to(other),
        host,
        clock: world.clock,
    }
}

#[test]
fn after_a_restore_the_driver_hears_that_its_connections_are_gone_and_they_are() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&A.data(b"in the middle"));
        let mut world = restored(world, VsockOptions::default());
        assert_eq!(world.connections(), 0);
        world.guest.room(EVENT, 4);
        world.guest.run();
        assert_eq!(world.guest.received(EVENT), [0_u32.to_le_bytes()]);
        // Once.
        world.guest.room(EVENT, 4);
        world.guest.run();
        assert_eq!(world.guest.used(EVENT), 0);
        world.send(&A.data(b"more"));
        assert_eq!(world.ops(), [RST]);
        world.open(A);
        drop(socket);
    }
}

#[test]
fn an_event_waits_for_a_buffer_and_survives_another_restore() {
    for bus in BUSES {
        let world = restored(World::new(bus), VsockOptions::default());
        let DeviceState::Vsock(state) = world.guest.device_state() else {
            panic!("it is a socket device")
        };
        assert!(state.event_owed && state.in_use);
        let mut world = restored(world, VsockOptions::default());
        // Too short, and not to be written.
        world.guest.room(EVENT, 3);
        let at = world.guest.place(EVENT, 4);
        world.guest.offer(EVENT, &[readable(at, 4)]);
        world.guest.room(EVENT, 16);
        world.guest.run();
        let got = world.guest.received(EVENT);
        assert_eq!(got, [&[][..], &[], &[0; 4]]);
        assert_eq!(world.guest.counters(EVENT).malformed, 2);
    }
}

#[test]
fn the_guest_may_get_another_cid_which_it_reads_again() {
    for bus in BUSES {
        let options = VsockOptions {
            guest_cid: 77,
            ..VsockOptions::default()
        };
        let mut world = restored(World::new(bus), options);
        assert_eq!(world.guest.read_config(0, 4), [77, 0, 0, 0]);
        // It does not know yet.
        world.send(&A.packet(REQUEST));
        assert_eq!(world.ops(), NONE);
        world.host.listen(80, SocketKind::Stream);
        world.send(&Packet {
            src_cid: 77,
            ..A.packet(REQUEST)
        });
        assert_eq!(world.hear()[0].dst_cid, 77);
    }
}

#[test]
fn a_device_that_was_never_used_has_nothing_to_tell() {
    for bus in BUSES {
        let host = MemoryHost::new(HOST_ROOM);
        let clock = Arc::default();
        let cold = Machine::cold(bus, vsock(&host, &clock, VsockOptions::default()));
        let other = vsock(&host, &clock, VsockOptions::default());
        let mut guest = cold.move_to(other);
        guest.start(F_STREAM);
        guest.room(EVENT, 4);
        guest.run();
        assert_eq!(guest.used(EVENT), 0);
    }
}

#[test]
fn a_save_does_not_end_the_connections_of_a_device_that_goes_on() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.guest.device_state();
        world.send(&A.data(b"on"));
        assert_eq!(socket.read(), b"on");
    }
}

#[test]
fn states_that_contradict_themselves_are_refused() {
    let refuse = |state: DeviceState| {
        let mut device = vsock(&MemoryHost::new(1), &Arc::default(), VsockOptions::default());
        let before = device.save();
        let error = device.restore(&state).expect_err("a state that cannot be");
        assert_eq!(device.save(), before);
        error.to_string()
    };
    let state = VsockState {
        guest_cid: 3,
        in_use: true,
        event_owed: false,
    };
    for guest_cid in [0, 1, 2, u32::MAX] {
        assert!(refuse(DeviceState::Vsock(VsockState { guest_cid, ..state })).contains("reserved"));
    }
    let owed = VsockState {
        in_use: false,
        event_owed: true,
        ..state
    };
    assert!(refuse(DeviceState::Vsock(owed)).contains("drivers"));
    assert_eq!(
        refuse(DeviceState::None),
        "the state is none: a socket device's is needed"
    );
}

#[test]
fn a_reset_ends_all_connections_and_forgets_what_was_owed() {
    for bus in BUSES {
        let mut world = World::new(bus);
        let socket = world.open(A);
        world.send(&Ports { guest: 5, ..A }.packet(CREDIT_UPDATE));
        world.guest.set_status(0);
        assert!(socket.is_closed());
        world.guest.start(F_STREAM);
        assert_eq!((world.ops(), world.connections()), (vec![], 0));
        world.open(A);
    }
}
