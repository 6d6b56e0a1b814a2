//! The IOAPIC by its data sheet (82093AA, order number 290566): what a guest, a device and an embedder can see of it.
#![cfg(feature = "irqchip")]

use devisor::{
    backends::irqchip::{
        Vector,
        ioapic::{IoApic, IoApicConfig, IoApicError, IoApicState, IoApicStateError, Pin, PinState},
    },
    bus::BusDevice,
    interrupt::{Acceptance, EdgeToLevel, Interrupt, LevelInterrupt, MsiMessage, MsiSink, RequesterId},
};
use proptest::prelude::*;
use std::{
    io, mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const ACTIVE_LOW: u64 = 1 << 13;
const DELIVERY_STATUS: u64 = 1 << 12;
const LOGICAL: u64 = 1 << 11;

/// What takes the messages.
#[derive(Default)]
struct Sink {
    sent: Mutex<Vec<(RequesterId, MsiMessage)>>,
    refuses: AtomicBool,
    /// Nobody accepts what is offered.
    drops: AtomicBool,
    tries: Mutex<u32>,
}

impl MsiSink for Sink {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        *self.tries.lock().unwrap() += 1;
        if self.refuses.load(SeqCst) {
            return Err(io::Error::other("refused"));
        }
        self.sent.lock().unwrap().push((requester, message));
        Ok(())
    }

    fn offer(&self, requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        if self.drops.load(SeqCst) {
            *self.tries.lock().unwrap() += 1;
            return Ok(Acceptance::Dropped);
        }
        self.send(requester, message)?;
        Ok(Acceptance::Accepted)
    }
}

impl Sink {
    fn take(&self) -> Vec<MsiMessage> {
        let sent = mem::take(&mut *self.sent.lock().unwrap());
        sent.into_iter().map(|(_, message)| message).collect()
    }

    /// The vectors of the messages since the last time.
    fn vectors(&self) -> Vec<u8> {
        self.take().iter().map(|message| message.data as u8).collect()
    }

    fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, SeqCst);
    }
}

fn with_pins(pins: u32) -> (IoApic, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    let config = IoApicConfig {
        pins,
        ..IoApicConfig::default()
    };
    (IoApic::new(config, Arc::clone(&sink)).unwrap(), sink)
}

fn new() -> (IoApic, Arc<Sink>) {
    with_pins(24)
}

fn read(ioapic: &IoApic, index: u32) -> u32 {
    ioapic.write(0x00, &index.to_le_bytes());
    let mut data = [0; 4];
    ioapic.read(0x10, &mut data);
    u32::from_le_bytes(data)
}

fn write(ioapic: &IoApic, index: u32, value: u32) {
    ioapic.write(0x00, &index.to_le_bytes());
    ioapic.write(0x10, &value.to_le_bytes());
}

fn entry(ioapic: &IoApic, pin: u32) -> u64 {
    u64::from(read(ioapic, 0x11 + 2 * pin)) << 32 | u64::from(read(ioapic, 0x10 + 2 * pin))
}

/// High half first, as one does who unmasks with the low half.
fn program(ioapic: &IoApic, pin: u32, entry: u64) {
    write(ioapic, 0x11 + 2 * pin, (entry >> 32) as u32);
    write(ioapic, 0x10 + 2 * pin, entry as u32);
}

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

// Messages.

#[test]
fn a_message_has_the_fields_of_the_entry_where_the_manual_puts_them() {
    let (ioapic, sink) = new();
    let line = ioapic.edge_line(Pin(7)).unwrap();
    for (entry, address, data) in [
        (0x31, 0xfee0_0000, 0x0031),
        (0xff | 0xff << 56, 0xfeef_f000, 0x00ff),
        (0x40 | LOGICAL | 3 << 56, 0xfee0_3004, 0x0040),
        // Lowest priority sets the redirection hint.
        (0x40 | LOGICAL | 1 << 8 | 3 << 56, 0xfee0_300c, 0x0140),
        (2 << 8, 0xfee0_0000, 0x0200),
        (4 << 8 | 1 << 56, 0xfee0_1000, 0x0400),
        (5 << 8, 0xfee0_0000, 0x0500),
        (7 << 8, 0xfee0_0000, 0x0700),
        // Extended destination ID.
        (0x40 | 0x12fe << 48, 0xfee1_2fe0, 0x0040),
        // Remappable format of VT-d: index 0x8001, where bit 3 says something about subhandles.
        (0x40 | 0x0003 << 48 | 1 << 11 | 1 << 8, 0xfee0_0034, 0x0140),
    ] {
        program(&ioapic, 7, entry);
        line.trigger().unwrap();
        assert_eq!(sink.take(), [MsiMessage { address, data }], "{entry:#x}");
    }
    program(&ioapic, 7, LEVEL | 0x31);
    line.trigger().unwrap();
    let address = 0xfee0_0000;
    assert_eq!(sink.take(), [MsiMessage { address, data: 0xc031 }]);
}

