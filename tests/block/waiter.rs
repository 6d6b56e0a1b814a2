//! Threads that wait in the ring of their queue's requests.

mod beside;
mod seats;

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
        let (storage, waiter) = waited_for(file, UringOptions::default())?;
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

#[test]
fn a_ring_that_the_kernel_takes_requests_from_is_not_waited_in_and_its_queue_says_what_is() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let options = UringOptions {
            poll_submissions: Some(Duration::from_millis(10)),
            ..UringOptions::default()
        };
        let Some((storage, waiter)) = waited_for(file, options) else {
            return;
        };
        let block = Block::with_async(storage, BlockOptions::default()).expect("valid options");
        let mut guest = Guest::new(block, 1, u64::MAX >> 16);
        let mut asked = None;
        let run = waiter.run(|| {
            while guest.device.serve(QueueIndex(0)) {}
            let one = *asked.get_or_insert_with(|| begin(&mut guest, 0, 8));
            let (waits, done) = (guest.waits(0), guest.answer(one).0 == OK);
            assert!(matches!(waits[..], [Wait::Readable(_)]) != done, "{waits:?}");
            match done {
                true => ControlFlow::Break(()),
                // As an embedder that has no other thread for it.
                false => ControlFlow::Continue(Some(Duration::from_millis(1))),
            }
        });
        run.expect("it waits");
        assert!(has_it(guest.answer(asked.expect("it was asked")), 8));
    }
}

/// A disk over `file` on io_uring, and who waits for its first queue.
fn waited_for(file: File, options: UringOptions) -> Option<(UringStorage, UringWaiter)> {
    let storage = UringStorage::new(FileStorage::new(file).expect("a storage"), options);
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
    let (storage, waiter) = waited_for(file, UringOptions::default())?;
    let block = Block::with_async(storage, BlockOptions::default()).expect("valid options");
    let (memory, waiter) = (guest_memory(), Arc::new(waiter));
    let bell = Arc::clone(&waiter);
    let rings = Guest::rings(&memory, 1);
    let mut guest = Guest::with_doorbell(block, memory, rings, move |_| bell.ring());
    guest.start(u64::MAX >> 16);
    Some((guest, waiter))
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
