//! What a CPU is signalled, and how it acknowledges and ends interrupts (3.2, 3.3, 4.4).

use crate::guest::*;
use devisor::{
    backends::irqchip::{Spi, gicv2::GicV2Config},
    interrupt::{Interrupt, LevelInterrupt},
};

fn config(cpus: u32, priority_bits: u32) -> GicV2Config {
    GicV2Config {
        cpus,
        spis: 32,
        priority_bits,
    }
}

/// Makes INTID 32 + n pending.
fn pulse(guest: &Guest, spi: u32) {
    guest.gic.edge_line(Spi(spi)).unwrap().trigger().unwrap();
}

#[test]
fn nothing_is_signalled_until_all_the_enables_are_set() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    pulse(&guest, 0);
    assert!(cpu.irq());
    cpu.write(GICC_CTLR, 0);
    assert!(!cpu.irq());
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    cpu.write(GICC_CTLR, ENABLE_GRP1);
    assert!(!cpu.irq(), "it is in Group 0");
    cpu.write(GICC_CTLR, ENABLE_GRP0);
    assert!(cpu.irq());
    cpu.set(GICD_CTLR, ENABLE_GRP1);
    assert!(!cpu.irq());
    assert_eq!((cpu.acknowledge(), cpu.read(GICC_HPPIR)), (SPURIOUS, SPURIOUS));
    cpu.set(GICD_CTLR, ENABLE_GRP0);
    assert!(cpu.irq());
}

#[test]
fn only_what_is_more_urgent_than_the_mask_is_signalled() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    pulse(&guest, 0);
    cpu.write(GICC_PMR, 0xa0);
    assert!(!cpu.irq(), "equal is not enough");
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    assert_eq!(cpu.read(GICC_HPPIR), 32, "the mask does not count here");
    cpu.write(GICC_PMR, 0xa8);
    assert!(cpu.irq());
    cpu.set_priority(32, 0xa8);
    assert!(!cpu.irq());
    cpu.set_priority(32, 0x98);
    assert!(cpu.irq());
    cpu.write(GICC_PMR, 0xff);
    cpu.set_priority(32, 0xff);
    assert!(!cpu.irq(), "the lowest priority is never signalled");
}

#[test]
fn a_level_interrupt_survives_its_acknowledge_while_its_line_is_up() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let line = guest.gic.level_line(Spi(0)).unwrap();
    line.trigger().unwrap();
    let acknowledged = cpu.acknowledge();
    assert_eq!(acknowledged, 32);
    assert!(!cpu.irq(), "active is not signalled");
    assert!(
        cpu.bit(GICD_ISACTIVER, 32) && cpu.bit(GICD_ISPENDR, 32),
        "active and pending"
    );
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    cpu.end(acknowledged);
    assert!(!cpu.bit(GICD_ISACTIVER, 32) && cpu.irq(), "the line is still up");
    assert_eq!(cpu.acknowledge(), 32);
    line.clear().unwrap();
    cpu.end(32);
    assert!(!cpu.irq());
}

#[test]
fn an_edge_that_comes_while_active_is_signalled_after_the_end() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_edge_triggered(32);
    pulse(&guest, 0);
    assert_eq!(cpu.acknowledge(), 32);
    pulse(&guest, 0);
    pulse(&guest, 0);
    assert!(!cpu.irq());
    cpu.end(32);
    assert!(cpu.irq());
    assert_eq!(cpu.acknowledge(), 32);
    cpu.end(32);
    assert!(!cpu.irq(), "two edges in one");
}

#[test]
fn the_most_urgent_comes_first_and_the_lowest_intid_of_equals() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    for (spi, priority) in [(9, 0x40), (3, 0x40), (7, 0x20), (1, 0x80)] {
        cpu.set_priority(32 + spi, priority);
        pulse(&guest, spi);
    }
    for expected in [39, 35, 41, 33] {
        assert_eq!(cpu.read(GICC_HPPIR), expected);
        let acknowledged = cpu.acknowledge();
        assert_eq!(acknowledged, expected);
        cpu.end(acknowledged);
    }
    assert_eq!(cpu.acknowledge(), SPURIOUS);
}

