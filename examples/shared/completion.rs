//! A disk of the embedder's whose requests are completed when it likes: later, out of order, or by another thread.

use std::{
    io, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use devisor::{
    event_loop::{EventLoop, LoopAlarm},
    time::{Alarm, Clock},
    virtio::{
        ChainError, DeviceId, DeviceState, DeviceStateError, Fault, Handle, QueueHandler, QueueIndex, Round,
        VirtioDevice,
        block::{Block, Storage},
        entropy::{SeededRandom, Source},
        queue::OwnedChain,
    },
};
use vm_memory::VolatileSlice;

/// When the requests of a disk are completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// In the round that finds them.
    Round,
    /// Some time after it, in order.
    Late,
    /// The same, out of order.
    Shuffled,
    /// By another thread, at any time.
    Thread,
}

impl Completion {
    /// All of them, by their names.
    pub const NAMES: [(&str, Self); 4] = [
        ("round", Self::Round),
        ("late", Self::Late),
        ("shuffled", Self::Shuffled),
        ("thread", Self::Thread),
    ];

    /// How long requests are gathered before they are completed.
    fn delay(self) -> Duration {
        match self {
            Self::Round | Self::Thread => Duration::ZERO,
            Self::Late | Self::Shuffled => Duration::from_micros(200),
        }
    }
}

/// Held by who must not see a request end meanwhile.
pub type Gate = Arc<Mutex<()>>;

/// `block`, whose data is in `storage`, with its requests completed as `completion` says: by a thread that runs `events`, while
/// nobody holds `gate`.
pub fn completed(
    block: Block,
    storage: Arc<dyn Storage>,
    completion: Completion,
    events: &EventLoop,
    gate: Gate,
) -> Box<dyn VirtioDevice> {
    if completion == Completion::Round {
        return Box::new(block);
    }
    let id = block.save();
    let DeviceState::Block(state) = id else {
        unreachable!("it is a block device")
    };
    let requests = Arc::new(Requests {
        held: Mutex::default(),
        len: block.capacity() * SECTOR,
        id: state.options.id,
        storage,
        stable: AtomicBool::new(false),
    });
    let random = Mutex::new(SeededRandom::new(0x5eed));
    let ended = Arc::clone(&requests);
    let alarm = events.alarm(move || {
        let _gate = lock(&gate);
        let mut held = mem::take(&mut *lock(&ended.held));
        if completion == Completion::Shuffled {
            shuffle(&mut lock(&random), &mut held);
        }
        held.into_iter().for_each(|chain| ended.end(chain));
    });
    Box::new(Late {
        block,
        requests,
        alarm: Arc::new(alarm),
        clock: events.clone(),
        delay: completion.delay(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts `items` into an order that hangs on `random` alone.
pub fn shuffle<T>(random: &mut SeededRandom, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let mut number = [0; 8];
        random.fill(&mut number).expect("this source does not fail");
        items.swap(last, (u64::from_le_bytes(number) % (last as u64 + 1)) as usize);
    }
}

// The device: its control face is the block device's.

struct Late {
    block: Block,
    requests: Arc<Requests>,
    alarm: Arc<LoopAlarm>,
    clock: EventLoop,
    delay: Duration,
}

const SECTOR: u64 = 512;
/// VIRTIO_BLK_F_FLUSH, and the commands that are left out here: VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES (virtio 1.2,
/// section 5.2.3).
const FLUSH: u64 = 1 << 9;
const LEFT_OUT: u64 = 1 << 13 | 1 << 14;

impl VirtioDevice for Late {
    fn device_id(&self) -> DeviceId {
        self.block.device_id()
    }

    fn features(&self) -> u64 {
        self.block.features() & !LEFT_OUT
    }

    fn queue_sizes(&self) -> &[u16] {
        self.block.queue_sizes()
    }

    fn attach(&mut self, handle: Handle) {
        self.block.attach(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.block.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.block.write_config(offset, data);
    }

    fn negotiated(&mut self, features: u64) {
        self.requests.stable.store(features & FLUSH == 0, Ordering::SeqCst);
        self.block.negotiated(features);
    }

    fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Taker {
            requests: Arc::clone(&self.requests),
            alarm: Arc::clone(&self.alarm),
            clock: self.clock.clone(),
            delay: self.delay,
        })
    }

    fn reset(&mut self) {
        self.block.reset();
    }

    fn save(&self) -> DeviceState {
        self.block.save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        self.block.restore(state)
    }
}

/// Takes each request, and has it ended by and by.
struct Taker {
    requests: Arc<Requests>,
    alarm: Arc<LoopAlarm>,
    clock: EventLoop,
    delay: Duration,
}

impl QueueHandler for Taker {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            let mut held = lock(&self.requests.held);
            held.push(chain.take());
            let first = held.len() == 1;
            drop(held);
            // The others are taken along.
            if first {
                self.alarm.set(Some(self.clock.now() + self.delay));
            }
        }
        Ok(())
    }

    /// None of those that are held has had an effect.
    fn pause(&mut self) {
        let held = mem::take(&mut *lock(&self.requests.held));
        drop(held);
    }
}

