//! Save and restore.

use devisor::virtio::{
    DeviceState, DeviceStateError, VirtioDevice,
    balloon::{Balloon, BalloonOptions, BalloonState, Hinting},
};

use crate::{
    ACTUAL, DEFLATE, INFLATE, NUM_PAGES, POISON, World,
    both::{BOTH, COMMON},
    hints::{self, Log},
};

fn balloon() -> Balloon {
    Balloon::new((), BalloonOptions::default()).unwrap()
}

fn state(balloon: &Balloon) -> BalloonState {
    match balloon.save() {
        DeviceState::Balloon(state) => state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_guest_can_read_is_the_same_after_a_restore() {
    for kind in BOTH {
        let mut w = World::new(kind);
        w.guest.change_config(|balloon| balloon.set_target(100));
        w.guest.set_config(ACTUAL, 4, 50);
        w.guest.set_config(POISON, 4, 0xaaaa_aaaa);
        let mut moved = w.guest.moved(balloon());
        let config: Vec<_> = (0..5).map(|field| moved.config(4 * field, 4)).collect();
        assert_eq!(config, [100, 50, 0, 0xaaaa_aaaa, 0]);
        // And it goes on: both ways.
        for queue in [INFLATE, DEFLATE] {
            moved.put(0x8_0000, &[0x40, 0, 0, 0]);
            assert_eq!(moved.run(queue, &[crate::ring::readable(0x8_0000, 4)]), 0);
        }
        moved.change_config(|balloon| balloon.set_target(200));
        assert_eq!(moved.config(NUM_PAGES, 4), 200);
        assert!(moved.was_told());
    }
}

#[test]
fn a_state_is_taken_back_by_a_device_that_was_made_so() {
    let mut one = balloon();
    one.set_target(5);
    one.write_config(ACTUAL, &7_u32.to_le_bytes());
    let mut other = balloon();
    other.restore(&one.save()).unwrap();
    assert_eq!(other.save(), one.save());
    assert_eq!((other.target(), other.actual()), (5, 7));
}

#[test]
fn a_state_of_another_device_or_of_another_balloon_is_refused() {
    let mut balloon = balloon();
    balloon.set_target(3);
    let before = balloon.save();
    assert_eq!(
        balloon.restore(&DeviceState::None),
        Err(DeviceStateError::Kind {
            saved: "none",
            needed: "a balloon's"
        })
    );
    let good = state(&balloon);
    let other_features = BalloonState {
        features: good.features ^ 2,
        ..good
    };
    let other_queues = BalloonState {
        queue_size: 128,
        ..good
    };
    for state in [other_features, other_queues] {
        let error = balloon.restore(&DeviceState::Balloon(state)).unwrap_err();
        assert!(error.to_string().contains("offering 0x33 with queues of 64"), "{error}");
        assert_eq!(balloon.save(), before);
    }
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    // Fields of features that are not offered.
    let options = BalloonOptions {
        page_poison: false,
        ..BalloonOptions::default()
    };
    let mut plain = Balloon::new((), options).unwrap();
    let good = state(&plain);
    let hinting = Hinting {
        command: 2,
        given: 2,
        answered: None,
    };
    for wrong in [BalloonState { poison: 1, ..good }, BalloonState { hinting, ..good }] {
        let error = plain.restore(&DeviceState::Balloon(wrong)).unwrap_err();
        assert!(error.to_string().contains("no balloon has"), "{error}");
        assert_eq!(state(&plain), good);
    }

    let (mut hinted, _) = hints::balloon(&Log::default());
    let good = state(&hinted);
    let hinting = |command, given, answered| BalloonState {
        hinting: Hinting {
            command,
            given,
            answered,
        },
        ..good
    };
    for impossible in [
        // A command that was not given, one that is not the last, none that was ever given, a reserved one that is answered.
        hinting(5, 4, None),
        hinting(3, 4, None),
        hinting(0, 0, None),
        hinting(2, 2, Some(1)),
        hinting(2, 2, Some(0)),
    ] {
        assert!(
            hinted.restore(&DeviceState::Balloon(impossible)).is_err(),
            "{impossible:?}"
        );
        assert_eq!(state(&hinted), good);
    }
    for possible in [
        hinting(4, 4, Some(4)),
        hinting(0, 4, Some(3)),
        hinting(1, 4, None),
        hinting(0, 1, None),
    ] {
        hinted.restore(&DeviceState::Balloon(possible)).unwrap();
        assert_eq!(state(&hinted), possible);
    }
}

#[test]
fn a_transport_that_is_refused_leaves_the_balloon_as_it_was() {
    for kind in BOTH {
        let w = World::new(kind);
        let mut state = w.guest.saved();
        let DeviceState::Balloon(balloon_state) = &mut state.device else {
            panic!("a balloon's state");
        };
        balloon_state.target = 77;
        let transport = match &mut state.transport {
            devisor::virtio::transport::SavedTransport::Mmio(state) => &mut state.transport,
            devisor::virtio::transport::SavedTransport::Pci(state) => &mut state.transport,
            _ => unreachable!("one of the two"),
        };
        transport.status = 4;
        let fresh = crate::both::Guest::new(kind, balloon(), &w.guest.memory);
        assert!(fresh.transport().restore(&state).is_err());
        assert_eq!(fresh.with(|balloon| balloon.target()), 0);
        assert!(fresh.negotiate(COMMON));
    }
}
