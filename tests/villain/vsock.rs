//! A driver of a socket device.

use crate::{
    both::REQUEST as AT,
    driver::Seen,
    ring::{readable, writable},
    world::{LISTENER, World},
};

pub use crate::packet::*;

/// Where packets to the guest arrive, and a page that nobody else uses.
const ROOM: u64 = 0xb_0000;

/// A packet of a stream of the guest's port 1000 to the host's port that listens.
pub fn packet(op: u16) -> Packet {
    Packet {
        src_cid: CID,
        dst_cid: HOST,
        src_port: 1000,
        dst_port: LISTENER,
        len: 0,
        kind: STREAM,
        op,
        flags: 0,
        buf_alloc: 1 << 16,
        fwd_cnt: 0,
        data: Vec::new(),
    }
}

pub fn data(bytes: &[u8]) -> Packet {
    Packet {
        len: bytes.len() as u32,
        data: bytes.to_vec(),
        ..packet(RW)
    }
}

impl Packet {
    /// From another port of the guest.
    pub fn from(mut self, port: u32) -> Self {
        self.src_port = port;
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl World {
    /// Sends a packet as header and payload.
    pub fn send(&mut self, packet: &Packet) -> Seen {
        let header = packet.bytes();
        self.guest.put(AT, &header);
        self.guest.put(AT + 64, &packet.data);
        let mut buffers = vec![readable(AT, header.len() as u32)];
        if !packet.data.is_empty() {
            buffers.push(readable(AT + 64, packet.data.len() as u32));
        }
        self.offer(TX, &buffers)
    }

    /// The headers of the packets that the device has: operation, type, and the guest's port.
    pub fn heard(&mut self) -> Vec<(u16, u16, u32)> {
        let mut heard = Vec::new();
        loop {
            let ring = self.guest.ring(RX);
            while ring.avail_idx().wrapping_sub(ring.used_idx()) < 2 {
                let at = ROOM + 0x1000 * u64::from(ring.avail_idx() % 4);
                ring.request(&[writable(at, 0x1000)]);
            }
            self.kick(RX);
            let ring = self.guest.ring(RX);
            let used = ring.used();
            if used.is_empty() {
                return heard;
            }
            for (head, len) in used {
                assert!(len >= 44, "a packet of {len} bytes");
                let ring = self.guest.ring(RX);
                let at: u64 = ring.get(ring.layout.descriptor_area + 16 * u64::from(head));
                let bytes = self.guest.get(at, 44);
                let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                let port = u32::from(half(20)) | u32::from(half(22)) << 16;
                heard.push((half(30), half(28), port));
            }
        }
    }

    /// The operations of the packets that the device has.
    pub fn ops(&mut self) -> Vec<u16> {
        self.heard().into_iter().map(|(op, ..)| op).collect()
    }

    /// Sends a packet. The operations of the answers.
    pub fn ask(&mut self, packet: &Packet) -> Vec<u16> {
        assert_eq!(self.send(packet), Seen::Served, "{packet:?}");
        self.ops()
    }

    /// A connection from this port of the guest.
    pub fn connect(&mut self, port: u32) {
        assert_eq!(self.ask(&packet(REQUEST).from(port)), [RESPONSE]);
    }

    /// What the programs that took the guest's connections have read.
    pub fn host_reads(&self) -> Vec<u8> {
        let kind = devisor::virtio::vsock::SocketKind::Stream;
        let sockets = std::iter::from_fn(|| self.sockets().accept(LISTENER, kind));
        sockets.flat_map(|socket| socket.read()).collect()
    }
}

/// The guest's packet is answered so.
pub fn answered(w: &mut World, packet: &Packet, ops: &[u16]) -> Seen {
    assert_eq!(w.ask(packet), ops, "{packet:?}");
    Seen::Holds
}

/// The same where there is a connection.
pub fn answered_when_connected(w: &mut World, packet: &Packet, ops: &[u16]) -> Seen {
    w.connect(1000);
    answered(w, packet, ops)
}

/// A connection from a port that nobody has used gets its answer.
pub fn answers(w: &mut World) {
    w.ops();
    let port = 0x7fff_0000 + u32::from(w.guest.ring(TX).avail_idx());
    w.connect(port);
    assert_eq!(w.ask(&packet(RST).from(port)), [0; 0]);
}
