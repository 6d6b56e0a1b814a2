//! Save and restore.

use super::*;

/// A state with nothing at its start value.
fn busy_state() -> Pl011State {
    Pl011State {
        fifo_depth: FifoDepth::Sixteen,
        modem: ModemInputs {
            cts: false,
            dsr: true,
            dcd: false,
            ri: true,
        },
        ilpr: 0x12,
        ibrd: 0x3456,
        fbrd: 0x27,
        lcr_h: 0x70,
        cr: (CR_ON | CR_CTSEN | CR_RTSEN) as u16,
        ifls: 0x0b,
        imsc: (INT_RX | INT_BE) as u16,
        ris: (INT_RX | INT_RT | INT_TX | INT_BE | INT_OE | INT_RI) as u16,
        tx_unseen: true,
        dmacr: 5,
        rsr: 0xc,
        overrun: true,
        rx: vec![0x461, 0x862, 0x63, 0x64],
        tx: b"unsent".to_vec(),
    }
}

fn sixteen() -> Pl011Config {
    Pl011Config {
        fifo_depth: FifoDepth::Sixteen,
        ..Pl011Config::default()
    }
}

#[test]
fn every_field_survives_save_and_restore() {
    let uart = Pl011::new(sixteen(), NoInterrupt, io::sink());
    uart.restore(&busy_state()).unwrap();
    assert_eq!(uart.save(), busy_state());
}

#[test]
fn a_restored_uart_goes_on_where_the_saved_one_was() {
    let (heard, terminal) = (Heard::default(), Terminal::default());
    let uart = Pl011::new(sixteen(), heard.line(), terminal.clone());
    uart.restore(&busy_state()).unwrap();
    assert_eq!(heard.all(), [true], "the line is driven as it was");
    assert_eq!(uart.get(DR), 0x461);
    assert_eq!(uart.raw() & INT_RX, 0, "three are below a quarter");
    assert_eq!(terminal.shown(), b"", "the peer is not clear to receive");
    uart.set_modem_inputs(Pl011Config::default().modem);
    assert_eq!(terminal.shown(), b"unsent");
    uart.receive(b"e");
    assert_eq!(
        [(); 4].map(|()| uart.get(DR)),
        [0x862, 0x63, 0x64, 0x865],
        "the overrun is still to be told"
    );
}

#[test]
fn a_restore_repeats_no_edge_and_lowers_a_line_that_has_no_cause() {
    let heard = Heard::default();
    let uart = Pl011::new(sixteen(), heard.line(), io::sink());
    let idle = uart.save();
    uart.restore(&idle).unwrap();
    assert_eq!(heard.all(), []);
    uart.restore(&busy_state()).unwrap();
    uart.restore(&busy_state()).unwrap();
    assert_eq!(heard.all(), [true]);
    uart.restore(&idle).unwrap();
    assert_eq!(heard.all(), [true, false]);
}

#[test]
fn what_was_unsent_when_saved_is_sent_after_the_restore() {
    let saved = {
        let uart = buffered(FifoDepth::ThirtyTwo, Terminal::stuck());
        uart.send(b"last words");
        uart.save()
    };
    let terminal = Terminal::default();
    silent(terminal.clone()).restore(&saved).unwrap();
    assert_eq!(terminal.shown(), b"last words");
}

#[test]
fn whoever_pumps_input_looks_again_after_a_restore() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let uart = silent(io::sink()).with_room_hook(move || _ = count.fetch_add(1, Ordering::SeqCst));
    uart.restore(&uart.save()).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn states_that_cannot_be_are_refused_and_change_nothing() {
    use Pl011StateError as Error;
    let bits = |name, value, mask| Error::Bits { name, value, mask };
    type Spoil = fn(&mut Pl011State);
    let refused: [(Spoil, Error); 14] = [
        (
            |state| state.fifo_depth = FifoDepth::ThirtyTwo,
            Error::FifoDepth {
                found: FifoDepth::ThirtyTwo,
                expected: FifoDepth::Sixteen,
            },
        ),
        (|state| state.fbrd = 0x40, bits("UARTFBRD", 0x40, 0x3f)),
        (|state| state.cr = 0x0008, bits("UARTCR", 0x0008, 0xff87)),
        (|state| state.ifls = 0x40, bits("UARTIFLS", 0x40, 0x3f)),
        (|state| state.imsc = 0x800, bits("UARTIMSC", 0x800, 0x7ff)),
        (|state| state.ris = 0x800, bits("UARTRIS", 0x800, 0x7ff)),
        (|state| state.dmacr = 8, bits("UARTDMACR", 8, 7)),
        (|state| state.rsr = 0x10, bits("UARTRSR", 0x10, 0xf)),
        (|state| state.rx[1] = 0x1000, bits("UARTDR", 0x1000, 0xfff)),
        (
            |state| state.rx = vec![0; 17],
            Error::Overfull {
                name: "receive",
                len: 17,
                depth: 16,
            },
        ),
        (
            |state| (state.lcr_h, state.rx, state.tx) = (0, vec![0], vec![0; 2]),
            Error::Overfull {
                name: "transmit",
                len: 2,
                depth: 1,
            },
        ),
        (
            |state| (state.rx, state.ris) = (vec![], (INT_RT | INT_CTS) as u16),
            Error::Interrupts {
                ris: (INT_RT | INT_CTS) as u16,
                allowed: 0x7ff & !(INT_RX | INT_RT) as u16,
            },
        ),
        (
            |state| (state.tx, state.ris) = (vec![0; 13], INT_TX as u16),
            Error::Interrupts {
                ris: INT_TX as u16,
                allowed: 0x7ff & !INT_TX as u16,
            },
        ),
        (|state| state.ris = INT_RX as u16, Error::Unseen { ris: INT_RX as u16 }),
    ];
    let uart = Pl011::new(sixteen(), NoInterrupt, Terminal::stuck());
    uart.put(IBRD, 26);
    let before = uart.save();
    for (spoil, error) in refused {
        let mut state = busy_state();
        spoil(&mut state);
        assert_eq!(uart.restore(&state), Err(error));
        assert_eq!(uart.save(), before);
    }
}

#[test]
fn characters_that_wait_interrupt_also_if_the_state_has_forgotten_that() {
    let heard = Heard::default();
    let uart = Pl011::new(sixteen(), heard.line(), Terminal::stuck());
    let state = Pl011State {
        ris: 0,
        tx_unseen: false,
        ..busy_state()
    };
    uart.restore(&state).unwrap();
    assert_eq!(uart.raw(), INT_RX | INT_RT);
    assert!(heard.is_up());
}
