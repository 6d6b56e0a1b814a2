//! A function that may not master the bus touches no memory.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use devisor::virtio::{QueueIndex, transport::pci::VirtioPciOptions};

use crate::{driver::*, ring::writable};

fn master(driver: &Driver, master: bool) {
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
    assert_eq!(driver.pci.with_device(|probe| probe.processed), 0);
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