#[test]
fn a_more_urgent_interrupt_preempts_and_the_running_priority_follows() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    for (spi, priority) in [(0, 0xa0), (1, 0x60), (2, 0x60), (3, 0x20)] {
        cpu.set_priority(32 + spi, priority);
    }
    pulse(&guest, 0);
    assert_eq!((cpu.acknowledge(), cpu.read(GICC_RPR)), (32, 0xa0));
    pulse(&guest, 1);
    assert!(cpu.irq(), "more urgent");
    assert_eq!((cpu.acknowledge(), cpu.read(GICC_RPR)), (33, 0x60));
    pulse(&guest, 2);
    assert!(!cpu.irq(), "equal");
    assert_eq!((cpu.acknowledge(), cpu.read(GICC_HPPIR)), (SPURIOUS, 34));
    pulse(&guest, 3);
    assert_eq!((cpu.acknowledge(), cpu.read(GICC_RPR)), (35, 0x20));
    cpu.end(35);
    assert_eq!(cpu.read(GICC_RPR), 0x60);
    cpu.end(33);
    assert_eq!(cpu.read(GICC_RPR), 0xa0);
    assert!(cpu.irq(), "34 preempts 32");
    cpu.end(32);
    assert_eq!(cpu.read(GICC_RPR), 0xff);
}

#[test]
fn priorities_below_the_binary_point_do_not_preempt() {
    for (binary_point, preempts) in [(2, true), (3, true), (4, false), (7, false)] {
        let guest = Guest::ready(config(1, 8));
        let cpu = &guest.cpus[0];
        cpu.write(GICC_BPR, binary_point);
        cpu.set_priority(32, 0x58);
        cpu.set_priority(33, 0x40);
        pulse(&guest, 0);
        cpu.acknowledge();
        pulse(&guest, 1);
        assert_eq!(cpu.irq(), preempts, "GICC_BPR {binary_point}");
        cpu.end(32);
        assert_eq!(cpu.acknowledge(), 33, "it decides among the pending all the same");
    }
}

#[test]
fn a_binary_point_that_moves_counts_for_what_runs_already() {
    let guest = Guest::ready(config(1, 8));
    let cpu = &guest.cpus[0];
    cpu.set_priority(32, 0x58);
    cpu.set_priority(33, 0x50);
    pulse(&guest, 0);
    cpu.acknowledge();
    pulse(&guest, 1);
    assert!(cpu.irq());
    cpu.write(GICC_BPR, 4);
    assert!(!cpu.irq(), "both are 0x40 to it");
}

#[test]
fn group_1_has_a_binary_point_of_its_own_unless_cbpr() {
    let guest = Guest::ready(config(1, 8));
    let cpu = &guest.cpus[0];
    cpu.set_group(33, 1);
    cpu.set_priority(32, 0x58);
    cpu.set_priority(33, 0x48);
    cpu.write(GICC_BPR, 0);
    cpu.write(GICC_ABPR, 5);
    pulse(&guest, 0);
    cpu.acknowledge();
    pulse(&guest, 1);
    assert!(!cpu.irq(), "GICC_ABPR 5 leaves [7:5], as GICC_BPR 4 does");
    cpu.write(GICC_ABPR, 4);
    assert!(cpu.irq());
    cpu.write(GICC_ABPR, 5);
    cpu.write(GICC_CTLR, ENABLE_GRP0 | ENABLE_GRP1 | ACK_CTL | CBPR);
    assert!(cpu.irq(), "GICC_BPR 0 counts for both");
    assert_eq!((cpu.acknowledge(), cpu.read(GICC_RPR)), (33, 0x48), "for what runs too");
}

