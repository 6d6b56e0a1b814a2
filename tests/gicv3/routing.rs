//! Where SPIs and SGIs go.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        CpuId, Spi,
        gicv3::{Affinity, GicV3Config, SysReg},
    },
    interrupt::{Interrupt, LevelInterrupt},
};

/// ICC_SGI1R_EL1 and its like.
fn sgi(aff321: u32, range: u64, list: u16, intid: u64) -> u64 {
    let [aff3, aff2, aff1, _] = (aff321 << 8).to_be_bytes().map(u64::from);
    aff3 << 48 | range << 44 | aff2 << 32 | intid << 24 | aff1 << 16 | u64::from(list)
}

const TO_OTHERS: u64 = 1 << 40;

fn who_is_told(guest: &Guest) -> Vec<usize> {
    let cpus = guest.cpus.iter().enumerate();
    cpus.filter(|(_, cpu)| cpu.irq() || cpu.fiq())
        .map(|(number, _)| number)
        .collect()
}

fn far() -> GicV3Config {
    GicV3Config {
        affinities: vec![
            Affinity(0x0000_0000),
            Affinity(0x0000_0001),
            Affinity(0x0000_0011),
            Affinity(0x0000_01f3),
            Affinity(0x0102_0300),
            Affinity(0xff00_0000),
        ],
        redistributor_regions: vec![6],
        ..config(1)
    }
}

#[test]
fn an_spi_goes_to_the_cpu_at_its_affinity() {
    let guest = Guest::ready(far());
    for (cpu, router) in [
        (0, 0),
        (1, 1),
        (2, 0x11),
        (3, 0x1f3),
        (4, 0x01_0002_0300),
        (5, 0xff_0000_0000),
    ] {
        guest.route(40, router);
        guest.set_bit(Array::SetPending, 0, 40);
        assert_eq!(who_is_told(&guest), [cpu]);
        assert_eq!(guest.cpus[cpu].acknowledge(), 40);
        guest.cpus[cpu].end(40);
    }
    guest.set_bit(Array::SetPending, 0, 40);
    for nobody in [2, 0x10, 0x01_0002_0301, 0xff_00ff_ffff] {
        guest.route(40, nobody);
        assert_eq!(who_is_told(&guest), [0; 0], "{nobody:#x}");
    }
    guest.route(40, 1);
    assert_eq!(who_is_told(&guest), [1], "it was pending all the time");
}

#[test]
fn an_spi_that_is_routed_elsewhere_while_it_waits_moves() {
    let guest = Guest::ready(config(2));
    let line = guest.gic.level_line(Spi(8)).unwrap();
    line.trigger().unwrap();
    assert_eq!(who_is_told(&guest), [0]);
    guest.route(40, 1);
    assert_eq!(who_is_told(&guest), [1]);
    assert_eq!(guest.cpus[0].acknowledge(), SPURIOUS);
    assert_eq!(guest.cpus[1].acknowledge(), 40);
    guest.route(40, 0);
    assert_eq!(who_is_told(&guest), [0; 0], "active");
    // Whoever ends it.
    guest.cpus[1].end(40);
    assert_eq!(who_is_told(&guest), [0]);
    line.clear().unwrap();
    assert_eq!(who_is_told(&guest), [0; 0]);
}

