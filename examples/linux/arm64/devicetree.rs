//! Tells the guest what there is, where, and with which interrupts (Devicetree Specification 0.4; the bindings are in
//! the kernel's `Documentation/devicetree/bindings`).

use std::ops::Range;

use devisor::backends::irqchip::Spi;
use vm_fdt::{Error, FdtWriter};

use super::board;
use crate::virtio::{Transport, Window};

const GIC: u32 = 1;
const CLOCK: u32 = 2;
const MESSAGES: u32 = 3;

/// `interrupts`, first cell.
const SPI: u32 = 0;
const PPI: u32 = 1;
/// `interrupts`, third cell: active high, level; for a private interrupt also which CPUs have it.
const LEVEL: u32 = 4;
const ON_CPU_0: u32 = 1 << 8;

/// The device tree of the [`board`], for a kernel with this command line and this initial RAM disk.
pub fn build(command_line: &str, initrd: Range<u64>, transport: Transport) -> Result<Vec<u8>, Error> {
    let mut tree = FdtWriter::new()?;
    let root = tree.begin_node("")?;
    tree.property_string("compatible", "linux,dummy-virt")?;
    tree.property_string("model", "devisor on rsemu")?;
    tree.property_u32("#address-cells", 2)?;
    tree.property_u32("#size-cells", 2)?;
    tree.property_u32("interrupt-parent", GIC)?;

    node(&mut tree, "chosen", |tree| {
        tree.property_string("bootargs", command_line)?;
        tree.property_string("stdout-path", &format!("/serial@{:x}", board::UART.base))?;
        tree.property_u64("linux,initrd-start", initrd.start)?;
        tree.property_u64("linux,initrd-end", initrd.end)
    })?;
    node(&mut tree, &format!("memory@{:x}", board::RAM.base), |tree| {
        tree.property_string("device_type", "memory")?;
        reg(tree, &[board::RAM])
    })?;
    node(&mut tree, "cpus", |tree| {
        tree.property_u32("#address-cells", 1)?;
        tree.property_u32("#size-cells", 0)?;
        node(tree, "cpu@0", |tree| {
            tree.property_string("device_type", "cpu")?;
            tree.property_string("compatible", "arm,cortex-a53")?;
            tree.property_u32("reg", 0)?;
            tree.property_string("enable-method", "psci")
        })
    })?;
    node(&mut tree, "psci", |tree| {
        compatible(tree, &["arm,psci-1.0", "arm,psci-0.2"])?;
        tree.property_string("method", "smc")
    })?;
    node(&mut tree, "timer", |tree| {
        tree.property_string("compatible", "arm,armv8-timer")?;
        // Secure, physical, virtual and hypervisor timer, in the order of the binding. There is no first and no last.
        let ppis = [13, board::PHYSICAL_TIMER_PPI.0, board::VIRTUAL_TIMER_PPI.0, 10];
        let cells: Vec<u32> = ppis.iter().flat_map(|&ppi| [PPI, ppi, LEVEL | ON_CPU_0]).collect();
        tree.property_array_u32("interrupts", &cells)?;
        tree.property_null("always-on")
    })?;
    node(&mut tree, "apb-pclk", |tree| {
        tree.property_string("compatible", "fixed-clock")?;
        tree.property_u32("#clock-cells", 0)?;
        tree.property_u32("clock-frequency", 24_000_000)?;
        tree.property_phandle(CLOCK)
    })?;

    let base = board::GIC_DISTRIBUTOR.base;
    node(&mut tree, &format!("interrupt-controller@{base:x}"), |tree| {
        tree.property_string("compatible", "arm,cortex-a15-gic")?;
        tree.property_null("interrupt-controller")?;
        tree.property_u32("#interrupt-cells", 3)?;
        tree.property_u32("#address-cells", 2)?;
        tree.property_u32("#size-cells", 2)?;
        tree.property_null("ranges")?;
        reg(tree, &[board::GIC_DISTRIBUTOR, board::GIC_CPU_INTERFACE])?;
        tree.property_phandle(GIC)?;
        if !transport.is_pci() {
            return Ok(());
        }
        node(tree, &format!("v2m@{:x}", board::GIC_MESSAGES.base), |tree| {
            tree.property_string("compatible", "arm,gic-v2m-frame")?;
            tree.property_null("msi-controller")?;
            reg(tree, &[board::GIC_MESSAGES])?;
            tree.property_phandle(MESSAGES)
        })
    })?;
    device(&mut tree, "serial", board::UART, board::UART_SPI, |tree| {
        compatible(tree, &["arm,pl011", "arm,primecell"])?;
        tree.property_array_u32("clocks", &[CLOCK, CLOCK])?;
        string_list(tree, "clock-names", &["uartclk", "apb_pclk"])
    })?;
    device(&mut tree, "rtc", board::RTC, board::RTC_SPI, |tree| {
        compatible(tree, &["arm,pl031", "arm,primecell"])?;
        tree.property_u32("clocks", CLOCK)?;
        tree.property_string("clock-names", "apb_pclk")
    })?;
    if transport.is_pci() {
        pci(&mut tree)?;
    } else {
        for (window, spi) in board::VIRTIO.map(|place| (place.mmio, board::mmio_spi(&place))) {
            device(&mut tree, "virtio_mmio", window, spi, |tree| {
                tree.property_string("compatible", "virtio,mmio")?;
                tree.property_null("dma-coherent")
            })?;
        }
    }

    tree.end_node(root)?;
    tree.finish()
}

