//! A disk that is saved in the middle of its requests, and restored into a device on the same storage: each request is answered once.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::{
    VirtioTransport,
    block::{Abilities, Block, BlockOptions, MemoryStorage, Pool, Storage},
};
use vm_memory::VolatileSlice;

use crate::{
    guest::{Asked, Guest},
    rest,
    support::*,
};

const QUEUES: u16 = 2;
/// Blocks of each queue: half of them are written in a round, the others read.
const BLOCKS: u64 = 16;
const BLOCK: usize = 4096;
/// Sectors of the disk.
pub const SECTORS: usize = QUEUES as usize * BLOCKS as usize * BLOCK / 512;

/// What a block has been written with.
fn contents(queue: usize, block: u64, round: u8) -> Vec<u8> {
    let seed = round as usize * 31 + queue * 17 + block as usize;
    (0..BLOCK).map(|at| (seed + at / 512) as u8).collect()
}

fn sector(queue: usize, block: u64) -> u64 {
    (queue as u64 * BLOCKS + block) * (BLOCK / 512) as u64
}

fn disk(make: &mut impl FnMut(BlockOptions) -> Block) -> Block {
    make(BlockOptions {
        queues: QUEUES,
        ..BlockOptions::default()
    })
}

/// So many times: asks, stops in the middle, and goes on with the device that `make` makes then. `wait` runs a device when something
/// of it may have ended. How many requests were under way or not begun with when they moved.
pub fn moves(rounds: u8, mut make: impl FnMut(BlockOptions) -> Block, wait: impl Fn(&Guest)) -> usize {
    let mut guest = Guest::new(disk(&mut make), QUEUES, u64::MAX >> 16);
    let mut model = vec![[0_u8; BLOCKS as usize]; QUEUES.into()];
    let mut carried = 0;
    for round in 1..=rounds {
        let mut asked: Vec<(usize, Asked, Option<Vec<u8>>)> = Vec::new();
        for (queue, blocks) in model.iter_mut().enumerate() {
            for block in 0..BLOCKS {
                // Each that is read was written in the round before.
                if (block ^ u64::from(round)).is_multiple_of(2) {
                    let bytes = contents(queue, block, round);
                    asked.push((queue, guest.ask(queue, T_OUT, sector(queue, block), &bytes, 0), None));
                    blocks[block as usize] = round;
                } else {
                    let expected = contents(queue, block, blocks[block as usize]);
                    let read = guest.ask(queue, T_IN, sector(queue, block), &[], BLOCK);
                    asked.push((queue, read, (blocks[block as usize] != 0).then_some(expected)));
                }
            }
            guest.kick(queue as u32);
        }
        let under_way = |guest: &Guest| {
            asked
                .iter()
                .filter(|(_, asked, _)| guest.answer(*asked).0 == 0xee)
                .count()
        };
        if round % 3 == 0 {
            wait(&guest);
        }
        guest.device.pause();
        let begun = Instant::now();
        while !guest.device.is_still() {
            wait(&guest);
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not come to rest");
        }
        carried += under_way(&guest);
        let state = rest::at_rest(&*guest.device);
        let before: Vec<_> = (0..usize::from(QUEUES)).map(|queue| guest.used(queue)).collect();
        let (memory, rings) = (Arc::clone(&guest.memory), std::mem::take(&mut guest.rings));
        let asks = guest.asks();
        drop(guest);

        guest = Guest::plugged(disk(&mut make), memory, rings);
        guest.go_on(asks);
        guest.device.restore(&state).expect("its own state");
        guest.device.resume();
        guest.device.run();
        let begun = Instant::now();
        while under_way(&guest) != 0 {
            wait(&guest);
            assert!(begun.elapsed() < Duration::from_secs(60), "requests are lost");
        }
        for (queue, mut used) in before.into_iter().enumerate() {
            used.extend(guest.used(queue));
            let mut heads: Vec<_> = asked
                .iter()
                .filter(|(of, ..)| *of == queue)
                .map(|(_, asked, _)| asked.head)
                .collect();
            heads.sort_unstable();
            used.sort_unstable();
            assert_eq!(used, heads, "each once, in round {round}");
        }
        for (queue, asked, expected) in asked {
            let (status, data) = guest.answer(asked);
            assert_eq!(status, OK);
            if let Some(expected) = expected {
                assert!(data == expected, "queue {queue} in round {round}");
            }
        }
    }
    carried
}

/// A storage that takes its time.
struct Slow(MemoryStorage);

impl Storage for Slow {
    fn capacity(&self) -> io::Result<u64> {
        self.0.capacity()
    }

    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        thread::sleep(Duration::from_micros(300));
        self.0.read_at(offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        thread::sleep(Duration::from_micros(300));
        self.0.write_at(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_disk_on_threads_moves_with_requests_under_way() {
    let pool = Pool::new();
    let storage = Arc::new(Slow(MemoryStorage::new(SECTORS * 512)));
    thread::scope(|scope| {
        let workers = [(); 3].map(|()| scope.spawn(|| pool.run()));
        let wait = |guest: &Guest| {
            thread::sleep(Duration::from_micros(200));
            guest.run_if_rung();
        };
        let make = |options| Block::with_async(pool.storage(Arc::clone(&storage)), options).expect("valid options");
        let carried = moves(40, make, wait);
        eprintln!(
            "{carried} of {} requests moved",
            40 * usize::from(QUEUES) * BLOCKS as usize
        );
        assert!(carried > 100, "{carried} were under way");
        pool.close();
        workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    });
}

#[cfg(all(target_os = "linux", feature = "io-uring"))]
#[test]
fn a_disk_on_io_uring_moves_with_requests_under_way() {
    use crate::{skip::skipped, uring};
    use devisor::virtio::block::{FileStorage, UringOptions, UringStorage};

    for (name, file, _kept) in uring::files(SECTORS) {
        let storage = |file: &std::fs::File| {
            let file = FileStorage::new(file.try_clone().expect("another handle")).expect("a storage");
            UringStorage::new(file, UringOptions::default())
        };
        if let Err(error) = storage(&file) {
            return skipped(format_args!("no io_uring: {error}"));
        }
        let make = |options| Block::with_async(storage(&file).expect("as before"), options).expect("valid options");
        let moved = moves(60, make, |guest| uring::wait(guest, QUEUES));
        eprintln!(
            "{name}: {moved} of {} requests moved",
            60 * usize::from(QUEUES) * BLOCKS as usize
        );
    }
}
