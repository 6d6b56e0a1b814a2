//! Save and restore.

use devisor::virtio::{
    features,
    transport::{
        RestoreError, SavedDevice, VirtioTransport,
        mmio::VirtioMmioState,
        status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK},
    },
};

use crate::{
    driver::*,
    rest,
    ring::{readable, writable},
};

#[test]
fn a_device_goes_on_where_it_was_saved() {
    let (line, _) = level();
    let driver = Driver::new(line);
    let mut ring = driver.start();
    driver.write(SHM_SEL, 1);
    ring.request(&[readable(0x8000, 1), writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    let state = rest::at_rest(&*driver.mmio);
    // A request whose kick is not in the state.
    ring.request(&[writable(0x9000, 1)]);

    let (line, heard) = level();
    let restored = driver.moved(Probe::default(), line);
    assert_eq!(restored.mmio.save().as_ref(), Ok(&state));
    assert_eq!(*heard.lock().unwrap(), [true], "the level is derived again");
    assert_eq!(restored.read(SHM_LEN_HIGH), 3);
    restored.mmio.resume();
    assert_eq!(ring.used().len(), 2, "the queue is looked at once");
    restored.write(INTERRUPT_ACK, 1);
    assert_eq!(*heard.lock().unwrap(), [true, false]);
    ring.request(&[writable(0x9000, 1)]);
    restored.write(QUEUE_NOTIFY, 0);
    assert_eq!(*heard.lock().unwrap(), [true, false, true], "and it interrupts again");
    assert!(matches!(restored.mmio.restore(&state), Err(RestoreError::InUse(_))));
}

#[test]
fn restoring_raises_no_edge_that_the_guest_has_seen() {
    let driver = Driver::silent();
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    let counted = Counted::default();
    driver.moved(Probe::default(), counted.edge()).mmio.resume();
    assert_eq!(counted.count(), 0);
}

#[test]
fn impossible_states_are_refused_and_change_nothing() {
    let driver = Driver::silent();
    driver.start();
    let good = driver.saved();
    type Spoil = fn(&mut VirtioMmioState);
    let spoilers: [Spoil; 14] = [
        |state| state.transport.status = DRIVER_OK,
        |state| state.transport.status |= 16,
        |state| state.transport.status = ACKNOWLEDGE | DEVICE_NEEDS_RESET,
        |state| state.transport.driver_features |= 1 << 50,
        |state| state.transport.driver_features &= !features::VERSION_1,
        |state| _ = state.transport.setup.pop(),
        |state| state.transport.queues[0] = None,
        |state| state.transport.setup[0].layout.size = 4,
        |state| state.transport.setup[1].layout.size = 3,
        |state| state.transport.setup[1].layout.size = 4 * SIZE,
        |state| state.transport.queues[0].as_mut().unwrap().next_avail = 5,
        |state| state.transport.setup[0].ready = false,
        |state| state.interrupt.status = 4,
        |state| state.interrupt.seen = 1,
    ];
    for (number, spoil) in spoilers.iter().enumerate() {
        let mut bad = good.clone();
        spoil(rest::mmio(&mut bad));
        let fresh = Driver::silent();
        let before = fresh.saved();
        assert!(fresh.mmio.restore(&bad).is_err(), "spoiler {number}");
        assert_eq!(fresh.saved(), before);
    }
}

#[test]
fn states_that_no_driver_can_reach_are_refused() {
    type Spoil = fn(&mut VirtioMmioState);
    let spoilers: [(&str, u32, Spoil); 7] = [
        ("InterruptStatus before DRIVER_OK", FEATURES_OK, |state| {
            state.interrupt.status = 1
        }),
        ("the same without any driver", 0, |state| state.interrupt.status = 2),
        ("a refused edge with nothing pending", DRIVER_OK, |state| {
            state.interrupt.owed = true
        }),
        ("a ready queue before FEATURES_OK", DRIVER, |state| {
            state.transport.setup[0].ready = true
        }),
        ("a queue that was reset before FEATURES_OK", DRIVER, |state| {
            state.transport.setup[1].was_reset = true
        }),
        ("a queue that was reset and is ready", DRIVER_OK, |state| {
            state.transport.setup[0].was_reset = true
        }),
        ("features before DRIVER", ACKNOWLEDGE, |state| {
            state.transport.driver_features = 1
        }),
    ];
    let refused = |state: &SavedDevice| {
        let fresh = Driver::silent();
        let before = fresh.saved();
        let restored = fresh.mmio.restore(state);
        assert!(restored.is_ok() || fresh.saved() == before);
        restored.is_err()
    };
    for (what, stage, spoil) in spoilers {
        let driver = Driver::silent();
        match stage {
            0 => {}
            DRIVER | ACKNOWLEDGE => driver.write(STATUS, stage | ACKNOWLEDGE),
            FEATURES_OK => driver.negotiate(ALL),
            _ => _ = driver.start(),
        }
        let mut state = driver.saved();
        assert!(!refused(&state), "{what}: good as it was");
        spoil(rest::mmio(&mut state));
        assert!(refused(&state), "{what}");
    }

    let driver = Driver::silent();
    driver.negotiate(ALL & !features::RING_RESET);
    let mut state = driver.saved();
    assert!(!refused(&state));
    rest::mmio(&mut state).transport.setup[0].was_reset = true;
    assert!(refused(&state), "a queue was reset though that was not negotiated");
    rest::mmio(&mut state).transport.status |= DRIVER_OK;
    assert!(!refused(&state), "or stopped, which takes no feature");
}
