//! A device behind either transport, its driver's queues, and nobody but the test that runs it.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use devisor::{
    bus::BusDevice,
    interrupt::{Interrupt, MsiMessage, MsiSink, MsiVectors, NoInterrupt, RequesterId, SinkVectors},
    pci::{BarIndex, DeviceFunction, Function, Slot},
    virtio::{
        DeviceState, QueueIndex, VirtioDevice, VirtioMmio, VirtioPci, VirtioTransport, Wait,
        queue::QueueCounters,
        transport::{Doorbell, RestoreError, SavedDevice, TransportOptions, mmio::Line},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::ring::{Buffer, Ring, readable, writable};

pub const VERSION_1: u64 = 1 << 32;
pub const NEEDS_RESET: u32 = 0x40;

/// Guest memory. Rings first, then buffers for each queue.
const MEMORY: usize = 16 << 20;
const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x4000;
const BUFFERS: u64 = 0x20_0000;
/// What each queue has of buffers.
const SHARE: u64 = 0x10_0000;
pub const SIZE: u16 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    Mmio,
    Pci,
}

pub const BUSES: [Bus; 2] = [Bus::Mmio, Bus::Pci];

/// Registers of a transport.
enum Registers<D> {
    Mmio(Arc<VirtioMmio<D>>),
    Pci(Arc<VirtioPci<D>>),
}

/// Nobody hears messages.
pub struct NoMessages;

impl MsiSink for NoMessages {
    fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
        Ok(())
    }
}

pub fn no_messages() -> SinkVectors<NoMessages> {
    SinkVectors::new(Arc::new(NoMessages))
}

/// Keeps what queues wait for.
#[derive(Clone, Default)]
struct Bell(Arc<Mutex<Waiting>>);

/// What each queue waits for that waits for anything.
pub type Waiting = Vec<(QueueIndex, Vec<Wait>)>;

impl Doorbell for Bell {
    fn ring(&self, _: QueueIndex) -> io::Result<()> {
        Ok(())
    }

    fn wait(&self, queue: QueueIndex, waits: &[Wait]) {
        let mut all = self.0.lock().unwrap();
        all.retain(|(other, _)| *other != queue);
        if !waits.is_empty() {
            all.push((queue, waits.to_vec()));
        }
    }
}

pub struct Machine<D> {
    registers: Registers<D>,
    pub memory: Arc<GuestMemoryMmap>,
    pub rings: Vec<Ring>,
    /// Where the next buffer of each queue is.
    next: Vec<u64>,
    bell: Bell,
    pub bus: Bus,
}

