//! What a driver of a socket device says and hears.

use std::{sync::Arc, time::Duration};

use devisor::{
    time::ManualClock,
    virtio::vsock::{MemoryHost, Vsock, VsockOptions},
};

use crate::machine::{Bus, Machine};

pub use crate::packet::*;

pub const F_STREAM: u64 = 1 << 0;
pub const F_NO_IMPLIED_STREAM: u64 = 1 << 2;

/// No packet.
pub const NONE: [u16; 0] = [];

pub const NO_MORE_RECEIVE: u32 = 1;
pub const NO_MORE_SEND: u32 = 2;
pub const EOM: u32 = 1;
pub const EOR: u32 = 2;

/// The guest's buffer, as its packets say.
pub const BUFFER: u32 = 1 << 16;

/// The guest's port and the host's of a connection, and its type.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub guest: u32,
    pub host: u32,
    pub kind: u16,
}

pub const A: Ports = Ports {
    guest: 1000,
    host: 80,
    kind: STREAM,
};

impl Ports {
    pub fn packet(self, op: u16) -> Packet {
        Packet {
            src_cid: CID,
            dst_cid: HOST,
            src_port: self.guest,
            dst_port: self.host,
            len: 0,
            kind: self.kind,
            op,
            flags: 0,
            buf_alloc: BUFFER,
            fwd_cnt: 0,
            data: Vec::new(),
        }
    }

    pub fn data(self, data: &[u8]) -> Packet {
        Packet {
            len: data.len() as u32,
            data: data.to_vec(),
            ..self.packet(RW)
        }
    }
}

pub type Guest = Machine<Vsock>;

/// A device, its host side, and its time.
pub struct World {
    pub guest: Guest,
    pub host: MemoryHost,
    pub clock: Arc<ManualClock>,
}

/// What fits into the host's sockets.
pub const HOST_ROOM: usize = 1 << 16;

pub fn vsock(host: &MemoryHost, clock: &Arc<ManualClock>, options: VsockOptions) -> Vsock {
    Vsock::new(host.clone(), Arc::clone(clock) as _, options).unwrap()
}

impl World {
    pub fn new(bus: Bus) -> Self {
        Self::with(bus, VsockOptions::default())
    }

    pub fn with(bus: Bus, options: VsockOptions) -> Self {
        Self::negotiated(bus, options, HOST_ROOM, F_STREAM | F_SEQPACKET)
    }

    pub fn negotiated(bus: Bus, options: VsockOptions, room: usize, features: u64) -> Self {
        let host = MemoryHost::new(room);
        let clock = Arc::new(ManualClock::default());
        let guest = Machine::new(bus, vsock(&host, &clock, options), features);
        Self { guest, host, clock }
    }

    /// The guest sends a packet.
    pub fn send(&mut self, packet: &Packet) {
        let header = packet.bytes();
        match packet.data.is_empty() {
            true => self.guest.send(TX, &[&header]),
            false => self.guest.send(TX, &[&header, &packet.data]),
        }
        self.guest.run();
    }

    /// All packets that the device has, with room for as many as there are.
    pub fn hear(&mut self) -> Vec<Packet> {
        self.hear_in(4096)
    }

    /// The same in buffers of so many bytes.
    pub fn hear_in(&mut self, room: u32) -> Vec<Packet> {
        let mut packets = Vec::new();
        loop {
            self.guest.run();
            let used = self.guest.received(RX);
            // What was no buffer comes back empty.
            packets.extend(
                used.iter()
                    .filter(|bytes| !bytes.is_empty())
                    .map(|bytes| Packet::decode(bytes)),
            );
            let ring = &self.guest.rings[usize::from(RX)];
            if ring.avail_idx().wrapping_sub(ring.used_idx()) >= 2 {
                return packets;
            }
            self.guest.room(RX, room);
        }
    }

    pub fn ops(&mut self) -> Vec<u16> {
        self.hear().iter().map(|packet| packet.op).collect()
    }

    /// The guest connects to a port where somebody listens.
    pub fn open(&mut self, ports: Ports) -> devisor::virtio::vsock::MemorySocket {
        let kind = kind(ports);
        self.host.listen(ports.host, kind);
        self.send(&ports.packet(REQUEST));
        let answer = self.hear();
        assert_eq!(answer.len(), 1);
        assert_eq!(answer[0].op, RESPONSE);
        self.host.accept(ports.host, kind).expect("the guest's connection")
    }

    pub fn advance(&mut self, step: Duration) {
        self.clock.advance(step);
        // As an event loop does.
        self.guest.transport().process(devisor::virtio::QueueIndex(RX));
        self.guest.run();
    }

    pub fn connections(&self) -> usize {
        self.guest.with_device(|vsock| vsock.connections())
    }
}

pub fn kind(ports: Ports) -> devisor::virtio::vsock::SocketKind {
    match ports.kind {
        SEQPACKET => devisor::virtio::vsock::SocketKind::Seqpacket,
        _ => devisor::virtio::vsock::SocketKind::Stream,
    }
}
