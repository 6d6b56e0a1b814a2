//! The same stimuli to our local APICs and to those of the kernel, and what both hold afterwards compared. No vCPU
//! runs: messages go through KVM_SIGNAL_MSI, the kernel's registers are set and read through KVM_SET_LAPIC and
//! KVM_GET_LAPIC, and written as a guest does through KVM_SET_MSRS.
//!
//! Where the two differ on purpose, the stimuli stay away from it, or a test at the end shows the difference.
#![cfg(all(feature = "irqchip", feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

#[path = "support/skip.rs"]
mod skip;

use std::sync::Arc;

use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{ApicId, LocalApic, LocalApicParts, LocalApicState, LocalApics, LocalApicsConfig},
    },
    interrupt::{Acceptance, MsiMessage, MsiSink, NoInterrupt, RequesterId},
    time::ManualClock,
};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_lapic_state, kvm_msi, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use skip::skipped;

const CPUS: usize = 4;
const APIC_BASE: u32 = 0x1b;

/// Random numbers that are the same on every run (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    fn vector(&mut self) -> u64 {
        16 + self.below(240)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Held {
    irr: [u64; 4],
    tmr: [u64; 4],
    isr: [u64; 4],
    ppr: u32,
}

/// A machine of ours beside one of the kernel's.
struct Pair {
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    apics: LocalApics,
    cpus: Vec<LocalApic>,
}

fn pair() -> Option<Pair> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            skipped(format_args!("/dev/kvm cannot be opened: {error}"));
            return None;
        }
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let vcpus = (0..CPUS).map(|cpu| {
        let vcpu = vm.create_vcpu(cpu as u64).unwrap();
        let mut cpuid = cpuid.clone();
        for entry in cpuid.as_mut_slice() {
            if entry.function == 1 {
                entry.ecx |= 1 << 21; // x2APIC
                entry.ebx = entry.ebx & 0x00ff_ffff | (cpu as u32) << 24;
            }
        }
        vcpu.set_cpuid2(&cpuid).unwrap();
        vcpu
    });
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
    let apics = LocalApics::new(config, Arc::new(ManualClock::default()), parts.collect()).unwrap();
    let cpus = (0..CPUS as u32).map(|cpu| apics.cpu(CpuId(cpu)).unwrap());
    Some(Pair {
        vcpus: vcpus.collect(),
        cpus: cpus.collect(),
        vm,
        apics,
    })
}

fn register(state: &kvm_lapic_state, offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| state.regs[offset + byte] as u8))
}

fn set_register(state: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (byte, value) in value.to_le_bytes().into_iter().enumerate() {
        state.regs[offset + byte] = value as _;
    }
}

/// A register of 256 bits.
fn array(state: &kvm_lapic_state, offset: usize) -> [u64; 4] {
    let word = |n: usize| u64::from(register(state, offset + n * 16));
    std::array::from_fn(|n| word(2 * n) | word(2 * n + 1) << 32)
}

fn set_array(state: &mut kvm_lapic_state, offset: usize, value: [u64; 4]) {
    for n in 0..8 {
        set_register(state, offset + n * 16, (value[n / 2] >> (n % 2 * 32)) as u32);
    }
}

fn set_msr(vcpu: &VcpuFd, index: u32, data: u64) -> bool {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    vcpu.set_msrs(&Msrs::from_entries(&[entry]).unwrap()).unwrap() == 1
}

fn get_msr(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let entry = kvm_msr_entry {
        index,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).unwrap();
    (vcpu.get_msrs(&mut msrs).unwrap() == 1).then(|| msrs.as_slice()[0].data)
}

impl Pair {
    /// Puts a CPU on both sides into `state`.
    fn set(&self, cpu: usize, state: &LocalApicState) {
        let vcpu = &self.vcpus[cpu];
        let mut lapic = vcpu.get_lapic().unwrap();
        set_register(&mut lapic, 0x080, state.tpr.into());
        set_register(&mut lapic, 0x0d0, u32::from(state.logical_id) << 24);
        set_register(
            &mut lapic,
            0x0e0,
            u32::from(state.destination_model) << 28 | 0x0fff_ffff,
        );
        set_register(&mut lapic, 0x0f0, state.svr);
        for (n, entry) in state.lvt.into_iter().enumerate() {
            set_register(&mut lapic, 0x320 + n * 16, entry);
        }
        set_array(&mut lapic, 0x100, state.isr);
        set_array(&mut lapic, 0x180, state.tmr);
        set_array(&mut lapic, 0x200, state.irr);
        // Twice, for the kernel derives PPR before it counts what is in service.
        vcpu.set_lapic(&lapic).unwrap();
        vcpu.set_lapic(&lapic).unwrap();
        self.cpus[cpu].restore(state).unwrap();
    }

