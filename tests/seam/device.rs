//! A disk as it is written for crate `virtio-queue`: nothing in its handler is ours but the signal.

use std::{
    io::{Read, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use devisor::virtio::{
    DeviceId, Fault, Handle, QueueHandler, QueueIndex, VirtioDevice,
    device::read_config_bytes,
    queue::Rest,
    seam::{self, Foreign, QueueTHandler, Signal},
};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

pub type Ram = Arc<GuestMemoryMmap>;

pub const SECTOR: usize = 512;
pub const QUEUE: u16 = 64;

/// What is behind the disk, and what a test sees of it.
#[derive(Default)]
pub struct Behind {
    pub sectors: Mutex<Vec<u8>>,
    /// Requests are popped and not answered.
    pub holds: AtomicBool,
    /// So many of the next requests are left in the ring, for lack of whatever.
    pub leaves: AtomicBool,
    /// Requests that were answered.
    pub answered: AtomicUsize,
    /// Calls of the handler.
    pub calls: AtomicUsize,
    /// The answer to the request of this number panics, if it is not zero.
    pub panics_at: AtomicUsize,
    /// Reads one request a call at most.
    pub one_at_a_time: AtomicBool,
    pub handle: Mutex<Option<Handle>>,
}

impl Behind {
    pub fn new(sectors: usize) -> Arc<Self> {
        Arc::new(Self {
            sectors: Mutex::new((0..sectors * SECTOR).map(|at| (at / SECTOR) as u8).collect()),
            ..Self::default()
        })
    }

    pub fn hold(&self, holds: bool) {
        self.holds.store(holds, Ordering::SeqCst);
    }

    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Answers a request: how many bytes were written.
    fn answer(&self, chain: DescriptorChain<Ram>, memory: &Ram) -> u32 {
        let number = self.answered.fetch_add(1, Ordering::SeqCst) + 1;
        assert_ne!(number, self.panics_at.load(Ordering::SeqCst), "as told");
        let (Ok(mut reader), Ok(mut writer)) = (chain.clone().reader(memory), chain.writer(memory)) else {
            return 0;
        };
        let mut header = [0; 16];
        if reader.read_exact(&mut header).is_err() || writer.available_bytes() == 0 {
            return 0;
        }
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes")) as usize;
        let mut sectors = self.sectors.lock().unwrap();
        let status = match kind {
            0 => {
                let len = writer.available_bytes() - 1;
                match sectors.get(sector * SECTOR..sector * SECTOR + len) {
                    Some(data) if writer.write_all(data).is_ok() => 0,
                    _ => 1,
                }
            }
            1 => {
                let len = reader.available_bytes();
                let data = sectors.get_mut(sector * SECTOR..sector * SECTOR + len);
                u8::from(data.is_none_or(|data| reader.read_exact(data).is_err()))
            }
            4 => 0,
            _ => 2,
        };
        // A status comes last.
        while writer.available_bytes() > 1 {
            let _ = writer.write_all(&[0]);
        }
        let _ = writer.write_all(&[status]);
        writer.bytes_written() as u32
    }
}

/// The control face.
pub struct Disk {
    pub behind: Arc<Behind>,
    memory: Ram,
}

impl Disk {
    pub fn new(behind: &Arc<Behind>, memory: &Ram) -> Self {
        Self {
            behind: Arc::clone(behind),
            memory: Arc::clone(memory),
        }
    }
}

impl VirtioDevice for Disk {
    fn device_id(&self) -> DeviceId {
        DeviceId::BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE]
    }

    fn attach(&mut self, handle: Handle) {
        *self.behind.handle.lock().unwrap() = Some(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let capacity = (self.behind.sectors.lock().unwrap().len() / SECTOR) as u64;
        read_config_bytes(&capacity.to_le_bytes(), offset, data);
    }

    fn accepts(&self, features: u64) -> bool {
        seam::accepts(features)
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        let worker = Worker {
            behind: Arc::clone(&self.behind),
            held: Vec::new(),
        };
        Box::new(Foreign::new(worker, Arc::clone(&self.memory), QUEUE))
    }
}

/// What serves the queue.
struct Worker {
    behind: Arc<Behind>,
    held: Vec<DescriptorChain<Ram>>,
}

impl Worker {
    /// Answers what is held, and says whether anything was.
    fn answer_held(&mut self, queue: &mut Queue, memory: &Ram) -> Result<(), Fault> {
        if !self.behind.holds.load(Ordering::SeqCst) {
            for chain in self.held.drain(..) {
                let head = chain.head_index();
                let written = self.behind.answer(chain, memory);
                queue.add_used(&**memory, head, written)?;
            }
        }
        Ok(())
    }
}

impl QueueTHandler<Ram> for Worker {
    fn serve(&mut self, queue: &mut Queue, memory: &Ram, signal: &Signal<'_>) -> Result<Rest, Fault> {
        self.behind.calls.fetch_add(1, Ordering::SeqCst);
        self.answer_held(queue, memory)?;
        let mut rest = Rest::Drained;
        loop {
            queue.disable_notification(&**memory)?;
            while let Some(chain) = queue.iter(Arc::clone(memory))?.next() {
                if self.behind.leaves.load(Ordering::SeqCst) {
                    queue.go_to_previous_position();
                    rest = Rest::Left;
                    break;
                }
                self.held.push(chain);
                self.answer_held(queue, memory)?;
                if self.behind.one_at_a_time.load(Ordering::SeqCst) {
                    rest = Rest::More;
                    break;
                }
            }
            if queue.needs_notification(&**memory)? {
                signal.signal();
            }
            if !queue.enable_notification(&**memory)? || rest != Rest::Drained {
                return Ok(rest);
            }
        }
    }

    fn drain(&mut self, queue: &mut Queue, memory: &Ram, signal: &Signal<'_>) -> Result<(), Fault> {
        self.answer_held(queue, memory)?;
        if queue.needs_notification(&**memory)? {
            signal.signal();
        }
        Ok(())
    }
}
