//! A guest that keeps as many requests in its ring as the depth is, and an embedder that waits in the ring of the kernel's, or where the device
//! says.

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU16, Ordering, fence},
    },
};

use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    virtio::{
        QueueIndex, VirtioMmio, VirtioTransport, Wait,
        block::{Block, BlockOptions, FileStorage, UringOptions, UringStorage, UringWaiter},
        transport::{Doorbell, mmio::Line},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{
    Side, Work,
    memory::{self, APART, DATA},
    waiter::Waiter,
};

const SIZE: u16 = 512;

/// What each queue waits for.
#[derive(Clone, Default)]
struct Waits(Arc<[AtomicI32; 4]>);

impl Doorbell for Waits {
    fn ring(&self, _: QueueIndex) -> io::Result<()> {
        Ok(())
    }

    fn wait(&self, queue: QueueIndex, waits: &[Wait]) {
        let fd = match waits {
            [Wait::Readable(fd)] => *fd,
            _ => -1,
        };
        self.0[usize::from(queue.0)].store(fd, Ordering::SeqCst);
    }
}

/// How the embedder waits.
enum WaitsBy {
    Ring(UringWaiter),
    Descriptors(Waiter),
}

struct Guest {
    work: Work,
    device: Arc<VirtioMmio<Block>>,
    waits: Waits,
    /// There between two runs.
    waits_by: Option<WaitsBy>,
    index: QueueIndex,
    base: *mut u8,
    _memory: Arc<GuestMemoryMmap>,
    offsets: Box<dyn FnMut() -> u64 + Send>,
    avail: u16,
    used: u16,
}

// SAFETY: the pointer leads to guest memory, which is shared by its nature.
unsafe impl Send for Guest {}

pub fn new(work: Work, file: File, register_memory: bool, in_ring: bool) -> Vec<Box<dyn Side>> {
    let queues = work.queues;
    let memory = memory::new(queues);
    let storage = FileStorage::new(file).expect("a storage");
    let options = UringOptions {
        register_memory,
        ..UringOptions::default()
    };
    let storage = UringStorage::new(storage, options).expect("io_uring");
    let waiters = (0..queues).map(|queue| match in_ring {
        true => WaitsBy::Ring(UringWaiter::new(&storage, QueueIndex(queue)).expect("io_uring")),
        false => WaitsBy::Descriptors(Waiter::new()),
    });
    let waiters: Vec<_> = waiters.collect();
    let options = BlockOptions {
        queues,
        queue_size: SIZE,
        ..BlockOptions::default()
    };
    let block = Block::with_async(storage, options).expect("valid options");
    let waits = Waits::default();
    let device = VirtioMmio::new(block, Arc::clone(&memory), Line::Edge(Arc::new(NoInterrupt))).expect("a device");
    let device = Arc::new(device.with_doorbell(waits.clone()));
    let write = |register, value: u32| device.write(register, &value.to_le_bytes());
    for status in [0, 1, 3] {
        write(0x70, status);
    }
    // EVENT_IDX, MQ and FLUSH, and the version.
    for (sel, features) in [(0, 1 << 29 | 1 << 12 | 1 << 9), (1, 1)] {
        write(0x24, sel);
        write(0x20, features & if queues == 1 && sel == 0 { !(1 << 12) } else { !0 });
    }
    write(0x70, 11);
    let guests = (0..queues).zip(waiters).map(|(index, waits_by)| {
        let base = APART * u64::from(index);
        write(0x30, index.into());
        write(0x38, SIZE.into());
        for (register, area) in [(0x80, 0), (0x90, 0x4000), (0xa0, 0x6000)] {
            write(register, (base + area) as u32);
        }
        write(0x44, 1);
        for slot in 0..u64::from(work.depth) {
            let data = base + DATA + slot * u64::from(work.len);
            let (header, status) = (base + 0x1_0000 + slot * 64, base + 0x1_0020 + slot * 64);
            let direction: u64 = if work.writes { 0 } else { 2 };
            let chain = [
                [header, 16 | 1 << 32 | (3 * slot + 1) << 48],
                [data, u64::from(work.len) | (1 | direction) << 32 | (3 * slot + 2) << 48],
                [status, 1 | 2 << 32],
            ];
            memory
                .write_obj(chain[0], GuestAddress(base + 48 * slot))
                .expect("in memory");
            memory
                .write_obj(chain[1], GuestAddress(base + 48 * slot + 16))
                .expect("in memory");
            memory
                .write_obj(chain[2], GuestAddress(base + 48 * slot + 32))
                .expect("in memory");
            let kind: u32 = work.writes.into();
            memory.write_obj(kind, GuestAddress(header)).expect("in memory");
        }
        Box::new(Guest {
            work,
            device: Arc::clone(&device),
            waits: waits.clone(),
            waits_by: Some(waits_by),
            index: QueueIndex(index),
            base: memory.get_host_address(GuestAddress(base)).expect("in memory"),
            _memory: Arc::clone(&memory),
            offsets: Box::new(work.offsets(index.into())),
            avail: 0,
            used: 0,
        }) as Box<dyn Side>
    });
    let guests: Vec<_> = guests.collect();
    write(0x70, 15);
    guests
}

impl Guest {
    fn at<T>(&self, offset: usize) -> *mut T {
        // SAFETY: within the memory of the queue.
        unsafe { self.base.add(offset).cast() }
    }

    fn index(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: an aligned index of the ring, accessed by both sides as atomics alone.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }
    }

    /// Makes a request available, as the next but `avail`.
    fn offer(&mut self, slot: u16) {
        let sector = (self.offsets)() / 512;
        // SAFETY: the header of a request that is the driver's.
        unsafe { self.at::<u64>(0x1_0008 + usize::from(slot) * 64).write_volatile(sector) };
        // SAFETY: an entry of the available ring.
        unsafe {
            self.at::<u16>(0x4004 + usize::from(self.avail % SIZE) * 2)
                .write_volatile(slot * 3)
        };
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows them, and kicks if the device wants to hear.
    fn show(&self, before: u16) -> bool {
        self.index(0x4002).store(self.avail, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.index(0x6004 + 8 * usize::from(SIZE)).load(Ordering::Acquire);
        self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(before)
    }

    fn ended(&mut self) -> Option<u16> {
        if self.index(0x6002).load(Ordering::Acquire) == self.used {
            return None;
        }
        let entry = self.at::<u32>(0x6004 + usize::from(self.used % SIZE) * 8);
        // SAFETY: an entry of the used ring.
        let head = unsafe { entry.read_volatile() };
        self.used = self.used.wrapping_add(1);
        let slot = head as u16 / 3;
        // SAFETY: the status of a request that is the driver's.
        let status = unsafe { self.at::<u8>(0x1_0020 + usize::from(slot) * 64).read_volatile() };
        assert_eq!(status, 0);
        Some(slot)
    }
}

/// How far a run has come.
struct Run {
    requests: u32,
    asked: u32,
    done: u32,
    /// The driver has kicked.
    kicked: bool,
}

impl Guest {
    /// The queue is served, and the driver sees what has ended and asks for more: until it does not kick.
    fn turn(&mut self, run: &mut Run) {
        loop {
            while self.device.serve(self.index) {}
            let before = self.avail;
            while let Some(slot) = self.ended() {
                run.done += 1;
                if run.asked < run.requests {
                    run.asked += 1;
                    self.offer(slot);
                }
            }
            run.kicked = before != self.avail && self.show(before);
            if !run.kicked {
                break;
            }
        }
    }
}

impl Side for Guest {
    fn run(&mut self, requests: u32) {
        let first = requests.min(self.work.depth.into());
        let before = self.avail;
        (0..first as u16).for_each(|slot| self.offer(slot));
        let mut run = Run {
            requests,
            asked: first,
            done: 0,
            kicked: self.show(before),
        };
        let waits_by = self.waits_by.take().expect("it is put back below");
        match &waits_by {
            WaitsBy::Ring(waiter) => {
                let turn = || {
                    self.turn(&mut run);
                    match run.done < requests {
                        true => ControlFlow::Continue(None),
                        false => ControlFlow::Break(()),
                    }
                };
                waiter.run(turn).expect("it waits");
            }
            WaitsBy::Descriptors(waiter) => {
                while run.done < requests {
                    // The embedder: the doorbell has rung, or what the device waits for is there.
                    if !run.kicked {
                        waiter.wait(self.waits.0[usize::from(self.index.0)].load(Ordering::SeqCst));
                    }
                    self.turn(&mut run);
                }
            }
        }
        self.waits_by = Some(waits_by);
    }
}
