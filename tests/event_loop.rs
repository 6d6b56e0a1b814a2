//! The ready-made event loop: kicks, descriptors and deadlines on threads of the embedder's.

#[path = "virtio_mmio/driver.rs"]
#[allow(dead_code, reason = "the driver of another test")]
mod driver;
#[path = "support/rest.rs"]
mod rest;
#[path = "support/ring.rs"]
mod ring;

use std::{
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use devisor::{
    event_loop::{EventLoop, Seat},
    time::{Alarm, Clock},
    virtio::{
        DeviceId, Fault, Handle, QueueHandler, QueueIndex, Round, VirtioDevice, VirtioMmio, VirtioTransport, Wait,
    },
};
use driver::{ALL, Driver, QUEUE_NOTIFY, SIZE, STATUS, silent};
use ring::{Ring, memory, writable};

/// Long enough for whatever is to come; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough to see that nothing comes.
const MOMENT: Duration = Duration::from_millis(20);

/// Receives: fills a request with what its socket has, as soon as it has something. Queue 1 waits for a deadline each time.
struct Receiver {
    socket: Arc<UnixStream>,
    clock: EventLoop,
    rounds: Arc<AtomicU32>,
}

impl VirtioDevice for Receiver {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }

    fn start(&mut self, queue: QueueIndex) -> Box<dyn QueueHandler> {
        match queue {
            QueueIndex(0) => Box::new(FromSocket(Arc::clone(&self.socket), Arc::clone(&self.rounds))),
            _ => Box::new(AtTheTime(self.clock.clone(), None)),
        }
    }
}

struct FromSocket(Arc<UnixStream>, Arc<AtomicU32>);

