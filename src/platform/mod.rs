//! Devices that are not virtio: UARTs, clocks, keyboard and mouse, pins, flash, firmware configuration, power and reset.

pub mod acpi_pm;
pub mod cfi_flash;
pub mod debugcon;
pub mod fw_cfg;
pub mod ged;
pub mod i8042;
pub mod mc146818;
pub mod pl011;
pub mod pl031;
pub mod pl061;
pub mod pvpanic;
pub mod reset_control;
pub mod system_control;
pub mod uart16550;

mod primecell;
mod serial;
