//! Threads that wait in the ring of their queue's requests.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read},
    ops::ControlFlow,
    os::{fd::AsRawFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::Waker,
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::{
    QueueIndex, VirtioTransport, Wait,
    block::{
        AsyncStorage, Block, BlockOptions, Buffers, Channel, Ended, FileStorage, Operation, Tag, UringOptions,
        UringStorage, UringWaiter,
    },
};
use vm_memory::{Bytes, GuestAddress};

use crate::{guest::Guest, skip::skipped, support::*, uring};

const SECTORS: usize = 256;

/// A disk of each kind, and what is to wait for its first queue.
fn disks(queues: u16) -> Vec<(Guest, UringWaiter, Box<dyn std::any::Any>)> {
    let files = uring::files(SECTORS).into_iter();
    let made = files.map_while(|(_, file, kept)| {
        let (storage, waiter) = waited_for(file)?;
        let options = BlockOptions {
            queues,
            ..BlockOptions::default()
        };
        let block = Block::with_async(storage, options).expect("valid options");
        Some((Guest::new(block, queues, u64::MAX >> 16), waiter, kept))
    });
    made.collect()
}

/// Reads sectors from `at` on, and has the device begin with that.
fn begin(guest: &mut Guest, queue: u16, at: u64) -> crate::guest::Asked {
    let asked = guest.ask(queue.into(), T_IN, at, &[], 4096);
    guest.write(0x50, queue.into());
    while guest.device.serve(QueueIndex(queue)) {}
    asked
}

fn has_it(answer: (u8, Vec<u8>), at: usize) -> bool {
    answer == (OK, pattern(SECTORS * 512)[at * 512..][..4096].to_vec())
}

#[test]
fn requests_are_begun_by_the_wait_and_nothing_else_has_to_be_waited_for() {
    for (mut guest, waiter, _kept) in disks(1) {
        let (mut asked, mut done) = (None, 0);
        let run = waiter.run(|| {
            while guest.device.serve(QueueIndex(0)) {}
            match asked.take() {
                Some(one) if guest.answer(one).0 == 0xee => asked = Some(one),
                Some(one) => {
                    assert!(has_it(guest.answer(one), done));
                    done += 1;
                }
                None => {}
            }
            if asked.is_none() {
                asked = Some(begin(&mut guest, 0, done as u64));
                assert_eq!(guest.answer(asked.unwrap()).0, 0xee, "it is left to the wait");
            }
            assert_eq!(guest.waits(0), []);
            match done {
                100 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(None),
            }
        });
        run.expect("it waits");
    }
}

#[test]
fn what_a_turn_has_begun_ends_though_the_thread_has_gone() {
    for panics in [false, true] {
        for (mut guest, waiter, _kept) in disks(1) {
            let mut asked = None;
            let run = || {
                waiter.run(|| {
                    asked = Some(begin(&mut guest, 0, 8));
                    assert!(!panics, "on purpose");
                    ControlFlow::Break(())
                })
            };
            assert_eq!(catch_unwind(AssertUnwindSafe(run)).is_err(), panics);
            let asked = asked.expect("it was asked");
            // The device rings for somebody else to look, who is told then what to wait for.
            assert!(guest.run_if_rung());
            let waits = guest.waits(0);
            assert!(
                matches!(waits[..], [Wait::Readable(_)]) || guest.answer(asked).0 == OK,
                "{waits:?}"
            );
            assert!(has_it(uring::answer(&guest, 1, asked), 8));
            // And the same thread again.
            let mut second = None;
            let run = waiter.run(|| {
                while guest.device.serve(QueueIndex(0)) {}
                let second = *second.get_or_insert_with(|| begin(&mut guest, 0, 16));
                match guest.answer(second).0 {
                    OK => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(None),
                }
            });
            run.expect("it waits");
            guest.run_if_rung();
            drop(waiter);
            assert!(guest.run_if_rung(), "so that its bell is not listened to any more");
            let third = begin(&mut guest, 0, 24);
            assert!(has_it(uring::answer(&guest, 1, third), 24));
        }
    }
}

#[test]
fn a_bell_ends_the_wait_and_so_does_time() {
    for (guest, waiter, _kept) in disks(1) {
        for with_ring in [false, true] {
            let turns = Cell::new(0);
            let run = |limit| {
                turns.set(0);
                let begun = Instant::now();
                let run = waiter.run(|| {
                    if with_ring {
                        while guest.device.serve(QueueIndex(0)) {}
                    }
                    turns.set(turns.get() + 1);
                    match begun.elapsed() < Duration::from_millis(30) {
                        true => ControlFlow::Continue(limit),
                        false => ControlFlow::Break(()),
                    }
                });
                run.expect("it waits");
            };
            run(Some(Duration::from_millis(10)));
            assert!(turns.get() <= 6, "nothing has happened, {} times", turns.get());
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(40));
                    waiter.ring().expect("a bell");
                });
                run(None);
            });
            assert!(turns.get() <= 4, "it has rung once, not {} times", turns.get());
        }
        // What came before it is waited for is not lost.
        waiter.ring().expect("a bell");
        let mut turns = 0;
        let run = waiter.run(|| {
            turns += 1;
            match turns {
                1 => ControlFlow::Continue(None),
                _ => ControlFlow::Break(()),
            }
        });
        run.expect("it waits");
        guest.reset();
    }
}

