//! What firmware of PCs with a Q35 knows them by: the host bridge (316966-002) and the bridge to ISA (ICH9, 316972-004), of which all
//! registers keep what is written. Where the firmware places things by them, they are already; but for the configuration space, which is
//! in memory where PCIEXBAR says.

use std::sync::{Arc, Mutex, PoisonError};

use devisor::{
    bus::{Bus, BusDevice},
    pci::{BarIndex, ConfigError, DeviceFunction, Ecam, Endpoint, Function, HostBridge, Identity, RootBus, Slot},
};

use super::board;

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

// Bits of the command register.
const IO: u8 = 1 << 0;
const MEMORY: u8 = 1 << 1;
const BUS_MASTER: u8 = 1 << 2;

/// Where OVMF wants configuration space: before 2023, and since.
const ECAMS: [u64; 2] = [board::OLDER_PCI_CONFIG.base, board::PCI_CONFIG.base];

/// Puts them on the bus, in place of the bridge that is there, and configuration space into `memory`.
pub fn plug(root: &RootBus, memory: &mut Bus) -> Result<(), Box<dyn std::error::Error>> {
    let bridge = |device, identity, command| -> Result<_, Box<dyn std::error::Error>> {
        let address = DeviceFunction::new(device, 0).ok_or("a PCI bus has 32 devices")?;
        root.remove(address);
        let bridge = Arc::new(Bridge::new(root.slot(address)?, identity, command)?);
        root.insert(Arc::clone(&bridge) as _)?;
        Ok(bridge)
    };
    bridge(ISA_DEVICE, ISA, IO | MEMORY | BUS_MASTER)?;
    let host = bridge(0, HOST, MEMORY | BUS_MASTER)?;
    for base in ECAMS {
        let (inner, host) = (root.ecam(), Arc::clone(&host));
        memory.insert(base, Ecam::SIZE, Arc::new(MovedEcam { inner, host, base }))?;
    }
    Ok(())
}

/// Configuration space where it is while the host bridge has it there.
struct MovedEcam {
    inner: Ecam,
    host: Arc<Bridge>,
    base: u64,
}

impl BusDevice for MovedEcam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.host.ecam() == Some(self.base) {
            true => self.inner.read(offset, data),
            false => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if self.host.ecam() == Some(self.base) {
            self.inner.write(offset, data);
        }
    }
}

const COMMAND: u64 = 0x04;
/// Registers of its own begin there.
const OWN: u64 = 0x40;
const END: u64 = 0x100;

struct Bridge {
    inner: HostBridge,
    /// What is always set of its command: without, OVMF takes it for one that has nothing behind it.
    command: u8,
    own: Mutex<[u8; (END - OWN) as usize]>,
}

impl Bridge {
    fn new(slot: Slot, identity: Identity, command: u8) -> Result<Self, ConfigError> {
        Ok(Self {
            inner: HostBridge::with_identity(slot, identity)?,
            command,
            own: Mutex::new([0; (END - OWN) as usize]),
        })
    }

    /// Where PCIEXBAR has configuration space, if it is enabled.
    fn ecam(&self) -> Option<u64> {
        const PCIEXBAR: u64 = 0x60;
        const ENABLE: u64 = 1;
        const BASE: u64 = 0xf_f000_0000;
        let mut value = [0; 8];
        self.with_own(PCIEXBAR, value.len(), |own| value.copy_from_slice(own));
        let value = u64::from_le_bytes(value);
        (value & ENABLE != 0).then_some(value & BASE)
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
            let command = COMMAND.checked_sub(offset).and_then(|at| data.get_mut(at as usize));
            if let Some(command) = command {
                *command |= self.command;
            }
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if !self.with_own(offset, data.len(), |own| own.copy_from_slice(data)) {
            self.inner.write_config(offset, data);
        }
    }
}