impl QueueHandler for FromSocket {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        self.1.fetch_add(1, SeqCst);
        while let Some(chain) = round.next()? {
            let mut byte = [0];
            match (&*self.0).read(&mut byte) {
                Ok(1) => match chain.writer().write(&byte) {
                    Ok(()) => chain.complete(1)?,
                    Err(_) => chain.refuse()?,
                },
                // Left where it is.
                _ => {
                    round.wait(Wait::Readable(self.0.as_raw_fd()));
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Answers each request a while after it has come.
struct AtTheTime(EventLoop, Option<Duration>);

impl QueueHandler for AtTheTime {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            let now = self.0.now();
            let until = *self.1.get_or_insert(now + Duration::from_millis(5));
            if now < until {
                round.wait(Wait::Until(until));
                return Ok(());
            }
            self.1 = None;
            chain.complete(0)?;
        }
        Ok(())
    }
}

struct Rig {
    events: EventLoop,
    driver: Driver<Receiver>,
    ring: Ring,
    other: Ring,
    far: UnixStream,
    rounds: Arc<AtomicU32>,
    /// Keeps its place.
    _seat: Seat,
}

fn rig() -> Rig {
    let events = EventLoop::new().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let rounds = Arc::new(AtomicU32::new(0));
    let device = Receiver {
        socket: Arc::new(near),
        clock: events.clone(),
        rounds: Arc::clone(&rounds),
    };
    let memory = memory();
    let seat = events.seat();
    let mmio = VirtioMmio::new(device, Arc::clone(&memory), silent()).unwrap();
    let mmio = Arc::new(mmio.with_doorbell(seat.clone()));
    seat.take(&(mmio.clone() as Arc<dyn VirtioTransport>));
    let driver = Driver { mmio, memory };
    driver.negotiate(ALL & !1);
    let (ring, other) = (driver.set_up_queue(0), driver.set_up_queue(1));
    driver.go();
    Rig {
        events,
        driver,
        ring,
        other,
        far,
        rounds,
        _seat: seat,
    }
}

/// Drives the loop on this thread until `done`.
fn drive(events: &EventLoop, done: impl Fn() -> bool) {
    while !done() {
        assert!(events.run_once(PATIENCE).unwrap(), "nothing comes any more");
    }
}

/// Drives the loop on this thread until nothing comes.
fn settle(events: &EventLoop) {
    while events.run_once(MOMENT).unwrap() {}
}

#[test]
fn a_queue_that_waits_for_a_descriptor_is_looked_at_when_it_is_ready_and_not_before() {
    let mut r = rig();
    settle(&r.events);
    r.ring.request(&[writable(0x8000, 1)]);
    r.ring.request(&[writable(0x8001, 1)]);
    r.driver.write(QUEUE_NOTIFY, 0);
    settle(&r.events);
    assert_eq!(r.driver.mmio.waits(QueueIndex(0)).len(), 1);
    let rounds = r.rounds.load(SeqCst);
    settle(&r.events);
    assert_eq!(
        (r.rounds.load(SeqCst), r.ring.used_idx()),
        (rounds, 0),
        "it does not poll"
    );
    for (number, byte) in (1..).zip(b"ab") {
        r.far.write_all(&[*byte]).unwrap();
        drive(&r.events, || r.ring.used_idx() == number);
    }
    assert_eq!(r.ring.get::<[u8; 2]>(0x8000), *b"ab");
    settle(&r.events);
    assert!(r.driver.mmio.waits(QueueIndex(0)).is_empty());
}

#[test]
fn a_queue_that_waits_for_a_time_is_looked_at_then() {
    let mut r = rig();
    let before = r.events.now();
    r.other.request(&[writable(0x8000, 1)]);
    r.driver.write(QUEUE_NOTIFY, 1);
    drive(&r.events, || r.other.used_idx() == 1);
    assert!(r.events.now() - before >= Duration::from_millis(5));
}

#[test]
fn a_device_that_is_paused_waits_for_nothing_and_goes_on_where_it_was() {
    let mut r = rig();
    r.ring.request(&[writable(0x8000, 1)]);
    r.driver.write(QUEUE_NOTIFY, 0);
    settle(&r.events);
    r.driver.mmio.pause();
    assert!(r.driver.mmio.is_still());
    assert!(r.driver.mmio.waits(QueueIndex(0)).is_empty());
    r.far.write_all(b"x").unwrap();
    let rounds = r.rounds.load(SeqCst);
    settle(&r.events);
    assert_eq!((r.rounds.load(SeqCst), r.ring.used_idx()), (rounds, 0));
    r.driver.mmio.resume();
    drive(&r.events, || r.ring.used_idx() == 1);
}

#[test]
fn a_device_that_is_reset_or_gone_waits_for_nothing() {
    let mut r = rig();
    r.ring.request(&[writable(0x8000, 1)]);
    r.driver.write(QUEUE_NOTIFY, 0);
    settle(&r.events);
    r.driver.write(STATUS, 0);
    r.far.write_all(b"x").unwrap();
    assert!(!r.events.run_once(MOMENT).unwrap());

    let mut r = rig();
    r.ring.request(&[writable(0x8000, 1)]);
    r.driver.write(QUEUE_NOTIFY, 0);
    settle(&r.events);
    let Rig {
        events,
        driver,
        mut far,
        ..
    } = r;
    drop(driver);
    far.write_all(b"x").unwrap_or_default();
    settle(&events);
}

#[test]
fn several_threads_serve_several_queues_until_they_are_told_to_stop() {
    let mut r = rig();
    let events = r.events.clone();
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let events = events.clone();
            thread::spawn(move || events.run())
        })
        .collect();
    for n in 0..200u16 {
        r.ring.request(&[writable(0x8000, 1)]);
        r.far.write_all(&[n as u8]).unwrap();
        r.driver.write(QUEUE_NOTIFY, 0);
        if n % 10 == 0 {
            r.other.request(&[writable(0x9000, 1)]);
            r.driver.write(QUEUE_NOTIFY, 1);
        }
        let begun = r.events.now();
        while r.ring.used_idx() != n + 1 || r.other.used_idx() != n / 10 + 1 {
            assert!(r.events.now() - begun < PATIENCE, "request {n} is lost");
            thread::yield_now();
        }
        assert_eq!(r.ring.get::<u8>(0x8000), n as u8);
    }
    events.stop();
    for worker in workers {
        worker.join().unwrap().unwrap();
    }
}

#[test]
fn a_watched_descriptor_calls_back_as_long_as_it_is_readable_and_watched() {
    let events = EventLoop::new().unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let read = Arc::new(Mutex::new(Vec::new()));
    let watch = {
        let read = Arc::clone(&read);
        events.watch(near, move |mut near: &UnixStream| {
            let mut byte = [0];
            near.read_exact(&mut byte).unwrap();
            read.lock().unwrap().push(byte[0]);
        })
    };
    let watch = watch.unwrap();
    far.write_all(b"abc").unwrap();
    drive(&events, || read.lock().unwrap().len() == 3);
    assert_eq!(*read.lock().unwrap(), b"abc");
    drop(watch);
    let _ = far.write_all(b"d");
    assert!(!events.run_once(MOMENT).unwrap());
}

