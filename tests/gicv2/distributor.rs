//! The registers of the distributor (4.3).

use crate::guest::*;
use devisor::backends::irqchip::{CpuId, Ppi, Spi, gicv2::GicV2Config};
use devisor::interrupt::{Interrupt, LevelInterrupt};

fn config(cpus: u32, spis: u32, priority_bits: u32) -> GicV2Config {
    GicV2Config {
        cpus,
        spis,
        priority_bits,
    }
}

#[test]
fn typer_says_what_there_is_and_no_more() {
    for (config, typer) in [
        (config(1, 0, 4), 0),
        (config(1, 96, 5), 3),
        (config(4, 256, 5), 8 | 3 << 5),
        (config(8, 988, 8), 31 | 7 << 5),
    ] {
        assert_eq!(Guest::new(config).cpus[0].get(GICD_TYPER), typer, "{config:?}");
    }
}

#[test]
fn the_identification_registers_tell_a_gicv2() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    assert_eq!(cpu.get(0xfe8) >> 4 & 0xf, 2, "ArchRev in ICPIDR2");
    assert_eq!(
        [0xff0, 0xff4, 0xff8, 0xffc].map(|id| cpu.get(id)),
        [0x0d, 0xf0, 0x05, 0xb1]
    );
    assert_eq!(cpu.get(0x008), 0x43b);
    assert_eq!(cpu.read(0xfc) >> 16 & 0xf, 2, "architecture version in GICC_IIDR");
    cpu.set(0xfe8, 0);
    cpu.set(GICD_TYPER, 0);
    assert_eq!((cpu.get(0xfe8), cpu.get(GICD_TYPER)), (0x2b, 3), "they are read-only");
}

#[test]
fn after_a_reset_only_the_sgis_are_enabled() {
    let guest = Guest::new(config(2, 64, 5));
    for (number, cpu) in guest.cpus.iter().enumerate() {
        assert_eq!(cpu.get(GICD_CTLR), 0);
        assert_eq!([0, 4, 8].map(|word| cpu.get(GICD_ISENABLER + word)), [0xffff, 0, 0]);
        assert_eq!([0, 4, 8].map(|word| cpu.get(GICD_ICFGR + word)), [0xaaaa_aaaa, 0, 0]);
        assert_eq!(cpu.get(GICD_IGROUPR), 0, "all in Group 0");
        assert_eq!(cpu.get(GICD_ITARGETSR), 0x0101_0101 << number);
        assert_eq!(cpu.get(GICD_ITARGETSR + 32), 0);
        assert_eq!((cpu.read(GICC_CTLR), cpu.read(GICC_PMR)), (0, 0));
        assert_eq!((cpu.read(GICC_RPR), cpu.read(GICC_HPPIR)), (0xff, SPURIOUS));
    }
}

#[test]
fn enables_are_set_and_cleared_by_bits_and_sgis_stay_enabled() {
    let guest = Guest::new(config(2, 64, 5));
    let [first, second] = &guest.cpus[..] else {
        unreachable!()
    };
    first.set(GICD_ISENABLER + 4, 0x8000_0003);
    first.set(GICD_ICENABLER + 4, 0x0000_0002);
    assert_eq!(first.get(GICD_ISENABLER + 4), 0x8000_0001);
    assert_eq!(
        second.get(GICD_ICENABLER + 4),
        0x8000_0001,
        "both read the same, on any CPU"
    );
    first.set(GICD_ISENABLER, 1 << 27);
    assert_eq!(
        (first.get(GICD_ISENABLER), second.get(GICD_ISENABLER)),
        (0x0800_ffff, 0xffff),
        "PPIs are banked"
    );
    first.set(GICD_ICENABLER, u32::MAX);
    assert_eq!(first.get(GICD_ISENABLER), 0xffff);
}

#[test]
fn priorities_keep_the_implemented_bits() {
    for (bits, kept) in [(4, 0xf0), (5, 0xf8), (6, 0xfc), (7, 0xfe), (8, 0xff)] {
        let guest = Guest::new(config(1, 32, bits));
        guest.cpus[0].set(GICD_IPRIORITYR + 32, u32::MAX);
        guest.cpus[0].write(GICC_PMR, u32::MAX);
        assert_eq!(guest.cpus[0].get(GICD_IPRIORITYR + 32), kept * 0x0101_0101);
        assert_eq!(guest.cpus[0].read(GICC_PMR), kept);
    }
}

