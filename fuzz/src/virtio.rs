//! What the targets of the virtio transports have in common: a guest's memory with a ring in it, devices that answer at once
//! or late, and states from outside.

use std::sync::Arc;

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    virtio::{
        VirtioDevice,
        block::{Block, BlockOptions, MemoryStorage},
        queue::{QueueLayout, QueueState},
        transport::TransportState,
    },
};
use late::{Held, Late, Stopped};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[path = "../../tests/support/late.rs"]
pub mod late;

/// The guest's memory, and where its ring is once a driver is up.
const MEMORY: usize = 0x8000;
pub const LAYOUT: QueueLayout = QueueLayout {
    size: 8,
    descriptor_area: 0x1000,
    driver_area: 0x2000,
    device_area: 0x3000,
};
const BUFFERS: u64 = 0x4000;

pub fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
}

/// All of the guest's memory.
pub fn contents(memory: &GuestMemoryMmap) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

pub type Device = Box<dyn VirtioDevice>;

/// What is behind the transport.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Kind {
    /// A small disk, which answers at once.
    Disk,
    /// A device whose requests end when they are told to.
    Late,
    /// One that gives back what it has when it is stopped.
    Returning,
}

impl Kind {
    /// A new one, and what it holds.
    pub fn device(self) -> (Device, Held) {
        let late = |stopped| {
            let late = Late::new(&[256], stopped);
            let held = late.held();
            (Box::new(late) as Device, held)
        };
        match self {
            Self::Disk => {
                let disk = Block::new(MemoryStorage::new(0x2000), BlockOptions::default()).unwrap();
                (Box::new(disk), Held::default())
            }
            Self::Late => late(Stopped::GoesOn),
            Self::Returning => late(Stopped::IsReturned),
        }
    }
}

/// Empties the ring, as a driver does before it enables the queue.
pub fn empty_ring(memory: &GuestMemoryMmap) {
    memory.write_slice(&[0; 64], GuestAddress(LAYOUT.driver_area)).unwrap();
    memory.write_slice(&[0; 128], GuestAddress(LAYOUT.device_area)).unwrap();
}

/// Sets the one queue of a device behind virtio-mmio up, after a reset. `accepts` says which features of a word are accepted, by its
/// number and by what is offered of it.
pub fn up(device: &impl BusDevice, accepts: impl Fn(u32, u32) -> u32) {
    let write = |register, value: u32| device.write(register, &value.to_le_bytes());
    for status in [0, 1, 3] {
        write(0x70, status);
    }
    for sel in 0..2 {
        write(0x14, sel);
        let mut offered = [0; 4];
        device.read(0x10, &mut offered);
        write(0x24, sel);
        write(0x20, accepts(sel, u32::from_le_bytes(offered)));
    }
    write(0x70, 11);
    write(0x30, 0);
    write(0x38, LAYOUT.size.into());
    write(0x80, LAYOUT.descriptor_area as u32);
    write(0x90, LAYOUT.driver_area as u32);
    write(0xa0, LAYOUT.device_area as u32);
    write(0x44, 1);
    write(0x70, 15);
}

/// Makes the chain at `head` the one that is available before `available`.
pub fn offer(memory: &GuestMemoryMmap, head: u16, available: &mut u16) {
    let slot = u64::from(*available % LAYOUT.size);
    let put = |offset, value: u16| {
        memory
            .write_obj(value, GuestAddress(LAYOUT.driver_area + offset))
            .unwrap()
    };
    put(4 + 2 * slot, head);
    *available = available.wrapping_add(1);
    put(2, *available);
}

/// A request of a header, data and a status byte.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Request {
    kind: u8,
    sector: u8,
    len: u16,
    read: bool,
}

