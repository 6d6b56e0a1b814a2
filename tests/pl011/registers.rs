//! Reset values, existing bits, identification, access widths and reset.

use super::*;

#[test]
fn registers_have_their_reset_values() {
    let config = Pl011Config {
        enabled: false,
        modem: ModemInputs::default(),
        ..Pl011Config::default()
    };
    let uart = Pl011::new(config, NoInterrupt, io::sink());
    for (register, value) in [
        (RSR, 0),
        (FR, FR_TXFE | FR_RXFE),
        (ILPR, 0),
        (IBRD, 0),
        (FBRD, 0),
        (LCR_H, 0),
        (CR, CR_TXE | CR_RXE),
        (IFLS, 0x12),
        (IMSC, 0),
        (RIS, 0),
        (MIS, 0),
        (DMACR, 0),
    ] {
        assert_eq!(uart.get(register), value, "register {register:#x}");
    }
}

#[test]
fn firmware_leaves_the_uart_enabled_unless_told_otherwise() {
    assert_eq!(silent(io::sink()).get(CR), CR_ON);
}

#[test]
fn each_register_keeps_the_bits_that_exist_and_no_others() {
    for (register, mask) in [
        (ILPR, 0xff),
        (IBRD, 0xffff),
        (FBRD, 0x3f),
        (LCR_H, 0xff),
        (CR, 0xff87),
        (IFLS, 0x3f),
        (IMSC, 0x7ff),
        (DMACR, 0x7),
    ] {
        let uart = silent(io::sink());
        uart.put(register, 0xffff_ffff);
        assert_eq!(uart.get(register), mask, "register {register:#x}");
        uart.put(register, 0x5555_5555);
        assert_eq!(uart.get(register), mask & 0x5555_5555, "register {register:#x}");
        uart.put(register, 0);
        assert_eq!(uart.get(register), 0, "register {register:#x}");
    }
}

#[test]
fn registers_do_not_share_storage() {
    let uart = silent(io::sink());
    let values = [
        (ILPR, 0x11),
        (IBRD, 0x2222),
        (FBRD, 0x33),
        (LCR_H, 0x60),
        (CR, 0x0301),
        (IFLS, 0x1b),
        (IMSC, 0x123),
        (DMACR, 0x5),
    ];
    for (register, value) in values {
        uart.put(register, value);
    }
    for (register, value) in values {
        assert_eq!(uart.get(register), value, "register {register:#x}");
    }
}

#[test]
fn read_only_registers_ignore_writes_and_the_write_only_one_reads_as_zero() {
    let uart = silent(io::sink());
    uart.receive(b"x");
    for register in [FR, RIS, MIS, 0xfe0, 0xfe8, 0xff0] {
        let before = uart.get(register);
        uart.put(register, !before);
        assert_eq!(uart.get(register), before, "register {register:#x}");
    }
    uart.put(ICR, INT_RX);
    assert_eq!(uart.get(ICR), 0);
}

#[test]
fn the_identification_names_the_revision_that_has_the_fifo_depth() {
    for (depth, revision) in [(FifoDepth::Sixteen, 0x24), (FifoDepth::ThirtyTwo, 0x34)] {
        let uart = buffered(depth, io::sink());
        let id: Vec<u32> = (0xfe0..0x1000).step_by(4).map(|register| uart.get(register)).collect();
        assert_eq!(id, [0x11, 0x10, revision, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    }
}

#[test]
fn registers_answer_to_accesses_of_8_16_and_32_bits() {
    let terminal = Terminal::default();
    let uart = silent(terminal.clone());
    uart.write(IBRD, &[0x34, 0x12]);
    let mut data = [0; 1];
    uart.read(IBRD, &mut data);
    assert_eq!(data, [0x34]);
    let mut data = [0; 2];
    uart.read(IBRD, &mut data);
    assert_eq!(data, [0x34, 0x12]);
    uart.write(DR, b"a");
    uart.write(DR, b"b\0");
    uart.write(DR, b"c\0\0\0");
    assert_eq!(terminal.shown(), b"abc");
}

#[test]
fn other_widths_and_offsets_read_as_zero_and_write_nothing() {
    let terminal = Terminal::default();
    let uart = silent(terminal.clone());
    uart.receive(b"x");
    let before = uart.save();
    for len in [0, 3, 5, 8, 16] {
        uart.write(DR, &vec![0xff; len]);
        uart.write(IMSC, &vec![0xff; len]);
        let mut data = vec![0xa5; len];
        uart.read(DR, &mut data);
        assert_eq!(data, vec![0; len], "{len} bytes");
    }
    for offset in [1, 2, 3, IMSC + 1, IMSC + 2, 0x1000, 0x1038, u64::MAX - 3, u64::MAX] {
        uart.put(offset, u32::MAX);
        assert_eq!(uart.get(offset), 0, "offset {offset:#x}");
    }
    assert_eq!(uart.save(), before);
    assert_eq!(terminal.shown(), b"");
}

#[test]
fn reset_returns_to_the_start_and_keeps_the_modem_lines() {
    let heard = Heard::default();
    let uart = Pl011::new(Pl011Config::default(), heard.line(), Terminal::stuck());
    let start = uart.save();
    uart.put(LCR_H, 0x70);
    for register in [ILPR, IBRD, FBRD, IFLS, IMSC, DMACR] {
        uart.put(register, u32::MAX);
    }
    uart.send(b"unsent");
    uart.receive(b"unread");
    let gone = ModemInputs::default();
    uart.set_modem_inputs(gone);
    assert!(heard.is_up());
    uart.reset();
    assert_eq!(uart.save(), Pl011State { modem: gone, ..start });
    assert_eq!(heard.all(), [true, false]);
}