#[test]
fn priorities_targets_and_configuration_are_stored_apart_and_by_byte() {
    let guest = Guest::new(config(8, 988, 8));
    let cpu = &guest.cpus[0];
    for intid in 32..1020_u32 {
        cpu.set_byte(GICD_IPRIORITYR + u64::from(intid), intid as u8);
        cpu.set_byte(GICD_ITARGETSR + u64::from(intid), !intid as u8);
    }
    for word in 2..64_u32 {
        cpu.set(GICD_ICFGR + u64::from(word) * 4, word * 0x0101_0101);
    }
    for intid in 32..1020_u32 {
        assert_eq!(cpu.get_byte(GICD_IPRIORITYR + u64::from(intid)), intid as u8);
        assert_eq!(cpu.get_byte(GICD_ITARGETSR + u64::from(intid)), !intid as u8);
    }
    assert_eq!(cpu.get(GICD_IPRIORITYR + 0x24), 0x2726_2524, "a word has four of them");
    for word in 2..63_u32 {
        let edges = (word * 0x0101_0101) & 0xaaaa_aaaa;
        assert_eq!(
            cpu.get(GICD_ICFGR + u64::from(word) * 4),
            edges,
            "the low bit of each is reserved"
        );
    }
}

#[test]
fn private_interrupts_are_banked() {
    let guest = Guest::new(config(2, 32, 8));
    let [first, second] = &guest.cpus[..] else {
        unreachable!()
    };
    first.set(GICD_IPRIORITYR + 16, 0x1122_3344);
    first.set(GICD_IGROUPR, 0xff00_00ff);
    first.set(GICD_ICFGR + 4, 0xaaaa_aaaa);
    first.set(GICD_ISPENDR, 1 << 20);
    first.set(GICD_ISACTIVER, 1 << 21);
    for register in [
        GICD_IPRIORITYR + 16,
        GICD_IGROUPR,
        GICD_ICFGR + 4,
        GICD_ISPENDR,
        GICD_ISACTIVER,
    ] {
        assert_ne!(first.get(register), 0, "{register:#x}");
        assert_eq!(second.get(register), 0, "{register:#x}");
    }
    first.set(GICD_ICFGR, 0);
    assert_eq!(first.get(GICD_ICFGR), 0xaaaa_aaaa, "SGIs are edge-triggered");
}

#[test]
fn targets_name_existing_cpus_only() {
    let guest = Guest::new(config(3, 32, 5));
    let cpu = &guest.cpus[1];
    cpu.set(GICD_ITARGETSR + 32, 0xff81_0602);
    assert_eq!(cpu.get(GICD_ITARGETSR + 32), 0x0701_0602);
    cpu.set(GICD_ITARGETSR + 16, u32::MAX);
    assert_eq!(
        cpu.get(GICD_ITARGETSR + 16),
        0x0202_0202,
        "those of private interrupts are read-only"
    );
}

#[test]
fn with_one_cpu_the_targets_read_as_zero_and_every_spi_is_for_it() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set(GICD_ITARGETSR + 32, 0);
    assert_eq!((cpu.get(GICD_ITARGETSR + 32), cpu.get(GICD_ITARGETSR)), (0, 0));
    guest.gic.edge_line(Spi(0)).unwrap().trigger().unwrap();
    assert!(cpu.irq());
}

#[test]
fn interrupts_that_do_not_exist_read_as_zero_and_write_nothing() {
    for (spis, last_word) in [(32, 0), (988, 0x0fff_ffff)] {
        let guest = Guest::new(config(2, spis, 8));
        let cpu = &guest.cpus[0];
        let before = guest.gic.save();
        let end = 32 + spis;
        for intid in (end..1024).filter(|intid| intid % 4 == 0).map(u64::from) {
            cpu.set(GICD_IPRIORITYR + intid, u32::MAX);
            cpu.set(GICD_ITARGETSR + intid, u32::MAX);
            assert_eq!(
                (cpu.get(GICD_IPRIORITYR + intid), cpu.get(GICD_ITARGETSR + intid)),
                (0, 0)
            );
        }
        for word in end.div_ceil(32)..32 {
            for array in (GICD_IGROUPR..GICD_IPRIORITYR).step_by(0x80) {
                cpu.set(array + u64::from(word) * 4, u32::MAX);
                assert_eq!(cpu.get(array + u64::from(word) * 4), 0);
            }
        }
        assert_eq!(guest.gic.save(), before);
        cpu.set(GICD_ISENABLER + 31 * 4, u32::MAX);
        assert_eq!(
            cpu.get(GICD_ISENABLER + 31 * 4),
            last_word,
            "1020 to 1023 are no interrupts"
        );
    }
}

