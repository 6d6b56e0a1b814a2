//! The register faces of a GICv2, one of each kind for each CPU: which access reaches which register.

use std::{fmt, sync::Arc};

use super::{CpuId, GicV2, GicV2Error, Shared, registers};
use crate::{
    bus::{BusDevice, read_le, write_le},
    sync::lock,
};

impl GicV2 {
    /// The distributor as `cpu` sees it, with its own private interrupts: [`Distributor::SIZE`] bytes.
    ///
    /// # Errors
    /// [`GicV2Error::NoSuchCpu`].
    pub fn distributor(&self, cpu: CpuId) -> Result<Distributor, GicV2Error> {
        let cpu = self.shared.cpu(cpu)?;
        let gic = Arc::clone(&self.shared);
        Ok(Distributor { gic, cpu })
    }

    /// The CPU interface of `cpu`: [`CpuInterface::SIZE`] bytes.
    ///
    /// # Errors
    /// [`GicV2Error::NoSuchCpu`].
    pub fn cpu_interface(&self, cpu: CpuId) -> Result<CpuInterface, GicV2Error> {
        let cpu = self.shared.cpu(cpu)?;
        let gic = Arc::clone(&self.shared);
        Ok(CpuInterface { gic, cpu })
    }
}

/// The distributor's registers (GICD_*) as one CPU sees them.
pub struct Distributor {
    gic: Arc<Shared>,
    cpu: usize,
}

impl Distributor {
    /// Size of the region in bytes.
    pub const SIZE: u64 = registers::DISTRIBUTOR_SIZE;

    /// The register of an access, and its first byte there; `None` if it is reserved or cannot be accessed so.
    fn decode(offset: u64, len: usize) -> Option<(registers::Distributor, u32)> {
        let lane = (offset % 4) as u32;
        let register = registers::Distributor::at(offset - u64::from(lane))?;
        let allowed = (len == 4 && lane == 0) || (len == 1 && register.has_byte_access());
        allowed.then_some((register, lane))
    }
}

impl BusDevice for Distributor {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = Self::decode(offset, data.len()).map_or(0, |(register, lane)| {
            lock(&self.gic.model).read_distributor(self.cpu, register) >> (lane * 8)
        });
        write_le(data, value.into());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some((register, first)) = Self::decode(offset, data.len()) else {
            return;
        };
        let mut lanes = [(0, 0); 4];
        for (lane, byte) in data.iter().enumerate() {
            lanes[lane] = (first + lane as u32, *byte);
        }
        self.gic
            .with(|model| model.write_distributor(self.cpu, register, &lanes[..data.len()]));
    }
}

/// The registers of one CPU's interface (GICC_*).
pub struct CpuInterface {
    gic: Arc<Shared>,
    cpu: usize,
}

impl CpuInterface {
    /// Size of the region in bytes.
    pub const SIZE: u64 = registers::CPU_INTERFACE_SIZE;

    fn decode(offset: u64, len: usize) -> Option<registers::CpuInterface> {
        let allowed = len == 4 && offset.is_multiple_of(4);
        allowed.then(|| registers::CpuInterface::at(offset)).flatten()
    }
}

impl BusDevice for CpuInterface {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = Self::decode(offset, data.len()).map_or(0, |register| {
            self.gic.with(|model| model.read_cpu_interface(self.cpu, register))
        });
        write_le(data, value.into());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(register) = Self::decode(offset, data.len()) {
            let value = read_le(data) as u32;
            self.gic
                .with(|model| model.write_cpu_interface(self.cpu, register, value));
        }
    }
}

macro_rules! debug {
    ($($face:ident),*) => {$(
        impl fmt::Debug for $face {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let cpu = CpuId(self.cpu as u32);
                f.debug_struct(stringify!($face)).field("cpu", &cpu).finish_non_exhaustive()
            }
        }
    )*};
}

debug!(Distributor, CpuInterface);
