//! The status machine, feature negotiation and reset.

use std::sync::{Arc, Mutex};

use devisor::{
    bus::BusDevice,
    interrupt::level_from_fn,
    virtio::{
        Fault, QueueError, features,
        transport::{
            SavedDevice, VirtioTransport,
            mmio::Line,
            status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK},
        },
    },
};

use crate::{
    driver::*,
    rest,
    ring::{Ring, writable},
};

#[test]
fn status_bits_come_in_the_order_of_the_specification() {
    let driver = Driver::silent();
    for early in [FEATURES_OK, DRIVER_OK, DEVICE_NEEDS_RESET, 16, 32] {
        driver.write(STATUS, early);
        assert_eq!(driver.status(), 0, "{early:#x}");
    }
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    driver.accept(ALL);
    driver.write(STATUS, FEATURES_OK);
    assert_eq!(
        driver.status(),
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        "bits are added, none is taken away"
    );
    driver.write(STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_driver_that_does_not_acknowledge_the_device_drives_it() {
    // As U-Boot 2023.01 does, which resets the device that it has acknowledged.
    let driver = Driver::silent();
    driver.write(STATUS, DRIVER);
    assert_eq!(driver.status(), DRIVER);
    driver.accept(ALL);
    for bit in [FEATURES_OK, DRIVER_OK] {
        driver.write(STATUS, driver.status() | bit);
    }
    assert_eq!(driver.status(), DRIVER | FEATURES_OK | DRIVER_OK);
}

#[test]
fn a_driver_that_has_failed_may_try_again_without_a_reset() {
    // As Linux does when it probes a driver again that was deferred, for its interrupt controller was not there yet: it
    // adds FAILED, and later DRIVER and what follows to what it reads, and does not look whether DRIVER_OK was taken.
    let driver = Driver::silent();
    let add = |bit| driver.write(STATUS, driver.status() | bit);
    driver.negotiate(ALL & !features::EVENT_IDX);
    add(FAILED);
    add(DRIVER);
    driver.accept(ALL & !features::EVENT_IDX);
    add(FEATURES_OK);
    let mut ring = driver.set_up_queue(0);
    add(DRIVER_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn features_ok_is_refused_for_what_was_not_offered_or_without_version_1() {
    for refused in [
        ALL | 1 << 20,
        ALL | 1 << 63,
        ALL & !features::VERSION_1,
        0,
        features::COMMON | NEEDS_FEATURE,
    ] {
        let driver = Driver::silent();
        driver.negotiate(refused);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER, "{refused:#x}");
        driver.accept(ALL);
        driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(driver.status() & FEATURES_OK, FEATURES_OK, "it may try again");
    }
    let driver = Driver::silent();
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.accept(ALL);
    driver.write(DRIVER_FEATURES_SEL, 2);
    driver.write(DRIVER_FEATURES, 1);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(
        driver.status() & FEATURES_OK,
        0,
        "a feature in a word that does not exist"
    );
}

#[test]
fn features_are_frozen_by_features_ok_and_told_to_the_device() {
    let driver = Driver::silent();
    driver.accept(ALL);
    driver.negotiate(features::VERSION_1);
    driver.accept(ALL);
    driver.set_up_queue(0);
    driver.go();
    driver.mmio.with_device(|probe| {
        assert_eq!(probe.negotiated, [features::VERSION_1]);
        assert_eq!(*probe.queues.features.lock().unwrap(), Some(features::VERSION_1));
    });
}

#[test]
fn needs_reset_is_cleared_by_reset_alone_and_comes_with_a_configuration_interrupt() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    ring.set_avail_idx(SIZE + 1);
    driver.write(QUEUE_NOTIFY, 0);
    let working = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(driver.status(), working | DEVICE_NEEDS_RESET);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    assert_eq!(counted.count(), 1);
    assert!(matches!(
        driver.mmio.fault(),
        Some(Fault::Driver(QueueError::AvailIndex { .. }))
    ));
    driver.write(STATUS, working);
    assert_eq!(driver.status(), working | DEVICE_NEEDS_RESET);

    // It is quiet from here on: no spinning, no second interrupt.
    let processed = driver.processed();
    for _ in 0..10 {
        driver.write(QUEUE_NOTIFY, 0);
    }
    assert_eq!(driver.processed(), processed);
    assert_eq!(counted.count(), 1);

    driver.write(STATUS, 0);
    assert_eq!(driver.mmio.fault(), None);
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used(), [(0, 1)], "it works again");
}

#[test]
fn a_queue_that_cannot_be_breaks_its_device_at_driver_ok() {
    for (register, value) in [
        (QUEUE_SIZE, 3),
        (QUEUE_SIZE, 0x10008),
        (QUEUE_DESC_LOW, 8),
        (QUEUE_DEVICE_LOW + 4, 1),
    ] {
        let counted = Counted::default();
        let driver = Driver::new(counted.edge());
        driver.negotiate(ALL);
        driver.write(QUEUE_SEL, 0);
        driver.write_layout(&Ring::new(&driver.memory, 0x10000, SIZE));
        driver.write(register, value);
        driver.write(QUEUE_READY, 1);
        driver.go();
        assert_eq!(
            driver.status() & DEVICE_NEEDS_RESET,
            DEVICE_NEEDS_RESET,
            "{register:#x} = {value:#x}"
        );
        assert_eq!(counted.count(), 1);
    }
}

#[test]
fn reset_works_at_every_stage_and_clears_everything() {
    let (line, heard) = level();
    let driver = Driver::new(line);
    let cleared = |stage: &str| {
        driver.write(STATUS, 0);
        assert_eq!(driver.status(), 0, "{stage}");
        assert_eq!(driver.read(INTERRUPT_STATUS), 0, "{stage}");
        assert!(!heard.lock().unwrap().last().copied().unwrap_or(false), "{stage}");
        for queue in 0..2 {
            driver.write(QUEUE_SEL, queue);
            assert_eq!(driver.read(QUEUE_READY), 0, "{stage}");
        }
        // Accepted features are gone: FEATURES_OK has nothing to say yes to.
        driver.write(STATUS, ACKNOWLEDGE | DRIVER);
        driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER, "{stage}");
        driver.write(STATUS, 0);
    };
    cleared("power-on");
    driver.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.accept(ALL);
    cleared("negotiation");
    driver.negotiate(ALL);
    driver.set_up_queue(0);
    cleared("queue set-up");
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(*heard.lock().unwrap(), [true]);
    cleared("running, with an interrupt pending");
    // A kick now does nothing: the queue is gone.
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.used_idx(), 1);
    driver.start();
    driver.mmio.change_config(|_| ());
    cleared("configuration change pending");
    let fill = || {
        driver.start();
        driver.mmio.change_config(|_| ());
        driver.write(SHM_SEL, 1);
        driver.write(QUEUE_SEL, 1);
    };
    fill();
    driver.write(STATUS, 0);
    let mut fresh = Driver::silent().saved();
    // It counts on, so that a driver which reads across a reset sees it too.
    rest::mmio(&mut fresh).transport.config_generation = driver.read(CONFIG_GENERATION);
    assert_eq!(driver.saved(), fresh, "nothing of the driver is left");
    fill();
    driver.mmio.reset();
    let [by_driver, from_outside] = [fresh, driver.saved()].map(|mut state: SavedDevice| {
        let transport = &mut rest::mmio(&mut state).transport;
        (transport.config_generation, transport.config_changed) = (0, false);
        state
    });
    assert_eq!(from_outside, by_driver);
    assert!(!heard.lock().unwrap().last().copied().unwrap());
}