#[test]
fn an_alarm_goes_off_once_by_the_loops_clock_and_may_be_moved() {
    let events = EventLoop::new().unwrap();
    let count = Arc::new(AtomicU32::new(0));
    let alarm = {
        let count = Arc::clone(&count);
        events.alarm(move || _ = count.fetch_add(1, SeqCst))
    };
    alarm.set(Some(events.now() + PATIENCE));
    assert!(!events.run_once(MOMENT).unwrap());
    alarm.set(Some(events.now()));
    drive(&events, || count.load(SeqCst) == 1);
    assert!(!events.run_once(MOMENT).unwrap());
    alarm.set(Some(events.now() + MOMENT / 2));
    alarm.set(None);
    assert!(!events.run_once(MOMENT).unwrap());
    assert_eq!(count.load(SeqCst), 1);
}

#[test]
fn an_earlier_deadline_wakes_a_thread_that_waits_for_a_later_one() {
    let events = EventLoop::new().unwrap();
    let (told, heard) = mpsc::channel();
    let alarm = events.alarm(move || told.send(()).unwrap());
    alarm.set(Some(events.now() + PATIENCE));
    let worker = thread::spawn({
        let events = events.clone();
        move || events.run()
    });
    thread::sleep(MOMENT);
    alarm.set(Some(events.now()));
    heard
        .recv_timeout(PATIENCE / 2)
        .expect("long before the first deadline");
    events.stop();
    worker.join().unwrap().unwrap();
}

/// Panics in its first round.
struct Bad(Arc<AtomicU32>);

impl VirtioDevice for Bad {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Bad(Arc::clone(&self.0)))
    }
}

impl QueueHandler for Bad {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        assert_ne!(self.0.fetch_add(1, SeqCst), 0, "as told");
        Ok(round.each(|_| Ok(0))?)
    }
}

#[test]
fn a_device_that_panics_takes_its_thread_with_it_and_nothing_else() {
    let events = EventLoop::new().unwrap();
    let memory = memory();
    let seat = events.seat();
    let mmio = VirtioMmio::new(Bad(Arc::default()), Arc::clone(&memory), silent()).unwrap();
    let mmio = Arc::new(mmio.with_doorbell(seat.clone()));
    seat.take(&(mmio.clone() as Arc<dyn VirtioTransport>));
    let driver = Driver { mmio, memory };
    let mut ring = driver.start_with(ALL & !1);
    let panicked = catch_unwind(AssertUnwindSafe(|| events.run_once(PATIENCE)));
    assert!(panicked.is_err());
    ring.request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    drive(&events, || ring.used_idx() == 1);
    driver.mmio.pause();
    assert!(driver.mmio.is_still());
}

/// Asks to be looked at again in each round, for ever.
struct Endless {
    handle: Arc<Mutex<Option<Handle>>>,
}

impl VirtioDevice for Endless {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn attach(&mut self, handle: Handle) {
        *self.handle.lock().unwrap() = Some(handle);
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Endless {
            handle: Arc::clone(&self.handle),
        })
    }
}

impl QueueHandler for Endless {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        if let Some(handle) = &*self.handle.lock().unwrap() {
            handle.look(round.index());
        }
        Ok(round.each(|_| Ok(0))?)
    }
}

/// A device on a seat of `events`, driven up to DRIVER_OK.
fn seated<D: VirtioDevice + 'static>(events: &EventLoop, device: D, queues: u16) -> (Driver<D>, Vec<Ring>, Seat) {
    let memory = memory();
    let seat = events.seat();
    let mmio = VirtioMmio::new(device, Arc::clone(&memory), silent()).unwrap();
    let mmio = Arc::new(mmio.with_doorbell(seat.clone()));
    let driver = Driver { mmio, memory };
    driver.negotiate(ALL & !1);
    let rings = (0..queues).map(|queue| driver.set_up_queue(queue)).collect();
    driver.go();
    (driver, rings, seat)
}

fn take<D: VirtioDevice + 'static>(seat: &Seat, driver: &Driver<D>) {
    seat.take(&(driver.mmio.clone() as Arc<dyn VirtioTransport>));
}

#[test]
fn a_queue_that_always_has_more_keeps_no_deadline_and_no_descriptor_from_being_seen() {
    let events = EventLoop::new().unwrap();
    let (driver, _rings, seat) = seated(&events, Endless { handle: Arc::default() }, 1);
    take(&seat, &driver);
    let (told, heard) = mpsc::channel();
    let alarm = {
        let told = told.clone();
        events.alarm(move || told.send("the deadline").unwrap())
    };
    let (near, mut far) = UnixStream::pair().unwrap();
    let watch = events.watch(near, move |mut near: &UnixStream| {
        near.read_exact(&mut [0]).unwrap();
        told.send("the descriptor").unwrap();
    });
    let _watch = watch.unwrap();
    let worker = thread::spawn({
        let events = events.clone();
        move || events.run()
    });
    thread::sleep(MOMENT);
    alarm.set(Some(events.now()));
    far.write_all(b"x").unwrap();
    let seen = [(); 2].map(|()| heard.recv_timeout(PATIENCE / 6));
    events.stop();
    worker.join().unwrap().unwrap();
    assert!(seen.iter().all(Result::is_ok), "{seen:?}");
}

