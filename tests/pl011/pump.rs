//! The input pump.

use super::*;

#[test]
fn the_pump_loses_nothing_between_a_fast_reader_and_a_slow_guest() {
    let text: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let uart = buffered(FifoDepth::Sixteen, io::sink());
    let mut pump = InputPump::new(&text[..]);
    let mut taken = Vec::new();
    let mut runs = 0;
    while pump.run(&uart).unwrap() == Pumped::Full {
        taken.push(uart.get(DR) as u8);
        runs += 1;
    }
    taken.extend(uart.take());
    assert_eq!(taken, text);
    assert!(runs > 900);
}

#[test]
fn what_the_pump_holds_survives_a_guest_that_turns_the_receiver_off() {
    let uart = silent(io::sink());
    let mut pump = InputPump::new(&b"abc"[..]);
    assert_eq!(pump.run(&uart).unwrap(), Pumped::Full);
    uart.put(CR, CR_ON | CR_LBE);
    uart.get(DR);
    assert_eq!(pump.run(&uart).unwrap(), Pumped::Full);
    uart.put(CR, CR_ON);
    let mut taken = Vec::new();
    while pump.run(&uart).unwrap() == Pumped::Full {
        taken.extend(uart.take());
    }
    taken.extend(uart.take());
    assert_eq!(taken, b"bc");
}

#[test]
fn the_pump_comes_back_from_a_reader_that_would_block_or_fails() {
    struct Keyboard(VecDeque<Result<&'static [u8], ErrorKind>>);
    impl io::Read for Keyboard {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let typed = self.0.pop_front().unwrap_or(Ok(b""))?;
            buffer[..typed.len()].copy_from_slice(typed);
            Ok(typed.len())
        }
    }
    let uart = buffered(FifoDepth::Sixteen, io::sink());
    let mut pump = InputPump::new(Keyboard(VecDeque::from([
        Ok(&b"a"[..]),
        Err(ErrorKind::WouldBlock),
        Err(ErrorKind::Interrupted),
        Ok(b"b"),
        Err(ErrorKind::ConnectionReset),
        Ok(b"c"),
    ])));
    assert_eq!(pump.run(&uart).unwrap(), Pumped::Blocked);
    assert_eq!(uart.take(), b"a");
    assert_eq!(pump.run(&uart).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(uart.take(), b"b");
    assert_eq!(pump.run(&uart).unwrap(), Pumped::Ended);
    assert_eq!(uart.take(), b"c");
}
