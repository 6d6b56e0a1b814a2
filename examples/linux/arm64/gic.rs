//! The board's interrupt controller, a GICv2 with GICv2m or a GICv3 with an ITS; and what the host sees of the guest's interrupts:
//! what it acknowledges there.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

use devisor::{
    backends::irqchip::{
        CpuId, IntId, Ppi, Spi,
        gicv2::{self, GicV2, GicV2Config, LevelLine},
        gicv2m::{self, GicV2mFrame},
        gicv3::{self, GicV3, GicV3Config, LpiSupport, SysReg},
        its::{self, DeviceId, EventId, Its, ItsConfig},
    },
    bus::{Bus, BusDevice, read_le},
    description::Part,
    interrupt::{MsiMessage, MsiSink, RequesterId},
};

use super::{
    board::{CPU, GIC_CPU_INTERFACE, GIC_DISTRIBUTOR, GIC_ITS, GIC_MESSAGES, GIC_REDISTRIBUTOR, MESSAGES},
    machine::{InterruptPins, SystemRegisters},
};
use crate::{counts::Id, options::Gic as Version, ram::Ram, watch::Watch};

/// The INTIDs from here on are LPIs (IHI 0069, 2.2).
const FIRST_LPI: u32 = 8192;
/// 1020 to 1023 mean that there was nothing to acknowledge.
const SPECIAL: std::ops::Range<u32> = 1020..FIRST_LPI;

/// The controller. It interrupts the one core.
pub enum Gic {
    V2(GicV2),
    V3 {
        gic: GicV3,
        its: Its,
        senders: Arc<Senders>,
    },
}

/// Which function sent an LPI last.
#[derive(Default)]
pub struct Senders(Mutex<BTreeMap<u32, RequesterId>>);

impl Gic {
    pub fn new(version: Version, pins: InterruptPins, ram: &Ram) -> Result<Self, Box<dyn Error>> {
        let (irq, fiq) = (Box::new(pins.irq()), Box::new(pins.fiq()));
        Ok(match version {
            Version::V2 => Self::V2(GicV2::new(
                GicV2Config::default(),
                vec![gicv2::CpuOutputs { irq, fiq }],
            )?),
            Version::V3 => {
                let memory = ram.memory();
                let gic = GicV3::with_lpis(config_v3(), vec![gicv3::CpuOutputs { irq, fiq }], Arc::clone(memory))?;
                Self::V3 {
                    its: Its::new(config_its(), &gic, Arc::clone(memory))?,
                    gic,
                    senders: Arc::default(),
                }
            }
        })
    }

    pub fn level_line(&self, spi: Spi) -> Result<LevelLine, Box<dyn Error>> {
        Ok(match self {
            Self::V2(gic) => gic.level_line(spi)?,
            Self::V3 { gic, .. } => gic.level_line(spi)?,
        })
    }

    pub fn timer_line(&self, ppi: Ppi) -> Result<LevelLine, Box<dyn Error>> {
        Ok(match self {
            Self::V2(gic) => gic.ppi_line(CPU, ppi)?,
            Self::V3 { gic, .. } => gic.ppi_line(CPU, ppi)?,
        })
    }

    /// Puts its registers on `bus`. What the guest acknowledges, `watch` sees. What it has of system registers is for the core.
    pub fn plug(&self, bus: &mut Bus, watch: &Arc<Watch>) -> Result<Option<Box<dyn SystemRegisters>>, Box<dyn Error>> {
        match self {
            Self::V2(gic) => {
                let cpu_interface = WatchedFrame {
                    inner: gic.cpu_interface(CPU)?,
                    watch: Arc::clone(watch),
                };
                bus.insert(GIC_DISTRIBUTOR.base, 0x1000, Arc::new(gic.distributor(CPU)?))?;
                bus.insert(GIC_CPU_INTERFACE.base, GIC_CPU_INTERFACE.len, Arc::new(cpu_interface))?;
                Ok(None)
            }
            Self::V3 { gic, senders, .. } => {
                bus.insert(GIC_DISTRIBUTOR.base, GIC_DISTRIBUTOR.len, Arc::new(gic.distributor()))?;
                let redistributor = Arc::new(gic.redistributor(CPU)?);
                bus.insert(GIC_REDISTRIBUTOR.base, GIC_REDISTRIBUTOR.len, redistributor)?;
                Ok(Some(Box::new(WatchedRegisters {
                    inner: gic.cpu_interface(CPU)?,
                    senders: Arc::clone(senders),
                    watch: Arc::clone(watch),
                })))
            }
        }
    }

