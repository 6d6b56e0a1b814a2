//! Any storage on threads of the embedder's.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use devisor::virtio::{
    VirtioTransport,
    block::{Block, BlockOptions, MemoryStorage, Pool, Storage},
};
use vm_memory::VolatileSlice;

use crate::{guest::Guest, support::*};

fn over(pool: &Pool, storage: impl Storage + 'static, queues: u16) -> Guest {
    let options = BlockOptions {
        queues,
        ..BlockOptions::default()
    };
    let block = Block::with_async(pool.storage(storage), options).expect("valid options");
    Guest::new(block, queues, u64::MAX >> 16)
}

/// Runs the device as it asks for until so many requests of a queue have come back.
fn until_used(guest: &mut Guest, queue: usize, count: usize) -> Vec<u16> {
    let mut used = Vec::new();
    while used.len() < count {
        if !guest.run_if_rung() {
            thread::sleep(Duration::from_micros(50));
        }
        used.extend(guest.used(queue));
    }
    used
}

/// Reads wait for each other: so many are under way at a time.
struct Meeting {
    there: Mutex<usize>,
    all: usize,
    met: Condvar,
}

impl Storage for Meeting {
    fn capacity(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }

    fn read_at(&self, _: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut there = self.there.lock().unwrap();
        *there += 1;
        self.met.notify_all();
        let waited = self
            .met
            .wait_timeout_while(there, Duration::from_secs(60), |there| *there < self.all);
        assert!(!waited.unwrap().1.timed_out(), "they are alone");
        Ok(buffers.iter().map(VolatileSlice::len).sum())
    }

    fn write_at(&self, _: u64, _: &[VolatileSlice<'_>]) -> io::Result<usize> {
        panic!("of all storages, this one does panic");
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn as_many_requests_are_under_way_as_there_are_threads() {
    let pool = Pool::new();
    let storage = Meeting {
        there: Mutex::new(0),
        all: 4,
        met: Condvar::new(),
    };
    let mut guest = over(&pool, storage, 1);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| pool.run());
        }
        let asked = [0, 1, 2, 3].map(|at| guest.ask(0, T_IN, at, &[], 512));
        guest.kick(0);
        until_used(&mut guest, 0, 4);
        assert!(asked.iter().all(|&asked| guest.answer(asked).0 == OK));
        pool.close();
    });
}

#[test]
fn a_storage_that_panics_costs_its_request_and_its_thread() {
    let pool = Pool::new();
    let storage = Meeting {
        there: Mutex::new(0),
        all: 1,
        met: Condvar::new(),
    };
    let mut guest = over(&pool, storage, 1);
    let asked = guest.ask(0, T_OUT, 0, &[1; 512], 0);
    guest.kick(0);
    thread::scope(|scope| assert!(scope.spawn(|| pool.run_one()).join().is_err()));
    assert!(guest.run_if_rung());
    assert_eq!(guest.answer(asked).0, IOERR);
    let asked = guest.ask(0, T_IN, 0, &[], 512);
    guest.kick(0);
    assert!(pool.run_one() && guest.run_if_rung());
    assert_eq!(guest.answer(asked).0, OK);
}

#[test]
fn an_executor_is_told_of_each_job() {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let pool = Pool::on_executor(move || _ = count.fetch_add(1, SeqCst));
    let mut guest = over(&pool, MemoryStorage::from(pattern(64 * 512)), 1);
    let asked = [3, 4, 5].map(|at| guest.ask(0, T_IN, at, &[], 512));
    guest.kick(0);
    assert_eq!(told.load(SeqCst), 3);
    assert!(pool.run_one() && pool.run_one() && pool.run_one() && !pool.run_one());
    assert!(guest.run_if_rung());
    assert_eq!(guest.used(0), asked.map(|asked| asked.head));
}

#[test]
fn what_no_thread_has_begun_with_is_given_back_when_its_queue_stops() {
    let pool = Pool::new();
    let mut guest = over(&pool, MemoryStorage::from(pattern(64 * 512)), 2);
    let asked = guest.ask(0, T_IN, 3, &[], 512);
    guest.ask(1, T_IN, 4, &[], 512);
    guest.kick(0);
    guest.kick(1);
    guest.stop_queue(1);
    assert!(pool.run_one(), "that of the other queue");
    assert!(!pool.run_one());
    assert!(guest.run_if_rung());
    assert_eq!((guest.used(0), guest.used(1)), (vec![asked.head], vec![]));

    guest.ask(0, T_IN, 3, &[], 512);
    guest.kick(0);
    guest.device.pause();
    assert!(guest.device.is_still() && !pool.run_one());
    guest.device.resume();
    guest.device.run();
    assert!(pool.run_one());
}

#[test]
fn a_closed_pool_does_what_it_has_and_fails_the_rest() {
    let pool = Pool::new();
    let mut guest = over(&pool, MemoryStorage::from(pattern(64 * 512)), 1);
    let before = guest.ask(0, T_IN, 0, &[], 512);
    guest.kick(0);
    pool.close();
    pool.run();
    let after = guest.ask(0, T_IN, 0, &[], 512);
    guest.kick(0);
    guest.device.run();
    assert_eq!((guest.answer(before).0, guest.answer(after).0), (OK, IOERR));
}

#[test]
fn two_queues_write_at_the_same_time_and_a_flush_covers_both() {
    let pool = Pool::new();
    let storage = Arc::new(MemoryStorage::new(256 * 512));
    let mut guest = over(&pool, Arc::clone(&storage), 2);
    thread::scope(|scope| {
        let workers = [(); 3].map(|()| scope.spawn(|| pool.run()));
        for round in 0..40_u8 {
            for queue in 0..2 {
                for request in 0..8 {
                    let sector = u64::from(request) * 16 + queue as u64 * 8;
                    guest.ask(queue, T_OUT, sector, &[round + 1 + request; 4096], 0);
                }
                guest.kick(queue as u32);
            }
            until_used(&mut guest, 0, 8);
            until_used(&mut guest, 1, 8);
            let flush = guest.ask(0, T_FLUSH, 0, &[], 0);
            guest.kick(0);
            until_used(&mut guest, 0, 1);
            assert_eq!(guest.answer(flush).0, OK);
            let contents = storage.contents();
            for sector in 0..128_usize {
                let expected = round + 1 + (sector / 16) as u8;
                assert!(contents[sector * 512..][..512].iter().all(|&byte| byte == expected));
            }
        }
        pool.close();
        workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    });
}
