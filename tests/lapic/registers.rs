//! The two register faces, and the way from one to the other.

use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{ApicId, GeneralProtection, LocalApic, LocalApicError, LocalApicParts, LocalApics, LocalApicsConfig},
    },
    bus::BusDevice,
    interrupt::NoInterrupt,
    time::ManualClock,
};
use proptest::prelude::*;
use std::sync::Arc;

use crate::guest::*;

#[test]
fn registers_have_their_reset_values() {
    let machine = Machine::new(2);
    let values = [
        (0x020, 1 << 24),
        (0x030, 0x0105_0014),
        (TPR, 0),
        (PPR, 0),
        (LDR, 0),
        (DFR, u32::MAX),
        (SVR, 0xff),
        (ESR, 0),
        (ICR_LOW, 0),
        (ICR_HIGH, 0),
        (LVT_TIMER, MASKED),
        (LVT_THERMAL, MASKED),
        (LVT_PERFORMANCE, MASKED),
        (LVT_LINT0, MASKED),
        (LVT_LINT1, MASKED),
        (LVT_ERROR, MASKED),
        (INITIAL_COUNT, 0),
        (CURRENT_COUNT, 0),
        (DIVIDE, 0),
    ];
    for (offset, value) in values {
        assert_eq!(machine.cpus[1].read(offset), value, "{offset:#x}");
    }
    let base = |cpu: usize| machine.cpus[cpu].apic.read_msr(APIC_BASE);
    assert_eq!((base(0), base(1)), (Ok(0xfee0_0900), Ok(0xfee0_0800)));
}

#[test]
fn a_write_changes_the_writable_bits_of_a_register_and_nothing_of_one_that_is_read_only() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    let masks = [
        (TPR, 0xff),
        (SVR, 0x13ff),
        (LDR, 0xff00_0000),
        (ICR_HIGH, 0xff00_0000),
        (ID, 0xff00_0000),
        (LVT_TIMER, 0x7_00ff),
        (LVT_THERMAL, 0x1_07ff),
        (LVT_PERFORMANCE, 0x1_07ff),
        (LVT_LINT0, 0x1_a7ff),
        (LVT_LINT1, 0x1_a7ff),
        (LVT_ERROR, 0x1_00ff),
        (DIVIDE, 0xb),
    ];
    for (offset, mask) in masks {
        cpu.write(offset, u32::MAX);
        assert_eq!(cpu.read(offset), mask, "{offset:#x}");
    }
    let read_only = [0x030, PPR, ISR, TMR, IRR, CURRENT_COUNT];
    for offset in read_only {
        let before = cpu.read(offset);
        cpu.write(offset, !before);
        assert_eq!(cpu.read(offset), before, "{offset:#x}");
    }
    assert_eq!(cpu.read(ESR), 0);
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 0, "none of these is an error");
}

#[test]
fn a_register_that_is_not_there_reads_as_zero_and_is_an_error() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    for offset in [0x000, 0x090, 0x0c0, 0x2f0, 0x3f0, 0x400, 0xff0] {
        assert_eq!(cpu.read(offset), 0);
        cpu.write(ESR, 0);
        assert_eq!(cpu.read(ESR), 1 << 7, "{offset:#x}");
        cpu.write(offset, 1);
        cpu.write(ESR, 0);
        assert_eq!(cpu.read(ESR), 1 << 7, "{offset:#x}");
    }
}

#[test]
fn accesses_of_other_widths_or_places_read_as_zero_and_write_nothing() {
    let machine = Machine::enabled(1);
    let apic = &machine.cpus[0].apic;
    for (offset, len) in [
        (SVR, 1),
        (SVR, 2),
        (SVR, 8),
        (SVR + 1, 4),
        (SVR + 4, 4),
        (SVR, 16),
        (0x1000, 4),
    ] {
        let mut data = [0xaa; 16];
        apic.read(offset, &mut data[..len]);
        assert_eq!(data[..len], [0; 16][..len], "{offset:#x} {len}");
        apic.write(offset, &data[..len]);
    }
    assert_eq!(machine.cpus[0].read(SVR), ENABLE);
}

#[test]
fn the_page_is_gone_while_the_apic_is_disabled_or_in_x2apic_mode() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    assert_eq!(cpu.apic.base_address(), Some(0xfee0_0000));
    cpu.x2apic();
    cpu.write(TPR, 0x50);
    assert_eq!((cpu.read(TPR), cpu.apic.base_address()), (u32::MAX, None));
    assert_eq!(cpu.apic.read_msr(0x808), Ok(0));
    cpu.apic.write_msr(APIC_BASE, 0xfee0_0000).unwrap();
    assert_eq!((cpu.read(TPR), cpu.apic.base_address()), (u32::MAX, None));
    cpu.apic.write_msr(APIC_BASE, 0xfed0_0800).unwrap();
    assert_eq!(cpu.apic.base_address(), Some(0xfed0_0000));
}