#[test]
fn the_binary_point_has_a_minimum_that_fits_the_priority_bits() {
    for (bits, minimum, levels) in [
        (4, 3, [0xffff, 0]),
        (5, 2, [u32::MAX, 0]),
        (6, 1, [u32::MAX; 2]),
        (8, 0, [u32::MAX; 2]),
    ] {
        let guest = Guest::ready(config(1, bits));
        let cpu = &guest.cpus[0];
        assert_eq!(
            (cpu.read(GICC_BPR), cpu.read(GICC_ABPR)),
            (minimum, minimum + 1),
            "after a reset"
        );
        cpu.write(GICC_BPR, 0);
        cpu.write(GICC_ABPR, 0);
        assert_eq!((cpu.read(GICC_BPR), cpu.read(GICC_ABPR)), (minimum, minimum + 1));
        cpu.write(GICC_BPR, u32::MAX);
        cpu.write(GICC_ABPR, u32::MAX);
        assert_eq!((cpu.read(GICC_BPR), cpu.read(GICC_ABPR)), (7, 7));
        for register in [GICC_APR, GICC_NSAPR] {
            cpu.write(register, u32::MAX);
            cpu.write(register + 4, u32::MAX);
            assert_eq!([cpu.read(register), cpu.read(register + 4)], levels);
        }
    }
}

#[test]
fn group_0_is_signalled_as_fiq_if_asked_for() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    pulse(&guest, 0);
    assert!(cpu.irq() && !cpu.fiq());
    cpu.write(GICC_CTLR, ENABLE_GRP0 | ENABLE_GRP1 | FIQ_EN);
    assert!(!cpu.irq() && cpu.fiq());
    cpu.set_group(32, 1);
    assert!(cpu.irq() && !cpu.fiq(), "Group 1 never is");
    pulse(&guest, 1);
    assert!(
        cpu.irq() && !cpu.fiq(),
        "the most urgent decides, of equals the lowest INTID"
    );
    cpu.set_priority(33, 0x10);
    assert!(!cpu.irq() && cpu.fiq());
}

#[test]
fn group_1_is_acknowledged_through_the_alias_or_with_ackctl() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_group(32, 1);
    cpu.write(GICC_CTLR, ENABLE_GRP0 | ENABLE_GRP1);
    pulse(&guest, 0);
    assert_eq!((cpu.acknowledge(), cpu.read(GICC_HPPIR)), (1022, 1022));
    assert_eq!(cpu.read(GICC_AHPPIR), 32);
    assert!(cpu.irq(), "nothing was acknowledged");
    assert_eq!(cpu.read(GICC_AIAR), 32);
    assert_eq!(cpu.read(GICC_RPR), 0xa0);
    cpu.write(GICC_AEOIR, 32);
    assert_eq!(cpu.read(GICC_RPR), 0xff);

    cpu.write(GICC_CTLR, ENABLE_GRP0 | ENABLE_GRP1 | ACK_CTL);
    pulse(&guest, 0);
    assert_eq!((cpu.read(GICC_HPPIR), cpu.acknowledge()), (32, 32));
}

#[test]
fn the_alias_does_not_show_group_0() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    pulse(&guest, 0);
    assert_eq!((cpu.read(GICC_AIAR), cpu.read(GICC_AHPPIR)), (SPURIOUS, SPURIOUS));
    assert!(cpu.irq());
    cpu.acknowledge();
    cpu.write(GICC_AEOIR, 32);
    assert!(cpu.bit(GICD_ISACTIVER, 32), "nor end it");
    assert_eq!(cpu.read(GICC_RPR), 0xa0);
}

#[test]
fn group_1_pending_is_not_reported_if_it_is_not_urgent_enough() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.write(GICC_CTLR, ENABLE_GRP0 | ENABLE_GRP1);
    cpu.set_group(33, 1);
    pulse(&guest, 0);
    cpu.acknowledge();
    pulse(&guest, 1);
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    cpu.end(32);
    assert_eq!(cpu.acknowledge(), 1022);
    cpu.write(GICC_PMR, 0x80);
    assert_eq!(cpu.acknowledge(), SPURIOUS);
}