    fn send(&self, address: u32, data: u32) {
        let message = kvm_msi {
            address_lo: 0xfee0_0000 | address,
            data,
            ..Default::default()
        };
        // EPERM is what the kernel says of a message that is for nobody.
        let taken = self.vm.signal_msi(message).unwrap_or_else(|error| {
            assert_eq!(error.errno(), libc::EPERM);
            0
        });
        let address = u64::from(0xfee0_0000 | address);
        let offered = self.apics.offer(RequesterId(0), MsiMessage { address, data }).unwrap();
        // Vectors below 16 are accepted by the kernel alone.
        if data & 0xf0 != 0 || data & 0x600 != 0 {
            assert_eq!(offered, Acceptance::from(taken > 0), "{data:#x} to {address:#x}");
        }
    }

    /// What a CPU holds on both sides: ours, then the kernel's.
    fn both(&self, cpu: usize) -> [Held; 2] {
        let kernel = self.vcpus[cpu].get_lapic().unwrap();
        let state = self.cpus[cpu].save();
        let mut ppr = [0; 4];
        devisor::bus::BusDevice::read(&self.cpus[cpu], 0x0a0, &mut ppr);
        let ours = Held {
            irr: state.irr,
            tmr: state.tmr,
            isr: state.isr,
            ppr: u32::from_le_bytes(ppr),
        };
        let kernel = Held {
            irr: array(&kernel, 0x200),
            tmr: array(&kernel, 0x180),
            isr: array(&kernel, 0x100),
            ppr: register(&kernel, 0x0a0),
        };
        [ours, kernel]
    }

    /// The state of one CPU of ours, as after power-up but running.
    fn fresh(&self, cpu: usize) -> LocalApicState {
        LocalApicState {
            waits_for_start_up: false,
            lvt: [1 << 16; 6],
            ..self.cpus[cpu].save()
        }
    }
}

fn vectors(random: &mut Random, n: u64) -> [u64; 4] {
    let mut vectors = [0; 4];
    for _ in 0..random.below(n) {
        let vector = random.vector();
        vectors[vector as usize / 64] |= 1 << (vector % 64);
    }
    vectors
}

#[test]
fn fixed_messages_reach_the_same_apics_with_the_same_irr_tmr_and_priority() {
    let Some(pair) = pair() else { return };
    let mut random = Random(0x1eaf);
    let mut delivered = 0;
    for round in 0..300 {
        for cpu in 0..CPUS {
            let isr = vectors(&mut random, 3);
            let state = LocalApicState {
                tpr: random.next() as u8,
                logical_id: random.pick(&[0x01, 0x02, 0x04, 0x11, 0x12, 0x2f, 0x00, 0xff]),
                // Models that the manual knows: of others the kernel makes clusters or nothing, depending on the other
                // APICs.
                destination_model: random.pick(&[0xf, 0xf, 0xf, 0, 0]),
                svr: random.pick(&[0x1ff, 0x1ff, 0x1ff, 0xff]),
                irr: vectors(&mut random, 5),
                isr,
                tmr: isr,
                ..pair.fresh(cpu)
            };
            pair.set(cpu, &state);
        }
        let mut log = Vec::new();
        for _ in 0..20 {
            let destination = random.pick(&[0, 1, 2, 3, 4, 0x11, 0x13, 0x21, 0x2f, 0xf0, 0xfe, 0xff]);
            let logical = random.below(2) as u32;
            let level = random.below(2) as u32;
            let (address, data) = (destination << 12 | logical << 2, level << 15 | random.vector() as u32);
            log.push((address, data));
            pair.send(address, data);
        }
        for cpu in 0..CPUS {
            let [ours, kernel] = pair.both(cpu);
            assert_eq!(ours, kernel, "CPU {cpu} in round {round} after {log:x?}");
            delivered += kernel.irr.iter().map(|word| word.count_ones()).sum::<u32>();
        }
    }
    assert!(delivered > 1000, "only {delivered} vectors: the test shows nothing");
}

