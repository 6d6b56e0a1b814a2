//! Disks on the ready-made event loop, with threads that serve them while others pause, reset and save them.

use std::{sync::Arc, thread, time::Duration};

use devisor::{
    event_loop::EventLoop,
    rate::Rate,
    virtio::{
        VirtioTransport,
        block::{
            Allowance, AsyncStorage, Block, BlockOptions, Failing, Faulty, Limited, MemoryStorage, Operation, Pool,
        },
    },
};

use crate::{guest::Guest, support::*};

const QUEUES: u16 = 2;
const SECTORS: usize = 256;

/// A guest of `storage` whose queues `events` serves, and which `script` drives meanwhile.
fn on_events(storage: impl AsyncStorage + 'static, events: &EventLoop, script: impl FnOnce(&mut Guest)) {
    let options = BlockOptions {
        queues: QUEUES,
        ..BlockOptions::default()
    };
    let block = Block::with_async(storage, options).expect("valid options");
    let memory = guest_memory();
    let rings = Guest::rings(&memory, QUEUES);
    let seat = events.seat();
    let mut guest = Guest::with_doorbell(block, memory, rings, seat.clone());
    seat.take(&(guest.device.clone() as Arc<dyn VirtioTransport>));
    thread::scope(|scope| {
        let workers = [(); 2].map(|()| scope.spawn(|| events.run()));
        guest.start(u64::MAX >> 16);
        script(&mut guest);
        drop(guest);
        events.stop();
        for worker in workers {
            worker.join().expect("no device panicked").expect("the poller works");
        }
    });
}

/// Writes and reads on both queues, with pauses and saves in between; then a reset with requests under way.
fn busy(guest: &mut Guest) {
    for round in 1..12_u8 {
        let mut writes = Vec::new();
        for queue in 0..usize::from(QUEUES) {
            for at in 0..8_u64 {
                let sector = at * 16 + queue as u64 * 8;
                writes.push(guest.ask(queue, T_OUT, sector, &[round + at as u8; 4096], 0));
            }
            guest.write(0x50, queue as u32);
        }
        if round % 3 == 0 {
            guest.device.pause();
            assert!(guest.device.wait_until_still(Some(Duration::from_secs(60))));
            guest.device.save().expect("it is still");
            guest.device.resume();
        }
        let wait = |guest: &Guest, asked| {
            while guest.answer(asked).0 == 0xee {
                thread::sleep(Duration::from_micros(100));
            }
            guest.answer(asked)
        };
        for asked in writes {
            assert_eq!(wait(guest, asked).0, OK);
        }
        for at in 0..8_u64 {
            let queue = at as usize % usize::from(QUEUES);
            let read = guest.ask(queue, T_IN, at * 16, &[], 8192);
            guest.write(0x50, queue as u32);
            assert_eq!(wait(guest, read), (OK, vec![round + at as u8; 8192]));
        }
    }
    for at in 0..16 {
        guest.ask(0, T_IN, at * 8, &[], 4096);
    }
    guest.write(0x50, 0);
    guest.reset();
    assert_eq!(guest.status(), 0);
}

#[test]
fn a_disk_on_threads_is_paused_saved_and_reset_while_it_is_busy() {
    let events = EventLoop::new().expect("a poller");
    let pool = Pool::new();
    thread::scope(|scope| {
        let workers = [(); 2].map(|()| scope.spawn(|| pool.run()));
        on_events(pool.storage(MemoryStorage::from(pattern(SECTORS * 512))), &events, busy);
        pool.close();
        workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    });
}

#[test]
fn requests_that_wait_for_their_time_are_served_when_it_has_come() {
    let events = EventLoop::new().expect("a poller");
    let clock = Arc::new(events.clone());
    let pool = Pool::new();
    thread::scope(|scope| {
        let workers = [(); 2].map(|()| scope.spawn(|| pool.run()));
        let storage = pool.storage(MemoryStorage::from(pattern(SECTORS * 512)));
        let slow = |operation: &Operation, _| match operation {
            Operation::Write { .. } => Failing::Delayed(Duration::from_millis(2)),
            _ => Failing::Short(3000),
        };
        let faulty = Faulty::new(storage, clock.clone(), slow);
        let allowance = Allowance {
            operations: Some(Rate {
                per_second: 4000,
                burst: 20,
            }),
            bytes: None,
        };
        on_events(
            Limited::new(faulty, allowance, clock.clone()).expect("a rate"),
            &events,
            busy,
        );
        pool.close();
        workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    });
}

