//! UARTICR: drivers acknowledge before they serve, after, or not at all, and none falls asleep or is interrupted for ever.

use super::*;

/// When a handler writes UARTICR: before it moves characters, after, both, or never.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Acknowledges {
    First,
    Last,
    FirstAndLast,
    Never,
}
use Acknowledges::*;

/// What a handler acknowledges: what it has read in UARTMIS, or everything without having looked.
#[derive(Clone, Copy, Debug)]
enum What {
    Masked,
    All,
}

/// Every way to handle an interrupt, with `serve` in the middle.
fn handle(uart: &impl Guest, what: What, acknowledges: Acknowledges, serve: impl FnOnce()) {
    let interrupts = match what {
        What::Masked => uart.get(MIS),
        What::All => 0x7ff,
    };
    if matches!(acknowledges, First | FirstAndLast) {
        uart.put(ICR, interrupts);
    }
    serve();
    if matches!(acknowledges, Last | FirstAndLast) {
        uart.put(ICR, interrupts);
    }
}

#[test]
fn characters_that_came_before_the_acknowledgement_interrupt_after_it() {
    let heard = Heard::default();
    let uart = Pl011::new(Pl011Config::default(), heard.line(), io::sink());
    uart.put(LCR_H, LCR_FEN);
    uart.put(IMSC, INT_RX | INT_RT);
    uart.receive(b"a");
    assert_eq!(uart.take(), b"a");
    assert_eq!(uart.receive(&[b'b'; 40]), 32);
    uart.put(ICR, INT_RX | INT_RT);
    assert_eq!(uart.get(MIS), INT_RX | INT_RT);
    assert!(heard.is_up());
    assert_eq!(uart.take().len(), 32);
    assert_eq!(uart.raw(), 0);
    assert!(!heard.is_up());
}

#[test]
fn one_character_that_waits_is_a_timeout_again_after_the_acknowledgement() {
    let uart = buffered(FifoDepth::Sixteen, io::sink());
    uart.receive(b"ab");
    for left in (0..2).rev() {
        uart.put(ICR, INT_RT);
        assert_eq!(uart.raw(), INT_RT);
        uart.get(DR);
        assert_eq!(uart.raw(), if left > 0 { INT_RT } else { 0 });
    }
}

#[test]
fn all_input_comes_by_interrupts_alone_in_whatever_order_the_handler_reads_and_acknowledges() {
    let text: Vec<u8> = (0..=255).cycle().take(500).collect();
    for lcr_h in [0, LCR_FEN] {
        for acknowledges in [First, Last, FirstAndLast, Never] {
            for what in [What::Masked, What::All] {
                // Some take all that there is, others no more than so many for each interrupt.
                for most in [1, 3, usize::MAX] {
                    let heard = Heard::default();
                    let uart = Pl011::new(Pl011Config::default(), heard.line(), io::sink());
                    uart.put(LCR_H, lcr_h);
                    uart.put(IMSC, INT_RX | INT_RT);
                    let mut waits = &text[..];
                    let mut taken = Vec::new();
                    let mut interrupts = 0;
                    loop {
                        waits = &waits[uart.receive(waits)..];
                        if !heard.is_up() {
                            break;
                        }
                        interrupts += 1;
                        assert!(interrupts <= text.len(), "{acknowledges:?} {what:?}: a storm");
                        handle(&uart, what, acknowledges, || {
                            for _ in 0..most {
                                if uart.get(FR) & FR_RXFE != 0 {
                                    break;
                                }
                                taken.push(uart.get(DR) as u8);
                            }
                            // More comes between the last look and the acknowledgement.
                            waits = &waits[uart.receive(waits)..];
                        });
                    }
                    assert!(taken == text, "{acknowledges:?} {what:?}: {} taken", taken.len());
                }
            }
        }
    }
}

#[test]
fn all_output_goes_by_interrupts_alone_in_whatever_order_the_handler_writes_and_acknowledges() {
    let text: Vec<u8> = (0..=255).cycle().take(200).collect();
    for lcr_h in [0, LCR_FEN] {
        for acknowledges in [First, Last, FirstAndLast] {
            for what in [What::Masked, What::All] {
                for most in [1, 3, usize::MAX] {
                    let (heard, terminal) = (Heard::default(), Terminal::default());
                    let uart = Pl011::new(Pl011Config::default(), heard.line(), terminal.clone());
                    uart.put(LCR_H, lcr_h);
                    uart.put(IMSC, INT_TX);
                    let mut rest = &text[..];
                    let mut write = || {
                        for _ in 0..most {
                            if rest.is_empty() || uart.get(FR) & FR_TXFF != 0 {
                                break;
                            }
                            uart.send(&rest[..1]);
                            rest = &rest[1..];
                        }
                    };
                    write();
                    let mut interrupts = 0;
                    while heard.is_up() {
                        interrupts += 1;
                        // It leaves the interrupt unmasked, and has nothing more to say at the end.
                        assert!(interrupts <= 2 * text.len(), "{acknowledges:?} {what:?}: a storm");
                        handle(&uart, what, acknowledges, &mut write);
                    }
                    assert_eq!(terminal.shown(), text, "{acknowledges:?} {what:?}");
                }
            }
        }
    }
}

#[test]
fn a_transmit_interrupt_that_was_not_read_outlives_one_acknowledgement_and_no_more() {
    let uart = silent(io::sink());
    uart.send(b"a");
    uart.put(ICR, INT_TX);
    assert_eq!(uart.raw(), INT_TX, "a real one would still be sending");
    uart.put(ICR, INT_TX);
    assert_eq!(uart.raw(), 0);

    uart.send(b"b");
    uart.put(ICR, INT_TX);
    uart.put(ICR, INT_TX);
    assert_eq!(uart.raw(), 0, "also without a look");

    uart.send(b"c");
    uart.put(IMSC, INT_RX);
    assert_eq!(uart.get(MIS), 0, "masked, it was not seen");
    uart.put(ICR, INT_TX);
    assert_eq!(uart.raw(), INT_TX);
}
