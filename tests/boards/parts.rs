//! The three boards.

use devisor::{
    backends::irqchip::{
        Spi,
        gicv2::{self, GicV2Config},
        gicv2m,
        gicv3::{self, GicV3Config},
        ioapic::{self, IoApicConfig},
        its,
        lapic::{self, ApicId},
        pc::{self, Gsi, PcConfig},
    },
    description::{
        Acpi, Part, PciHost, PortWindow, Wire,
        arm::{self, Conduit, TimerPpis},
        memory,
    },
    pci,
    platform::{
        acpi_pm::{self, AcpiPmConfig, AcpiPmPlace},
        cfi_flash::{self, CfiFlashConfig},
        fw_cfg, ged, i8042, mc146818, pl011, pl031, pl061, pvpanic, reset_control, uart16550,
    },
    virtio::transport::mmio,
};

pub fn isa(irq: u32) -> Wire {
    Wire::edge(Gsi(irq))
}

/// With PCI, fixed hardware and what else PCs have.
pub fn pc() -> Vec<Part> {
    let mut parts = vec![
        memory(0, 0xa_0000),
        memory(0x10_0000, 0x7ff0_0000),
        memory(0x1_0000_0000, 0x8000_0000),
        lapic::describe(&[ApicId(0), ApicId(1), ApicId(4), ApicId(0x100)]),
        uart16550::describe(0x3f8, isa(4)).console(),
        uart16550::describe(0x2f8, isa(3)),
        mc146818::describe(0x70, isa(8)),
        i8042::describe(isa(1), isa(12)),
        fw_cfg::describe(0x510),
        pvpanic::describe(0x505),
        cfi_flash::describe(&CfiFlashConfig::PC, 0xffc0_0000, 0x40_0000),
        acpi_pm::describe(
            &AcpiPmConfig::default(),
            AcpiPmPlace::from_base(0x600),
            Wire::level(Gsi(9)),
        ),
        reset_control::describe(),
        pci::describe(PciHost {
            ecam: Some(0xb000_0000),
            config_ports: true,
            buses: 0..=0,
            memory: vec![(0xc000_0000, 0x3c00_0000), (0x80_0000_0000, 0x40_0000_0000)],
            ports: vec![
                PortWindow {
                    base: 0x0d00,
                    len: 0xf300,
                    memory: None,
                },
                PortWindow {
                    base: 0,
                    len: 0x0cf8,
                    memory: None,
                },
            ],
            wires: [16, 17, 18, 19].map(|gsi| Wire::level(Gsi(gsi)).active_low()),
        }),
    ];
    parts.extend(pc::describe(&PcConfig::default()));
    parts
}

/// With a GICv3, an ITS, PCI and buttons of both kinds.
pub fn virt() -> Vec<Part> {
    virt_with_ecam(0x3f00_0000)
}

/// The same, with the configuration space of PCI elsewhere.
pub fn virt_with_ecam(ecam: u64) -> Vec<Part> {
    let spi = |spi| Wire::level(Spi(spi));
    vec![
        memory(0x4000_0000, 0x1_0000_0000),
        arm::cpus("arm,cortex-a53", &[0x8000_0000, 0x8000_0001, 0x8000_0100]),
        arm::psci(Conduit::Hvc),
        arm::timer(TimerPpis::default()),
        gicv3::describe(&GicV3Config::new(3), 0x0800_0000, &[0x080a_0000]),
        its::describe(0x0808_0000),
        cfi_flash::describe(&CfiFlashConfig::VIRT, 0, 0x0400_0000),
        cfi_flash::describe(&CfiFlashConfig::VIRT, 0x0400_0000, 0x0400_0000),
        pl011::describe(0x0900_0000, spi(1)).console(),
        pl031::describe(0x0901_0000, spi(2)),
        fw_cfg::describe_in_memory(0x0902_0000),
        pl061::describe(0x0903_0000, spi(7), Some(3)),
        ged::describe(0x0908_0000, None, spi(9)),
        uart16550::describe_in_memory(0x0910_0000, 2, spi(10)),
        mmio::describe(0x0a00_0000, spi(16)),
        mmio::describe(0x0a00_0200, spi(17)),
        pci::describe(PciHost {
            ecam: Some(ecam),
            config_ports: false,
            buses: 0..=0,
            memory: vec![(0x1000_0000, 0x2eff_0000), (0x80_0000_0000, 0x80_0000_0000)],
            ports: vec![PortWindow {
                base: 0,
                len: 0x1_0000,
                memory: Some(0x3eff_0000),
            }],
            wires: [3, 4, 5, 6].map(spi),
        }),
    ]
}

/// The arm64 board with an IOMMU, which is one of its virtio-mmio devices, and everything else of virtio and PCI behind it.
pub fn virt_with_iommu() -> Vec<Part> {
    let behind = |part: Part| match part.to_string().as_str() {
        "virtio_mmio@a000000" => part.behind_iommu(0x1_0007),
        "virtio_mmio@a000200" => mmio::describe(0x0a00_0200, Wire::level(Spi(17))).is_iommu(),
        "pcie" => part.all_behind_iommu(),
        name if name.starts_with("pcie@") => part.all_behind_iommu(),
        _ => part,
    };
    virt().into_iter().map(behind).collect()
}

/// A PC whose IOMMU is function 2 of its bus.
pub fn pc_with_iommu() -> Vec<Part> {
    let behind = |part: Part| match part
        .acpi_entries()
        .iter()
        .any(|entry| matches!(entry, Acpi::PciHost(_)))
    {
        true => part.all_behind_iommu().has_iommu(0x10),
        false => part,
    };
    pc().into_iter().map(behind).collect()
}

/// With a GICv2 and its messages.
pub fn virt_gicv2() -> Vec<Part> {
    let spi = |spi| Wire::level(Spi(spi));
    let config = GicV2Config {
        cpus: 2,
        ..GicV2Config::default()
    };
    vec![
        memory(0x4000_0000, 0x1000_0000),
        arm::cpus("arm,cortex-a53", &[0, 1 << 32]),
        arm::psci(Conduit::Smc),
        arm::timer(TimerPpis::default()),
        gicv2::describe(&config, 0x0800_0000, 0x0801_0000),
        gicv2m::describe(0x0802_0000, Spi(48), 32),
        uart16550::describe_in_memory(0x0900_0000, 0, spi(1)).console(),
        pci::describe(PciHost {
            ecam: Some(0x3f00_0000),
            config_ports: false,
            buses: 0..=0,
            memory: vec![(0x1000_0000, 0x2eff_0000)],
            ports: vec![],
            wires: [3, 4, 5, 6].map(spi),
        }),
    ]
}

/// With virtio-mmio and hardware-reduced.
pub fn microvm() -> Vec<Part> {
    let mut parts = vec![
        memory(0, 0x1000_0000),
        lapic::describe(&[ApicId(0), ApicId(1)]),
        ioapic::describe(&IoApicConfig::default(), 0xfec0_0000, 0),
        uart16550::describe(0x3f8, isa(4)).console(),
        ged::describe(0xfea0_0000, Some(0xfea0_0200), Wire::level(Gsi(9))),
    ];
    for slot in 0..8 {
        let base = 0xfeb0_0000 + u64::from(slot) * mmio::REGION_SIZE;
        parts.push(mmio::describe(base, Wire::level(Gsi(16 + slot))));
    }
    parts
}
