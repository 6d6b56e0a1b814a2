//! A block device on a ring of its own, and a storage that keeps a log and misbehaves on demand.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{
    io,
    marker::PhantomData,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use devisor::{
    memory::Memory,
    virtio::{
        DeviceState, DeviceStateError, Fault, Queue, QueueHandler, QueueIndex, VirtioDevice,
        block::{
            Abilities, Block, BlockOptions, BlockState, Lifetime, Limits, MemoryStorage, RangeLimits, Storage,
            Synchronous,
        },
        features,
        queue::{QueueCounters, Rest, Silent},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

use crate::ring::{Buffer, Ring, readable, writable};

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_GET_LIFETIME: u32 = 10;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;
pub const T_SECURE_ERASE: u32 = 14;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

pub const F_RO: u64 = 1 << 5;
pub const F_TOPOLOGY: u64 = 1 << 10;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_CONFIG_WCE: u64 = 1 << 11;
pub const F_MQ: u64 = 1 << 12;
pub const F_DISCARD: u64 = 1 << 13;
pub const F_WRITE_ZEROES: u64 = 1 << 14;
pub const F_LIFETIME: u64 = 1 << 15;
pub const F_SECURE_ERASE: u64 = 1 << 16;

/// Where a request's parts are in guest memory.
pub const HEADER: u64 = 0x2_0000;
pub const STATUS: u64 = 0x2_1000;
pub const DATA: u64 = 0x3_0000;

pub const MEMORY_SIZE: u64 = 16 << 20;

pub fn guest_memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE as usize)]).expect("guest memory"))
}

pub fn fill(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) {
    memory
        .write_slice(bytes, GuestAddress(address))
        .expect("in guest memory");
}

pub fn get(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .expect("in guest memory");
    bytes
}

pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    // The reserved field, which was a priority once.
    bytes[4..8].copy_from_slice(&[0x5a; 4]);
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// A segment of a discard or write zeroes request.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// Bytes that differ from their neighbours and from sector to sector; never zero.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8 + 1).collect()
}

/// What a storage was asked to do, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Read(u64, usize),
    Write(u64, usize),
    Flush,
    Discard(u64, u64),
    WriteZeroes(u64, u64, bool),
    SecureErase(u64, u64),
}

/// A write that is stable before it is completed.
pub const WRITE_THEN_FLUSH: [Call; 2] = [Call::Write(0, 512), Call::Flush];

/// A storage in memory that keeps a log and misbehaves on demand.
#[derive(Default)]
pub struct Rigged {
    pub data: MemoryStorage,
    pub read_only: AtomicBool,
    pub no_discard: AtomicBool,
    pub secure_erase: AtomicBool,
    pub lifetime: Mutex<Option<Lifetime>>,
    limits: Limits,
    /// Transfers move this many bytes at most.
    pub at_most: AtomicUsize,
    /// Every so manieth transfer is interrupted before it begins; zero is never.
    pub interrupt_every: AtomicUsize,
    transfers: AtomicUsize,
    /// Calls until one fails; zero is never.
    fail_in: AtomicUsize,
    /// What a transfer claims to have moved.
    lie: Mutex<Option<usize>>,
    log: Mutex<Vec<Call>>,
    watch: Mutex<Option<(Arc<GuestMemoryMmap>, u64)>>,
    used_idx: Mutex<Option<u16>>,
}

impl Rigged {
    /// So many sectors of [`pattern`].
    pub fn new(sectors: usize) -> Self {
        Self {
            data: pattern(sectors * 512).into(),
            at_most: AtomicUsize::new(usize::MAX),
            ..Self::default()
        }
    }

    /// So many sectors, and these limits.
    pub fn with_limits(sectors: usize, limits: Limits) -> Self {
        Self {
            limits,
            ..Self::new(sectors)
        }
    }

    /// The `nth` call from now fails.
    pub fn fail_call(&self, nth: usize) {
        self.fail_in.store(nth, Ordering::SeqCst);
    }

    pub fn lie(&self, moved: usize) {
        *self.lie.lock().unwrap() = Some(moved);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.log.lock().unwrap().clone()
    }

    pub fn forget_calls(&self) {
        self.log.lock().unwrap().clear();
    }

    /// Notes the used index at `address` in each flush.
    pub fn watch_flush(&self, memory: &Arc<GuestMemoryMmap>, address: u64) {
        *self.watch.lock().unwrap() = Some((Arc::clone(memory), address));
    }

    pub fn used_idx_at_flush(&self) -> Option<u16> {
        *self.used_idx.lock().unwrap()
    }

    fn note(&self, call: Call) -> io::Result<()> {
        self.log.lock().unwrap().push(call);
        match self.fail_in.load(Ordering::SeqCst) {
            0 => Ok(()),
            left => {
                self.fail_in.store(left - 1, Ordering::SeqCst);
                if left == 1 {
                    Err(io::Error::other("rigged"))
                } else {
                    Ok(())
                }
            }
        }
    }

