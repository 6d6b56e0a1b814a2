//! What an entry makes of an interrupt.

use crate::guest::*;
use devisor::{
    backends::irqchip::{Vector, ioapic::Pin},
    interrupt::{Interrupt, LevelInterrupt, MsiMessage},
};

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