#[test]
fn a_thread_that_serves_two_queues_waits_for_one_and_is_told_of_the_other() {
    for (mut guest, waiter, _kept) in disks(2) {
        let mut asked = None;
        let run = waiter.run(|| {
            (0..2).for_each(|queue| while guest.device.serve(QueueIndex(queue)) {});
            let [first, second] =
                *asked.get_or_insert_with(|| [0, 1].map(|queue| begin(&mut guest, queue, 8 * u64::from(queue))));
            assert_eq!(guest.waits(0), []);
            let waits = guest.waits(1);
            let done = guest.answer(second).0 == OK;
            assert!(matches!(waits[..], [Wait::Readable(_)]) != done, "{waits:?}");
            match done && guest.answer(first).0 == OK {
                true => ControlFlow::Break(()),
                // As an embedder that has no other thread for it.
                false => ControlFlow::Continue(Some(Duration::from_millis(1))),
            }
        });
        run.expect("it waits");
        let [first, second] = asked.expect("they were asked");
        assert!(has_it(guest.answer(first), 0) && has_it(guest.answer(second), 8));
    }
}

/// What happens once, in the middle of a round.
type Event = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A storage in whose rounds something happens, behind the last look at the queue and before the last one at the ring.
struct Eventful(UringStorage, Event);

struct EventfulChannel(Box<dyn Channel>, Event);

impl AsyncStorage for Eventful {
    fn capacity(&self) -> io::Result<u64> {
        self.0.capacity()
    }

    fn open(&self, queue: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
        Ok(Box::new(EventfulChannel(
            self.0.open(queue, waker)?,
            Arc::clone(&self.1),
        )))
    }
}

impl Channel for EventfulChannel {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        self.0.submit(tag, operation, buffers);
    }

    fn commit(&mut self) {
        let event = self.1.lock().unwrap().take();
        event.into_iter().for_each(|happens| happens());
        self.0.commit();
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        self.0.reap(ended);
    }

    fn cancel(&mut self) {
        self.0.cancel();
    }

    fn waits(&mut self, wait: &mut dyn FnMut(Wait)) {
        self.0.waits(wait);
    }
}

/// A disk over `file` on io_uring, and who waits for its first queue.
fn waited_for(file: File) -> Option<(UringStorage, UringWaiter)> {
    let storage = UringStorage::new(FileStorage::new(file).expect("a storage"), UringOptions::default());
    let made = storage.and_then(|storage| {
        let waiter = UringWaiter::new(&storage, QueueIndex(0))?;
        Ok((storage, waiter))
    });
    match made {
        Ok(made) => Some(made),
        Err(error) => {
            skipped(format_args!("no io_uring: {error}"));
            None
        }
    }
}

/// A guest over it, each of whose kicks rings the bell.
fn rung_for(file: File) -> Option<(Guest, Arc<UringWaiter>)> {
    let (storage, waiter) = waited_for(file)?;
    let block = Block::with_async(storage, BlockOptions::default()).expect("valid options");
    let (memory, waiter) = (guest_memory(), Arc::new(waiter));
    let bell = Arc::clone(&waiter);
    let rings = Guest::rings(&memory, 1);
    let mut guest = Guest::with_doorbell(block, memory, rings, move |_| bell.ring());
    guest.start(u64::MAX >> 16);
    Some((guest, waiter))
}

