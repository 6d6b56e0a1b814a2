//! What an embedder's callbacks may do, and what becomes of the device when they fail.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use devisor::{
    bus::BusDevice,
    interrupt::from_fn,
    virtio::{
        DeviceId, Fault, Handle, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioMmio, VirtioTransport, Wait,
        features,
        queue::OwnedChain,
        transport::{Doorbell, mmio::Line, status::DEVICE_NEEDS_RESET},
    },
};

use crate::{
    driver::*,
    late::{Held, Late, Stopped},
    ring::{Ring, memory, writable},
};

const QUEUE: QueueIndex = QueueIndex(0);
const FEATURES: u64 = features::COMMON & !features::EVENT_IDX;
/// Long enough for whatever is to come; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// An edge line that panics when it is told to, and counts otherwise.
#[derive(Clone, Default)]
struct Fuse {
    blown: Arc<AtomicBool>,
    raised: Arc<AtomicU32>,
}

impl Fuse {
    fn line(&self) -> Line {
        let Self { blown, raised } = self.clone();
        Line::Edge(Arc::new(from_fn(move || {
            assert!(!blown.load(Ordering::SeqCst), "as told");
            raised.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })))
    }

    /// The line panics in `f`.
    fn blow(&self, f: impl FnOnce()) {
        self.blown.store(true, Ordering::SeqCst);
        assert!(catch_unwind(AssertUnwindSafe(f)).is_err());
        self.blown.store(false, Ordering::SeqCst);
    }

    fn raised(&self) -> u32 {
        self.raised.load(Ordering::SeqCst)
    }
}

/// A device with two requests under way.
fn busy(line: Line) -> (Driver<Late>, Ring, Held) {
    let late = Late::new(&[SIZE], Stopped::GoesOn);
    let held = late.held();
    let driver = Driver::with(late, line);
    let mut ring = driver.start_with(FEATURES);
    ring.request(&[writable(0x8000, 1)]);
    ring.request(&[writable(0x9000, 2)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!(held.count(), 2);
    (driver, ring, held)
}

#[test]
fn a_line_that_panics_over_a_late_request_holds_up_no_pause_and_loses_no_signal() {
    let fuse = Fuse::default();
    let (driver, ring, held) = busy(fuse.line());
    fuse.blow(|| _ = held.complete(0));
    assert_eq!(ring.used_idx(), 1);
    driver.mmio.process(QUEUE);
    assert_eq!(fuse.raised(), 1, "it was owed");
    held.complete_all();
    driver.mmio.pause();
    assert!(driver.mmio.is_still(), "{:?}", driver.mmio.waiting());
}

#[test]
fn a_line_that_panics_over_a_configuration_change_holds_up_no_pause_and_loses_no_signal() {
    let fuse = Fuse::default();
    let driver = Driver::new(fuse.line());
    driver.start();
    fuse.blow(|| driver.mmio.change_config(|probe| probe.mac[0] = 1));
    driver.mmio.pause();
    assert!(driver.mmio.is_still());
    assert_eq!(fuse.raised(), 0);
    driver.mmio.resume();
    assert_eq!(fuse.raised(), 1, "it was owed");
}

/// Has each request completed by another thread, and waits in its round for that.
struct Joins(Arc<AtomicU32>);

impl VirtioDevice for Joins {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Joins(Arc::clone(&self.0)))
    }
}

impl QueueHandler for Joins {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            let chain = chain.take();
            let (done, ended) = mpsc::channel();
            thread::spawn(move || {
                chain.complete(0);
                let _ = done.send(());
            });
            if ended.recv_timeout(PATIENCE).is_err() {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}

#[test]
fn a_kick_from_inside_a_signal_waits_for_no_round_on_whatever_thread_it_is() {
    let mmio = Arc::new(OnceLock::<Weak<Mmio<Joins>>>::new());
    let kicks = Arc::clone(&mmio);
    let line = from_fn(move || {
        if let Some(mmio) = kicks.get().and_then(Weak::upgrade) {
            mmio.write(QUEUE_NOTIFY, &0u32.to_le_bytes());
        }
        Ok(())
    });
    let late = Arc::new(AtomicU32::new(0));
    let driver = Driver::with(Joins(Arc::clone(&late)), Line::Edge(Arc::new(line)));
    mmio.set(Arc::downgrade(&driver.mmio)).unwrap();
    let mut ring = driver.start_with(FEATURES);
    for _ in 0..2 {
        ring.request(&[writable(0x8000, 1)]);
    }
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!((ring.used().len(), late.load(Ordering::SeqCst)), (2, 0));
}

#[test]
fn who_is_told_of_rest_holds_up_no_other_thread_at_the_device() {
    let (driver, _ring, held) = busy(silent());
    held.complete_all();
    let handle = driver.mmio.with_device(|late| late.handle()).unwrap();
    let (weak, held_up) = (Arc::downgrade(&driver.mmio), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&held_up);
    driver.mmio.when_still(Box::new(move || {
        let Some(mmio) = weak.upgrade() else { return };
        let (done, ended) = mpsc::channel();
        thread::spawn(move || {
            mmio.read(QUEUE_READY, &mut [0; 4]);
            let _ = mmio.fault();
            mmio.when_still(Box::new(|| {}));
            let _ = done.send(());
        });
        if ended.recv_timeout(PATIENCE / 10).is_err() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }));
    // Twice: the first brings it to rest, the second finds it there.
    driver.mmio.pause();
    handle.fail("as told");
    driver.write(STATUS, 0);
    assert_eq!(held_up.load(Ordering::SeqCst), 0);
}

/// Fails where it is asked to.
struct Fails {
    handle: Option<Handle>,
    at_start: bool,
}

impl VirtioDevice for Fails {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn attach(&mut self, handle: Handle) {
        self.handle = Some(handle);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {
        self.handle.as_ref().unwrap().fail("no such setting");
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        if self.at_start {
            self.handle.as_ref().unwrap().fail("the backend is gone");
        }
        Box::new(Joins(Arc::default()))
    }
}

#[test]
fn a_device_may_fail_in_its_control_face() {
    for at_start in [false, true] {
        let line = Counted::default();
        let driver = Driver::with(Fails { handle: None, at_start }, line.edge());
        driver.start_with(FEATURES);
        if !at_start {
            assert!(driver.mmio.fault().is_none());
            driver.write(CONFIG, 1);
        }
        assert_eq!(driver.status() & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET, "{at_start}");
        assert_eq!(line.count(), 1);
        driver.write(STATUS, 0);
        assert_eq!((driver.status(), driver.mmio.fault()), (0, None));
    }
}

/// Takes its requests, and waits for a deadline besides.
struct Waits(Arc<Mutex<Vec<OwnedChain>>>);

impl VirtioDevice for Waits {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Waits(Arc::clone(&self.0)))
    }
}

