//! What arrives: levels, timeout, errors, overrun and room.

use super::*;

#[test]
fn the_receive_interrupt_follows_its_level() {
    for (depth, characters) in DEPTHS {
        for (code, eighths) in LEVELS {
            let level = characters * eighths / 8;
            let uart = buffered(depth, io::sink());
            uart.put(IFLS, code << 3);
            for held in 1..=characters {
                assert_eq!(uart.receive(b"."), 1);
                let expected = if held >= level { INT_RX } else { 0 };
                assert_eq!(uart.raw() & INT_RX, expected, "{held} of {characters}, level {level}");
            }
            for held in (0..characters).rev() {
                uart.get(DR);
                let expected = if held >= level { INT_RX } else { 0 };
                assert_eq!(uart.raw() & INT_RX, expected, "{held} of {characters}, level {level}");
            }
        }
    }
}

#[test]
fn reserved_levels_act_as_the_highest() {
    for code in 5..8 {
        let uart = buffered(FifoDepth::Sixteen, io::sink());
        uart.put(IFLS, code << 3);
        uart.receive(&[0; 13]);
        assert_eq!(uart.raw() & INT_RX, 0);
        uart.receive(&[0]);
        assert_eq!(uart.raw() & INT_RX, INT_RX);
    }
}

#[test]
fn without_fifos_each_character_is_a_receive_interrupt() {
    let uart = silent(io::sink());
    assert_eq!(uart.receive(b"ab"), 1);
    assert_eq!(uart.raw(), INT_RX | INT_RT);
    assert_eq!(uart.get(FR) & (FR_RXFE | FR_RXFF), FR_RXFF);
    assert_eq!(uart.get(DR), u32::from(b'a'));
    assert_eq!(uart.raw(), 0);
    assert_eq!(uart.get(FR) & (FR_RXFE | FR_RXFF), FR_RXFE);
}

#[test]
fn lowering_the_level_below_what_is_held_raises_the_receive_interrupt() {
    let uart = buffered(FifoDepth::Sixteen, io::sink());
    uart.receive(&[0; 3]);
    assert_eq!(uart.raw() & INT_RX, 0);
    uart.put(IFLS, 0);
    assert_eq!(uart.raw() & INT_RX, INT_RX);
    uart.put(IFLS, 0x12);
    assert_eq!(uart.raw() & INT_RX, 0);
}

#[test]
fn data_below_the_level_raises_the_timeout_until_it_is_read() {
    let heard = Heard::default();
    let uart = Pl011::new(Pl011Config::default(), heard.line(), io::sink());
    uart.put(LCR_H, LCR_FEN);
    uart.put(IMSC, INT_RX | INT_RT);
    uart.receive(b"ls");
    assert_eq!(uart.get(MIS), INT_RT);
    uart.get(DR);
    assert_eq!(uart.get(MIS), INT_RT);
    uart.get(DR);
    assert_eq!(uart.get(MIS), 0);
    assert_eq!(heard.all(), [true, false]);
}

#[test]
fn characters_are_read_in_order_and_an_empty_fifo_reads_as_zero() {
    let uart = buffered(FifoDepth::ThirtyTwo, io::sink());
    uart.receive(b"hello");
    assert_eq!(uart.take(), b"hello");
    assert_eq!(uart.get(DR), 0);
}

#[test]
fn input_that_does_not_fit_is_turned_away_and_not_lost() {
    let uart = buffered(FifoDepth::Sixteen, io::sink());
    let text: Vec<u8> = (0..20).collect();
    assert_eq!(uart.receive(&text), 16);
    assert_eq!(uart.room(), 0);
    assert_eq!(uart.get(FR) & FR_RXFF, FR_RXFF);
    assert_eq!(uart.receive(&text[16..]), 0);
    assert_eq!(uart.raw() & INT_OE, 0, "no overrun, for the embedder waits");
    let mut taken = uart.take();
    assert_eq!(uart.receive(&text[16..]), 4);
    taken.extend(uart.take());
    assert_eq!(taken, text);
}

#[test]
fn there_is_no_room_while_the_receiver_is_off_or_looped_back() {
    for cr in [0, CR_UARTEN, CR_RXE, CR_ON | CR_LBE] {
        let uart = silent(io::sink());
        uart.put(CR, cr);
        assert_eq!((uart.room(), uart.receive(b"a")), (0, 0), "CR {cr:#x}");
        assert!(!uart.receive_frame(Frame::Data(b'a')));
        assert_eq!((uart.get(FR) & FR_RXFE, uart.raw() & !INT_MODEM), (FR_RXFE, 0));
    }
}

