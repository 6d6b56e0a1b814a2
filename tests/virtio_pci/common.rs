//! The common configuration: registers, the status machine behind them, and what is frozen when.

use std::{
    io,
    sync::{Arc, OnceLock, Weak},
};

use devisor::{
    pci::Function,
    virtio::{
        QueueIndex, VirtioTransport, features,
        transport::{
            pci::VirtioPciOptions,
            status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK},
        },
    },
};

use crate::{driver::*, ring::writable};

#[test]
fn registers_read_as_they_are_after_reset() {
    let driver = Driver::new();
    let expect = |register, value| assert_eq!(driver.get(register), value, "{register:#x}");
    for (register, value) in [
        (DEVICE_FEATURE_SELECT, 0),
        (DRIVER_FEATURE_SELECT, 0),
        (DRIVER_FEATURE, 0),
        (CONFIG_MSIX_VECTOR, NO_VECTOR),
        (NUM_QUEUES, 2),
        (DEVICE_STATUS, 0),
        (CONFIG_GENERATION, 0),
        (QUEUE_SELECT, 0),
        (QUEUE_SIZE, SIZE.into()),
        (QUEUE_MSIX_VECTOR, NO_VECTOR),
        (QUEUE_ENABLE, 0),
        (QUEUE_NOTIFY_OFF, 0),
        (QUEUE_DESC, 0),
        (QUEUE_DRIVER, 0),
        (QUEUE_DEVICE, 0),
        (QUEUE_NOTIFY_DATA, 0),
        (QUEUE_RESET, 0),
    ] {
        expect(register, value);
    }
    driver.set(QUEUE_SELECT, 1);
    expect(QUEUE_SIZE, (2 * SIZE).into());
    expect(QUEUE_NOTIFY_OFF, 1);
}

#[test]
fn features_are_offered_and_accepted_by_words() {
    let driver = Driver::new();
    let mut offered = 0;
    for select in 0..4 {
        driver.set(DEVICE_FEATURE_SELECT, select);
        offered |= u128::from(driver.get(DEVICE_FEATURE)) << (32 * select);
    }
    assert_eq!(offered, u128::from(ALL));
    driver.negotiate(ALL);
    assert_eq!(driver.status() as u32, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    for select in 0..2 {
        driver.set(DRIVER_FEATURE_SELECT, select);
        assert_eq!(
            driver.get(DRIVER_FEATURE),
            ALL >> (32 * select) & 0xffff_ffff,
            "it reads back"
        );
    }
    driver.accept(0);
    assert_eq!(driver.get(DRIVER_FEATURE), ALL >> 32, "frozen");

    for refused in [ALL | 1 << 20, ALL & !features::VERSION_1] {
        let driver = Driver::new();
        driver.negotiate(refused);
        assert_eq!(driver.status() as u32, ACKNOWLEDGE | DRIVER);
    }
}

#[test]
fn a_queue_that_does_not_exist_is_of_size_zero_and_cannot_be_set_up() {
    let driver = Driver::new();
    driver.negotiate(ALL);
    for queue in [2, 0x100, 0xffff] {
        driver.set(QUEUE_SELECT, queue);
        for (register, value) in [
            (QUEUE_SIZE, 8),
            (QUEUE_MSIX_VECTOR, 1),
            (QUEUE_DESC, 0x1000),
            (QUEUE_ENABLE, 1),
            (QUEUE_RESET, 1),
        ] {
            driver.set(register, value);
        }
        for register in [
            QUEUE_SIZE,
            QUEUE_ENABLE,
            QUEUE_NOTIFY_OFF,
            QUEUE_DESC,
            QUEUE_NOTIFY_DATA,
        ] {
            assert_eq!(driver.get(register), 0, "{register:#x}");
        }
        assert_eq!(driver.get(QUEUE_MSIX_VECTOR), NO_VECTOR);
        assert_eq!(driver.get(QUEUE_SELECT), queue);
    }
}

#[test]
fn addresses_are_written_by_halves_or_whole() {
    let driver = Driver::new();
    driver.negotiate(ALL);
    for register in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE] {
        driver.set_bar(STRUCTURES, register + 4, 4, 0x1122_3344);
        driver.set_bar(STRUCTURES, register, 4, 0x5566_7788);
        assert_eq!(driver.get(register), 0x1122_3344_5566_7788);
        assert_eq!(driver.bar(STRUCTURES, register, 4), 0x5566_7788);
        assert_eq!(driver.bar(STRUCTURES, register + 4, 4), 0x1122_3344);
        driver.set(register, 0x8877_6655_4433_2211);
        assert_eq!(driver.get(register), 0x8877_6655_4433_2211);
    }
}

