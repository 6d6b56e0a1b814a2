//! INIT.

use crate::machine::*;

use devisor::interrupt::{MsiSink, RequesterId};

#[test]
fn an_init_in_the_middle_of_a_string_instruction_is_not_undone_by_its_rest() {
    let Some(machine) = Machine::new() else { return };
    let (apics, mut vcpu) = machine.software(2);
    machine.put(CODE, &COPY_FROM_NO_MEMORY);
    // mov al, 7; out 0x10, al
    machine.put(0x3000, &[0xb0, 7, 0xe6, 0x10]);
    let send = |data| apics.send(RequesterId(0), message(data, 1)).unwrap();
    send(START_UP | 1);
    run_to_read(&mut vcpu);
    send(INIT);
    send(START_UP | 3);
    assert_eq!(next_write(&mut vcpu, PATIENCE), Some((0x10, 7)));
}

#[test]
fn after_init_dx_is_the_processors_family_and_nmis_are_taken_again() {
    let Some(machine) = Machine::new() else { return };
    let (apics, mut vcpu) = machine.software(2);
    let send = |data| apics.send(RequesterId(0), message(data, 1)).unwrap();
    // mov al, dh; out 0x11, al; 1: jmp 1b
    machine.put(CODE, &[0x88, 0xf0, 0xe6, 0x11, 0xeb, 0xfe]);
    // out 0x12, al; 1: jmp 1b: the NMI has no end
    machine.handle(2, 0x2000, &[0xe6, 0x12, 0xeb, 0xfe]);
    for _ in 0..2 {
        send(INIT);
        send(START_UP | 1);
        assert_eq!(next_write(&mut vcpu, PATIENCE), Some((0x11, 6)), "the sixth");
        send(NMI);
        assert_eq!(next_write(&mut vcpu, PATIENCE).map(|(port, _)| port), Some(0x12));
    }
}

#[test]
fn init_leaves_the_control_debug_and_table_registers_as_the_manual_says() {
    let Some(machine) = Machine::new() else { return };
    let (apics, mut vcpu) = machine.software(2);
    let fd = vcpu.fd();
    let mut sregs = fd.get_sregs().unwrap();
    // Caching is off, and long mode is enabled but not on.
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer) = (0x4000_0012, 1, 0x4000, 0x200, 0x100);
    (sregs.gdt.base, sregs.idt.base, sregs.idt.limit) = (0x7000, 0x9000, 0xfff);
    fd.set_sregs(&sregs).unwrap();
    let mut debug = fd.get_debug_regs().unwrap();
    (debug.db[0], debug.dr7) = (0x1234, 0x402);
    fd.set_debug_regs(&debug).unwrap();
    for data in [INIT, START_UP | 1] {
        apics.send(RequesterId(0), message(data, 1)).unwrap();
    }
    // out 0x11, al
    machine.put(CODE, &[0xe6, 0x11]);
    assert!(next_write(&mut vcpu, PATIENCE).is_some());
    let sregs = vcpu.fd().get_sregs().unwrap();
    assert_eq!(sregs.cr0, 0x4000_0010, "caching stays as it was");
    assert_eq!((sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer), (0, 0, 0, 0));
    for table in [sregs.gdt, sregs.idt] {
        assert_eq!((table.base, table.limit), (0, 0xffff));
    }
    assert_eq!(vcpu.fd().get_debug_regs().unwrap().dr7, 0x400);
}
