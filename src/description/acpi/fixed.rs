//! The FADT (5.2.9): fixed hardware, sleep and reset, and how the CPU is started.

use acpi_tables::{
    fadt::{FADT, FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
};

use super::Board;
use crate::description::{Acpi, BoardError, EventRegisters, Input, Part, PowerManagement, Register, Space};

/// IA-PC boot architecture flags (5.2.9.3).
mod ia_pc {
    pub const LEGACY_DEVICES: u16 = 1 << 0;
    pub const KEYBOARD: u16 = 1 << 1;
    pub const NO_VGA: u16 = 1 << 2;
    pub const NO_CMOS_CLOCK: u16 = 1 << 5;
}

/// Arm boot architecture flags (5.2.9.4).
mod arm {
    pub const PSCI: u16 = 1 << 0;
    pub const HVC: u16 = 1 << 1;
}

fn register(space: Space, bits: u8, access: AccessSize, address: u64) -> GAS {
    let space = match space {
        Space::Memory => AddressSpace::SystemMemory,
        Space::Ports => AddressSpace::SystemIo,
    };
    GAS::new(space, bits, 0, access, address)
}

impl<'a> Board<'a> {
    pub(super) fn power_management(&self) -> Result<Option<(&'a Part, &'a PowerManagement)>, BoardError> {
        self.only("power management", |entry| match entry {
            Acpi::PowerManagement(pm) => Some(pm),
            _ => None,
        })
    }

    fn event_registers(&self) -> Result<Option<(&'a Part, EventRegisters)>, BoardError> {
        self.only("the sleep registers", |entry| match entry {
            Acpi::Events { registers, .. } => *registers,
            _ => None,
        })
    }

    /// SLP_TYP of `\_S5`.
    pub(super) fn s5(&self) -> Result<Option<u8>, BoardError> {
        Ok(match self.power_management()? {
            Some((_, pm)) => Some(pm.s5),
            None => self.event_registers()?.map(|(_, registers)| registers.s5),
        })
    }

    /// RESET_REG: whatever says so, the generic event device last.
    fn reset(&self) -> Result<Option<(Register, u8)>, BoardError> {
        let reset = self.only("the reset register", |entry| match entry {
            Acpi::Reset(register, value) => Some((*register, *value)),
            _ => None,
        })?;
        let of_events = self.event_registers()?.map(|(_, registers)| {
            let (address, value) = registers.reset;
            let space = Space::Memory;
            (Register { space, address }, value)
        });
        Ok(reset.map(|(_, reset)| reset).or(of_events))
    }

    pub(super) fn fadt(&self, dsdt: u64, facs: Option<u64>) -> Result<FADT, BoardError> {
        let mut fadt = FADTBuilder::new(self.oem.id, self.oem.table_id, self.oem.revision);
        fadt.fadt_minor_version = 3;
        fadt.x_dsdt = dsdt.into();
        fadt.dsdt = u32::try_from(dsdt).unwrap_or(0).into();
        fadt.x_firmware_ctrl = facs.unwrap_or(0).into();
        // No C2 and no C3 (5.2.9, P_LVL2_LAT and P_LVL3_LAT).
        fadt.p_lvl2_lat = 101.into();
        fadt.p_lvl3_lat = 1001.into();

        let mut ia_pc_flags = 0;
        let mut arm_flags = 0;
        let mut is_pc = false;
        let mut clock = false;
        for (_, entry) in self.entries() {
            match entry {
                Acpi::LocalApics(_) => is_pc = true,
                Acpi::Keyboard => ia_pc_flags |= ia_pc::KEYBOARD | ia_pc::LEGACY_DEVICES,
                Acpi::Pics => ia_pc_flags |= ia_pc::LEGACY_DEVICES,
                Acpi::CmosClock(century) => {
                    fadt.century = *century;
                    clock = true;
                }
                Acpi::Psci { hvc } => arm_flags |= arm::PSCI | if *hvc { arm::HVC } else { 0 },
                _ => {}
            }
        }
        if is_pc {
            ia_pc_flags |= ia_pc::NO_VGA;
            fadt = fadt.flag(Flags::Wbinvd).flag(Flags::ProcC1);
            if !clock {
                ia_pc_flags |= ia_pc::NO_CMOS_CLOCK;
            }
        }
        fadt.iapc_boot_arch = ia_pc_flags.into();
        fadt.arm_boot_arch = arm_flags.into();

        if let Some((Register { space, address }, value)) = self.reset()? {
            fadt = fadt.flag(Flags::ResetRegSup);
            fadt.reset_reg = register(space, 8, AccessSize::ByteAccess, address);
            fadt.reset_value = value;
        }
        match self.power_management()? {
            Some((part, pm)) => power_management(&mut fadt, part, pm)?,
            None => {
                // Buttons are devices, or are not there.
                fadt = fadt
                    .flag(Flags::HwReducedAcpi)
                    .flag(Flags::PwrButton)
                    .flag(Flags::SlpButton);
                if let Some((_, registers)) = self.event_registers()? {
                    let byte = |address| register(Space::Memory, 8, AccessSize::ByteAccess, address);
                    fadt.sleep_control_reg = byte(registers.sleep_control);
                    fadt.sleep_status_reg = byte(registers.sleep_status);
                }
            }
        }
        Ok(fadt.finalize())
    }
}

fn power_management(fadt: &mut FADTBuilder, part: &Part, pm: &PowerManagement) -> Result<(), BoardError> {
    let Input::Gsi(sci) = pm.sci.input else {
        return Err(BoardError::Unfit {
            part: part.to_string(),
            what: format!("the system control interrupt is {}: it has to be a GSI", pm.sci.input),
        });
    };
    fadt.sci_int = super::narrow::<u16>(part, "SCI_INT", sci.into())?.into();
    let ports = |bits, access, port: u16| register(Space::Ports, bits, access, port.into());
    fadt.pm1a_evt_blk = u32::from(pm.event).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = ports(32, AccessSize::WordAccess, pm.event);
    fadt.pm1a_cnt_blk = u32::from(pm.control).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = ports(16, AccessSize::WordAccess, pm.control);
    fadt.pm_tmr_blk = u32::from(pm.timer).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = ports(32, AccessSize::DwordAccess, pm.timer);
    if pm.timer_32_bits {
        *fadt = fadt.flag(Flags::TmrValExt);
    }
    if let Some((gpe, len)) = pm.gpe {
        fadt.gpe0_blk = u32::from(gpe).into();
        fadt.gpe0_blk_len = len;
        fadt.x_gpe0_blk = ports(len.saturating_mul(8), AccessSize::ByteAccess, gpe);
    }
    if let Some(smi) = pm.smi {
        fadt.smi_cmd = u32::from(smi.port).into();
        fadt.acpi_enable = smi.enable;
        fadt.acpi_disable = smi.disable;
    }
    Ok(())
}
