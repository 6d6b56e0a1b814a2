//! The IOAPIC.

use std::{io, sync::Arc};

use devisor::{
    backends::irqchip::{
        CpuId, Vector,
        ioapic::{IoApic, IoApicConfig, LevelLine, Pin},
        lapic::{ApicId, LocalApic, LocalApicParts, LocalApicState, LocalApics, LocalApicsConfig},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, NoInterrupt, RequesterId},
    time::ManualClock,
};
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_ioapic_state};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::{
    Random, STEPS, array, chip, guest,
    kvm_access::Access::{Read, Write},
    vm,
};

const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const MASKED: u64 = 1 << 16;

fn ioapic(vm: &VmFd) -> kvm_ioapic_state {
    // SAFETY: the kernel has filled in the union's variant for the chip that was asked for.
    unsafe { chip(vm, KVM_IRQCHIP_IOAPIC).chip.ioapic }
}

fn change_ioapic(vm: &VmFd, change: impl FnOnce(&mut kvm_ioapic_state)) {
    let mut chip = chip(vm, KVM_IRQCHIP_IOAPIC);
    // SAFETY: as above.
    change(unsafe { &mut chip.chip.ioapic });
    vm.set_irqchip(&chip).unwrap();
}

struct Anywhere;

impl MsiSink for Anywhere {
    fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
        Ok(())
    }
}

/// What is compared: each entry with Remote IRR, and the lines of level-sensitive ones (for those, KVM's `irr` is the level).
///
/// Left out:
/// - a change of the entry while the line of an edge is up: KVM's state does not have that level any more;
/// - active low polarity, which KVM does not look at, by decision;
/// - delivery modes other than fixed and lowest priority, for which KVM sets Remote IRR although no EOI will come;
/// - registers by access, which take a vCPU: an entry that the guest writes and the EOI are changes of the state here.
#[test]
fn the_ioapic_ends_in_the_same_state_as_kvms() {
    let Some(vm) = vm() else { return };
    let ours = IoApic::new(IoApicConfig::default(), Anywhere).unwrap();
    let lines: Vec<_> = (0..24).map(|pin| ours.level_line(Pin(pin)).unwrap()).collect();
    let write = |index: u32, value: u32| {
        ours.write(0x00, &index.to_le_bytes());
        ours.write(0x10, &value.to_le_bytes());
    };
    let mut random = Random(0x10a9_1c00);
    let mut in_service = 0;
    for step in 0..STEPS {
        let pin = random.below(24);
        match random.below(8) {
            0..5 => {
                let up = random.one_in(2);
                vm.set_irq_line(pin, up).unwrap();
                match up {
                    true => lines[pin as usize].trigger().unwrap(),
                    false => lines[pin as usize].clear().unwrap(),
                }
            }
            5 | 6 => {
                if ours.save().pins[pin as usize].entry & LEVEL == 0 {
                    vm.set_irq_line(pin, false).unwrap();
                    lines[pin as usize].clear().unwrap();
                }
                let mut entry = u64::from(random.byte()) << 56
                    | u64::from((0x30 + random.below(8)) | random.below(2) << 8 | random.below(2) << 11);
                entry |= if random.one_in(3) { MASKED } else { 0 };
                entry |= if random.one_in(3) { 0 } else { LEVEL };
                change_ioapic(&vm, |state| {
                    // SAFETY: every bit pattern is an entry.
                    let bits = unsafe { &mut state.redirtbl[pin as usize].bits };
                    *bits = entry | *bits & if entry & LEVEL != 0 { REMOTE_IRR } else { 0 };
                });
                write(0x11 + 2 * pin, (entry >> 32) as u32);
                // One write of the whole entry, as the state is: the high half alone changes nothing that shows.
                write(0x10 + 2 * pin, entry as u32);
            }
            _ => {
                let vector = random.below(8) as u8 + 0x30;
                change_ioapic(&vm, |state| {
                    for entry in &mut state.redirtbl {
                        // SAFETY: as above.
                        let bits = unsafe { &mut entry.bits };
                        if *bits as u8 == vector {
                            *bits &= !REMOTE_IRR;
                        }
                    }
                });
                ours.eoi(Vector(vector));
            }
        }
        let theirs = ioapic(&vm);
        for (pin, state) in ours.save().pins.iter().enumerate() {
            // SAFETY: as above.
            let bits = unsafe { theirs.redirtbl[pin].bits };
            in_service += u32::from(bits & REMOTE_IRR != 0);
            assert_eq!(state.entry, bits, "entry {pin}, ours and KVM's, step {step}");
            if bits & LEVEL != 0 {
                let up = theirs.irr >> pin & 1 != 0;
                assert_eq!(state.line, up, "line {pin}, ours and KVM's, step {step}");
            }
        }
    }
    assert!(in_service > 1000, "the sequence has reached hardly anything");
}

