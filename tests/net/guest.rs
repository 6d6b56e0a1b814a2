//! A driver that keeps to the rules unless a test has it break them, in front of a device behind virtio-mmio.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use devisor::{
    bus::BusDevice,
    interrupt::from_fn,
    time::ManualClock,
    virtio::{
        VirtioMmio, VirtioTransport, features,
        net::{Header, Net, NetError, NetFrame, NetOptions, Port, Wire},
        transport::{SavedDevice, mmio::Line},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{
    rest::at_rest,
    ring::{Buffer, Ring, readable, writable},
};

// Numbers of section 5.1.3, which are not the device's own: a wrong one would go unseen.
pub const CSUM: u64 = 1 << 0;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub const MTU: u64 = 1 << 3;
pub const MAC: u64 = 1 << 5;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const GUEST_TSO6: u64 = 1 << 8;
pub const GUEST_ECN: u64 = 1 << 9;
pub const GUEST_UFO: u64 = 1 << 10;
pub const HOST_TSO4: u64 = 1 << 11;
pub const HOST_TSO6: u64 = 1 << 12;
pub const HOST_ECN: u64 = 1 << 13;
pub const HOST_UFO: u64 = 1 << 14;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const STATUS: u64 = 1 << 16;
pub const CTRL_VQ: u64 = 1 << 17;
pub const CTRL_RX: u64 = 1 << 18;
pub const CTRL_VLAN: u64 = 1 << 19;
pub const CTRL_RX_EXTRA: u64 = 1 << 20;
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
pub const MQ: u64 = 1 << 22;
pub const CTRL_MAC_ADDR: u64 = 1 << 23;
pub const VQ_NOTF_COAL: u64 = 1 << 52;
pub const NOTF_COAL: u64 = 1 << 53;
pub const GUEST_USO4: u64 = 1 << 54;
pub const GUEST_USO6: u64 = 1 << 55;
pub const HOST_USO: u64 = 1 << 56;
pub const HASH_REPORT: u64 = 1 << 57;
pub const RSS: u64 = 1 << 60;
pub const SPEED_DUPLEX: u64 = 1 << 63;

pub const OK: u8 = 0;
pub const ERR: u8 = 1;

/// Descriptors of each queue of the guest.
pub const SIZE: u16 = 32;
/// Bytes of memory for each queue, rings included, and for each of its buffers.
const PER_QUEUE: u64 = 0x10_0000;
const RINGS: u64 = 0x10_0000;
const BUFFERS: u64 = 0x8000;
const PER_BUFFER: u64 = 0x4000;

/// The address of the guest in all tests, and of another station.
pub const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
pub const BROADCAST: [u8; 6] = [0xff; 6];
pub const MULTICAST: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 7];

pub fn options() -> NetOptions {
    NetOptions {
        mac: Some(devisor::virtio::net::Mac(OWN)),
        queue_size: 64,
        ..NetOptions::default()
    }
}

/// A frame of `len` bytes to `to`, with bytes that can be told apart.
pub fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 7 + at / 256) as u8).collect();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&OTHER);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// The same, as the network has it.
pub fn plain(to: [u8; 6], len: usize) -> NetFrame {
    NetFrame {
        header: Header::default(),
        data: frame(to, len),
    }
}

/// An IPv4 packet of UDP or TCP with these ports.
pub fn packet(protocol: u8, source: u16, destination: u16) -> Vec<u8> {
    let mut frame = frame(OWN, 60);
    frame[12..24].copy_from_slice(&[0x08, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, protocol]);
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[34..36].copy_from_slice(&source.to_be_bytes());
    frame[36..38].copy_from_slice(&destination.to_be_bytes());
    frame
}

pub struct Guest {
    pub nic: VirtioMmio<Net>,
    pub memory: Arc<GuestMemoryMmap>,
    pub rings: Vec<Ring>,
    pub interrupts: Arc<AtomicU64>,
    /// By which notifications are late.
    pub clock: Arc<ManualClock>,
    pub features: u64,
    offered: Vec<u64>,
}

impl Guest {
    /// A guest whose driver takes `features`, with what is common to all devices, and enables all queues.
    pub fn new(wire: &Arc<Wire>, options: NetOptions, features: u64) -> Self {
        Self::over([Arc::clone(wire)], options, features)
    }

