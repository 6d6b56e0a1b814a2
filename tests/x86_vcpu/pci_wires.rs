//! PCI wires, which are active low.

use crate::machine::*;
use std::{iter, time::Duration};

use devisor::{
    backends::{
        irqchip::pc::{Gsi, Pc},
        kvm::{self, x86::X86Vcpu},
    },
    bus::BusDevice,
    interrupt::LevelInterrupt,
};
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};

/// As MP tables and a `_PRT` say of the wires of PCI, and guests program it: level-sensitive, active low.
const PCI_ENTRY: u64 = 0xa055;

/// A device on a wire of PCI, at pin 16: it interrupts while it wants to, and not before or after.
fn a_pci_wire_interrupts_while_it_is_asserted(machine: &Machine, vcpu: &mut X86Vcpu, wire: &dyn LevelInterrupt) {
    let mut sregs = vcpu.fd().get_sregs().unwrap();
    sregs.ds.base = 0xfee0_0000;
    vcpu.fd().set_sregs(&sregs).unwrap();
    // 1: jmp 1b
    machine.put(CODE, &[0xeb, 0xfe]);
    // out 0x11, al; xor eax, eax; mov [0xb0], eax (EOI); out 0x10, al; iret
    let code = [0xe6, 0x11, 0x66, 0x31, 0xc0, 0x66, 0xa3, 0xb0, 0, 0xe6, 0x10, 0xcf];
    machine.handle(0x55, 0x2000, &code);
    let mut next_port = |patience| next_write(vcpu, patience).map(|(port, _)| port);
    let soon = Duration::from_millis(100);
    assert_eq!(next_port(soon), None, "an idle device");
    for _ in 0..2 {
        wire.trigger().unwrap();
        // Once more for as long as it is up.
        for port in [0x11, 0x10, 0x11] {
            assert_eq!(next_port(PATIENCE), Some(port));
        }
        wire.clear().unwrap();
        // A local APIC in the kernel that ends interrupts on delivery, as some hosts' do, has taken one more already.
        let rest: Vec<_> = iter::from_fn(|| next_port(soon)).take(4).collect();
        assert!(
            rest == [0x10] || rest == [0x10, 0x11, 0x10],
            "an idle device: {rest:x?}"
        );
    }
}

fn program_pci_entry(board: &Pc) {
    board.ioapic().write(0, &[0x10 + 2 * 16]);
    board.ioapic().write(0x10, &(PCI_ENTRY as u32).to_le_bytes());
}

#[test]
fn an_idle_pci_wire_is_silent_behind_an_active_low_entry_with_all_controllers_here() {
    let Some(machine) = Machine::new() else { return };
    let (_apics, board, mut vcpu) = machine.software_with_board(1);
    let wires = board.pci_wires(Gsi(16)).unwrap();
    program_pci_entry(&board);
    a_pci_wire_interrupts_while_it_is_asserted(&machine, &mut vcpu, &*wires[0]);
}

#[test]
fn an_idle_pci_wire_is_silent_behind_an_active_low_entry_of_a_split_irqchip() {
    let Some(machine) = Machine::new() else { return };
    let Some((board, mut vcpu)) = machine.split() else {
        return;
    };
    let wires = board.pci_wires(Gsi(16)).unwrap();
    program_pci_entry(&board);
    a_pci_wire_interrupts_while_it_is_asserted(&machine, &mut vcpu, &*wires[0]);
}

#[test]
fn an_idle_pci_wire_is_silent_behind_an_active_low_entry_of_the_kernels_ioapic() {
    let Some(machine) = Machine::new() else { return };
    let Some((irqs, mut vcpu)) = machine.kernel() else {
        return;
    };
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    machine.vm.get_irqchip(&mut chip).unwrap();
    // SAFETY: the kernel has filled in the union's variant for the chip that was asked for.
    unsafe { chip.chip.ioapic.redirtbl[16].bits = PCI_ENTRY };
    machine.vm.set_irqchip(&chip).unwrap();
    let wire = irqs.claim(kvm::Gsi(16), "INTA").unwrap().irq_line().unwrap();
    a_pci_wire_interrupts_while_it_is_asserted(&machine, &mut vcpu, &wire);
}
