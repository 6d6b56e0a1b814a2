//! What a driver of a console says and hears.

use std::{sync::Arc, time::Duration};

use devisor::{
    time::ManualClock,
    virtio::console::{Console, ConsoleOptions, MemoryPeer, Port, Ports},
};

use crate::machine::{Bus, Machine};

pub const F_SIZE: u64 = 1 << 0;
pub const F_MULTIPORT: u64 = 1 << 1;
pub const F_EMERG_WRITE: u64 = 1 << 2;

pub const DEVICE_READY: u16 = 0;
pub const DEVICE_ADD: u16 = 1;
pub const DEVICE_REMOVE: u16 = 2;
pub const PORT_READY: u16 = 3;
pub const CONSOLE_PORT: u16 = 4;
pub const RESIZE: u16 = 5;
pub const PORT_OPEN: u16 = 6;
pub const PORT_NAME: u16 = 7;

pub const RX: u16 = 0;
pub const TX: u16 = 1;
pub const CONTROL_RX: u16 = 2;
pub const CONTROL_TX: u16 = 3;

pub fn rx(port: u16) -> u16 {
    if port == 0 { 0 } else { 2 * port + 2 }
}

pub fn tx(port: u16) -> u16 {
    rx(port) + 1
}

pub type Guest = Machine<Console>;

/// A clock that stands still.
pub fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Duration::ZERO))
}

/// A console with one port, in memory, whose driver is ready.
pub fn single(bus: Bus) -> (Guest, MemoryPeer) {
    let peer = MemoryPeer::new(1 << 16);
    let console = Console::single(Port::console(peer.clone())).unwrap();
    (Machine::new(bus, console, F_EMERG_WRITE), peer)
}

/// A device for up to four ports, of which none is plugged in, whose driver has not said DEVICE_READY.
pub fn multiport(bus: Bus) -> (Guest, Ports) {
    let options = ConsoleOptions {
        max_ports: Some(4),
        ..ConsoleOptions::default()
    };
    let console = Console::new(options).unwrap();
    let ports = console.ports();
    (Machine::new(bus, console, F_MULTIPORT), ports)
}

/// A control message with nothing behind it.
pub fn message(port: u32, event: u16, value: u16) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&port.to_le_bytes());
    bytes[4..6].copy_from_slice(&event.to_le_bytes());
    bytes[6..].copy_from_slice(&value.to_le_bytes());
    bytes
}

/// What a control message says: port, event, value, and what is behind it.
pub type Told = (u32, u16, u16, Vec<u8>);

pub trait Control {
    fn say(&mut self, port: u32, event: u16, value: u16);
    fn hear(&mut self) -> Vec<Told>;
    fn ready(&mut self, port: u32);
}

impl Control for Guest {
    /// Sends a control message.
    fn say(&mut self, port: u32, event: u16, value: u16) {
        self.send(CONTROL_TX, &[&message(port, event, value)]);
        self.run();
    }

    /// All messages that the device has, with room for as many as there are.
    fn hear(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        self.run();
        loop {
            let got = self.received(CONTROL_RX);
            told.extend(got.iter().map(|bytes| decode(bytes)));
            let ring = &self.rings[usize::from(CONTROL_RX)];
            let waiting = ring.avail_idx().wrapping_sub(ring.used_idx());
            if waiting >= 4 {
                return told;
            }
            self.room(CONTROL_RX, 256);
            self.run();
        }
    }

    /// The driver has set the port up.
    fn ready(&mut self, port: u32) {
        self.say(port, PORT_READY, 1);
    }
}

fn decode(bytes: &[u8]) -> Told {
    let word = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let port = u32::from_le_bytes(bytes[..4].try_into().unwrap());
    (port, word(4), word(6), bytes[8..].to_vec())
}