#[test]
fn the_base_register_takes_the_transitions_of_the_manual_and_refuses_the_others() {
    const DISABLED: u64 = 0xfee0_0000;
    const XAPIC: u64 = 0xfee0_0800;
    const INVALID: u64 = 0xfee0_0400;
    let modes = [DISABLED, XAPIC, X2APIC];
    let allowed = [
        (DISABLED, XAPIC),
        (XAPIC, DISABLED),
        (XAPIC, X2APIC),
        (X2APIC, DISABLED),
    ];
    for from in modes {
        for to in [DISABLED, XAPIC, X2APIC, INVALID] {
            let machine = Machine::new(1);
            let apic = &machine.cpus[0].apic;
            apic.write_msr(APIC_BASE, if from == DISABLED { DISABLED } else { XAPIC })
                .unwrap();
            apic.write_msr(APIC_BASE, from).unwrap();
            let ok = from == to || allowed.contains(&(from, to));
            assert_eq!(apic.write_msr(APIC_BASE, to).is_ok(), ok, "{from:#x} to {to:#x}");
            assert_eq!(apic.read_msr(APIC_BASE), Ok(if ok { to } else { from }));
        }
    }
}

#[test]
fn the_base_register_refuses_reserved_bits_and_x2apic_where_there_is_none() {
    let config = LocalApicsConfig {
        x2apic: false,
        physical_address_bits: 40,
        ..LocalApicsConfig::default()
    };
    let machine = Machine::with(config, &[0]);
    let apic = &machine.cpus[0].apic;
    for value in [X2APIC, 0xfee0_0801, 0xfee0_0a00, 0xfee0_0800 | 1 << 40, u64::MAX] {
        assert_eq!(apic.write_msr(APIC_BASE, value), Err(GeneralProtection), "{value:#x}");
    }
    apic.write_msr(APIC_BASE, 0xff_fee0_0800).unwrap();
}

#[test]
fn disabling_resets_the_registers_and_x2apic_mode_keeps_them() {
    let machine = Machine::enabled(1);
    let cpu = &machine.cpus[0];
    cpu.write(TPR, 0x10);
    cpu.write(LVT_ERROR, 0x55);
    machine.send(0, 0x41);
    cpu.write(ICR_HIGH, 5 << 24);
    cpu.x2apic();
    let read = |msr| cpu.apic.read_msr(msr).unwrap();
    assert_eq!((read(0x808), read(0x837), read(0x822)), (0x10, 0x55, 2));
    assert_eq!(
        read(0x830),
        0,
        "but for the high half of ICR, where x2APIC mode has another field"
    );
    cpu.apic.write_msr(APIC_BASE, 0xfee0_0000).unwrap();
    cpu.apic.write_msr(APIC_BASE, 0xfee0_0800).unwrap();
    assert_eq!((cpu.read(TPR), cpu.read(LVT_ERROR), cpu.read(SVR)), (0, MASKED, 0xff));
    assert!(!cpu.has(IRR, 0x41));
}

#[test]
fn x2apic_registers_refuse_reserved_bits_wrong_directions_and_what_is_not_there() {
    let machine = Machine::enabled(1);
    let apic = &machine.cpus[0].apic;
    assert!(
        apic.read_msr(0x808).is_err() && apic.write_msr(0x808, 0).is_err(),
        "in xAPIC mode"
    );
    machine.cpus[0].x2apic();
    for msr in [
        0x800, 0x801, 0x809, 0x80b, 0x80c, 0x80e, 0x82f, 0x831, 0x83a, 0x83f, 0x840, 0x8ff,
    ] {
        assert_eq!(apic.read_msr(msr), Err(GeneralProtection), "read of {msr:#x}");
    }
    let refused = [
        (0x802, 0),
        (0x803, 0),
        (0x80a, 0),
        (0x80d, 0),
        (0x810, 0),
        (0x81f, 0),
        (0x827, 0),
        (0x831, 0),
        (0x839, 0),
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 1 << 13),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 20),
        (0x832, 1 << 19),
        (0x832, 1 << 8),
        (0x835, 1 << 11),
        (0x837, 1 << 8),
        (0x838, 1 << 32),
        (0x83e, 1 << 2),
        (0x840, 0),
    ];
    for (msr, value) in refused {
        assert_eq!(
            apic.write_msr(msr, value),
            Err(GeneralProtection),
            "{value:#x} to {msr:#x}"
        );
    }
    for (msr, value) in [
        (0x808, 0xff),
        (0x80b, 0),
        (0x80f, 0x13ff),
        (0x828, 0),
        (0x832, 0x7_00ff),
        (0x83e, 0xb),
    ] {
        assert_eq!(apic.write_msr(msr, value), Ok(()), "{value:#x} to {msr:#x}");
    }
    // What is read back can be written: bits that are read-only are no reserved ones.
    for (msr, value) in [(0x835, 1 << 16 | 0xd041), (0x837, 0x1_1041), (0x830, 0x1041)] {
        assert_eq!(apic.write_msr(msr, value), Ok(()), "{value:#x} to {msr:#x}");
    }
    assert_eq!(apic.read_msr(0x835), Ok(1 << 16 | 0x8041));
    assert_eq!(apic.read_msr(0x830), Ok(0x41), "there is no delivery status");
    assert!(LocalApic::has_msr(0x1b) && LocalApic::has_msr(0x6e0) && LocalApic::has_msr(0x8ff));
    assert!(!LocalApic::has_msr(0x900) && apic.read_msr(0x900).is_err() && apic.write_msr(0, 0).is_err());
}

