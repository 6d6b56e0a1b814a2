//! A function that may not master the bus touches no memory.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use devisor::{
    interrupt::NoInterrupt,
    pci::{Function, NoMessages, Slot},
    virtio::{
        DeviceId, QueueError, QueueIndex, Queues, Round, VirtioDevice, VirtioPci, transport::pci::VirtioPciOptions,
    },
};
use vm_memory::GuestMemory;

use crate::{
    driver::*,
    ring::{memory, writable},
};

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

/// Says when a round has begun, and ends it when it is told to.
struct Slow {
    begun: mpsc::Sender<()>,
    go: mpsc::Receiver<()>,
    ended: Arc<AtomicBool>,
}

impl<M: GuestMemory> VirtioDevice<M> for Slow {
    fn device_id(&self) -> DeviceId {
        DeviceId::ENTROPY
    }

    fn queue_sizes(&self) -> &[u16] {
        &[]
    }

    fn process(&mut self, _index: QueueIndex, _queues: &mut Queues<'_, M>) -> Result<Round, QueueError> {
        unreachable!("it has no queue")
    }

    /// A round of a device without queues: whatever holds the device.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {
        self.begun.send(()).unwrap();
        self.go.recv().unwrap();
        self.ended.store(true, SeqCst);
    }
}

#[test]
fn clearing_bus_master_ends_the_work_that_is_under_way() {
    let (begun, is_begun) = mpsc::channel();
    let (go, is_to_go) = mpsc::channel();
    let ended = Arc::new(AtomicBool::new(false));
    let device = Slow {
        begun,
        go: is_to_go,
        ended: Arc::clone(&ended),
    };
    let slot = Slot::new(address(), Box::new(NoInterrupt), Arc::new(NoMessages));
    let pci = Arc::new(VirtioPci::new(device, memory(), slot).unwrap());
    pci.write_config(COMMAND, &BUS_MASTER.to_le_bytes());
    thread::scope(|scope| {
        scope.spawn(|| pci.read_bar(STRUCTURES, CONFIG, &mut [0]));
        is_begun.recv().unwrap();
        let (cleared, is_cleared) = mpsc::channel();
        let (pci, ended) = (&pci, &ended);
        scope.spawn(move || {
            pci.write_config(COMMAND, &[0, 0]);
            cleared.send(ended.load(SeqCst)).unwrap();
        });
        // Time enough for a write that does not wait. One that does is not in a hurry.
        let early = is_cleared.recv_timeout(Duration::from_millis(100));
        go.send(()).unwrap();
        let ended = early.unwrap_or_else(|_| is_cleared.recv().unwrap());
        assert!(ended, "the device was still at work");
    });
}