impl Request {
    /// Writes it where every other one is, and makes it the one that is available before `available`.
    pub fn offer(self, memory: &GuestMemoryMmap, available: &mut u16) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let Self {
            kind,
            sector,
            len,
            read,
        } = self;
        let put = |address, value: u64| memory.write_obj(value, GuestAddress(address)).unwrap();
        put(BUFFERS, u64::from(kind % 16));
        put(BUFFERS + 8, u64::from(sector));
        let data = if read { WRITE } else { 0 };
        let head = *available % 2 * 3;
        let chain = [
            (BUFFERS, 16, NEXT),
            (BUFFERS + 0x100, u32::from(len), NEXT | data),
            (BUFFERS + 16, 1, WRITE),
        ];
        for (index, (address, len, flags)) in (head..).zip(chain) {
            let at = LAYOUT.descriptor_area + 16 * u64::from(index);
            put(at, address);
            put(
                at + 8,
                u64::from(len) | u64::from(flags) << 32 | u64::from(index + 1) << 48,
            );
        }
        offer(memory, head, available);
    }
}

/// How a state from outside differs from one that there is: little enough for most to be taken.
#[derive(Arbitrary, Debug)]
pub enum TransportChange {
    Status(u8),
    Features(u64),
    Select([u32; 3]),
    Generation {
        generation: u32,
        changed: bool,
    },
    Owed {
        config: bool,
        queue: bool,
    },
    Setup {
        size: u16,
        areas: [u64; 3],
        was_reset: bool,
    },
    /// A queue that runs, where it is once a driver is up.
    Running {
        at: u16,
        heads: Vec<u8>,
        more: bool,
    },
    Stopped,
}

impl TransportChange {
    pub fn make(&self, transport: &mut TransportState) {
        match *self {
            Self::Status(status) => {
                transport.status = match status % 16 {
                    n @ 0..10 => [0, 0x80, 1, 0x81, 3, 0xb, 0x8b, 0xf, 0x4f, 0xcf][usize::from(n)],
                    _ => status.into(),
                }
            }
            Self::Features(features) => {
                transport.driver_features ^= features & features >> 32;
                if let Some(queue) = &mut transport.queues[0] {
                    queue.features = transport.driver_features;
                }
            }
            Self::Select(selectors) => {
                [
                    transport.device_features_sel,
                    transport.driver_features_sel,
                    transport.queue_sel,
                ] = selectors;
            }
            Self::Generation { generation, changed } => {
                (transport.config_generation, transport.config_changed) = (generation, changed);
            }
            Self::Owed { config, queue } => {
                transport.config_owed = config;
                if let Some(state) = &mut transport.queues[0] {
                    state.signal_owed = queue;
                }
            }
            Self::Setup {
                size,
                areas: [descriptor_area, driver_area, device_area],
                was_reset,
            } => {
                let setup = &mut transport.setup[0];
                setup.was_reset = was_reset;
                setup.layout = QueueLayout {
                    // Mostly one that can be.
                    size: if size % 4 == 0 { size } else { 1 << (size % 9) },
                    descriptor_area,
                    driver_area,
                    device_area,
                };
            }
            Self::Running { at, ref heads, more } => {
                let mut in_flight: Vec<u16> = heads.iter().map(|head| u16::from(head % 9)).collect();
                if heads.len() < 16 {
                    // Each once, and there.
                    in_flight.sort_unstable();
                    in_flight.dedup();
                    in_flight.retain(|head| *head < LAYOUT.size);
                }
                transport.status |= 0xf;
                transport.driver_features |= 1 << 32;
                let setup = &mut transport.setup[0];
                (setup.layout, setup.ready, setup.was_reset) = (LAYOUT, true, false);
                transport.queues[0] = Some(QueueState {
                    layout: LAYOUT,
                    features: transport.driver_features,
                    next_avail: at.wrapping_add(in_flight.len() as u16),
                    next_used: at,
                    in_flight,
                    chains: vec![],
                    ended: vec![],
                    signal_owed: more,
                });
            }
            Self::Stopped => {
                transport.queues[0] = None;
                transport.setup[0].ready = false;
            }
        }
    }
}
