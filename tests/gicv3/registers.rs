//! Which registers there are, how wide, and what they tell of the GIC.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        CpuId,
        gicv3::{Affinity, GicV3Config, LpiSupport, SysReg},
    },
    bus::BusDevice,
};

fn rich(cpus: u32) -> GicV3Config {
    GicV3Config {
        spis: 988,
        extended_spis: 1024,
        extended_ppis: 64,
        lpis: LpiSupport::Direct,
        ..GicV3Config::new(cpus)
    }
}

#[test]
fn gicd_typer_says_what_there_is() {
    let typer = |config| Guest::new(config).get(GICD_TYPER, 4);
    // ITLinesNumber, ESPI, MBIS, LPIS, IDbits, A3V, No1N, RSS, ESPI_range.
    assert_eq!(typer(config(1)), 2 | 1 << 16 | 15 << 19 | 1 << 24);
    let everything = 31 | 1 << 8 | 1 << 16 | 1 << 17 | 15 << 19 | 1 << 24 | 31 << 27;
    assert_eq!(typer(rich(1)), everything);
    let nothing = GicV3Config {
        spis: 0,
        one_of_n: false,
        message_based_spis: false,
        ..config(1)
    };
    assert_eq!(typer(nothing), 15 << 19 | 1 << 24 | 1 << 25);
    let far = GicV3Config {
        affinities: vec![Affinity(16)],
        ..config(1)
    };
    assert_eq!(typer(far) >> 26 & 1, 1, "RSS");
}

