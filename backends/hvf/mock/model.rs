//! The interrupt controller behind the mock. The rest of the mock knows no other file of it.
//!
//! The framework's GIC is a GICv3. This is our GICv2 with its GICv2m frame: lines, messages, priorities and states are
//! the same, and it has no redistributors and no `ICC_*` registers. A GICv3 is to take its place here.

use crate::{
    backends::{
        hvf::{GicConfig, IntIdRange},
        irqchip::{
            CpuId, Group, IntId, InterruptState, Ppi, Spi, TriggerMode,
            gicv2::{
                CpuInterface, CpuOutputs, CpuState, Distributor, EdgeLine, GicV2, GicV2Config, GicV2State, LevelLine,
                SpiState,
            },
            gicv2m::GicV2mFrame,
        },
    },
    bus::{BusDevice, read_le},
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, RequesterId},
};

/// INTID 27.
const VIRTUAL_TIMER: Ppi = Ppi(11);
/// What GICC_IAR reads when there is nothing to acknowledge (IHI 0048B, 3.2.5).
const SPURIOUS: u32 = 1023;

/// Register offsets (IHI 0048B, tables 4-1 and 4-2).
mod registers {
    pub(super) const GICD_CTLR: u64 = 0x000;
    pub(super) const GICD_ISENABLER: u64 = 0x100;
    pub(super) const GICD_ITARGETSR: u64 = 0x800;
    pub(super) const GICD_ICFGR: u64 = 0xc00;
    pub(super) const GICC_CTLR: u64 = 0x000;
    pub(super) const GICC_PMR: u64 = 0x004;
    pub(super) const GICC_IAR: u64 = 0x00c;
    pub(super) const GICC_EOIR: u64 = 0x010;
}

pub(super) struct Model {
    gic: GicV2,
    /// The state of a controller that was never used.
    pristine: GicV2State,
    /// By SPI, as the next.
    levels: Vec<LevelLine>,
    edges: Vec<EdgeLine>,
    frame: Option<GicV2mFrame>,
    /// By CPU, as all below.
    timers: Vec<LevelLine>,
    distributors: Vec<Distributor>,
    interfaces: Vec<CpuInterface>,
}

/// There is no such model, or the state does not fit. What the caller did wrong is for the rules of the mock to say.
pub(super) struct Refused;

impl<E: std::error::Error> From<E> for Refused {
    fn from(_: E) -> Self {
        Self
    }
}

impl Model {
    pub(super) const MAX_CPUS: u32 = 8;

    /// The SPIs of a model with so many of them.
    pub(super) fn spis(count: u32) -> IntIdRange {
        let first = IntId::from(Spi(0));
        IntIdRange { first, count }
    }

    pub(super) fn accepts_spis(count: u32) -> bool {
        count == GicV2Config::MAX_SPIS || (count < GicV2Config::MAX_SPIS && count.is_multiple_of(32))
    }

    /// One CPU for each of `outputs`.
    pub(super) fn new(config: &GicConfig, spis: u32, outputs: Vec<CpuOutputs>) -> Result<Self, Refused> {
        let cpus = u32::try_from(outputs.len())?;
        let priority_bits = GicV2Config::default().priority_bits;
        let gic_config = GicV2Config {
            cpus,
            spis,
            priority_bits,
        };
        let gic = GicV2::new(gic_config, outputs)?;
        let frame = match config.msi {
            Some(msi) => {
                let first = msi.interrupts.first.spi().ok_or(Refused)?;
                Some(GicV2mFrame::new(&gic, msi.region_base, first, msi.interrupts.count)?)
            }
            None => None,
        };
        let (cpus, spis) = (|| (0..cpus).map(CpuId), || (0..spis).map(Spi));
        Ok(Self {
            pristine: gic.save(),
            levels: spis().map(|spi| gic.level_line(spi)).collect::<Result<_, _>>()?,
            edges: spis().map(|spi| gic.edge_line(spi)).collect::<Result<_, _>>()?,
            frame,
            timers: cpus()
                .map(|cpu| gic.ppi_line(cpu, VIRTUAL_TIMER))
                .collect::<Result<_, _>>()?,
            distributors: cpus().map(|cpu| gic.distributor(cpu)).collect::<Result<_, _>>()?,
            interfaces: cpus().map(|cpu| gic.cpu_interface(cpu)).collect::<Result<_, _>>()?,
            gic,
        })
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
        let frame = self.frame.as_ref()?;
        frame.send(RequesterId::default(), message).ok()
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
        // Its own state, so it fits.
        let _ = self.gic.restore(&self.pristine);
    }

    /// The distributor as this CPU sees it.
    pub(super) fn distributor(&self, cpu: CpuId) -> &dyn BusDevice {
        &self.distributors[cpu.0 as usize]
    }

    /// Both groups on, all priorities let through.
    pub(super) fn start(&self, cpu: CpuId) {
        let (distributor, interface) = (self.distributor(cpu), self.interface(cpu));
        write(distributor, registers::GICD_CTLR, 0b11);
        write(interface, registers::GICC_PMR, 0xff);
        write(interface, registers::GICC_CTLR, 0b11);
    }

