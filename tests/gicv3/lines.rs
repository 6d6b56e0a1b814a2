//! What devices and embedders plug into the GIC.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        CpuId, IntId, Ppi, Spi,
        gicv3::{Affinity, CpuOutputs, GicV3, GicV3Config, GicV3Error, LpiSupport},
    },
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, NoInterrupt, RequesterId},
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
};

fn outputs(cpus: u32) -> Vec<CpuOutputs> {
    let output = |_| CpuOutputs {
        irq: Box::new(NoInterrupt),
        fiq: Box::new(NoInterrupt),
    };
    (0..cpus).map(output).collect()
}

#[test]
fn configurations_that_no_gicv3_can_have_are_refused() {
    let refusal = |change: fn(&mut GicV3Config)| {
        let mut config = config(2);
        change(&mut config);
        let cpus = config.cpus();
        GicV3::new(config, outputs(cpus)).unwrap_err().to_string()
    };
    assert_eq!(
        refusal(|config| config.affinities.clear()),
        "0 CPUs: a GICv3 has 1 to 512"
    );
    assert_eq!(
        refusal(|config| *config = GicV3Config::new(100_000)),
        "513 CPUs: a GICv3 has 1 to 512"
    );
    assert_eq!(
        refusal(|config| config.affinities[1] = Affinity(0)),
        "two CPUs at affinity 0.0.0.0: each needs one of its own"
    );
    for regions in [vec![], vec![1], vec![3], vec![2, 0], vec![1, u32::MAX]] {
        let mut config = config(2);
        config.redistributor_regions = regions;
        assert!(matches!(
            GicV3::new(config, outputs(2)),
            Err(GicV3Error::Regions { .. })
        ));
    }
    assert!(refusal(|config| config.spis = 33).starts_with("33 SPIs"));
    assert!(refusal(|config| config.spis = 992).starts_with("992 SPIs"));
    assert!(refusal(|config| config.extended_spis = 1056).starts_with("1056 extended SPIs"));
    assert!(refusal(|config| config.extended_ppis = 16).starts_with("16 extended PPIs"));
    assert!(refusal(|config| config.priority_bits = 3).starts_with("3 bits"));
    assert!(refusal(|config| config.priority_bits = 9).starts_with("9 bits"));
    assert!(refusal(|config| config.lpis = LpiSupport::Its).contains("without guest memory"));
    assert!(GicV3::new(config(2), outputs(1)).is_err());
}

#[test]
fn parts_that_do_not_exist_are_refused() {
    let gic = GicV3::new(
        GicV3Config {
            extended_spis: 32,
            extended_ppis: 32,
            ..config(2)
        },
        outputs(2),
    )
    .unwrap();
    for spi in [0, 63, 4064, 4095] {
        assert!(gic.level_line(Spi(spi)).is_ok() && gic.edge_line(Spi(spi)).is_ok());
    }
    for spi in [64, 987, 1024, 4063, 4096, u32::MAX] {
        assert!(gic.level_line(Spi(spi)).is_err(), "SPI {spi}");
        assert!(gic.edge_line(Spi(spi)).is_err() && gic.on_finished(Spi(spi), || {}).is_err());
    }
    for ppi in [0, 15, 1040, 1071] {
        assert!(gic.ppi_line(CpuId(1), Ppi(ppi)).is_ok(), "PPI {ppi}");
    }
    for ppi in [16, 1039, 1072, u32::MAX] {
        assert!(gic.ppi_line(CpuId(1), Ppi(ppi)).is_err(), "PPI {ppi}");
    }
    assert!(gic.ppi_line(CpuId(2), Ppi(0)).is_err());
    assert!(gic.redistributor(CpuId(2)).is_err() && gic.cpu_interface(CpuId(2)).is_err());
    assert_eq!(
        gic.send_lpi(CpuId(0), IntId(8192)),
        Err(GicV3Error::NoSuchLpi { intid: IntId(8192) })
    );
}

#[test]
fn several_handles_of_one_line_are_a_wired_or_and_dropping_one_lets_go() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let [one, two] = [0, 1].map(|_| guest.gic.level_line(Spi(3)).unwrap());
    one.trigger().unwrap();
    two.trigger().unwrap();
    one.clear().unwrap();
    one.clear().unwrap();
    assert!(cpu.irq());
    drop(two);
    assert!(!cpu.irq());
    let ppi = guest.gic.ppi_line(CpuId(0), Ppi(11)).unwrap();
    ppi.trigger().unwrap();
    assert_eq!(cpu.acknowledge(), 27);
    cpu.end(27);
    assert!(cpu.irq());
    drop(ppi);
    assert!(!cpu.irq());
}