#[test]
fn a_reserved_delivery_mode_sends_nothing_and_owes_nothing() {
    let (ioapic, sink) = new();
    let (edge, level) = (ioapic.edge_line(Pin(0)).unwrap(), ioapic.level_line(Pin(1)).unwrap());
    for mode in [3 << 8, 6 << 8] {
        program(&ioapic, 0, mode | 0x31);
        program(&ioapic, 1, LEVEL | mode | 0x32);
        edge.trigger().unwrap();
        level.trigger().unwrap();
        program(&ioapic, 0, 0x31);
        assert_eq!(sink.vectors(), []);
        level.clear().unwrap();
    }
}

#[test]
fn smi_nmi_init_and_extint_are_edges_whatever_the_trigger_mode_says() {
    let (ioapic, sink) = new();
    for mode in [2, 4, 5, 7_u64] {
        program(&ioapic, 2, LEVEL | mode << 8);
        let line = ioapic.level_line(Pin(2)).unwrap();
        line.trigger().unwrap();
        let (address, data) = (0xfee0_0000, (mode as u32) << 8);
        assert_eq!(sink.take(), [MsiMessage { address, data }]);
        assert_eq!(entry(&ioapic, 2) & REMOTE_IRR, 0, "no EOI will ever clear it");
        ioapic.eoi(Vector(0));
        assert_eq!(sink.take(), []);
    }
}

#[test]
fn delivery_uses_the_route_as_it_is_now() {
    let (ioapic, sink) = new();
    program(&ioapic, 9, LEVEL | MASKED | 0x41 | 1 << 56);
    let line = ioapic.level_line(Pin(9)).unwrap();
    line.trigger().unwrap();
    program(&ioapic, 9, LEVEL | 0x42 | 2 << 56);
    let message = MsiMessage {
        address: 0xfee0_2000,
        data: 0xc042,
    };
    assert_eq!(sink.take(), [message]);
}

// Edges.

#[test]
fn an_edge_sends_one_message_and_a_repeated_assertion_none() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, 0x34);
    let line = ioapic.level_line(Pin(4)).unwrap();
    line.trigger().unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
    ioapic.eoi(Vector(0x34));
    line.clear().unwrap();
    line.clear().unwrap();
    assert_eq!(sink.vectors(), []);
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
}

#[test]
fn a_masked_edge_is_lost() {
    let (ioapic, sink) = new();
    let (level, edge) = (ioapic.level_line(Pin(4)).unwrap(), ioapic.edge_line(Pin(4)).unwrap());
    level.trigger().unwrap();
    edge.trigger().unwrap();
    program(&ioapic, 4, 0x34);
    assert_eq!(sink.vectors(), []);
    assert_eq!(entry(&ioapic, 4), 0x34);
}

#[test]
fn a_pulse_is_an_edge_whatever_level_the_pin_has() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, 0x34);
    let (level, edge) = (ioapic.level_line(Pin(4)).unwrap(), ioapic.edge_line(Pin(4)).unwrap());
    level.trigger().unwrap();
    edge.trigger().unwrap();
    edge.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34; 3]);
}

#[test]
fn a_pulse_on_a_level_sensitive_pin_is_one_message_until_the_eoi() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let edge = ioapic.edge_line(Pin(4)).unwrap();
    edge.trigger().unwrap();
    edge.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), [], "the second was gone by then");
    edge.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
}

// Levels.

#[test]
fn a_level_is_sent_again_after_each_eoi_while_it_is_up() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x51]);
    ioapic.eoi(Vector(0x51));
    ioapic.eoi(Vector(0x51));
    assert_eq!(sink.vectors(), [0x51, 0x51]);
    line.clear().unwrap();
    assert_ne!(entry(&ioapic, 10) & REMOTE_IRR, 0, "in service until the EOI");
    ioapic.eoi(Vector(0x51));
    assert_eq!(entry(&ioapic, 10) & REMOTE_IRR, 0);
    assert_eq!(sink.vectors(), []);
}

#[test]
fn a_level_in_service_that_falls_and_rises_is_sent_once_more_after_the_eoi() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    for _ in 0..3 {
        line.trigger().unwrap();
        line.clear().unwrap();
    }
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x51]);
    ioapic.eoi(Vector(0x51));
    assert_eq!(sink.vectors(), [0x51]);
}

