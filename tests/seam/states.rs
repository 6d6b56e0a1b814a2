//! `QueueState`s of crate `virtio-queue`, in and out.

use devisor::virtio::{
    features::{EVENT_IDX, IN_ORDER, RING_PACKED, VERSION_1},
    queue::{QueueLayout, QueueState},
    seam::{SeamError, from_virtio_queue, to_virtio_queue},
};
use proptest::prelude::*;
use virtio_queue::QueueT;

fn ours() -> QueueState {
    QueueState {
        layout: QueueLayout {
            size: 64,
            descriptor_area: 0x1_0000,
            driver_area: 0x2_0000_0002,
            device_area: 0x3_0000_0004,
        },
        features: VERSION_1 | EVENT_IDX,
        next_avail: 0xfffe,
        next_used: 0xfffe,
        in_flight: Vec::new(),
        chains: Vec::new(),
        ended: Vec::new(),
        signal_owed: false,
    }
}

#[test]
fn a_state_that_goes_out_is_one_that_their_queue_is_made_of() {
    let state = to_virtio_queue(&ours(), 256).unwrap();
    let queue = virtio_queue::Queue::try_from(state).expect("a valid state");
    assert_eq!((queue.size(), queue.max_size(), queue.ready()), (64, 256, true));
    assert_eq!((queue.next_avail(), queue.next_used()), (0xfffe, 0xfffe));
    assert_eq!(queue.desc_table(), 0x1_0000);
    assert_eq!((queue.avail_ring(), queue.used_ring()), (0x2_0000_0002, 0x3_0000_0004));
    assert!(queue.event_idx_enabled());
    assert_eq!(from_virtio_queue(&queue.state(), VERSION_1 | EVENT_IDX), Ok(ours()));
}

#[test]
fn what_their_state_has_no_word_for_is_refused() {
    let refused = |change: fn(&mut QueueState)| {
        let mut state = ours();
        change(&mut state);
        to_virtio_queue(&state, 256).expect_err("a state that cannot be said")
    };
    assert_eq!(refused(|state| state.features |= RING_PACKED), SeamError::Packed);
    let in_flight = |state: &mut QueueState| {
        state.next_avail = 1;
        state.in_flight = vec![4, 2, 7];
    };
    assert_eq!(refused(in_flight), SeamError::InFlight(3));
    assert_eq!(refused(|state| state.signal_owed = true), SeamError::SignalOwed);
    assert_eq!(to_virtio_queue(&ours(), 32), Err(SeamError::Size { size: 64, max: 32 }));
    // What is refused is told with what would do.
    assert!(SeamError::InFlight(3).to_string().contains("without any"));
}

#[test]
fn of_their_states_what_ours_cannot_say_is_refused() {
    let theirs = to_virtio_queue(&ours(), 256).unwrap();
    let from = |change: fn(&mut virtio_queue::QueueState), features| {
        let mut state = theirs;
        change(&mut state);
        from_virtio_queue(&state, features)
    };
    let with_events = VERSION_1 | EVENT_IDX;
    assert_eq!(from(|state| state.ready = false, with_events), Err(SeamError::NotReady));
    assert_eq!(from(|_| (), with_events | RING_PACKED), Err(SeamError::Packed));
    assert_eq!(from(|_| (), VERSION_1), Err(SeamError::EventIdx(true)));
    assert_eq!(
        from(|state| state.event_idx_enabled = false, with_events),
        Err(SeamError::EventIdx(false))
    );
    assert_eq!(
        from(|state| state.next_avail = 3, with_events),
        Err(SeamError::InFlight(5))
    );
    for size in [0, 48, 512] {
        let mut state = theirs;
        state.size = size;
        assert_eq!(
            from_virtio_queue(&state, with_events),
            Err(SeamError::Size { size, max: 256 })
        );
    }
}

proptest! {
    #[test]
    fn there_and_back_nothing_is_lost(
        order in 0..16_u32, place: u16, areas: [u64; 3], events: bool, in_order: bool,
    ) {
        let features = VERSION_1 | if events { EVENT_IDX } else { 0 } | if in_order { IN_ORDER } else { 0 };
        let state = QueueState {
            layout: QueueLayout {
                size: 1 << order,
                descriptor_area: areas[0],
                driver_area: areas[1],
                device_area: areas[2],
            },
            features,
            next_avail: place,
            next_used: place,
            ..ours()
        };
        let theirs = to_virtio_queue(&state, 1 << 15).unwrap();
        prop_assert_eq!(from_virtio_queue(&theirs, features), Ok(state));
    }
}