const IOREGSEL: u32 = 0xfec0_0000;
const IOWIN: u32 = 0xfec0_0010;
const LOCAL_EOI: u32 = 0xfee0_00b0;
/// Bits 31 to 17 of an entry are reserved. KVM keeps what is written there; ours read as zero.
const LOW_HALF: u32 = 0x0001_ffff;
/// Bits 55 to 32: KVM keeps them all; ours keep 55 to 48, the extended destination ID.
const HIGH_HALF: u32 = 0xffff_0000;

const CPUS: usize = 3;

/// Local APICs as `Guest`'s and two more of KVM: enabled, with flat logical IDs.
fn local_apics(guest: &mut crate::Guest) -> (LocalApics, Vec<LocalApic>, Vec<VcpuFd>) {
    let parts = (0..CPUS as u32).map(|id| LocalApicParts {
        id: ApicId(id),
        wake: Box::new(NoInterrupt),
        alarm: Box::new(()),
    });
    let config = LocalApicsConfig::default();
    let apics = LocalApics::new(config, Arc::new(ManualClock::default()), parts.collect()).unwrap();
    let cpus: Vec<_> = (0..CPUS as u32).map(|cpu| apics.cpu(CpuId(cpu)).unwrap()).collect();
    let others: Vec<_> = (1..CPUS as u64).map(|cpu| guest.vm.create_vcpu(cpu).unwrap()).collect();
    for (cpu, apic) in cpus.iter().enumerate() {
        let vcpu = if cpu == 0 { &guest.vcpu } else { &others[cpu - 1] };
        let mut lapic = vcpu.get_lapic().unwrap();
        (lapic.regs[0xf1], lapic.regs[0xd3]) = (1, 1 << cpu);
        vcpu.set_lapic(&lapic).unwrap();
        apic.write(0x0f0, &0x1ff_u32.to_le_bytes());
        apic.write(0x0d0, &(1_u32 << (24 + cpu)).to_le_bytes());
    }
    (apics, cpus, others)
}

/// Makes both CPUs hold nothing but, if there is one, a level-triggered vector in service.
fn hold(apic: &LocalApic, vcpu: &VcpuFd, in_service: Option<usize>) {
    let mut vectors = [0; 4];
    let mut lapic = vcpu.get_lapic().unwrap();
    for register in [0x100, 0x180, 0x200] {
        lapic.regs[register..register + 0x80].fill(0);
        if let (Some(vector), 0x100 | 0x180) = (in_service, register) {
            vectors[vector / 64] = 1 << (vector % 64);
            lapic.regs[register + vector / 32 * 16 + vector % 32 / 8] = 1 << (vector % 8);
        }
    }
    vcpu.set_lapic(&lapic).unwrap();
    let state = LocalApicState {
        irr: [0; 4],
        isr: vectors,
        tmr: vectors,
        ..apic.save()
    };
    apic.restore(&state).unwrap();
}