    /// The part of `buffers` that a transfer is allowed to move.
    fn allowed<'a>(&self, buffers: &[VolatileSlice<'a>]) -> io::Result<Vec<VolatileSlice<'a>>> {
        let every = self.interrupt_every.load(Ordering::SeqCst);
        let transfer = self.transfers.fetch_add(1, Ordering::SeqCst);
        if every != 0 && transfer.is_multiple_of(every) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut left = self.at_most.load(Ordering::SeqCst);
        let cut = buffers.iter().map(|buffer| {
            let len = buffer.len().min(left);
            left -= len;
            buffer.subslice(0, len).expect("a part")
        });
        Ok(cut.collect())
    }

    fn told(&self, moved: usize) -> usize {
        self.lie.lock().unwrap().unwrap_or(moved)
    }
}

fn total(buffers: &[VolatileSlice<'_>]) -> usize {
    buffers.iter().map(VolatileSlice::len).sum()
}

impl Storage for Rigged {
    fn capacity(&self) -> io::Result<u64> {
        self.data.capacity()
    }

    fn abilities(&self) -> Abilities {
        let discard = !self.no_discard.load(Ordering::SeqCst);
        Abilities {
            read_only: self.read_only.load(Ordering::SeqCst),
            discard,
            unmap: discard,
            secure_erase: self.secure_erase.load(Ordering::SeqCst),
            ..Abilities::default()
        }
    }

    fn lifetime(&self) -> Option<Lifetime> {
        *self.lifetime.lock().unwrap()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.note(Call::Read(offset, total(buffers)))?;
        let buffers = self.allowed(buffers)?;
        Ok(self.told(self.data.read_at(offset, &buffers)?))
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.note(Call::Write(offset, total(buffers)))?;
        let buffers = self.allowed(buffers)?;
        Ok(self.told(self.data.write_at(offset, &buffers)?))
    }

    fn flush(&self) -> io::Result<()> {
        if let Some((memory, address)) = &*self.watch.lock().unwrap() {
            *self.used_idx.lock().unwrap() = memory.read_obj(GuestAddress(*address)).ok();
        }
        self.note(Call::Flush)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Call::Discard(offset, len))?;
        self.data.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.note(Call::WriteZeroes(offset, len, may_unmap))?;
        self.data.write_zeroes(offset, len, may_unmap)
    }

    fn secure_erase(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Call::SecureErase(offset, len))?;
        self.data.write_zeroes(offset, len, true)
    }
}

/// A disk over `storage` as it was saved: made with as many queues, then restored.
pub fn restore(storage: impl Storage + 'static, state: &BlockState) -> Result<Block, DeviceStateError> {
    let mut block = Block::new(storage, BlockOptions::default()).expect("valid options");
    block.restore(&DeviceState::Block(state.clone()))?;
    Ok(block)
}

/// The state of a disk.
pub fn saved(block: &Block) -> BlockState {
    match block.save() {
        DeviceState::Block(state) => state,
        other => panic!("{other:?}"),
    }
}

/// How a block device is put over a storage.
pub trait How {
    fn block(storage: Arc<Rigged>, options: BlockOptions) -> Block;
}

/// As one that answers at once.
pub struct AtOnce;

impl How for AtOnce {
    fn block(storage: Arc<Rigged>, options: BlockOptions) -> Block {
        Block::new(storage, options).expect("valid options")
    }
}

/// As one whose requests end later.
pub struct Later;

impl How for Later {
    fn block(storage: Arc<Rigged>, options: BlockOptions) -> Block {
        Block::with_async(Synchronous::from(storage), options).expect("valid options")
    }
}

pub fn small_segments() -> BlockOptions {
    let limits = Some(RangeLimits {
        max_sectors: 4,
        max_segments: 3,
    });
    BlockOptions {
        discard: limits,
        write_zeroes: limits,
        secure_erase: limits,
        ..BlockOptions::default()
    }
}

/// One that answers at once.
pub type Disk = Driven<AtOnce>;

/// A block device without a transport, with a queue of 256 and a driver that does as it is told.
pub struct Driven<H> {
    pub memory: Arc<GuestMemoryMmap>,
    pub ring: Ring,
    pub storage: Arc<Rigged>,
    pub block: Block,
    queue: Queue,
    handler: Option<Box<dyn QueueHandler>>,
    how: PhantomData<H>,
}

impl<H: How> Driven<H> {
    /// So many sectors, and default options.
    pub fn new(sectors: usize) -> Self {
        Self::over(Arc::new(Rigged::new(sectors)), BlockOptions::default())
    }