#[test]
fn a_masked_level_is_delivered_when_its_entry_is_unmasked() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, MASKED | LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), []);
    program(&ioapic, 10, LEVEL | 0x51);
    assert_eq!(sink.vectors(), [0x51]);
    // And one that ends behind the mask, not.
    program(&ioapic, 10, MASKED | LEVEL | 0x51);
    ioapic.eoi(Vector(0x51));
    line.clear().unwrap();
    program(&ioapic, 10, LEVEL | 0x51);
    assert_eq!(sink.vectors(), []);
}

#[test]
fn an_eoi_behind_the_mask_takes_it_out_of_service() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    line.trigger().unwrap();
    program(&ioapic, 10, MASKED | LEVEL | 0x51);
    ioapic.eoi(Vector(0x51));
    assert_eq!(entry(&ioapic, 10), MASKED | LEVEL | 0x51);
    assert_eq!(sink.vectors(), [0x51]);
    program(&ioapic, 10, LEVEL | 0x51);
    assert_eq!(sink.vectors(), [0x51]);
}

#[test]
fn switching_an_entry_to_edge_clears_remote_irr() {
    let (ioapic, sink) = new();
    program(&ioapic, 10, LEVEL | 0x51);
    let line = ioapic.level_line(Pin(10)).unwrap();
    line.trigger().unwrap();
    write(&ioapic, 0x10 + 20, 0x51);
    assert_eq!(entry(&ioapic, 10), 0x51);
    assert_eq!(sink.vectors(), [0x51], "the level is no edge");
    // Linux does this to get a pin out of service that has lost its EOI.
    program(&ioapic, 10, LEVEL | 0x51);
    assert_eq!(sink.vectors(), [0x51]);
}

/// How a guest without an EOI register ends an interrupt that has got stuck: masked and edge, then as it was. Linux does.
#[test]
fn switching_to_edge_behind_the_mask_clears_remote_irr_and_a_level_that_is_up_comes_again() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let line = ioapic.level_line(Pin(4)).unwrap();
    line.trigger().unwrap();
    write(&ioapic, 0x18, MASKED as u32 | 0x34);
    write(&ioapic, 0x18, (MASKED | LEVEL) as u32 | 0x34);
    assert_eq!(entry(&ioapic, 4), MASKED | LEVEL | 0x34, "out of service");
    assert_eq!(sink.vectors(), [0x34]);
    write(&ioapic, 0x18, LEVEL as u32 | 0x34);
    assert_eq!(sink.vectors(), [0x34]);
}

/// Most pins of a guest that wants its interrupts balanced are so.
#[test]
fn a_level_of_lowest_priority_is_in_service_until_its_eoi() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | LOGICAL | 1 << 8 | 0x34);
    let line = ioapic.level_line(Pin(4)).unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.take()[0].data, 0xc134, "a level, asserted");
    assert_eq!(entry(&ioapic, 4) & REMOTE_IRR, REMOTE_IRR);
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), [0x34], "it is still up");
}

#[test]
fn polarity_is_honoured() {
    let (ioapic, sink) = new();
    let (edge, level) = (ioapic.level_line(Pin(1)).unwrap(), ioapic.level_line(Pin(2)).unwrap());
    edge.trigger().unwrap();
    level.trigger().unwrap();
    program(&ioapic, 1, ACTIVE_LOW | 0x61);
    program(&ioapic, 2, ACTIVE_LOW | LEVEL | 0x62);
    assert_eq!(sink.vectors(), [], "high is inactive");
    edge.clear().unwrap();
    level.clear().unwrap();
    assert_eq!(sink.vectors(), [0x61, 0x62]);
    edge.trigger().unwrap();
    ioapic.eoi(Vector(0x62));
    assert_eq!(sink.vectors(), [0x62], "still low");
    level.trigger().unwrap();
    ioapic.eoi(Vector(0x62));
    assert_eq!(sink.vectors(), []);
}

// Sources.

#[test]
fn the_level_of_a_pin_is_the_or_of_its_sources() {
    let (ioapic, sink) = new();
    program(&ioapic, 11, LEVEL | 0x70);
    let lines = [ioapic.level_line(Pin(11)).unwrap(), ioapic.level_line(Pin(11)).unwrap()];
    for line in &lines {
        line.trigger().unwrap();
    }
    lines[0].clear().unwrap();
    assert_eq!(sink.vectors(), [0x70]);
    ioapic.eoi(Vector(0x70));
    assert_eq!(sink.vectors(), [0x70]);
    lines[1].clear().unwrap();
    ioapic.eoi(Vector(0x70));
    assert_eq!(sink.vectors(), []);
}

