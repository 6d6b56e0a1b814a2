//! Anything that a guest and the world can do.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Receive(Vec<u8>),
    Frame(u8),
    Modem(u8),
    Terminal(bool),
    Flush,
    Reset,
    SaveAndRestore,
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => prop::sample::select(vec![DR, RSR, FR, ILPR, IBRD, FBRD, LCR_H, CR, IFLS, IMSC, RIS, MIS, ICR, DMACR]),
        1 => 0u64..0x1010,
        1 => any::<u64>(),
    ]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    // Mostly what a driver could write, so that the UART is often on and its FIFOs too.
    prop_oneof![
        2 => prop::sample::select(vec![CR_ON, CR_ON | CR_LBE, CR_ON | CR_CTSEN | CR_RTSEN, LCR_FEN, 0x7ff, 0])
            .prop_map(|value| value.to_le_bytes().to_vec()),
        2 => any::<[u8; 4]>().prop_map(|bytes| bytes.to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..17),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (offset(), 0usize..17).prop_map(|(offset, len)| Step::Read(offset, len)),
        8 => (offset(), data()).prop_map(|(offset, data)| Step::Write(offset, data)),
        3 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Step::Receive),
        1 => (0u8..4).prop_map(Step::Frame),
        1 => (0u8..16).prop_map(Step::Modem),
        1 => any::<bool>().prop_map(Step::Terminal),
        1 => Just(Step::Flush),
        1 => Just(Step::SaveAndRestore),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #[test]
    fn no_access_panics_and_the_line_is_always_up_while_an_interrupt_is_unmasked(
        deep in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let (heard, terminal) = (Heard::default(), Terminal::default());
        let fifo_depth = if deep { FifoDepth::ThirtyTwo } else { FifoDepth::Sixteen };
        let config = Pl011Config { fifo_depth, ..Pl011Config::default() };
        let uart = Pl011::new(config, heard.line(), terminal.clone());
        for step in steps {
            match step {
                Step::Read(offset, len) => uart.read(offset, &mut vec![0; len]),
                Step::Write(offset, data) => uart.write(offset, &data),
                Step::Receive(characters) => {
                    let room = uart.room();
                    prop_assert_eq!(uart.receive(&characters), room.min(characters.len()));
                }
                Step::Frame(kind) => {
                    let frames = [Frame::Data(1), Frame::FramingError(2), Frame::ParityError(3), Frame::Break];
                    uart.receive_frame(frames[usize::from(kind)]);
                }
                Step::Modem(lines) => {
                    let line = |bit: u8| lines & 1 << bit != 0;
                    uart.set_modem_inputs(ModemInputs { cts: line(0), dsr: line(1), dcd: line(2), ri: line(3) });
                }
                Step::Terminal(stuck) => {
                    terminal.0.lock().unwrap().stuck = stuck;
                    // What waited leaves with the guest's next access, whichever it is.
                    uart.get(FR);
                }
                Step::Flush => _ = uart.flush(),
                Step::Reset => uart.reset(),
                Step::SaveAndRestore => {
                    let state = uart.save();
                    prop_assert_eq!(uart.restore(&state), Ok(()), "every state that is reached is accepted");
                    let unsent = uart.unsent();
                    prop_assert!(unsent == 0 || unsent == state.tx.len());
                }
            }
            prop_assert_eq!(uart.get(MIS), uart.get(RIS) & uart.get(IMSC));
            prop_assert_eq!(heard.is_up(), uart.get(MIS) != 0);
            let depth = if uart.get(LCR_H) & LCR_FEN != 0 { if deep { 32 } else { 16 } } else { 1 };
            let (fr, state) = (uart.get(FR), uart.save());
            prop_assert_eq!(fr & FR_RXFE != 0, state.rx.is_empty());
            prop_assert_eq!(fr & FR_RXFF != 0, state.rx.len() == depth);
            prop_assert_eq!(uart.raw() & INT_RT != 0, !state.rx.is_empty(), "what waits will be read");
            prop_assert_eq!(fr & FR_TXFE != 0, state.tx.is_empty());
            prop_assert_eq!(fr & FR_TXFF != 0, state.tx.len() == depth);
        }
        let heard = heard.all();
        prop_assert!(heard.windows(2).all(|pair| pair[0] != pair[1]), "transitions only: {:?}", heard);
    }
}