#[test]
fn accesses_that_are_not_a_registers_own_read_as_zero_and_write_nothing() {
    let driver = Driver::with_msix();
    driver.negotiate(ALL);
    driver.set_up_queue(1);
    driver.map_vectors();
    let registers = [
        DEVICE_FEATURE_SELECT,
        DEVICE_FEATURE,
        DRIVER_FEATURE_SELECT,
        DRIVER_FEATURE,
        CONFIG_MSIX_VECTOR,
        NUM_QUEUES,
        DEVICE_STATUS,
        CONFIG_GENERATION,
        QUEUE_SELECT,
        QUEUE_SIZE,
        QUEUE_MSIX_VECTOR,
        QUEUE_ENABLE,
        QUEUE_NOTIFY_OFF,
        QUEUE_DESC,
        QUEUE_DRIVER,
        QUEUE_DEVICE,
        QUEUE_NOTIFY_DATA,
        QUEUE_RESET,
    ];
    let all = || registers.map(|register| driver.get(register));
    let before = all();
    for offset in 0..0x44 {
        for len in 0..=8 {
            let whole = registers
                .iter()
                .any(|&register| register == offset && width(register) == len);
            let half = (QUEUE_DESC..QUEUE_NOTIFY_DATA).contains(&offset) && offset % 4 == 0 && len == 4;
            if !whole && !half {
                assert_eq!(driver.bar(STRUCTURES, offset, len), 0, "{len} bytes at {offset:#x}");
                driver.set_bar(STRUCTURES, offset, len, 0);
                driver.set_bar(STRUCTURES, offset, len, u64::MAX);
                assert_eq!(all(), before, "{len} bytes at {offset:#x}");
            }
        }
    }
    // Between and beyond the structures, and across their ends.
    for (offset, len) in [
        (0x3c, 4),
        (0xffe, 8),
        (0x1001, 1),
        (0x1000, 2),
        (0x2ffe, 4),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
    ] {
        assert_eq!(driver.bar(STRUCTURES, offset, len), 0, "{len} bytes at {offset:#x}");
        driver.set_bar(STRUCTURES, offset, len, u64::MAX);
    }
    assert_eq!(all(), before);
}

#[test]
fn read_only_registers_do_not_change() {
    let driver = Driver::new();
    driver.negotiate(ALL);
    for register in [
        DEVICE_FEATURE,
        NUM_QUEUES,
        CONFIG_GENERATION,
        QUEUE_NOTIFY_OFF,
        QUEUE_NOTIFY_DATA,
    ] {
        let before = driver.get(register);
        driver.set(register, !before);
        assert_eq!(driver.get(register), before, "{register:#x}");
    }
}

#[test]
fn status_bits_come_in_the_order_of_the_specification() {
    let driver = Driver::new();
    for early in [FEATURES_OK, DRIVER_OK, DEVICE_NEEDS_RESET, 16, 32] {
        driver.set(DEVICE_STATUS, early.into());
        assert_eq!(driver.status(), 0, "{early:#x}");
    }
    driver.start();
    driver.set(DEVICE_STATUS, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.pci.with_device(|probe| probe.resets), 1);
}

#[test]
fn a_reset_that_comes_while_another_status_is_written_is_a_reset() {
    let pci: Arc<OnceLock<Weak<Device>>> = Arc::default();
    let other = Arc::clone(&pci);
    let driver = Driver::build(Probe::default(), VirtioPciOptions::default(), |pci| {
        // Rung when DRIVER_OK is set. Here as another vCPU's.
        pci.with_doorbell(move |_queue| -> io::Result<()> {
            let pci = other.get().and_then(Weak::upgrade).unwrap();
            pci.write_bar(STRUCTURES, DEVICE_STATUS, &[0]);
            Ok(())
        })
    })
    .unwrap();
    assert!(pci.set(Arc::downgrade(&driver.pci)).is_ok());
    driver.place();
    driver.negotiate(ALL);
    driver.set(DEVICE_STATUS, WORKING | u64::from(FAILED));
    assert_eq!(driver.status(), 0);
}