#[test]
fn the_room_hook_is_called_once_after_input_was_turned_away() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let uart = silent(io::sink()).with_room_hook(move || _ = count.fetch_add(1, Ordering::SeqCst));
    let called = || calls.swap(0, Ordering::SeqCst);

    uart.receive(b"a");
    uart.get(DR);
    assert_eq!(called(), 0, "everything fitted");
    uart.receive(b"ab");
    assert_eq!(called(), 0, "there is no room yet");
    uart.get(DR);
    assert_eq!(called(), 1);
    uart.receive(b"b");
    uart.get(DR);
    assert_eq!(called(), 0, "nobody waits any more");

    uart.put(CR, 0);
    uart.receive(b"c");
    uart.put(CR, CR_ON);
    assert_eq!(called(), 1, "enabling the receiver makes room too");
    uart.receive(b"cd");
    uart.put(LCR_H, LCR_FEN);
    assert_eq!(called(), 1, "and so does a flush");
}

type Receive = dyn Fn(&[u8]) -> usize + Send + Sync;

#[test]
fn the_room_hook_may_call_the_uart() {
    let uart: Arc<OnceLock<Weak<Receive>>> = Arc::default();
    let hook = Arc::clone(&uart);
    let device = Arc::new(silent(io::sink()).with_room_hook(move || {
        let receive = hook.get().and_then(Weak::upgrade).unwrap();
        assert_eq!(receive(b"b"), 1);
    }));
    let target = Arc::clone(&device);
    let receive: Arc<Receive> = Arc::new(move |input| target.receive(input));
    assert!(uart.set(Arc::downgrade(&receive)).is_ok());
    device.receive(b"ab");
    assert_eq!(device.get(DR), u32::from(b'a'));
    assert_eq!(device.get(DR), u32::from(b'b'));
}

#[test]
fn errors_travel_with_their_character_and_interrupt_on_arrival() {
    for (frame, data, interrupt) in [
        (Frame::FramingError(b'f'), 1 << 8 | u32::from(b'f'), INT_FE),
        (Frame::ParityError(b'p'), 1 << 9 | u32::from(b'p'), INT_PE),
        (Frame::Break, 1 << 10, INT_BE),
    ] {
        let heard = Heard::default();
        let uart = Pl011::new(Pl011Config::default(), heard.line(), io::sink());
        uart.put(LCR_H, LCR_FEN);
        uart.put(IMSC, interrupt);
        uart.receive(b"a");
        assert!(uart.receive_frame(frame));
        uart.receive(b"b");
        assert_eq!(uart.get(MIS), interrupt);
        assert!(heard.is_up());

        assert_eq!(uart.get(DR), u32::from(b'a'));
        assert_eq!(uart.get(RSR), 0);
        assert_eq!(uart.get(DR), data);
        assert_eq!(uart.get(RSR), data >> 8);
        assert_eq!(uart.get(DR), u32::from(b'b'));
        assert_eq!(uart.get(RSR), 0, "it is that of the character read last");

        assert_eq!(uart.get(MIS), interrupt, "reading does not clear an error interrupt");
        uart.put(ICR, interrupt);
        assert_eq!(heard.all(), [true, false]);
    }
}

#[test]
fn any_write_to_the_error_clear_register_clears_all_errors() {
    let uart = silent(io::sink());
    uart.receive_frame(Frame::Break);
    uart.get(DR);
    assert_eq!(uart.get(RSR), 4);
    uart.put(RSR, 0);
    assert_eq!(uart.get(RSR), 0);
}

#[test]
fn a_wire_that_does_not_wait_overruns_a_full_fifo() {
    let uart = buffered(FifoDepth::Sixteen, io::sink());
    uart.receive(b"0123456789abcdef");
    assert!(!uart.receive_frame(Frame::Data(b'X')));
    assert_eq!(uart.get(RSR), 8, "the overrun shows at once");
    assert_eq!(uart.raw() & INT_OE, INT_OE);
    assert_eq!(uart.get(DR), u32::from(b'0'), "what was there is intact");
    assert_eq!(uart.get(RSR), 8);
    uart.put(RSR, 0);
    assert_eq!(uart.get(RSR), 0);

    assert!(uart.receive_frame(Frame::Data(b'Y')));
    assert!(uart.get(FR) & FR_RXFF != 0);
    for character in b"123456789abcdef" {
        assert_eq!(uart.get(DR), u32::from(*character));
    }
    assert_eq!(uart.get(DR), 1 << 11 | u32::from(b'Y'), "the next character carries it");
    assert_eq!(uart.get(RSR), 8);
    uart.receive(b"Z");
    assert_eq!(uart.get(DR), u32::from(b'Z'), "and only that one");
    uart.put(ICR, INT_OE);
    assert_eq!(uart.raw() & INT_OE, 0);
}
