//! What there is, where, and with which interrupts: each part says it of itself.

use devisor::{
    description::{
        Part, PciHost, Wire,
        arm::{self, Conduit, TimerPpis},
        memory,
    },
    pci,
    platform::{
        cfi_flash::{self, CfiFlashConfig},
        fw_cfg, pl011, pl031,
    },
    virtio::transport::mmio,
};

use super::{board, gic};
use crate::{options::Options, virtio::Window};

/// All that the guest is to find.
pub fn parts(options: &Options) -> Vec<Part> {
    let (version, transport) = (options.gic, options.transport);
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
        let bus = pci::describe(PciHost {
            ecam: Some(board::PCI_CONFIG.base),
            config_ports: false,
            buses: 0..=0,
            memory: vec![(board::PCI_MEMORY.base, board::PCI_MEMORY.len)],
            ports: Vec::new(),
            wires: board::PCI_WIRES.map(Wire::level),
        });
        parts.push(match options.iommu {
            true => bus.all_behind_iommu().has_iommu(board::IOMMU.requester().0),
            false => bus,
        });
    } else {
        for place in &board::places(options) {
            let part = mmio::describe(place.mmio.base, Wire::level(board::mmio_spi(place)));
            parts.push(match board::may_be_behind(place) {
                true => part.behind_iommu(place.pci.into()),
                false if place.name == board::IOMMU.name => part.is_iommu(),
                false => part,
            });
        }
    }
    if options.firmware.is_some() {
        let Window { base, len } = board::SETTINGS;
        parts.push(cfi_flash::describe(&CfiFlashConfig::VIRT, base, len));
        parts.push(fw_cfg::describe_in_memory(board::FW_CFG.base));
    }
    parts
}
