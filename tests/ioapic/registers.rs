//! What it is made with, and what a guest reads and writes.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Vector,
        ioapic::{IoApic, IoApicConfig, IoApicError, Pin},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, RequesterId},
};
use proptest::prelude::*;
use std::sync::Arc;

// Configuration.

#[test]
fn it_has_1_to_240_pins() {
    for pins in [0, 241, u32::MAX] {
        let config = IoApicConfig {
            pins,
            ..IoApicConfig::default()
        };
        let refused = IoApic::new(config, Arc::new(Sink::default())).unwrap_err();
        assert_eq!(refused, IoApicError::Pins(pins));
        assert!(refused.to_string().contains("1 to 240"), "{refused}");
    }
    for pins in [1, 24, 120, 240] {
        assert_eq!(with_pins(pins).0.config().pins, pins);
    }
}

#[test]
fn a_pin_that_does_not_exist_is_refused() {
    let (ioapic, _) = new();
    let error = IoApicError::NoSuchPin { pin: Pin(24), pins: 24 };
    assert_eq!(ioapic.level_line(Pin(24)).unwrap_err(), error);
    assert_eq!(ioapic.edge_line(Pin(24)).unwrap_err(), error);
    assert_eq!(error.to_string(), "pin 24: this IOAPIC has pins 0 to 23");
}

#[test]
fn the_sink_is_told_which_ioapic_sends() {
    let sink = Arc::new(Sink::default());
    let config = IoApicConfig {
        requester: RequesterId(0xf0f8),
        ..IoApicConfig::default()
    };
    let ioapic = IoApic::new(config, Arc::clone(&sink)).unwrap();
    program(&ioapic, 0, 0x30);
    ioapic.edge_line(Pin(0)).unwrap().trigger().unwrap();
    assert_eq!(sink.sent.lock().unwrap()[0].0, RequesterId(0xf0f8));
}

// Registers.

#[test]
fn identification_registers_tell_version_0x20_and_the_number_of_the_last_entry() {
    for pins in [1, 24, 240] {
        let (ioapic, _) = with_pins(pins);
        assert_eq!(read(&ioapic, 1), 0x20 | (pins - 1) << 16);
        write(&ioapic, 1, u32::MAX);
        assert_eq!(read(&ioapic, 1), 0x20 | (pins - 1) << 16);
    }
}

#[test]
fn the_id_has_four_bits_and_arbitration_follows_it() {
    let (ioapic, _) = new();
    assert_eq!(read(&ioapic, 0), 0);
    write(&ioapic, 0, u32::MAX);
    assert_eq!(read(&ioapic, 0), 0x0f00_0000);
    assert_eq!(read(&ioapic, 2), 0x0f00_0000);
    write(&ioapic, 2, 0);
    assert_eq!(read(&ioapic, 2), 0x0f00_0000);
}

#[test]
fn every_entry_is_masked_after_a_reset_and_keeps_what_is_written() {
    for pins in [24, 120, 121, 240] {
        let (ioapic, _) = with_pins(pins);
        for pin in 0..pins {
            assert_eq!(entry(&ioapic, pin), MASKED);
            program(&ioapic, pin, MASKED | u64::from(pin as u8) | u64::from(pin) << 56);
        }
        for pin in 0..pins {
            let expected = MASKED | u64::from(pin as u8) | u64::from(pin as u8) << 56;
            assert_eq!(entry(&ioapic, pin), expected, "{pin} of {pins}");
        }
        assert_eq!(read(&ioapic, 0x10 + 2 * pins) as u64 & !0xffff_ffff, 0);
        ioapic.reset();
        assert_eq!(entry(&ioapic, pins - 1), MASKED);
    }
}

#[test]
fn ioregsel_has_eight_bits_for_up_to_120_pins() {
    let (ioapic, _) = with_pins(120);
    ioapic.write(0, &0xffff_ff01_u32.to_le_bytes());
    let mut data = [0; 4];
    ioapic.read(0, &mut data);
    assert_eq!(data, [1, 0, 0, 0]);
}

#[test]
fn registers_that_do_not_exist_read_as_zero_and_write_nothing() {
    let (ioapic, _) = new();
    let before = ioapic.save();
    assert_eq!(before.select, 0);
    for index in (3..0x10).chain(0x40..0x100) {
        write(&ioapic, index, u32::MAX);
        assert_eq!(read(&ioapic, index), 0, "{index:#x}");
    }
    ioapic.write(0, &[0]);
    assert_eq!(ioapic.save(), before);
}