#[test]
fn a_line_counts_once_however_often_it_is_driven() {
    let (ioapic, _) = new();
    let [one, other] = [0, 1].map(|_| ioapic.level_line(Pin(4)).unwrap());
    let is_up = || ioapic.save().pins[4].line;
    one.trigger().unwrap();
    one.trigger().unwrap();
    one.clear().unwrap();
    assert!(!is_up(), "it was up once");
    other.trigger().unwrap();
    one.clear().unwrap();
    one.clear().unwrap();
    assert!(is_up(), "the other holds it");
    drop(one);
    assert!(is_up(), "and still does");
    assert!(format!("{other:?}").contains("pin 4"));
}

#[test]
fn dropping_a_line_lets_go() {
    let (ioapic, sink) = new();
    program(&ioapic, 11, LEVEL | 0x70);
    let line = ioapic.level_line(Pin(11)).unwrap();
    line.trigger().unwrap();
    drop(line);
    ioapic.eoi(Vector(0x70));
    assert_eq!(sink.vectors(), [0x70]);
    assert!(!ioapic.save().pins[11].line);
}

// EOI.

#[test]
fn both_kinds_of_eoi_reach_every_pin_with_the_vector_and_no_other() {
    for directed in [false, true] {
        let (ioapic, sink) = new();
        let lines: Vec<_> = (0..3).map(|pin| ioapic.level_line(Pin(pin)).unwrap()).collect();
        for (pin, vector) in [(0, 0x80), (1, 0x80), (2, 0x81)] {
            program(&ioapic, pin, LEVEL | vector);
            lines[pin as usize].trigger().unwrap();
        }
        sink.take();
        let eoi = |vector: u8| match directed {
            false => ioapic.eoi(Vector(vector)),
            true => ioapic.write(0x40, &u32::from(vector).to_le_bytes()),
        };
        eoi(0x80);
        assert_eq!(sink.vectors(), [0x80, 0x80]);
        eoi(0x82);
        assert_eq!(sink.vectors(), []);
        eoi(0x81);
        assert_eq!(sink.vectors(), [0x81]);
    }
}

#[test]
fn the_eoi_register_is_write_only_and_needs_its_low_byte() {
    let (ioapic, sink) = new();
    program(&ioapic, 0, LEVEL);
    ioapic.level_line(Pin(0)).unwrap().trigger().unwrap();
    assert_eq!(sink.vectors(), [0]);
    ioapic.write(0x41, &[0]);
    assert_ne!(entry(&ioapic, 0) & REMOTE_IRR, 0);
    let mut data = [0xff; 4];
    ioapic.read(0x40, &mut data);
    assert_eq!(data, [0; 4]);
    ioapic.write(0x40, &[0]);
    assert_eq!(entry(&ioapic, 0) & REMOTE_IRR, 0);
}

// What hears of the end.

#[test]
fn a_finished_level_is_told_by_either_eoi_and_only_to_pins_with_the_vector() {
    let (ioapic, _) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    program(&ioapic, 5, LEVEL | 0x35);
    program(&ioapic, 6, 0x34);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = |pin| {
        let heard = Arc::clone(&heard);
        ioapic
            .on_finished(Pin(pin), move || heard.lock().unwrap().push(pin))
            .unwrap()
    };
    let hooks = [hear(4), hear(5), hear(6)];
    let again = hear(4);
    ioapic.eoi(Vector(0x34));
    assert_eq!(mem::take(&mut *heard.lock().unwrap()), [4, 4], "pin 6 is an edge");
    ioapic.write(0x40, &0x35_u32.to_le_bytes());
    assert_eq!(mem::take(&mut *heard.lock().unwrap()), [5]);
    drop(again);
    ioapic.write(0x40, &[0x34]);
    assert_eq!(mem::take(&mut *heard.lock().unwrap()), [4]);
    drop(hooks);
    ioapic.eoi(Vector(0x34));
    assert_eq!(*heard.lock().unwrap(), [0; 0]);
    let error = IoApicError::NoSuchPin { pin: Pin(24), pins: 24 };
    assert_eq!(ioapic.on_finished(Pin(24), || ()).unwrap_err(), error);
}

#[test]
fn a_hook_that_lets_go_of_the_line_spares_the_guest_a_message_and_one_that_holds_it_does_not() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let line = Arc::new(ioapic.level_line(Pin(4)).unwrap());
    let satisfied = Arc::new(AtomicBool::new(false));
    let _hook = {
        let (line, satisfied) = (Arc::clone(&line), Arc::clone(&satisfied));
        ioapic.on_finished(Pin(4), move || {
            line.clear().unwrap();
            // The host unmasks the physical interrupt, which comes at once if the device wants more.
            if !satisfied.load(SeqCst) {
                line.trigger().unwrap();
            }
        })
    };
    line.trigger().unwrap();
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), [0x34, 0x34], "once, and once more for the second");
    satisfied.store(true, SeqCst);
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), []);
    assert_eq!(entry(&ioapic, 4), LEVEL | 0x34);
}