#[test]
fn a_set_that_cannot_be_is_refused_with_what_could() {
    let made = |config, ids: &[u32]| {
        let parts = ids.iter().map(|id| LocalApicParts {
            id: ApicId(*id),
            wake: Box::new(NoInterrupt),
            alarm: Box::new(()),
        });
        LocalApics::new(config, Arc::new(ManualClock::default()), parts.collect()).unwrap_err()
    };
    let config = LocalApicsConfig::default();
    assert_eq!(made(config, &[]), LocalApicError::NoCpu);
    assert_eq!(made(config, &[3, 1, 3]), LocalApicError::Id(ApicId(3)));
    assert_eq!(made(config, &[0, 0xff]), LocalApicError::Id(ApicId(0xff)));
    assert_eq!(made(config, &[u32::MAX]), LocalApicError::Id(ApicId(u32::MAX)));
    let rate = LocalApicsConfig { timer_hz: 0, ..config };
    assert_eq!(
        made(rate, &[0]).to_string(),
        "timer_hz is 0: 1 to 10000000000 is accepted"
    );
    let bits = LocalApicsConfig {
        physical_address_bits: 53,
        ..config
    };
    assert_eq!(
        made(bits, &[0]).to_string(),
        "53 bits of physical address: there are 32 to 52"
    );
    let error = Machine::new(2).apics.cpu(CpuId(2)).unwrap_err();
    assert_eq!(error.to_string(), "CPU 2: there are CPUs 0 to 1");
}

#[derive(Clone, Debug)]
enum Step {
    Page(u64, u32),
    Msr(u32, u64),
    Read(u64),
    Message(u32, u32),
    Pass(u64),
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..0x1010_u64, any::<u32>()).prop_map(|(offset, value)| Step::Page(offset, value)),
        (0..0x40_u64, any::<u32>()).prop_map(|(index, value)| Step::Page(index * 16, value)),
        (0x800..0x840_u32, any::<u64>()).prop_map(|(msr, value)| Step::Msr(msr, value)),
        (0x800..0x840_u32, any::<u32>()).prop_map(|(msr, value)| Step::Msr(msr, value.into())),
        (0..4_u64).prop_map(|mode| Step::Msr(APIC_BASE, 0xfee0_0000 | mode << 10)),
        any::<u64>().prop_map(|value| Step::Msr(TSC_DEADLINE, value)),
        (0..0x40_u64).prop_map(|index| Step::Read(index * 16)),
        any::<(u32, u32)>().prop_map(|(address, data)| Step::Message(address & 0xf_ffff, data)),
        any::<u64>().prop_map(Step::Pass),
        Just(Step::Take),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever the guest does, nothing panics, and the state is one that is taken back and is then the same.
    #[test]
    fn any_sequence_is_safe_and_leads_to_a_state_that_can_be_restored(steps in prop::collection::vec(step(), 0..60)) {
        let machine = Machine::enabled(2);
        let cpu = &machine.cpus[0];
        for step in steps {
            match step {
                Step::Page(offset, value) => cpu.write(offset, value),
                Step::Msr(msr, value) => _ = cpu.apic.write_msr(msr, value),
                Step::Read(offset) => _ = cpu.read(offset),
                Step::Message(address, data) => machine.send(address, data),
                Step::Pass(nanoseconds) => machine.pass(std::time::Duration::from_nanos(nanoseconds)),
                Step::Take => _ = (cpu.apic.next_event(), cpu.apic.acknowledge()),
            }
            let state = cpu.apic.save();
            let other = Machine::new(2);
            other.cpus[0].apic.restore(&state).unwrap();
            prop_assert_eq!(other.cpus[0].apic.save(), state);
        }
    }
}
