//! GICv2m: a frame that turns message-signalled interrupts into SPIs of a GICv2 (Arm Server Base System Architecture,
//! DEN0029, the appendix on GICv2m).

use std::{fmt, io};

use super::{
    gic::{IntId, Spi},
    gicv2::{EdgeLine, GicV2, GicV2Error},
};
use crate::{
    bus::{BusDevice, read_le, write_le},
    description::{Acpi, Messages, Part, Wire},
    interrupt::{Interrupt, MsiMessage, MsiSink, RequesterId},
};

/// MSI_TYPER: the first INTID in bits 25:16, their number in bits 9:0.
const MSI_TYPER: u64 = 0x008;
/// MSI_SETSPI_NS: write-only, the INTID in bits 9:0. It takes accesses of 16 bits as well.
const MSI_SETSPI_NS: u64 = 0x040;
/// MSI_IIDR: product in bits 31:20, architecture version 0 in bits 19:16, implementer in bits 11:0.
const MSI_IIDR: u64 = 0xfcc;

const INTID: u32 = 0x3ff;
/// No JEP106 code, and a product number that no quirk of a known guest looks for.
const IDENTIFICATION: u32 = 0x0d5 << 20;

/// A GICv2m frame: a doorbell to which functions write the INTID of one of its SPIs.
///
/// *For embedders*: put it on the bus, where a guest can ring it as devices do and reads which SPIs it has; and hand it
/// to the PCI layer as its [`MsiSink`]. *For guests*: the SPIs are configured edge-triggered.
///
/// Registers are 32 bits, and the doorbell also takes 16; other accesses read as zero and write nothing.
///
/// ```
/// use devisor::{
///     backends::irqchip::{Spi, gicv2::{CpuOutputs, GicV2, GicV2Config}, gicv2m::GicV2mFrame},
///     bus::{BusDevice, read_le},
///     interrupt::{MsiMessage, MsiSink, NoInterrupt, RequesterId},
/// };
///
/// let outputs = vec![CpuOutputs { irq: Box::new(NoInterrupt), fiq: Box::new(NoInterrupt) }];
/// let gic = GicV2::new(GicV2Config::default(), outputs)?;
/// let frame = GicV2mFrame::new(&gic, 0x0802_0000, Spi(48), 32)?;
///
/// let mut typer = [0; 4];
/// frame.read(0x008, &mut typer);
/// assert_eq!(read_le(&typer), 80 << 16 | 32, "32 SPIs from INTID 80 on");
///
/// frame.send(RequesterId(8), MsiMessage { address: 0x0802_0040, data: 81 })?;
/// assert!(gic.save().spis[49].state.latch);
/// assert!(frame.send(RequesterId(8), MsiMessage { address: 0x0802_0040, data: 79 }).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct GicV2mFrame {
    /// Guest physical address of the frame.
    base: u64,
    first: IntId,
    lines: Vec<EdgeLine>,
}

/// A [`GicV2mFrame`] cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GicV2mError {
    /// A frame has at least one SPI.
    #[error("a frame without SPIs: it needs at least one")]
    Empty,
    /// The frame does not fit into the address space, or is not aligned.
    #[error("a frame at {0:#x}: it must be a multiple of 0x1000")]
    Base(u64),
    /// The GIC does not have all of the SPIs.
    #[error(transparent)]
    Gic(#[from] GicV2Error),
}

impl GicV2mFrame {
    /// Size of the region in bytes.
    pub const SIZE: u64 = 0x1000;