#[test]
fn an_edge_that_is_lifted_to_a_level_comes_again_after_each_eoi_while_it_is_up() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let line = Arc::new(EdgeToLevel::new(ioapic.edge_line(Pin(4)).unwrap()));
    let _hook = {
        let line = Arc::downgrade(&line);
        ioapic.on_finished(Pin(4), move || line.upgrade().unwrap().guest_done().unwrap())
    };
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), [0x34]);
    for _ in 0..3 {
        ioapic.eoi(Vector(0x34));
        assert_eq!(sink.vectors(), [0x34]);
    }
    line.clear().unwrap();
    ioapic.eoi(Vector(0x34));
    assert_eq!(sink.vectors(), []);
}

// Refusals.

#[test]
fn a_refused_edge_is_owed_and_carried_by_whatever_happens_next() {
    type Next = fn(&IoApic);
    let nexts: [Next; 4] = [
        |ioapic| ioapic.level_line(Pin(20)).unwrap().trigger().unwrap(),
        |ioapic| ioapic.eoi(Vector(0xff)),
        |ioapic| ioapic.write(0x00, &[0]),
        |ioapic| ioapic.retry(),
    ];
    for next in nexts {
        let (ioapic, sink) = new();
        program(&ioapic, 4, 0x34);
        let line = ioapic.edge_line(Pin(4)).unwrap();
        sink.refuse(true);
        line.trigger().expect("the IOAPIC has taken it");
        line.trigger().unwrap();
        assert_eq!(entry(&ioapic, 4), DELIVERY_STATUS | 0x34, "send pending");
        assert!(ioapic.refusals() >= 2);
        sink.refuse(false);
        next(&ioapic);
        assert_eq!(sink.vectors(), [0x34]);
        assert_eq!(entry(&ioapic, 4), 0x34);
    }
}

#[test]
fn a_refused_level_is_not_in_service_and_is_tried_again_only_while_it_is_up() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, LEVEL | 0x34);
    let line = ioapic.level_line(Pin(4)).unwrap();
    sink.refuse(true);
    line.trigger().unwrap();
    assert_eq!(entry(&ioapic, 4), LEVEL | DELIVERY_STATUS | 0x34);
    sink.refuse(false);
    ioapic.retry();
    assert_eq!(entry(&ioapic, 4), LEVEL | REMOTE_IRR | 0x34);
    assert_eq!(sink.vectors(), [0x34]);

    sink.refuse(true);
    ioapic.eoi(Vector(0x34));
    line.clear().unwrap();
    sink.refuse(false);
    ioapic.retry();
    assert_eq!(sink.vectors(), []);
    assert_eq!(entry(&ioapic, 4), LEVEL | 0x34);
}

#[test]
fn a_refused_edge_waits_behind_the_mask_and_takes_the_route_of_the_unmask() {
    let (ioapic, sink) = new();
    program(&ioapic, 4, 0x34);
    sink.refuse(true);
    ioapic.edge_line(Pin(4)).unwrap().trigger().unwrap();
    write(&ioapic, 0x18, MASKED as u32 | 0x34);
    sink.refuse(false);
    ioapic.retry();
    assert_eq!(sink.vectors(), []);
    assert_eq!(entry(&ioapic, 4), MASKED | DELIVERY_STATUS | 0x34);
    program(&ioapic, 4, 0x35);
    assert_eq!(sink.vectors(), [0x35]);
}

#[test]
fn each_event_tries_a_refused_message_once() {
    let (ioapic, sink) = new();
    for pin in 0..24 {
        program(&ioapic, pin, 0x30);
    }
    sink.refuse(true);
    for pin in 0..24 {
        ioapic.edge_line(Pin(pin)).unwrap().trigger().unwrap();
    }
    *sink.tries.lock().unwrap() = 0;
    ioapic.retry();
    assert_eq!(*sink.tries.lock().unwrap(), 24);
}

/// A sink that refuses as it likes: in the end each pulse that found its pin idle was one message, and each level that
/// stayed up was sent.
#[test]
fn nothing_is_lost_over_a_sink_that_keeps_refusing() {
    let (ioapic, sink) = new();
    let levels: Vec<_> = (0..12).map(|pin| ioapic.level_line(Pin(pin)).unwrap()).collect();
    for pin in 0..24 {
        let level = if pin < 12 { LEVEL } else { 0 };
        program(&ioapic, pin, level | (0x30 + u64::from(pin)));
    }
    for round in 0..50 {
        sink.refuse(true);
        for pin in 0..24 {
            match levels.get(pin as usize) {
                Some(line) => line.trigger().unwrap(),
                None => ioapic.edge_line(Pin(pin)).unwrap().trigger().unwrap(),
            }
            sink.refuse((pin + round) % 3 != 0);
        }
        sink.refuse(false);
        ioapic.retry();
        let mut vectors = sink.vectors();
        vectors.sort_unstable();
        vectors.dedup();
        assert_eq!(vectors, (0x30..0x48).collect::<Vec<u8>>(), "round {round}");
        for (pin, line) in levels.iter().enumerate() {
            line.clear().unwrap();
            ioapic.eoi(Vector(0x30 + pin as u8));
        }
    }
    assert_eq!(sink.vectors(), [], "and nothing is owed any more");
}