/// Ends a request when another one is under way.
struct Pair(Arc<(Mutex<u32>, Condvar)>);

impl VirtioDevice for Pair {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Pair(Arc::clone(&self.0)))
    }
}

impl QueueHandler for Pair {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        Ok(round.each(|_| {
            let (here, all) = &*self.0;
            let mut here = here.lock().unwrap();
            *here += 1;
            all.notify_all();
            let both = here.next_multiple_of(2);
            let waited = all.wait_timeout_while(here, PATIENCE / 6, |here| *here < both);
            Ok((!waited.unwrap().1.timed_out()).into())
        })?)
    }
}

#[test]
fn two_queues_that_become_due_at_once_are_served_by_two_threads() {
    let events = EventLoop::new().unwrap();
    let (driver, mut rings, seat) = seated(&events, Pair(Arc::default()), 2);
    take(&seat, &driver);
    settle(&events);
    let workers = [(); 2].map(|()| {
        let events = events.clone();
        thread::spawn(move || events.run())
    });
    for round in 1..=5u16 {
        // One is at the poller, the other has nothing to do.
        thread::sleep(MOMENT);
        rings
            .iter_mut()
            .for_each(|ring| _ = ring.request(&[writable(0x8000, 1)]));
        (0..2).for_each(|queue| seat.look(QueueIndex(queue)));
        let begun = events.now();
        while rings.iter().any(|ring| ring.used_idx() != round) {
            assert!(events.now() - begun < PATIENCE);
            thread::yield_now();
        }
    }
    events.stop();
    workers.into_iter().for_each(|worker| worker.join().unwrap().unwrap());
    for ring in &mut rings {
        assert!(ring.used().iter().all(|&(_, met)| met == 1), "one after the other");
    }
}

#[test]
fn a_watch_whose_other_end_has_gone_is_called_by_one_thread_at_a_time() {
    let events = EventLoop::new().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let (here, most, calls) = (
        AtomicU32::new(0),
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicU32::new(0)),
    );
    let watch = {
        let (most, calls) = (Arc::clone(&most), Arc::clone(&calls));
        events.watch(near, move |_: &UnixStream| {
            most.fetch_max(here.fetch_add(1, SeqCst) + 1, SeqCst);
            thread::sleep(MOMENT);
            here.fetch_sub(1, SeqCst);
            calls.fetch_add(1, SeqCst);
        })
    };
    let _watch = watch.unwrap();
    drop(far);
    let workers = [(); 2].map(|()| {
        let events = events.clone();
        thread::spawn(move || events.run())
    });
    let begun = events.now();
    while calls.load(SeqCst) < 5 {
        assert!(events.now() - begun < PATIENCE);
        thread::sleep(MOMENT);
    }
    events.stop();
    workers.into_iter().for_each(|worker| worker.join().unwrap().unwrap());
    assert_eq!(most.load(SeqCst), 1);
}

#[test]
fn a_watch_that_panics_is_called_again() {
    let events = EventLoop::new().unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let watch = {
        let calls = Arc::clone(&calls);
        events.watch(near, move |mut near: &UnixStream| {
            near.read_exact(&mut [0]).unwrap();
            assert_ne!(calls.fetch_add(1, SeqCst), 0, "as told");
        })
    };
    let _watch = watch.unwrap();
    far.write_all(b"a").unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| events.run_once(PATIENCE))).is_err());
    far.write_all(b"b").unwrap();
    assert!(events.run_once(PATIENCE / 6).unwrap());
    assert_eq!(calls.load(SeqCst), 2);
}

#[test]
fn a_queue_that_was_kicked_before_its_device_took_the_seat_is_served_then() {
    let events = EventLoop::new().unwrap();
    let (driver, mut rings, seat) = seated(&events, Bad(Arc::new(AtomicU32::new(1))), 1);
    rings[0].request(&[writable(0x8000, 1)]);
    driver.write(QUEUE_NOTIFY, 0);
    settle(&events);
    assert_eq!(rings[0].used_idx(), 0, "nobody knows the device");
    take(&seat, &driver);
    settle(&events);
    assert_eq!(rings[0].used_idx(), 1);
}
