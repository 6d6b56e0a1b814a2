//! The state of a GIC: taken, refused, put back.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        CpuId, Group, Ppi, Spi, TriggerMode,
        gicv3::{GicV3Config, GicV3State, GicV3StateError, LpiSupport, SysReg},
    },
    interrupt::{Interrupt, LevelInterrupt},
};

fn rich() -> GicV3Config {
    GicV3Config {
        extended_spis: 32,
        extended_ppis: 32,
        lpis: LpiSupport::Its,
        ..config(2)
    }
}

/// A guest in the middle of everything.
fn busy() -> Guest {
    let guest = Guest::with_lpis(rich());
    let cpu = &guest.cpus[1];
    guest.set_edge_triggered(0, 33, true);
    guest.route(33, 1);
    guest.route(4100, ONE_OF_N);
    guest.set_group(0, 34, 0);
    guest.set_priority(0, 33, 0x40);
    for intid in [33, 34, 4100] {
        guest.set_bit(Array::SetPending, 0, intid);
    }
    guest.set(GICD_SETSPI_NSR, 4, 50);
    guest.set_bit(Array::SetPending, 1, 1060);
    cpu.write(SysReg::ICC_CTLR_EL1, EOI_MODE);
    cpu.write(SysReg::ICC_BPR0_EL1, 3);
    cpu.write(SysReg::ICC_BPR1_EL1, 4);
    cpu.set_redistributor(GICR_CTLR, 4, ENABLE_LPIS | DPG1);
    assert_eq!(cpu.acknowledge(), 33);
    guest
}

#[test]
fn a_restored_gic_is_the_saved_one_and_drives_its_outputs() {
    let guest = busy();
    let state = guest.gic.save();
    let new = Guest::with_memory(rich(), guest.memory.clone(), |_| Ok(()));
    new.gic.restore(&state).unwrap();
    assert_eq!(new.gic.save(), state);
    for (old, new) in guest.cpus.iter().zip(&new.cpus) {
        assert_eq!((old.irq(), old.fiq()), (new.irq(), new.fiq()));
        assert_eq!(old.read(SysReg::ICC_HPPIR1_EL1), new.read(SysReg::ICC_HPPIR1_EL1));
    }
    assert!(new.cpus[0].irq() || new.cpus[0].fiq());
    // A held message is let go of in the new one.
    assert!(new.bit(Array::SetPending, 0, 50));
    new.set(GICD_CLRSPI_NSR, 4, 50);
    assert!(!new.bit(Array::SetPending, 0, 50));
    new.gic.restore(&state).unwrap();
    assert_eq!(new.gic.save(), state, "also over another state");
}

#[test]
fn a_level_that_was_up_is_pending_again_once_its_device_drives_it() {
    let guest = Guest::ready(config(1));
    let lines = [
        guest.gic.level_line(Spi(8)).unwrap(),
        guest.gic.ppi_line(CpuId(0), Ppi(4)).unwrap(),
    ];
    for edge in [false, true] {
        for intid in [40, 20] {
            guest.set_edge_triggered(0, intid, edge);
        }
        lines.iter().for_each(|line| line.trigger().unwrap());
        for intid in [40, 20] {
            guest.set_bit(Array::ClearPending, 0, intid);
        }
        let state = guest.gic.save();
        let new = Guest::new(config(1));
        new.gic.restore(&state).unwrap();
        assert!(!new.cpus[0].irq(), "down until the devices drive it");
        assert_eq!(new.gic.save(), state, "but up as the guest has seen it");
        let (spi, ppi) = (
            new.gic.level_line(Spi(8)).unwrap(),
            new.gic.ppi_line(CpuId(0), Ppi(4)).unwrap(),
        );
        spi.trigger().unwrap();
        ppi.trigger().unwrap();
        assert_eq!(new.cpus[0].irq(), !edge, "an edge is not seen twice");
        ppi.clear().unwrap();
        ppi.trigger().unwrap();
        assert!(new.cpus[0].irq(), "and a new one is not lost");
        lines.iter().for_each(|line| line.clear().unwrap());
    }
}

#[test]
fn a_reset_forgets_all_but_the_lines() {
    let guest = busy();
    let line = guest.gic.level_line(Spi(20)).unwrap();
    line.trigger().unwrap();
    guest.gic.reset();
    assert!(guest.cpus.iter().all(|cpu| !cpu.irq() && !cpu.fiq()));
    let mut fresh = Guest::new(rich()).gic.save();
    fresh.spis[20].state.line = true;
    assert_eq!(guest.gic.save(), fresh);
    guest.make_ready();
    assert_eq!(guest.cpus[0].acknowledge(), 52);
}