/// Which of several equals takes a vector is the kernel's choice (a hash or a rotation, by a parameter of its module),
/// so what is compared is that one does, and one of those that are addressed.
#[test]
fn a_lowest_priority_message_reaches_exactly_one_of_those_it_addresses() {
    let Some(pair) = pair() else { return };
    let mut random = Random(0xcafe);
    for _ in 0..200 {
        for cpu in 0..CPUS {
            let state = LocalApicState {
                logical_id: 1 << cpu,
                svr: 0x1ff,
                ..pair.fresh(cpu)
            };
            pair.set(
                cpu,
                &LocalApicState {
                    irr: [0; 4],
                    tmr: [0; 4],
                    ..state
                },
            );
        }
        let vector = random.vector();
        let mask = 1 + random.below(15) as u32;
        let hint = random.below(2) as u32;
        let mode = random.pick(&[0x100, 0x100 * (1 - hint)]);
        pair.send(mask << 12 | hint << 3 | 1 << 2, mode | vector as u32);
        let bit = |irr: [u64; 4]| (irr[vector as usize / 64] >> (vector % 64)) as u32 & 1;
        let mut takers = [0; 2];
        for cpu in 0..CPUS {
            for (side, state) in pair.both(cpu).into_iter().enumerate() {
                takers[side] |= bit(state.irr) << cpu;
            }
        }
        for takers in takers {
            assert_eq!(
                (takers.count_ones(), takers & !mask),
                (1, 0),
                "vector {vector:#x} to {mask:#b}"
            );
        }
    }
}

/// The registers that a guest reads in x2APIC mode, but for Current Count, which runs.
fn readable() -> impl Iterator<Item = u32> {
    (0x800..0x840).filter(|msr| *msr != 0x839)
}

#[test]
fn x2apic_register_accesses_and_ipis_leave_the_same_registers() {
    let Some(pair) = pair() else { return };
    for cpu in 0..CPUS {
        let bootstrap = u64::from(cpu == 0) << 8;
        assert!(set_msr(&pair.vcpus[cpu], APIC_BASE, 0xfee0_0c00 | bootstrap));
        pair.cpus[cpu].write_msr(APIC_BASE, 0xfee0_0c00 | bootstrap).unwrap();
        // The kernel leaves power-up with LINT0 unmasked, for firmware of old.
        let lint0 = 0x1_0000;
        assert!(set_msr(&pair.vcpus[cpu], 0x835, lint0));
    }
    let mut random = Random(0xbeef);
    let (mut accepted, mut taken) = (0, 0);
    for step in 0..20_000 {
        let cpu = random.below(CPUS as u64) as usize;
        let (msr, value) = match random.below(16) {
            0 => (0x808, random.below(0x100)),
            1..=3 => (0x80b, 0),
            4 => (0x80f, random.pick(&[0x1ff, 0x1ff, 0x1f0, 0x1ff, 0xff])),
            5 => (0x828, 0),
            6 => (
                // No initial count is written, so the timer does not run. No TSC-deadline mode, which this CPUID lacks.
                0x832,
                random.vector() | random.below(4) << 16,
            ),
            7 => (
                random.pick(&[0x833, 0x834]),
                random.vector() | random.pick(&[0, 4]) << 8 | random.below(2) << 16,
            ),
            8 => (
                random.pick(&[0x835, 0x836]),
                random.vector() | random.pick(&[0, 4, 7]) << 8 | random.below(2) << 13 | random.below(4) << 15,
            ),
            9 => (0x837, random.vector() | random.below(2) << 16),
            10 => (0x83e, random.pick(&[0, 1, 2, 3, 8, 9, 10, 11])),
            11 => (0x83f, random.vector()),
            12..=14 => {
                let destination = random.pick(&[0, 1, 2, 3, 5, 7, 0xf, 0x1_0001, 0xff, 0xffff_ffff]);
                let mode = random.pick(&[0, 0, 0, 4]);
                let shorthand = random.pick(&[0, 0, 0, 1, 2, 3]);
                let low = random.vector() | mode << 8 | random.below(2) << 11 | random.below(2) << 14;
                (0x830, destination << 32 | shorthand << 18 | low)
            }
            _ => {
                let destination = random.pick(&[0, 1, 2, 3, 5, 7, 0xff]);
                let data = random.vector() | random.below(2) << 15;
                pair.send(destination << 12 | (random.below(2) as u32) << 2, data as u32);
                continue;
            }
        };
        let kernel = set_msr(&pair.vcpus[cpu], msr, value);
        let ours = pair.cpus[cpu].write_msr(msr, value).is_ok();
        assert_eq!(ours, kernel, "{value:#x} to {msr:#x} of CPU {cpu} in step {step}");
        if step % 8 == 0 {
            // Something has to be in service for EOI: the CPU takes what comes first. The kernel has no such call
            // without a guest that runs, so it is told.
            if pair.cpus[cpu].acknowledge().is_some() {
                taken += 1;
                let state = pair.cpus[cpu].save();
                let mut lapic = pair.vcpus[cpu].get_lapic().unwrap();
                set_array(&mut lapic, 0x100, state.isr);
                set_array(&mut lapic, 0x200, state.irr);
                pair.vcpus[cpu].set_lapic(&lapic).unwrap();
            }
        }
        for cpu in 0..CPUS {
            let kernel = pair.vcpus[cpu].get_lapic().unwrap();
            let state = pair.cpus[cpu].save();
            let ours = (state.irr, state.tmr, state.isr);
            let theirs = (array(&kernel, 0x200), array(&kernel, 0x180), array(&kernel, 0x100));
            assert_eq!(ours, theirs, "CPU {cpu} after {value:#x} to {msr:#x} in step {step}");
        }
        accepted += u32::from(ours);
        if step % 50 == 0 {
            for msr in readable() {
                let kernel = get_msr(&pair.vcpus[cpu], msr);
                let ours = pair.cpus[cpu].read_msr(msr).ok();
                assert_eq!(ours, kernel, "{msr:#x} of CPU {cpu} in step {step}");
            }
        }
    }
    assert!(
        accepted > 10_000 && taken > 200,
        "the test shows nothing: {accepted} {taken}"
    );
}