#[test]
fn a_level_interrupt_is_pending_while_its_line_is_up_whatever_the_guest_clears() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let line = guest.gic.level_line(Spi(3)).unwrap();
    line.trigger().unwrap();
    assert!(cpu.bit(GICD_ISPENDR, 35));
    cpu.set_bit(GICD_ICPENDR, 35);
    assert!(cpu.bit(GICD_ICPENDR, 35) && cpu.irq());
    line.clear().unwrap();
    assert!(!cpu.bit(GICD_ISPENDR, 35) && !cpu.irq());
}

#[test]
fn the_pending_latch_of_a_level_interrupt_does_not_follow_its_line() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let line = guest.gic.level_line(Spi(3)).unwrap();
    line.trigger().unwrap();
    cpu.set_bit(GICD_ISPENDR, 35);
    line.clear().unwrap();
    assert!(cpu.bit(GICD_ISPENDR, 35) && cpu.irq(), "latched");
    cpu.set_bit(GICD_ICPENDR, 35);
    assert!(!cpu.bit(GICD_ISPENDR, 35) && !cpu.irq());
    cpu.set_bit(GICD_ISPENDR, 35);
    assert_eq!(cpu.acknowledge(), 35);
    assert!(!cpu.bit(GICD_ISPENDR, 35), "the acknowledge clears the latch");
}

#[test]
fn an_edge_is_latched_until_the_guest_clears_it() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_edge_triggered(35);
    let line = guest.gic.level_line(Spi(3)).unwrap();
    line.trigger().unwrap();
    line.clear().unwrap();
    assert!(cpu.bit(GICD_ISPENDR, 35) && cpu.irq());
    cpu.set_bit(GICD_ICPENDR, 35);
    assert!(!cpu.bit(GICD_ISPENDR, 35) && !cpu.irq());
    line.trigger().unwrap();
    cpu.set_bit(GICD_ICPENDR, 35);
    assert!(!cpu.irq(), "the line is still up, but that is no edge");
    line.trigger().unwrap();
    assert!(!cpu.irq(), "nor is this");
}

#[test]
fn a_disabled_interrupt_is_pending_but_not_signalled() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_bit(GICD_ICENABLER, 35);
    guest.gic.edge_line(Spi(3)).unwrap().trigger().unwrap();
    assert!(cpu.bit(GICD_ISPENDR, 35) && !cpu.irq());
    cpu.set_bit(GICD_ISENABLER, 35);
    assert!(cpu.irq());
}

#[test]
fn an_active_interrupt_is_not_signalled_until_the_guest_clears_it() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_bit(GICD_ISACTIVER, 35);
    guest.gic.edge_line(Spi(3)).unwrap().trigger().unwrap();
    assert!(cpu.bit(GICD_ICACTIVER, 35) && !cpu.irq());
    assert_eq!(cpu.read(GICC_RPR), 0xff, "no priority is active for it");
    cpu.set_bit(GICD_ICACTIVER, 35);
    assert!(!cpu.bit(GICD_ISACTIVER, 35) && cpu.irq());
}