#[test]
fn an_sgi_goes_to_the_list_of_one_cluster_and_range() {
    let guest = Guest::ready(far());
    let send = |value| {
        guest.cpus[0].write(SysReg::ICC_SGI1R_EL1, value);
        let told = who_is_told(&guest);
        for &cpu in &told {
            let intid = guest.cpus[cpu].acknowledge();
            assert_eq!(intid, value >> 24 & 15);
            guest.cpus[cpu].end(intid);
        }
        assert_eq!(who_is_told(&guest), [0; 0]);
        told
    };
    assert_eq!(send(sgi(0, 0, 0xffff, 3)), [0, 1]);
    assert_eq!(send(sgi(0, 0, 0b10, 3)), [1]);
    assert_eq!(send(sgi(0, 1, 0xffff, 15)), [2]);
    assert_eq!(send(sgi(0, 1, 0xfffd, 15)), [0; 0]);
    assert_eq!(send(sgi(1, 15, 1 << 3, 0)), [3]);
    assert_eq!(send(sgi(0x01_0203, 0, 1, 7)), [4]);
    assert_eq!(send(sgi(0xff_0000, 0, 0xffff, 7)), [5]);
    assert_eq!(send(sgi(2, 0, 0xffff, 7)), [0; 0], "nobody is there");
    assert_eq!(send(sgi(0xff_ffff, 15, 0xffff, 7)), [0; 0]);
    assert_eq!(send(TO_OTHERS | sgi(0, 0, 1, 9)), [1, 2, 3, 4, 5], "whatever the list");
}

#[test]
fn an_sgi_to_oneself_works_and_one_to_others_does_not_come_back() {
    let guest = Guest::ready(config(1));
    guest.cpus[0].write(SysReg::ICC_SGI1R_EL1, TO_OTHERS | sgi(0, 0, 0xffff, 1));
    assert_eq!(who_is_told(&guest), [0; 0]);
    guest.cpus[0].write(SysReg::ICC_SGI1R_EL1, sgi(0, 0, 1, 1));
    guest.cpus[0].write(SysReg::ICC_SGI1R_EL1, sgi(0, 0, 1, 1));
    assert_eq!(guest.cpus[0].acknowledge(), 1);
    guest.cpus[0].end(1);
    assert_eq!(guest.cpus[0].acknowledge(), SPURIOUS, "two in one");
}

#[test]
fn a_register_for_group_0_reaches_sgis_of_group_0_only() {
    for (register, group_1, group_0) in [
        (SysReg::ICC_SGI1R_EL1, true, true),
        (SysReg::ICC_SGI0R_EL1, false, true),
        (SysReg::ICC_ASGI1R_EL1, false, true),
    ] {
        let guest = Guest::ready(config(2));
        guest.set_group(1, 6, 0);
        guest.cpus[0].write(register, sgi(0, 0, 0b10, 5));
        assert_eq!(guest.bit(Array::SetPending, 1, 5), group_1, "{register}");
        guest.cpus[0].write(register, sgi(0, 0, 0b10, 6));
        assert_eq!(guest.bit(Array::SetPending, 1, 6), group_0, "{register}");
    }
}

#[test]
fn an_sgi_can_be_disabled_and_waits() {
    let guest = Guest::ready(config(1));
    guest.set_bit(Array::ClearEnable, 0, 2);
    guest.cpus[0].write(SysReg::ICC_SGI1R_EL1, sgi(0, 0, 1, 2));
    assert_eq!(who_is_told(&guest), [0; 0]);
    guest.set_bit(Array::SetEnable, 0, 2);
    assert_eq!(guest.cpus[0].acknowledge(), 2);
}

#[test]
fn an_spi_for_any_cpu_goes_to_one_that_takes_part_and_to_one_only() {
    let guest = Guest::ready(config(4));
    let spi = |intid| {
        guest.route(intid, ONE_OF_N);
        guest.set_bit(Array::SetPending, 0, intid);
        let told = who_is_told(&guest);
        if let [cpu] = told[..] {
            assert_eq!(guest.cpus[cpu].acknowledge(), u64::from(intid));
            guest.cpus[cpu].end(intid.into());
        }
        guest.set_bit(Array::ClearPending, 0, intid);
        told
    };
    assert_eq!(
        [spi(40), spi(41), spi(42), spi(43)],
        [[0], [1], [2], [3]],
        "they spread"
    );
    assert_eq!(spi(41), [1], "always the same");
    guest.cpus[1].write(SysReg::ICC_IGRPEN1_EL1, 0);
    assert_eq!(spi(41), [2]);
    guest.cpus[2].set_redistributor(GICR_CTLR, 4, DPG1);
    assert_eq!(guest.cpus[2].redistributor(GICR_CTLR, 4), DPG1);
    assert_eq!(spi(41), [3]);
    guest.cpus[3].set_redistributor(GICR_WAKER, 4, 2);
    assert_eq!(spi(41), [0]);
    guest.cpus[0].set_redistributor(GICR_CTLR, 4, DPG0);
    assert_eq!(spi(41), [0], "the bit of the other group");
    guest.cpus[0].set_redistributor(GICR_CTLR, 4, DPG0 | DPG1);
    assert_eq!(spi(41), [0; 0]);
}