// Messages that nobody accepts.

#[test]
fn a_level_that_nobody_accepts_is_not_in_service_and_is_sent_once_somebody_accepts() {
    type Next = fn(&IoApic, &dyn LevelInterrupt);
    let nexts: [Next; 4] = [
        |_, line| {
            line.clear().unwrap();
            line.trigger().unwrap();
        },
        |ioapic, _| ioapic.retry(),
        |ioapic, _| ioapic.eoi(Vector(0xff)),
        |ioapic, _| program(ioapic, 19, LEVEL | 0x81),
    ];
    for next in nexts {
        let (ioapic, sink) = new();
        program(&ioapic, 19, LEVEL | 0x81);
        let line = ioapic.level_line(Pin(19)).unwrap();
        sink.drops.store(true, SeqCst);
        line.trigger().unwrap();
        assert_eq!(entry(&ioapic, 19), LEVEL | DELIVERY_STATUS | 0x81);
        assert!(ioapic.owes());
        sink.drops.store(false, SeqCst);
        next(&ioapic, &line);
        assert_eq!(sink.vectors(), [0x81]);
        assert_eq!(entry(&ioapic, 19), LEVEL | REMOTE_IRR | 0x81);
        assert!(!ioapic.owes());
        assert_eq!(ioapic.refusals(), 0, "to drop is not to refuse");
    }
}

#[test]
fn a_level_that_nobody_accepted_and_that_has_gone_is_sent_no_more() {
    let (ioapic, sink) = new();
    program(&ioapic, 19, LEVEL | 0x81);
    let line = ioapic.level_line(Pin(19)).unwrap();
    sink.drops.store(true, SeqCst);
    line.trigger().unwrap();
    line.clear().unwrap();
    sink.drops.store(false, SeqCst);
    ioapic.retry();
    assert_eq!((sink.vectors(), entry(&ioapic, 19)), (vec![], LEVEL | 0x81));
}

/// As by a message of PCI: there is nothing that would bring it back.
#[test]
fn an_edge_and_a_pulse_that_nobody_accepts_are_lost() {
    let (ioapic, sink) = new();
    for trigger_mode in [0, LEVEL] {
        sink.drops.store(true, SeqCst);
        program(&ioapic, 19, trigger_mode | 0x81);
        ioapic.edge_line(Pin(19)).unwrap().trigger().unwrap();
        sink.drops.store(false, SeqCst);
        ioapic.retry();
        assert_eq!(sink.vectors(), []);
        assert_eq!(entry(&ioapic, 19), trigger_mode | 0x81);
    }
}

#[test]
fn a_level_that_nobody_accepts_is_owed_after_a_move() {
    let (ioapic, sink) = new();
    program(&ioapic, 19, LEVEL | 0x81);
    let line = ioapic.level_line(Pin(19)).unwrap();
    sink.drops.store(true, SeqCst);
    line.trigger().unwrap();
    let (other, sink) = new();
    other.restore(&ioapic.save()).unwrap();
    assert_eq!(sink.vectors(), [0x81]);
}

#[test]
fn each_event_offers_a_level_that_nobody_accepts_once() {
    let (ioapic, sink) = new();
    sink.drops.store(true, SeqCst);
    let lines: Vec<_> = (0..24).map(|pin| ioapic.level_line(Pin(pin)).unwrap()).collect();
    for (pin, line) in (0..).zip(&lines) {
        program(&ioapic, pin, LEVEL | 0x30);
        line.trigger().unwrap();
    }
    *sink.tries.lock().unwrap() = 0;
    ioapic.retry();
    assert_eq!(*sink.tries.lock().unwrap(), 24);
}

