//! The interrupt line.

use super::*;

#[test]
fn unmasking_a_pending_interrupt_raises_the_line_and_masking_lowers_it() {
    let heard = Heard::default();
    let uart = Pl011::new(Pl011Config::default(), heard.line(), io::sink());
    uart.put(IMSC, INT_RX);
    uart.put(IMSC, 0);
    assert_eq!(heard.all(), [], "a mask with nothing pending raises nothing");
    uart.receive(b"a");
    assert_eq!(heard.all(), []);
    uart.put(IMSC, INT_RX);
    assert_eq!(heard.all(), [true]);
    uart.put(IMSC, 0);
    assert_eq!(heard.all(), [true, false]);
    uart.put(IMSC, INT_RX);
    uart.get(DR);
    assert_eq!(heard.all(), [true, false, true, false], "it goes with its cause");
}

#[test]
fn clearing_one_cause_leaves_the_line_to_the_other() {
    let heard = Heard::default();
    let uart = Pl011::new(Pl011Config::default(), heard.line(), io::sink());
    uart.put(IMSC, INT_RX | INT_TX);
    uart.send(b"a");
    uart.receive(b"b");
    uart.get(MIS);
    uart.put(ICR, INT_TX);
    assert_eq!(uart.get(MIS), INT_RX);
    assert_eq!(heard.all(), [true]);
    uart.get(DR);
    assert_eq!(heard.all(), [true, false]);
}

#[test]
fn every_interrupt_reaches_the_line_through_its_own_mask() {
    for bit in 0..11 {
        let heard = Heard::default();
        let uart = Pl011::new(Pl011Config::default(), heard.line(), io::sink());
        let mut state = uart.save();
        state.rx = vec![0];
        state.ris = 0x7ff;
        uart.restore(&state).unwrap();
        uart.put(IMSC, 1 << bit);
        assert_eq!(uart.get(MIS), 1 << bit);
        assert!(heard.is_up());
        // The causes of these two are read.
        match 1 << bit {
            INT_RX | INT_RT => _ = uart.get(DR),
            other => uart.put(ICR, other),
        }
        assert!(!heard.is_up());
        let gone = if bit == 4 || bit == 6 {
            INT_RX | INT_RT
        } else {
            1 << bit
        };
        assert_eq!(uart.raw(), 0x7ff & !gone);
    }
}

#[test]
fn a_line_that_fails_loses_nothing() {
    let fails = Arc::new(AtomicBool::new(true));
    let heard = Heard::default();
    let (broken, log) = (Arc::clone(&fails), Arc::clone(&heard.0));
    let line = level_from_fn(move |up| {
        if broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("not now"));
        }
        log.lock().unwrap().push(up);
        Ok(())
    });
    let uart = Pl011::new(Pl011Config::default(), line, io::sink());
    uart.put(IMSC, INT_RX);
    uart.receive(b"a");
    assert_eq!(uart.interrupt().failures(), 1);
    assert_eq!(uart.get(MIS), INT_RX, "the cause stands");
    fails.store(false, Ordering::SeqCst);
    uart.flush().unwrap();
    assert_eq!(heard.all(), [true]);
}

#[test]
fn a_shared_line_stays_up_until_both_uarts_have_let_go_and_dropping_one_lets_go() {
    let heard = Heard::default();
    let wire = SharedLine::new(heard.line());
    let [one, other] = [(); 2].map(|()| {
        let uart = Pl011::new(Pl011Config::default(), wire.source().unwrap(), io::sink());
        uart.put(IMSC, INT_RX);
        uart.receive(b"a");
        uart
    });
    assert_eq!(heard.all(), [true]);
    one.get(DR);
    assert_eq!(heard.all(), [true]);
    drop(other);
    assert_eq!(heard.all(), [true, false]);
}

#[test]
fn the_line_may_call_the_uart() {
    let uart: Arc<OnceLock<Weak<dyn BusDevice>>> = Arc::default();
    let (device, seen) = (Arc::clone(&uart), Arc::new(Mutex::new(Vec::new())));
    let log = Arc::clone(&seen);
    let line = level_from_fn(move |up| {
        let uart = device.get().and_then(Weak::upgrade).unwrap();
        log.lock().unwrap().push((up, uart.get(MIS)));
        if up {
            uart.put(ICR, INT_TX);
        }
        Ok(())
    });
    let device: Arc<dyn BusDevice> = Arc::new(Pl011::new(Pl011Config::default(), line, io::sink()));
    assert!(uart.set(Arc::downgrade(&device)).is_ok());
    device.put(IMSC, INT_TX);
    device.put(DR, u32::from(b'a'));
    assert_eq!(*seen.lock().unwrap(), [(true, INT_TX), (false, 0)]);
}