#[test]
fn gicr_typer_has_number_affinity_and_the_last_of_each_region() {
    let mut config = rich(5);
    config.affinities[3] = Affinity(0x0102_0304);
    config.redistributor_regions = vec![2, 3];
    let guest = Guest::new(config);
    let typers: Vec<_> = guest.cpus.iter().map(|cpu| cpu.redistributor(GICR_TYPER, 8)).collect();
    assert_eq!(
        typers.iter().map(|typer| typer >> 4 & 1).collect::<Vec<_>>(),
        [0, 1, 0, 0, 1]
    );
    assert_eq!(
        typers.iter().map(|typer| typer >> 8 & 0xffff).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    assert_eq!(typers[3] >> 32, 0x0102_0304);
    // PLPIS, DirectLPI, DPGS, and two words of extended PPIs.
    assert_eq!(typers[0] & 0xf900_002f, 1 | 1 << 3 | 1 << 5 | 1 << 24 | 2 << 27);
    assert_eq!(
        guest.cpus[3].redistributor(GICR_TYPER + 4, 4),
        0x0102_0304,
        "the upper half alone"
    );
    for (region, cpus) in [(0, 0..2), (1, 2..5)] {
        let face = guest.gic.redistributors(region).unwrap();
        assert_eq!(face.size(), cpus.len() as u64 * 0x2_0000);
        for (place, cpu) in cpus.enumerate() {
            assert_eq!(read(&face, place as u64 * 0x2_0000 + GICR_TYPER, 8), typers[cpu]);
        }
        assert_eq!(read(&face, face.size() + GICR_TYPER, 8), 0, "beyond the last");
        face.write(face.size() + GICR_WAKER, &[0; 4]);
    }
    assert!(guest.gic.redistributors(2).is_err());
}

#[test]
fn the_architecture_is_version_3() {
    let guest = Guest::new(config(1));
    assert_eq!(guest.get(0xffe8, 4), 0x3b, "GICD_PIDR2");
    assert_eq!(guest.cpus[0].redistributor(0xffe8, 4), 0x3b, "GICR_PIDR2");
    assert_eq!(guest.get(0x008, 4), 0x43b, "GICD_IIDR");
    assert_eq!(guest.cpus[0].redistributor(0x004, 4), 0x43b, "GICR_IIDR");
}

#[test]
fn gicd_ctlr_has_affinity_routing_and_one_state_fixed() {
    let guest = Guest::new(config(1));
    assert_eq!(guest.get(GICD_CTLR, 4), 0x50);
    guest.set(GICD_CTLR, 4, u64::from(u32::MAX));
    assert_eq!(guest.get(GICD_CTLR, 4), 0x53);
    guest.set(GICD_CTLR, 4, 0);
    assert_eq!(guest.get(GICD_CTLR, 4), 0x50);
}

#[test]
fn every_interrupt_of_every_range_has_all_its_fields() {
    let guest = Guest::new(rich(2));
    let all: Vec<_> = guest.privates().into_iter().chain(guest.spis()).collect();
    assert_eq!(all.len(), 32 + 64 + 988 + 1024);
    for intid in all {
        let cpu = 1;
        assert!(!guest.bit(Array::Group, cpu, intid), "INTID {intid}");
        guest.set_bit(Array::Group, cpu, intid);
        assert!(guest.bit(Array::Group, cpu, intid), "INTID {intid}");
        for (set, clear) in [
            (Array::SetEnable, Array::ClearEnable),
            (Array::SetPending, Array::ClearPending),
            (Array::SetActive, Array::ClearActive),
        ] {
            assert!(!guest.bit(set, cpu, intid), "INTID {intid}");
            guest.set_bit(set, cpu, intid);
            assert!(guest.bit(set, cpu, intid) && guest.bit(clear, cpu, intid));
            guest.set_bit(clear, cpu, intid);
            assert!(!guest.bit(set, cpu, intid) && !guest.bit(clear, cpu, intid));
        }
        guest.set_priority(cpu, intid, 0x5f);
        assert_eq!(guest.priority(cpu, intid), 0x58, "five bits of INTID {intid}");
        let sgi = intid < 16;
        assert_eq!(guest.is_edge_triggered(cpu, intid), sgi);
        for edge in [true, false] {
            guest.set_edge_triggered(cpu, intid, edge);
            assert_eq!(guest.is_edge_triggered(cpu, intid), edge || sgi, "INTID {intid}");
        }
        if !(16..32).contains(&intid) && !(1056..1120).contains(&intid) && !sgi {
            guest.route(intid, u64::MAX);
            let offset = if intid < 4096 {
                0x6000 + u64::from(intid) * 8
            } else {
                0x8000 + u64::from(intid - 4096) * 8
            };
            assert_eq!(guest.get(offset, 8), 0xff_80ff_ffff);
            guest.set(offset + 4, 4, 0x12);
            guest.set(offset, 4, 0x0034_5678);
            assert_eq!(guest.get(offset, 8), 0x12_0034_5678);
            assert_eq!((guest.get(offset, 4), guest.get(offset + 4, 4)), (0x0034_5678, 0x12));
        }
    }
    // All of it was CPU 1's or nobody's: CPU 0 has seen none.
    for intid in guest.privates() {
        assert!(!guest.bit(Array::Group, 0, intid) && guest.priority(0, intid) == 0);
    }
}

#[test]
fn what_does_not_exist_reads_as_zero_and_takes_no_write() {
    let guest = Guest::new(config(1));
    let before = guest.gic.save();
    // Private interrupts in the distributor, GICD_ITARGETSRn, GICD_SGIR, GICD_IGRPMODRn, GICD_SETSPI_SR, SPIs from 64 on,
    // the extended range, GICD_IROUTERn of private interrupts.
    let mut offsets = vec![
        0x080, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0x41c, 0xc00, 0xc04, 0x800, 0x820, 0xf00, 0xf10, 0xf20,
        0xd04, 0xe08, 0x050, 0x058, 0x08c, 0x10c, 0x460, 0xc18, 0x1000, 0x1200, 0x1400, 0x1600, 0x1a00, 0x2000, 0x3000,
        0x3400, 0x8000, 0x6000, 0x60f8, 0x6300, 0xc,
    ];
    for offset in offsets.drain(..) {
        guest.set(offset, 4, u64::from(u32::MAX));
        assert_eq!(guest.get(offset, 4), 0, "GICD {offset:#x}");
    }
    let cpu = &guest.cpus[0];
    for offset in [
        GICR_SETLPIR,
        GICR_CLRLPIR,
        GICR_PROPBASER,
        GICR_PENDBASER,
        GICR_INVLPIR,
        GICR_INVALLR,
        GICR_SYNCR,
        0x10,
        0x18,
        0x1_0084,
        0x1_0104,
        0x1_0420,
        0x1_0c08,
        0x1_0d00,
        0x1_0e00,
        0x1_ffe8,
    ] {
        cpu.set_redistributor(offset, 4, u64::from(u32::MAX));
        assert_eq!(cpu.redistributor(offset, 4), 0, "GICR {offset:#x}");
    }
    assert_eq!(guest.gic.save(), before);
}

#[test]
fn only_the_allowed_widths_reach_a_register() {
    let guest = Guest::new(GicV3Config {
        lpis: LpiSupport::Its,
        ..config(1)
    });
    guest.route(32, 0x1_0000_0001);
    guest.set_priority(0, 32, 0x80);
    let cpu = &guest.cpus[0];
    cpu.set_redistributor(GICR_PROPBASER, 8, 0x070f_ffff_ffff_ff9f);
    let before = guest.gic.save();
    for offset in 0..0x1_0000 {
        for width in [1, 2, 3, 4, 5, 8] {
            let aligned = offset % 4 == 0;
            let double = (0x6000..0xa000).contains(&offset) && offset % 8 == 0;
            let allowed = match width {
                1 => (0x400..0x800).contains(&offset) || (0x2000..0x2400).contains(&offset),
                2 => offset == GICD_SETSPI_NSR || offset == GICD_CLRSPI_NSR,
                4 => aligned,
                8 => double,
                _ => false,
            };
            if !allowed {
                assert_eq!(guest.get(offset, width), 0, "{width} bytes at GICD {offset:#x}");
                guest.set(offset, width, u64::MAX);
            }
        }
    }
    for offset in 0..0x2_0000 {
        for width in [1, 2, 3, 4, 5, 8] {
            let doubles = [
                GICR_TYPER,
                GICR_SETLPIR,
                GICR_CLRLPIR,
                GICR_PROPBASER,
                GICR_PENDBASER,
                GICR_INVLPIR,
                GICR_INVALLR,
            ];
            let allowed = match width {
                1 => (0x1_0400..0x1_0800).contains(&offset),
                4 => offset % 4 == 0,
                8 => doubles.contains(&offset),
                _ => false,
            };
            if !allowed {
                assert_eq!(cpu.redistributor(offset, width), 0, "{width} bytes at GICR {offset:#x}");
                cpu.set_redistributor(offset, width, u64::MAX);
            }
        }
    }
    assert_eq!(guest.gic.save(), before);
}

#[test]
fn a_message_reaches_its_spi_in_words_and_halves() {
    let guest = Guest::simple();
    guest.set_edge_triggered(0, 40, true);
    guest.set(GICD_SETSPI_NSR, 2, 40);
    assert_eq!(guest.cpus[0].acknowledge(), 40);
    guest.cpus[0].end(40);
    guest.set(GICD_SETSPI_NSR, 4, 40);
    guest.set(GICD_CLRSPI_NSR, 4, 40);
    assert!(!guest.cpus[0].irq(), "taken back before it was acknowledged");
    for nobody in [0, 16, 31, 96, 1019, 1023, 4096, 8191] {
        guest.set(GICD_SETSPI_NSR, 4, nobody);
    }
    assert!(!guest.cpus[0].irq());
}

#[test]
fn a_message_reaches_an_extended_spi() {
    let guest = Guest::ready(GicV3Config {
        extended_spis: 32,
        ..config(1)
    });
    let cpu = &guest.cpus[0];
    guest.set(GICD_SETSPI_NSR, 2, 4127);
    assert_eq!(cpu.acknowledge(), 4127);
    guest.set(GICD_CLRSPI_NSR, 2, 4127);
    cpu.end(4127);
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    for nobody in [4128, 5119, 5120] {
        guest.set(GICD_SETSPI_NSR, 4, nobody);
    }
    assert!(!cpu.irq());
}

#[test]
fn a_message_to_a_level_sensitive_spi_holds_it_until_the_other_message() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    guest.set(GICD_SETSPI_NSR, 4, 40);
    guest.set(GICD_SETSPI_NSR, 4, 40);
    assert_eq!(cpu.acknowledge(), 40);
    assert!(guest.bit(Array::SetPending, 0, 40), "active and pending");
    cpu.end(40);
    assert!(cpu.irq());
    guest.set(GICD_CLRSPI_NSR, 4, 40);
    assert!(!cpu.irq());
    guest.set(GICD_CLRSPI_NSR, 4, 40);
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    // A message that came while it was level-sensitive is let go of by one that comes later.
    guest.set(GICD_SETSPI_NSR, 4, 40);
    guest.set_edge_triggered(0, 40, true);
    guest.set(GICD_CLRSPI_NSR, 4, 40);
    guest.set_edge_triggered(0, 40, false);
    assert!(!cpu.irq());
}

