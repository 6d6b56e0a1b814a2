//! The VM's routing table (`KVM_SET_GSI_ROUTING`), as the modes of x86_64 need it. Each function replaces the whole table.

use std::io;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;

use crate::interrupt::MsiMessage;

/// Pins of the kernel's IOAPIC.
const IOAPIC_PINS: u32 = 24;
/// Inputs of each 8259.
const PIC_PINS: u32 = 8;
/// The second 8259's place on the first.
const CASCADE: u32 = 2;
/// Where IRQ 0 is at the IOAPIC.
const TIMER_PIN: u32 = 2;

/// Wires the kernel's controllers (`KVM_CREATE_IRQCHIP`) as a PC does: GSI n is pin n of the IOAPIC and, below 16, IRQ n of
/// the 8259 pair; GSI 0, which the kernel's 8254 drives, and GSI 2 are both IRQ 0, at pin 2 of the IOAPIC.
///
/// Out of the box KVM leads GSI 0 to pin 0, where no guest that reads its ACPI tables looks for the timer.
///
/// # Errors
/// What KVM answers: the VM has no such irqchip.
pub fn route_as_pc(vm: &VmFd) -> io::Result<()> {
    let pin = |gsi, irqchip, pin| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let mut entries = Vec::new();
    for gsi in 0..IOAPIC_PINS {
        let (irq, at_ioapic) = match gsi {
            0 | TIMER_PIN => (Some(0), TIMER_PIN),
            gsi => (Some(gsi), gsi),
        };
        entries.push(pin(gsi, KVM_IRQCHIP_IOAPIC, at_ioapic));
        match irq.filter(|irq| *irq != CASCADE) {
            Some(irq) if irq < PIC_PINS => entries.push(pin(gsi, KVM_IRQCHIP_PIC_MASTER, irq)),
            Some(irq) if irq < 2 * PIC_PINS => entries.push(pin(gsi, KVM_IRQCHIP_PIC_SLAVE, irq - PIC_PINS)),
            _ => (),
        }
    }
    set(vm, &entries)
}

/// Leads each GSI to the message at its place.
pub(super) fn set_messages(vm: &VmFd, messages: &[Option<MsiMessage>]) -> io::Result<()> {
    let entry = |(gsi, message): (u32, &Option<MsiMessage>)| {
        let MsiMessage { address, data } = (*message)?;
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi = kvm_irq_routing_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        Some(entry)
    };
    set(vm, &(0..).zip(messages).filter_map(entry).collect::<Vec<_>>())
}

fn set(vm: &VmFd, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
    let table = KvmIrqRouting::from_entries(entries).map_err(|_| io::ErrorKind::OutOfMemory)?;
    Ok(vm.set_gsi_routing(&table)?)
}
