//! What plays the guest and the local APICs: a driver of the registers, and a sink that takes the messages.

use devisor::{
    backends::irqchip::ioapic::{IoApic, IoApicConfig},
    bus::BusDevice,
    interrupt::{Acceptance, MsiMessage, MsiSink, RequesterId},
};
use std::{
    io, mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

pub const MASKED: u64 = 1 << 16;
pub const LEVEL: u64 = 1 << 15;
pub const REMOTE_IRR: u64 = 1 << 14;
pub const ACTIVE_LOW: u64 = 1 << 13;
pub const DELIVERY_STATUS: u64 = 1 << 12;
pub const LOGICAL: u64 = 1 << 11;

/// What takes the messages.
#[derive(Default)]
pub struct Sink {
    pub sent: Mutex<Vec<(RequesterId, MsiMessage)>>,
    pub refuses: AtomicBool,
    /// Nobody accepts what is offered.
    pub drops: AtomicBool,
    pub tries: Mutex<u32>,
}

impl MsiSink for Sink {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        *self.tries.lock().unwrap() += 1;
        if self.refuses.load(SeqCst) {
            return Err(io::Error::other("refused"));
        }
        self.sent.lock().unwrap().push((requester, message));
        Ok(())
    }

    fn offer(&self, requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        if self.drops.load(SeqCst) {
            *self.tries.lock().unwrap() += 1;
            return Ok(Acceptance::Dropped);
        }
        self.send(requester, message)?;
        Ok(Acceptance::Accepted)
    }
}

impl Sink {
    pub fn take(&self) -> Vec<MsiMessage> {
        let sent = mem::take(&mut *self.sent.lock().unwrap());
        sent.into_iter().map(|(_, message)| message).collect()
    }

    /// The vectors of the messages since the last time.
    pub fn vectors(&self) -> Vec<u8> {
        self.take().iter().map(|message| message.data as u8).collect()
    }

    pub fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, SeqCst);
    }
}

pub fn with_pins(pins: u32) -> (IoApic, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    let config = IoApicConfig {
        pins,
        ..IoApicConfig::default()
    };
    (IoApic::new(config, Arc::clone(&sink)).unwrap(), sink)
}

pub fn new() -> (IoApic, Arc<Sink>) {
    with_pins(24)
}

pub fn read(ioapic: &IoApic, index: u32) -> u32 {
    ioapic.write(0x00, &index.to_le_bytes());
    let mut data = [0; 4];
    ioapic.read(0x10, &mut data);
    u32::from_le_bytes(data)
}

pub fn write(ioapic: &IoApic, index: u32, value: u32) {
    ioapic.write(0x00, &index.to_le_bytes());
    ioapic.write(0x10, &value.to_le_bytes());
}

pub fn entry(ioapic: &IoApic, pin: u32) -> u64 {
    u64::from(read(ioapic, 0x11 + 2 * pin)) << 32 | u64::from(read(ioapic, 0x10 + 2 * pin))
}

/// High half first, as one does who unmasks with the low half.
pub fn program(ioapic: &IoApic, pin: u32, entry: u64) {
    write(ioapic, 0x11 + 2 * pin, (entry >> 32) as u32);
    write(ioapic, 0x10 + 2 * pin, entry as u32);
}
