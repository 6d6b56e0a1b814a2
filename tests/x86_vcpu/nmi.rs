//! NMIs.

use crate::machine::*;
use std::{iter, time::Duration};

use devisor::interrupt::{MsiSink, RequesterId};
use kvm_bindings::{KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI};

#[test]
fn an_nmi_between_sti_and_hlt_ends_the_halt() {
    let Some(machine) = Machine::new() else { return };
    let (apics, mut vcpu) = machine.software(1);
    // hlt; mov al, 1; out 0x11, al
    machine.put(CODE, &[0xf4, 0xb0, 1, 0xe6, 0x11]);
    // mov al, 2; out 0x10, al
    machine.handle(2, 0x2000, &[0xb0, 2, 0xe6, 0x10]);
    let mut events = vcpu.fd().get_vcpu_events().unwrap();
    events.flags |= KVM_VCPUEVENT_VALID_SHADOW;
    events.interrupt.shadow = KVM_X86_SHADOW_INT_STI as u8;
    vcpu.fd().set_vcpu_events(&events).unwrap();
    apics.send(RequesterId(0), message(NMI, 0)).unwrap();
    assert_eq!(next_write(&mut vcpu, PATIENCE), Some((0x10, 2)));
}

#[test]
fn an_nmi_that_is_blocked_does_not_end_a_halt_and_is_taken_later() {
    let Some(machine) = Machine::new() else { return };
    let (apics, mut vcpu) = machine.software(1);
    machine.put(CODE, &[0xf4, 0xf4]);
    // mov al, 2; out 0x10, al; sti; hlt; mov al, 3; out 0x11, al; iret
    machine.handle(2, 0x2000, &[0xb0, 2, 0xe6, 0x10, 0xfb, 0xf4, 0xb0, 3, 0xe6, 0x11, 0xcf]);
    // mov al, 4; out 0x12, al; iret
    machine.handle(0x40, 0x3000, &[0xb0, 4, 0xe6, 0x12, 0xcf]);
    apics.send(RequesterId(0), message(NMI, 0)).unwrap();
    assert_eq!(next_write(&mut vcpu, PATIENCE), Some((0x10, 2)));
    for _ in 0..2 {
        assert_eq!(next_write(&mut vcpu, Duration::from_millis(200)), None);
        apics.send(RequesterId(0), message(NMI, 0)).unwrap();
    }
    assert_eq!(next_write(&mut vcpu, Duration::from_millis(200)), None);
    apics.send(RequesterId(0), message(0x40, 0)).unwrap();
    // The `iret` of either handler ends the blocking. KVM's emulator may see to what that lets through only at the next exit.
    let rest: Vec<_> = iter::from_fn(|| next_write(&mut vcpu, PATIENCE)).take(3).collect();
    assert_eq!(rest[0], (0x12, 4));
    assert!(rest.contains(&(0x10, 2)), "{rest:?}");
}

/// A CPU takes one and latches one more (SDM volume 3, 6.7.1).
#[test]
fn of_nmis_that_come_at_once_the_guest_takes_two() {
    let Some(machine) = Machine::new() else { return };
    let (apics, mut vcpu) = machine.software(1);
    // hlt; jmp -3
    machine.put(CODE, &[0xf4, 0xeb, 0xfd]);
    // mov al, 2; out 0x10, al; iret
    machine.handle(2, 0x2000, &[0xb0, 2, 0xe6, 0x10, 0xcf]);
    for _ in 0..3 {
        apics.send(RequesterId(0), message(NMI, 0)).unwrap();
    }
    for _ in 0..2 {
        assert_eq!(next_write(&mut vcpu, PATIENCE), Some((0x10, 2)));
    }
    assert_eq!(next_write(&mut vcpu, Duration::from_millis(200)), None);
}
