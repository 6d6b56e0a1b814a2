//! A driver of a disk behind virtio-mmio, with any number of requests under way on any number of queues.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    virtio::{
        QueueIndex, VirtioMmio, VirtioTransport,
        block::Block,
        features,
        transport::{
            Doorbell,
            mmio::Line,
            status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
        },
    },
};
use vm_memory::GuestMemoryMmap;

use crate::{
    ring::{Ring, readable, writable},
    support::*,
};

const STATUS_REGISTER: u64 = 0x70;
/// Where requests are in memory, and how far apart.
const REQUESTS: u64 = 0x10_0000;
const APART: u64 = 0x4_0000;

pub struct Guest {
    pub device: Arc<VirtioMmio<Block>>,
    pub memory: Arc<GuestMemoryMmap>,
    pub rings: Vec<Ring>,
    /// How often the doorbell has rung.
    rung: Arc<AtomicUsize>,
    asked: u64,
    /// How far into a page the data of requests begins.
    pub shift: u64,
}

/// A request that was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    at: u64,
    pub head: u16,
    len: usize,
}

impl Guest {
    /// With all of these features that are offered negotiated, and so many queues of 64.
    pub fn new(block: Block, queues: u16, features: u64) -> Self {
        let memory = guest_memory();
        let rings = Self::rings(&memory, queues);
        let mut guest = Self::plugged(block, memory, rings);
        guest.start(features);
        guest
    }

    pub fn rings(memory: &Arc<GuestMemoryMmap>, queues: u16) -> Vec<Ring> {
        let ring = |queue| Ring::new(memory, 0x1000 + 0x8000 * u64::from(queue), 64);
        (0..queues).map(ring).collect()
    }

    /// Not started: for a state to be restored into.
    pub fn plugged(block: Block, memory: Arc<GuestMemoryMmap>, rings: Vec<Ring>) -> Self {
        let rung = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&rung);
        let ring = move |_| {
            count.fetch_add(1, SeqCst);
            Ok(())
        };
        Self {
            rung,
            ..Self::with_doorbell(block, memory, rings, ring)
        }
    }

    /// Not started, and run by whoever hears this.
    pub fn with_doorbell(
        block: Block,
        memory: Arc<GuestMemoryMmap>,
        rings: Vec<Ring>,
        bell: impl Doorbell + 'static,
    ) -> Self {
        let device = VirtioMmio::new(block, Arc::clone(&memory), Line::Edge(Arc::new(NoInterrupt)));
        Self {
            device: Arc::new(device.expect("a device").with_doorbell(bell)),
            rung: Arc::default(),
            rings,
            memory,
            asked: 0,
            shift: 0,
        }
    }

    pub fn start(&mut self, features: u64) {
        for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            self.write(STATUS_REGISTER, status);
        }
        let offered = (0..2).fold(0, |all, sel| {
            self.write(0x14, sel);
            all | u64::from(self.read(0x10)) << (32 * sel)
        });
        let wanted = offered & (features | features::VERSION_1);
        for sel in 0..2 {
            self.write(0x24, sel);
            self.write(0x20, (wanted >> (32 * sel)) as u32);
        }
        self.write(STATUS_REGISTER, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for index in 0..self.rings.len() {
            self.start_queue(index);
        }
        self.write(STATUS_REGISTER, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.device.run();
    }

    fn start_queue(&self, index: usize) {
        let layout = self.rings[index].layout;
        self.write(0x30, index as u32);
        self.write(0x38, layout.size.into());
        self.write(0x80, layout.descriptor_area as u32);
        self.write(0x90, layout.driver_area as u32);
        self.write(0xa0, layout.device_area as u32);
        self.write(0x44, 1);
    }

    /// Writes 0 to QueueReady of a queue.
    pub fn stop_queue(&self, index: u32) {
        self.write(0x30, index);
        self.write(0x44, 0);
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(STATUS_REGISTER)
    }

    pub fn reset(&self) {
        self.write(STATUS_REGISTER, 0);
    }

    /// Makes a request available, with `data` for the device and `room` for its answer.
    pub fn ask(&mut self, queue: usize, kind: u32, sector: u64, data: &[u8], room: usize) -> Asked {
        let at = REQUESTS + self.asked % 56 * APART;
        self.asked += 1;
        fill(&self.memory, at, &header(kind, sector));
        fill(&self.memory, at + 0x100, &[0xee]);
        let start = at + 0x1000 + self.shift;
        fill(&self.memory, start, data);
        let answer = start + data.len() as u64;
        fill(&self.memory, answer, &vec![0xee; room]);
        let mut buffers = vec![readable(at, 16)];
        if !data.is_empty() {
            buffers.push(readable(start, data.len() as u32));
        }
        if room != 0 {
            buffers.push(writable(answer, room as u32));
        }
        buffers.push(writable(at + 0x100, 1));
        let head = self.rings[queue].request(&buffers);
        Asked {
            at: answer,
            head,
            len: room,
        }
    }

    /// How many requests were asked.
    pub fn asks(&self) -> u64 {
        self.asked
    }

    /// So many were asked before its state was restored: what they are to write stays.
    pub fn go_on(&mut self, asks: u64) {
        self.asked = asks;
    }

    /// Kicks a queue, and has the device run.
    pub fn kick(&self, queue: u32) {
        self.write(0x50, queue);
        self.device.run();
    }

    /// Has the device run.
    pub fn device_runs(&self) {
        self.device.run();
    }

    /// Has the device run if somebody has rung for it since. Whether that was so.
    pub fn run_if_rung(&self) -> bool {
        let rung = self.rung.swap(0, SeqCst) != 0;
        if rung {
            self.device.run();
        }
        rung
    }

    /// Heads that came back since the last look.
    pub fn used(&mut self, queue: usize) -> Vec<u16> {
        self.rings[queue]
            .used()
            .into_iter()
            .map(|(head, _)| head as u16)
            .collect()
    }

    /// The status and the answer of a request.
    pub fn answer(&self, asked: Asked) -> (u8, Vec<u8>) {
        let status = asked.status_address();
        (get(&self.memory, status, 1)[0], get(&self.memory, asked.at, asked.len))
    }

    pub fn waits(&self, queue: u16) -> Vec<devisor::virtio::Wait> {
        self.device.waits(QueueIndex(queue))
    }
}

impl Asked {
    fn status_address(&self) -> u64 {
        self.at / APART * APART + 0x100
    }
}
