//! What a CPU is signalled, acknowledges and ends.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Spi,
        gicv3::{GicV3Config, SysReg},
    },
    interrupt::{Interrupt, LevelInterrupt},
};

fn with_bits(priority_bits: u32) -> GicV3Config {
    GicV3Config {
        priority_bits,
        ..config(1)
    }
}

fn pulse(guest: &Guest, spi: u32) {
    guest.gic.edge_line(Spi(spi)).unwrap().trigger().unwrap();
}

#[test]
fn registers_that_are_not_there_are_undefined() {
    let guest = Guest::simple();
    let interface = &guest.cpus[0].interface;
    // ICC_SRE_EL2, ICC_IGRPEN1_EL3, ICC_CTLR_EL3, ICH_HCR_EL2, ICC_NMIAR1_EL1 and MIDR_EL1.
    for fields in [
        (3, 4, 12, 9, 5),
        (3, 6, 12, 12, 7),
        (3, 6, 12, 12, 4),
        (3, 4, 12, 11, 0),
        (3, 0, 12, 9, 5),
        (3, 0, 0, 0, 0),
    ] {
        let (op0, op1, crn, crm, op2) = fields;
        let register = SysReg::new(op0, op1, crn, crm, op2);
        assert_eq!(interface.read_sysreg(register), None, "{register}");
        assert_eq!(interface.write_sysreg(register, 0), None, "{register}");
    }
    for write_only in [
        SysReg::ICC_EOIR0_EL1,
        SysReg::ICC_EOIR1_EL1,
        SysReg::ICC_DIR_EL1,
        SysReg::ICC_SGI0R_EL1,
        SysReg::ICC_SGI1R_EL1,
        SysReg::ICC_ASGI1R_EL1,
    ] {
        assert_eq!(interface.read_sysreg(write_only), None, "{write_only}");
        assert_eq!(interface.write_sysreg(write_only, 0), Some(()), "{write_only}");
    }
    for read_only in [
        SysReg::ICC_IAR0_EL1,
        SysReg::ICC_IAR1_EL1,
        SysReg::ICC_HPPIR0_EL1,
        SysReg::ICC_HPPIR1_EL1,
        SysReg::ICC_RPR_EL1,
    ] {
        assert_eq!(interface.write_sysreg(read_only, 0), None, "{read_only}");
        assert!(interface.read_sysreg(read_only).is_some(), "{read_only}");
    }
}

#[test]
fn every_encoding_names_one_register() {
    let guest = Guest::simple();
    let interface = &guest.cpus[0].interface;
    let registers: Vec<_> = (0..=u16::MAX)
        .map(SysReg::from)
        .filter(|&register| interface.read_sysreg(register).is_some() || interface.write_sysreg(register, 0).is_some())
        .collect();
    // Those of this interface with a single word of active priorities for each group.
    assert_eq!(registers.len(), 20);
    for register in registers {
        let number = u64::from(u16::from(register));
        let [op0, op1, crn] = [number >> 14, number >> 11 & 7, number >> 7 & 15];
        let [crm, op2] = [number >> 3 & 15, number & 7];
        let iss = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | 0x1f << 5 | crm << 1 | 1;
        assert_eq!(SysReg::from_iss(iss), register);
    }
}

#[test]
fn icc_ctlr_says_what_there_is_and_keeps_what_can_be_written() {
    let control = |config| Guest::new(config).cpus[0].read(SysReg::ICC_CTLR_EL1);
    // PRIbits, A3V, RSS, ExtRange.
    assert_eq!(control(config(1)), 4 << 8 | 1 << 15);
    assert_eq!(control(with_bits(8)), 7 << 8 | 1 << 15);
    let extended = GicV3Config {
        extended_ppis: 32,
        ..config(1)
    };
    assert_eq!(control(extended), 4 << 8 | 1 << 15 | 1 << 19);
    let mut far = config(1);
    far.affinities[0].0 = 0x20;
    assert_eq!(control(far), 4 << 8 | 1 << 15 | 1 << 18);

    let guest = Guest::new(config(1));
    guest.cpus[0].write(SysReg::ICC_CTLR_EL1, u64::MAX);
    assert_eq!(
        guest.cpus[0].read(SysReg::ICC_CTLR_EL1),
        4 << 8 | 1 << 15 | CBPR | EOI_MODE
    );
    guest.cpus[0].write(SysReg::ICC_SRE_EL1, 0);
    assert_eq!(guest.cpus[0].read(SysReg::ICC_SRE_EL1), 7, "fixed");
}