    pub(super) fn enable(&self, cpu: CpuId, intid: IntId, mode: TriggerMode) {
        let distributor = self.distributor(cpu);
        let (offset, bit) = trigger_bit(intid);
        let others = read(distributor, offset) & !bit;
        let value = match mode {
            TriggerMode::Level => others,
            TriggerMode::Edge => others | bit,
        };
        write(distributor, offset, value);
        // Without effect on a private interrupt.
        distributor.write(registers::GICD_ITARGETSR + u64::from(intid.0), &[1 << cpu.0]);
        let offset = registers::GICD_ISENABLER + u64::from(intid.0 / 32) * 4;
        write(distributor, offset, 1 << (intid.0 % 32));
    }

    pub(super) fn acknowledge(&self, cpu: CpuId) -> Option<IntId> {
        let value = read(self.interface(cpu), registers::GICC_IAR);
        (value != SPURIOUS).then_some(IntId(value))
    }

    pub(super) fn end(&self, cpu: CpuId, intid: IntId) {
        write(self.interface(cpu), registers::GICC_EOIR, intid.0);
    }

    fn interface(&self, cpu: CpuId) -> &dyn BusDevice {
        &self.interfaces[cpu.0 as usize]
    }

    fn trigger_mode(&self, intid: IntId) -> TriggerMode {
        let (offset, bit) = trigger_bit(intid);
        match read(self.distributor(CpuId(0)), offset) & bit {
            0 => TriggerMode::Level,
            _ => TriggerMode::Edge,
        }
    }

    /// The state without the CPU interfaces, as the framework's is without `ICC_*`.
    pub(super) fn save(&self) -> Vec<u8> {
        let GicV2State {
            config,
            control,
            cpus,
            spis,
        } = self.gic.save();
        let mut words = header(config).to_vec();
        words.push(control);
        for cpu in cpus {
            let CpuState {
                private,
                sgi_senders,
                control: _,
                priority_mask: _,
                binary_point: _,
                aliased_binary_point: _,
                active_priorities: _,
                non_secure_active_priorities: _,
            } = cpu;
            words.extend(private.map(|state| pack(state, 0)));
            words.extend(sgi_senders.map(u32::from));
        }
        words.extend(spis.into_iter().map(|SpiState { state, targets }| pack(state, targets)));
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// Takes a state whole or not at all.
    pub(super) fn restore(&self, bytes: &[u8]) -> Result<(), Refused> {
        let (words, rest) = bytes.as_chunks();
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let mut next = || words.next().ok_or(Refused);
        let mut state = self.gic.save();
        for expected in header(state.config) {
            if next()? != expected {
                return Err(Refused);
            }
        }
        state.control = next()?;
        for cpu in &mut state.cpus {
            for private in &mut cpu.private {
                (*private, _) = unpack(next()?)?;
            }
            for senders in &mut cpu.sgi_senders {
                *senders = u8::try_from(next()?)?;
            }
        }
        for spi in &mut state.spis {
            (spi.state, spi.targets) = unpack(next()?)?;
        }
        if next().is_ok() || !rest.is_empty() {
            return Err(Refused);
        }
        Ok(self.gic.restore(&state)?)
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
    let offset = registers::GICD_ICFGR + u64::from(intid.0 / 16) * 4;
    (offset, 1 << (intid.0 % 16 * 2 + 1))
}

/// What a state begins with: a layout, whose last digit counts up with its changes, and what the controller has.
fn header(config: GicV2Config) -> [u32; 4] {
    let GicV2Config {
        cpus,
        spis,
        priority_bits,
    } = config;
    [u32::from_le_bytes(*b"GIC1"), cpus, spis, priority_bits]
}

/// Flags in bits 5:0, priority in 15:8, targets in 23:16.
fn pack(state: InterruptState, targets: u8) -> u32 {
    let InterruptState {
        enabled,
        group,
        trigger,
        priority,
        line,
        latch,
        active,
    } = state;
    let (group, trigger) = (group == Group::One, trigger == TriggerMode::Edge);
    let flags = [enabled, group, trigger, line, latch, active];
    let flags = (0..).zip(flags).fold(0, |sum, (bit, flag)| sum | u8::from(flag) << bit);
    u32::from_le_bytes([flags, priority, targets, 0])
}

fn unpack(word: u32) -> Result<(InterruptState, u8), Refused> {
    let [flags, priority, targets, zero] = word.to_le_bytes();
    if zero != 0 || flags >> 6 != 0 {
        return Err(Refused);
    }
    let [enabled, group, trigger, line, latch, active] = [0, 1, 2, 3, 4, 5].map(|bit| flags >> bit & 1 != 0);
    let state = InterruptState {
        enabled,
        group: if group { Group::One } else { Group::Zero },
        trigger: if trigger { TriggerMode::Edge } else { TriggerMode::Level },
        priority,
        line,
        latch,
        active,
    };
    Ok((state, targets))
}