/// From the line to the vector: entries by access, the EOI by that of a local APIC, and what each of three CPUs has pending,
/// with its trigger mode.
///
/// Left out, besides what is above:
/// - the version register: KVM's is 0x11, which has no EOI register;
/// - registers that do not exist, which read as ones there;
/// - messages to nobody, which KVM takes for accepted: with us a level is still up, see below;
/// - lowest priority, for which KVM may choose another of several that are equal;
/// - edges with the vector of a level, which KVM sends again after an EOI while their line is up.
#[test]
fn lines_lead_to_the_same_vectors_on_the_same_cpus_as_kvms() {
    let Some(mut guest) = guest() else { return };
    let (apics, cpus, others) = local_apics(&mut guest);
    let ours = IoApic::new(IoApicConfig::default(), apics.clone()).unwrap();
    let _hook = apics.on_eoi({
        let ours = ours.clone();
        move |vector| ours.eoi(vector)
    });
    let lines: Vec<LevelLine> = (0..24).map(|pin| ours.level_line(Pin(pin)).unwrap()).collect();
    let both = |guest: &mut crate::Guest, index: u32, value: u32| {
        guest.run(&[Write(IOREGSEL, index), Write(IOWIN, value)]);
        ours.write(0x00, &index.to_le_bytes());
        ours.write(0x10, &value.to_le_bytes());
    };
    // Nowhere is nobody, also not for those whose turn comes late.
    (0..24).for_each(|pin| both(&mut guest, 0x11 + 2 * pin, 1 << 24));
    let mut random = Random(0x10a9_1c01);
    let (mut in_service, mut ended, mut pending) = (0, 0, [0; CPUS]);
    for step in 0..STEPS / 10 {
        let pin = random.below(24);
        match random.below(8) {
            0..4 => {
                let up = random.one_in(2);
                guest.vm.set_irq_line(pin, up).unwrap();
                match up {
                    true => lines[pin as usize].trigger().unwrap(),
                    false => lines[pin as usize].clear().unwrap(),
                }
            }
            4 | 5 => {
                if ours.save().pins[pin as usize].entry & LEVEL == 0 {
                    guest.vm.set_irq_line(pin, false).unwrap();
                    lines[pin as usize].clear().unwrap();
                }
                let level = !random.one_in(3);
                let mut low = u32::from(!level) << 3 | (0x30 + random.below(8)) | random.below(2) << 11;
                // What the guest writes there is not looked at.
                low |= random.below(2) << 12 | random.below(2) << 14 | random.below(0x8000) << 17;
                low |= if random.one_in(3) { MASKED as u32 } else { 0 };
                low |= if level { LEVEL as u32 } else { 0 };
                both(&mut guest, 0x10 + 2 * pin, low);
            }
            6 => {
                // As an ID or as a mask.
                let high = random.pick(&[1, 2, 0xff]) << 24 | random.below(0x100) << 16;
                both(&mut guest, 0x11 + 2 * pin, high);
                let id = random.byte();
                both(&mut guest, 0, u32::from(id) << 24);
            }
            _ => {
                // The CPU has the vector in service, as a level, and ends it.
                let vector = 0x30 + random.below(8) as usize;
                hold(&cpus[0], &guest.vcpu, Some(vector));
                let before = ours.save();
                guest.run(&[Write(LOCAL_EOI, 0)]);
                cpus[0].write(0x0b0, &[0; 4]);
                ended += u32::from(before != ours.save());
            }
        }
        let indices = [0, 2, 0x10 + 2 * pin, 0x11 + 2 * pin];
        let accesses: Vec<_> = indices
            .iter()
            .flat_map(|index| [Write(IOREGSEL, *index), Read(IOWIN), Read(IOREGSEL)])
            .collect();
        let done = guest.run(&accesses);
        for (index, done) in indices.into_iter().zip(done.chunks(3)) {
            ours.write(0x00, &index.to_le_bytes());
            let [mut value, mut select] = [[0; 4]; 2];
            ours.read(0x10, &mut value);
            ours.read(0x00, &mut select);
            let mask = match index {
                0 | 2 => u32::MAX,
                _ if index % 2 == 0 => LOW_HALF,
                _ => HIGH_HALF,
            };
            let (value, theirs) = (u32::from_le_bytes(value) & mask, done[1].value & mask);
            assert_eq!(value, theirs, "register {index:#x}, ours and KVM's, step {step}");
            assert_eq!(u32::from_le_bytes(select), done[2].value, "IOREGSEL");
            in_service += u32::from(mask == LOW_HALF && value & REMOTE_IRR as u32 != 0);
        }
        for (cpu, apic) in cpus.iter().enumerate() {
            let vcpu = if cpu == 0 { &guest.vcpu } else { &others[cpu - 1] };
            let (state, lapic) = (apic.save(), vcpu.get_lapic().unwrap());
            let theirs = [0x200, 0x180, 0x100].map(|register| array(&lapic, register));
            assert_eq!([state.irr, state.tmr, state.isr], theirs, "CPU {cpu}, step {step}");
            pending[cpu] += u32::from(state.irr != [0; 4]);
            if step % 16 == 0 {
                hold(apic, vcpu, None);
            }
        }
    }
    assert!(
        in_service > 200 && ended > 8,
        "hardly anything was reached: {in_service} {ended}"
    );
    assert!(
        pending.iter().all(|pending| *pending > 50),
        "hardly anything was pending: {pending:?}"
    );
}

