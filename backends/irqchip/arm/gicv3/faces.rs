//! The faces of a GICv3: which access reaches which register.

use std::{fmt, sync::Arc};

use super::{CpuId, GicV3, GicV3Error, Shared, registers, sysreg::SysReg};
use crate::bus::{BusDevice, read_le, write_le};

impl GicV3 {
    /// The distributor, which is the same for all CPUs: [`Distributor::SIZE`] bytes.
    pub fn distributor(&self) -> Distributor {
        let gic = Arc::clone(&self.shared);
        Distributor { gic }
    }

    /// The redistributor of `cpu`: [`Redistributor::SIZE`] bytes, RD_base and then SGI_base.
    ///
    /// For who places each of them alone. [`redistributors`](Self::redistributors) has those of a region in one piece.
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchCpu`].
    pub fn redistributor(&self, cpu: CpuId) -> Result<Redistributor, GicV3Error> {
        let cpu = self.shared.cpu(cpu)?;
        let gic = Arc::clone(&self.shared);
        Ok(Redistributor { gic, cpu })
    }

    /// The redistributors of a region of [`GicV3Config::redistributor_regions`](super::GicV3Config::redistributor_regions),
    /// one after the other: [`RedistributorRegion::size`] bytes.
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchRegion`].
    pub fn redistributors(&self, region: usize) -> Result<RedistributorRegion, GicV3Error> {
        let regions = &self.shared.config.redistributor_regions;
        let Some(&count) = regions.get(region) else {
            return Err(GicV3Error::NoSuchRegion {
                region,
                regions: regions.len(),
            });
        };
        Ok(RedistributorRegion {
            gic: Arc::clone(&self.shared),
            first: regions[..region].iter().map(|&count| count as usize).sum(),
            count: count as usize,
        })
    }

    /// The CPU interface of `cpu`: system registers.
    ///
    /// # Errors
    /// [`GicV3Error::NoSuchCpu`].
    pub fn cpu_interface(&self, cpu: CpuId) -> Result<CpuInterface, GicV3Error> {
        let cpu = self.shared.cpu(cpu)?;
        let gic = Arc::clone(&self.shared);
        Ok(CpuInterface { gic, cpu })
    }
}

/// The bytes of a register that an access reaches, as bits of the register.
struct Bits {
    value: u64,
    written: u64,
}

impl Bits {
    fn new(lane: u32, data: &[u8]) -> Self {
        let all = u64::MAX >> (64 - 8 * data.len());
        Self {
            value: read_le(data) << (8 * lane),
            written: all << (8 * lane),
        }
    }
}

/// The distributor's registers (GICD_*).
///
/// They are accessed as 32-bit words. GICD_IPRIORITYRn also takes bytes, GICD_SETSPI_NSR and GICD_CLRSPI_NSR take 16
/// bits, GICD_IROUTERn takes 64. All other accesses read as zero and write nothing.
pub struct Distributor {
    gic: Arc<Shared>,
}

impl Distributor {
    /// Size of the region in bytes.
    pub const SIZE: u64 = registers::DISTRIBUTOR_SIZE;
}

impl BusDevice for Distributor {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = registers::Distributor::decode(offset, data.len()).map_or(0, |(register, lane)| {
            self.gic.look_at_distributor(|distributor| distributor.read(register)) >> (lane * 8)
        });
        write_le(data, value);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((register, lane)) = registers::Distributor::decode(offset, data.len()) {
            let Bits { value, written } = Bits::new(lane, data);
            self.gic
                .with_distributor(|distributor| distributor.write(register, value, written));
        }
    }
}

/// The registers of one redistributor (GICR_*).
///
/// They are accessed as 32-bit words. GICR_IPRIORITYRn also takes bytes; GICR_TYPER, GICR_PROPBASER, GICR_PENDBASER and
/// the registers that name LPIs take 64 bits. All other accesses read as zero and write nothing.
pub struct Redistributor {
    gic: Arc<Shared>,
    cpu: usize,
}

impl Redistributor {
    /// Size of the region in bytes.
    pub const SIZE: u64 = registers::REDISTRIBUTOR_SIZE;
}

impl Shared {
    fn read_at_redistributor(&self, cpu: usize, offset: u64, data: &mut [u8]) {
        let value = registers::Redistributor::decode(offset, data.len()).map_or(0, |(register, lane)| {
            self.read_redistributor(cpu, register) >> (lane * 8)
        });
        write_le(data, value);
    }

    fn write_at_redistributor(&self, cpu: usize, offset: u64, data: &[u8]) {
        if let Some((register, lane)) = registers::Redistributor::decode(offset, data.len()) {
            let Bits { value, written } = Bits::new(lane, data);
            self.write_redistributor(cpu, register, value, written);
        }
    }
}

impl BusDevice for Redistributor {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.gic.read_at_redistributor(self.cpu, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.gic.write_at_redistributor(self.cpu, offset, data);
    }
}

/// The registers of several redistributors, one after the other.
pub struct RedistributorRegion {
    gic: Arc<Shared>,
    first: usize,
    count: usize,
}

impl RedistributorRegion {
    /// Size of the region in bytes.
    pub fn size(&self) -> u64 {
        Redistributor::SIZE * self.count as u64
    }

    /// The CPU whose redistributor has the byte at `offset`, and the offset in there.
    fn at(&self, offset: u64) -> Option<(usize, u64)> {
        let number = offset / Redistributor::SIZE;
        let within = (number < self.count as u64).then_some(offset % Redistributor::SIZE)?;
        Some((self.first + number as usize, within))
    }
}

impl BusDevice for RedistributorRegion {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.at(offset) {
            Some((cpu, offset)) => self.gic.read_at_redistributor(cpu, offset, data),
            None => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((cpu, offset)) = self.at(offset) {
            self.gic.write_at_redistributor(cpu, offset, data);
        }
    }
}

/// The system registers of one CPU's interface (ICC_*_EL1), for a hypervisor that traps them.
///
/// [`SysReg`] says how a hypervisor's number for a register becomes one of these. There are no registers of EL2 and EL3,
/// and ICC_AP0R1_EL1 and its like are there as far as the bits of priority need them.
pub struct CpuInterface {
    gic: Arc<Shared>,
    cpu: usize,
}

impl CpuInterface {
    /// The guest reads a system register. Reading ICC_IAR0_EL1 or ICC_IAR1_EL1 acknowledges.
    ///
    /// `None` if there is no such register here or it cannot be read: the access is UNDEFINED, and the embedder injects
    /// that exception.
    pub fn read_sysreg(&self, register: SysReg) -> Option<u64> {
        self.gic.read_sysreg(self.cpu, register)
    }

    /// The guest writes a system register.
    ///
    /// `None` if there is no such register here or it cannot be written: the access is UNDEFINED, and the embedder
    /// injects that exception.
    #[must_use = "an access that is UNDEFINED is an exception for the guest"]
    pub fn write_sysreg(&self, register: SysReg, value: u64) -> Option<()> {
        self.gic.write_sysreg(self.cpu, register, value)
    }
}

impl fmt::Debug for Distributor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distributor").finish_non_exhaustive()
    }
}

impl fmt::Debug for RedistributorRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedistributorRegion")
            .field("first", &CpuId(self.first as u32))
            .field("count", &self.count)
            .finish_non_exhaustive()
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

debug!(Redistributor, CpuInterface);
