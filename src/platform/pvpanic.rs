//! The device by which a guest says that it has panicked: *PVPANIC DEVICE* of QEMU, as a port and as a PCI function.

use std::fmt;

use crate::{
    bus::BusDevice,
    description::{Acpi, Object, Part},
    pci::{Bar, BarIndex, Endpoint, EndpointConfig, Function, Identity, Slot},
};

/// How many ports: 0x505, where the DSDT says.
pub const PORTS: u64 = 1;

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;
const SHUTDOWN: u8 = 1 << 2;

/// What a guest says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GuestEvents {
    /// It has panicked, and is best stopped.
    pub panicked: bool,
    /// It has panicked, and its crash kernel takes over: it is best left alone.
    pub crash_loaded: bool,
    /// It has shut down, and has no other way to say so.
    pub shutdown: bool,
}

impl GuestEvents {
    /// All of them.
    pub const ALL: Self = Self {
        panicked: true,
        crash_loaded: true,
        shutdown: true,
    };

    fn bits(self) -> u8 {
        let Self {
            panicked,
            crash_loaded,
            shutdown,
        } = self;
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(panicked, PANICKED) | bit(crash_loaded, CRASH_LOADED) | bit(shutdown, SHUTDOWN)
    }

    fn of(bits: u8) -> Self {
        Self {
            panicked: bits & PANICKED != 0,
            crash_loaded: bits & CRASH_LOADED != 0,
            shutdown: bits & SHUTDOWN != 0,
        }
    }
}

/// A pvpanic device: its port is its [`BusDevice`] face. It keeps nothing, so there is nothing to save.
///
/// The hook hears of each write that says something which the guest was told it could say, on the thread of that access.
///
/// ```
/// use devisor::{bus::BusDevice, platform::pvpanic::{GuestEvents, Pvpanic}};
///
/// let pvpanic = Pvpanic::new(GuestEvents::ALL, |events| println!("the guest: {events:?}"));
/// pvpanic.write(0, &[1]);
/// ```
pub struct Pvpanic {
    supported: GuestEvents,
    hook: Box<dyn Fn(GuestEvents) + Send + Sync>,
}

impl Pvpanic {
    /// A device whose guest can say what is `supported`.
    pub fn new(supported: GuestEvents, hook: impl Fn(GuestEvents) + Send + Sync + 'static) -> Self {
        let hook = Box::new(hook);
        Self { supported, hook }
    }
}

/// A device at port `base` as its guest is told of it (QEMU0001). The one on PCI is found there.
pub fn describe(base: u16) -> Part {
    let part = Part::new("pvpanic").ports(base, PORTS);
    let object = Object {
        regions: part.regions().to_vec(),
        hidden: true,
        ..Object::new("PV", "QEMU0001")
    };
    part.acpi(Acpi::Device(object))
}

/// A wider access is one of the first byte.
impl BusDevice for Pvpanic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.supported.bits();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(byte)) = (offset, data.first()) {
            let events = byte & self.supported.bits();
            if events != 0 {
                (self.hook)(GuestEvents::of(events));
            }
        }
    }
}

impl fmt::Debug for Pvpanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pvpanic")
            .field("supported", &self.supported)
            .finish_non_exhaustive()
    }
}

/// A [`Pvpanic`] as a PCI function, with its register as the first byte of BAR 0.
#[derive(Debug)]
pub struct PvpanicPci {
    endpoint: Endpoint,
    pvpanic: Pvpanic,
}

const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0011,
    revision: 1,
    // A system peripheral, of no other kind.
    class: [0x08, 0x80, 0x00],
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// Little, as memory BARs go.
const BAR_SIZE: u64 = 16;

impl PvpanicPci {
    /// The function, in `slot`. Its state is that of its [`Endpoint`].
    pub fn new(pvpanic: Pvpanic, slot: Slot) -> Self {
        let mut config = EndpointConfig::new(IDENTITY).expect("its vendor is one");
        config
            .bar(BarIndex::Bar0, Bar::memory32(BAR_SIZE))
            .expect("a BAR can have that size");
        let endpoint = Endpoint::new(config, slot);
        Self { endpoint, pvpanic }
    }
}

impl Function for PvpanicPci {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn read_bar(&self, _bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.pvpanic.read(offset, data);
    }

    fn write_bar(&self, _bar: BarIndex, offset: u64, data: &[u8]) {
        self.pvpanic.write(offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        interrupt::NoInterrupt,
        pci::{DeviceFunction, NoMessages},
        sync::lock,
    };
    use std::sync::{Arc, Mutex};

    type Heard = Arc<Mutex<Vec<GuestEvents>>>;

    fn pvpanic(supported: GuestEvents) -> (Pvpanic, Heard) {
        let heard = Heard::default();
        let log = Arc::clone(&heard);
        (Pvpanic::new(supported, move |events| lock(&log).push(events)), heard)
    }

    #[test]
    fn the_guest_says_what_it_was_told_it_can_say() {
        let supported = GuestEvents {
            shutdown: false,
            ..GuestEvents::ALL
        };
        let (port, heard) = pvpanic(supported);
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(byte, [3]);
        for value in [1, 2, 4, 0xf8, 7] {
            port.write(0, &[value]);
        }
        port.write(1, &[1]);
        let panicked = GuestEvents {
            panicked: true,
            ..GuestEvents::default()
        };
        let crash_loaded = GuestEvents {
            crash_loaded: true,
            ..GuestEvents::default()
        };
        assert_eq!(*lock(&heard), [panicked, crash_loaded, supported]);
    }

    #[test]
    fn as_a_pci_function_it_is_behind_the_first_bar() {
        let (port, heard) = pvpanic(GuestEvents::ALL);
        let address = DeviceFunction::new(5, 0).expect("there is one");
        let function = PvpanicPci::new(port, Slot::new(address, Box::new(NoInterrupt), Arc::new(NoMessages)));
        let mut id = [0; 4];
        function.read_config(0, &mut id);
        assert_eq!(id, [0x36, 0x1b, 0x11, 0x00]);
        let mut register = [0; 2];
        function.read_bar(BarIndex::Bar0, 0, &mut register);
        assert_eq!(register, [7, 0]);
        function.write_bar(BarIndex::Bar0, 0, &[4]);
        assert!(lock(&heard)[0].shutdown);
    }
}
