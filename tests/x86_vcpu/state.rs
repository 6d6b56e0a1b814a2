//! Settling, moving and reset.

use crate::machine::*;
use std::time::Duration;

use devisor::{
    backends::{irqchip::CpuId, kvm::x86::Exit},
    bus::BusDevice,
    interrupt::{MsiSink, RequesterId},
};
use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_deadline_that_the_guest_has_written_is_in_the_state_of_a_vcpu_that_was_settled() {
    let Some(machine) = Machine::new() else { return };
    let (apics, mut vcpu) = machine.software(1);
    let apic = apics.cpu(CpuId(0)).unwrap();
    apic.write(0x320, &(0x41_u32 | 2 << 17).to_le_bytes());
    // mov ecx, 0x6e0; mov eax, -1; mov edx, 0x0fffffff; wrmsr; out 0x10, al
    let code = [
        [0x66, 0xb9, 0xe0, 6, 0, 0],
        [0x66, 0xb8, 0xff, 0xff, 0xff, 0xff],
        [0x66, 0xba, 0xff, 0xff, 0xff, 0x0f],
        [0x0f, 0x30, 0xe6, 0x10, 0xeb, 0xfe],
    ];
    machine.put(CODE, code.as_flattened());
    while apic.save().tsc_deadline == 0 {
        assert!(vcpu.run().unwrap().is_none(), "not before the timer is armed");
        vcpu.settle(|exit| panic!("{exit:?}")).unwrap();
    }
    assert_eq!(apic.save().tsc_deadline, 0x0fff_ffff_ffff_ffff);
    assert_eq!(
        vcpu.fd().get_regs().unwrap().rip,
        CODE + 20,
        "WRMSR has come to its end"
    );
}

#[test]
fn a_vcpu_that_is_settled_is_at_the_end_of_an_instruction_with_many_exits() {
    let Some(machine) = Machine::new() else { return };
    let (_apics, mut vcpu) = machine.software(1);
    machine.put(CODE, &COPY_FROM_NO_MEMORY);
    run_to_read(&mut vcpu);
    let mut reads = 0;
    vcpu.settle(|exit| match exit {
        Exit::Other(VcpuExit::MmioRead(_, data)) => {
            data.fill(0xa5);
            reads += 1;
        }
        exit => panic!("{exit:?}"),
    })
    .unwrap();
    // Between two of its rounds, or behind it: what was read is in memory.
    let regs = vcpu.fd().get_regs().unwrap();
    let copied = 1000 - regs.rcx;
    assert_eq!((regs.rsi, regs.rdi), (copied, copied));
    assert!(copied > 0 && copied <= reads + 1, "{copied} of {reads}");
    let mut memory = vec![0xff; copied as usize];
    machine.memory.read_slice(&mut memory, GuestAddress(0x8000)).unwrap();
    assert!(memory[1..].iter().all(|&byte| byte == 0xa5) && memory[0] == 0);
}

#[test]
fn a_halted_vcpu_runs_after_a_reset_of_the_machine_and_is_halted_after_a_move() {
    let Some(machine) = Machine::new() else { return };
    let (apics, mut vcpu) = machine.software(1);
    let apic = apics.cpu(CpuId(0)).unwrap();
    machine.put(CODE, &[0xf4]);
    assert_eq!(next_write(&mut vcpu, Duration::from_millis(100)), None, "it sleeps");
    vcpu.settle(|exit| panic!("{exit:?}")).unwrap();
    assert!(vcpu.is_halted());

    // mov al, 7; out 0x10, al
    machine.put(CODE, &[0xb0, 7, 0xe6, 0x10]);
    apic.reset();
    begin(vcpu.fd());
    vcpu.restart(false);
    assert_eq!(next_write(&mut vcpu, PATIENCE), Some((0x10, 7)));

    begin(vcpu.fd());
    vcpu.restart(true);
    assert_eq!(next_write(&mut vcpu, Duration::from_millis(100)), None, "it sleeps");
    apic.write(0xf0, &0x1ff_u32.to_le_bytes());
    machine.handle(0x40, 0x3000, &[0xcf]);
    apics.send(RequesterId(0), message(0x40, 0)).unwrap();
    assert_eq!(next_write(&mut vcpu, PATIENCE), Some((0x10, 7)), "what follows its HLT");
}
