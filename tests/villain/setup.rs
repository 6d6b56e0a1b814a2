//! A driver at the registers of either transport, while it sets the device up or breaks the order of that.

use devisor::{pci::Function, virtio::queue::QueueLayout};

use crate::{driver::Seen, ring::Ring, world::World};

/// A register of both transports: where virtio-mmio has it, where the common configuration of virtio-pci has it, and how wide.
#[derive(Clone, Copy)]
pub struct Register(pub u64, pub u64, pub usize);

pub const DEVICE_FEATURES_SEL: Register = Register(0x14, 0x00, 4);
pub const DEVICE_FEATURES: Register = Register(0x10, 0x04, 4);
pub const DRIVER_FEATURES_SEL: Register = Register(0x24, 0x08, 4);
pub const DRIVER_FEATURES: Register = Register(0x20, 0x0c, 4);
pub const STATUS: Register = Register(0x70, 0x14, 1);
pub const QUEUE_SEL: Register = Register(0x30, 0x16, 2);
/// As it is written.
pub const QUEUE_SIZE: Register = Register(0x38, 0x18, 2);
/// As it is read, before it was written.
pub const QUEUE_MAX: Register = Register(0x34, 0x18, 2);
pub const QUEUE_READY: Register = Register(0x44, 0x1c, 2);
pub const QUEUE_RESET: Register = Register(0xc0, 0x3a, 2);
pub const QUEUE_DESC: Register = Register(0x80, 0x20, 4);
pub const QUEUE_DRIVER: Register = Register(0x90, 0x28, 4);
pub const QUEUE_DEVICE: Register = Register(0xa0, 0x30, 4);
/// InterruptStatus, and the ISR of virtio-pci, which is cleared by its read.
pub const INTERRUPT: Register = Register(0x60, 0x1000, 1);

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 0x40;
pub const FAILED: u32 = 0x80;
pub const WORKING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// Where a ring is that a case sets up by hand.
const RING: u64 = 0x1_0000;

impl World {
    pub fn get(&self, register: Register) -> u64 {
        self.guest.read(register.0, register.1, self.guest.width(register.2))
    }

    pub fn set(&self, register: Register, value: u64) {
        self.guest
            .write(register.0, register.1, self.guest.width(register.2), value);
    }

    /// What the other half of an address is.
    pub fn set_high(&self, Register(mmio, pci, len): Register, value: u64) {
        self.set(Register(mmio + 4, pci + 4, len), value);
    }

    pub fn device_features(&self, word: u64) -> u64 {
        self.set(DEVICE_FEATURES_SEL, word);
        self.get(DEVICE_FEATURES)
    }

    pub fn accept(&self, word: u64, features: u64) {
        self.set(DRIVER_FEATURES_SEL, word);
        self.set(DRIVER_FEATURES, features);
    }

    /// The driver is there, and knows how to drive the device.
    pub fn begin(&self) {
        self.guest.set_status(ACKNOWLEDGE);
        self.guest.set_status(ACKNOWLEDGE | DRIVER);
    }

    /// From a reset up to FEATURES_OK.
    pub fn agree(&mut self) {
        self.guest.reset();
        self.features = self.wanted();
        assert!(self.guest.negotiate(self.features));
    }

    /// The same, and the queues are there, but not DRIVER_OK.
    pub fn prepare(&mut self) {
        self.agree();
        for queue in 0..self.guest.queues() {
            self.guest.enable(queue);
        }
    }

    pub fn go(&self) {
        self.guest.set_status(self.guest.status() | DRIVER_OK);
        self.guest.transport().run();
    }

    /// Writes the registers of a queue and makes it ready.
    pub fn set_up(&self, queue: u16, layout: QueueLayout) {
        self.set(QUEUE_SEL, queue.into());
        self.set(QUEUE_SIZE, layout.size.into());
        for (register, address) in [
            (QUEUE_DESC, layout.descriptor_area),
            (QUEUE_DRIVER, layout.driver_area),
            (QUEUE_DEVICE, layout.device_area),
        ] {
            self.set(register, address & 0xffff_ffff);
            self.set_high(register, address >> 32);
        }
        self.set(QUEUE_READY, 1);
    }

