//! The two ways to configuration space: memory (PCI Express 7.2.2) and a pair of ports (PCI Local Bus 3.0, section 3.2.2.3.2).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use super::{address::DeviceFunction, registers::ECAM_FUNCTION, root::RootBus};
use crate::bus::{BusDevice, read_le, write_le};

/// The enhanced configuration access mechanism: 4096 bytes of memory for each function of each bus.
///
/// Buses other than 0 read as ones, so any region from [`SIZE`](Self::SIZE) up to 256 times that will do. An access that
/// runs over the end of a function reads as ones and writes nothing.
#[derive(Clone, Debug)]
pub struct Ecam {
    bus: RootBus,
}

impl Ecam {
    /// Bytes of one bus.
    pub const SIZE: u64 = 256 * ECAM_FUNCTION;

    fn decode(offset: u64, len: usize) -> Option<(DeviceFunction, u64)> {
        let register = offset % ECAM_FUNCTION;
        let number = u16::try_from(offset / ECAM_FUNCTION).ok()?;
        let fits = register + len as u64 <= ECAM_FUNCTION;
        // A number beyond bus 0 is no device of it.
        let address = DeviceFunction::new(u8::try_from(number >> 3).ok()?, (number & 7) as u8)?;
        fits.then_some((address, register))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Self::decode(offset, data.len()) {
            Some((address, register)) => self.bus.read_config(address, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((address, register)) = Self::decode(offset, data.len()) {
            self.bus.write_config(address, register, data);
        }
    }
}

/// Where the [`ConfigPorts`] are on a PC.
pub const CONFIG_PORTS: u64 = 0xcf8;

/// CONFIG_ADDRESS, of 4 bytes, and CONFIG_DATA, after it: configuration mechanism 1.
///
/// CONFIG_ADDRESS is accessed as 32 bits. On a PC other accesses there reach what [else](Self::beside) is at these ports; if
/// there is nothing, they read as ones and write nothing.
pub struct ConfigPorts {
    bus: RootBus,
    address: AtomicU32,
    other: Option<Arc<dyn BusDevice>>,
}

const ENABLE: u32 = 1 << 31;
/// Enable, bus, device, function and double word: the bits that exist.
const ADDRESS: u32 = 0x80ff_fffc;
const DATA: u64 = 4;

impl ConfigPorts {
    /// How many ports there are.
    pub const SIZE: u64 = 8;

    /// Has `other` at the ports of CONFIG_ADDRESS too: it gets the accesses that are not the register's, with their offset from
    /// its first port. A PC has its reset control there, a byte at offset 1 (port 0xcf9).
    ///
    /// ```
    /// use devisor::{bus::BusDevice, interrupt::{LevelInterrupt, NoInterrupt}, pci::{NoMessages, RootBus}};
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
    ///
    /// #[derive(Default)]
    /// struct ResetControl(AtomicBool);
    ///
    /// impl BusDevice for ResetControl {
    ///     fn read(&self, _offset: u64, data: &mut [u8]) {
    ///         data.fill(0);
    ///     }
    ///
    ///     fn write(&self, offset: u64, data: &[u8]) {
    ///         if let (1, [value]) = (offset, data) {
    ///             self.0.fetch_or(value & 4 != 0, Ordering::SeqCst);
    ///         }
    ///     }
    /// }
    ///
    /// let wires = [(); 4].map(|()| Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>);
    /// let control = Arc::new(ResetControl::default());
    /// let ports = RootBus::new(wires, Arc::new(NoMessages)).config_ports().beside(control.clone());
    /// ports.write(1, &[6]);
    /// assert!(control.0.load(Ordering::SeqCst), "the machine is to be reset");
    /// ```
    pub fn beside(mut self, other: Arc<dyn BusDevice>) -> Self {
        self.other = Some(other);
        self
    }

    /// CONFIG_ADDRESS, to be saved.
    pub fn address(&self) -> u32 {
        self.address.load(Ordering::SeqCst)
    }

    /// Takes back a saved CONFIG_ADDRESS. Bits that do not exist are left out, as when the guest writes them.
    pub fn set_address(&self, address: u32) {
        self.address.store(address & ADDRESS, Ordering::SeqCst);
    }

    /// What else an access reaches.
    fn other(&self, offset: u64, len: usize) -> Option<&dyn BusDevice> {
        let other = self.other.as_deref();
        other.filter(|_| offset < DATA && offset + len as u64 <= DATA)
    }

    fn decode(&self, offset: u64, len: usize) -> Option<(DeviceFunction, u64)> {
        let byte = offset.checked_sub(DATA)?;
        let address = self.address();
        let on_bus_0 = address & (ENABLE | 0xff << 16) == ENABLE;
        let fits = byte < 4 && byte + len as u64 <= 4;
        let function = DeviceFunction::new((address >> 11 & 0x1f) as u8, (address >> 8 & 7) as u8)?;
        (on_bus_0 && fits).then(|| (function, u64::from(address & 0xfc) + byte))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if (offset, data.len()) == (0, 4) {
            return write_le(data, self.address().into());
        }
        if let Some(other) = self.other(offset, data.len()) {
            return other.read(offset, data);
        }
        match self.decode(offset, data.len()) {
            Some((address, register)) => self.bus.read_config(address, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if (offset, data.len()) == (0, 4) {
            return self.set_address(read_le(data) as u32);
        }
        if let Some(other) = self.other(offset, data.len()) {
            return other.write(offset, data);
        }
        if let Some((address, register)) = self.decode(offset, data.len()) {
            self.bus.write_config(address, register, data);
        }
    }
}

impl fmt::Debug for ConfigPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigPorts")
            .field("address", &format_args!("{:#x}", self.address()))
            .finish_non_exhaustive()
    }
}

impl RootBus {
    /// Configuration space as memory.
    pub fn ecam(&self) -> Ecam {
        let bus = self.clone();
        Ecam { bus }
    }

    /// Configuration space behind [`CONFIG_PORTS`]. Make one: it holds an address register.
    pub fn config_ports(&self) -> ConfigPorts {
        ConfigPorts {
            bus: self.clone(),
            address: AtomicU32::new(0),
            other: None,
        }
    }
}
