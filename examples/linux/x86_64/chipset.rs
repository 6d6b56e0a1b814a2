//! What firmware of PCs with a Q35 knows them by: the host bridge (316966-002) and the bridge to ISA (ICH9, 316972-004), of which all
//! registers keep what is written and change nothing. Where the firmware places things by them, they are already.

use std::sync::{Arc, Mutex, PoisonError};

use devisor::pci::{BarIndex, ConfigError, DeviceFunction, Endpoint, Function, HostBridge, Identity, RootBus, Slot};

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0,
    revision: 2,
    class: [0x06, 0x00, 0x00],
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};
const HOST: Identity = Identity {
    device: 0x29c0,
    ..IDENTITY
};
const ISA: Identity = Identity {
    device: 0x2918,
    class: [0x06, 0x01, 0x00],
    ..IDENTITY
};
const ISA_DEVICE: u8 = 31;

/// Puts them on the bus, in place of the bridge that is there.
pub fn plug(root: &RootBus) -> Result<(), Box<dyn std::error::Error>> {
    for (device, identity) in [(0, HOST), (ISA_DEVICE, ISA)] {
        let address = DeviceFunction::new(device, 0).ok_or("a PCI bus has 32 devices")?;
        root.remove(address);
        root.insert(Arc::new(Bridge::new(root.slot(address)?, identity)?))?;
    }
    Ok(())
}

/// Registers of its own begin there.
const OWN: u64 = 0x40;
const END: u64 = 0x100;

struct Bridge {
    inner: HostBridge,
    own: Mutex<[u8; (END - OWN) as usize]>,
}

impl Bridge {
    fn new(slot: Slot, identity: Identity) -> Result<Self, ConfigError> {
        Ok(Self {
            inner: HostBridge::with_identity(slot, identity)?,
            own: Mutex::new([0; (END - OWN) as usize]),
        })
    }

    /// The registers at `offset`, if they are its own.
    fn with_own(&self, offset: u64, len: usize, f: impl FnOnce(&mut [u8])) -> bool {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let at = offset.checked_sub(OWN).map(|at| at as usize);
        let own = at.and_then(|at| own.get_mut(at..at + len));
        own.map(f).is_some()
    }
}

impl Function for Bridge {
    fn endpoint(&self) -> &Endpoint {
        self.inner.endpoint()
    }

    fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.inner.read_bar(bar, offset, data);
    }

    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.inner.write_bar(bar, offset, data);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if !self.with_own(offset, data.len(), |own| data.copy_from_slice(own)) {
            self.inner.read_config(offset, data);
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if !self.with_own(offset, data.len(), |own| own.copy_from_slice(data)) {
            self.inner.write_config(offset, data);
        }
    }
}
