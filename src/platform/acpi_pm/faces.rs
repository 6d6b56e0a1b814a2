//! The register blocks and the lines of the device. Registers are bytes: a wider access is one of each byte in turn, from the lowest
//! on, but a write that puts the machine to sleep does so once it is complete.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{AcpiPm, AcpiPmError, Shared, registers::*};
use crate::{
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt},
    sync::lock,
};

impl AcpiPm {
    /// The PM1a event block: status and enable registers.
    pub fn event_block(&self) -> EventBlock {
        let pm = Arc::clone(&self.shared);
        EventBlock { pm }
    }

    /// The PM1a control block.
    pub fn control_block(&self) -> ControlBlock {
        let pm = Arc::clone(&self.shared);
        ControlBlock { pm }
    }

    /// The block of the power management timer.
    pub fn timer_block(&self) -> TimerBlock {
        let pm = Arc::clone(&self.shared);
        TimerBlock { pm }
    }

    /// The GPE0 block: as many bytes as [`gpe_block_len`](Self::gpe_block_len) says.
    pub fn gpe_block(&self) -> GpeBlock {
        let pm = Arc::clone(&self.shared);
        GpeBlock { pm }
    }

    /// Bytes of the GPE0 block.
    pub fn gpe_block_len(&self) -> u64 {
        lock(&self.shared.model).gpe_block()
    }

    /// The SMI command port (0xb2 of a PC) as far as it changes the mode: `enable` and `disable` are ACPI_ENABLE and ACPI_DISABLE of
    /// the FADT..
    pub fn smi_command(&self, enable: u8, disable: u8) -> SmiCommand {
        SmiCommand {
            pm: Arc::clone(&self.shared),
            enable,
            disable,
        }
    }

    /// A line to the general-purpose event `gpe`: its status is set by each rise, and as long as the line is up. Several lines to one
    /// are wired-OR. One that is dropped is down.
    ///
    /// # Errors
    /// [`AcpiPmError::NoGpe`] if there is no such event.
    pub fn gpe_line(&self, gpe: u32) -> Result<GpeLine, AcpiPmError> {
        let count = self.shared.config.gpes;
        if gpe >= count {
            return Err(AcpiPmError::NoGpe { gpe, count });
        }
        Ok(GpeLine {
            pm: Arc::clone(&self.shared),
            gpe,
            up: AtomicBool::new(false),
        })
    }
}

/// Fills `data` with what is in `block` from `offset` on.
fn read(block: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).ok().and_then(|offset| block.get(offset..));
    for (byte, from) in data.iter_mut().zip(from.unwrap_or_default()) {
        *byte = *from;
    }
}

/// PM1 status and enable.
pub struct EventBlock {
    pm: Arc<Shared>,
}

impl EventBlock {
    /// Bytes of the block.
    pub const SIZE: u64 = EVENT_BLOCK as u64;
}

impl BusDevice for EventBlock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let block = self.pm.change(|model| model.event_block());
        read(&block, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.pm.change(|model| {
            for (byte, at) in data.iter().zip(offset..Self::SIZE) {
                model.write_event(at, *byte);
            }
        });
    }
}

/// PM1 control.
pub struct ControlBlock {
    pm: Arc<Shared>,
}

impl ControlBlock {
    /// Bytes of the block.
    pub const SIZE: u64 = CONTROL_BLOCK as u64;
}

impl BusDevice for ControlBlock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let block = self.pm.change(|model| model.control.to_le_bytes());
        read(&block, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.pm.change(|model| {
            for (byte, at) in data.iter().zip(offset..Self::SIZE) {
                model.write_control(at, *byte);
            }
        });
    }
}

/// The power management timer, which is read-only.
pub struct TimerBlock {
    pm: Arc<Shared>,
}

impl TimerBlock {
    /// Bytes of the block.
    pub const SIZE: u64 = TIMER_BLOCK as u64;
}

impl BusDevice for TimerBlock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let block = self.pm.change(|model| (model.timer as u32).to_le_bytes());
        read(&block, offset, data);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// Status and enable of the general-purpose events.
pub struct GpeBlock {
    pm: Arc<Shared>,
}

impl BusDevice for GpeBlock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.pm.change(|model| {
            for (byte, at) in data.iter_mut().zip(offset..model.gpe_block()) {
                *byte = model.read_gpe(at);
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.pm.change(|model| {
            for (byte, at) in data.iter().zip(offset..model.gpe_block()) {
                model.write_gpe(at, *byte);
            }
        });
    }
}

/// The port by which an operating system asks the firmware to enter ACPI mode, and to leave it.
pub struct SmiCommand {
    pm: Arc<Shared>,
    enable: u8,
    disable: u8,
}

impl BusDevice for SmiCommand {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(&command)) = (offset, data.first()) {
            self.pm.change(|model| match command {
                command if command == self.enable => model.set_acpi_mode(true),
                command if command == self.disable => model.set_acpi_mode(false),
                _ => {}
            });
        }
    }
}

/// A line to a general-purpose event: see [`AcpiPm::gpe_line`].
pub struct GpeLine {
    pm: Arc<Shared>,
    gpe: u32,
    up: AtomicBool,
}

impl GpeLine {
    fn hold(&self, up: bool) {
        self.pm.change(|model| {
            // Under the lock, so that the count of holders is right also while several threads drive one handle.
            if self.up.swap(up, Ordering::Relaxed) != up {
                model.hold_gpe(self.gpe, up);
            }
        });
    }
}

impl Interrupt for GpeLine {
    fn trigger(&self) -> io::Result<()> {
        self.hold(true);
        Ok(())
    }
}

impl LevelInterrupt for GpeLine {
    fn clear(&self) -> io::Result<()> {
        self.hold(false);
        Ok(())
    }
}

impl Drop for GpeLine {
    fn drop(&mut self) {
        self.hold(false);
    }
}

macro_rules! debug {
    ($($kind:ident),*) => {$(
        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($kind)).finish_non_exhaustive()
            }
        }
    )*};
}

debug!(EventBlock, ControlBlock, TimerBlock, GpeBlock, SmiCommand, GpeLine);