#[test]
fn an_spi_for_any_cpu_waits_for_one_and_leaves_one_that_opts_out() {
    let guest = Guest::ready(config(3));
    for cpu in &guest.cpus {
        cpu.write(SysReg::ICC_IGRPEN1_EL1, 0);
    }
    guest.route(40, ONE_OF_N);
    guest.set_bit(Array::SetPending, 0, 40);
    assert_eq!(who_is_told(&guest), [0; 0]);
    guest.cpus[2].write(SysReg::ICC_IGRPEN1_EL1, 1);
    assert_eq!(who_is_told(&guest), [2]);
    guest.cpus[1].write(SysReg::ICC_IGRPEN1_EL1, 1);
    assert_eq!(who_is_told(&guest), [2], "it stays where it is");
    guest.cpus[2].set_redistributor(GICR_CTLR, 4, DPG1);
    assert_eq!(who_is_told(&guest), [1]);
    guest.set_group(0, 40, 0);
    assert_eq!(
        who_is_told(&guest),
        [1],
        "who takes part in the other group: CPU 1 is the next from 40 on"
    );
    assert!(guest.cpus[1].fiq());
    assert_eq!(guest.cpus[1].read(SysReg::ICC_IAR0_EL1), 40);
}

#[test]
fn an_spi_for_any_cpu_leaves_one_whose_interface_is_reset() {
    let guest = Guest::ready(config(2));
    guest.route(40, ONE_OF_N);
    guest.set_bit(Array::SetPending, 0, 40);
    assert_eq!(who_is_told(&guest), [0]);
    guest.gic.reset_cpu_interface(CpuId(0)).unwrap();
    assert_eq!(who_is_told(&guest), [1]);
}

#[test]
fn without_1_of_n_the_bit_is_not_there() {
    let guest = Guest::ready(GicV3Config {
        one_of_n: false,
        ..config(2)
    });
    guest.route(40, ONE_OF_N | 1);
    assert_eq!(guest.get(GICD_IROUTER + 40 * 8, 8), 1);
    guest.cpus[0].set_redistributor(GICR_CTLR, 4, DPG0 | DPG1);
    assert_eq!(guest.cpus[0].redistributor(GICR_CTLR, 4), 0);
}

#[test]
fn five_hundred_and_twelve_cpus_are_all_reached() {
    let guest = Guest::ready(GicV3Config {
        redistributor_regions: vec![200, 200, 112],
        ..config(512)
    });
    guest.cpus[511].write(SysReg::ICC_SGI1R_EL1, TO_OTHERS | 4 << 24);
    assert_eq!(who_is_told(&guest), (0..511).collect::<Vec<_>>());
    for cpu in &guest.cpus[..511] {
        assert_eq!(cpu.acknowledge(), 4);
    }
    guest.cpus[0].write(SysReg::ICC_SGI1R_EL1, sgi(31, 0, 0x8000, 5));
    assert_eq!(who_is_told(&guest), [511]);
    guest.route(33, 0x1f0f);
    guest.set_bit(Array::SetPending, 0, 33);
    assert_eq!(guest.cpus[511].acknowledge(), 5);
    guest.cpus[511].end(5);
    assert_eq!(guest.cpus[511].acknowledge(), 33);
}