#[test]
fn a_group_that_the_distributor_disables_hides_nothing_but_itself() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_group(33, 1);
    cpu.set_priority(32, 0x20);
    pulse(&guest, 0);
    pulse(&guest, 1);
    cpu.set(GICD_CTLR, ENABLE_GRP1);
    assert!(cpu.irq());
    assert_eq!((cpu.read(GICC_HPPIR), cpu.acknowledge()), (33, 33));
}

#[test]
fn a_group_that_the_cpu_interface_disables_hides_what_is_less_urgent() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_group(33, 1);
    cpu.set_priority(32, 0x20);
    pulse(&guest, 0);
    pulse(&guest, 1);
    cpu.write(GICC_CTLR, ENABLE_GRP1 | ACK_CTL);
    assert!(!cpu.irq());
    assert_eq!((cpu.read(GICC_HPPIR), cpu.acknowledge()), (SPURIOUS, SPURIOUS));
}

#[test]
fn with_eoimode_the_end_drops_the_priority_and_dir_deactivates() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.write(GICC_CTLR, ENABLE_GRP0 | EOI_MODE);
    let line = guest.gic.level_line(Spi(0)).unwrap();
    line.trigger().unwrap();
    cpu.acknowledge();
    cpu.end(32);
    assert_eq!(cpu.read(GICC_RPR), 0xff);
    assert!(cpu.bit(GICD_ISACTIVER, 32) && !cpu.irq());
    pulse(&guest, 1);
    assert_eq!(cpu.acknowledge(), 33, "others of the same priority are signalled");
    cpu.write(GICC_DIR, 32);
    assert!(!cpu.bit(GICD_ISACTIVER, 32));
    assert_eq!(cpu.read(GICC_RPR), 0xa0, "GICC_DIR drops no priority");
    cpu.end(33);
    assert!(cpu.irq(), "the line is still up");
}

#[test]
fn dir_is_ignored_without_eoimode() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    pulse(&guest, 0);
    cpu.acknowledge();
    cpu.write(GICC_DIR, 32);
    assert!(cpu.bit(GICD_ISACTIVER, 32));
}

#[test]
fn ending_anything_with_no_priority_active_changes_nothing() {
    let guest = Guest::ready(config(2, 5));
    pulse(&guest, 0);
    guest.cpus[0].set_bit(GICD_ISACTIVER, 33);
    let before = guest.gic.save();
    for cpu in &guest.cpus {
        for value in (0..0x2000).chain([u32::MAX, 0x8000_0020]) {
            cpu.end(value);
            cpu.write(GICC_AEOIR, value);
            cpu.write(GICC_DIR, value);
        }
    }
    assert_eq!(guest.gic.save(), before);
    assert!(guest.cpus[0].irq());
}

#[test]
fn ending_what_does_not_exist_leaves_what_is_active() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    pulse(&guest, 0);
    cpu.acknowledge();
    let before = guest.gic.save();
    for value in [128, 1019, 1020, 1022, 1023] {
        cpu.end(value);
    }
    assert_eq!(guest.gic.save(), before);
}

#[test]
fn the_active_priorities_show_and_set_what_runs() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_group(33, 1);
    cpu.set_priority(33, 0x20);
    pulse(&guest, 0);
    cpu.acknowledge();
    pulse(&guest, 1);
    cpu.acknowledge();
    let active = [cpu.read(GICC_APR), cpu.read(GICC_NSAPR)];
    assert_eq!(active, [1 << (0xa0 >> 3), 1 << (0x20 >> 3)]);

    // A guest puts its CPU to sleep and wakes it up again.
    cpu.write(GICC_APR, 0);
    cpu.write(GICC_NSAPR, 0);
    assert_eq!(cpu.read(GICC_RPR), 0xff);
    pulse(&guest, 2);
    assert!(cpu.irq());
    cpu.write(GICC_APR, active[0]);
    cpu.write(GICC_NSAPR, active[1]);
    assert_eq!(cpu.read(GICC_RPR), 0x20);
    assert!(!cpu.irq());
    cpu.end(33);
    assert_eq!(cpu.read(GICC_RPR), 0xa0);
}