/// The host bridge (IEEE 1275 PCI bus binding, and `pci/host-generic-pci.yaml`). What is on the bus, the guest finds.
fn pci(tree: &mut FdtWriter) -> Result<(), Error> {
    node(tree, &format!("pcie@{:x}", board::PCI_CONFIG.base), |tree| {
        tree.property_string("compatible", "pci-host-ecam-generic")?;
        tree.property_string("device_type", "pci")?;
        tree.property_u32("#address-cells", 3)?;
        tree.property_u32("#size-cells", 2)?;
        tree.property_u32("#interrupt-cells", 1)?;
        tree.property_array_u32("bus-range", &[0, 0])?;
        tree.property_null("dma-coherent")?;
        reg(tree, &[board::PCI_CONFIG])?;
        // 32 bits of memory, at the same address on both sides.
        let Window { base, len } = board::PCI_MEMORY;
        let [base, len] = [base, len].map(|value| [(value >> 32) as u32, value as u32]);
        let ranges = [&[0x0200_0000], &base[..], &base, &len].concat();
        tree.property_array_u32("ranges", &ranges)?;
        tree.property_u32("msi-parent", MESSAGES)?;
        // INTA to INTD of a device, by the two low bits of its number.
        tree.property_array_u32("interrupt-map-mask", &[3 << 11, 0, 0, 7])?;
        let mut map = Vec::new();
        for device in 0..4 {
            for pin in 0..4 {
                let spi = board::PCI_WIRES[(device + pin) % 4];
                map.extend([(device as u32) << 11, 0, 0, pin as u32 + 1]);
                map.extend([GIC, 0, 0, SPI, spi.0, LEVEL]);
            }
        }
        tree.property_array_u32("interrupt-map", &map)
    })
}

fn node(
    tree: &mut FdtWriter,
    name: &str,
    content: impl FnOnce(&mut FdtWriter) -> Result<(), Error>,
) -> Result<(), Error> {
    let node = tree.begin_node(name)?;
    content(tree)?;
    tree.end_node(node)
}

/// A device with one window and one shared, level-triggered interrupt.
fn device(
    tree: &mut FdtWriter,
    kind: &str,
    window: Window,
    spi: Spi,
    content: impl FnOnce(&mut FdtWriter) -> Result<(), Error>,
) -> Result<(), Error> {
    node(tree, &format!("{kind}@{:x}", window.base), |tree| {
        reg(tree, &[window])?;
        tree.property_array_u32("interrupts", &[SPI, spi.0, LEVEL])?;
        content(tree)
    })
}

fn reg(tree: &mut FdtWriter, windows: &[Window]) -> Result<(), Error> {
    let cells: Vec<u64> = windows.iter().flat_map(|window| [window.base, window.len]).collect();
    tree.property_array_u64("reg", &cells)
}

fn compatible(tree: &mut FdtWriter, names: &[&str]) -> Result<(), Error> {
    string_list(tree, "compatible", names)
}

fn string_list(tree: &mut FdtWriter, property: &str, values: &[&str]) -> Result<(), Error> {
    tree.property_string_list(property, values.iter().map(|value| value.to_string()).collect())
}
