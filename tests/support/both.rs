//! A driver at the registers of a device, behind virtio-mmio or virtio-pci: what a test says holds for both.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{io, sync::Arc};

use devisor::{
    bus::{BusDevice, read_le, write_le},
    interrupt::{Interrupt, MsiMessage, MsiSink, NoInterrupt, RequesterId, SinkVectors},
    memory::Memory,
    pci::{BarIndex, DeviceFunction, Function, Slot},
    virtio::{
        QueueIndex, VirtioDevice, VirtioMmio, VirtioPci, VirtioTransport, features,
        queue::QueueCounters,
        transport::{
            SavedDevice, SavedTransport, TransportOptions,
            mmio::Line,
            pci::VirtioPciOptions,
            status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
        },
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{
    rest,
    ring::{Buffer, Ring, readable, writable},
};

/// What is between driver and device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Mmio,
    Pci,
}

impl Transport {
    /// What it leaves to the embedder, as it is by default.
    pub fn options(self) -> TransportOptions {
        match self {
            Self::Mmio => TransportOptions::default(),
            Self::Pci => VirtioPciOptions::default().transport,
        }
    }
}

pub const BOTH: [Transport; 2] = [Transport::Mmio, Transport::Pci];

/// What the rings do, but for event indices, so that a used ring is seen by its index alone.
pub const COMMON: u64 = features::COMMON & !features::EVENT_IDX;

/// Where rings are in guest memory, one for each queue; and where requests are built.
const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x4000;
pub const REQUEST: u64 = 0x8_0000;
pub const ANSWER: u64 = 0x9_0000;
const SIZE: u16 = 64;

enum Face<D> {
    Mmio(VirtioMmio<D>),
    Pci(VirtioPci<D>),
}

struct Nowhere;

impl MsiSink for Nowhere {
    fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
        Ok(())
    }
}

/// A guest with one device.
pub struct Guest<D> {
    pub memory: Arc<GuestMemoryMmap>,
    pub kind: Transport,
    face: Face<D>,
    /// By queue index.
    pub rings: Vec<Option<Ring>>,
    /// How much higher the addresses are that the driver tells the device: of memory that is translated.
    pub shift: u64,
}