/// What is under way.
struct Requests {
    held: Mutex<Vec<OwnedChain>>,
    storage: Arc<dyn Storage>,
    /// Bytes that the guest may touch.
    len: u64,
    id: String,
    /// A write is on stable storage before it is completed: the driver does not flush.
    stable: AtomicBool,
}

// Requests and what they are answered with (virtio 1.2, section 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_ALL: u32 = 4;
const GET_ID: u32 = 8;
const ID_LEN: usize = 20;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

impl Requests {
    fn end(&self, chain: OwnedChain) {
        match self.answer(&chain) {
            Ok(written) => chain.complete(written),
            Err(_) => chain.refuse(),
        }
    }

    /// The header, data that one of the two sides has, and the status in the last byte.
    fn answer(&self, chain: &OwnedChain) -> Result<u32, ChainError> {
        let mut input = chain.reader();
        let (kind, _reserved, sector) = (
            input.read_obj::<u32>()?,
            input.read_obj::<u32>()?,
            input.read_obj::<u64>()?,
        );
        let room = chain.writable_len().checked_sub(1);
        let room = room.ok_or(ChainError::Request("a block request has no room for its status"))?;
        let mut data = vec![0; room as usize];
        let status = match kind {
            IN => status(self.transfer(sector, &mut data, |offset, rest| self.storage.read_at(offset, rest))),
            OUT => {
                let mut data = vec![0; input.remaining() as usize];
                input.read(&mut data)?;
                status(self.write(sector, &mut data))
            }
            FLUSH_ALL => status(self.storage.flush()),
            GET_ID if data.len() >= ID_LEN => {
                let len = self.id.len().min(ID_LEN);
                data[..len].copy_from_slice(&self.id.as_bytes()[..len]);
                OK
            }
            GET_ID => IO_ERROR,
            _ => UNSUPPORTED,
        };
        let mut output = chain.writer();
        output.write(&data)?;
        output.write(&[status])?;
        Ok(chain.writable_len())
    }

    fn write(&self, sector: u64, data: &mut [u8]) -> io::Result<()> {
        self.transfer(sector, data, |offset, rest| self.storage.write_at(offset, rest))?;
        match self.stable.load(Ordering::SeqCst) {
            true => self.storage.flush(),
            false => Ok(()),
        }
    }

    /// Moves all of `data` by as many calls of `step` as it takes.
    fn transfer(
        &self,
        sector: u64,
        data: &mut [u8],
        step: impl Fn(u64, &[VolatileSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let len = data.len() as u64;
        let offset = sector.checked_mul(SECTOR).filter(|_| len.is_multiple_of(SECTOR));
        let offset = offset.filter(|offset| offset.checked_add(len).is_some_and(|end| end <= self.len));
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        let mut moved = 0;
        while moved < data.len() {
            match step(offset + moved as u64, &[VolatileSlice::from(&mut data[moved..])]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => moved += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn status(done: io::Result<()>) -> u8 {
    match done {
        Ok(()) => OK,
        Err(_) => IO_ERROR,
    }
}
