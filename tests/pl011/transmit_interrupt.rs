//! When UARTTXINTR comes and goes.

use super::*;

#[test]
fn unmasking_the_transmit_interrupt_before_the_first_character_raises_nothing() {
    let heard = Heard::default();
    let uart = Pl011::new(Pl011Config::default(), heard.line(), io::sink());
    for lcr_h in [0, LCR_FEN] {
        uart.put(LCR_H, lcr_h);
        uart.put(IFLS, 0);
        uart.put(IFLS, 0x12);
        uart.put(IMSC, INT_TX);
    }
    assert_eq!(heard.all(), []);
}

#[test]
fn a_character_that_leaves_raises_the_transmit_interrupt_until_it_is_cleared() {
    for lcr_h in [0, LCR_FEN] {
        let heard = Heard::default();
        let uart = Pl011::new(Pl011Config::default(), heard.line(), io::sink());
        uart.put(LCR_H, lcr_h);
        uart.put(IMSC, INT_TX);
        uart.send(b"a");
        assert_eq!(uart.get(MIS), INT_TX);
        uart.put(ICR, INT_TX);
        assert_eq!(uart.get(RIS), 0);
        uart.put(IMSC, 0);
        uart.put(IMSC, INT_TX);
        assert_eq!(heard.all(), [true, false]);
        uart.send(b"b");
        assert_eq!(heard.all(), [true, false, true]);
    }
}

#[test]
fn the_transmit_interrupt_comes_when_the_fifo_drops_through_its_level() {
    for (depth, characters) in DEPTHS {
        for (code, eighths) in LEVELS {
            let level = characters * eighths / 8;
            let terminal = Terminal::stuck();
            let uart = buffered(depth, terminal.clone());
            uart.put(IFLS, code);
            uart.send(&vec![b'.'; characters]);
            assert_eq!(uart.raw(), 0);
            for left in (1..characters).rev() {
                terminal.take(1);
                uart.flush().unwrap_err();
                assert_eq!(uart.unsent(), left);
                let expected = if left == level { INT_TX } else { 0 };
                assert_eq!(uart.raw(), expected, "{left} of {characters}, level {level}");
                uart.put(ICR, INT_TX);
            }
            terminal.take(1);
            uart.flush().unwrap();
            assert_eq!(uart.raw(), INT_TX, "running empty counts too");
        }
    }
}

#[test]
fn filling_the_fifo_above_its_level_takes_the_transmit_interrupt_back() {
    let terminal = Terminal::default();
    let uart = buffered(FifoDepth::Sixteen, terminal.clone());
    uart.send(b"a");
    assert_eq!(uart.raw(), INT_TX);
    terminal.0.lock().unwrap().stuck = true;
    uart.send(b"12345678");
    assert_eq!(uart.raw(), INT_TX, "eight of sixteen is not above half");
    uart.send(b"9");
    assert_eq!(uart.raw(), 0);
}

#[test]
fn without_fifos_the_transmit_interrupt_goes_with_a_waiting_character() {
    let terminal = Terminal::default();
    let uart = silent(terminal.clone());
    uart.send(b"a");
    terminal.0.lock().unwrap().stuck = true;
    uart.send(b"b");
    assert_eq!(uart.raw(), 0);
    terminal.unstick();
    uart.flush().unwrap();
    assert_eq!(uart.raw(), INT_TX);
}

#[test]
fn flushing_the_fifo_sends_nothing_and_so_raises_no_transmit_interrupt() {
    let uart = buffered(FifoDepth::Sixteen, Terminal::stuck());
    uart.send(b"0123456789abcdef");
    uart.put(LCR_H, 0);
    assert_eq!(uart.raw(), 0);
}

#[test]
fn a_burst_is_refilled_by_interrupts_alone() {
    // As drivers do: fill until full, unmask, and then half a FIFO for each interrupt.
    let terminal = Terminal::stuck();
    let heard = Heard::default();
    let uart = Pl011::new(Pl011Config::default(), heard.line(), terminal.clone());
    uart.put(LCR_H, LCR_FEN);
    let text: Vec<u8> = (0..200).collect();
    let mut rest = &text[..];
    while uart.get(FR) & FR_TXFF == 0 {
        uart.send(&rest[..1]);
        rest = &rest[1..];
    }
    uart.put(IMSC, INT_TX);
    for _ in 0..text.len() {
        terminal.take(5);
        let _ = uart.flush();
        if heard.is_up() {
            let (now, later) = rest.split_at(rest.len().min(16));
            uart.send(now);
            rest = later;
            if rest.is_empty() {
                uart.put(IMSC, 0);
            }
        }
    }
    assert_eq!(terminal.shown(), text);
}