#[test]
fn reserved_bits_of_an_entry_read_as_zero() {
    let (ioapic, _) = new();
    program(&ioapic, 3, !LEVEL);
    let kept = 0xffff_0000_0001_ffff & !(LEVEL | REMOTE_IRR | DELIVERY_STATUS);
    assert_eq!(entry(&ioapic, 3), kept);
}

#[test]
fn remote_irr_and_delivery_status_are_read_only() {
    let (ioapic, sink) = new();
    program(&ioapic, 5, MASKED | LEVEL | REMOTE_IRR | DELIVERY_STATUS);
    assert_eq!(entry(&ioapic, 5), MASKED | LEVEL);

    let line = ioapic.level_line(Pin(5)).unwrap();
    line.trigger().unwrap();
    program(&ioapic, 5, LEVEL | 0x55);
    assert_eq!(entry(&ioapic, 5), LEVEL | REMOTE_IRR | 0x55);
    // A level interrupt in service stays in service, whatever is written to either half.
    program(&ioapic, 5, LEVEL | 0x56);
    program(&ioapic, 5, MASKED | LEVEL | 0x56);
    program(&ioapic, 5, LEVEL | 0x55);
    assert_eq!(entry(&ioapic, 5), LEVEL | REMOTE_IRR | 0x55);
    assert_eq!(sink.vectors(), [0x55]);
}

#[test]
fn narrow_accesses_reach_the_bytes_that_they_cover() {
    let (ioapic, _) = new();
    ioapic.write(0x00, &[0x11]);
    ioapic.write(0x13, &[0xa5]);
    let mut byte = [0];
    ioapic.read(0x13, &mut byte);
    assert_eq!(byte, [0xa5]);
    assert_eq!(entry(&ioapic, 0), MASKED | 0xa5 << 56);

    ioapic.write(0x00, &[0x10, 0]);
    ioapic.write(0x10, &[0x31, 0x08]);
    assert_eq!(entry(&ioapic, 0), MASKED | LOGICAL | 0x31 | 0xa5 << 56);
    let mut word = [0; 2];
    ioapic.write(0x00, &[0x10]);
    ioapic.read(0x12, &mut word);
    assert_eq!(word, [1, 0]);

    // Eight bytes from IOWIN on: the register, and four bytes of nothing.
    let mut both = [0xff; 8];
    ioapic.read(0x10, &mut both);
    assert_eq!(both, [0x31, 0x08, 1, 0, 0, 0, 0, 0]);
    ioapic.write(0x10, &[0x32, 0, 1, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(entry(&ioapic, 0), MASKED | 0x32 | 0xa5 << 56);
    // And eight bytes that end with IOWIN, not aligned.
    ioapic.write(0x00, &[0x10]);
    ioapic.write(0x0b, &[0xff, 0xff, 0xff, 0xff, 0xff, 0x33, 8, 1]);
    assert_eq!(entry(&ioapic, 0), MASKED | LOGICAL | 0x33 | 0xa5 << 56);
}

proptest! {
    #[test]
    fn any_access_of_any_width_at_any_offset_answers(
        pins in prop_oneof![Just(1u32), Just(24), Just(121), Just(240)],
        steps in prop::collection::vec(
            (prop_oneof![0..0x50u64, 0xff0..0x1010u64, any::<u64>()], 0..20usize, any::<[u8; 20]>(), any::<u8>()),
            1..200,
        )
    ) {
        let (ioapic, _) = with_pins(pins);
        let lines: Vec<_> = (0..pins).map(|pin| ioapic.level_line(Pin(pin)).unwrap()).collect();
        for (offset, len, mut data, what) in steps {
            let line = &lines[what as usize % lines.len()];
            match what % 5 {
                0 => ioapic.read(offset, &mut data[..len]),
                1 => line.trigger().unwrap(),
                2 => line.clear().unwrap(),
                3 => ioapic.eoi(Vector(data[0])),
                _ => ioapic.write(offset, &data[..len]),
            }
            // Whatever happened, the state is one that another IOAPIC takes.
            prop_assert_eq!(with_pins(pins).0.restore(&ioapic.save()), Ok(()));
        }
    }
}