#[test]
fn nothing_is_signalled_until_distributor_redistributor_and_interface_say_so() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    pulse(&guest, 0);
    assert!(cpu.irq());
    guest.set(GICD_CTLR, 4, 1);
    assert!(!cpu.irq());
    assert_eq!(
        (cpu.acknowledge(), cpu.read(SysReg::ICC_HPPIR1_EL1)),
        (SPURIOUS, SPURIOUS)
    );
    guest.set(GICD_CTLR, 4, 3);
    cpu.write(SysReg::ICC_IGRPEN1_EL1, 0);
    assert!(!cpu.irq());
    assert_eq!(
        (cpu.acknowledge(), cpu.read(SysReg::ICC_HPPIR1_EL1)),
        (SPURIOUS, SPURIOUS)
    );
    cpu.write(SysReg::ICC_IGRPEN1_EL1, u64::MAX);
    assert_eq!(cpu.read(SysReg::ICC_IGRPEN1_EL1), 1);
    assert!(cpu.irq());
    guest.set_bit(Array::ClearEnable, 0, 32);
    assert!(!cpu.irq());
    guest.set_bit(Array::SetEnable, 0, 32);
    assert!(cpu.irq());
    cpu.write(SysReg::ICC_PMR_EL1, 0xa0);
    assert!(!cpu.irq(), "equal to the mask is masked");
    assert_eq!((cpu.acknowledge(), cpu.read(SysReg::ICC_HPPIR1_EL1)), (SPURIOUS, 32));
    cpu.write(SysReg::ICC_PMR_EL1, 0xaf);
    assert_eq!(cpu.read(SysReg::ICC_PMR_EL1), 0xa8);
    assert!(cpu.irq());
    assert_eq!(cpu.acknowledge(), 32);
    assert!(!cpu.irq());
}

#[test]
fn group_0_is_fiq_and_each_group_has_its_registers() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    guest.set_group(0, 33, 0);
    pulse(&guest, 1);
    assert!(cpu.fiq() && !cpu.irq());
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    assert_eq!(cpu.read(SysReg::ICC_HPPIR1_EL1), SPURIOUS);
    assert_eq!(cpu.read(SysReg::ICC_HPPIR0_EL1), 33);
    guest.set_priority(0, 32, 0x80);
    pulse(&guest, 0);
    assert!(cpu.irq() && !cpu.fiq(), "the more urgent one");
    assert_eq!(cpu.read(SysReg::ICC_IAR0_EL1), SPURIOUS);
    assert_eq!(cpu.acknowledge(), 32);
    assert_eq!(cpu.read(SysReg::ICC_AP1R_EL1[0]), 1 << 16);
    cpu.end(32);
    assert_eq!(cpu.read(SysReg::ICC_IAR0_EL1), 33);
    assert_eq!(cpu.read(SysReg::ICC_AP0R_EL1[0]), 1 << 20);
    cpu.end(33);
    assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), 0xa0, "ended in the other group: ignored");
    assert!(guest.bit(Array::SetActive, 0, 33));
    cpu.write(SysReg::ICC_EOIR0_EL1, 33);
    assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), IDLE);
    assert!(!guest.bit(Array::SetActive, 0, 33));
}

#[test]
fn a_level_interrupt_survives_its_acknowledge_while_its_line_is_up() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let line = guest.gic.level_line(Spi(0)).unwrap();
    line.trigger().unwrap();
    assert_eq!(cpu.acknowledge(), 32);
    assert!(!cpu.irq(), "active is not signalled");
    assert!(guest.bit(Array::SetActive, 0, 32) && guest.bit(Array::SetPending, 0, 32));
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    cpu.end(32);
    assert!(!guest.bit(Array::SetActive, 0, 32) && cpu.irq(), "the line is still up");
    assert_eq!(cpu.acknowledge(), 32);
    line.clear().unwrap();
    cpu.end(32);
    assert!(!cpu.irq());
}

