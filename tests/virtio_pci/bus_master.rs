//! A function that may not master the bus touches no memory.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

use devisor::virtio::{
    DeviceId, Fault, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioTransport, features,
    transport::pci::VirtioPciOptions,
};

use crate::{driver::*, ring::writable};

fn master<D: VirtioDevice + 'static>(driver: &Driver<D>, master: bool) {
    let bit = if master { BUS_MASTER } else { 0 };
    driver.set_config(COMMAND, 2, (MEMORY_SPACE | bit).into());
}

#[test]
fn a_driver_that_has_not_set_bus_master_does_not_make_the_device_touch_memory() {
    let driver = Driver::with_msix();
    master(&driver, false);
    let [mut ring, _] = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.kick(0);
    driver.pci.process(QueueIndex(0));
    driver.pci.run();
    assert_eq!((ring.used().len(), driver.sent()), (0, vec![]));
    assert_eq!(driver.processed(), 0);
    master(&driver, true);
    assert_eq!(
        (ring.used().len(), driver.sent()),
        (1, vec![OF_QUEUE[0]]),
        "the kick was kept"
    );
}

#[test]
fn a_driver_that_clears_bus_master_stops_the_device_until_it_sets_it_again() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    assert_eq!(ring.used().len(), 1);
    master(&driver, false);
    driver.request(0, &mut ring);
    assert_eq!(ring.used().len(), 0);
    // Nor does another write of the command register let it go on.
    driver.set_config(COMMAND, 2, (MEMORY_SPACE | INTX_DISABLE).into());
    driver.pci.resume();
    assert_eq!(ring.used().len(), 0);
    master(&driver, true);
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn a_pause_and_bus_master_do_not_end_each_other() {
    let driver = Driver::with_msix();
    let [mut ring, _] = driver.start();
    driver.pci.pause();
    master(&driver, false);
    driver.request(0, &mut ring);
    master(&driver, true);
    assert_eq!(ring.used().len(), 0, "paused");
    driver.pci.resume();
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn a_reset_works_without_bus_master() {
    let driver = Driver::with_msix();
    driver.start();
    master(&driver, false);
    driver.set(DEVICE_STATUS, 0);
    assert_eq!(driver.status(), 0);
    let [mut ring, _] = driver.start();
    driver.request(0, &mut ring);
    assert_eq!(ring.used().len(), 0);
}

#[test]
fn a_worker_is_woken_when_bus_master_is_set() {
    let rung = Arc::new(AtomicU32::new(0));
    let bell = Arc::clone(&rung);
    let driver = Driver::build(Probe::default(), VirtioPciOptions::default(), |pci| {
        pci.with_doorbell(move |_queue| -> io::Result<()> {
            bell.fetch_add(1, SeqCst);
            Ok(())
        })
    })
    .unwrap();
    driver.place();
    master(&driver, false);
    let [mut ring, _] = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.kick(0);
    driver.pci.run();
    assert_eq!(ring.used().len(), 0);
    let before = rung.load(SeqCst);
    master(&driver, true);
    assert!(rung.load(SeqCst) > before);
    driver.pci.run();
    assert_eq!(ring.used().len(), 1);
}

/// Says when a round has begun, and ends it when it is told to.
struct Slow {
    begun: mpsc::Sender<()>,
    go: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl VirtioDevice for Slow {
    fn device_id(&self) -> DeviceId {
        DeviceId::ENTROPY
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Slow {
            begun: self.begun.clone(),
            go: Arc::clone(&self.go),
        })
    }
}

impl QueueHandler for Slow {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        Ok(round.each(|_| {
            self.begun.send(()).unwrap();
            self.go.lock().unwrap().recv().unwrap();
            Ok(0)
        })?)
    }
}

#[test]
fn clearing_bus_master_returns_at_once_and_the_round_that_is_under_way_is_the_last() {
    let ((begun, is_begun), (go, is_to_go)) = (mpsc::channel(), mpsc::channel());
    let go_on = Arc::new(Mutex::new(is_to_go));
    let driver = Driver::with(Slow { begun, go: go_on }, VirtioPciOptions::default()).unwrap();
    driver.place();
    driver.negotiate(features::VERSION_1);
    let mut ring = driver.set_up_queue(0);
    driver.go();
    ring.request(&[writable(0x8000, 1)]);
    thread::scope(|scope| {
        scope.spawn(|| driver.kick(0));
        is_begun.recv().unwrap();
        master(&driver, false);
        driver.pci.pause();
        assert!(!driver.pci.is_still(), "the device is at work");
        go.send(()).unwrap();
    });
    assert!(driver.pci.is_still());
    assert_eq!(ring.used().len(), 1);
    driver.pci.resume();
    driver.request(0, &mut ring);
    assert_eq!(ring.used().len(), 0);
    go.send(()).unwrap();
    master(&driver, true);
    assert_eq!(ring.used().len(), 1);
}