#[test]
fn sgis_go_to_the_list_to_all_others_or_to_the_sender() {
    const LIST: u32 = 0 << 24;
    const OTHERS: u32 = 1 << 24;
    const SELF: u32 = 2 << 24;
    const RESERVED: u32 = 3 << 24;
    for (sender, value, receivers) in [
        (0, LIST | 0b101 << 16, 0b101),
        (1, LIST | 0xf8 << 16, 0b000), // None of these exists.
        (1, OTHERS, 0b101),
        (2, OTHERS | 0xff << 16, 0b011), // The list does not count.
        (2, SELF | 0b001 << 16, 0b100),
        (0, RESERVED | 0xff << 16, 0b000),
    ] {
        let guest = Guest::ready(config(3, 0, 5));
        guest.cpus[sender].set(GICD_SGIR, value | 9);
        for (number, cpu) in guest.cpus.iter().enumerate() {
            let received = receivers >> number & 1 != 0;
            assert_eq!(cpu.irq(), received, "CPU {number}, {value:#x}");
            assert_eq!(cpu.get(GICD_ISPENDR), u32::from(received) << 9);
            assert_eq!(cpu.get_byte(GICD_SPENDSGIR + 9), u8::from(received) << sender);
        }
        assert_eq!(guest.cpus[sender].get(GICD_SGIR), 0, "it is write-only");
    }
}

#[test]
fn sgis_become_pending_through_their_own_registers_only() {
    let guest = Guest::ready(config(2, 0, 5));
    let [first, second] = &guest.cpus[..] else {
        unreachable!()
    };
    first.set(GICD_ISPENDR, 0xffff);
    assert!(!first.irq());
    first.set(GICD_SPENDSGIR + 4, 0xff02_0001);
    assert_eq!(first.get(GICD_ISPENDR), 0b1101 << 4);
    assert_eq!(first.get(GICD_SPENDSGIR + 4), 0x0302_0001, "from CPUs that exist");
    assert_eq!(second.get(GICD_SPENDSGIR + 4), 0, "they are banked");
    first.set(GICD_ICPENDR, 0xffff);
    assert_eq!(first.get(GICD_ISPENDR), 0b1101 << 4);
    first.set_byte(GICD_CPENDSGIR + 7, 0x01);
    assert_eq!(first.get(GICD_CPENDSGIR + 4), 0x0202_0001);
    first.set(GICD_CPENDSGIR + 4, u32::MAX);
    assert_eq!((first.get(GICD_SPENDSGIR + 4), first.get(GICD_ISPENDR)), (0, 0));
    assert!(!first.irq());
}

#[test]
fn ppis_are_the_owners_alone() {
    let guest = Guest::ready(config(2, 0, 5));
    let line = guest.gic.ppi_line(CpuId(1), Ppi(11)).unwrap();
    line.trigger().unwrap();
    assert!(!guest.cpus[0].irq() && guest.cpus[1].irq());
    assert_eq!(guest.cpus[1].acknowledge(), 27);
}

#[test]
fn accesses_of_other_widths_and_alignments_read_as_zero_and_write_nothing() {
    let guest = Guest::ready(config(2, 32, 8));
    let cpu = &guest.cpus[0];
    for spi in 0..32 {
        guest.gic.edge_line(Spi(spi)).unwrap().trigger().unwrap();
    }
    let before = guest.gic.save();
    let bytes = [GICD_IPRIORITYR..GICD_ICFGR, GICD_CPENDSGIR..0xf30];
    for (number, (face, size)) in cpu.faces().into_iter().enumerate() {
        for width in [0, 1, 2, 3, 4, 5, 8, 16] {
            for offset in 0..size {
                let byte = width == 1 && number == 0 && bytes.iter().any(|range| range.contains(&offset));
                if byte || (width == 4 && offset % 4 == 0) {
                    continue;
                }
                let mut data = vec![0xee; width];
                face.read(offset, &mut data);
                assert!(data.iter().all(|byte| *byte == 0), "{width} bytes at {offset:#x}");
                face.write(offset, &vec![0xff; width]);
            }
        }
    }
    assert_eq!(guest.gic.save(), before);
}

#[test]
fn any_access_at_any_offset_answers() {
    let guest = Guest::ready(config(2, 988, 4));
    for (face, _) in guest.cpus[1].faces() {
        for value in [0, 0x5555_5555, u32::MAX] {
            for offset in (0..0x3000).chain([u64::MAX - 3, u64::MAX]) {
                for width in [1, 2, 4, 8] {
                    let data = [value.to_le_bytes(), value.to_le_bytes()].concat();
                    face.write(offset, &data[..width]);
                    face.read(offset, &mut data.clone()[..width]);
                }
            }
        }
    }
}
