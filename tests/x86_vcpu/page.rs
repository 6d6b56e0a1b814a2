//! Where the local APIC is, and whether.

use crate::machine::*;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;

#[test]
fn what_is_beside_the_page_of_the_local_apic_is_the_embedders() {
    let Some(machine) = Machine::new() else { return };
    let (_apics, mut vcpu) = machine.software(1);
    let mut sregs = vcpu.fd().get_sregs().unwrap();
    for base in [0xfee0_1000, 0xfedf_f000] {
        sregs.ds.base = base;
        vcpu.fd().set_sregs(&sregs).unwrap();
        // mov al, [0x0fff]; out 0x11, al; jmp CODE
        machine.put(CODE, &[0xa0, 0xff, 0x0f, 0xe6, 0x11, 0xeb, 0xf9]);
        run_to_read(&mut vcpu);
        assert!(next_write(&mut vcpu, PATIENCE).is_some());
    }
}

#[test]
fn cpuid_tells_a_guest_whether_it_has_disabled_its_local_apic() {
    let Some(machine) = Machine::new() else { return };
    let (_apics, mut vcpu) = machine.software(1);
    let cpuid = Kvm::new().unwrap().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    vcpu.fd().set_cpuid2(&cpuid).unwrap();
    // mov eax, 1; cpuid; shr edx, 9; mov al, dl; and al, 1; out 0x11, al
    let tell = [
        0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x66, 0xc1, 0xea, 9, 0x88, 0xd0, 0x24, 1, 0xe6, 0x11,
    ];
    // mov ecx, 0x1b; rdmsr; xor ah, 8 (IA32_APIC_BASE.EN); wrmsr
    let toggle = [0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x80, 0xf4, 8, 0x0f, 0x30];
    machine.put(CODE, &[&tell[..], &toggle, &tell, &toggle, &tell].concat());
    for there in [1, 0, 1] {
        assert_eq!(next_write(&mut vcpu, PATIENCE), Some((0x11, there)));
    }
}
