//! Tells the guest what there is, where, and with which interrupts: each part describes itself.

use std::ops::Range;

use devisor::{
    description::{
        BoardError, PciHost, Wire,
        arm::{self, Conduit, TimerPpis},
        fdt::{self, Boot},
        memory,
    },
    pci,
    platform::{pl011, pl031},
    virtio::transport::mmio,
};

use super::{board, gic};
use crate::{
    options::Gic,
    virtio::{Place, Transport},
};

/// The device tree of the [`board`], for a kernel with this command line and this initial RAM disk.
pub fn build(
    command_line: &str,
    initrd: Range<u64>,
    version: Gic,
    transport: Transport,
    places: &[Place],
    iommu: bool,
) -> Result<Vec<u8>, BoardError> {
    let timer = TimerPpis {
        physical: board::PHYSICAL_TIMER_PPI.0,
        virtual_: board::VIRTUAL_TIMER_PPI.0,
        ..TimerPpis::default()
    };
    let mut parts = vec![
        memory(board::RAM.base, board::RAM.len),
        arm::cpus("arm,cortex-a53", &[0]),
        arm::psci(Conduit::Smc),
        arm::timer(timer),
        gic::describe(version),
        pl011::describe(board::UART.base, Wire::level(board::UART_SPI)).console(),
        pl031::describe(board::RTC.base, Wire::level(board::RTC_SPI)),
    ];
    if transport.is_pci() {
        parts.push(gic::describe_messages(version));
        parts.push(pci::describe(PciHost {
            ecam: Some(board::PCI_CONFIG.base),
            config_ports: false,
            buses: 0..=0,
            memory: vec![(board::PCI_MEMORY.base, board::PCI_MEMORY.len)],
            ports: Vec::new(),
            wires: board::PCI_WIRES.map(Wire::level),
        }));
    } else {
        for place in places {
            let part = mmio::describe(place.mmio.base, Wire::level(board::mmio_spi(place)));
            parts.push(match board::may_be_behind(place) {
                true => part.behind_iommu(place.pci.into()),
                false => part,
            });
        }
        if iommu {
            let place = board::IOMMU;
            parts.push(mmio::describe(place.mmio.base, Wire::level(board::mmio_spi(&place))).is_iommu());
        }
    }
    let boot = Boot {
        compatible: vec!["linux,dummy-virt".into()],
        model: "devisor on rsemu".into(),
        command_line: command_line.into(),
        initrd: Some(initrd),
    };
    fdt::build(&parts, &boot)
}
