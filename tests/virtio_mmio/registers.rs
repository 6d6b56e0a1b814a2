//! Identification, configuration space and shared memory regions.

use devisor::{
    bus::{BusDevice, read_le},
    virtio::{features, transport::VirtioTransport},
};

use crate::{driver::*, rest};

#[test]
fn the_device_says_what_it_is() {
    let driver = Driver::silent();
    assert_eq!(driver.read(MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(VERSION), 2);
    assert_eq!(driver.read(DEVICE_ID), 42);
    let mut offered = 0;
    for sel in 0..4 {
        driver.write(DEVICE_FEATURES_SEL, sel);
        offered |= u128::from(driver.read(DEVICE_FEATURES)) << (32 * sel);
    }
    assert_eq!(offered, u128::from(features::COMMON | FEATURE | NEEDS_FEATURE));
}

#[test]
fn configuration_space_answers_every_width_and_offset() {
    let driver = Driver::silent();
    driver.mmio.with_device(|probe| probe.mac = [1, 2, 3, 4, 5, 6]);
    for len in [1, 2, 4, 8, 3] {
        for offset in 0..12u64 {
            let mut data = vec![0xff; len];
            driver.mmio.read(CONFIG + offset, &mut data);
            let expected: Vec<_> = (offset..)
                .take(len)
                .map(|at| if at < 6 { at as u8 + 1 } else { 0 })
                .collect();
            assert_eq!(data, expected, "{len} bytes at {offset}");
        }
    }
    driver.mmio.write(CONFIG + 3, &[9]);
    driver.mmio.write(u64::MAX, &[9]);
    assert_eq!(driver.mmio.with_device(|probe| probe.written.len()), 2);
}

#[test]
fn a_torn_read_of_the_configuration_is_detectable() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    driver.start();
    let before = driver.read(CONFIG_GENERATION);
    driver.mmio.change_config(|probe| probe.mac[0] = 7);
    assert_ne!(driver.read(CONFIG_GENERATION), before);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    assert_eq!(counted.count(), 1);
}

#[test]
fn the_generation_moves_once_a_read_however_often_the_configuration_has_changed() {
    let driver = Driver::silent();
    driver.start();
    let mut last = driver.read(CONFIG_GENERATION);
    for changes in [1, 2, 256, 1000] {
        (0..changes).for_each(|_| driver.mmio.change_config(|probe| probe.mac[0] ^= 1));
        let mut state = driver.saved();
        assert!(rest::mmio(&mut state).transport.config_changed);
        let restored = Driver::silent();
        restored.mmio.restore(&state).unwrap();
        for driver in [&driver, &restored] {
            assert_eq!(driver.read(CONFIG_GENERATION), last + 1, "{changes} changes");
            assert_eq!(driver.read(CONFIG_GENERATION), last + 1);
        }
        last += 1;
    }
    driver.mmio.write(CONFIG, &[9]);
    assert_eq!(driver.read(CONFIG_GENERATION), last + 1, "the driver's own write");
    let mut state = driver.saved();
    let transport = &mut rest::mmio(&mut state).transport;
    (transport.config_generation, transport.config_changed) = (u32::MAX, true);
    let restored = Driver::silent();
    restored.mmio.restore(&state).unwrap();
    assert_eq!(restored.read(CONFIG_GENERATION), 0, "it wraps");
    assert!(!rest::mmio(&mut restored.saved()).transport.config_changed);
}

#[test]
fn a_configuration_change_before_the_driver_is_ready_is_silent_but_counted() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let before = driver.read(CONFIG_GENERATION);
    driver.mmio.change_config(|probe| probe.mac[0] = 7);
    assert_ne!(driver.read(CONFIG_GENERATION), before);
    assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (0, 0));
}

#[test]
fn a_configuration_change_while_the_driver_initialises_is_told_when_it_is_ready() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    driver.negotiate(ALL);
    // The driver has read the configuration by now, and only an interrupt would make it look again.
    driver.mmio.change_config(|probe| probe.mac[0] = 7);
    assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (0, 0));
    driver.go();
    assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (2, 1));
    driver.write(INTERRUPT_ACK, 2);

    driver.write(STATUS, 0);
    driver.mmio.change_config(|probe| probe.mac[0] = 8);
    driver.start();
    assert_eq!(counted.count(), 1, "one before the driver came is no news to it");
}

#[test]
fn shared_memory_regions_are_told_and_absent_ones_are_all_ones() {
    let driver = Driver::silent();
    let registers = [SHM_LEN_LOW, SHM_LEN_HIGH, SHM_BASE_LOW, SHM_BASE_HIGH];
    driver.write(SHM_SEL, 1);
    assert_eq!(
        registers.map(|register| driver.read(register)),
        [0x1000, 3, 0x3456_7000, 0x12]
    );
    for absent in [0, 2, 0x101, u32::MAX] {
        driver.write(SHM_SEL, absent);
        assert_eq!(registers.map(|register| driver.read(register)), [u32::MAX; 4]);
    }
}

#[test]
fn registers_answer_aligned_words_only() {
    let driver = Driver::silent();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 1), (0xfe, 4)] {
        let mut data = vec![0xff; len];
        driver.mmio.read(offset, &mut data);
        assert_eq!(read_le(&data), 0, "{len} bytes at {offset:#x}");
        driver.mmio.write(STATUS + offset % 4, &vec![1; len]);
    }
    assert_eq!(driver.status(), 0);
}

#[test]
fn write_only_registers_read_as_zero_and_read_only_ones_do_not_change() {
    let driver = Driver::silent();
    driver.negotiate(ALL);
    driver.set_up_queue(0);
    for register in (0..0x100).step_by(4) {
        let write_only = [
            DEVICE_FEATURES_SEL,
            DRIVER_FEATURES,
            DRIVER_FEATURES_SEL,
            QUEUE_SEL,
            QUEUE_SIZE,
            QUEUE_NOTIFY,
            INTERRUPT_ACK,
            SHM_SEL,
            0x80,
            0x84,
            0x90,
            0x94,
            0xa0,
            0xa4,
        ];
        if write_only.contains(&register) {
            assert_eq!(driver.read(register), 0, "{register:#x}");
        }
    }
    for register in [
        MAGIC_VALUE,
        VERSION,
        DEVICE_ID,
        QUEUE_SIZE_MAX,
        CONFIG_GENERATION,
        INTERRUPT_STATUS,
    ] {
        let before = driver.read(register);
        driver.write(register, !before);
        assert_eq!(driver.read(register), before, "{register:#x}");
    }
}