const LOCAL_SVR: u32 = 0xfee0_00f0;

/// Whether Remote IRR is set in entry 19, and what is pending: ours, then KVM's.
fn both_have(ours: (&IoApic, &LocalApic), guest: &crate::Guest) -> [(bool, [u64; 4]); 2] {
    // SAFETY: as above.
    let bits = unsafe { ioapic(&guest.vm).redirtbl[19].bits };
    let kernel = (bits & REMOTE_IRR != 0, array(&guest.vcpu.get_lapic().unwrap(), 0x200));
    let (ioapic, apic) = ours;
    [
        (ioapic.save().pins[19].entry & REMOTE_IRR != 0, apic.save().irr),
        kernel,
    ]
}

/// Where the two differ: with us the level is delivered as soon as the local APIC is enabled, with KVM when it has gone down and
/// come up again.
#[test]
fn a_level_that_a_disabled_local_apic_has_not_accepted_is_not_lost_as_it_is_not_with_kvms() {
    let Some(mut guest) = guest() else { return };
    let (apics, cpus, _others) = local_apics(&mut guest);
    let ours = IoApic::new(IoApicConfig::default(), apics.clone()).unwrap();
    let _hook = apics.on_accepting({
        let ours = ours.clone();
        move || ours.retry()
    });
    let line = ours.level_line(Pin(19)).unwrap();
    let svr = |guest: &mut crate::Guest, value: u32| {
        guest.run(&[Write(LOCAL_SVR, value)]);
        cpus[0].write(0x0f0, &value.to_le_bytes());
    };
    svr(&mut guest, 0xff);
    for (index, value) in [(0x11 + 2 * 19, 0), (0x10 + 2 * 19, 0x8081)] {
        guest.run(&[Write(IOREGSEL, index), Write(IOWIN, value)]);
        ours.write(0x00, &index.to_le_bytes());
        ours.write(0x10, &value.to_le_bytes());
    }
    guest.vm.set_irq_line(19, true).unwrap();
    line.trigger().unwrap();
    assert_eq!(both_have((&ours, &cpus[0]), &guest), [(false, [0; 4]); 2]);
    svr(&mut guest, 0x1ff);
    let accepted = (true, [0, 0, 2, 0]);
    assert_eq!(both_have((&ours, &cpus[0]), &guest), [accepted, (false, [0; 4])]);
    for up in [false, true] {
        guest.vm.set_irq_line(19, up).unwrap();
        if up { line.trigger() } else { line.clear() }.unwrap();
    }
    assert_eq!(both_have((&ours, &cpus[0]), &guest), [accepted; 2]);
}
