//! A disk in memory.

use std::{rc::Rc, sync::Arc};

use devisor::{
    event_loop::EventLoop,
    virtio::{
        VirtioDevice,
        block::{Block, BlockError, BlockOptions, MemoryStorage},
        entropy::SeededRandom,
        queue::QueueCounters,
    },
};

use super::{Guest, SEED, Work, ensure, random_bytes};
use crate::{
    completion::{Completion, Gate, completed, shuffle},
    guest::{Disk, GuestError, Sectors},
    guest_cpu::Cpu,
    guest_drivers::Sleeping,
    row::{Row, RowError, RunsOn, Setting},
    worker::Worker,
};

const ID: &str = "tour";
const SECTOR: usize = 512;
/// How the disk is written and read: in so many pieces, of so many sectors, with so many in flight.
const PIECES: usize = 256;
const PIECE_SECTORS: usize = 4;
const DEPTH: usize = 8;

pub fn run(setting: &Setting<'_>) -> Result<Row, RowError> {
    // Who completes requests is not who takes them.
    let elsewhere = EventLoop::new().map_err(RowError::set_up)?;
    let _worker = Worker::spawn(&elsewhere).map_err(RowError::set_up)?;
    setting.guest("block", |events| disk(setting.runs_on, events, &elsewhere), UseDisk)
}

/// A disk that runs on `events`, and completes its requests there or `elsewhere`.
fn disk(runs_on: RunsOn, events: &EventLoop, elsewhere: &EventLoop) -> Result<Box<dyn VirtioDevice>, BlockError> {
    let options = BlockOptions {
        id: ID.into(),
        ..BlockOptions::default()
    };
    let storage = Arc::new(MemoryStorage::new(PIECES * PIECE_SECTORS * SECTOR));
    let block = Block::new(Arc::clone(&storage), options)?;
    let completion = match runs_on {
        RunsOn::Kick => Completion::Round,
        RunsOn::Worker(completion) => completion,
    };
    let events = if completion == Completion::Thread {
        elsewhere
    } else {
        events
    };
    Ok(completed(block, storage, completion, events, Gate::default()))
}

/// Writes the whole disk in random order, flushes, reads all of it back in another order and compares.
struct UseDisk;

impl Guest for UseDisk {
    fn work<T: Sleeping>(
        self,
        transport: T,
        cpu: Rc<dyn Cpu>,
        queues: &dyn Fn() -> QueueCounters,
    ) -> Result<Work, GuestError> {
        let mut disk = Disk::over(transport, cpu)?;
        let id = disk.id()?;
        ensure(id == ID, || format!("the disk is called `{id}` and not `{ID}`"))?;
        let mut random = SeededRandom::new(SEED);
        let mut written: Vec<_> = (0..PIECES)
            .map(|piece| Sectors {
                first: piece * PIECE_SECTORS,
                data: random_bytes(&mut random, PIECE_SECTORS * SECTOR),
            })
            .collect();
        shuffle(&mut random, &mut written);
        disk.write(&mut written, DEPTH)?;
        disk.flush()?;

        shuffle(&mut random, &mut written);
        let blank = |sectors: &Sectors| Sectors {
            data: vec![0; sectors.data.len()],
            ..*sectors
        };
        let mut read: Vec<_> = written.iter().map(blank).collect();
        disk.read(&mut read, DEPTH)?;
        for (read, written) in read.iter().zip(&written) {
            ensure(read == written, || {
                format!("sectors from {} on read back as they were not written", read.first)
            })?;
        }
        Ok(Work {
            requests: disk.requests(),
            bytes: (id.len() + PIECES * PIECE_SECTORS * SECTOR) as u64,
            queues: queues(),
        })
    }
}
