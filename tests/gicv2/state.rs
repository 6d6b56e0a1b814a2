//! Save and restore.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Spi,
        gicv2::{GicV2Config, GicV2State, GicV2StateError},
    },
    interrupt::{Interrupt, LevelInterrupt},
};

const CONFIG: GicV2Config = GicV2Config {
    cpus: 2,
    spis: 32,
    priority_bits: 5,
};

/// A guest in the middle of its work, with something in every register.
fn busy() -> Guest {
    let guest = Guest::ready(CONFIG);
    let [first, second] = &guest.cpus[..] else {
        unreachable!()
    };
    first.set_edge_triggered(33);
    first.set_group(33, 1);
    first.set_priority(34, 0x20);
    first.set_byte(GICD_ITARGETSR + 35, 0b10);
    first.set_bit(GICD_ICENABLER, 36);
    first.set_bit(GICD_ISACTIVER, 37);
    second.set(GICD_SGIR, 0x0001_0000 | 7);
    for spi in [1, 2, 3, 4] {
        guest.gic.edge_line(Spi(spi)).unwrap().trigger().unwrap();
    }
    assert_eq!(first.acknowledge(), 34);
    first.write(GICC_PMR, 0xf0);
    first.write(GICC_BPR, 4);
    first.write(GICC_ABPR, 5);
    second.write(GICC_CTLR, ENABLE_GRP0 | FIQ_EN);
    second.write(GICC_NSAPR, 1 << 30);
    guest
}

#[test]
fn a_restored_gic_is_the_saved_one_and_drives_its_outputs() {
    let saved = busy();
    let state = saved.gic.save();
    let restored = Guest::new(CONFIG);
    restored.gic.restore(&state).unwrap();
    assert_eq!(restored.gic.save(), state);
    for (old, new) in saved.cpus.iter().zip(&restored.cpus) {
        assert_eq!((new.irq(), new.fiq()), (old.irq(), old.fiq()));
        for offset in (0..0x1000).step_by(4) {
            assert_eq!(new.get(offset), old.get(offset), "distributor {offset:#x}");
        }
        for offset in (0..0x100)
            .step_by(4)
            .filter(|&offset| offset != GICC_IAR && offset != GICC_AIAR)
        {
            assert_eq!(new.read(offset), old.read(offset), "CPU interface {offset:#x}");
        }
    }
    assert!(restored.cpus[1].fiq(), "INTID 35");
    let [first, _] = &restored.cpus[..] else { unreachable!() };
    first.end(34);
    assert_eq!(first.acknowledge(), 1 << 10 | 7, "and it goes on from there");
}

#[test]
fn a_level_that_was_up_is_pending_again_once_its_device_drives_it() {
    let saved = Guest::simple();
    let line = saved.gic.level_line(Spi(0)).unwrap();
    line.trigger().unwrap();
    let state = saved.gic.save();
    let restored = Guest::new(GicV2Config::default());
    restored.gic.restore(&state).unwrap();
    assert!(!restored.cpus[0].irq(), "nobody drives the line yet");
    assert_eq!(restored.gic.save(), state, "but it is not forgotten");
    let line = restored.gic.level_line(Spi(0)).unwrap();
    line.trigger().unwrap();
    assert!(restored.cpus[0].irq());
    line.clear().unwrap();
    assert!(!restored.cpus[0].irq());
}

#[test]
fn an_edge_that_the_guest_has_seen_is_not_replayed_and_a_new_one_is_not_lost() {
    let saved = Guest::simple();
    saved.cpus[0].set_edge_triggered(32);
    let line = saved.gic.level_line(Spi(0)).unwrap();
    line.trigger().unwrap();
    saved.cpus[0].end(saved.cpus[0].acknowledge());
    let up = saved.gic.save();
    line.clear().unwrap();
    let down = saved.gic.save();

    for device_first in [false, true] {
        for (state, pending) in [(&up, false), (&down, true)] {
            let restored = Guest::new(GicV2Config::default());
            let line = restored.gic.level_line(Spi(0)).unwrap();
            if device_first {
                line.trigger().unwrap();
            }
            restored.gic.restore(state).unwrap();
            line.trigger().unwrap();
            assert_eq!(restored.cpus[0].irq(), pending, "device first: {device_first}");
            let _ = restored.cpus[0].acknowledge();
            restored.cpus[0].end(32);
            line.clear().unwrap();
            line.trigger().unwrap();
            assert!(restored.cpus[0].irq(), "the next edge is one in any case");
        }
    }
}

