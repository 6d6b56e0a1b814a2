//! What leaves: the transmit FIFO, writers that refuse or call back, and flow control.

use super::*;

#[test]
fn a_written_character_is_out_before_the_write_returns() {
    let terminal = Terminal::default();
    let uart = silent(terminal.clone());
    uart.put(DR, u32::from(b'h') | 0xffff_ff00);
    assert_eq!(terminal.shown(), b"h");
    assert!(
        terminal.0.lock().unwrap().flushes > 0,
        "a prompt without a newline is seen"
    );
    assert_eq!(uart.get(FR) & (FR_TXFE | FR_TXFF | FR_BUSY), FR_TXFE);
}

#[test]
fn nothing_leaves_until_both_uart_and_transmitter_are_enabled() {
    for off in [0, CR_UARTEN, CR_TXE] {
        let terminal = Terminal::default();
        let uart = silent(terminal.clone());
        uart.put(CR, off);
        uart.send(b"a");
        assert_eq!(terminal.shown(), b"");
        assert_eq!(uart.get(FR) & (FR_TXFF | FR_BUSY), FR_TXFF | FR_BUSY);
        uart.put(CR, CR_UARTEN | CR_TXE);
        assert_eq!(terminal.shown(), b"a");
    }
}

#[test]
fn output_that_is_refused_stays_and_shows_as_busy_then_full() {
    for (depth, characters) in DEPTHS {
        let terminal = Terminal::stuck();
        let uart = buffered(depth, terminal.clone());
        let sent: Vec<u8> = (0..characters as u8).collect();
        for (count, character) in sent.iter().enumerate() {
            assert_eq!(uart.get(FR) & FR_TXFF, 0, "{count} of {characters}");
            uart.send(&[*character]);
            assert_eq!(uart.get(FR) & (FR_BUSY | FR_TXFE), FR_BUSY);
        }
        assert_eq!(uart.get(FR) & FR_TXFF, FR_TXFF);
        assert_eq!(uart.unsent(), characters);
        assert_eq!(uart.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(uart.output_failures(), 0, "a writer that would block has not failed");

        terminal.unstick();
        uart.flush().unwrap();
        assert_eq!(terminal.shown(), sent);
        assert_eq!(uart.get(FR) & (FR_BUSY | FR_TXFE | FR_TXFF), FR_TXFE);
    }
}

#[test]
fn a_guest_that_only_polls_for_room_gets_on_once_the_writer_takes_more() {
    let terminal = Terminal::stuck();
    let uart = silent(terminal.clone());
    uart.send(b"a");
    assert_eq!(uart.get(FR) & FR_TXFF, FR_TXFF);
    terminal.unstick();
    let polls = (1..5).find(|_| uart.get(FR) & FR_TXFF == 0);
    assert!(polls.is_some(), "nobody called flush, and it waits for ever");
    assert_eq!(terminal.shown(), b"a");
}

#[test]
fn without_fifos_one_character_waits() {
    let terminal = Terminal::stuck();
    let uart = silent(terminal.clone());
    uart.send(b"a");
    assert_eq!(uart.get(FR) & FR_TXFF, FR_TXFF);
    uart.send(b"b");
    terminal.unstick();
    uart.flush().unwrap();
    assert_eq!(terminal.shown(), b"a");
}

#[test]
fn a_character_written_to_a_full_fifo_is_the_one_that_is_lost() {
    let terminal = Terminal::stuck();
    let uart = buffered(FifoDepth::Sixteen, terminal.clone());
    uart.send(b"0123456789abcdefghi");
    terminal.unstick();
    uart.flush().unwrap();
    assert_eq!(terminal.shown(), b"0123456789abcdef");
}

#[test]
fn short_and_interrupted_writes_lose_nothing_and_keep_the_order() {
    let terminal = Terminal::stuck();
    let uart = buffered(FifoDepth::ThirtyTwo, terminal.clone());
    uart.send(b"hello, world");
    for answer in [Answer::Take(1), Answer::Fail(ErrorKind::Interrupted), Answer::Take(4)] {
        terminal.0.lock().unwrap().answers.push_back(answer);
    }
    assert_eq!(uart.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(terminal.shown(), b"hello");
    assert_eq!(uart.unsent(), 7);
    terminal.unstick();
    uart.flush().unwrap();
    assert_eq!(terminal.shown(), b"hello, world");
}

#[test]
fn a_failing_writer_loses_nothing_and_is_counted() {
    let terminal = Terminal::default()
        .then(Answer::Fail(ErrorKind::BrokenPipe))
        .then(Answer::Take(0));
    let uart = buffered(FifoDepth::ThirtyTwo, terminal.clone());
    uart.send(b"a");
    assert_eq!(uart.output_failures(), 1);
    assert_eq!(uart.flush().unwrap_err().kind(), ErrorKind::WriteZero);
    assert_eq!(uart.output_failures(), 2);
    assert_eq!(uart.unsent(), 1);
    uart.send(b"b");
    assert_eq!(terminal.shown(), b"ab", "the next character takes the last along");
}

#[test]
fn a_writer_that_claims_more_than_it_was_given_is_not_believed() {
    struct Boaster;
    impl io::Write for Boaster {
        fn write(&mut self, _characters: &[u8]) -> io::Result<usize> {
            Ok(usize::MAX)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let uart = buffered(FifoDepth::Sixteen, Boaster);
    uart.send(b"abc");
    assert_eq!(uart.unsent(), 0);
}

#[test]
fn switching_the_fifos_flushes_both() {
    let terminal = Terminal::stuck();
    let uart = buffered(FifoDepth::ThirtyTwo, terminal.clone());
    uart.send(b"unsent");
    uart.receive(b"unread");
    uart.put(LCR_H, LCR_FEN | 0x60);
    assert_eq!((uart.unsent(), uart.room()), (6, 26), "FEN stays as it was");
    uart.put(LCR_H, 0x60);
    assert_eq!(uart.get(FR) & (FR_TXFE | FR_RXFE | FR_BUSY), FR_TXFE | FR_RXFE);
    assert_eq!(uart.room(), 1);
    terminal.unstick();
    uart.flush().unwrap();
    assert_eq!(terminal.shown(), b"");
}

#[test]
fn flow_control_holds_the_output_while_the_peer_is_not_clear_to_receive() {
    let terminal = Terminal::default();
    let uart = silent(terminal.clone());
    let ready = Pl011Config::default().modem;
    uart.set_modem_inputs(ModemInputs { cts: false, ..ready });
    uart.send(b"a");
    assert_eq!(terminal.shown(), b"a", "without CTSEN the line means nothing");
    uart.put(CR, CR_ON | CR_CTSEN);
    uart.send(b"b");
    assert_eq!(terminal.shown(), b"a");
    uart.set_modem_inputs(ready);
    assert_eq!(terminal.shown(), b"ab");
}

/// A writer that calls the UART back, once.
struct CallsBack {
    uart: OnceLock<Weak<dyn BusDevice>>,
    shown: Mutex<Vec<u8>>,
    what: fn(&dyn BusDevice),
    done: AtomicBool,
}

impl io::Write for &CallsBack {
    fn write(&mut self, characters: &[u8]) -> io::Result<usize> {
        let uart = self.uart.get().and_then(Weak::upgrade);
        if let Some(uart) = uart.filter(|_| !self.done.swap(true, Ordering::SeqCst)) {
            (self.what)(&*uart);
        }
        self.shown.lock().unwrap().extend(characters);
        Ok(characters.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn called_back(what: fn(&dyn BusDevice)) -> (Arc<Pl011<NoInterrupt, &'static CallsBack>>, &'static CallsBack) {
    let output: &'static CallsBack = Box::leak(Box::new(CallsBack {
        uart: OnceLock::new(),
        shown: Mutex::default(),
        what,
        done: AtomicBool::new(false),
    }));
    let uart = Arc::new(buffered(FifoDepth::ThirtyTwo, output));
    let device: Arc<dyn BusDevice> = Arc::<Pl011<_, _>>::clone(&uart);
    assert!(output.uart.set(Arc::downgrade(&device)).is_ok());
    (uart, output)
}

#[test]
fn a_writer_may_write_to_the_uart_and_nothing_is_stranded() {
    let (uart, output) = called_back(|uart| uart.write(DR, b"b"));
    uart.send(b"a");
    assert_eq!(*output.shown.lock().unwrap(), b"ab");
    assert_eq!(uart.unsent(), 0);
}

#[test]
fn a_flush_during_a_write_takes_no_character_that_came_after_it() {
    let (uart, output) = called_back(|uart| {
        uart.write(LCR_H, &[0]);
        uart.write(LCR_H, &[LCR_FEN as u8]);
        uart.write(DR, b"b");
    });
    uart.send(b"a");
    assert_eq!(*output.shown.lock().unwrap(), b"ab");
}

#[test]
fn a_character_written_while_another_thread_writes_is_not_stranded() {
    /// Holds up the first write until told to go on.
    struct Slow(Mutex<mpsc::Receiver<()>>, mpsc::Sender<u8>, mpsc::Sender<()>);
    impl io::Write for Slow {
        fn write(&mut self, characters: &[u8]) -> io::Result<usize> {
            if characters[0] == b'a' {
                self.2.send(()).unwrap();
                self.0.lock().unwrap().recv().unwrap();
            }
            characters.iter().for_each(|&c| self.1.send(c).unwrap());
            Ok(characters.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (go, gone) = mpsc::channel();
    let (shown, screen) = mpsc::channel();
    let (started, start) = mpsc::channel();
    let uart = buffered(FifoDepth::ThirtyTwo, Slow(Mutex::new(gone), shown, started));
    thread::scope(|scope| {
        scope.spawn(|| uart.send(b"a"));
        start.recv().unwrap();
        uart.send(b"b");
        assert_eq!(uart.get(FR) & FR_BUSY, FR_BUSY);
        go.send(()).unwrap();
    });
    assert_eq!(screen.try_iter().collect::<Vec<u8>>(), b"ab");
    assert_eq!(uart.unsent(), 0);
}

#[test]
fn news_that_the_writer_takes_more_is_not_lost_while_it_refuses() {
    // The writer becomes writable, and the embedder calls flush, just before the refusal returns.
    struct Opens(Arc<OnceLock<Weak<dyn Fn() + Send + Sync>>>, Arc<Mutex<Vec<u8>>>, bool);
    impl io::Write for Opens {
        fn write(&mut self, characters: &[u8]) -> io::Result<usize> {
            if !std::mem::replace(&mut self.2, true) {
                self.0.get().unwrap().upgrade().unwrap()();
                return Err(ErrorKind::WouldBlock.into());
            }
            self.1.lock().unwrap().extend(characters);
            Ok(characters.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (writable, shown) = (Arc::new(OnceLock::new()), Arc::new(Mutex::default()));
    let uart = Arc::new(silent(Opens(Arc::clone(&writable), Arc::clone(&shown), false)));
    let device = Arc::clone(&uart);
    let flush: Arc<dyn Fn() + Send + Sync> = Arc::new(move || device.flush().unwrap());
    assert!(writable.set(Arc::downgrade(&flush)).is_ok());
    uart.send(b"a");
    assert_eq!(*shown.lock().unwrap(), b"a");
}

#[test]
fn a_writer_that_panics_leaves_the_uart_working() {
    struct Panics(Terminal, bool);
    impl io::Write for Panics {
        fn write(&mut self, characters: &[u8]) -> io::Result<usize> {
            assert!(std::mem::replace(&mut self.1, true), "the embedder's bug");
            self.0.write(characters)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }
    let terminal = Terminal::default();
    let uart = buffered(FifoDepth::Sixteen, Panics(terminal.clone(), false));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| uart.send(b"a")));
    assert!(panicked.is_err());
    uart.send(b"b");
    assert_eq!(terminal.shown(), b"ab");
}
