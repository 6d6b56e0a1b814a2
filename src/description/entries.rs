//! What ACPI tables say of a part, as plain data (*Advanced Configuration and Power Interface Specification 6.5*).

use std::ops::RangeInclusive;

use super::{Region, Space, Wire};

/// A device of the DSDT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The first two letters of its name: `A` to `Z`. A number follows.
    pub prefix: &'static str,
    /// `_HID`: a PNP ID is three letters and four digits, anything else is an ACPI ID.
    pub hid: &'static str,
    /// `_CRS`.
    pub regions: Vec<Region>,
    /// `_CRS`.
    pub wires: Vec<Wire>,
    /// `_CCA`: what it does to memory, the caches of the CPUs see.
    pub coherent: bool,
    /// `_STA`: not to be shown to users.
    pub hidden: bool,
}

impl Object {
    /// A device without resources.
    pub fn new(prefix: &'static str, hid: &'static str) -> Self {
        Self {
            prefix,
            hid,
            regions: Vec::new(),
            wires: Vec::new(),
            coherent: false,
            hidden: false,
        }
    }
}

/// A register of the FADT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Register {
    /// In which address space.
    pub space: Space,
    /// Where.
    pub address: u64,
}

/// A UART as the SPCR has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Serial {
    /// A 16550, with registers a byte apart.
    Uart16550,
    /// A PL011.
    Pl011,
}

/// A CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Processor {
    /// By its MPIDR_EL1.
    Arm(u64),
    /// By the ID of its local APIC.
    Apic(u32),
}

/// A GIC as the MADT has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// 2 or 3.
    pub version: u8,
    /// The distributor.
    pub distributor: u64,
    /// GICC, of a GICv2.
    pub cpu_interface: Option<u64>,
    /// Regions of redistributors, of a GICv3: address and length.
    pub redistributors: Vec<(u64, u32)>,
}

/// A port by which an operating system asks the firmware for ACPI mode: SMI_CMD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SmiPort {
    /// The port.
    pub port: u16,
    /// ACPI_ENABLE.
    pub enable: u8,
    /// ACPI_DISABLE.
    pub disable: u8,
}

/// The fixed hardware as the FADT has it (4.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PowerManagement {
    /// PM1a_EVT_BLK: 4 ports.
    pub event: u16,
    /// PM1a_CNT_BLK: 2 ports.
    pub control: u16,
    /// PM_TMR_BLK: 4 ports.
    pub timer: u16,
    /// TMR_VAL_EXT.
    pub timer_32_bits: bool,
    /// GPE0_BLK, and how many ports.
    pub gpe: Option<(u16, u8)>,
    /// SMI_CMD, unless the machine is in ACPI mode from the start.
    pub smi: Option<SmiPort>,
    /// The system control interrupt.
    pub sci: Wire,
    /// SLP_TYP of `\_S5`.
    pub s5: u8,
}

/// Which bits of the generic event device's selector are which event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventBits {
    /// The power button.
    pub power_button: u32,
    /// The sleep button, if there is one.
    pub sleep_button: Option<u32>,
}

/// The sleep and reset registers of hardware-reduced ACPI (4.8.3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventRegisters {
    /// SLEEP_CONTROL_REG.
    pub sleep_control: u64,
    /// SLEEP_STATUS_REG.
    pub sleep_status: u64,
    /// RESET_REG, and RESET_VALUE.
    pub reset: (u64, u8),
    /// SLP_TYP of `\_S5`.
    pub s5: u8,
}

/// Ports of PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortWindow {
    /// The first port.
    pub base: u16,
    /// How many.
    pub len: u32,
    /// Where they are in memory, on CPUs that have no ports.
    pub memory: Option<u64>,
}

/// A PCI host bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// Where the configuration space of its first bus is.
    pub ecam: Option<u64>,
    /// CONFIG_ADDRESS and CONFIG_DATA are at 0xcf8.
    pub config_ports: bool,
    /// Its buses.
    pub buses: RangeInclusive<u8>,
    /// Where BARs may be: address and length, the same on both sides.
    pub memory: Vec<(u64, u64)>,
    /// Where BARs of ports may be.
    pub ports: Vec<PortWindow>,
    /// Where INTA to INTD of device 0 end. Of device n, they are rotated by n.
    pub wires: [Wire; 4],
}

/// What ACPI tables say of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acpi {
    /// DSDT: a device.
    Device(Object),
    /// DSDT and MADT: a CPU.
    Processor(Processor),
    /// MADT: a GIC.
    Gic(Gic),
    /// MADT and IORT: an ITS, at this address.
    Its(u64),
    /// MADT: a GICv2m frame at this address, of so many SPIs from this INTID on.
    MessageFrame {
        /// Where.
        base: u64,
        /// INTID of the first SPI.
        first: u16,
        /// How many.
        count: u16,
    },
    /// MADT: local APICs at this address.
    LocalApics(u32),
    /// MADT: an IOAPIC at this address, with GSIs from this one on.
    IoApic {
        /// Where.
        address: u64,
        /// The first GSI.
        first: u32,
    },
    /// MADT: a pair of 8259s beside the IOAPIC.
    Pics,
    /// MADT: an IRQ of the ISA bus ends at another GSI than that of its number.
    IsaIrq {
        /// The IRQ.
        irq: u8,
        /// Where it ends.
        wire: Wire,
    },
    /// GTDT: the PPIs of the timers: secure, physical, virtual, hypervisor.
    Timers([Wire; 4]),
    /// DSDT and MCFG: a PCI host bridge.
    PciHost(PciHost),
    /// DSDT and FADT: the generic event device, whose event selector is at this address.
    Events {
        /// The selector.
        selector: u64,
        /// Its interrupt.
        wire: Wire,
        /// Its events.
        bits: EventBits,
        /// Its registers, if it has them.
        registers: Option<EventRegisters>,
    },
    /// FADT and DSDT: fixed hardware.
    PowerManagement(PowerManagement),
    /// FADT: RESET_REG and RESET_VALUE.
    Reset(Register, u8),
    /// FADT: there is an 8042.
    Keyboard,
    /// FADT: there is a CMOS clock, which keeps the century at this index.
    CmosClock(u8),
    /// FADT: PSCI, called by HVC instead of SMC.
    Psci {
        /// By HVC.
        hvc: bool,
    },
    /// SPCR, if it is the console.
    Serial(Serial),
    /// VIOT: the device with registers at this address is behind the board's IOMMU.
    Endpoint {
        /// Where.
        base: u64,
        /// By which the IOMMU knows it.
        id: u32,
    },
    /// VIOT: the functions of the PCI bus are behind the board's IOMMU, by their requester IDs.
    PciEndpoints,
}