impl<D: VirtioDevice + 'static> Machine<D> {
    /// A device without a driver.
    pub fn cold(bus: Bus, device: D) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        Self::in_memory(bus, device, memory)
    }

    pub fn in_memory(bus: Bus, device: D, memory: Arc<GuestMemoryMmap>) -> Self {
        Self::with_interrupt(bus, device, memory, Arc::new(NoInterrupt))
    }

    /// The same, where somebody hears interrupts. Behind PCI nobody does.
    pub fn with_interrupt(bus: Bus, device: D, memory: Arc<GuestMemoryMmap>, interrupt: Arc<dyn Interrupt>) -> Self {
        Self::with_lines(bus, device, memory, interrupt, Arc::new(no_messages()))
    }

    /// Behind PCI, with vectors that somebody hears.
    pub fn with_vectors(device: D, memory: Arc<GuestMemoryMmap>, vectors: Arc<dyn MsiVectors>) -> Self {
        Self::with_lines(Bus::Pci, device, memory, Arc::new(NoInterrupt), vectors)
    }

    /// Behind virtio-mmio, of these options.
    pub fn with_options(device: D, memory: Arc<GuestMemoryMmap>, options: &TransportOptions) -> Self {
        let bell = Bell::default();
        let line = Line::Edge(Arc::new(NoInterrupt));
        let device = VirtioMmio::with_options(device, Arc::clone(&memory), line, options).unwrap();
        Self {
            registers: Registers::Mmio(Arc::new(device.with_doorbell(bell.clone()))),
            memory,
            rings: Vec::new(),
            next: Vec::new(),
            bell,
            bus: Bus::Mmio,
        }
    }

    fn with_lines(
        bus: Bus,
        device: D,
        memory: Arc<GuestMemoryMmap>,
        interrupt: Arc<dyn Interrupt>,
        vectors: Arc<dyn MsiVectors>,
    ) -> Self {
        let bell = Bell::default();
        let registers = match bus {
            Bus::Mmio => {
                let line = Line::Edge(interrupt);
                let device = VirtioMmio::new(device, Arc::clone(&memory), line).unwrap();
                Registers::Mmio(Arc::new(device.with_doorbell(bell.clone())))
            }
            Bus::Pci => {
                let slot = Slot::new(DeviceFunction::new(3, 0).unwrap(), Box::new(NoInterrupt), vectors);
                let device = VirtioPci::new(device, Arc::clone(&memory), slot).unwrap();
                let device = Arc::new(device.with_doorbell(bell.clone()));
                device.write_config(0x10, &0x4000_0000_u32.to_le_bytes());
                device.write_config(0x14, &0x4010_0000_u32.to_le_bytes());
                device.write_config(0x04, &6_u16.to_le_bytes());
                Registers::Pci(device)
            }
        };
        Self {
            registers,
            memory,
            rings: Vec::new(),
            next: Vec::new(),
            bell,
            bus,
        }
    }

    /// A device whose driver has set up all of its queues and accepted these features, and VERSION_1.
    pub fn new(bus: Bus, device: D, features: u64) -> Self {
        let mut machine = Self::cold(bus, device);
        machine.start(features);
        machine
    }

    /// The same guest with another device, into which the state of its own is restored; what was its own is gone then.
    pub fn moved(self, device: D, state: &SavedDevice) -> Self {
        let Self {
            registers,
            memory,
            rings,
            next,
            bell: _,
            bus,
        } = self;
        drop(registers);
        let machine = Self {
            rings,
            next,
            ..Self::in_memory(bus, device, memory)
        };
        machine.transport().restore(state).expect("a state of such a device");
        machine
    }

    pub fn transport(&self) -> &dyn VirtioTransport {
        match &self.registers {
            Registers::Mmio(device) => &**device,
            Registers::Pci(device) => &**device,
        }
    }

    /// The device behind PCI, if it is there.
    pub fn pci(&self) -> &VirtioPci<D> {
        match &self.registers {
            Registers::Mmio(_) => panic!("it is behind virtio-mmio"),
            Registers::Pci(device) => device,
        }
    }

    /// The same, for other threads.
    pub fn shared(&self) -> Arc<dyn VirtioTransport> {
        match &self.registers {
            Registers::Mmio(device) => Arc::clone(device) as _,
            Registers::Pci(device) => Arc::clone(device) as _,
        }
    }

    pub fn with_device<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        match &self.registers {
            Registers::Mmio(device) => device.with_device(f),
            Registers::Pci(device) => device.with_device(f),
        }
    }

    fn set(&self, mmio: u64, pci: u64, pci_len: usize, value: u64) {
        match &self.registers {
            Registers::Mmio(device) => device.write(mmio, &(value as u32).to_le_bytes()),
            Registers::Pci(device) => device.write_bar(BarIndex::Bar0, pci, &value.to_le_bytes()[..pci_len]),
        }
    }

    fn get(&self, mmio: u64, pci: u64, pci_len: usize) -> u64 {
        let mut data = [0; 8];
        match &self.registers {
            Registers::Mmio(device) => device.read(mmio, &mut data[..4]),
            Registers::Pci(device) => device.read_bar(BarIndex::Bar0, pci, &mut data[..pci_len]),
        }
        u64::from_le_bytes(data)
    }

    pub fn set_status(&self, status: u32) {
        self.set(0x70, 0x14, 1, status.into());
    }

    pub fn offered(&self) -> u64 {
        let word = |sel| {
            self.set(0x14, 0x00, 4, sel);
            self.get(0x10, 0x04, 4)
        };
        word(0) | word(1) << 32
    }

    /// Up to FEATURES_OK. Whether the device agrees.
    pub fn negotiate(&self, features: u64) -> bool {
        self.set_status(1);
        self.set_status(3);
        for (sel, word) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.set(0x24, 0x08, 4, sel);
            self.set(0x20, 0x0c, 4, word);
        }
        self.set_status(0xb);
        self.transport().status() == 0xb
    }

    pub fn start(&mut self, features: u64) {
        assert!(self.negotiate(features | VERSION_1));
        let queues = self.with_device(|device| device.queue_sizes().len());
        self.rings = (0..queues as u64)
            .map(|queue| Ring::new(&self.memory, RINGS + RING * queue, SIZE))
            .collect();
        self.next = (0..queues as u64).map(|queue| BUFFERS + SHARE * queue).collect();
        for queue in 0..queues {
            self.enable(queue as u16);
        }
        self.set_status(0xf);
        assert_eq!(self.transport().status(), 0xf);
        self.run();
    }

    fn enable(&self, queue: u16) {
        let layout = self.rings[usize::from(queue)].layout;
        self.set(0x30, 0x16, 2, queue.into());
        self.set(0x38, 0x18, 2, layout.size.into());
        for (mmio, pci, address) in [
            (0x80, 0x20, layout.descriptor_area),
            (0x90, 0x28, layout.driver_area),
            (0xa0, 0x30, layout.device_area),
        ] {
            self.set(mmio, pci, 4, address & 0xffff_ffff);
            self.set(mmio + 4, pci + 4, 4, address >> 32);
        }
        self.set(0x44, 0x1c, 2, 1);
    }

    pub fn kick(&self, queue: u16) {
        self.set(0x50, 0x3000 + 4 * u64::from(queue), 2, queue.into());
    }

    pub fn run(&self) {
        self.transport().run();
    }

    pub fn read_config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        match &self.registers {
            Registers::Mmio(device) => device.read(0x100 + offset, &mut data),
            Registers::Pci(device) => device.read_bar(BarIndex::Bar0, 0x2000 + offset, &mut data),
        }
        data
    }

    pub fn write_config(&self, offset: u64, data: &[u8]) {
        match &self.registers {
            Registers::Mmio(device) => device.write(0x100 + offset, data),
            Registers::Pci(device) => device.write_bar(BarIndex::Bar0, 0x2000 + offset, data),
        }
    }

    pub fn config_generation(&self) -> u64 {
        self.get(0xfc, 0x15, 1)
    }

    pub fn counters(&self, queue: u16) -> QueueCounters {
        self.transport().queue_counters(QueueIndex(queue)).expect("it runs")
    }

    /// `InterruptStatus`, or ISR, which is read.
    pub fn interrupt_status(&self) -> u64 {
        self.get(0x60, 0x1000, 1)
    }

    /// What a queue waits for.
    pub fn waits(&self, queue: u16) -> Vec<Wait> {
        self.transport().waits(QueueIndex(queue))
    }

    /// What all queues wait for, as the doorbell was told.
    pub fn all_waits(&self) -> Waiting {
        self.bell.0.lock().unwrap().clone()
    }

    // Buffers.

    pub fn fill(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// So many bytes of a queue's share, at their turn.
    pub fn place(&mut self, queue: u16, len: usize) -> u64 {
        let queue = usize::from(queue);
        let start = BUFFERS + SHARE * queue as u64;
        if self.next[queue] + len as u64 > start + SHARE {
            self.next[queue] = start;
        }
        let at = self.next[queue];
        self.next[queue] += len as u64;
        at
    }

    /// How many descriptors of a queue are not in use, if no chain has more than three.
    pub fn free(&self, queue: u16) -> u16 {
        let ring = &self.rings[usize::from(queue)];
        SIZE.saturating_sub(3 * ring.avail_idx().wrapping_sub(ring.used_idx()))
    }

    /// Makes a chain available and kicks.
    pub fn offer(&mut self, queue: u16, buffers: &[Buffer]) {
        self.rings[usize::from(queue)].request(buffers);
        self.kick(queue);
    }

    /// Sends `pieces` in one chain.
    pub fn send(&mut self, queue: u16, pieces: &[&[u8]]) {
        let buffers: Vec<_> = pieces
            .iter()
            .map(|piece| {
                let at = self.place(queue, piece.len());
                self.fill(at, piece);
                readable(at, piece.len() as u32)
            })
            .collect();
        self.offer(queue, &buffers);
    }

    /// Gives the device room for `len` bytes. Where it is.
    pub fn room(&mut self, queue: u16, len: u32) -> u64 {
        let at = self.place(queue, len as usize);
        self.fill(at, &vec![0xee; len as usize]);
        self.offer(queue, &[writable(at, len)]);
        at
    }

    /// The contents of buffers that were used since this was last asked.
    pub fn received(&mut self, queue: u16) -> Vec<Vec<u8>> {
        let ring = &mut self.rings[usize::from(queue)];
        let used = ring.used();
        let table = ring.layout.descriptor_area;
        used.into_iter()
            .map(|(head, len)| {
                let at = self
                    .memory
                    .read_obj(GuestAddress(table + 16 * u64::from(head)))
                    .unwrap();
                self.bytes(at, len as usize)
            })
            .collect()
    }

    /// How many buffers were used since this was last asked.
    pub fn used(&mut self, queue: u16) -> usize {
        self.rings[usize::from(queue)].used().len()
    }

    // State.

    pub fn save(&self) -> SavedDevice {
        self.transport().pause();
        assert!(self.transport().wait_until_still(Some(Duration::from_secs(10))));
        self.transport().save().expect("it is still")
    }

    pub fn device_state(&self) -> DeviceState {
        let state = self.save().device;
        self.transport().resume();
        state
    }

    /// This machine's guest goes on with another device in the place of this one.
    pub fn move_to(self, device: D) -> Self {
        let state = self.save();
        self.try_move(device, &state).expect("a state that was saved")
    }

    /// The same with this state.
    pub fn try_move(mut self, device: D, state: &SavedDevice) -> Result<Self, RestoreError> {
        let mut other = Self::in_memory(self.bus, device, Arc::clone(&self.memory));
        other.transport().restore(state)?;
        other.take_driver(&mut self);
        other.transport().resume();
        other.run();
        Ok(other)
    }

    /// The driver of `other` is this one's.
    pub fn take_driver(&mut self, other: &mut Self) {
        self.rings = std::mem::take(&mut other.rings);
        self.next = std::mem::take(&mut other.next);
    }
}