/// The local APIC is enabled on its CPU while the message finds it disabled.
#[test]
fn a_retry_that_comes_while_a_message_is_being_dropped_or_refused_is_not_lost() {
    struct Late {
        ioapic: Mutex<Option<IoApic>>,
        refuses: bool,
        sent: Mutex<u32>,
    }
    impl MsiSink for Late {
        fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
            unreachable!("an IOAPIC offers")
        }

        fn offer(&self, _: RequesterId, _: MsiMessage) -> io::Result<Acceptance> {
            let Some(ioapic) = self.ioapic.lock().unwrap().take() else {
                *self.sent.lock().unwrap() += 1;
                return Ok(Acceptance::Accepted);
            };
            ioapic.retry();
            match self.refuses {
                true => Err(io::Error::other("refused")),
                false => Ok(Acceptance::Dropped),
            }
        }
    }
    for refuses in [false, true] {
        let sink = Arc::new(Late {
            ioapic: Mutex::default(),
            refuses,
            sent: Mutex::default(),
        });
        let ioapic = IoApic::new(IoApicConfig::default(), Arc::clone(&sink)).unwrap();
        program(&ioapic, 19, LEVEL | 0x81);
        *sink.ioapic.lock().unwrap() = Some(ioapic.clone());
        ioapic.level_line(Pin(19)).unwrap().trigger().unwrap();
        assert_eq!(*sink.sent.lock().unwrap(), 1, "refused: {refuses}");
    }
}

#[test]
fn a_late_refusal_does_not_undo_a_later_message() {
    /// Brings out a second message before it refuses the first.
    struct Nested {
        ioapic: Mutex<Option<IoApic>>,
        sent: Mutex<u32>,
    }
    impl MsiSink for Nested {
        fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
            let Some(ioapic) = self.ioapic.lock().unwrap().take() else {
                *self.sent.lock().unwrap() += 1;
                return Ok(());
            };
            // While the first message is under way, an EOI brings out a second one, which is taken.
            ioapic.eoi(Vector(0x40));
            Err(io::Error::other("late"))
        }
    }
    let sink = Arc::new(Nested {
        ioapic: Mutex::default(),
        sent: Mutex::default(),
    });
    let ioapic = IoApic::new(IoApicConfig::default(), Arc::clone(&sink)).unwrap();
    program(&ioapic, 3, LEVEL | 0x40);
    *sink.ioapic.lock().unwrap() = Some(ioapic.clone());
    ioapic.level_line(Pin(3)).unwrap().trigger().unwrap();
    assert_eq!(*sink.sent.lock().unwrap(), 1);
    assert_eq!(entry(&ioapic, 3), LEVEL | REMOTE_IRR | 0x40);
    ioapic.retry();
    assert_eq!(*sink.sent.lock().unwrap(), 1, "it was not sent twice");
}

// Threads.

#[test]
fn no_edge_is_lost_and_none_invented_between_threads() {
    const EACH: usize = 2_000;
    let (ioapic, sink) = new();
    for pin in 0..4 {
        program(&ioapic, pin, 0x30 + u64::from(pin));
    }
    thread::scope(|scope| {
        for pin in 0..4 {
            let line = ioapic.edge_line(Pin(pin)).unwrap();
            scope.spawn(move || (0..EACH).for_each(|_| line.trigger().unwrap()));
        }
    });
    let mut counts = [0; 4];
    for vector in sink.vectors() {
        counts[usize::from(vector) - 0x30] += 1;
    }
    assert_eq!(counts, [EACH; 4]);
}

// State.

fn restored(state: &IoApicState) -> (IoApic, Arc<Sink>) {
    let (ioapic, sink) = with_pins(state.pins.len() as u32);
    ioapic.restore(state).unwrap();
    (ioapic, sink)
}

#[test]
fn everything_that_the_guest_can_see_survives_save_and_restore() {
    let (ioapic, sink) = new();
    write(&ioapic, 0, 9 << 24);
    for pin in 0..24 {
        program(&ioapic, pin, u64::from(pin) << 56 | LEVEL | (0x60 + u64::from(pin)));
    }
    let lines: Vec<_> = [3, 17].map(|pin| ioapic.level_line(Pin(pin)).unwrap()).into();
    for line in &lines {
        line.trigger().unwrap();
    }
    program(&ioapic, 20, 0x30);
    sink.refuse(true);
    ioapic.edge_line(Pin(20)).unwrap().trigger().unwrap();
    ioapic.write(0, &[0x2a]);
    let state = ioapic.save();
    assert_eq!(state.select, 0x2a);

    let (other, sink) = restored(&state);
    assert_eq!(sink.vectors(), [0x30], "what was owed");
    let mut settled = state.clone();
    settled.pins[20].entry &= !DELIVERY_STATUS;
    assert_eq!(other.save(), settled);
    assert_eq!(entry(&other, 17) & REMOTE_IRR, REMOTE_IRR);
}