#[test]
fn an_edge_that_comes_while_active_is_signalled_after_the_end() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    guest.set_edge_triggered(0, 32, true);
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
    let guest = Guest::ready(GicV3Config {
        extended_spis: 32,
        extended_ppis: 32,
        ..config(1)
    });
    let cpu = &guest.cpus[0];
    for (intid, priority) in [
        (41, 0x40),
        (4097, 0x40),
        (1057, 0x40),
        (5, 0x40),
        (39, 0x20),
        (33, 0x80),
    ] {
        guest.set_priority(0, intid, priority);
        guest.set_bit(Array::SetPending, 0, intid);
    }
    for expected in [39, 5, 41, 1057, 4097, 33] {
        assert_eq!(cpu.read(SysReg::ICC_HPPIR1_EL1), expected);
        assert_eq!(cpu.acknowledge(), expected);
        assert!(guest.bit(Array::SetActive, 0, expected as u32));
        cpu.end(expected);
        assert!(!guest.bit(Array::SetActive, 0, expected as u32));
    }
    assert_eq!(cpu.acknowledge(), SPURIOUS);
}

#[test]
fn a_more_urgent_interrupt_preempts_and_the_running_priority_follows() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    for (spi, priority) in [(0, 0xa0), (1, 0x60), (2, 0x60), (3, 0x20)] {
        guest.set_priority(0, 32 + spi, priority);
    }
    let running = || cpu.read(SysReg::ICC_RPR_EL1);
    pulse(&guest, 0);
    assert_eq!((cpu.acknowledge(), running()), (32, 0xa0));
    pulse(&guest, 1);
    assert!(cpu.irq(), "more urgent");
    assert_eq!((cpu.acknowledge(), running()), (33, 0x60));
    pulse(&guest, 2);
    assert!(!cpu.irq(), "equal");
    assert_eq!((cpu.acknowledge(), cpu.read(SysReg::ICC_HPPIR1_EL1)), (SPURIOUS, 34));
    pulse(&guest, 3);
    assert_eq!((cpu.acknowledge(), running()), (35, 0x20));
    cpu.end(35);
    assert_eq!(running(), 0x60);
    cpu.end(33);
    assert_eq!(running(), 0xa0);
    assert!(cpu.irq(), "34 preempts 32");
    cpu.end(32);
    assert_eq!(running(), IDLE);
}

#[test]
fn priorities_below_the_binary_point_do_not_preempt() {
    for (binary_point, preempts) in [(2, true), (3, true), (4, true), (5, false), (7, false)] {
        let guest = Guest::ready(with_bits(8));
        let cpu = &guest.cpus[0];
        cpu.write(SysReg::ICC_BPR1_EL1, binary_point);
        guest.set_priority(0, 32, 0x58);
        guest.set_priority(0, 33, 0x40);
        pulse(&guest, 0);
        cpu.acknowledge();
        pulse(&guest, 1);
        assert_eq!(cpu.irq(), preempts, "ICC_BPR1_EL1 {binary_point}");
        cpu.end(32);
        assert_eq!(cpu.acknowledge(), 33, "it decides among the pending all the same");
    }
}

#[test]
fn a_common_binary_point_shows_in_the_other_one_and_freezes_it() {
    let guest = Guest::ready(with_bits(8));
    let cpu = &guest.cpus[0];
    let points = || (cpu.read(SysReg::ICC_BPR0_EL1), cpu.read(SysReg::ICC_BPR1_EL1));
    assert_eq!(points(), (0, 1), "after a reset");
    cpu.write(SysReg::ICC_BPR1_EL1, 4);
    cpu.write(SysReg::ICC_BPR0_EL1, 3);
    assert_eq!(points(), (3, 4));
    guest.set_priority(0, 32, 0x58);
    guest.set_priority(0, 33, 0x40);
    pulse(&guest, 0);
    cpu.acknowledge();
    pulse(&guest, 1);
    cpu.write(SysReg::ICC_BPR1_EL1, 5);
    assert!(!cpu.irq(), "ICC_BPR1_EL1 5 leaves [7:5], as ICC_BPR0_EL1 4 does");
    cpu.write(SysReg::ICC_CTLR_EL1, CBPR);
    assert_eq!(points(), (3, 4));
    assert!(cpu.irq(), "ICC_BPR0_EL1 counts for both");
    cpu.write(SysReg::ICC_BPR1_EL1, 7);
    assert_eq!(points(), (3, 4));
    cpu.write(SysReg::ICC_BPR0_EL1, 7);
    assert_eq!(points(), (7, 7), "no more than 7");
    cpu.write(SysReg::ICC_CTLR_EL1, 0);
    assert_eq!(points(), (7, 5), "as it was");
    cpu.write(SysReg::ICC_BPR0_EL1, 0);
    cpu.write(SysReg::ICC_CTLR_EL1, CBPR);
    guest.set_priority(0, 33, 0x48);
    assert_eq!(cpu.acknowledge(), 33);
    assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), 0x48, "also for what runs");
}