/// A guest over `file`, what happens in its rounds, and who waits for its queue.
fn eventful(file: File) -> Option<(Guest, Event, Arc<UringWaiter>)> {
    let (storage, waiter) = waited_for(file)?;
    let event = Event::default();
    let storage = Eventful(storage, Arc::clone(&event));
    let block = Block::with_async(storage, BlockOptions::default()).expect("valid options");
    Some((Guest::new(block, 1, u64::MAX >> 16), event, Arc::new(waiter)))
}

#[test]
fn a_kick_that_comes_between_the_looks_at_the_queue_and_at_the_ring_is_heard() {
    for (_, file, _kept) in uring::files(SECTORS) {
        for by_another in [false, true] {
            let Some((guest, event, waiter)) = eventful(file.try_clone().expect("a file")) else {
                return;
            };
            let device = Arc::clone(&guest.device);
            let (guest, asked) = (Arc::new(Mutex::new(guest)), Arc::new(Mutex::new(None)));
            let (mut turns, begun) = (0, Instant::now());
            let run = waiter.run(|| {
                turns += 1;
                while device.serve(QueueIndex(0)) {}
                if turns < 3 {
                    return ControlFlow::Continue(Some(Duration::ZERO));
                }
                if turns == 3 {
                    let (guest, asked, waiter) = (Arc::clone(&guest), Arc::clone(&asked), Arc::clone(&waiter));
                    // The hypervisor signals the bell: the transport hears nothing of it.
                    let kick = move || {
                        *asked.lock().unwrap() = Some(guest.lock().unwrap().ask(0, T_IN, 8, &[], 4096));
                        waiter.ring().expect("a bell");
                    };
                    *event.lock().unwrap() = Some(Box::new(kick));
                    match by_another {
                        false => while device.serve(QueueIndex(0)) {},
                        true => thread::scope(|scope| _ = scope.spawn(|| device.process(QueueIndex(0)))),
                    }
                }
                let asked = asked.lock().unwrap().expect("it was asked");
                match has_it(guest.lock().unwrap().answer(asked), 8) {
                    false if begun.elapsed() < Duration::from_secs(1) => {
                        ControlFlow::Continue(Some(Duration::from_secs(2)))
                    }
                    _ => ControlFlow::Break(()),
                }
            });
            run.expect("it waits");
            assert!(begun.elapsed() < Duration::from_secs(1), "by another: {by_another}");
        }
    }
}

#[test]
fn a_bell_that_rings_during_a_turn_is_followed_by_another_turn() {
    for (guest, waiter, _kept) in disks(1) {
        for by_another in [false, true] {
            let (mut turns, begun) = (0, Instant::now());
            let run = waiter.run(|| {
                turns += 1;
                match turns {
                    1 | 2 => while guest.device.serve(QueueIndex(0)) {},
                    // Whatever the turn would have looked at for its own, it has looked at.
                    3 => {
                        waiter.ring().expect("a bell");
                        match by_another {
                            false => while guest.device.serve(QueueIndex(0)) {},
                            true => thread::scope(|scope| _ = scope.spawn(|| guest.device.process(QueueIndex(0)))),
                        }
                    }
                    _ => return ControlFlow::Break(()),
                }
                ControlFlow::Continue(Some(match turns {
                    1 | 2 => Duration::ZERO,
                    _ => Duration::from_secs(2),
                }))
            });
            run.expect("it waits");
            assert!(begun.elapsed() < Duration::from_secs(1), "by another: {by_another}");
        }
    }
}