    /// 16 sectors, and these options.
    pub fn with(options: BlockOptions) -> Self {
        Self::over(Arc::new(Rigged::new(16)), options)
    }

    pub fn over(storage: Arc<Rigged>, options: BlockOptions) -> Self {
        let block = H::block(Arc::clone(&storage), options);
        Self::from_block(block, storage)
    }

    /// With everything negotiated that the device offers.
    pub fn from_block(block: Block, storage: Arc<Rigged>) -> Self {
        let memory = guest_memory();
        let ring = Ring::new(&memory, 0x1000, 256);
        let accepted = features::COMMON & !features::EVENT_IDX;
        let space = Memory::new(Arc::clone(&memory));
        let queue = Queue::new(QueueIndex(0), 256, ring.layout, accepted, &space, Arc::new(Silent));
        let mut disk = Self {
            ring,
            storage,
            block,
            queue: queue.expect("a valid layout"),
            handler: None,
            how: PhantomData,
            memory,
        };
        disk.activate(disk.offered());
        disk
    }

    pub fn offered(&self) -> u64 {
        self.block.features()
    }

    pub fn activate(&mut self, features: u64) {
        self.block.negotiated(features);
        self.handler = Some(self.block.start(QueueIndex(0)));
    }

    pub fn reset(&mut self) {
        self.handler = None;
        self.block.reset();
    }

    pub fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xee; len];
        self.block.read_config(offset, &mut data);
        data
    }

    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.block.write_config(offset, data);
    }

    pub fn contents(&self) -> Vec<u8> {
        self.storage.data.contents()
    }

    pub fn fill(&self, address: u64, bytes: &[u8]) {
        fill(&self.memory, address, bytes);
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        get(&self.memory, address, len)
    }

    pub fn put_header(&self, kind: u32, sector: u64) {
        self.fill(HEADER, &header(kind, sector));
    }

    pub fn status(&self) -> u8 {
        self.get(STATUS, 1)[0]
    }

    fn round(&mut self) -> Result<Rest, Fault> {
        let mut round = self.queue.round()?;
        self.handler.as_mut().expect("a driver").serve(&mut round)?;
        Ok(round.end()?)
    }

    /// Has the device look at its queue. The used lengths of what it answered.
    pub fn process(&mut self) -> Result<Vec<u32>, Fault> {
        // A request of many bytes ends its round; nothing of the kind comes twice.
        if self.round()? == Rest::More {
            assert_eq!(self.round()?, Rest::Drained);
        }
        Ok(self.ring.used().into_iter().map(|(_, len)| len).collect())
    }

    pub fn counters(&self) -> QueueCounters {
        self.queue.counters()
    }

    /// Runs one chain. Its used length.
    pub fn run(&mut self, buffers: &[Buffer]) -> u32 {
        self.fill(STATUS, &[0xee]);
        self.ring.request(buffers);
        let lens = self.process().expect("a ring that keeps the rules");
        assert_eq!(lens.len(), 1);
        lens[0]
    }

    /// Runs one request with `data` for the device and `room` for its answer, both in buffers of 1000 bytes. The
    /// status and the answer.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> (u8, Vec<u8>) {
        let pieces = vec![1000; (data.len() + room) / 1000];
        self.request_cut(kind, sector, data, room, &[&[16], &pieces[..]].concat())
    }

    /// The same in buffers of these lengths, and of what is left after them.
    pub fn request_cut(&mut self, kind: u32, sector: u64, data: &[u8], room: usize, lens: &[u32]) -> (u8, Vec<u8>) {
        let input = [&header(kind, sector), data].concat();
        let output = DATA + input.len() as u64;
        self.fill(DATA, &input);
        self.fill(output, &vec![0xee; room + 2]);
        let mut lens = lens.iter().copied();
        let mut buffers = cut(DATA, input.len(), &mut lens, readable);
        buffers.extend(cut(output, room + 1, &mut lens, writable));
        let used = self.run(&buffers);
        assert_eq!(used as usize, room + 1);
        let mut written = self.get(output, room + 2);
        assert_eq!(written.pop(), Some(0xee), "a byte behind the status");
        let status = written.pop().expect("a status");
        (status, written)
    }

    pub fn read(&mut self, sector: u64, len: usize) -> (u8, Vec<u8>) {
        self.request(T_IN, sector, &[], len)
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.request(T_OUT, sector, data, 0).0
    }
}

fn cut(
    mut address: u64,
    mut len: usize,
    lens: &mut impl Iterator<Item = u32>,
    buffer: fn(u64, u32) -> Buffer,
) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    while len != 0 {
        let piece = lens.next().unwrap_or(u32::MAX).min(len as u32);
        buffers.push(buffer(address, piece));
        address += u64::from(piece);
        len -= piece as usize;
    }
    buffers
}