    /// A frame at guest physical address `base`, for `count` SPIs of `gic` from `first` on. They are taken by nobody else:
    /// the embedder hands out no lines for them.
    ///
    /// # Errors
    /// [`GicV2mError`].
    pub fn new(gic: &GicV2, base: u64, first: Spi, count: u32) -> Result<Self, GicV2mError> {
        if count == 0 {
            return Err(GicV2mError::Empty);
        }
        if !base.is_multiple_of(Self::SIZE) {
            return Err(GicV2mError::Base(base));
        }
        // The last first: a count beyond all bounds is refused before anything is made.
        gic.edge_line(Spi(first.0.saturating_add(count - 1)))?;
        let spis = first.0..first.0 + count;
        Ok(Self {
            base,
            first: first.into(),
            lines: spis.map(|spi| gic.edge_line(Spi(spi))).collect::<Result<_, _>>()?,
        })
    }

    /// This frame as its guest is told of it: see [`describe`].
    pub fn describe(&self) -> Part {
        describe(
            self.base,
            Spi(self.first.0 - IntId::from(Spi(0)).0),
            self.lines.len() as u32,
        )
    }

    /// The address that messages go to: that of MSI_SETSPI_NS.
    pub fn doorbell(&self) -> u64 {
        self.base + MSI_SETSPI_NS
    }

    /// What a function that is to interrupt by the `index`th SPI of this frame is programmed with.
    pub fn message(&self, index: u32) -> Option<MsiMessage> {
        ((index as usize) < self.lines.len()).then(|| MsiMessage {
            address: self.doorbell(),
            data: self.first.0 + index,
        })
    }

    fn line(&self, value: u32) -> Option<&EdgeLine> {
        let index = (value & INTID).checked_sub(self.first.0)?;
        self.lines.get(index as usize)
    }
}

/// A frame at `base`, for `count` SPIs from `first` on, as its guest is told of it (`arm,gic-v2m-frame`; a GIC MSI frame of
/// the MADT).
pub fn describe(base: u64, first: Spi, count: u32) -> Part {
    let part = Part::new("v2m")
        .memory(base, GicV2mFrame::SIZE)
        .takes_messages(Messages::Any)
        .node(&["arm,gic-v2m-frame"], |node| {
            node.flag("msi-controller").referred().in_controller()
        })
        .acpi(Acpi::MessageFrame {
            base,
            first: u16::try_from(IntId::from(first).0).unwrap_or(u16::MAX),
            count: u16::try_from(count).unwrap_or(u16::MAX),
        });
    // Nobody else has them.
    let spis = first.0..first.0.saturating_add(count.min(1024));
    spis.fold(part, |part, spi| part.wire(Wire::edge(Spi(spi))))
}

impl BusDevice for GicV2mFrame {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match (offset, data.len()) {
            (MSI_TYPER, 4) => self.first.0 << 16 | self.lines.len() as u32,
            (MSI_IIDR, 4) => IDENTIFICATION,
            _ => 0,
        };
        write_le(data, value.into());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset != MSI_SETSPI_NS || !matches!(data.len(), 2 | 4) {
            return;
        }
        if let Some(line) = self.line(read_le(data) as u32) {
            // Never refused: see below.
            let _ = line.trigger();
        }
    }
}

impl MsiSink for GicV2mFrame {
    /// The GIC takes every message to one of its SPIs. What its outputs refuse it tells again: see
    /// [`CpuOutputs`](super::gicv2::CpuOutputs).
    ///
    /// # Errors
    /// `NotFound` if the message is not for this frame's doorbell, or names none of its SPIs.
    fn send(&self, _requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        let MsiMessage { address, data } = message;
        let line = (address == self.doorbell()).then(|| self.line(data)).flatten();
        let line = line.ok_or_else(|| {
            let last = self.first.0 as usize + self.lines.len() - 1;
            let (doorbell, first) = (self.doorbell(), self.first.0);
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("message {data:#x} to {address:#x}: this frame takes {first} to {last} at {doorbell:#x}"),
            )
        })?;
        line.trigger()
    }
}

impl fmt::Debug for GicV2mFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GicV2mFrame")
            .field("base", &format_args!("{:#x}", self.base))
            .field("first", &self.first)
            .field("count", &self.lines.len())
            .finish()
    }
}