#[test]
fn what_another_thread_begins_ends_though_who_waits_has_never_had_the_queue() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let Some((mut guest, event, waiter)) = eventful(file) else {
            return;
        };
        let asked = guest.ask(0, T_IN, 8, &[], 4096);
        let ((begins, begun), (comes, come)) = (mpsc::channel(), mpsc::channel());
        *event.lock().unwrap() = Some(Box::new(move || {
            begins.send(()).expect("somebody listens");
            come.recv().expect("somebody comes, and finds the queue taken");
            thread::sleep(Duration::from_millis(20));
        }));
        let (guest, over) = (&guest, &AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| guest.device.process(QueueIndex(0)));
            begun.recv().expect("it begins");
            let waiting = scope.spawn(|| {
                waiter.run(|| {
                    while guest.device.serve(QueueIndex(0)) {}
                    let _ = comes.send(());
                    match over.load(SeqCst) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(None),
                    }
                })
            });
            let asked_at = Instant::now();
            while guest.answer(asked).0 == 0xee && asked_at.elapsed() < Duration::from_secs(20) {
                thread::yield_now();
            }
            over.store(true, SeqCst);
            waiter.ring().expect("a bell");
            waiting.join().expect("no panic").expect("it waits");
        });
        assert!(has_it(guest.answer(asked), 8));
    }
}

/// A thread that serves a queue, and counts its turns.
fn attended(guest: &mut Guest, waiter: &UringWaiter, script: impl FnOnce(&mut Guest, &dyn Fn(&str))) {
    let (turns, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let still = |when: &str| {
        thread::sleep(Duration::from_millis(50));
        let before = turns.load(SeqCst);
        thread::sleep(Duration::from_millis(100));
        let more = turns.load(SeqCst) - before;
        assert!(more < 20, "{more} turns {when}");
    };
    thread::scope(|scope| {
        let (device, turns, stopped) = (Arc::clone(&guest.device), &turns, &stopped);
        let thread = scope.spawn(move || {
            waiter.run(|| {
                let over = stopped.load(SeqCst);
                turns.fetch_add(1, SeqCst);
                while device.serve(QueueIndex(0)) {}
                match over {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(None),
                }
            })
        });
        let run = catch_unwind(AssertUnwindSafe(|| script(guest, &still)));
        stopped.store(true, SeqCst);
        waiter.ring().expect("a bell");
        thread.join().expect("no panic").expect("it waits");
        assert!(run.is_ok());
    });
}

/// Reads, and has that be answered by whoever attends.
fn is_read(guest: &mut Guest) {
    let asked = guest.ask(0, T_IN, 8, &[], 4096);
    guest.write(0x50, 0);
    let begun = Instant::now();
    while guest.answer(asked).0 == 0xee {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody answers");
        thread::yield_now();
    }
    assert!(has_it(guest.answer(asked), 8));
}

#[test]
fn a_thread_that_waits_for_a_stopped_queue_sleeps_until_that_goes_on() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let Some((mut guest, waiter)) = rung_for(file) else {
            return;
        };
        attended(&mut guest, &waiter, |guest, still| {
            for _ in 0..2 {
                is_read(guest);
                guest.device.pause();
                assert!(guest.device.wait_until_still(Some(Duration::from_secs(60))));
                still("paused");
                // An ioeventfd's kicks: as many as the ring has no room for.
                (0..1000).for_each(|_| waiter.ring().expect("a bell"));
                still("kicked while paused");
                guest.device.resume();
                is_read(guest);
                still("with nothing to do");
            }
            for _ in 0..2 {
                is_read(guest);
                let index = GuestAddress(guest.rings[0].layout.driver_area + 2);
                guest.memory.write_obj(0x8000_u16, index).expect("in memory");
                guest.write(0x50, 0);
                still("with a broken queue");
                guest.write(0x50, 0);
                waiter.ring().expect("a bell");
                still("kicked with a broken queue");
                fill(&guest.memory, 0x1000, &[0; 0x8000]);
                guest.rings = Guest::rings(&guest.memory, 1);
                guest.start(u64::MAX >> 16);
                is_read(guest);
            }
        });
    }
}