#[test]
fn a_pulse_on_a_level_sensitive_interrupt_is_not_lost() {
    let guest = Guest::simple();
    guest.gic.edge_line(Spi(3)).unwrap().trigger().unwrap();
    assert_eq!(guest.cpus[0].acknowledge(), 35);
    guest.cpus[0].end(35);
    assert!(!guest.cpus[0].irq());
}

#[test]
fn messages_of_devices_become_spis() {
    const GICD: u64 = 0x0800_0000;
    let guest = Guest::simple();
    let messages = guest.gic.spi_messages(GICD).unwrap();
    let send = |offset, data| {
        let address = GICD + offset;
        messages.send(RequesterId(0), MsiMessage { address, data })
    };
    guest.set_edge_triggered(0, 40, true);
    send(GICD_SETSPI_NSR, 40).unwrap();
    assert_eq!(guest.cpus[0].acknowledge(), 40);
    guest.cpus[0].end(40);
    assert!(!guest.cpus[0].irq());
    send(GICD_SETSPI_NSR, 41).unwrap();
    assert!(guest.cpus[0].irq());
    send(GICD_CLRSPI_NSR, 41).unwrap();
    assert!(!guest.cpus[0].irq(), "level-sensitive");
    for (offset, data) in [
        (0, 40),
        (GICD_SETSPI_NSR + 4, 40),
        (GICD_SETSPI_NSR, 31),
        (GICD_SETSPI_NSR, 96),
    ] {
        let refusal = send(offset, data).unwrap_err();
        assert_eq!(refusal.kind(), io::ErrorKind::NotFound);
        assert!(refusal.to_string().contains("0x8000040"), "{refusal}");
    }
    assert!(guest.gic.spi_messages(GICD + 0x1000).is_err());
    let without = GicV3Config {
        message_based_spis: false,
        ..config(1)
    };
    assert!(Guest::new(without).gic.spi_messages(GICD).is_err());
}

#[test]
fn a_rise_latches_only_what_is_edge_triggered() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let line = guest.gic.level_line(Spi(3)).unwrap();
    line.trigger().unwrap();
    line.clear().unwrap();
    assert!(!cpu.irq(), "a level that has gone");
    guest.set_edge_triggered(0, 35, true);
    line.trigger().unwrap();
    line.clear().unwrap();
    assert!(cpu.irq());
    guest.set_bit(Array::ClearPending, 0, 35);
    assert!(!cpu.irq());
    guest.set_edge_triggered(0, 35, false);
    line.trigger().unwrap();
    guest.set_bit(Array::ClearPending, 0, 35);
    assert!(cpu.irq(), "a level cannot be taken back by the guest");
}

#[test]
fn a_hook_hears_when_the_guest_has_finished_by_any_way() {
    let guest = Guest::ready(GicV3Config {
        extended_spis: 32,
        ..config(1)
    });
    let cpu = &guest.cpus[0];
    for (spi, intid) in [(8, 40), (4065, 4097)] {
        let finished = Arc::new(AtomicU32::new(0));
        let heard = finished.clone();
        let hook = guest
            .gic
            .on_finished(Spi(spi), move || _ = heard.fetch_add(1, SeqCst))
            .unwrap();
        for end in 0..2 {
            guest.set_bit(Array::SetPending, 0, intid);
            assert_eq!(cpu.acknowledge(), u64::from(intid));
            assert_eq!(finished.load(SeqCst), end);
            if end == 0 {
                cpu.end(intid.into());
            } else {
                guest.set_bit(Array::ClearActive, 0, intid);
                cpu.end(intid.into());
            }
            assert_eq!(finished.load(SeqCst), end + 1);
        }
        drop(hook);
        guest.set_bit(Array::SetPending, 0, intid);
        cpu.acknowledge();
        cpu.end(intid.into());
        assert_eq!(finished.load(SeqCst), 2);
    }
}

/// A guest whose CPUs' inputs refuse to be told while the flag says so.
fn refusing(config: GicV3Config) -> (Guest, Arc<AtomicBool>) {
    let refusing = Arc::new(AtomicBool::new(false));
    let refuse = refusing.clone();
    let guest = Guest::with(config, move |_| match refuse.load(SeqCst) {
        true => Err(io::Error::other("not now")),
        false => Ok(()),
    });
    guest.make_ready();
    (guest, refusing)
}