#[test]
fn a_reset_of_one_cpu_is_that_of_its_interface() {
    let guest = busy();
    let before = guest.gic.save();
    let mut expected = before.clone();
    let fresh = Guest::new(rich()).gic.save().cpus.remove(0);
    let this = &mut expected.cpus[1];
    (this.control, this.enabled_groups, this.priority_mask) = (0, 0, 0);
    (this.binary_points, this.active_priorities) = (fresh.binary_points, fresh.active_priorities);
    guest.gic.reset_cpu_interface(CpuId(1)).unwrap();
    assert_eq!(guest.gic.save(), expected);
    assert!(!guest.cpus[1].irq() && !guest.cpus[1].fiq());
    assert!(guest.gic.reset_cpu_interface(CpuId(2)).is_err());
}

#[test]
fn a_state_that_no_guest_could_have_made_is_refused_and_changes_nothing() {
    let guest = busy();
    let good = guest.gic.save();
    let refused = |change: &dyn Fn(&mut GicV3State)| {
        let mut state = good.clone();
        change(&mut state);
        let refusal = guest.gic.restore(&state).unwrap_err();
        assert_eq!(guest.gic.save(), good);
        refusal
    };
    assert!(matches!(
        refused(&|state| state.config.spis = 32),
        GicV3StateError::Config { .. }
    ));
    for list in [
        |state: &mut GicV3State| _ = state.cpus.pop(),
        |state: &mut GicV3State| _ = state.spis.pop(),
        |state: &mut GicV3State| _ = state.cpus[1].private.pop(),
    ] {
        assert!(matches!(refused(&list), GicV3StateError::Count { .. }));
    }
    type Damage<'a> = (&'a str, &'a dyn Fn(&mut GicV3State));
    let values: [Damage<'_>; 15] = [
        ("GICD_CTLR", &|state| state.control = 4),
        ("priority of INTID 33", &|state| state.spis[1].state.priority = 1),
        ("GICD_IROUTER of INTID 4096", &|state| state.spis[64].router = 1 << 24),
        ("message of INTID 32", &|state| state.spis[0].message = true),
        ("priority of INTID 1056 of CPU 1", &|state| {
            state.cpus[1].private[32].priority = 4
        }),
        ("SGI 3 of CPU 0", &|state| {
            state.cpus[0].private[3].trigger = TriggerMode::Level
        }),
        ("SGI 3 of CPU 0", &|state| state.cpus[0].private[3].line = true),
        ("GICR_CTLR of CPU 0", &|state| state.cpus[0].redistributor_control = 8),
        ("GICR_PROPBASER of CPU 0", &|state| {
            state.cpus[0].properties_base = 1 << 63
        }),
        ("GICR_PENDBASER of CPU 0", &|state| state.cpus[0].pending_base = 1),
        ("ICC_CTLR_EL1 of CPU 0", &|state| state.cpus[0].control = 4),
        ("ICC_IGRPEN of CPU 0", &|state| state.cpus[0].enabled_groups = 4),
        ("ICC_PMR_EL1 of CPU 0", &|state| state.cpus[0].priority_mask = 1),
        ("ICC_BPR1_EL1 of CPU 0", &|state| state.cpus[0].binary_points[1] = 2),
        ("ICC_AP1R1_EL1 of CPU 0", &|state| {
            state.cpus[0].active_priorities[1][1] = 1
        }),
    ];
    for (what, change) in values {
        let refusal = refused(change).to_string();
        assert!(refusal.starts_with(what) && refusal.contains("accepted"), "{refusal}");
    }
}

#[test]
fn a_pending_table_that_is_zero_is_so_until_lpis_are_enabled() {
    const PTZ: u64 = 1 << 62;
    let guest = Guest::with_lpis(rich());
    let mut state = guest.gic.save();
    assert_eq!(state.cpus[0].pending_base & PTZ, 0, "which has made it an ordinary one");
    state.cpus[0].pending_base |= PTZ;
    let refusal = guest.gic.restore(&state).unwrap_err().to_string();
    assert!(refusal.starts_with("GICR_PENDBASER of CPU 0 is"), "{refusal}");
    state.cpus[0].redistributor_control = 0;
    guest.gic.restore(&state).unwrap();
    assert_eq!(guest.gic.save(), state);
}

#[test]
fn restoring_over_a_running_gic_lowers_what_is_no_longer_up() {
    let guest = Guest::ready(config(1));
    let idle = guest.gic.save();
    guest.set_bit(Array::SetPending, 0, 40);
    guest.set_bit(Array::SetPending, 0, 4);
    assert!(guest.cpus[0].irq());
    guest.gic.restore(&idle).unwrap();
    assert!(!guest.cpus[0].irq());
    let mut state = idle;
    state.spis[8].state.latch = true;
    state.spis[8].state.group = Group::Zero;
    guest.gic.restore(&state).unwrap();
    assert!(guest.cpus[0].fiq());
}