#[test]
fn no_kick_is_lost_beside_another_thread_that_serves_and_stops_the_queue() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let Some((mut guest, waiter)) = rung_for(file) else {
            return;
        };
        let (device, go, gone) = (Arc::clone(&guest.device), AtomicUsize::new(0), AtomicUsize::new(0));
        attended(&mut guest, &waiter, |guest, _| {
            thread::scope(|scope| {
                // Once a request, some time around its kick.
                scope.spawn(|| {
                    for round in 1.. {
                        while go.load(SeqCst) < round {
                            thread::yield_now();
                        }
                        if go.load(SeqCst) == usize::MAX {
                            break;
                        }
                        (0..round * 7919 % 1000).for_each(|_| std::hint::spin_loop());
                        match round % 8 {
                            0 => {
                                device.pause();
                                assert!(device.wait_until_still(Some(Duration::from_secs(20))));
                                device.resume();
                            }
                            _ => device.process(QueueIndex(0)),
                        }
                        gone.store(round, SeqCst);
                    }
                });
                let run = catch_unwind(AssertUnwindSafe(|| {
                    let begun = Instant::now();
                    for round in 1.. {
                        let asked = guest.ask(0, T_IN, 8, &[], 4096);
                        go.store(round, SeqCst);
                        (0..round * 104_729 % 1000).for_each(|_| std::hint::spin_loop());
                        // An ioeventfd.
                        waiter.ring().expect("a bell");
                        let kicked = Instant::now();
                        while guest.answer(asked).0 == 0xee || gone.load(SeqCst) < round {
                            assert!(
                                kicked.elapsed() < Duration::from_secs(10),
                                "the kick of {round} is lost"
                            );
                            thread::yield_now();
                        }
                        guest.used(0);
                        if begun.elapsed() > Duration::from_millis(500) {
                            break;
                        }
                    }
                }));
                go.store(usize::MAX, SeqCst);
                assert!(run.is_ok());
            });
        });
    }
}

/// A thread that waits for so long at a time, and what it is told to do: to stop, at last. The turns it has come to after a while, and after
/// that.
fn waiting(guest: &Guest, waiter: &UringWaiter, limit: Duration, then: impl FnOnce()) -> (usize, usize) {
    let (turns, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            waiter.run(|| {
                let over = over.load(SeqCst);
                turns.fetch_add(1, SeqCst);
                while guest.device.serve(QueueIndex(0)) {}
                match over {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(Some(limit)),
                }
            })
        });
        let settled = || {
            thread::sleep(Duration::from_millis(100));
            turns.load(SeqCst)
        };
        let before = settled();
        then();
        let after = settled();
        over.store(true, SeqCst);
        waiter.ring().expect("a bell");
        thread.join().expect("no panic").expect("it waits");
        (before, after)
    })
}

#[test]
fn the_longest_time_is_waited_for_not_over_and_over() {
    for (guest, waiter, _kept) in disks(1) {
        let (turns, _) = waiting(&guest, &waiter, Duration::MAX, || ());
        assert!(turns < 10, "{turns}");
    }
}

#[test]
fn a_bell_that_holds_no_more_rings_all_the_same() {
    for (guest, waiter, _kept) in disks(1) {
        let most = u64::MAX - 1;
        // SAFETY: eight bytes.
        let written = unsafe { libc::write(waiter.bell().as_raw_fd(), (&raw const most).cast(), 8) };
        assert_eq!(written, 8);
        let (before, after) = waiting(&guest, &waiter, Duration::from_secs(2), || {
            waiter.ring().expect("a bell");
        });
        assert!(before < after && after < 10, "{before}, {after}");
    }
}

#[test]
fn a_waiter_is_run_by_one_thread_at_a_time() {
    for (_guest, waiter, _kept) in disks(1) {
        let mut refused = None;
        let run = waiter.run(|| {
            refused = waiter.run(|| ControlFlow::Break(())).err();
            ControlFlow::Break(())
        });
        run.expect("it waits");
        assert_eq!(refused.expect("it is run").kind(), io::ErrorKind::ResourceBusy);
        waiter.run(|| ControlFlow::Break(())).expect("nobody runs it any more");
    }
}

#[test]
fn a_queue_has_one_waiter_and_another_once_that_has_gone() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let Some((storage, waiter)) = waited_for(file) else {
            return;
        };
        let storage = Arc::new(storage);
        let block = Block::with_async(Arc::clone(&storage), BlockOptions::default()).expect("valid options");
        let mut guest = Guest::new(block, 1, u64::MAX >> 16);
        let read = |waiter: &UringWaiter, guest: &mut Guest| {
            let mut asked = None;
            let run = waiter.run(|| {
                while guest.device.serve(QueueIndex(0)) {}
                let asked = *asked.get_or_insert_with(|| begin(guest, 0, 8));
                match guest.answer(asked).0 {
                    0xee => ControlFlow::Continue(None),
                    _ => ControlFlow::Break(()),
                }
            });
            run.expect("it waits");
            assert!(has_it(guest.answer(asked.expect("it was asked")), 8));
        };
        read(&waiter, &mut guest);
        let second = || UringWaiter::new(&storage, QueueIndex(0));
        assert_eq!(second().expect_err("there is one").kind(), io::ErrorKind::ResourceBusy);
        drop(waiter);
        read(&second().expect("there is none"), &mut guest);
    }
}