#[test]
fn an_sgi_carries_its_sender_and_comes_once_from_each() {
    let guest = Guest::ready(config(4, 5));
    let receiver = &guest.cpus[2];
    for sender in [3, 1, 3] {
        guest.cpus[sender].set(GICD_SGIR, 1 << 18 | 5);
    }
    assert_eq!(receiver.read(GICC_HPPIR), 1 << 10 | 5);
    let first = receiver.acknowledge();
    assert_eq!(first, 1 << 10 | 5);
    assert!(
        !receiver.irq() && receiver.bit(GICD_ISPENDR, 5),
        "the other waits while it is active"
    );
    assert_eq!(receiver.get_byte(GICD_SPENDSGIR + 5), 1 << 3);
    receiver.end(first);
    assert!(receiver.irq());
    let second = receiver.acknowledge();
    assert_eq!(second, 3 << 10 | 5);
    receiver.end(second);
    assert_eq!(receiver.acknowledge(), SPURIOUS);
}

#[test]
fn an_sgi_is_each_receivers_own() {
    let guest = Guest::ready(config(3, 5));
    guest.cpus[0].set(GICD_SGIR, 1 << 24 | 1);
    assert_eq!(guest.cpus[1].acknowledge(), 1);
    assert!(guest.cpus[2].irq());
    assert!(!guest.cpus[2].bit(GICD_ISACTIVER, 1));
    guest.cpus[1].end(1);
    assert_eq!(guest.cpus[2].acknowledge(), 1);
}

#[test]
fn an_spi_for_several_cpus_is_taken_by_the_first_that_acknowledges() {
    let guest = Guest::ready(config(3, 5));
    let [first, second, third] = &guest.cpus[..] else {
        unreachable!()
    };
    first.set_byte(GICD_ITARGETSR + 32, 0b110);
    pulse(&guest, 0);
    assert_eq!((first.irq(), second.irq(), third.irq()), (false, true, true));
    assert_eq!(third.acknowledge(), 32);
    assert!(!second.irq());
    assert_eq!(second.acknowledge(), SPURIOUS);
    pulse(&guest, 0);
    assert!(!second.irq(), "it is active");
    third.end(32);
    assert!(second.irq() && third.irq());
}

#[test]
fn a_pending_spi_follows_its_targets() {
    let guest = Guest::ready(config(3, 5));
    let [first, second, third] = &guest.cpus[..] else {
        unreachable!()
    };
    pulse(&guest, 0);
    let irqs = || (first.irq(), second.irq(), third.irq());
    assert_eq!(irqs(), (true, false, false));
    first.set_byte(GICD_ITARGETSR + 32, 0b110);
    assert_eq!(irqs(), (false, true, true));
    first.set_byte(GICD_ITARGETSR + 32, 0b1111_1000);
    assert_eq!(irqs(), (false, false, false), "none of these exists");
    first.set_byte(GICD_ITARGETSR + 32, 0b001);
    assert_eq!(irqs(), (true, false, false));
}

#[test]
fn cpus_preempt_each_on_its_own() {
    let guest = Guest::ready(config(2, 5));
    let [first, second] = &guest.cpus[..] else {
        unreachable!()
    };
    first.set_byte(GICD_ITARGETSR + 32, 0b11);
    first.set_byte(GICD_ITARGETSR + 33, 0b11);
    pulse(&guest, 0);
    first.acknowledge();
    pulse(&guest, 1);
    assert!(!first.irq() && second.irq());
    assert_eq!(second.acknowledge(), 33);
    assert_eq!((first.read(GICC_RPR), second.read(GICC_RPR)), (0xa0, 0xa0));
}

#[test]
fn reserved_bits_of_the_control_register_stay_clear() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.write(GICC_CTLR, u32::MAX);
    assert_eq!(cpu.read(GICC_CTLR), 0x21f);
    cpu.set(GICD_CTLR, u32::MAX);
    assert_eq!(cpu.get(GICD_CTLR), 3);
}