impl QueueHandler for Waits {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            self.0.lock().unwrap().push(chain.take());
        }
        round.wait(Wait::Until(PATIENCE));
        Ok(())
    }
}

/// What was waited for last.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Wait>>>);

impl Doorbell for Heard {
    fn ring(&self, _: QueueIndex) -> io::Result<()> {
        Ok(())
    }

    fn wait(&self, _: QueueIndex, waits: &[Wait]) {
        *self.0.lock().unwrap() = waits.to_vec();
    }
}

/// With a request under way, and a wait.
fn waiting() -> (Driver<Waits>, Heard, Arc<Mutex<Vec<OwnedChain>>>) {
    let (heard, chains, memory) = (Heard::default(), Arc::default(), memory());
    let mmio = VirtioMmio::new(Waits(Arc::clone(&chains)), Arc::clone(&memory), silent()).unwrap();
    let mmio = Arc::new(mmio.with_doorbell(heard.clone()));
    let driver = Driver { mmio, memory };
    let mut ring = driver.start_with(FEATURES);
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    driver.mmio.run();
    assert_eq!(chains.lock().unwrap().len(), 1);
    assert_eq!(*heard.0.lock().unwrap(), [Wait::Until(PATIENCE)]);
    (driver, heard, chains)
}

#[test]
fn a_device_that_goes_with_requests_under_way_waits_for_nothing_any_more() {
    let (driver, heard, chains) = waiting();
    drop(driver);
    assert_eq!(*heard.0.lock().unwrap(), []);
    chains.lock().unwrap().clear();
}

#[test]
fn a_device_whose_last_request_has_brought_it_to_rest_waits_for_nothing_any_more() {
    let (driver, _heard, chains) = waiting();
    driver.mmio.pause();
    assert_eq!(
        driver.mmio.waits(QUEUE),
        [Wait::Until(PATIENCE)],
        "it may end the request"
    );
    chains.lock().unwrap().pop().unwrap().complete(0);
    assert!(driver.mmio.is_still());
    assert_eq!(driver.mmio.waits(QUEUE), []);
}

#[test]
fn a_limit_that_never_comes_is_one() {
    let driver = Driver::silent();
    driver.start();
    driver.mmio.pause();
    assert!(driver.mmio.wait_until_still(Some(Duration::MAX)));
    thread::scope(|scope| {
        driver.mmio.resume();
        scope.spawn(|| driver.mmio.pause());
        driver.mmio.wait_until_still(Some(Duration::MAX))
    });
}

#[test]
fn a_line_may_read_what_is_the_matter_acknowledge_it_and_kick_from_inside_its_trigger() {
    let mmio = Arc::new(OnceLock::<Weak<Mmio>>::new());
    let from_inside = Arc::clone(&mmio);
    let line = from_fn(move || {
        if let Some(mmio) = from_inside.get().and_then(Weak::upgrade) {
            let mut pending = [0; 4];
            mmio.read(STATUS, &mut [0; 4]);
            mmio.read(INTERRUPT_STATUS, &mut pending);
            mmio.write(INTERRUPT_ACK, &pending);
            mmio.write(QUEUE_NOTIFY, &0u32.to_le_bytes());
        }
        Ok(())
    });
    let driver = Driver::new(Line::Edge(Arc::new(line)));
    mmio.set(Arc::downgrade(&driver.mmio)).unwrap();
    let mut ring = driver.start();
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    assert_eq!((ring.used(), driver.read(INTERRUPT_STATUS)), (vec![(0, 1)], 0));
}