impl<D: VirtioDevice + 'static> Guest<D> {
    /// A device that nobody has touched.
    pub fn new(kind: Transport, device: D, memory: &Arc<GuestMemoryMmap>) -> Self {
        Self::with_options(kind, device, memory, kind.options())
    }

    /// The same, behind a transport of these options.
    pub fn with_options(kind: Transport, device: D, memory: &Arc<GuestMemoryMmap>, options: TransportOptions) -> Self {
        let space = Memory::new(Arc::clone(memory));
        Self::behind(kind, device, (memory, space, 0), options)
    }

    /// The same, where the device sees the driver's `memory` as `space`, so much higher.
    pub fn behind(
        kind: Transport,
        device: D,
        (memory, space, shift): (&Arc<GuestMemoryMmap>, Memory, u64),
        options: TransportOptions,
    ) -> Self {
        let face = match kind {
            Transport::Mmio => {
                let line = Line::Edge(Arc::new(NoInterrupt));
                Face::Mmio(VirtioMmio::with_memory(device, space, line, &options).expect("a valid device"))
            }
            Transport::Pci => {
                let address = DeviceFunction::new(3, 0).expect("an address");
                let vectors = Arc::new(SinkVectors::new(Arc::new(Nowhere)));
                let slot = Slot::new(address, Box::new(NoInterrupt), vectors);
                let options = VirtioPciOptions {
                    transport: options,
                    ..VirtioPciOptions::default()
                };
                let pci = VirtioPci::with_memory(device, space, slot, &options).expect("a valid device");
                // Placed, decoding, master of the bus.
                pci.write_config(0x10, &0x4000_0000_u32.to_le_bytes());
                pci.write_config(0x14, &0_u32.to_le_bytes());
                pci.write_config(0x04, &6_u16.to_le_bytes());
                Face::Pci(pci)
            }
        };
        Self {
            memory: Arc::clone(memory),
            kind,
            face,
            rings: Vec::new(),
            shift,
        }
    }

    /// A device that nobody has touched behind virtio-mmio, on this line.
    pub fn on_line(device: D, memory: &Arc<GuestMemoryMmap>, line: Arc<dyn Interrupt>) -> Self {
        let mmio = VirtioMmio::new(device, Arc::clone(memory), Line::Edge(line)).expect("a valid device");
        Self {
            memory: Arc::clone(memory),
            kind: Transport::Mmio,
            face: Face::Mmio(mmio),
            rings: Vec::new(),
            shift: 0,
        }
    }

    /// [`new`](Self::new), with a driver that has accepted `features` and enabled these queues.
    pub fn start(kind: Transport, device: D, memory: &Arc<GuestMemoryMmap>, features: u64, queues: &[u16]) -> Self {
        let mut guest = Self::new(kind, device, memory);
        guest.drive(features, queues);
        guest
    }

    pub fn with_device<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        match &self.face {
            Face::Mmio(mmio) => mmio.with_device(f),
            Face::Pci(pci) => pci.with_device(f),
        }
    }

    pub fn transport(&self) -> &dyn VirtioTransport {
        match &self.face {
            Face::Mmio(mmio) => mmio,
            Face::Pci(pci) => pci,
        }
    }

    /// The function, behind virtio-pci.
    pub fn pci(&self) -> Option<&VirtioPci<D>> {
        match &self.face {
            Face::Mmio(_) => None,
            Face::Pci(pci) => Some(pci),
        }
    }

    pub fn with<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        match &self.face {
            Face::Mmio(mmio) => mmio.with_device(f),
            Face::Pci(pci) => pci.with_device(f),
        }
    }

    pub fn change_config<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        match &self.face {
            Face::Mmio(mmio) => mmio.change_config(f),
            Face::Pci(pci) => pci.change_config(f),
        }
    }

    // Registers.

    /// What is at the register of either transport.
    pub fn read(&self, mmio: u64, pci: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        match &self.face {
            Face::Mmio(face) => face.read(mmio, &mut data[..len]),
            Face::Pci(face) => face.read_bar(BarIndex::Bar0, pci, &mut data[..len]),
        }
        read_le(&data[..len])
    }

    pub fn write(&self, mmio: u64, pci: u64, len: usize, value: u64) {
        let mut data = [0; 8];
        write_le(&mut data[..len], value);
        match &self.face {
            Face::Mmio(face) => face.write(mmio, &data[..len]),
            Face::Pci(face) => face.write_bar(BarIndex::Bar0, pci, &data[..len]),
        }
    }

    /// How wide a register is that virtio-pci has so wide.
    pub fn width(&self, pci: usize) -> usize {
        match self.kind {
            Transport::Mmio => 4,
            Transport::Pci => pci,
        }
    }

    pub fn status(&self) -> u32 {
        self.read(0x70, 0x14, self.width(1)) as u32
    }

    pub fn set_status(&self, status: u32) {
        self.write(0x70, 0x14, self.width(1), status.into());
    }

    /// How many queues the driver sees.
    pub fn queues(&self) -> u16 {
        (0..)
            .find(|&queue| {
                self.write(0x30, 0x16, self.width(2), u64::from(queue));
                self.read(0x34, 0x18, self.width(2)) == 0
            })
            .expect("a last queue")
    }

    pub fn offered(&self) -> u64 {
        (0..2).fold(0, |features, word| {
            self.write(0x14, 0x00, 4, word);
            features | self.read(0x10, 0x04, 4) << (32 * word)
        })
    }

    pub fn config(&self, offset: u64, len: usize) -> u64 {
        self.read(0x100 + offset, 0x2000 + offset, len)
    }

    pub fn set_config(&self, offset: u64, len: usize, value: u64) {
        self.write(0x100 + offset, 0x2000 + offset, len, value);
    }

    pub fn generation(&self) -> u64 {
        self.read(0xfc, 0x15, self.width(1))
    }

    /// Whether the driver was told that the configuration has changed, since it was last asked.
    pub fn was_told(&self) -> bool {
        let status = self.read(0x60, 0x1000, self.width(1));
        self.write(0x64, 0xfff, self.width(1), status);
        status & 2 != 0
    }

    // What drivers do.

    /// Up to FEATURES_OK. Whether the device has taken it.
    pub fn negotiate(&self, features: u64) -> bool {
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        for word in 0..2 {
            self.write(0x24, 0x08, 4, word);
            self.write(0x20, 0x0c, 4, features >> (32 * word) & 0xffff_ffff);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    pub fn enable(&mut self, queue: u16) {
        self.write(0x30, 0x16, self.width(2), queue.into());
        let size = SIZE.min(self.read(0x34, 0x18, self.width(2)) as u16);
        let ring = Ring::new(&self.memory, RINGS + RING * u64::from(queue), size);
        self.write(0x38, 0x18, self.width(2), size.into());
        for (mmio, pci, address) in [
            (0x80, 0x20, ring.layout.descriptor_area),
            (0x90, 0x28, ring.layout.driver_area),
            (0xa0, 0x30, ring.layout.device_area),
        ] {
            let address = address + self.shift;
            self.write(mmio, pci, 4, address & 0xffff_ffff);
            self.write(mmio + 4, pci + 4, 4, address >> 32);
        }
        self.write(0x44, 0x1c, self.width(2), 1);
        let index = usize::from(queue);
        self.rings.resize_with(self.rings.len().max(index + 1), || None);
        self.rings[index] = Some(ring);
    }

    pub fn drive(&mut self, features: u64, queues: &[u16]) {
        assert!(self.negotiate(features), "features are refused");
        queues.iter().for_each(|&queue| self.enable(queue));
        self.set_status(self.status() | DRIVER_OK);
    }

    pub fn reset(&mut self) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.rings.clear();
    }

    pub fn kick(&self, queue: u16) {
        self.write(0x50, 0x3000 + 4 * u64::from(queue), self.width(2), queue.into());
    }

    pub fn ring(&mut self, queue: u16) -> &mut Ring {
        self.rings[usize::from(queue)].as_mut().expect("an enabled queue")
    }

    /// Makes a request available and kicks. The used lengths of what came back.
    pub fn offer(&mut self, queue: u16, buffers: &[Buffer]) -> Vec<u32> {
        self.ring(queue).request(buffers);
        self.kick(queue);
        self.used(queue)
    }

    /// The same, of a request that comes back at once. Its used length.
    pub fn run(&mut self, queue: u16, buffers: &[Buffer]) -> u32 {
        let used = self.offer(queue, buffers);
        assert_eq!(used.len(), 1, "{buffers:?}");
        used[0]
    }

    pub fn used(&mut self, queue: u16) -> Vec<u32> {
        self.ring(queue).used().into_iter().map(|(_, len)| len).collect()
    }

    /// Runs a request of these bytes, with room for so many. Its used length and what is in the room.
    pub fn ask(&mut self, queue: u16, request: &[u8], room: u32) -> (u32, Vec<u8>) {
        self.put(REQUEST, request);
        self.put(ANSWER, &vec![0xee; room as usize + 1]);
        let mut buffers = vec![readable(REQUEST + self.shift, request.len() as u32)];
        if room != 0 {
            buffers.push(writable(ANSWER + self.shift, room));
        }
        let used = self.run(queue, &buffers);
        let mut answer = self.get(ANSWER, room as usize + 1);
        assert_eq!(answer.pop(), Some(0xee), "written beyond the room");
        (used, answer)
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("in guest memory");
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("in guest memory");
        bytes
    }

    pub fn counters(&self, queue: u16) -> QueueCounters {
        self.transport()
            .queue_counters(QueueIndex(queue))
            .expect("a running queue")
    }

    // State.

    pub fn saved(&self) -> SavedDevice {
        rest::saved(self.transport())
    }

    /// The same guest with another device, in the state of this one's, which is at rest for good.
    pub fn moved(&mut self, device: D) -> Self {
        let state = rest::at_rest(self.transport());
        let mut moved = Self::new(self.kind, device, &self.memory);
        moved.transport().restore(&state).expect("it was saved so");
        moved.transport().resume();
        moved.rings = std::mem::take(&mut self.rings);
        moved
    }
}

/// The features that a saved driver has accepted.
pub fn accepted(state: &SavedDevice) -> u64 {
    match &state.transport {
        SavedTransport::Mmio(state) => state.transport.driver_features,
        SavedTransport::Pci(state) => state.transport.driver_features,
        _ => unreachable!("one of the two"),
    }
}