#[test]
fn an_output_that_refuses_is_told_again_and_nothing_is_lost() {
    let (guest, refusing) = refusing(GicV3Config {
        lpis: LpiSupport::Direct,
        ..config(1)
    });
    guest.make_lpis_ready();
    let cpu = &guest.cpus[0];
    let (level, edge) = (
        guest.gic.level_line(Spi(3)).unwrap(),
        guest.gic.edge_line(Spi(4)).unwrap(),
    );
    let ppi = guest.gic.ppi_line(CpuId(0), Ppi(3)).unwrap();
    guest.set_edge_triggered(0, 37, true);
    let messages = guest.gic.spi_messages(0).unwrap();
    let message = MsiMessage {
        address: GICD_SETSPI_NSR,
        data: 37,
    };
    let causes: [&dyn Fn(); 5] = [
        &|| level.trigger().unwrap(),
        &|| ppi.trigger().unwrap(),
        &|| edge.trigger().unwrap(),
        &|| messages.send(RequesterId(0), message).unwrap(),
        &|| guest.gic.send_lpi(CpuId(0), IntId(8192)).unwrap(),
    ];
    refusing.store(true, SeqCst);
    for (raise, failures) in causes.iter().zip(1..) {
        raise();
        assert_eq!(guest.gic.output_failures(CpuId(0)), Ok(failures));
    }
    guest.gic.retry();
    assert_eq!(guest.gic.output_failures(CpuId(0)), Ok(6));
    assert!(!cpu.irq());
    refusing.store(false, SeqCst);
    guest.gic.retry();
    assert!(cpu.irq());
    guest.gic.retry();
    assert_eq!(guest.gic.output_failures(CpuId(0)), Ok(6), "all was told");
    for intid in [19, 35] {
        assert_eq!(cpu.acknowledge(), intid);
        if intid == 19 {
            ppi.clear().unwrap();
        } else {
            level.clear().unwrap();
        }
        cpu.end(intid);
    }
    for intid in [36, 37] {
        assert_eq!(cpu.acknowledge(), intid);
        cpu.end(intid);
    }
    refusing.store(true, SeqCst);
    assert_eq!(cpu.acknowledge(), 8192);
    assert!(cpu.irq(), "it refused to go down");
    refusing.store(false, SeqCst);
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    assert!(!cpu.irq(), "told again where there was nothing");
}

#[test]
fn a_device_that_asserts_again_has_a_refused_output_told() {
    let (guest, refusing) = refusing(config(1));
    let cpu = &guest.cpus[0];
    let spi = guest.gic.level_line(Spi(3)).unwrap();
    let ppi = guest.gic.ppi_line(CpuId(0), Ppi(3)).unwrap();
    for (line, intid) in [(spi, 35), (ppi, 19)] {
        line.trigger().unwrap();
        assert_eq!(cpu.acknowledge(), intid);
        refusing.store(true, SeqCst);
        cpu.end(intid);
        assert!(!cpu.irq(), "it refused to go up");
        line.trigger().unwrap();
        assert!(!cpu.irq());
        refusing.store(false, SeqCst);
        line.trigger().unwrap();
        assert!(cpu.irq());
        line.clear().unwrap();
        assert!(!cpu.irq());
    }
}

#[test]
fn a_retry_tells_every_cpu() {
    let (guest, refusing) = refusing(config(3));
    for (intid, cpu) in [(40, 0), (41, 1), (42, 2)] {
        guest.route(intid, cpu);
    }
    refusing.store(true, SeqCst);
    for intid in [40, 41, 42] {
        guest.set_bit(Array::SetPending, 0, intid);
    }
    let told = || guest.cpus.iter().map(Cpu::irq).collect::<Vec<_>>();
    assert_eq!(told(), [false; 3], "they refused to go up");
    refusing.store(false, SeqCst);
    guest.gic.retry();
    assert_eq!(told(), [true; 3]);
}

#[test]
fn an_edge_that_comes_again_has_a_refused_output_told() {
    let (guest, refusing) = refusing(config(1));
    let line = guest.gic.edge_line(Spi(8)).unwrap();
    refusing.store(true, SeqCst);
    line.trigger().unwrap();
    assert!(!guest.cpus[0].irq(), "it refused to go up");
    refusing.store(false, SeqCst);
    line.trigger().unwrap();
    assert!(guest.cpus[0].irq());
}