/// What waits for a CPU that has not looked.
#[test]
fn as_many_nmis_wait_for_a_cpu_as_for_the_kernels() {
    let Some(pair) = pair() else { return };
    for (cpu, sent) in [0, 1, 2, 3].into_iter().enumerate() {
        let state = pair.fresh(cpu);
        pair.set(cpu, &state);
        for _ in 0..sent {
            pair.send((cpu as u32) << 12, 0x400);
        }
        let kernel = pair.vcpus[cpu].get_vcpu_events().unwrap().nmi.pending;
        assert_eq!(
            (pair.cpus[cpu].save().nmis, kernel),
            (sent.min(2), sent.min(2)),
            "{sent} sent"
        );
    }
}

/// Every MSR of the x2APIC, read. The kernel and we agree on which there are.
#[test]
fn the_same_x2apic_registers_can_be_read() {
    let Some(pair) = pair() else { return };
    assert!(set_msr(&pair.vcpus[0], APIC_BASE, 0xfee0_0d00));
    pair.cpus[0].write_msr(APIC_BASE, 0xfee0_0d00).unwrap();
    for msr in 0x800..0x900 {
        let kernel = get_msr(&pair.vcpus[0], msr).is_some();
        assert_eq!(pair.cpus[0].read_msr(msr).is_ok(), kernel, "{msr:#x}");
    }
}

/// SDM 12.12.1.3: a reserved bit of an x2APIC register raises #GP. The kernel checks few of them; the guest that relies
/// on the exception finds it with us.
#[test]
fn reserved_bits_are_refused_by_us_also_where_the_kernel_ignores_them() {
    let Some(pair) = pair() else { return };
    assert!(set_msr(&pair.vcpus[0], APIC_BASE, 0xfee0_0d00));
    pair.cpus[0].write_msr(APIC_BASE, 0xfee0_0d00).unwrap();
    for (msr, value) in [(0x80f, 1 << 13), (0x832, 1 << 31), (0x83e, 1 << 2)] {
        assert!(pair.cpus[0].write_msr(msr, value).is_err(), "{msr:#x}");
        assert!(
            set_msr(&pair.vcpus[0], msr, value),
            "the kernel checks {msr:#x} now: compare it above"
        );
    }
}

/// SDM 12.5.2: vectors below 16 are illegal. The kernel accepts them.
#[test]
fn an_illegal_vector_is_an_error_with_us_and_pending_in_the_kernel() {
    let Some(pair) = pair() else { return };
    let state = LocalApicState {
        svr: 0x1ff,
        ..pair.fresh(0)
    };
    pair.set(0, &state);
    pair.send(0, 0x0f);
    let [ours, kernel] = pair.both(0);
    assert_eq!((ours.irr[0], kernel.irr[0]), (0, 1 << 15));
    assert_ne!(pair.cpus[0].save().errors, 0);
}

/// SDM table 12-3, note 1: the local APIC makes an edge of an IPI that is sent level-triggered. The kernel sends the
/// level.
#[test]
fn a_level_triggered_ipi_is_an_edge_with_us_and_a_level_in_the_kernel() {
    let Some(pair) = pair() else { return };
    assert!(set_msr(&pair.vcpus[0], APIC_BASE, 0xfee0_0d00));
    pair.cpus[0].write_msr(APIC_BASE, 0xfee0_0d00).unwrap();
    for (msr, value) in [(0x80f, 0x1ff), (0x830, 1 << 18 | 3 << 14 | 0x41)] {
        assert!(set_msr(&pair.vcpus[0], msr, value));
        pair.cpus[0].write_msr(msr, value).unwrap();
    }
    let [ours, kernel] = [
        pair.cpus[0].save().tmr,
        array(&pair.vcpus[0].get_lapic().unwrap(), 0x180),
    ];
    assert_eq!((ours[1], kernel[1]), (0, 1 << 1));
}