    pub fn over<P: Port + 'static>(ports: impl IntoIterator<Item = P>, options: NetOptions, features: u64) -> Self {
        let mut guest = Self::off(ports, options).unwrap();
        assert!(guest.start(features), "FEATURES_OK is refused");
        guest
    }

    /// One whose driver has not begun.
    pub fn off<P: Port + 'static>(ports: impl IntoIterator<Item = P>, options: NetOptions) -> Result<Self, NetError> {
        let queues = u64::from(options.pairs) * 2 + 1;
        let nic = Net::new(ports, options)?;
        let bytes = (RINGS + queues * PER_QUEUE) as usize;
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap());
        Ok(Self::with_memory(nic, memory, Arc::default()))
    }

    fn with_memory(nic: Net, memory: Arc<GuestMemoryMmap>, clock: Arc<ManualClock>) -> Self {
        let nic = nic.with_clock(Arc::clone(&clock));
        let interrupts = Arc::new(AtomicU64::new(0));
        let line = from_fn({
            let interrupts = Arc::clone(&interrupts);
            move || {
                interrupts.fetch_add(1, SeqCst);
                io::Result::Ok(())
            }
        });
        let nic = VirtioMmio::new(nic, Arc::clone(&memory), Line::Edge(Arc::new(line))).unwrap();
        Self {
            nic,
            memory,
            rings: Vec::new(),
            interrupts,
            clock,
            features: 0,
            offered: Vec::new(),
        }
    }

    pub fn write(&self, register: u64, value: u32) {
        self.nic.write(register, &value.to_le_bytes());
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.nic.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn offered(&self) -> u64 {
        let word = |sel| {
            self.write(0x14, sel);
            u64::from(self.read(0x10))
        };
        word(0) | word(1) << 32
    }

    /// Up to FEATURES_OK. Whether it is taken.
    pub fn negotiate(&mut self, wanted: u64) -> bool {
        self.features = wanted | features::VERSION_1;
        self.write(0x70, 1);
        self.write(0x70, 3);
        for (sel, word) in [(0, self.features as u32), (1, (self.features >> 32) as u32)] {
            self.write(0x24, sel);
            self.write(0x20, word);
        }
        self.write(0x70, 0xb);
        self.read(0x70) == 0xb
    }

    /// Resets the device and brings it up.
    pub fn start(&mut self, wanted: u64) -> bool {
        self.write(0x70, 0);
        if !self.negotiate(wanted) {
            return false;
        }
        self.rings.clear();
        for queue in 0.. {
            self.write(0x30, queue);
            let max = self.read(0x34);
            if max == 0 {
                break;
            }
            self.set_up_queue(queue as usize);
        }
        self.offered = vec![0; self.rings.len()];
        self.write(0x70, 0xf);
        true
    }

    fn set_up_queue(&mut self, queue: usize) {
        let base = RINGS + queue as u64 * PER_QUEUE;
        let ring = Ring::new(&self.memory, base, SIZE);
        self.write(0x30, queue as u32);
        self.write(0x38, SIZE.into());
        let layout = ring.layout;
        for (register, address) in [
            (0x80, layout.descriptor_area),
            (0x90, layout.driver_area),
            (0xa0, layout.device_area),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
        if self.rings.len() == queue {
            self.rings.push(ring);
        } else {
            self.rings[queue] = ring;
        }
    }

    /// Stops a queue and begins it anew.
    pub fn restart_queue(&mut self, queue: usize) {
        self.stop_queue(queue);
        self.set_up_queue(queue);
    }

    pub fn stop_queue(&self, queue: usize) {
        self.write(0x30, queue as u32);
        self.write(0x44, 0);
        assert_eq!(self.read(0x44), 0);
    }

    pub fn header_len(&self) -> usize {
        if self.features & HASH_REPORT != 0 { 20 } else { 12 }
    }

    fn control_queue(&self) -> usize {
        match self.features & (MQ | RSS) {
            0 => 2,
            _ => self.rings.len() - 1,
        }
    }

    /// Where the next buffer of a queue is.
    fn place(&mut self, queue: usize) -> u64 {
        let at = RINGS + queue as u64 * PER_QUEUE + BUFFERS + self.offered[queue] % 32 * PER_BUFFER;
        self.offered[queue] += 1;
        at
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub fn kick(&self, queue: usize) {
        self.write(0x50, queue as u32);
        // Whoever else was woken.
        self.nic.run();
    }

    // Transmit.

    /// Makes a chain of these bytes available, as one buffer, and kicks.
    pub fn transmit_bytes(&mut self, queue: usize, bytes: &[u8]) {
        let at = self.place(queue);
        // Behind the buffers, where there is room for more than one takes.
        let at = if bytes.len() as u64 > PER_BUFFER {
            RINGS + queue as u64 * PER_QUEUE + BUFFERS + 32 * PER_BUFFER
        } else {
            at
        };
        self.put(at, bytes);
        self.rings[queue].request(&[readable(at, bytes.len() as u32)]);
        self.kick(queue);
    }

    pub fn transmit(&mut self, header: Header, frame: &[u8]) {
        self.transmit_on(0, header, frame);
    }

    pub fn transmit_on(&mut self, pair: usize, header: Header, frame: &[u8]) {
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(self.header_len(), 0);
        bytes.extend(frame);
        self.transmit_bytes(pair * 2 + 1, &bytes);
    }

    /// What was used of a queue: lengths.
    pub fn used(&mut self, queue: usize) -> Vec<u32> {
        self.rings[queue].used().into_iter().map(|(_, len)| len).collect()
    }

    pub fn malformed(&self, queue: usize) -> u64 {
        let queue = devisor::virtio::QueueIndex(queue as u16);
        self.nic.queue_counters(queue).unwrap().malformed
    }

    // Receive.

    /// Gives a receive queue a buffer of `len` bytes, header included, and kicks. Where it is.
    pub fn buffer(&mut self, pair: usize, len: u32) -> u64 {
        let at = self.buffer_quietly(pair, len);
        self.kick(pair * 2);
        at
    }

    pub fn buffer_quietly(&mut self, pair: usize, len: u32) -> u64 {
        let at = self.place(pair * 2);
        self.put(at, &vec![0xee; len as usize]);
        self.rings[pair * 2].request(&[writable(at, len)]);
        at
    }

    /// Gives it a chain of these buffers.
    pub fn buffers(&mut self, pair: usize, buffers: &[Buffer]) {
        self.rings[pair * 2].request(buffers);
        self.kick(pair * 2);
    }

    /// What a receive queue has got: header and frame of each, where no frame has more than one buffer.
    pub fn received(&mut self, pair: usize) -> Vec<(Header, Vec<u8>)> {
        let header_len = self.header_len();
        let used = self.rings[pair * 2].used();
        let frames = used.into_iter().map(|(head, len)| {
            let ring = &self.rings[pair * 2];
            let at: u64 = ring.get(ring.layout.descriptor_area + 16 * u64::from(head));
            let bytes = self.get(at, len as usize);
            let header: [u8; 12] = bytes[..12].try_into().unwrap();
            (Header::from_bytes(&header), bytes[header_len..].to_vec())
        });
        frames.collect()
    }

    /// Puts a frame on the wire, with a buffer for it, and says whether it was received as it was.
    pub fn receives(&mut self, wire: &Wire, data: &[u8]) -> bool {
        let frame = NetFrame {
            header: Header::default(),
            data: data.to_vec(),
        };
        if self.rings[0].used_idx() == self.rings[0].avail_idx() {
            self.buffer(0, 2048);
        }
        assert!(wire.put(frame));
        self.nic.run();
        assert_eq!(wire.waiting(), 0, "it was looked at");
        let received = self.received(0);
        assert!(received.len() <= 1);
        received.first().is_some_and(|(_, frame)| frame == data)
    }

    // Control.

    /// Sends a command. What `ack` is.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let (used, answer) = self.command_for(class, command, data, 1);
        assert_eq!(used, 1, "the used length of a command");
        answer[0]
    }

    /// Sends one with room for an answer of so many bytes. The used length, and the answer.
    pub fn command_for(&mut self, class: u8, command: u8, data: &[u8], room: u32) -> (u32, Vec<u8>) {
        let mut bytes = vec![class, command];
        bytes.extend(data);
        let used = self.command_bytes(&bytes, room);
        assert_eq!(used.len(), 1, "the command is answered");
        let queue = self.control_queue();
        let answer = RINGS + queue as u64 * PER_QUEUE + BUFFERS;
        (used[0], self.get(answer, room as usize))
    }

    /// Sends these bytes as a command. The used lengths.
    pub fn command_bytes(&mut self, bytes: &[u8], room: u32) -> Vec<u32> {
        let queue = self.control_queue();
        let answer = RINGS + queue as u64 * PER_QUEUE + BUFFERS;
        let at = answer + PER_BUFFER;
        self.put(answer, &[0xee; 64]);
        self.put(at, bytes);
        let (head, body) = bytes.split_at(bytes.len().min(2));
        let mut chain = vec![readable(at, head.len() as u32)];
        if !body.is_empty() {
            chain.push(readable(at + 2, body.len() as u32));
        }
        if room != 0 {
            chain.push(writable(answer, room));
        }
        self.rings[queue].request(&chain);
        self.kick(queue);
        self.used(queue)
    }

    // Configuration.

    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        for (at, byte) in (offset..).zip(bytes.chunks_mut(1)) {
            self.nic.read(0x100 + at, byte);
        }
        bytes
    }

    pub fn config_u16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.config(offset))
    }

    // State.

    pub fn save(&self) -> SavedDevice {
        at_rest(&self.nic)
    }

    /// The same guest, with its memory, over a device that was made anew and has the state of this one.
    pub fn moved<P: Port + 'static>(mut self, ports: impl IntoIterator<Item = P>, options: NetOptions) -> Self {
        let state = self.save();
        let (memory, clock) = (Arc::clone(&self.memory), Arc::clone(&self.clock));
        let mut moved = Self::with_memory(Net::new(ports, options).unwrap(), memory, clock);
        moved.nic.restore(&state).unwrap();
        moved.nic.resume();
        moved.nic.run();
        moved.rings = std::mem::take(&mut self.rings);
        moved.offered = std::mem::take(&mut self.offered);
        moved.features = self.features;
        moved
    }
}