#[test]
fn without_message_based_spis_the_registers_do_nothing() {
    let guest = Guest::ready(GicV3Config {
        message_based_spis: false,
        ..config(1)
    });
    guest.set(GICD_SETSPI_NSR, 4, 40);
    assert!(!guest.cpus[0].irq());
}

#[test]
fn every_cpu_sleeps_and_wakes_on_its_own() {
    let guest = Guest::ready(config(2));
    let [cpu, other] = &guest.cpus[..] else { panic!() };
    assert_eq!(
        Guest::new(config(1)).cpus[0].redistributor(GICR_WAKER, 4),
        0b110,
        "asleep after a reset"
    );
    cpu.set_redistributor(GICR_WAKER, 4, u64::from(u32::MAX));
    assert_eq!(cpu.redistributor(GICR_WAKER, 4), 0b110);
    assert_eq!(other.redistributor(GICR_WAKER, 4), 0);
    guest.set_bit(Array::SetPending, 0, 20);
    guest.set_bit(Array::SetPending, 1, 20);
    assert!(!cpu.irq() && other.irq(), "nothing is forwarded to who sleeps");
    assert_eq!(
        (cpu.acknowledge(), cpu.read(SysReg::ICC_HPPIR1_EL1)),
        (SPURIOUS, SPURIOUS)
    );
    cpu.set_redistributor(GICR_WAKER, 4, 0);
    assert!(cpu.irq());
    assert_eq!(cpu.acknowledge(), 20);
}