#[cfg(all(target_os = "linux", feature = "io-uring"))]
#[test]
fn a_disk_on_io_uring_is_paused_saved_and_reset_while_it_is_busy() {
    use std::os::unix::fs::OpenOptionsExt;

    use devisor::virtio::block::{FileStorage, UringOptions, UringStorage};

    for flags in [0, libc::O_DIRECT] {
        let file = crate::host_file::Temporary::new(&pattern(SECTORS * 512));
        let mut options = std::fs::OpenOptions::new();
        let open = options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&file)
            .expect("it is there");
        let storage = match UringStorage::new(FileStorage::new(open).expect("a storage"), UringOptions::default()) {
            Ok(storage) => storage,
            Err(error) => return crate::skip::skipped(format_args!("no io_uring: {error}")),
        };
        on_events(storage, &EventLoop::new().expect("a poller"), busy);
    }
}

#[cfg(all(target_os = "linux", feature = "io-uring"))]
#[test]
fn a_disk_whose_threads_wait_in_its_rings_is_paused_saved_and_reset_while_it_is_busy() {
    use std::{
        ops::ControlFlow,
        os::unix::fs::OpenOptionsExt,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
    };

    use devisor::virtio::{
        QueueIndex,
        block::{FileStorage, UringOptions, UringStorage, UringWaiter},
    };

    for flags in [0, libc::O_DIRECT] {
        let file = crate::host_file::Temporary::new(&pattern(SECTORS * 512));
        let mut options = std::fs::OpenOptions::new();
        let open = options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&file)
            .expect("it is there");
        let storage = UringStorage::new(FileStorage::new(open).expect("a storage"), UringOptions::default());
        let made = storage.and_then(|storage| {
            let waiter = |queue| UringWaiter::new(&storage, QueueIndex(queue));
            let (first, second) = (waiter(0)?, waiter(1)?);
            Ok((storage, first, second))
        });
        let (storage, waiters) = match made {
            Ok((storage, first, second)) => (storage, Arc::new([first, second])),
            Err(error) => return crate::skip::skipped(format_args!("no io_uring: {error}")),
        };
        let options = BlockOptions {
            queues: QUEUES,
            ..BlockOptions::default()
        };
        let block = Block::with_async(storage, options).expect("valid options");
        let memory = guest_memory();
        let rings = Guest::rings(&memory, QUEUES);
        let bells = Arc::clone(&waiters);
        let ring = move |queue: QueueIndex| bells[usize::from(queue.0)].ring();
        let mut guest = Guest::with_doorbell(block, memory, rings, ring);
        let stopped = AtomicBool::new(false);
        thread::scope(|scope| {
            let threads = [0, 1].map(|queue| {
                let (device, waiter, stopped) = (guest.device.clone(), &waiters[usize::from(queue)], &stopped);
                scope.spawn(move || {
                    waiter.run(|| {
                        while device.serve(QueueIndex(queue)) {}
                        match stopped.load(SeqCst) {
                            true => ControlFlow::Break(()),
                            false => ControlFlow::Continue(None),
                        }
                    })
                })
            });
            guest.start(u64::MAX >> 16);
            busy(&mut guest);
            // Another driver, on new rings of the same waiters.
            fill(&guest.memory, 0x1000, &[0; 0x1_0000]);
            guest.rings = Guest::rings(&guest.memory, QUEUES);
            guest.start(u64::MAX >> 16);
            busy(&mut guest);
            stopped.store(true, SeqCst);
            waiters.iter().for_each(|waiter| waiter.ring().expect("a bell"));
            for thread in threads {
                thread.join().expect("no panic").expect("the kernel waits");
            }
        });
    }
}