#[test]
fn binary_points_and_active_priorities_fit_the_priority_bits() {
    for (bits, minimum, words) in [(4, 3, 1), (5, 2, 1), (6, 1, 2), (7, 0, 4), (8, 0, 4)] {
        let guest = Guest::ready(with_bits(bits));
        let cpu = &guest.cpus[0];
        cpu.write(SysReg::ICC_BPR0_EL1, 0);
        cpu.write(SysReg::ICC_BPR1_EL1, 0);
        assert_eq!(cpu.read(SysReg::ICC_BPR0_EL1), minimum);
        assert_eq!(cpu.read(SysReg::ICC_BPR1_EL1), minimum + 1);
        let there = |array: [SysReg; 4]| {
            let registers = array.iter().filter(|&&register| {
                let written = cpu.interface.write_sysreg(register, u64::MAX).is_some();
                let read = cpu.interface.read_sysreg(register);
                assert_eq!(written, read.is_some());
                read.is_some_and(|value| value == if bits == 4 { 0xffff } else { u64::from(u32::MAX) })
            });
            registers.count()
        };
        assert_eq!(there(SysReg::ICC_AP0R_EL1), words, "{bits} bits");
        assert_eq!(there(SysReg::ICC_AP1R_EL1), words, "{bits} bits");
        assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), 0);
    }
}

#[test]
fn eoi_mode_parts_the_end_from_the_deactivation() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.write(SysReg::ICC_DIR_EL1, 32);
    for intid in [32, 20] {
        cpu.write(SysReg::ICC_CTLR_EL1, EOI_MODE);
        guest.set_bit(Array::SetPending, 0, intid);
        assert_eq!(cpu.acknowledge(), u64::from(intid));
        cpu.end(intid.into());
        assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), IDLE);
        assert!(guest.bit(Array::SetActive, 0, intid));
        cpu.write(SysReg::ICC_CTLR_EL1, 0);
        cpu.write(SysReg::ICC_DIR_EL1, intid.into());
        assert!(guest.bit(Array::SetActive, 0, intid), "ignored without EOImode");
        cpu.write(SysReg::ICC_CTLR_EL1, EOI_MODE);
        cpu.write(SysReg::ICC_DIR_EL1, intid.into());
        assert!(!guest.bit(Array::SetActive, 0, intid));
    }
}

#[test]
fn an_end_of_anything_is_safe() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let before = guest.gic.save();
    let strange = [
        0,
        31,
        32,
        95,
        96,
        1019,
        1020,
        1023,
        1024,
        1056,
        4096,
        5120,
        8191,
        8192,
        65535,
        65536,
        u64::MAX,
    ];
    for register in [SysReg::ICC_EOIR0_EL1, SysReg::ICC_EOIR1_EL1, SysReg::ICC_DIR_EL1] {
        for intid in strange {
            cpu.write(register, intid);
        }
    }
    assert_eq!(guest.gic.save(), before);
    guest.set_bit(Array::SetPending, 0, 40);
    assert_eq!(cpu.acknowledge(), 40);
    for intid in [96, 1019, 1020, 1023, 1056, 4096, 8192, u64::MAX] {
        cpu.end(intid);
        assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), 0xa0, "INTID {intid} does not exist");
    }
    cpu.end(40);
    assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), IDLE);
}

#[test]
fn active_priorities_can_be_written_and_hold_off_interrupts() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    pulse(&guest, 0);
    cpu.write(SysReg::ICC_AP0R_EL1[0], 1 << 20);
    assert!(!cpu.irq());
    assert_eq!(cpu.read(SysReg::ICC_RPR_EL1), 0xa0);
    cpu.write(SysReg::ICC_AP0R_EL1[0], 1 << 21);
    assert!(cpu.irq());
    assert_eq!(cpu.acknowledge(), 32);
    assert_eq!(cpu.read(SysReg::ICC_AP1R_EL1[0]), 1 << 20);
}

#[test]
fn a_pending_interrupt_of_a_group_that_the_interface_disables_hides_the_less_urgent() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    guest.set_group(0, 33, 0);
    guest.set_priority(0, 33, 0x20);
    pulse(&guest, 0);
    pulse(&guest, 1);
    assert!(cpu.fiq());
    cpu.write(SysReg::ICC_IGRPEN0_EL1, 0);
    assert!(!cpu.fiq() && !cpu.irq());
    guest.set(GICD_CTLR, 4, 2);
    assert!(cpu.irq(), "what the distributor disables hides nothing");
}
