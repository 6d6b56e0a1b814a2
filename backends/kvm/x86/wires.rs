//! The kernel's own controllers, wired as on a PC.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry};

use crate::backends::kvm::{
    KvmIrqError, KvmIrqs,
    routes::{WIRES, wire},
};

/// Inputs of each 8259.
const PIC_INPUTS: u32 = 8;
/// Where IRQ 0 is at the IOAPIC.
const TIMER_PIN: u32 = 2;

impl KvmIrqs {
    /// Wires the kernel's controllers (`KVM_CREATE_IRQCHIP`) as a PC does: GSI n is pin n of the IOAPIC and, below 16, IRQ n of
    /// the 8259 pair; GSI 0, which the kernel's 8254 drives, and GSI 2 are both IRQ 0, at pin 2 of the IOAPIC.
    ///
    /// Out of the box KVM leads GSI 0 to pin 0, where no guest that reads its ACPI tables looks for the timer.
    ///
    /// # Errors
    /// [`KvmIrqError::Refused`]: the VM has no such controllers. Nothing was changed.
    pub fn wire_as_pc(&self) -> Result<(), KvmIrqError> {
        let wires = (0..WIRES).flat_map(wires_of).collect();
        self.shared.routes.set_wires(&self.shared.vm, wires)
    }
}

fn wires_of(gsi: u32) -> impl Iterator<Item = kvm_irq_routing_entry> {
    let (irq, pin) = match gsi {
        0 | TIMER_PIN => (0, TIMER_PIN),
        gsi => (gsi, gsi),
    };
    let pic = match irq {
        0..PIC_INPUTS => Some(wire(gsi, KVM_IRQCHIP_PIC_MASTER, irq)),
        _ if irq < 2 * PIC_INPUTS => Some(wire(gsi, KVM_IRQCHIP_PIC_SLAVE, irq - PIC_INPUTS)),
        _ => None,
    };
    pic.into_iter().chain([wire(gsi, KVM_IRQCHIP_IOAPIC, pin)])
}