#[test]
fn a_message_that_comes_again_has_a_refused_output_told() {
    use devisor::interrupt::{MsiMessage, MsiSink, RequesterId};

    let (guest, refusing) = refusing(config(1));
    guest.set_edge_triggered(0, 40, true);
    let messages = guest.gic.spi_messages(0x0800_0000).unwrap();
    let send = || {
        let (address, data) = (0x0800_0040, 40);
        messages.send(RequesterId(8), MsiMessage { address, data }).unwrap();
    };
    refusing.store(true, SeqCst);
    send();
    assert!(!guest.cpus[0].irq(), "it refused to go up");
    refusing.store(false, SeqCst);
    send();
    assert!(guest.cpus[0].irq());
}

#[test]
fn an_output_may_call_back_into_the_gic() {
    use devisor::interrupt::level_from_fn;
    use std::sync::OnceLock;

    let gic: Arc<OnceLock<GicV3>> = Arc::default();
    let handle = gic.clone();
    let outputs = CpuOutputs {
        irq: Box::new(level_from_fn(move |_| {
            handle.get().map(|gic| gic.save());
            Ok(())
        })),
        fiq: Box::new(NoInterrupt),
    };
    let new = GicV3::new(config(1), vec![outputs]).unwrap();
    assert!(gic.set(new.clone()).is_ok());
    let cpu = new.cpu_interface(CpuId(0)).unwrap();
    let mut state = new.save();
    state.cpus[0].asleep = false;
    state.cpus[0].enabled_groups = 2;
    state.cpus[0].priority_mask = 0xf8;
    state.control = 2;
    for place in [20, 2] {
        state.cpus[0].private[place].enabled = true;
        state.cpus[0].private[place].group = devisor::backends::irqchip::Group::One;
    }
    new.restore(&state).unwrap();
    let line = new.ppi_line(CpuId(0), Ppi(4)).unwrap();
    line.trigger().unwrap();
    assert_eq!(
        cpu.read_sysreg(devisor::backends::irqchip::gicv3::SysReg::ICC_IAR1_EL1),
        Some(20)
    );
}

#[test]
fn lines_and_sgis_of_many_threads_lose_nothing() {
    const PULSES: u32 = 2_000;
    let guest = Guest::ready(config(2));
    for intid in 32..34 {
        guest.set_edge_triggered(0, intid, true);
        guest.route(intid, u64::from(intid - 32));
    }
    let taken: [AtomicU32; 4] = Default::default();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (number, cpu) in guest.cpus.iter().enumerate() {
            let (taken, done) = (&taken, &done);
            scope.spawn(move || {
                loop {
                    let last = done.load(SeqCst);
                    match cpu.acknowledge() {
                        SPURIOUS if last => break,
                        SPURIOUS => std::thread::yield_now(),
                        intid => {
                            taken[number + if intid >= 32 { 2 } else { 0 }].fetch_add(1, SeqCst);
                            cpu.end(intid);
                        }
                    }
                }
            });
        }
        let (sender, gic) = (&guest.cpus[0].interface, &guest.gic);
        // Each waits until it is taken: none is merged into another.
        let waits = |counter: usize, count: u32| {
            while taken[counter].load(SeqCst) < count {
                std::thread::yield_now();
            }
        };
        let senders: Vec<_> = [0, 1, 2, 3]
            .into_iter()
            .map(|counter| {
                scope.spawn(move || {
                    let line = gic.edge_line(Spi(counter as u32 % 2)).unwrap();
                    for count in 1..=PULSES {
                        match counter {
                            0 | 1 => {
                                let list = 1 << counter;
                                let sgi1r = devisor::backends::irqchip::gicv3::SysReg::ICC_SGI1R_EL1;
                                sender.write_sysreg(sgi1r, list).unwrap();
                            }
                            _ => line.trigger().unwrap(),
                        }
                        waits(counter, count);
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        done.store(true, SeqCst);
    });
    assert_eq!(taken.map(|taken| taken.into_inner()), [PULSES; 4]);
}

#[test]
fn the_gic_goes_when_the_last_handle_does() {
    let guest = Guest::simple();
    let line = guest.gic.level_line(Spi(0)).unwrap();
    let cpus = guest.cpus;
    drop((guest.gic, guest.distributor));
    line.trigger().unwrap();
    assert!(cpus[0].irq());
    drop(cpus);
    line.clear().unwrap();
}
