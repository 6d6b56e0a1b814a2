//! InterruptStatus, InterruptACK and the line.

use std::sync::{Arc, Mutex, atomic::Ordering};

use devisor::{
    bus::BusDevice,
    interrupt::from_fn,
    virtio::transport::{VirtioTransport, mmio::Line, status::DEVICE_NEEDS_RESET},
};

use crate::{driver::*, ring::writable};

#[test]
fn a_used_buffer_sets_its_bit_before_the_line_is_raised() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let slot: Arc<Mutex<Option<Arc<Mmio>>>> = Arc::default();
    let (log, device) = (Arc::clone(&seen), Arc::clone(&slot));
    // The handler runs inside `trigger`, as on a platform that injects synchronously: it reads, acknowledges and
    // kicks again.
    let line = from_fn(move || {
        let mmio = device.lock().unwrap().clone().expect("it is set up");
        let mut status = [0; 4];
        mmio.read(INTERRUPT_STATUS, &mut status);
        log.lock().unwrap().push(u32::from_le_bytes(status));
        mmio.write(INTERRUPT_ACK, &status);
        mmio.write(QUEUE_NOTIFY, &[0; 4]);
        Ok(())
    });
    let driver = Driver::new(Line::Edge(Arc::new(line)));
    *slot.lock().unwrap() = Some(Arc::clone(&driver.mmio));
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(*seen.lock().unwrap(), [1]);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    *slot.lock().unwrap() = None;
}

#[test]
fn an_acknowledgement_clears_the_bits_written_and_raises_an_edge_for_the_rest() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.mmio.change_config(|_| ());
    assert_eq!(counted.count(), 2);
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    assert_eq!(counted.count(), 3);
    driver.write(INTERRUPT_ACK, 0xffff_fffc);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    driver.write(INTERRUPT_ACK, 2);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
}

#[test]
fn an_event_between_the_read_of_the_status_and_its_acknowledgement_is_not_stranded() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    let mut use_one = || {
        ring.request(&[writable(0x8000, 1)]);
        driver.write(QUEUE_NOTIFY, 0);
    };
    use_one();
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    use_one();
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(
        driver.read(INTERRUPT_STATUS),
        1,
        "the second buffer is not acknowledged"
    );
    assert_eq!(counted.count(), 3, "and an edge says so");
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    // A driver that acknowledges without looking has acknowledged everything.
    use_one();
    use_one();
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
}

#[test]
fn a_level_line_is_up_as_long_as_the_status_is_not_zero() {
    let (line, heard) = level();
    let driver = Driver::new(line);
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.mmio.change_config(|_| ());
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(*heard.lock().unwrap(), [true]);
    driver.write(INTERRUPT_ACK, 2);
    assert_eq!(*heard.lock().unwrap(), [true, false]);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(*heard.lock().unwrap(), [true, false, true]);
    drop(driver);
    assert_eq!(
        *heard.lock().unwrap(),
        [true, false, true, false],
        "a device that is dropped lets go"
    );
}

#[test]
fn a_refused_interrupt_leaves_its_status_and_comes_with_the_next_kick() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    counted.refuse.store(true, Ordering::SeqCst);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.mmio.change_config(|_| ());
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    // The end of the round has tried again.
    assert_eq!(driver.mmio.line_failures(), 3);
    counted.refuse.store(false, Ordering::SeqCst);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(counted.count(), 2, "both are told");
}

#[test]
fn a_device_that_needs_a_reset_says_so_with_the_next_kick_if_the_line_refused_it() {
    let counted = Counted::default();
    let driver = Driver::new(counted.edge());
    let mut ring = driver.start();
    counted.refuse.store(true, Ordering::SeqCst);
    ring.set_avail_idx(SIZE + 1);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(driver.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
    counted.refuse.store(false, Ordering::SeqCst);
    // All that a driver does which waits for an answer.
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (2, 1));
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(counted.count(), 1, "once is enough");
}

#[test]
fn an_edge_that_was_refused_at_the_acknowledgement_comes_with_the_next_kick() {
    for saved in [false, true] {
        let counted = Counted::default();
        let mut driver = Driver::new(counted.edge());
        let mut ring = driver.start();
        let mut use_one = || {
            ring.request(&[writable(0x8000, 1)]);
            driver.write(QUEUE_NOTIFY, 0);
        };
        use_one();
        assert_eq!(driver.read(INTERRUPT_STATUS), 1);
        use_one();
        counted.refuse.store(true, Ordering::SeqCst);
        driver.write(INTERRUPT_ACK, 1);
        counted.refuse.store(false, Ordering::SeqCst);
        assert_eq!((driver.read(INTERRUPT_STATUS), counted.count()), (1, 2));
        if saved {
            driver = driver.moved(Probe::default(), counted.edge());
            assert_eq!(counted.count(), 2, "nothing is raised by the restore itself");
            driver.mmio.resume();
        } else {
            // Nothing new is there: this kick has no other reason to interrupt.
            driver.write(QUEUE_NOTIFY, 0);
        }
        assert_eq!(counted.count(), 3, "saved: {saved}");
        driver.write(QUEUE_NOTIFY, 0);
        assert_eq!(counted.count(), 3, "once is enough");
    }
}