#[test]
fn queue_registers_written_after_driver_ok_change_nothing() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.set(QUEUE_SELECT, 0);
    let registers = [QUEUE_SIZE, QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE, QUEUE_ENABLE];
    let before = registers.map(|register| driver.get(register));
    for value in [0, 4, 0x4000, u64::MAX] {
        for register in registers {
            driver.set(register, value);
        }
        assert_eq!(registers.map(|register| driver.get(register)), before);
    }
    driver.request(0, &mut ring);
    assert_eq!(ring.used().len(), 1, "the queue is where it was");
    // A queue that was not enabled is frozen, too.
    driver.set(DEVICE_STATUS, 0);
    driver.negotiate(ALL);
    driver.go();
    driver.set_up_queue(0);
    assert_eq!(driver.get(QUEUE_ENABLE), 0);
}

#[test]
fn queues_are_frozen_before_features_ok_and_once_they_are_enabled() {
    let driver = Driver::new();
    driver.set(DEVICE_STATUS, ACKNOWLEDGE.into());
    driver.set(QUEUE_SIZE, 4);
    driver.set(QUEUE_ENABLE, 1);
    assert_eq!((driver.get(QUEUE_SIZE), driver.get(QUEUE_ENABLE)), (SIZE.into(), 0));
    driver.negotiate(ALL);
    for odd in [2, 3, 0xffff, 0] {
        driver.set(QUEUE_ENABLE, odd);
        assert_eq!(driver.get(QUEUE_ENABLE), 0, "{odd:#x}");
    }
    driver.set_up_queue(0);
    driver.set(QUEUE_SIZE, 4);
    driver.set(QUEUE_ENABLE, 0);
    assert_eq!((driver.get(QUEUE_SIZE), driver.get(QUEUE_ENABLE)), (SIZE.into(), 1));
}

#[test]
fn a_queue_is_reset_by_itself_and_set_up_again() {
    let driver = Driver::with_msix();
    let [mut first, mut second] = driver.start();
    driver.request(0, &mut first);
    driver.set(QUEUE_SELECT, 0);
    for no_reset in [0, 2, 0xfffe] {
        driver.set(QUEUE_RESET, no_reset);
        assert_eq!(driver.get(QUEUE_ENABLE), 1, "{no_reset:#x}");
    }
    driver.set(QUEUE_RESET, 1);
    assert_eq!((driver.get(QUEUE_RESET), driver.get(QUEUE_ENABLE)), (0, 0));
    assert_eq!((driver.get(QUEUE_SIZE), driver.get(QUEUE_DESC)), (SIZE.into(), 0));
    assert_eq!(driver.get(QUEUE_MSIX_VECTOR), NO_VECTOR);
    first.request(&[writable(0x8000, 1)]);
    driver.kick(0);
    assert_eq!(driver.pci.queue_counters(QueueIndex(0)), None);
    driver.request(1, &mut second);
    assert_eq!(second.used().len(), 1, "the other one runs on");

    driver.sent();
    let mut again = driver.set_up_queue(0);
    driver.set(QUEUE_MSIX_VECTOR, 2);
    driver.request(0, &mut again);
    assert_eq!((again.used().len(), driver.sent()), (1, vec![OF_QUEUE[1]]));
}

#[test]
fn a_queue_is_not_reset_by_itself_if_that_was_not_negotiated() {
    let driver = Driver::with_msix();
    driver.negotiate(ALL & !features::RING_RESET);
    driver.set_up_queue(0);
    driver.map_vectors();
    driver.go();
    driver.set(QUEUE_SELECT, 0);
    driver.set(QUEUE_RESET, 1);
    assert_eq!((driver.get(QUEUE_ENABLE), driver.get(QUEUE_MSIX_VECTOR)), (1, 1));
}

#[test]
fn notification_data_is_there_as_negotiated() {
    for (accepted, data) in [(ALL, 1), (ALL & !features::NOTIF_CONFIG_DATA, 0)] {
        let driver = Driver::new();
        driver.negotiate(accepted);
        driver.set(QUEUE_SELECT, 1);
        assert_eq!(driver.get(QUEUE_NOTIFY_DATA), data, "{accepted:#x}");
    }
}

