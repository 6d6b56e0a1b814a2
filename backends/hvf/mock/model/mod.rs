//! The interrupt controller behind the mock: our GICv3, as the framework's is one. The rest of the mock knows no other
//! file of it.

mod state;

use crate::{
    backends::{
        hvf::{GicConfig, HvError, IntIdRange, MsiConfig},
        irqchip::{
            CpuId, IntId, Ppi, Spi, TriggerMode,
            gicv3::{
                Affinity, CpuInterface, CpuOutputs, Distributor, EdgeLine, GicV3, GicV3Config, LevelLine, LpiSupport,
                Redistributor, SysReg,
            },
        },
    },
    bus::{BusDevice, read_le},
    interrupt::{Interrupt, LevelInterrupt, MsiMessage},
};

/// INTID 27.
const VIRTUAL_TIMER: Ppi = Ppi(11);
/// What ICC_IAR1_EL1 reads when there is nothing to acknowledge (IHI 0069, 2.2.1).
const SPURIOUS: u64 = 1023;

/// Register offsets (IHI 0069, tables 12-25, 12-27 and 12-29). Those of private interrupts are in SGI_base, at the
/// offsets that the distributor has them at for the others.
mod registers {
    pub(super) const GICD_CTLR: u64 = 0x0000;
    pub(super) const IGROUPR: u64 = 0x0080;
    pub(super) const ISENABLER: u64 = 0x0100;
    pub(super) const ICFGR: u64 = 0x0c00;
    pub(super) const GICD_IROUTER: u64 = 0x6000;
    pub(super) const GICR_WAKER: u64 = 0x0014;
    pub(super) const SGI_BASE: u64 = 0x1_0000;
}

pub(super) struct Model {
    gic: GicV3,
    msi: Option<MsiConfig>,
    /// By SPI, as the next.
    levels: Vec<LevelLine>,
    edges: Vec<EdgeLine>,
    /// By CPU, as all below.
    timers: Vec<LevelLine>,
    redistributors: Vec<Redistributor>,
    interfaces: Vec<CpuInterface>,
    distributor: Distributor,
}

/// There is no such model, or the state does not fit. What the caller did wrong is for the rules of the mock to say.
pub(super) struct Refused;

impl<E: std::error::Error> From<E> for Refused {
    fn from(_: E) -> Self {
        Self
    }
}

impl Model {
    pub(super) const MAX_CPUS: u32 = GicV3Config::MAX_CPUS as u32;

    /// The SPIs of a model with so many of them.
    pub(super) fn spis(count: u32) -> IntIdRange {
        let first = IntId::from(Spi(0));
        IntIdRange { first, count }
    }

    pub(super) fn accepts_spis(count: u32) -> bool {
        count == GicV3Config::MAX_SPIS || (count < GicV3Config::MAX_SPIS && count.is_multiple_of(32))
    }

    /// One CPU for each of `outputs`, `cluster` of them to a value of Aff1.
    pub(super) fn new(config: &GicConfig, spis: u32, cluster: u32, outputs: Vec<CpuOutputs>) -> Result<Self, Refused> {
        let cpus = u32::try_from(outputs.len())?;
        let gic_config = GicV3Config {
            affinities: (0..cpus)
                .map(|cpu| Affinity(((cpu / cluster) << 8) | (cpu % cluster)))
                .collect(),
            redistributor_regions: vec![cpus],
            spis,
            extended_spis: 0,
            extended_ppis: 0,
            priority_bits: 5,
            one_of_n: false,
            message_based_spis: false,
            lpis: LpiSupport::None,
            redistributors_awake: false,
        };
        let gic = GicV3::new(gic_config, outputs)?;
        let (cpus, spis) = (|| (0..cpus).map(CpuId), || (0..spis).map(Spi));
        Ok(Self {
            msi: config.msi,
            levels: spis().map(|spi| gic.level_line(spi)).collect::<Result<_, _>>()?,
            edges: spis().map(|spi| gic.edge_line(spi)).collect::<Result<_, _>>()?,
            timers: cpus()
                .map(|cpu| gic.ppi_line(cpu, VIRTUAL_TIMER))
                .collect::<Result<_, _>>()?,
            redistributors: cpus().map(|cpu| gic.redistributor(cpu)).collect::<Result<_, _>>()?,
            interfaces: cpus().map(|cpu| gic.cpu_interface(cpu)).collect::<Result<_, _>>()?,
            distributor: gic.distributor(),
            gic,
        })
    }

    /// The CPU at this place of the machine.
    pub(super) fn cpu(&self, mpidr: u64) -> Option<CpuId> {
        let affinity = Affinity::from_mpidr(mpidr);
        let affinities = &self.gic.config().affinities;
        let cpu = affinities.iter().position(|other| *other == affinity)?;
        Some(CpuId(cpu as u32))
    }

    /// Edge-triggered, `true` is a pulse and `false` nothing. `None` if there is no such SPI.
    pub(super) fn set_spi(&self, intid: IntId, level: bool) -> Option<()> {
        let spi = intid.spi()?.0 as usize;
        let (line, edge) = (self.levels.get(spi)?, self.edges.get(spi)?);
        // The outputs are the mock's own and do not fail.
        let _ = match (self.trigger_mode(intid), level) {
            (TriggerMode::Level, true) => line.trigger(),
            (TriggerMode::Edge, true) => edge.trigger(),
            // Also of an edge, which does not mind: the guest may have made it one while the line was up.
            (_, false) => line.clear(),
        };
        Some(())
    }

