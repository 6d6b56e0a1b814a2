//! The devices of the guest's memory (balloon, memory device, PMEM) behind virtio-mmio, against any requests, in any order, with
//! what the embedder and the host do between them.
#![no_main]

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    time::ManualClock,
    virtio::{
        DeviceState, QueueIndex, VirtioDevice, VirtioMmio, VirtioTransport,
        balloon::{Balloon, BalloonOptions, FreePageHints},
        mem::{MemoryDevice, MemoryDeviceOptions},
        pmem::{Pmem, PmemOptions, Volatile},
        reclaim::{ReclaimCall, Recorded},
        transport::{SavedDevice, mmio::Line},
    },
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 0x10_0000;
const HOST_PAGE: u64 = 0x4000;
const SIZE: u16 = 16;
const QUEUES: u16 = 5;
const REQUEST: u64 = 0x4_0000;
const ANSWER: u64 = 0x5_0000;
/// Where the balloon's pages come from.
const PAGES: u64 = 0x8_0000;

const BLOCK: u64 = 0x1_0000;
const REGION: Range<u64> = 0x1000_0000..0x1040_0000;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Balloon,
    Memory,
    Pmem,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Resets, and is the driver again.
    Drive {
        features: u8,
        queues: u8,
    },
    Kick(u8),
    /// Page numbers of a small window, or any.
    Pages {
        deflate: bool,
        numbers: Vec<u8>,
        any: Option<u32>,
    },
    Statistics(Vec<(u8, u64)>),
    Hint {
        id: Option<u8>,
        page: Option<(u8, u16)>,
    },
    Report(Vec<(u8, u16)>),
    Memory {
        kind: u8,
        block: u8,
        blocks: u8,
        odd: Option<u64>,
        short: Option<u8>,
        room: Option<u8>,
    },
    Flush {
        kind: u8,
        kick: bool,
    },
    /// A chain of anything on any queue.
    Chain {
        queue: u8,
        buffers: Vec<(u16, u16, bool)>,
        bytes: Vec<u8>,
    },
    Config {
        offset: u8,
        len: u8,
        value: u64,
    },
    Target(u32),
    Polling(Option<u16>),
    Time(u16),
    Ask,
    Hinting(u8),
    Requested(u8),
    Busy(bool),
    SystemReset,
    HostFails(bool),
    SaveAndRestore,
    Change(StateChange),
}

/// How a state from outside differs from one that there is.
#[derive(Arbitrary, Debug)]
enum StateChange {
    Word {
        index: u8,
        value: u64,
    },
    Usable(u8),
    Requested(u8),
    Hinting {
        command: u8,
        given: u8,
        answered: Option<u8>,
    },
    Features(u8),
    Poison(u32),
}

#[derive(Clone, Default)]
struct Hints(Arc<Mutex<Vec<(u32, u64, u64)>>>);

impl FreePageHints for Hints {
    fn hinted(&self, command: u32, address: u64, len: u64) {
        self.0.lock().unwrap().push((command, address, len));
    }
}

/// A device of any of the kinds, by itself.
enum Device {
    Balloon(Box<VirtioMmio<Balloon>>),
    Memory(Box<VirtioMmio<MemoryDevice>>),
    Pmem(Box<VirtioMmio<Pmem>>),
}

struct Machine {
    kind: Kind,
    memory: Arc<GuestMemoryMmap>,
    device: Device,
    pages: Arc<Recorded>,
    persist: Arc<Volatile>,
    hints: Hints,
    clock: Arc<ManualClock>,
    available: [u16; QUEUES as usize],
    descriptor: [u16; QUEUES as usize],
    /// Pages of 4096 bytes that are in the balloon, as a driver counts them that has told; all, once it has done otherwise.
    given: Option<BTreeSet<u32>>,
    takes_hints: bool,
}

fn ring(queue: u16) -> [u64; 3] {
    let base = 0x1_0000 + 0x4000 * u64::from(queue);
    [base, base + 0x1000, base + 0x2000]
}

