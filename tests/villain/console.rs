//! A driver of a console.

use crate::{
    both::{ANSWER, REQUEST},
    driver::Seen,
    ring::{readable, writable},
    world::{Kind, World},
};

pub const RX: u16 = 0;
pub const TX: u16 = 1;
pub const CONTROL_RX: u16 = 2;
pub const CONTROL_TX: u16 = 3;

pub const F_MULTIPORT: u64 = 1 << 1;

pub const DEVICE_READY: u16 = 0;
pub const DEVICE_ADD: u16 = 1;
pub const PORT_READY: u16 = 3;
pub const CONSOLE_PORT: u16 = 4;
pub const RESIZE: u16 = 5;
pub const PORT_OPEN: u16 = 6;
pub const PORT_NAME: u16 = 7;

/// Where buffers for messages are.
const MESSAGES: u64 = 0xb_0000;

/// A control message.
pub fn message(port: u32, event: u16, value: u16) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&port.to_le_bytes());
    bytes[4..6].copy_from_slice(&event.to_le_bytes());
    bytes[6..].copy_from_slice(&value.to_le_bytes());
    bytes
}

impl World {
    pub fn is_multiport(&self) -> bool {
        self.kind == Kind::Multiport && self.has(F_MULTIPORT)
    }

    /// The driver is ready, and so are its ports.
    pub fn bring_ports_up(&mut self) {
        assert_eq!(self.say(0, DEVICE_READY, 1), Seen::Served);
        assert!(self.hear().contains(&(0, DEVICE_ADD, 0)));
        for event in [PORT_READY, PORT_OPEN] {
            assert_eq!(self.say(0, event, 1), Seen::Served);
        }
        self.hear();
    }

    /// Sends a control message.
    pub fn say(&mut self, port: u32, event: u16, value: u16) -> Seen {
        self.say_bytes(&message(port, event, value))
    }

    pub fn say_bytes(&mut self, bytes: &[u8]) -> Seen {
        self.guest.put(REQUEST, bytes);
        self.offer(CONTROL_TX, &[readable(REQUEST, bytes.len() as u32)])
    }

    /// The messages that the device has: port, event and value.
    pub fn hear(&mut self) -> Vec<(u32, u16, u16)> {
        let mut told = Vec::new();
        loop {
            let ring = self.guest.ring(CONTROL_RX);
            while ring.avail_idx().wrapping_sub(ring.used_idx()) < 4 {
                let at = MESSAGES + 0x100 * u64::from(ring.avail_idx() % 16);
                ring.request(&[writable(at, 0x100)]);
            }
            self.kick(CONTROL_RX);
            let ring = self.guest.ring(CONTROL_RX);
            let used = ring.used();
            if used.is_empty() {
                return told;
            }
            for (head, len) in used {
                let table = self.guest.ring(CONTROL_RX).layout.descriptor_area;
                let at: u64 = self.guest.ring(CONTROL_RX).get(table + 16 * u64::from(head));
                let bytes = self.guest.get(at, len as usize);
                let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                let port = u32::from(half(0)) | u32::from(half(2)) << 16;
                told.push((port, half(4), half(6)));
            }
        }
    }
}

/// So many bytes are put out, and reach whoever listens.
pub fn puts_out(w: &mut World, len: u32) -> Seen {
    let text: Vec<u8> = (0..len).map(|at| at as u8).collect();
    w.guest.put(REQUEST, &text);
    let seen = w.offer(TX, &[readable(REQUEST, len)]);
    assert_eq!(w.peer().output(), text);
    seen
}

/// Buffers for input wait for it, and then hold it.
pub fn takes_input(w: &mut World, buffers: u64) -> Seen {
    let kept = w.watch(RX, |ring| {
        for number in 0..buffers {
            ring.request(&[writable(ANSWER + 16 * number, 16)]);
        }
    });
    assert_eq!(kept, Seen::Kept);
    w.peer().type_in(&[b'x'; 16].repeat(buffers as usize));
    w.guest.transport().run();
    let used = w.guest.used(RX);
    assert_eq!(used, vec![16; buffers as usize]);
    assert_eq!(w.guest.get(ANSWER, 16), [b'x'; 16]);
    Seen::Holds
}

/// A message that changes nothing: the driver is asked for nothing, and what it puts out still arrives.
pub fn says_nonsense(w: &mut World, port: u32, event: u16, value: u16) -> Seen {
    let seen = w.say(port, event, value);
    if w.is_multiport() {
        assert_eq!(w.hear(), []);
    }
    seen
}

/// What the driver of several ports is told when it says that it is ready, from the beginning.
pub fn greeting(w: &mut World) -> Vec<(u32, u16, u16)> {
    if !w.is_multiport() {
        return Vec::new();
    }
    let features = w.features;
    w.guest.reset();
    let queues: Vec<_> = (0..w.guest.queues()).collect();
    w.guest.drive(features, &queues);
    assert_eq!(w.hear(), [], "before it is ready");
    assert_eq!(w.say(0, DEVICE_READY, 1), Seen::Served);
    let mut told = w.hear();
    assert_eq!(w.say(0, PORT_READY, 1), Seen::Served);
    told.extend(w.hear());
    assert_eq!(w.say(0, PORT_OPEN, 1), Seen::Served);
    told
}
