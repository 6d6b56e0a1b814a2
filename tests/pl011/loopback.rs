//! Loopback and modem lines.

use super::*;

#[test]
fn loopback_feeds_the_output_to_the_input_and_shows_nothing_outside() {
    let terminal = Terminal::default();
    let uart = buffered(FifoDepth::Sixteen, terminal.clone());
    uart.put(CR, CR_ON | CR_LBE);
    uart.put(ICR, INT_MODEM);
    uart.send(b"test");
    assert_eq!(uart.raw(), INT_TX | INT_RT);
    assert_eq!(uart.take(), b"test");
    assert_eq!(terminal.shown(), b"");
    uart.put(CR, CR_ON);
    uart.send(b"a");
    assert_eq!(terminal.shown(), b"a");
}

#[test]
fn loopback_of_more_than_the_input_holds_is_an_overrun() {
    let uart = silent(io::sink());
    uart.put(CR, CR_ON | CR_LBE);
    uart.send(b"ab");
    assert_eq!(uart.raw() & INT_OE, INT_OE);
    assert_eq!(uart.take(), b"a");
}

#[test]
fn loopback_with_the_receiver_off_only_raises_the_transmit_interrupt() {
    // How Linux once provoked its first transmit interrupt.
    let terminal = Terminal::default();
    let uart = silent(terminal.clone());
    uart.put(CR, CR_UARTEN | CR_TXE | CR_LBE);
    uart.put(ICR, INT_MODEM);
    uart.put(DR, 0);
    assert_eq!(uart.get(FR) & (FR_BUSY | FR_RXFE), FR_RXFE);
    assert_eq!(uart.raw(), INT_TX);
    assert_eq!(terminal.shown(), b"");
}

#[test]
fn loopback_turns_modem_outputs_into_inputs() {
    let modem = FR_CTS | FR_DSR | FR_DCD | FR_RI;
    for (output, flag, interrupt) in [
        (CR_RTS, FR_CTS, INT_CTS),
        (CR_DTR, FR_DSR, INT_DSR),
        (CR_OUT1, FR_DCD, INT_DCD),
        (CR_OUT2, FR_RI, INT_RI),
    ] {
        let config = Pl011Config {
            modem: ModemInputs::default(),
            ..Pl011Config::default()
        };
        let uart = Pl011::new(config, NoInterrupt, io::sink());
        uart.put(CR, CR_ON | CR_LBE);
        assert_eq!((uart.get(FR) & modem, uart.raw()), (0, 0));
        uart.put(CR, CR_ON | CR_LBE | output);
        assert_eq!((uart.get(FR) & modem, uart.raw()), (flag, interrupt));
        uart.set_modem_inputs(Pl011Config::default().modem);
        assert_eq!(uart.raw(), interrupt, "the peer is cut off");
    }
}

#[test]
fn a_looped_back_break_arrives_once() {
    let uart = buffered(FifoDepth::Sixteen, io::sink());
    uart.put(CR, CR_ON | CR_LBE);
    uart.put(LCR_H, LCR_FEN | LCR_BRK);
    uart.put(LCR_H, LCR_FEN | LCR_BRK);
    uart.put(LCR_H, LCR_FEN);
    assert_eq!(uart.get(DR), 1 << 10);
    assert_eq!(uart.get(FR) & FR_RXFE, FR_RXFE);
}

#[test]
fn each_modem_line_that_changes_interrupts_in_both_directions() {
    let off = ModemInputs::default();
    for (on, flag, interrupt) in [
        (ModemInputs { cts: true, ..off }, FR_CTS, INT_CTS),
        (ModemInputs { dsr: true, ..off }, FR_DSR, INT_DSR),
        (ModemInputs { dcd: true, ..off }, FR_DCD, INT_DCD),
        (ModemInputs { ri: true, ..off }, FR_RI, INT_RI),
    ] {
        let config = Pl011Config {
            modem: off,
            ..Pl011Config::default()
        };
        let uart = Pl011::new(config, NoInterrupt, io::sink());
        for (lines, flags) in [(on, flag), (off, 0)] {
            uart.set_modem_inputs(lines);
            assert_eq!(uart.get(FR) & (FR_CTS | FR_DSR | FR_DCD | FR_RI), flags);
            assert_eq!(uart.raw(), interrupt);
            uart.put(ICR, interrupt);
            uart.set_modem_inputs(lines);
            assert_eq!(uart.raw(), 0, "nothing changed");
        }
    }
}

#[test]
fn the_embedder_sees_the_lines_that_the_guest_drives() {
    let uart = silent(io::sink());
    assert_eq!(uart.modem_outputs(), ModemOutputs::default());
    uart.put(CR, CR_ON | CR_DTR | CR_RTS | CR_OUT1 | CR_OUT2);
    uart.put(LCR_H, LCR_BRK);
    let all = ModemOutputs {
        dtr: true,
        rts: true,
        out1: true,
        out2: true,
        sends_break: true,
    };
    assert_eq!(uart.modem_outputs(), all);
}

#[test]
fn with_flow_control_the_request_to_send_follows_the_receive_level() {
    let uart = buffered(FifoDepth::Sixteen, io::sink());
    uart.put(CR, CR_ON | CR_RTSEN);
    assert!(uart.modem_outputs().rts);
    uart.receive(&[0; 7]);
    assert!(uart.modem_outputs().rts);
    uart.receive(&[0]);
    assert!(!uart.modem_outputs().rts);
    uart.get(DR);
    assert!(uart.modem_outputs().rts);
}