impl Machine {
    fn new(kind: Kind) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap());
        let mut machine = Self {
            kind,
            memory,
            device: Device::Pmem(Box::new(mmio(pmem(&Arc::default()), &memory_of_nothing()))),
            pages: Arc::new(Recorded::new([0..MEMORY, REGION]).with_granularity(HOST_PAGE)),
            persist: Arc::default(),
            hints: Hints::default(),
            clock: Arc::default(),
            available: [0; QUEUES as usize],
            descriptor: [0; QUEUES as usize],
            given: Some(BTreeSet::new()),
            takes_hints: false,
        };
        machine.device = machine.make();
        machine
    }

    fn make(&self) -> Device {
        let pages = Arc::clone(&self.pages);
        match self.kind {
            Kind::Balloon => {
                let options = BalloonOptions {
                    queue_size: SIZE,
                    deflate_on_oom: true,
                    max_pages: 64,
                    max_partial: 4,
                    ..BalloonOptions::default()
                };
                let balloon = Balloon::new(pages, options).unwrap().with_hints(self.hints.clone());
                let balloon = balloon
                    .polling(Arc::clone(&self.clock), Duration::from_millis(10))
                    .unwrap();
                Device::Balloon(Box::new(mmio(balloon, &self.memory)))
            }
            Kind::Memory => {
                let options = MemoryDeviceOptions {
                    block_size: BLOCK,
                    requested_size: 8 * BLOCK,
                    usable_extra: 8 * BLOCK,
                    queue_size: SIZE,
                    ..MemoryDeviceOptions::new(REGION)
                };
                Device::Memory(Box::new(mmio(MemoryDevice::new(pages, options).unwrap(), &self.memory)))
            }
            Kind::Pmem => Device::Pmem(Box::new(mmio(pmem(&self.persist), &self.memory))),
        }
    }

    fn bus(&self) -> &dyn BusDevice {
        match &self.device {
            Device::Balloon(device) => &**device,
            Device::Memory(device) => &**device,
            Device::Pmem(device) => &**device,
        }
    }

    fn transport(&self) -> &dyn VirtioTransport {
        match &self.device {
            Device::Balloon(device) => &**device,
            Device::Memory(device) => &**device,
            Device::Pmem(device) => &**device,
        }
    }

    fn write(&self, register: u64, value: u32) {
        self.bus().write(register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.bus().read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn drive(&mut self, features: u8, queues: u8) {
        self.write(0x70, 0);
        self.write(0x70, 1);
        self.write(0x70, 3);
        self.write(0x24, 1);
        self.write(0x20, 1);
        self.write(0x24, 0);
        let features = u32::from(features) & self.read(0x10);
        self.write(0x20, features);
        self.write(0x70, 11);
        for queue in (0..QUEUES).filter(|queue| queue < &2 || queues >> queue & 1 != 0) {
            self.memory
                .write_slice(&[0; 0x3000], GuestAddress(ring(queue)[0]))
                .unwrap();
            self.write(0x30, queue.into());
            self.write(0x38, SIZE.into());
            for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(ring(queue)) {
                self.write(register, address as u32);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
        (self.available, self.descriptor) = Default::default();
        // The balloon is empty to a driver that begins.
        self.given = Some(BTreeSet::new());
        self.takes_hints = features & 10 == 10;
    }

    fn offer(&mut self, queue: u16, buffers: &[(u64, u32, bool)], kick: bool) {
        let queue = queue % QUEUES;
        let [table, driver, _] = ring(queue);
        let index = usize::from(queue);
        let head = self.descriptor[index];
        for (position, &(address, len, writable)) in buffers.iter().enumerate() {
            let last = position + 1 == buffers.len();
            let at = table + 16 * u64::from(self.descriptor[index]);
            self.descriptor[index] = (self.descriptor[index] + 1) % SIZE;
            let flags = u64::from(!last) | u64::from(writable) << 1;
            let next = u64::from(self.descriptor[index]);
            self.memory.write_obj(address, GuestAddress(at)).unwrap();
            let rest = u64::from(len) | flags << 32 | next << 48;
            self.memory.write_obj(rest, GuestAddress(at + 8)).unwrap();
        }
        let slot = u64::from(self.available[index] % SIZE);
        self.memory
            .write_obj(head, GuestAddress(driver + 4 + 2 * slot))
            .unwrap();
        self.available[index] = self.available[index].wrapping_add(1);
        self.memory
            .write_obj(self.available[index], GuestAddress(driver + 2))
            .unwrap();
        if kick {
            self.write(0x50, queue.into());
        }
    }

    fn put(&self, bytes: &[u8]) -> u32 {
        self.memory.write_slice(bytes, GuestAddress(REQUEST)).unwrap();
        bytes.len() as u32
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Drive { features, queues } => self.drive(features, queues),
            Step::Kick(queue) => self.write(0x50, queue.into()),
            Step::Pages {
                deflate,
                ref numbers,
                any,
            } => {
                let window = (PAGES >> 12) as u32;
                let mut numbers: Vec<u32> = numbers.iter().take(80).map(|n| window + u32::from(n % 32)).collect();
                numbers.extend(any);
                // Before the device can see it: what it takes back is the guest's from now on.
                match (&mut self.given, deflate) {
                    (Some(given), true) => numbers.iter().for_each(|number| _ = given.remove(number)),
                    (Some(given), false) => given.extend(&numbers),
                    (None, _) => {}
                }
                let bytes: Vec<_> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                let len = self.put(&bytes);
                self.offer(deflate.into(), &[(REQUEST, len, false)], true);
            }
            Step::Statistics(ref entries) => {
                let bytes = entries
                    .iter()
                    .take(64)
                    .map(|(tag, value)| [&[*tag, 0][..], &value.to_le_bytes()].concat());
                let len = self.put(&bytes.collect::<Vec<_>>().concat());
                self.offer(2, &[(REQUEST, len, false)], true);
            }
            Step::Hint { id, page } => {
                if !self.takes_hints {
                    // With a queue less before it, this one may be for reports.
                    self.given = None;
                }
                let len = self.put(&u32::from(id.unwrap_or(0)).to_le_bytes());
                let mut buffers: Vec<_> = id.map(|_| (REQUEST, len, false)).into_iter().collect();
                buffers.extend(page.map(|(page, len)| (PAGES + (u64::from(page) << 12), len.into(), true)));
                if !buffers.is_empty() {
                    self.offer(3, &buffers, true);
                }
            }
            Step::Report(ref pages) => {
                self.given = None;
                let buffers = pages.iter().take(8);
                let buffers = buffers.map(|&(page, len)| (PAGES + (u64::from(page) << 12), u32::from(len) << 4, true));
                let buffers: Vec<_> = buffers.collect();
                if !buffers.is_empty() {
                    self.offer(4, &buffers, true);
                }
            }
            Step::Memory {
                kind,
                block,
                blocks,
                odd,
                short,
                room,
            } => {
                let mut bytes = [0; 24];
                bytes[0] = kind % 5;
                let addr = odd.unwrap_or(REGION.start + u64::from(block % 70) * BLOCK);
                bytes[8..16].copy_from_slice(&addr.to_le_bytes());
                bytes[16] = blocks;
                let len = self.put(&bytes[..usize::from(short.unwrap_or(24) % 25)]);
                self.offer(
                    0,
                    &[(REQUEST, len, false), (ANSWER, room.unwrap_or(10).into(), true)],
                    true,
                );
            }
            Step::Flush { kind, kick } => {
                let len = self.put(&u32::from(kind / 128).to_le_bytes());
                self.offer(0, &[(REQUEST, len, false), (ANSWER, 4, true)], kick);
            }
            Step::Chain {
                queue,
                ref buffers,
                ref bytes,
            } => {
                self.given = None;
                self.put(&bytes[..bytes.len().min(256)]);
                let buffers = buffers.iter().take(6);
                let buffers = buffers.map(|&(at, len, writable)| (REQUEST + u64::from(at) * 16, len.into(), writable));
                let buffers: Vec<_> = buffers.collect();
                if !buffers.is_empty() {
                    self.offer(queue.into(), &buffers, true);
                }
            }
            Step::Config { offset, len, value } => {
                let at = 0x100 + u64::from(offset % 80);
                let len = usize::from(len % 9);
                self.bus().write(at, &value.to_le_bytes()[..len]);
                self.bus().read(at, &mut [0; 8][..len]);
            }
            Step::HostFails(fails) => {
                self.pages.fail(fails);
                self.persist.fail(fails);
            }
            Step::Time(milliseconds) => {
                self.clock.advance(Duration::from_millis(milliseconds.into()));
                self.transport().process(QueueIndex(2));
            }
            Step::SaveAndRestore => self.save_and_restore(),
            Step::Change(ref change) => self.change(change),
            _ => self.embedder(step),
        }
    }

    fn embedder(&mut self, step: &Step) {
        match (&self.device, step) {
            (Device::Balloon(device), Step::Target(pages)) => {
                device.change_config(|balloon| balloon.set_target(*pages))
            }
            (Device::Balloon(device), Step::Polling(interval)) => {
                let interval = interval.map(|interval| Duration::from_millis(interval.into()));
                let _ = device.with_device(|balloon| balloon.set_polling(interval));
            }
            (Device::Balloon(device), Step::Ask) => {
                let _ = device.with_device(|balloon| balloon.request_statistics());
                device.process(Balloon::STATISTICS_QUEUE);
            }
            (Device::Balloon(device), Step::Hinting(what)) => device.change_config(|balloon| match what % 3 {
                0 => _ = balloon.start_hinting(),
                1 => balloon.stop_hinting(),
                _ => balloon.finish_hinting(),
            }),
            (Device::Memory(device), Step::Requested(blocks)) => {
                let _ = device.change_config(|memory| memory.set_requested_size(u64::from(*blocks) * BLOCK));
            }
            (Device::Memory(device), Step::Busy(busy)) => device.with_device(|memory| memory.set_busy(*busy)),
            (Device::Memory(device), Step::SystemReset) => {
                device.reset();
                let _ = device.with_device(|memory| memory.system_reset());
            }
            _ => {}
        }
    }

    fn saved(&self) -> SavedDevice {
        let device = self.transport();
        device.pause();
        assert!(device.is_still(), "nothing is under way between two calls");
        let state = device.save().unwrap();
        device.resume();
        state
    }

    fn save_and_restore(&mut self) {
        let state = self.saved();
        self.pages.fail(false);
        let fresh = self.make();
        std::mem::replace(&mut self.device, fresh).transport_paused();
        self.transport().restore(&state).unwrap();
        assert!(
            self.transport().save().unwrap() == state,
            "another state than was restored"
        );
        self.transport().resume();
    }

    /// A state from outside is refused and nothing is changed, or taken and then it is that one.
    fn change(&mut self, change: &StateChange) {
        let mut state = self.saved();
        match (&mut state.device, change) {
            (
                DeviceState::Balloon(state),
                StateChange::Hinting {
                    command,
                    given,
                    answered,
                },
            ) => {
                state.hinting.command = (*command).into();
                state.hinting.given = (*given).into();
                state.hinting.answered = answered.map(u32::from);
            }
            (DeviceState::Balloon(state), StateChange::Features(features)) => {
                state.features ^= u64::from(features % 64)
            }
            (DeviceState::Balloon(state), StateChange::Poison(poison)) => state.poison = *poison,
            (DeviceState::Memory(state), StateChange::Word { index, value }) => {
                if let Some(word) = state.plugged.get_mut(usize::from(*index)) {
                    *word = *value;
                } else {
                    state.plugged.push(*value);
                }
            }
            (DeviceState::Memory(state), StateChange::Usable(blocks)) => state.usable_size = u64::from(*blocks) * BLOCK,
            (DeviceState::Memory(state), StateChange::Requested(blocks)) => {
                state.options.requested_size = u64::from(*blocks) * BLOCK / 2;
            }
            _ => return,
        }
        let fresh = self.make();
        let old = std::mem::replace(&mut self.device, fresh);
        self.transport().pause();
        let before = self.transport().save().unwrap();
        match self.transport().restore(&state) {
            Ok(()) => {
                old.transport_paused();
                assert!(self.transport().save().unwrap() == state);
                self.transport().resume();
                // What was counted before is not what this device knows.
                self.given = None;
            }
            Err(_) => {
                assert!(self.transport().save().unwrap() == before, "refused, and not as it was");
                self.device = old;
            }
        }
    }

    /// What always holds.
    fn check(&mut self) {
        for call in self.pages.take_calls() {
            let ReclaimCall::Discard(range) = call else { continue };
            assert!(range.start < range.end);
            match &self.device {
                Device::Balloon(_) => {
                    let Some(given) = &self.given else { continue };
                    let first = range.start.next_multiple_of(HOST_PAGE);
                    let end = range.end / HOST_PAGE * HOST_PAGE;
                    for page in (first..end).step_by(4096) {
                        assert!(given.contains(&((page >> 12) as u32)), "{page:#x} is the guest's");
                    }
                }
                _ => assert!(REGION.start <= range.start && range.end <= REGION.end),
            }
        }
        self.hints.0.lock().unwrap().clear();
        if let Device::Memory(device) = &self.device {
            device.with_device(|memory| {
                assert!(memory.plugged_size() <= memory.usable_size());
                assert!(memory.requested_size() <= memory.usable_size());
                assert!(memory.usable_size() <= REGION.end - REGION.start);
            });
        }
    }
}

impl Device {
    /// It is not to look at its rings again.
    fn transport_paused(self) {
        match self {
            Self::Balloon(device) => device.pause(),
            Self::Memory(device) => device.pause(),
            Self::Pmem(device) => device.pause(),
        }
    }
}

fn memory_of_nothing() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap())
}

fn pmem(persist: &Arc<Volatile>) -> Pmem {
    let options = PmemOptions {
        shared_memory: true,
        queue_size: SIZE,
        ..PmemOptions::new(REGION)
    };
    Pmem::new(Arc::clone(persist), options).unwrap()
}

fn mmio<D: VirtioDevice + 'static>(device: D, memory: &Arc<GuestMemoryMmap>) -> VirtioMmio<D> {
    VirtioMmio::new(device, Arc::clone(memory), Line::Edge(Arc::new(NoInterrupt))).unwrap()
}

fuzz_target!(|input: (Kind, u8, Vec<Step>)| {
    let (kind, features, steps) = input;
    let mut machine = Machine::new(kind);
    machine.drive(features, 0xff);
    for step in &steps {
        machine.step(step);
        machine.check();
    }
});