    /// A ring of the test's own.
    pub fn layout(&self) -> QueueLayout {
        Ring::new(&self.guest.memory, RING, 64).layout
    }

    /// Whether a request is answered that was made available, and kicked for, before now.
    pub fn catches_up(&mut self, queue: u16) -> Seen {
        self.guest.transport().run();
        match self.guest.used(queue).len() {
            _ if self.needs_reset() => Seen::NeedsReset,
            0 => Seen::Kept,
            _ => Seen::Served,
        }
    }

    /// A register of the function's configuration space. Virtio-pci alone has one.
    pub fn pci_config(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        let function = self.guest.pci().expect("a function of PCI");
        function.read_config(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }
}

/// What becomes of a device whose first queue has this layout.
pub fn with_layout(w: &mut World, change: impl FnOnce(&mut QueueLayout)) -> Seen {
    w.agree();
    let mut layout = w.layout();
    change(&mut layout);
    w.set_up(0, layout);
    w.go();
    w.guest.kick(0);
    match w.needs_reset() {
        true => Seen::NeedsReset,
        false => {
            w.restart();
            Seen::Holds
        }
    }
}

/// Nothing is used before DRIVER_OK, and what waits is found then.
pub fn before_the_driver_is_ready(w: &mut World) -> Seen {
    w.prepare();
    let good = w.good(0);
    w.guest.ring(0).request(&good);
    w.guest.kick(0);
    assert_eq!(w.catches_up(0), Seen::Kept);
    w.go();
    w.catches_up(0)
}

/// Writes this status, and reads what has come of it.
pub fn status_after(w: &World, status: u32) -> u32 {
    w.guest.set_status(status);
    w.guest.status()
}

/// A feature that is not offered, and with which no driver gets anywhere.
pub fn not_offered(w: &mut World, feature: u32) -> Seen {
    assert_eq!(w.guest.offered() & 1 << feature, 0, "bit {feature}");
    let features = w.wanted() | 1 << feature;
    w.guest.reset();
    assert!(!w.guest.negotiate(features), "bit {feature}");
    Seen::Holds
}

/// The same of one beyond the first 64, of which ours are none.
pub fn not_offered_beyond(w: &mut World, feature: u64) -> Seen {
    assert_eq!(w.device_features(feature / 32), 0, "bit {feature}");
    Seen::Holds
}

/// No administration queue (virtio 1.3, section 2.13): not offered, not said where it would be, and not there behind the last queue.
pub fn no_administration(w: &mut World) -> Seen {
    // `admin_queue_index` and `admin_queue_num`, behind what there is in virtio 1.2.
    if w.is_pci() {
        assert_eq!((w.guest.read(0, 0x3c, 2), w.guest.read(0, 0x3e, 2)), (0, 0));
    }
    let behind = u64::from(w.guest.queues());
    w.set(QUEUE_SEL, behind);
    w.set(QUEUE_SIZE, 16);
    w.set(QUEUE_READY, 1);
    assert_eq!((w.get(QUEUE_MAX), w.get(QUEUE_READY)), (0, 0));
    w.guest.kick(behind as u16);
    not_offered(w, 41)
}

/// A function has no capability of this number.
pub fn no_capability(w: &mut World, wrong: u64) -> Seen {
    let mut at = w.pci_config(0x34, 1);
    let mut count = 0;
    while at != 0 {
        assert_ne!(w.pci_config(at, 1), wrong, "at {at:#x}");
        at = w.pci_config(at + 1, 1);
        count += 1;
        assert!((1..=48).contains(&count), "the list has an end");
    }
    assert!(count >= 5, "structures of virtio, and MSI-X");
    Seen::Holds
}