#[test]
fn who_sleeps_asks_to_be_woken() {
    use devisor::interrupt::level_from_fn;
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    let guest = Guest::ready(config(1));
    let wake = Arc::new(AtomicBool::new(false));
    let (pin, first) = (wake.clone(), AtomicBool::new(true));
    let line = level_from_fn(move |up| {
        if first.swap(false, SeqCst) {
            return Err(std::io::Error::other("not now"));
        }
        pin.store(up, SeqCst);
        Ok(())
    });
    let cpu = &guest.cpus[0];
    cpu.set_redistributor(GICR_WAKER, 4, 2);
    guest.set_bit(Array::SetPending, 0, 40);
    assert!(guest.gic.connect_wake_request(CpuId(0), Box::new(line)).unwrap());
    assert!(!wake.load(SeqCst), "refused");
    guest.gic.retry();
    assert!(wake.load(SeqCst) && !cpu.irq(), "it was waiting already");
    cpu.set_redistributor(GICR_WAKER, 4, 0);
    assert!(!wake.load(SeqCst) && cpu.irq());
    guest.set(GICD_CTLR, 4, 1);
    cpu.set_redistributor(GICR_WAKER, 4, 2);
    assert!(!wake.load(SeqCst), "its group is not forwarded");
    guest.set(GICD_CTLR, 4, 3);
    assert!(wake.load(SeqCst));
    let second = devisor::interrupt::NoInterrupt;
    assert!(!guest.gic.connect_wake_request(CpuId(0), Box::new(second)).unwrap());
}

/// GICD_CTLR.E1NWF is not there, so nobody who sleeps is picked.
#[test]
fn an_spi_for_any_cpu_wakes_nobody_and_goes_to_the_first_that_is_awake() {
    use devisor::interrupt::level_from_fn;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    };
    const E1NWF: u64 = 1 << 7;

    let guest = Guest::ready(config(2));
    guest.set(GICD_CTLR, 4, E1NWF | 3);
    assert_eq!(guest.get(GICD_CTLR, 4) & E1NWF, 0);
    let requests = Arc::new(AtomicU32::new(0));
    for (number, cpu) in (0..).zip(&guest.cpus) {
        let requests = requests.clone();
        let line = level_from_fn(move |up| {
            requests.fetch_add(u32::from(up), SeqCst);
            Ok(())
        });
        assert!(guest.gic.connect_wake_request(CpuId(number), Box::new(line)).unwrap());
        cpu.set_redistributor(GICR_WAKER, 4, 2);
    }
    guest.route(40, ONE_OF_N);
    guest.set_bit(Array::SetPending, 0, 40);
    assert_eq!(requests.load(SeqCst), 0);
    assert!(guest.bit(Array::SetPending, 0, 40), "it waits");
    guest.cpus[1].set_redistributor(GICR_WAKER, 4, 0);
    assert!(guest.cpus[1].irq());
    // One that it waits for falls asleep again: it waits for anyone, and asks nobody to wake.
    guest.cpus[1].set_redistributor(GICR_WAKER, 4, 2);
    assert!(!guest.cpus[1].irq());
    assert_eq!(requests.load(SeqCst), 0);
    guest.cpus[0].set_redistributor(GICR_WAKER, 4, 0);
    assert_eq!(guest.cpus[0].acknowledge(), 40);
    // One that has a CPU of its own asks that one.
    guest.route(41, 1);
    guest.set_bit(Array::SetPending, 0, 41);
    assert_eq!(requests.load(SeqCst), 1);
}

/// As EDK2's driver does, which leaves GICR_WAKER alone.
#[test]
fn a_guest_that_never_writes_gicr_waker_is_interrupted_where_redistributors_start_awake() {
    for redistributors_awake in [true, false] {
        let guest = Guest::new(GicV3Config {
            redistributors_awake,
            ..config(2)
        });
        let start = || {
            guest.set(GICD_CTLR, 4, 3);
            guest.configure(0, 40);
            let cpu = &guest.cpus[0];
            cpu.write(SysReg::ICC_PMR_EL1, 0xff);
            cpu.write(SysReg::ICC_IGRPEN1_EL1, 1);
            guest.set(GICD_SETSPI_NSR, 4, 40);
            (cpu.redistributor(GICR_WAKER, 4), cpu.acknowledge())
        };
        let right = match redistributors_awake {
            true => (0, 40),
            false => (0b110, SPURIOUS),
        };
        assert_eq!(start(), right);
        // Whatever the guest has made of it.
        let asleep = u64::from(redistributors_awake) << 1;
        guest
            .cpus
            .iter()
            .for_each(|cpu| cpu.set_redistributor(GICR_WAKER, 4, asleep));
        guest.gic.reset();
        assert_eq!(start(), right, "after a reset");
    }
}