    /// Puts on `bus` what takes messages, and returns where they go.
    pub fn messages(&self, bus: &mut Bus) -> Result<Arc<dyn MsiSink>, Box<dyn Error>> {
        match self {
            Self::V2(gic) => {
                let (first, count) = MESSAGES;
                let frame = Arc::new(GicV2mFrame::new(gic, GIC_MESSAGES.base, first, count)?);
                bus.insert(GIC_MESSAGES.base, GIC_MESSAGES.len, Arc::clone(&frame) as _)?;
                Ok(frame)
            }
            Self::V3 { its, senders, .. } => {
                let frame = its::ControlFrame::SIZE;
                bus.insert(GIC_ITS.base, frame, Arc::new(its.control_frame()))?;
                bus.insert(GIC_ITS.base + frame, frame, Arc::new(its.translation_frame()))?;
                Ok(Arc::new(NotedMessages {
                    its: its.clone(),
                    senders: Arc::clone(senders),
                }))
            }
        }
    }
}

fn config_v3() -> GicV3Config {
    GicV3Config {
        lpis: LpiSupport::Its,
        ..GicV3Config::new(1)
    }
}

fn config_its() -> ItsConfig {
    ItsConfig {
        base: GIC_ITS.base,
        ..ItsConfig::default()
    }
}

/// The controller as the guest is told of it.
pub fn describe(version: Version) -> Part {
    match version {
        Version::V2 => gicv2::describe(&GicV2Config::default(), GIC_DISTRIBUTOR.base, GIC_CPU_INTERFACE.base),
        Version::V3 => gicv3::describe(&config_v3(), GIC_DISTRIBUTOR.base, &[GIC_REDISTRIBUTOR.base]),
    }
}

/// Where messages go.
pub fn doorbell(version: Version) -> RangeInclusive<u64> {
    let (base, len) = match version {
        Version::V2 => (GIC_MESSAGES.base, GIC_MESSAGES.len),
        Version::V3 => (
            GIC_ITS.base + its::ControlFrame::SIZE,
            GIC_ITS.len - its::ControlFrame::SIZE,
        ),
    };
    base..=base + len - 1
}

/// And what takes messages.
pub fn describe_messages(version: Version) -> Part {
    let (first, count) = MESSAGES;
    match version {
        Version::V2 => gicv2m::describe(GIC_MESSAGES.base, first, count),
        Version::V3 => its::describe(GIC_ITS.base),
    }
}

/// A message for the GICv2m names the INTID.
pub fn id_of_spi(_: RequesterId, message: MsiMessage) -> Result<Id, String> {
    let (Spi(first), count) = MESSAGES;
    let frame = IntId::from(Spi(first)).0..IntId::from(Spi(first + count)).0;
    match frame.contains(&message.data) {
        true => Ok(Id::IntId(IntId(message.data))),
        false => Err(format!(
            "a message for INTID {}, which is not the frame's",
            message.data
        )),
    }
}

/// Which LPI a message becomes, the guest's tables say: what counts is who sent it.
pub fn id_of_lpi(requester: RequesterId, _: MsiMessage) -> Result<Id, String> {
    Ok(Id::Message(requester))
}

/// A GICv2's CPU interface that counts what the guest acknowledges: reads of GICC_IAR (IHI 0048B, 4.4.4).
struct WatchedFrame<D> {
    inner: D,
    watch: Arc<Watch>,
}

const GICC_IAR: u64 = 0x00c;
const INTERRUPT_ID: u64 = 0x3ff;

impl<D: BusDevice> BusDevice for WatchedFrame<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.inner.read(offset, data);
        let id = (read_le(data) & INTERRUPT_ID) as u32;
        if offset == GICC_IAR && !SPECIAL.contains(&id) {
            self.watch.acknowledged(Id::IntId(IntId(id)));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.inner.write(offset, data);
    }
}

/// The same of a GICv3's: reads of ICC_IAR1_EL1.
struct WatchedRegisters {
    inner: gicv3::CpuInterface,
    senders: Arc<Senders>,
    watch: Arc<Watch>,
}

impl SystemRegisters for WatchedRegisters {
    fn read(&self, register: SysReg) -> Option<u64> {
        let value = self.inner.read_sysreg(register)?;
        let id = value as u32;
        if register == SysReg::ICC_IAR1_EL1 && !SPECIAL.contains(&id) {
            let sender = self.senders.with(|senders| senders.get(&id).copied());
            self.watch
                .acknowledged(sender.map_or(Id::IntId(IntId(id)), Id::Message));
        }
        Some(value)
    }

    fn write(&self, register: SysReg, value: u64) -> Option<()> {
        self.inner.write_sysreg(register, value)
    }
}

/// Passes messages on to an ITS, and notes who sent which LPI.
struct NotedMessages {
    its: Its,
    senders: Arc<Senders>,
}

impl MsiSink for NotedMessages {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        let device = DeviceId(requester.0.into());
        if let Some((CpuId(_), IntId(lpi))) = self.its.target(device, EventId(message.data)) {
            self.senders.with(|senders| senders.insert(lpi, requester));
        }
        self.its.send(requester, message)
    }
}

impl Senders {
    fn with<R>(&self, f: impl FnOnce(&mut BTreeMap<u32, RequesterId>) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
