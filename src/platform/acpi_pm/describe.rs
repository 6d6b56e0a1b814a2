//! The fixed hardware as its guest is told of it: the FADT.

use super::{AcpiPm, AcpiPmConfig, ControlBlock, EventBlock, TimerBlock, TimerWidth};
use crate::description::{Acpi, Part, PowerManagement, SmiPort, Wire};

/// Where an [`AcpiPm`] is, and what its guest is to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcpiPmPlace {
    /// The first port of the event block.
    pub event: u16,
    /// The first port of the control block.
    pub control: u16,
    /// The first port of the timer block.
    pub timer: u16,
    /// The first port of the GPE0 block.
    pub gpe: u16,
    /// The SMI command port. It is told of if the registers are not in ACPI mode from the start.
    pub smi: SmiPort,
    /// SLP_TYP that powers the machine off: a number of the embedder's, which its hook hears.
    pub s5: u8,
}

impl AcpiPmPlace {
    /// From `base` on as PIIX4 and ICH9 have it: events at 0, control at 4, the timer at 8, and GPE0 at 0x20, where there is
    /// room for 128 events. SMI_CMD is 0xb2 with 2 and 3, and S5 is 0.
    pub fn from_base(base: u16) -> Self {
        let at = |offset: u16| base.saturating_add(offset);
        Self {
            event: at(0),
            control: at(4),
            timer: at(8),
            gpe: at(0x20),
            smi: SmiPort {
                port: 0xb2,
                enable: 2,
                disable: 3,
            },
            s5: 0,
        }
    }
}

/// The registers in a place, with the system control interrupt, which is level-triggered. Power and sleep button are of the
/// fixed hardware, too.
pub fn describe(config: &AcpiPmConfig, place: AcpiPmPlace, sci: Wire) -> Part {
    let AcpiPmPlace {
        event,
        control,
        timer,
        gpe,
        smi,
        s5,
    } = place;
    let gpes = u8::try_from(config.gpes / 4).unwrap_or(u8::MAX);
    let mut part = Part::new("power-management")
        .ports(event, EventBlock::SIZE)
        .ports(control, ControlBlock::SIZE)
        .ports(timer, TimerBlock::SIZE);
    if gpes != 0 {
        part = part.ports(gpe, gpes.into());
    }
    let smi = (!config.acpi_mode).then_some(smi);
    if let Some(smi) = smi {
        part = part.ports(smi.port, 1);
    }
    part.wire(sci).acpi(Acpi::PowerManagement(PowerManagement {
        event,
        control,
        timer,
        timer_32_bits: config.timer == TimerWidth::Bits32,
        gpe: (gpes != 0).then_some((gpe, gpes)),
        smi,
        sci,
        s5,
    }))
}

impl AcpiPm {
    /// [`describe`] of these.
    pub fn describe(&self, place: AcpiPmPlace, sci: Wire) -> Part {
        describe(&self.shared.config, place, sci)
    }
}
