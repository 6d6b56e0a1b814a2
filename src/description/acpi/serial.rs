//! The SPCR: where a console is before there is a driver (*Serial Port Console Redirection Table*, revision 2).

use acpi_tables::sdt::Sdt;

use super::Board;
use crate::description::{Acpi, Input, Serial, Space};

impl Board<'_> {
    pub(super) fn spcr(&self) -> Option<Sdt> {
        let console = self.console?;
        let kind = console.acpi.iter().find_map(|entry| match entry {
            Acpi::Serial(kind) => Some(*kind),
            _ => None,
        })?;
        let region = console.regions.first()?;
        let (interface, access) = match kind {
            Serial::Uart16550 => (0, 1),
            Serial::Pl011 => (3, 3),
        };
        let space = match region.space {
            Space::Memory => 0,
            Space::Ports => 1,
        };
        let mut body = vec![interface, 0, 0, 0];
        body.extend([space, if access == 3 { 32 } else { 8 }, 0, access]);
        body.extend(region.base.to_le_bytes());
        // Interrupt type, IRQ of the 8259, GSI.
        const IOAPIC: u8 = 1 << 1;
        const GIC: u8 = 1 << 3;
        let (interrupt, gsi) = match console.wires.first().map(|wire| wire.input) {
            None => (0, 0),
            Some(input @ Input::Gsi(_)) => (IOAPIC, input.gsi()),
            Some(input) => (GIC, input.gsi()),
        };
        body.extend([interrupt, 0]);
        body.extend(gsi.to_le_bytes());
        // 115200 baud, no parity, one stop bit, no flow control, ANSI, no language.
        body.extend([7, 0, 1, 0, 3, 0]);
        // No PCI device: 0xffff twice; bus, device, function; flags; segment; reserved.
        body.extend([0xff, 0xff, 0xff, 0xff, 0, 0, 0]);
        body.extend([0; 9]);
        let mut spcr = self.oem.table(b"SPCR", 2);
        spcr.append_slice(&body);
        Some(spcr)
    }
}