    /// `None` if it goes nowhere.
    pub(super) fn send(&self, message: MsiMessage) -> Option<()> {
        let MsiMessage { address, data } = message;
        let (msi, intid) = (self.msi?, IntId(data));
        if address != msi.doorbell() || !msi.interrupts.contains(intid) {
            return None;
        }
        let edge = self.edges.get(intid.spi()?.0 as usize)?;
        let _ = edge.trigger();
        Some(())
    }

    pub(super) fn set_timer(&self, cpu: CpuId, up: bool) {
        let timer = &self.timers[cpu.0 as usize];
        let _ = match up {
            true => timer.trigger(),
            false => timer.clear(),
        };
    }

    /// Lines that are up stay up: who drives them is not reset with the controller.
    pub(super) fn reset(&self) {
        self.gic.reset();
    }

    pub(super) fn distributor(&self) -> &dyn BusDevice {
        &self.distributor
    }

    pub(super) fn redistributor(&self, cpu: CpuId) -> &dyn BusDevice {
        &self.redistributors[cpu.0 as usize]
    }

    pub(super) fn interface(&self, cpu: CpuId) -> &CpuInterface {
        &self.interfaces[cpu.0 as usize]
    }

    /// Both groups on, all priorities let through.
    pub(super) fn start(&self, cpu: CpuId) {
        write(self.redistributor(cpu), registers::GICR_WAKER, 0);
        write(self.distributor(), registers::GICD_CTLR, 0b11);
        let enable = [
            (SysReg::ICC_PMR_EL1, 0xff),
            (SysReg::ICC_IGRPEN0_EL1, 1),
            (SysReg::ICC_IGRPEN1_EL1, 1),
        ];
        for (register, value) in enable {
            // Registers that every interface has.
            let _ = self.interface(cpu).write_sysreg(register, value);
        }
    }

    /// In Group 1, to this CPU.
    pub(super) fn enable(&self, cpu: CpuId, intid: IntId, mode: TriggerMode) {
        let (frame, base) = self.frame(cpu, intid);
        let (offset, bit) = trigger_bit(intid);
        let others = read(frame, base + offset) & !bit;
        let value = match mode {
            TriggerMode::Level => others,
            TriggerMode::Edge => others | bit,
        };
        write(frame, base + offset, value);
        if intid.spi().is_some() {
            let Affinity(affinity) = self.gic.config().affinities[cpu.0 as usize];
            let offset = registers::GICD_IROUTER + u64::from(intid.0) * 8;
            // None of these has an Aff3.
            frame.write(offset, &u64::from(affinity).to_le_bytes());
        }
        let (offset, bit) = (u64::from(intid.0 / 32) * 4, 1 << (intid.0 % 32));
        let group = base + registers::IGROUPR + offset;
        write(frame, group, read(frame, group) | bit);
        write(frame, base + registers::ISENABLER + offset, bit);
    }

    pub(super) fn acknowledge(&self, cpu: CpuId) -> Option<IntId> {
        let value = self.interface(cpu).read_sysreg(SysReg::ICC_IAR1_EL1)?;
        (value != SPURIOUS).then_some(IntId(value as u32))
    }

    pub(super) fn end(&self, cpu: CpuId, intid: IntId) {
        let _ = self.interface(cpu).write_sysreg(SysReg::ICC_EOIR1_EL1, intid.0.into());
    }

    /// Where an interrupt's registers are.
    fn frame(&self, cpu: CpuId, intid: IntId) -> (&dyn BusDevice, u64) {
        match intid.spi() {
            Some(_) => (self.distributor(), 0),
            None => (self.redistributor(cpu), registers::SGI_BASE),
        }
    }

    fn trigger_mode(&self, intid: IntId) -> TriggerMode {
        let (offset, bit) = trigger_bit(intid);
        match read(self.distributor(), offset) & bit {
            0 => TriggerMode::Level,
            _ => TriggerMode::Edge,
        }
    }
}

/// A register of a frame for the host: 64 bits where it has them, and otherwise 32.
pub(super) fn read_frame(frame: &dyn BusDevice, offset: u64, wide: bool) -> Result<u64, HvError> {
    let len = width(offset, wide)?;
    let mut data = [0; 8];
    frame.read(offset, &mut data[..len]);
    Ok(read_le(&data))
}

pub(super) fn write_frame(frame: &dyn BusDevice, offset: u64, wide: bool, value: u64) -> Result<(), HvError> {
    let len = width(offset, wide)?;
    frame.write(offset, &value.to_le_bytes()[..len]);
    Ok(())
}

fn width(offset: u64, wide: bool) -> Result<usize, HvError> {
    let len = if wide { 8 } else { 4 };
    match offset.is_multiple_of(len) {
        true => Ok(len as usize),
        false => Err(HvError::BadArgument),
    }
}

fn read(device: &dyn BusDevice, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    read_le(&data) as u32
}

fn write(device: &dyn BusDevice, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}

/// The register and the bit that says that an interrupt is an edge.
fn trigger_bit(intid: IntId) -> (u64, u32) {
    let offset = registers::ICFGR + u64::from(intid.0 / 16) * 4;
    (offset, 1 << (intid.0 % 16 * 2 + 1))
}
