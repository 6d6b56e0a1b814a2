//! What the IOAPIC hears of local APICs: EOIs, and whether a message was accepted.

use crate::machine::*;
use std::time::Duration;

use devisor::{
    backends::{
        irqchip::pc::Gsi,
        kvm::x86::{VcpuWaker, X86Vcpu},
    },
    bus::BusDevice,
    interrupt::{Acceptance, Interrupt, LevelInterrupt, MsiSink, RequesterId},
};
use kvm_bindings::kvm_segment;
use vm_memory::{Bytes, GuestAddress};

/// KVM tells of an EOI by its routes, which have to follow the redirection table.
#[test]
fn the_ioapic_hears_of_the_eoi_also_after_its_entry_has_got_another_vector() {
    let Some(machine) = Machine::new() else { return };
    let Some((board, mut vcpu)) = machine.split() else {
        return;
    };
    let mut sregs = vcpu.fd().get_sregs().unwrap();
    sregs.ds.base = 0xfee0_0000;
    vcpu.fd().set_sregs(&sregs).unwrap();
    // 1: jmp 1b
    machine.put(CODE, &[0xeb, 0xfe]);
    let ioapic = board.ioapic();
    let line = board.gsi_level_line(Gsi(20)).unwrap();
    for (vector, at) in [(0x55, 0x2000), (0x65, 0x2100), (0x55, 0x2000)] {
        // out 0x11, al; xor eax, eax; mov [0xb0], eax (EOI); out 0x10, al; iret
        let code = [0xe6, 0x11, 0x66, 0x31, 0xc0, 0x66, 0xa3, 0xb0, 0, 0xe6, 0x10, 0xcf];
        machine.handle(vector, at, &code);
        ioapic.write(0, &[0x10 + 2 * 20]);
        ioapic.write(0x10, &(1 << 15 | vector as u32).to_le_bytes());
        line.trigger().unwrap();
        assert_eq!(next_write(&mut vcpu, PATIENCE).map(|(port, _)| port), Some(0x11));
        line.clear().unwrap();
        assert_eq!(next_write(&mut vcpu, PATIENCE).map(|(port, _)| port), Some(0x10));
        assert_eq!(
            ioapic.save().pins[20].entry,
            1 << 15 | vector,
            "Remote IRR of {vector:#x}"
        );
    }
}

/// KVM_SIGNAL_MSI says it by its answer, and nobody says when the local APIC is enabled.
#[test]
fn a_level_that_a_local_apic_in_the_kernel_has_not_accepted_is_delivered_once_it_is_enabled() {
    for again in [false, true] {
        let Some(machine) = Machine::new() else { return };
        let Some((board, mut vcpu)) = machine.split() else {
            return;
        };
        // 1: jmp 1b
        machine.put(CODE, &[0xeb, 0xfe]);
        // out 0x11, al; 1: jmp 1b
        machine.handle(0x81, 0x2000, &[0xe6, 0x11, 0xeb, 0xfe]);
        set_local_apic(vcpu.fd(), &[(0xf0, 0xff)]);
        board.ioapic().write(0, &[0x10 + 2 * 19]);
        board.ioapic().write(0x10, &0x8081_u32.to_le_bytes());
        let remote_irr = || board.ioapic().save().pins[19].entry & 1 << 14 != 0;
        let line = board.gsi_level_line(Gsi(19)).unwrap();
        line.trigger().unwrap();
        assert!(!remote_irr() && board.ioapic().owes());
        assert_eq!(next_write(&mut vcpu, Duration::from_millis(100)), None);
        assert!(!remote_irr(), "nor when the guest runs");
        set_local_apic(vcpu.fd(), &[(0xf0, 0x1ff)]);
        if again {
            line.clear().unwrap();
            line.trigger().unwrap();
            assert!(remote_irr());
        }
        assert_eq!(next_write(&mut vcpu, PATIENCE).map(|(port, _)| port), Some(0x11));
        assert!(remote_irr() && !board.ioapic().owes());
    }
}