#[test]
fn restoring_over_a_running_gic_lowers_what_is_no_longer_up() {
    let guest = Guest::simple();
    let idle = guest.gic.save();
    guest.gic.edge_line(Spi(0)).unwrap().trigger().unwrap();
    guest.cpus[0].set_bit(GICD_ISACTIVER, 33);
    guest.cpus[0].set_bit(GICD_ISACTIVER, 70);
    let hook = guest
        .gic
        .on_finished(Spi(1), || panic!("the guest has finished nothing"))
        .unwrap();
    assert!(guest.cpus[0].irq());
    guest.gic.restore(&idle).unwrap();
    assert!(!guest.cpus[0].irq());
    assert_eq!(guest.gic.save(), idle);
    drop(hook);
}

#[test]
fn a_reset_forgets_all_but_the_lines() {
    let guest = busy();
    let line = guest.gic.level_line(Spi(6)).unwrap();
    line.trigger().unwrap();
    let hook = guest
        .gic
        .on_finished(Spi(2), || panic!("the guest has finished nothing"))
        .unwrap();
    assert!(guest.cpus[1].fiq() && guest.cpus[0].bit(GICD_ISACTIVER, 34));
    guest.gic.reset();
    drop(hook);
    let mut fresh = Guest::new(CONFIG).gic.save();
    fresh.spis[6].state.line = true;
    assert_eq!(guest.gic.save(), fresh);
    assert!(guest.cpus.iter().all(|cpu| !cpu.irq() && !cpu.fiq()));

    guest.make_ready();
    assert_eq!(guest.cpus[0].acknowledge(), 38);
    line.clear().unwrap();
    guest.cpus[0].end(38);
    assert!(!guest.cpus[0].irq());
}

#[test]
fn a_state_that_no_guest_could_have_made_is_refused_and_changes_nothing() {
    type Spoil = fn(&mut GicV2State);
    let spoils: [(&str, Spoil); 22] = [
        ("GICD_CTLR", |state| state.control = 4),
        ("CPUs", |state| state.cpus.truncate(1)),
        ("SPIs", |state| state.spis.truncate(31)),
        ("SPIs", |state| state.spis.push(state.spis[0])),
        ("priority of INTID 40", |state| state.spis[8].state.priority = 1),
        ("targets of INTID 40", |state| state.spis[8].targets = 4),
        ("priority of INTID 20 of CPU 1", |state| {
            state.cpus[1].private[20].priority = 7
        }),
        ("senders of SGI 3 of CPU 0", |state| state.cpus[0].sgi_senders[3] = 0x80),
        ("SGI 3 of CPU 0", |state| state.cpus[0].sgi_senders[3] = 1),
        ("SGI 3 of CPU 0", |state| state.cpus[0].private[3].latch = true),
        ("SGI 3 of CPU 0", |state| state.cpus[0].private[3].line = true),
        ("SGI 3 of CPU 0", |state| state.cpus[0].private[3].enabled = false),
        ("SGI 3 of CPU 0", |state| {
            state.cpus[0].private[3].trigger = Default::default()
        }),
        ("GICC_CTLR of CPU 1", |state| state.cpus[1].control = 1 << 5),
        ("GICC_PMR of CPU 1", |state| state.cpus[1].priority_mask = 0xff),
        ("GICC_BPR of CPU 1", |state| state.cpus[1].binary_point = 1),
        ("GICC_BPR of CPU 1", |state| state.cpus[1].binary_point = 8),
        ("GICC_ABPR of CPU 1", |state| state.cpus[1].aliased_binary_point = 2),
        ("GICC_ABPR of CPU 1", |state| state.cpus[1].aliased_binary_point = 8),
        ("GICC_APR1 of CPU 0", |state| state.cpus[0].active_priorities[1] = 1),
        ("GICC_NSAPR3 of CPU 0", |state| {
            state.cpus[0].non_secure_active_priorities[3] = 1
        }),
        ("spis: 64", |state| state.config.spis = 64),
    ];
    let guest = busy();
    let before = guest.gic.save();
    for (what, spoil) in spoils {
        let mut state = Guest::new(CONFIG).gic.save();
        assert!(state != before);
        spoil(&mut state);
        let error = guest.gic.restore(&state).expect_err(what);
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(guest.gic.save(), before, "{what}");
    }
}

#[test]
fn a_refusal_says_what_would_be_accepted() {
    let guest = Guest::new(GicV2Config::default());
    let mut state = guest.gic.save();
    state.spis[0].targets = 0;
    let error = guest.gic.restore(&state).unwrap_err();
    assert_eq!(error.to_string(), "targets of INTID 32 is 0x0: accepted 1");
    let other = Guest::new(CONFIG).gic.save();
    assert!(matches!(
        guest.gic.restore(&other),
        Err(GicV2StateError::Config { saved: CONFIG, .. })
    ));
}