/// A device at work, whose line calls `then` as it falls, without a lock: as a platform may that runs its handlers there.
fn reset_with(then: impl Fn(&Mmio) + Send + Sync + 'static) -> Driver {
    let slot: Arc<Mutex<Option<Arc<Mmio>>>> = Arc::default();
    let device = Arc::clone(&slot);
    let line = level_from_fn(move |up| {
        let mmio = device.lock().unwrap().take_if(|_| !up);
        mmio.iter().for_each(|mmio| then(mmio));
        Ok(())
    });
    let driver = Driver::new(Line::Level(Arc::new(line)));
    driver.start().request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    *slot.lock().unwrap() = Some(Arc::clone(&driver.mmio));
    driver.write(STATUS, 0);
    assert!(slot.lock().unwrap().is_none(), "the line fell");
    driver
}

#[test]
fn a_device_that_is_reset_is_not_called_again_by_a_late_kick() {
    let driver = reset_with(|mmio| {
        let before = mmio.with_device(|probe| (probe.resets, probe.processed()));
        assert_eq!(before.0, 1);
        mmio.write(QUEUE_NOTIFY, &[0; 4]);
        assert_eq!(mmio.with_device(|probe| (probe.resets, probe.processed())), before);
    });
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_late_configuration_change_leaves_nothing_pending_on_a_device_that_is_reset() {
    let driver = reset_with(|mmio| mmio.change_config(|probe| probe.mac[0] = 7));
    assert_eq!((driver.status(), driver.read(INTERRUPT_STATUS)), (0, 0));
}

#[test]
fn registers_written_while_the_line_of_a_reset_device_falls_are_those_of_a_device_that_was_reset() {
    let driver = reset_with(|mmio| mmio.write(STATUS, &ACKNOWLEDGE.to_le_bytes()));
    assert_eq!(
        driver.status(),
        ACKNOWLEDGE,
        "and not taken back by the end of the reset"
    );
}

#[test]
fn a_device_hears_what_was_negotiated_before_its_queues_are_set_up_and_after_a_restore() {
    let driver = Driver::silent();
    driver.negotiate(ALL | 1 << 20);
    assert!(
        driver.mmio.with_device(|probe| probe.negotiated.is_empty()),
        "it was refused"
    );
    driver.accept(ALL);
    driver.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.mmio.with_device(|probe| probe.negotiated.clone()), [ALL]);
    let restored = Driver::silent();
    restored.mmio.restore(&driver.saved()).unwrap();
    assert_eq!(restored.mmio.with_device(|probe| probe.negotiated.clone()), [ALL]);
}