#[test]
fn a_message_that_no_local_apic_in_the_kernel_takes_is_no_error_and_told_to_who_offers_it() {
    let Some(machine) = Machine::new() else { return };
    let Some((irqs, vcpu)) = machine.kernel() else {
        return;
    };
    let messages = irqs.messages();
    let offer = |destination| {
        let message = message(0x81, destination);
        messages.send(RequesterId(8), message).expect("as on a bus");
        messages.offer(RequesterId(8), message).unwrap()
    };
    assert_eq!([offer(0), offer(5)], [Acceptance::Accepted, Acceptance::Dropped]);
    set_local_apic(vcpu.fd(), &[(0xf0, 0xff)]);
    assert_eq!([offer(0), offer(0xff)], [Acceptance::Dropped; 2]);
}

/// The handler of a level at the IOAPIC before the kernel's local APIC ends it: whether Remote IRR stays. `restored`: as a move leaves
/// it, while the interrupt waits in the local APIC; otherwise it comes by the line.
fn remote_irr_stays(restored: bool) -> Option<bool> {
    const PIN: usize = 20;
    let machine = Machine::new()?;
    let (irqchip, board) = machine.split_irqchip()?;
    let fd = machine.vm.create_vcpu(0).unwrap();
    // Protected mode, without pages: the local APIC is at 0xfee00000.
    for (at, value) in [
        (0x7008, 0x00cf_9b00_0000_ffff_u64),
        (0x7010, 0x00cf_9300_0000_ffff),
        (0x9000 + 0x41 * 8, 0x3000 | 8 << 16 | 0x8e00 << 32),
    ] {
        machine.memory.write_obj(value, GuestAddress(at)).unwrap();
    }
    // sti; 1: jmp 1b, and the handler: mov dword ptr [0xfee000b0], 0; out 0x10, al; 1: jmp 1b
    machine.put(CODE, &[0xfb, 0xeb, 0xfe]);
    machine.put(
        0x3000,
        &[0xc7, 0x05, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0xe6, 0x10, 0xeb, 0xfe],
    );
    begin(&fd);
    let mut sregs = fd.get_sregs().unwrap();
    let segment = |selector, type_| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    };
    sregs.cs = segment(8, 0xb);
    (sregs.ds, sregs.es, sregs.ss) = (segment(0x10, 3), segment(0x10, 3), segment(0x10, 3));
    (sregs.gdt.base, sregs.gdt.limit) = (0x7000, 0x17);
    (sregs.idt.base, sregs.idt.limit) = (0x9000, 0xfff);
    sregs.cr0 |= 1;
    fd.set_sregs(&sregs).unwrap();
    let mut apic = fd.get_lapic().unwrap();
    (apic.regs[0xf0], apic.regs[0xf1]) = (0xff_u8 as _, 1);
    let entry = 0x41 | 1 << 15;
    let mut state = board.save();
    if restored {
        state.ioapic.pins[PIN].entry = entry | 1 << 14;
        // IRR and TMR.
        for register in [0x200, 0x180] {
            apic.regs[register + 0x41 / 32 * 16] = 1 << (0x41 % 32);
        }
    } else {
        state.ioapic.pins[PIN].entry = entry;
    }
    fd.set_lapic(&apic).unwrap();
    board.restore(&state).unwrap();
    if !restored {
        let line = board.gsi_level_line(Gsi(PIN as u32)).unwrap();
        line.trigger().unwrap();
        line.clear().unwrap();
    }
    let mut vcpu = X86Vcpu::split(fd, VcpuWaker::new().unwrap(), &irqchip).unwrap();
    let is_in_service = || board.ioapic().save().pins[PIN].entry & 1 << 14 != 0;
    assert!(is_in_service());
    assert_eq!(next_write(&mut vcpu, PATIENCE).map(|(port, _)| port), Some(0x10));
    // A KVM that emulates the guest tells of the EOI when it is entered the next time.
    assert_eq!(next_write(&mut vcpu, Duration::from_millis(100)), None);
    Some(is_in_service())
}

#[test]
fn an_eoi_reaches_the_ioapic_before_a_split_irqchip() {
    assert_ne!(remote_irr_stays(false), Some(true));
}

#[test]
fn an_eoi_reaches_the_ioapic_of_a_split_irqchip_that_was_restored_while_it_was_in_service() {
    assert_ne!(remote_irr_stays(true), Some(true));
}
