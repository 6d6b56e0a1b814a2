//! The local APIC's page. `tests/lapic_kvm.rs` has its state, its messages and its MSRs.

use std::{sync::Arc, time::Duration};

use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{ApicId, LocalApic, LocalApicParts, LocalApics, LocalApicsConfig},
    },
    bus::BusDevice,
    interrupt::NoInterrupt,
    time::ManualClock,
};
use kvm_bindings::kvm_lapic_state;

use crate::{
    Random, STEPS, array, guest,
    kvm_access::Access::{Read, Write},
};

const CPUS: usize = 3;
const PAGE: u32 = 0xfee0_0000;

fn machine() -> (Vec<LocalApic>, Arc<ManualClock>) {
    let parts = (0..CPUS as u32).map(|id| LocalApicParts {
        id: ApicId(id),
        wake: Box::new(NoInterrupt),
        alarm: Box::new(()),
    });
    let config = LocalApicsConfig {
        // The kernel offers it only with its own IOAPIC left out.
        eoi_broadcast_suppression: false,
        ..LocalApicsConfig::default()
    };
    let clock = Arc::new(ManualClock::default());
    let apics = LocalApics::new(config, clock.clone(), parts.collect()).unwrap();
    let cpus = (0..CPUS as u32).map(|cpu| apics.cpu(CpuId(cpu)).unwrap());
    (cpus.collect(), clock)
}

fn read(apic: &LocalApic, offset: u32) -> u32 {
    let mut value = [0; 4];
    apic.read(offset.into(), &mut value);
    u32::from_le_bytes(value)
}

fn set_array(state: &mut kvm_lapic_state, offset: usize, value: [u64; 4]) {
    for n in 0..8 {
        let word = (value[n / 2] >> (n % 2 * 32)) as u32;
        for (byte, value) in word.to_le_bytes().into_iter().enumerate() {
            state.regs[offset + n * 16 + byte] = value as _;
        }
    }
}

/// The registers that are compared: all but the current count, which runs, and ESR, where the kernel notes no errors.
fn readable() -> impl Iterator<Item = u32> {
    let registers = [
        0x020, 0x030, 0x080, 0x0a0, 0x0d0, 0x0e0, 0x0f0, 0x300, 0x310, 0x380, 0x3e0,
    ];
    let arrays = (0x100..0x280).step_by(16);
    let lvt = (0x320..0x380).step_by(16);
    registers.into_iter().chain(arrays).chain(lvt)
}