#[test]
fn a_restore_replays_no_edge_and_loses_none() {
    let (ioapic, _) = new();
    program(&ioapic, 6, 0x36);
    program(&ioapic, 7, LEVEL | 0x37);
    let (edge, level) = (ioapic.level_line(Pin(6)).unwrap(), ioapic.level_line(Pin(7)).unwrap());
    edge.trigger().unwrap();
    level.trigger().unwrap();
    let state = ioapic.save();

    // Devices after the controller.
    let (other, sink) = restored(&state);
    let lines = [6, 7].map(|pin| other.level_line(Pin(pin)).unwrap());
    lines.iter().for_each(|line| line.trigger().unwrap());
    assert_eq!(sink.vectors(), []);
    lines[0].clear().unwrap();
    lines[0].trigger().unwrap();
    other.eoi(Vector(0x37));
    assert_eq!(sink.vectors(), [0x36, 0x37]);

    // Devices before the controller.
    let (other, sink) = new();
    let lines = [6, 7, 8].map(|pin| other.level_line(Pin(pin)).unwrap());
    lines.iter().for_each(|line| line.trigger().unwrap());
    let mut state = state;
    state.pins[8].entry = 0x38;
    other.restore(&state).unwrap();
    assert_eq!(sink.vectors(), [0x38], "the one that has come meanwhile");
    drop(lines);
    assert!(other.save().pins.iter().all(|pin| !pin.line));
}

#[test]
fn a_level_that_was_not_delivered_is_delivered_by_the_restore() {
    let mut state = new().0.save();
    state.pins[2] = PinState {
        entry: LEVEL | 0x42,
        line: true,
    };
    assert_eq!(restored(&state).1.vectors(), [0x42]);
}

#[test]
fn a_restored_line_that_is_active_low_waits_for_its_device() {
    let mut state = new().0.save();
    state.pins[2] = PinState {
        entry: ACTIVE_LOW | LEVEL | 0x42,
        line: true,
    };
    let (ioapic, sink) = restored(&state);
    let line = ioapic.level_line(Pin(2)).unwrap();
    line.trigger().unwrap();
    assert_eq!(sink.vectors(), []);
    line.clear().unwrap();
    assert_eq!(sink.vectors(), [0x42]);
}

#[test]
fn a_state_that_no_guest_could_have_brought_about_is_refused_and_changes_nothing() {
    let (ioapic, _) = new();
    program(&ioapic, 0, 0x99);
    let good = ioapic.save();
    let broken = |change: fn(&mut IoApicState)| {
        let mut state = good.clone();
        change(&mut state);
        state
    };
    let bits = |register: &str, value, accepted| IoApicStateError::Bits {
        register: register.into(),
        value,
        accepted,
    };
    let entry_bits = 0xffff_0000_0001_ffff;
    for (state, error) in [
        (
            broken(|state| _ = state.pins.pop()),
            IoApicStateError::Pins { saved: 23, this: 24 },
        ),
        (broken(|state| state.id = 16), bits("IOAPICID", 16, 15)),
        (broken(|state| state.select = 0x100), bits("IOREGSEL", 0x100, 0xff)),
        (
            broken(|state| state.pins[5].entry = 1 << 17),
            bits("entry 5", 1 << 17, entry_bits),
        ),
        (
            broken(|state| state.pins[5].entry = REMOTE_IRR),
            IoApicStateError::RemoteIrr {
                index: 5,
                entry: REMOTE_IRR,
            },
        ),
        (
            broken(|state| state.pins[5].entry = LEVEL | 4 << 8 | REMOTE_IRR),
            IoApicStateError::RemoteIrr {
                index: 5,
                entry: LEVEL | 4 << 8 | REMOTE_IRR,
            },
        ),
    ] {
        assert_eq!(ioapic.restore(&state), Err(error));
        assert_eq!(ioapic.save(), good);
    }
}

#[test]
fn a_reset_sends_nothing_and_keeps_the_lines() {
    let (ioapic, sink) = new();
    program(&ioapic, 3, LEVEL | 0x33);
    let line = ioapic.level_line(Pin(3)).unwrap();
    line.trigger().unwrap();
    sink.take();
    ioapic.reset();
    assert_eq!(entry(&ioapic, 3), MASKED);
    assert_eq!(sink.vectors(), []);
    program(&ioapic, 3, LEVEL | 0x33);
    assert_eq!(sink.vectors(), [0x33]);
}

#[test]
fn a_reset_leads_back_to_power_up_and_forgets_what_the_sink_refused() {
    let (ioapic, sink) = new();
    let fresh = ioapic.save();
    write(&ioapic, 0, 5 << 24);
    program(&ioapic, 4, 7 << 56 | 0x34);
    sink.refuse(true);
    ioapic.edge_line(Pin(4)).unwrap().trigger().unwrap();
    sink.refuse(false);
    ioapic.reset();
    assert_eq!(ioapic.save(), fresh);
    program(&ioapic, 4, 0x35);
    assert_eq!(sink.vectors(), [], "an edge of before the reset");
}
