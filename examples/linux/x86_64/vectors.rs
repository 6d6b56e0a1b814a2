//! What the host sees of the guest's interrupts: behind each vector that a core takes there is a pin, a PCI function or a local APIC.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use devisor::{
    backends::irqchip::{
        ioapic::{IoApic, Pin},
        lapic::Vector,
        pc::Gsi,
        pic::Irq,
    },
    interrupt::{MsiMessage, MsiSink, RequesterId},
};

use crate::{counts::Id, watch::Watch};

/// From here on Linux has vectors for what local APICs do (`arch/x86/include/asm/irq_vectors.h`).
const FIRST_SYSTEM_VECTOR: u8 = 0xec;
pub const LOCAL_TIMER: Id = Id::Vector(Vector(0xec));
/// Reschedule, call a function, call a function on one CPU.
pub const INTERPROCESSOR: [Id; 3] = [
    Id::Vector(Vector(0xfb)),
    Id::Vector(Vector(0xfc)),
    Id::Vector(Vector(0xfd)),
];

/// Says for each vector what is behind it, and counts that.
pub struct Acknowledged {
    watch: Arc<Watch>,
    /// Who last sent a vector to a core.
    senders: Mutex<BTreeMap<(u8, u32), RequesterId>>,
    ioapic: OnceLock<IoApic>,
}

impl Acknowledged {
    pub fn new(watch: Arc<Watch>) -> Self {
        Self {
            watch,
            senders: Mutex::default(),
            ioapic: OnceLock::new(),
        }
    }

    pub fn look_at(&self, ioapic: &IoApic) {
        let _ = self.ioapic.set(ioapic.clone());
    }

    /// A core has taken a vector of its local APIC.
    pub fn vector(&self, cpu: u32, vector: Vector) {
        let id = match vector.0 {
            FIRST_SYSTEM_VECTOR.. => None,
            _ => self.sender(cpu, vector).or_else(|| self.pin(cpu, vector)),
        };
        self.watch.acknowledged(id.unwrap_or(Id::Vector(vector)));
    }

    /// A core has taken a vector of the 8259s, which Linux has at 0x30 to 0x3f.
    pub fn external(&self, vector: Vector) {
        self.watch.acknowledged(Id::Gsi(Gsi::of_irq(Irq(vector.0 & 0xf))));
    }

    fn sender(&self, cpu: u32, vector: Vector) -> Option<Id> {
        let senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.get(&(vector.0, cpu)).copied().map(Id::Message)
    }

    fn pin(&self, cpu: u32, vector: Vector) -> Option<Id> {
        let ioapic = self.ioapic.get()?;
        let pin = (0..ioapic.config().pins).find(|pin| {
            let message = ioapic.message(Pin(*pin)).ok().flatten();
            message.is_some_and(|message| message.data as u8 == vector.0 && goes_to(cpu, message))
        })?;
        Some(Id::Gsi(Gsi(pin)))
    }
}

/// Whether a message is for that core, as Linux has destinations where there are few: flat, or an ID (Intel SDM volume 3, section
/// 11.11.1).
fn goes_to(cpu: u32, message: MsiMessage) -> bool {
    const LOGICAL: u64 = 1 << 2;
    let destination = (message.address >> 12 & 0xff) as u32;
    match message.address & LOGICAL {
        0 => destination == cpu,
        _ => destination >> cpu & 1 != 0,
    }
}

/// Passes messages on, and notes who sent them.
pub struct NotedMessages<S> {
    pub inner: S,
    pub acknowledged: Arc<Acknowledged>,
    pub cpus: u32,
}

impl<S: MsiSink> MsiSink for NotedMessages<S> {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        let mut senders = self.acknowledged.senders.lock().unwrap_or_else(PoisonError::into_inner);
        for cpu in (0..self.cpus).filter(|cpu| goes_to(*cpu, message)) {
            senders.insert((message.data as u8, cpu), requester);
        }
        drop(senders);
        self.inner.send(requester, message)
    }
}
