//! Other threads that serve the queue as well.

use super::*;

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

/// A guest over `file`, what happens in its rounds, and who waits for its queue.
fn eventful(file: File) -> Option<(Guest, Event, Arc<UringWaiter>)> {
    let (storage, waiter) = waited_for(file, UringOptions::default())?;
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