#[test]
fn the_device_configuration_answers_every_width_and_offset() {
    let driver = Driver::new();
    for len in [1, 2, 4, 8, 3] {
        for offset in 0..12u64 {
            let mut data = vec![0xff; len];
            driver.pci.read_bar(STRUCTURES, CONFIG + offset, &mut data);
            let byte = |at: u64| if at < 6 { at as u8 + 1 } else { 0 };
            let expected: Vec<_> = (offset..).take(len).map(byte).collect();
            assert_eq!(data, expected, "{len} bytes at {offset}");
        }
    }
    driver.set_bar(STRUCTURES, CONFIG + 3, 2, 0x0807);
    driver.set_bar(STRUCTURES, CONFIG + 0xfff, 1, 9);
    let written = driver.pci.with_device(|probe| probe.written.clone());
    assert_eq!(written, [(3, vec![7, 8]), (0xfff, vec![9])]);
}

#[test]
fn a_torn_read_of_the_configuration_is_detectable() {
    let driver = Driver::new();
    for change in 1..=300 {
        driver.change();
        assert_eq!(driver.get(CONFIG_GENERATION), change % 256);
    }
}

#[test]
fn a_read_that_is_torn_by_as_many_changes_as_the_generation_has_values_is_detectable() {
    let driver = Driver::new();
    driver.start();
    for changes in [1, 255, 256, 257, 512, 65536] {
        let before = driver.get(CONFIG_GENERATION);
        (0..changes).for_each(|_| driver.change());
        let after = driver.get(CONFIG_GENERATION);
        assert_ne!(after, before, "{changes} changes");
        assert_eq!(
            driver.get(CONFIG_GENERATION),
            after,
            "and what is read from now on is whole"
        );
    }
}

#[test]
fn what_the_driver_does_to_the_configuration_moves_the_generation_too() {
    let driver = Driver::new();
    let acts: [(&str, &dyn Fn()); 3] = [
        ("FEATURES_OK, on which fields depend", &|| driver.negotiate(ALL)),
        ("its own write", &|| driver.set_bar(STRUCTURES, CONFIG, 1, 9)),
        ("a reset", &|| driver.set(DEVICE_STATUS, 0)),
    ];
    for (what, act) in acts {
        let before = driver.get(CONFIG_GENERATION);
        assert_eq!(driver.get(CONFIG_GENERATION), before);
        act();
        assert_ne!(driver.get(CONFIG_GENERATION), before, "{what}");
    }
}

#[test]
fn a_queue_size_that_cannot_be_reads_back_as_zero_and_no_ring_is_served_with_another() {
    let driver = Driver::new();
    driver.negotiate(ALL);
    driver.set(QUEUE_SELECT, 0);
    for size in 0..=0xffff_u64 {
        driver.set(QUEUE_SIZE, size);
        let possible = size.is_power_of_two() && size <= SIZE.into();
        assert_eq!(driver.get(QUEUE_SIZE), if possible { size } else { 0 });
    }
    driver.set(QUEUE_SIZE, 4);
    assert_eq!(driver.get(QUEUE_SIZE), 4, "one that can be is taken after it");
    driver.set_up_queue(1);
    driver.set(QUEUE_SELECT, 0);
    driver.set(QUEUE_SIZE, 3);
    driver.set(QUEUE_ENABLE, 1);
    driver.go();
    assert_eq!(driver.status(), WORKING | u64::from(DEVICE_NEEDS_RESET));
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_that_the_device_needs_a_reset() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.sent();
    ring.set_avail_idx(SIZE + 1);
    driver.kick(0);
    assert_eq!(driver.status(), WORKING | u64::from(DEVICE_NEEDS_RESET));
    assert_eq!(driver.sent(), [OF_CONFIG]);
    assert!(driver.pci.fault().is_some());
    driver.set(DEVICE_STATUS, 0);
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn an_access_that_runs_out_of_the_device_configuration_reaches_neither_device_nor_doorbell() {
    let driver = Driver::new();
    let [mut ring, _] = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    for (offset, len) in [
        (CONFIG + 0xffe, 4),
        (CONFIG + 0xfff, 2),
        (CONFIG + 0xff9, 8),
        (CONFIG - 1, 2),
    ] {
        driver.set_bar(STRUCTURES, offset, len, 0);
        assert_eq!(driver.bar(STRUCTURES, offset, len), 0);
    }
    assert!(driver.pci.with_device(|probe| probe.written.is_empty()));
    assert_eq!(ring.used().len(), 0);
    driver.set_bar(STRUCTURES, CONFIG + 0xffc, 4, 0);
    assert_eq!(
        driver.pci.with_device(|probe| probe.written.len()),
        1,
        "the last word is the device's"
    );
}