/// Registers and commands by access to the page, on one CPU of three; what the others have pending is compared too.
///
/// Left out:
/// - events, which the vCPU would take: NMI, SMI, INIT;
/// - level-triggered commands, vectors below 16 and models of the destination format that the manual does not know: see
///   `tests/lapic_kvm.rs`.
#[test]
fn the_page_of_the_local_apic_reads_as_kvms_to_a_guest() {
    let Some(mut guest) = guest() else { return };
    let (ours, _) = machine();
    let others: Vec<_> = (1..CPUS as u64).map(|cpu| guest.vm.create_vcpu(cpu).unwrap()).collect();
    for (cpu, vcpu) in (1..).zip(&others) {
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[0xf1] = 1;
        // Logical IDs of the flat model.
        lapic.regs[0xd3] = 1 << cpu;
        vcpu.set_lapic(&lapic).unwrap();
        let apic = &ours[cpu];
        apic.write(0x0f0, &0x1ff_u32.to_le_bytes());
        apic.write(0x0d0, &(1_u32 << (24 + cpu)).to_le_bytes());
    }
    let both = |guest: &mut crate::Guest, offset: u32, value: u32| {
        guest.run(&[Write(PAGE + offset, value)]);
        ours[0].write(offset.into(), &value.to_le_bytes());
    };
    // The kernel leaves power-up with LINT0 unmasked, for firmware of old.
    both(&mut guest, 0x350, 1 << 16);
    both(&mut guest, 0x0f0, 0x1ff);
    let mut random = Random(0x1a91_c000);
    let (mut taken, mut pending) = (0, 0);
    for step in 0..STEPS / 8 {
        let vector = |random: &mut Random| 16 + random.below(240);
        let (offset, value) = match random.below(15) {
            0 => (0x080, random.below(0x200)),
            1..=3 => (0x0b0, 0),
            4 => (
                0x0d0,
                random.pick(&[0x01, 0x02, 0x06, 0x11, 0x21]) << 24 | random.below(0x100),
            ),
            5 => (
                0x0e0,
                random.pick(&[0xffff_ffff, 0xffff_ffff, 0xf000_0000, 0x0fff_ffff]),
            ),
            6 => (0x0f0, random.pick(&[0x1ff, 0x1ff, 0x1f0, 0x3ff, 0xff])),
            // No initial count is written, so the timer does not run. No TSC-deadline mode, which this vCPU lacks.
            7 => (0x320, vector(&mut random) | random.below(4) << 16),
            8 => (
                random.pick(&[0x350, 0x360]),
                vector(&mut random) | random.below(4) << 15 | random.below(2) << 13,
            ),
            9 => (
                random.pick(&[0x330, 0x340, 0x370]),
                vector(&mut random) | random.below(2) << 16,
            ),
            10 => (0x3e0, random.below(16)),
            // Its own, that of another one, and some that are nobody's.
            14 => (0x020, random.pick(&[0, 0, 1, 3, 5, 0x11]) << 24 | random.below(0x100)),
            11 => (
                0x310,
                random.pick(&[0, 1, 2, 3, 5, 6, 7, 0x11, 0xff]) << 24 | random.below(0x100),
            ),
            _ => {
                let shorthand = random.pick(&[0, 0, 0, 1, 2, 3]);
                (
                    0x300,
                    shorthand << 18 | random.below(2) << 11 | random.below(2) << 14 | vector(&mut random),
                )
            }
        };
        both(&mut guest, offset, value);
        if step % 8 == 0 && ours[0].acknowledge().is_some() {
            // Something has to be in service for EOI: the kernel is told.
            taken += 1;
            let state = ours[0].save();
            let mut lapic = guest.vcpu.get_lapic().unwrap();
            set_array(&mut lapic, 0x100, state.isr);
            set_array(&mut lapic, 0x200, state.irr);
            // Twice, for the kernel derives PPR before it counts what is in service.
            guest.vcpu.set_lapic(&lapic).unwrap();
            guest.vcpu.set_lapic(&lapic).unwrap();
        }
        let accesses: Vec<_> = readable().map(|offset| Read(PAGE + offset)).collect();
        for (register, done) in readable().zip(guest.run(&accesses)) {
            let value = read(&ours[0], register);
            assert_eq!(
                value, done.value,
                "{register:#x} after {value:#x} to {offset:#x} in step {step}"
            );
        }
        for (apic, vcpu) in ours[1..].iter().zip(&others) {
            let (state, lapic) = (apic.save(), vcpu.get_lapic().unwrap());
            assert_eq!(
                (state.irr, state.tmr),
                (array(&lapic, 0x200), array(&lapic, 0x180)),
                "step {step}"
            );
            pending += u32::from(state.irr != [0; 4]);
        }
        if step % 64 == 0 {
            // The others finish what they have, so that there is room for more.
            for (apic, vcpu) in ours[1..].iter().zip(&others) {
                let mut state = apic.save();
                (state.irr, state.isr) = ([0; 4], [0; 4]);
                apic.restore(&state).unwrap();
                let mut lapic = vcpu.get_lapic().unwrap();
                set_array(&mut lapic, 0x200, [0; 4]);
                vcpu.set_lapic(&lapic).unwrap();
            }
        }
    }
    assert!(
        taken > 50 && pending > 200,
        "hardly anything was reached: {taken} {pending}"
    );
}

/// The kernel counts at 1 GHz of its monotonic clock, which is within 500 ppm of the time-stamp counter; those of the host's
/// CPUs may be some microseconds apart. Its current count has to be between what ours have at the first and the last moment at
/// which the guest can have read it.
#[test]
fn the_timer_of_the_local_apic_counts_as_kvms_does() {
    let Some(mut guest) = guest() else { return };
    const APART: f64 = 10_000.0;
    let khz = f64::from(guest.vcpu.get_tsc_khz().unwrap());
    let mut random = Random(0x7143_1000);
    guest.run(&[Write(PAGE + 0x0f0, 0x1ff)]);
    for round in 0..60 {
        let (ours, clock) = machine();
        let apic = &ours[0];
        apic.write(0x0f0, &0x1ff_u32.to_le_bytes());
        let divide = random.pick(&[0, 1, 2, 3, 8, 9, 10, 11]);
        // Masked, one-shot or periodic. Long enough not to end meanwhile.
        let setup = [
            (0x320, 0x41 | 1 << 16 | random.below(2) << 17),
            (0x3e0, divide),
            (0x380, u32::MAX - random.below(1000)),
        ];
        let accesses = setup.map(|(offset, value)| Write(PAGE + offset, value));
        let started = *guest.run(&accesses).last().unwrap();
        for (offset, value) in setup {
            apic.write(offset.into(), &value.to_le_bytes());
        }
        for step in 0..4 {
            std::thread::sleep(Duration::from_micros(300));
            let [done] = guest.run(&[Read(PAGE + 0x390)])[..] else {
                unreachable!("one access")
            };
            let nanoseconds = |cycles: u64| cycles as f64 / khz * 1e6;
            let least = nanoseconds(done.before.saturating_sub(started.after)) * 0.999 - APART;
            let most = nanoseconds(done.after - started.before) * 1.001 + APART;
            let [first, last] = [least, most].map(|nanoseconds| {
                clock.advance_to(Duration::from_nanos(nanoseconds as u64));
                read(apic, 0x390)
            });
            // Which count stands during a divided tick is open: the kernel rounds down, ours up.
            assert!(
                (last.saturating_sub(1)..=first).contains(&done.value),
                "{:#x} is not within {last:#x} to {first:#x}, round {round}, step {step}, divide {divide}",
                done.value
            );
        }
    }
}