#[test]
fn a_waiter_that_is_dropped_lets_go_of_its_bell() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let storage = UringStorage::new(FileStorage::new(file).expect("a storage"), UringOptions::default());
        let (bell, mut other) = UnixStream::pair().expect("sockets");
        // What it is does not matter here: that it is closed shows at its other end.
        let made = storage.and_then(|storage| {
            let waiter = UringWaiter::with_bell(&storage, QueueIndex(0), bell.into())?;
            Ok((storage, waiter))
        });
        let Ok((_storage, waiter)) = made.inspect_err(|error| skipped(format_args!("no io_uring: {error}"))) else {
            return;
        };
        other.set_nonblocking(true).expect("a socket");
        let mut byte = [0];
        let open = other.read(&mut byte).expect_err("it is open");
        assert_eq!(open.kind(), io::ErrorKind::WouldBlock);
        drop(waiter);
        // The kernel lets go of what it has listened to when it comes to that.
        other.set_nonblocking(false).expect("a socket");
        other.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        assert_eq!(other.read_to_end(&mut Vec::new()).expect("it is closed"), 0);
    }
}

#[test]
fn a_device_whose_queue_was_not_waited_for_hears_of_it_when_that_of_another_goes() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let Some((storage, waiter)) = waited_for(file) else {
            return;
        };
        let storage = Arc::new(storage);
        let [mut first, mut second] = [(); 2].map(|()| {
            let block = Block::with_async(Arc::clone(&storage), BlockOptions::default()).expect("valid options");
            let guest = Guest::new(block, 1, u64::MAX >> 16);
            guest.device.process(QueueIndex(0));
            guest
        });
        let asked = begin(&mut first, 0, 8);
        assert!(has_it(uring::answer(&first, 1, asked), 8));
        let asked = begin(&mut second, 0, 8);
        second.run_if_rung();
        drop(first);
        assert!(second.run_if_rung(), "nobody else would have it sit there");
        let run = waiter.run(|| {
            while second.device.serve(QueueIndex(0)) {}
            assert_eq!(second.waits(0), []);
            match second.answer(asked).0 {
                0xee => ControlFlow::Continue(None),
                _ => ControlFlow::Break(()),
            }
        });
        run.expect("it waits");
        assert!(has_it(second.answer(asked), 8));
    }
}

#[test]
fn who_waits_does_not_spin_while_the_round_of_another_thread_takes_its_time() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let Some((mut guest, event, waiter)) = eventful(file) else {
            return;
        };
        for _ in 0..5 {
            // It ends on a thread of the kernel's: some time around the look at the ring with which the round begins.
            let flush = guest.ask(0, T_FLUSH, 0, &[], 0);
            while guest.device.serve(QueueIndex(0)) {}
            let (begins, begun) = mpsc::channel();
            *event.lock().unwrap() = Some(Box::new(move || {
                begins.send(()).expect("somebody listens");
                thread::sleep(Duration::from_millis(100));
            }));
            let read = guest.ask(0, T_IN, 16, &[], 4096);
            let guest = &guest;
            thread::scope(|scope| {
                scope.spawn(|| guest.device.process(QueueIndex(0)));
                begun.recv().expect("it begins");
                let mut turns = 0;
                let run = waiter.run(|| {
                    turns += 1;
                    while guest.device.serve(QueueIndex(0)) {}
                    match [flush, read].iter().any(|&asked| guest.answer(asked).0 == 0xee) {
                        true => ControlFlow::Continue(Some(Duration::from_secs(10))),
                        false => ControlFlow::Break(()),
                    }
                });
                run.expect("it waits");
                assert!(turns < 1000, "{turns} turns");
            });
            assert!(has_it(guest.answer(read), 16));
        }
    }
}
