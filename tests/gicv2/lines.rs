//! Lines in, outputs out, and the hook that tells when the guest has finished.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        CpuId, Ppi, Spi,
        gicv2::{CpuOutputs, FinishedHook, GicV2, GicV2Config, GicV2Error},
    },
    bus::BusDevice,
    interrupt::{EdgeToLevel, Interrupt, LevelInterrupt, LevelOutput, NoInterrupt, level_from_fn},
};
use std::{
    io,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

fn config(cpus: u32, spis: u32, priority_bits: u32) -> GicV2Config {
    GicV2Config {
        cpus,
        spis,
        priority_bits,
    }
}

fn silent(cpus: u32) -> Vec<CpuOutputs> {
    let silent = |_| CpuOutputs {
        irq: Box::new(NoInterrupt),
        fiq: Box::new(NoInterrupt),
    };
    (0..cpus).map(silent).collect()
}

#[test]
fn configurations_that_no_gicv2_can_have_are_refused() {
    for (config, error) in [
        (config(0, 32, 5), GicV2Error::Cpus(0)),
        (config(9, 32, 5), GicV2Error::Cpus(9)),
        (config(1, 33, 5), GicV2Error::Spis(33)),
        (config(1, 992, 5), GicV2Error::Spis(992)),
        (config(1, 1024, 5), GicV2Error::Spis(1024)),
        (config(1, u32::MAX, 5), GicV2Error::Spis(u32::MAX)),
        (config(1, 32, 3), GicV2Error::PriorityBits(3)),
        (config(1, 32, 9), GicV2Error::PriorityBits(9)),
        (config(2, 32, 5), GicV2Error::Outputs { outputs: 1, cpus: 2 }),
    ] {
        assert_eq!(GicV2::new(config, silent(1)).map(|_| ()), Err(error));
    }
    for config in [config(1, 0, 4), config(8, 960, 8), config(8, 988, 8)] {
        assert!(GicV2::new(config, silent(config.cpus)).is_ok());
    }
}

#[test]
fn parts_that_do_not_exist_are_refused() {
    let gic = GicV2::new(config(2, 32, 5), silent(2)).unwrap();
    let no_spi = |spi| {
        Err(GicV2Error::NoSuchSpi {
            spi: Spi(spi),
            spis: 32,
        })
    };
    let no_cpu = Err(GicV2Error::NoSuchCpu { cpu: CpuId(2), cpus: 2 });
    for spi in [32, u32::MAX] {
        assert_eq!(gic.level_line(Spi(spi)).map(|_| ()), no_spi(spi));
        assert_eq!(gic.edge_line(Spi(spi)).map(|_| ()), no_spi(spi));
        assert_eq!(gic.on_finished(Spi(spi), || ()).map(|_| ()), no_spi(spi));
    }
    assert_eq!(
        gic.ppi_line(CpuId(1), Ppi(16)).map(|_| ()),
        Err(GicV2Error::NoSuchPpi(Ppi(16)))
    );
    assert_eq!(gic.ppi_line(CpuId(2), Ppi(0)).map(|_| ()), no_cpu);
    assert_eq!(gic.distributor(CpuId(2)).map(|_| ()), no_cpu);
    assert_eq!(gic.cpu_interface(CpuId(2)).map(|_| ()), no_cpu);
    assert_eq!(
        no_spi(40).unwrap_err().to_string(),
        "SPI 40: this GIC has SPIs 0 to 31, 32 in all"
    );
}

#[test]
fn several_handles_of_one_line_are_a_wired_or_and_dropping_one_lets_go() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let (uart, clock) = (
        guest.gic.level_line(Spi(1)).unwrap(),
        guest.gic.level_line(Spi(1)).unwrap(),
    );
    uart.trigger().unwrap();
    uart.trigger().unwrap();
    clock.trigger().unwrap();
    uart.clear().unwrap();
    assert!(cpu.irq(), "the clock still holds it up");
    uart.clear().unwrap();
    assert!(cpu.irq(), "letting go twice lets nobody else go");
    drop(clock);
    assert!(!cpu.irq());
    uart.trigger().unwrap();
    assert!(cpu.irq());
}

#[test]
fn a_pulse_is_latched_also_while_the_line_is_up() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_edge_triggered(33);
    let (level, edge) = (
        guest.gic.level_line(Spi(1)).unwrap(),
        guest.gic.edge_line(Spi(1)).unwrap(),
    );
    level.trigger().unwrap();
    cpu.end(cpu.acknowledge());
    assert!(!cpu.irq());
    edge.trigger().unwrap();
    assert_eq!(cpu.acknowledge(), 33);
}

#[test]
fn a_pulse_on_a_level_sensitive_interrupt_is_not_lost() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    guest.gic.edge_line(Spi(1)).unwrap().trigger().unwrap();
    let acknowledged = cpu.acknowledge();
    assert_eq!(acknowledged, 33);
    cpu.end(acknowledged);
    assert_eq!(cpu.acknowledge(), SPURIOUS, "once");
}

#[test]
fn an_output_may_call_back_into_the_gic() {
    // A vCPU that takes its interrupt the moment it is signalled.
    let slot: Arc<OnceLock<GicV2>> = Arc::default();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let irq = {
        let (slot, taken) = (Arc::clone(&slot), Arc::clone(&taken));
        level_from_fn(move |up| {
            if let (true, Some(gic)) = (up, slot.get()) {
                let mut iar = [0; 4];
                let cpu = gic.cpu_interface(CpuId(0)).unwrap();
                cpu.read(GICC_IAR, &mut iar);
                cpu.write(GICC_EOIR, &iar);
                taken.lock().unwrap().push(u32::from_le_bytes(iar));
            }
            Ok(())
        })
    };
    let outputs = CpuOutputs {
        irq: Box::new(irq),
        fiq: Box::new(NoInterrupt),
    };
    let gic = GicV2::new(GicV2Config::default(), vec![outputs]).unwrap();
    let _ = slot.set(gic.clone());
    let (distributor, cpu) = (gic.distributor(CpuId(0)).unwrap(), gic.cpu_interface(CpuId(0)).unwrap());
    distributor.write(GICD_ISENABLER + 4, &u32::MAX.to_le_bytes());
    distributor.write(GICD_CTLR, &1_u32.to_le_bytes());
    cpu.write(GICC_PMR, &0xff_u32.to_le_bytes());
    cpu.write(GICC_CTLR, &1_u32.to_le_bytes());
    for spi in [5, 6, 5] {
        gic.edge_line(Spi(spi)).unwrap().trigger().unwrap();
    }
    assert_eq!(*taken.lock().unwrap(), [37, 38, 37]);
}

#[test]
fn an_output_that_refuses_is_told_again_and_nothing_is_lost() {
    let (broken, level) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let irq = {
        let (broken, level) = (Arc::clone(&broken), Arc::clone(&level));
        level_from_fn(move |up| {
            if broken.load(SeqCst) {
                return Err(io::Error::other("not now"));
            }
            level.store(up, SeqCst);
            Ok(())
        })
    };
    let outputs = CpuOutputs {
        irq: Box::new(irq),
        fiq: Box::new(NoInterrupt),
    };
    let gic = GicV2::new(GicV2Config::default(), vec![outputs]).unwrap();
    let (distributor, cpu) = (gic.distributor(CpuId(0)).unwrap(), gic.cpu_interface(CpuId(0)).unwrap());
    distributor.write(GICD_ISENABLER + 4, &u32::MAX.to_le_bytes());
    distributor.write(GICD_CTLR, &1_u32.to_le_bytes());
    cpu.write(GICC_PMR, &0xff_u32.to_le_bytes());
    cpu.write(GICC_CTLR, &1_u32.to_le_bytes());

    let line = gic.level_line(Spi(1)).unwrap();
    line.trigger().unwrap();
    assert_eq!(gic.output_failures(CpuId(0)), Ok(1));
    line.trigger().unwrap();
    assert_eq!(
        gic.output_failures(CpuId(0)),
        Ok(2),
        "told again, though the line was up"
    );
    broken.store(false, SeqCst);
    line.trigger().unwrap();
    assert!(level.load(SeqCst));
}

/// A guest with so many CPUs whose inputs refuse to be told as often as the counter says.
fn refusing(cpus: u32) -> (Guest, Arc<AtomicU32>) {
    let refusals = Arc::new(AtomicU32::new(0));
    let refuse = Arc::clone(&refusals);
    let guest = Guest::with(config(cpus, 96, 5), move |_| {
        let refused = refuse.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if refused.is_ok() {
            Err(io::Error::other("not now"))
        } else {
            Ok(())
        }
    });
    guest.make_ready();
    (guest, refusals)
}

#[test]
fn a_retry_tells_each_output_what_it_refused() {
    let (guest, refusals) = refusing(2);
    let lines = [0, 1].map(|cpu| guest.gic.ppi_line(CpuId(cpu), Ppi(11)).unwrap());
    let failures = || [0, 1].map(|cpu| guest.gic.output_failures(CpuId(cpu)).unwrap());
    let are_up = || [0, 1].map(|cpu| guest.cpus[cpu].irq());
    refusals.store(3, SeqCst);
    for line in &lines {
        line.trigger().unwrap();
    }
    assert_eq!((failures(), are_up()), ([1, 1], [false; 2]));
    guest.gic.retry();
    assert_eq!((failures(), are_up()), ([2, 1], [false, true]), "one refuses again");
    guest.gic.retry();
    assert_eq!((failures(), are_up()), ([2, 1], [true; 2]));
    refusals.store(2, SeqCst);
    drop(lines);
    assert_eq!((failures(), are_up()), ([3, 2], [true; 2]));
    guest.gic.retry();
    guest.gic.retry();
    assert_eq!((failures(), are_up()), ([3, 2], [false; 2]));
}

#[test]
fn a_line_says_which_input_it_leads_to() {
    let gic = GicV2::new(config(2, 32, 5), silent(2)).unwrap();
    let private = gic.ppi_line(CpuId(1), Ppi(11)).unwrap();
    private.trigger().unwrap();
    assert_eq!(
        format!("{private:?}"),
        "LevelLine { input: INTID 27 of CPU 1, up: true, .. }"
    );
    let pulse = gic.edge_line(Spi(1)).unwrap();
    assert_eq!(format!("{pulse:?}"), "EdgeLine { input: INTID 33, .. }");
}

#[test]
fn a_line_that_was_raised_while_an_output_refused_is_down_when_its_cause_has_gone() {
    let (guest, refusals) = refusing(1);
    let cpu = &guest.cpus[0];
    let device = LevelOutput::new(guest.gic.level_line(Spi(1)).unwrap());
    refusals.store(1, SeqCst);
    device.drive(true).unwrap();
    assert!(!cpu.irq());
    device.drive(false).unwrap();
    guest.gic.edge_line(Spi(2)).unwrap().trigger().unwrap();
    assert_eq!(cpu.acknowledge(), 34);
    cpu.end(34);
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    assert!(!cpu.irq());
}

#[test]
fn a_line_that_is_raised_twice_while_an_output_refuses_stays_up() {
    let (guest, refusals) = refusing(1);
    let cpu = &guest.cpus[0];
    cpu.set(GICD_CTLR, 0);
    let (uart, clock) = (
        guest.gic.level_line(Spi(1)).unwrap(),
        guest.gic.level_line(Spi(1)).unwrap(),
    );
    uart.trigger().unwrap();
    refusals.store(2, SeqCst);
    cpu.set(GICD_CTLR, ENABLE_GRP0);
    uart.trigger().unwrap();
    assert!(!cpu.irq());
    clock.trigger().unwrap();
    clock.clear().unwrap();
    assert!(cpu.irq());
    assert_eq!(cpu.acknowledge(), 33);
}

#[test]
fn a_line_that_fell_while_an_output_refused_rises_again() {
    let (guest, refusals) = refusing(1);
    let cpu = &guest.cpus[0];
    let device = LevelOutput::new(guest.gic.level_line(Spi(1)).unwrap());
    device.drive(true).unwrap();
    refusals.store(1, SeqCst);
    device.drive(false).unwrap();
    device.drive(true).unwrap();
    assert_eq!(cpu.acknowledge(), 33);
}

#[test]
fn a_cpu_that_was_not_told_that_its_input_fell_is_told_when_it_finds_nothing() {
    let (guest, refusals) = refusing(1);
    let cpu = &guest.cpus[0];
    let line = guest.gic.level_line(Spi(1)).unwrap();
    line.trigger().unwrap();
    refusals.store(1, SeqCst);
    line.clear().unwrap();
    assert!(cpu.irq(), "it was not told");
    assert_eq!(cpu.acknowledge(), SPURIOUS);
    assert!(!cpu.irq(), "or it would come back for ever");
}

#[test]
fn a_hook_hears_each_end_of_its_interrupt() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let finished = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&finished);
    let hook = guest
        .gic
        .on_finished(Spi(8), move || _ = count.fetch_add(1, SeqCst))
        .unwrap();
    let (line, other) = (
        guest.gic.edge_line(Spi(8)).unwrap(),
        guest.gic.edge_line(Spi(7)).unwrap(),
    );

    line.trigger().unwrap();
    let acknowledged = cpu.acknowledge();
    assert_eq!(finished.load(SeqCst), 0);
    cpu.end(acknowledged);
    assert_eq!(finished.load(SeqCst), 1, "GICC_EOIR");
    cpu.end(acknowledged);
    assert_eq!(finished.load(SeqCst), 1, "it was not active any more");

    cpu.write(GICC_CTLR, ENABLE_GRP0 | EOI_MODE);
    line.trigger().unwrap();
    cpu.end(cpu.acknowledge());
    assert_eq!(finished.load(SeqCst), 1, "only the priority has dropped");
    cpu.write(GICC_DIR, 40);
    assert_eq!(finished.load(SeqCst), 2, "GICC_DIR");

    cpu.set_bit(GICD_ISACTIVER, 40);
    cpu.set(GICD_ICACTIVER + 4, u32::MAX);
    assert_eq!(finished.load(SeqCst), 3, "GICD_ICACTIVERn");

    other.trigger().unwrap();
    cpu.end(cpu.acknowledge());
    cpu.write(GICC_DIR, 39);
    assert_eq!(finished.load(SeqCst), 3, "another SPI");

    drop(hook);
    cpu.set_bit(GICD_ISACTIVER, 40);
    cpu.set_bit(GICD_ICACTIVER, 40);
    assert_eq!(finished.load(SeqCst), 3, "the hook is gone");
}

#[test]
fn a_level_that_is_held_outside_comes_back_until_its_device_is_satisfied() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    cpu.set_edge_triggered(40);
    let line = Arc::new(EdgeToLevel::new(guest.gic.edge_line(Spi(8)).unwrap()));
    let weak = Arc::downgrade(&line);
    let _hook = guest
        .gic
        .on_finished(Spi(8), move || weak.upgrade().unwrap().guest_done().unwrap())
        .unwrap();
    line.trigger().unwrap();
    for _ in 0..3 {
        let acknowledged = cpu.acknowledge();
        assert_eq!(acknowledged, 40);
        cpu.end(acknowledged);
        assert!(cpu.irq(), "the device is not satisfied");
    }
    let acknowledged = cpu.acknowledge();
    line.clear().unwrap();
    cpu.end(acknowledged);
    assert!(!cpu.irq());
}

#[test]
fn lines_of_many_threads_lose_nothing() {
    const DEVICES: u32 = 4;
    const REQUESTS: u32 = 2_000;
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    // Far more than it takes: a lost interrupt would wait for ever.
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait = || {
        assert!(Instant::now() < deadline, "an interrupt is lost");
        thread::yield_now();
    };
    // A device raises its line for a request and waits for the guest to see to it.
    let requests: Vec<_> = (0..DEVICES).map(|_| AtomicBool::new(false)).collect();
    let mut taken = [0; DEVICES as usize];
    let lines: Vec<_> = (0..DEVICES)
        .map(|spi| guest.gic.level_line(Spi(spi)).unwrap())
        .collect();
    thread::scope(|scope| {
        for (request, line) in requests.iter().zip(&lines) {
            scope.spawn(move || {
                for _ in 0..REQUESTS {
                    request.store(true, SeqCst);
                    line.trigger().unwrap();
                    while request.load(SeqCst) {
                        wait();
                    }
                }
            });
        }
        while taken.iter().sum::<u32>() < DEVICES * REQUESTS {
            if !cpu.irq() {
                wait();
                continue;
            }
            let acknowledged = cpu.acknowledge();
            if acknowledged == SPURIOUS {
                continue;
            }
            let device = acknowledged as usize - 32;
            lines[device].clear().unwrap();
            taken[device] += 1;
            cpu.end(acknowledged);
            requests[device].store(false, SeqCst);
        }
    });
    assert_eq!(taken, [REQUESTS; DEVICES as usize]);
    assert!(!cpu.irq());
    assert_eq!(cpu.acknowledge(), SPURIOUS);
}

#[test]
fn an_acknowledge_while_another_thread_tells_the_output_is_told_after_it() {
    let (telling, told) = (mpsc::channel(), mpsc::channel());
    let ends = Arc::new(Mutex::new((telling.0, told.1)));
    let guest = Guest::with(GicV2Config::default(), move |up| {
        if up {
            let (telling, told) = &*ends.lock().unwrap();
            telling.send(()).unwrap();
            told.recv().unwrap();
        }
        Ok(())
    });
    guest.make_ready();
    let cpu = &guest.cpus[0];
    let line = guest.gic.edge_line(Spi(0)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| line.trigger().unwrap());
        telling.1.recv().unwrap();
        // The device's thread is on its way to the CPU, and the guest does not wait for it.
        assert_eq!(cpu.acknowledge(), 32);
        told.0.send(()).unwrap();
    });
    assert!(!cpu.irq(), "the later level is told last");
}

#[test]
fn a_hook_may_take_itself_away_and_use_the_gic() {
    let guest = Guest::simple();
    let cpu = &guest.cpus[0];
    let slot: Arc<Mutex<Option<FinishedHook>>> = Arc::default();
    let (own, gic) = (Arc::clone(&slot), guest.gic.clone());
    let hook = guest.gic.on_finished(Spi(8), move || {
        drop(own.lock().unwrap().take());
        gic.edge_line(Spi(9)).unwrap().trigger().unwrap();
    });
    *slot.lock().unwrap() = Some(hook.unwrap());
    let line = guest.gic.edge_line(Spi(8)).unwrap();
    for expected in [[40, 41], [40, SPURIOUS]] {
        line.trigger().unwrap();
        for expected in expected {
            let acknowledged = cpu.acknowledge();
            assert_eq!(acknowledged, expected);
            cpu.end(acknowledged);
        }
    }
}

#[test]
fn the_gic_goes_when_the_last_handle_does() {
    let probe = Arc::new(());
    let held = Arc::clone(&probe);
    let irq = level_from_fn(move |_| {
        let _ = &held;
        Ok(())
    });
    let outputs = CpuOutputs {
        irq: Box::new(irq),
        fiq: Box::new(NoInterrupt),
    };
    let gic = GicV2::new(GicV2Config::default(), vec![outputs]).unwrap();
    let line = gic.level_line(Spi(0)).unwrap();
    let hook = gic.on_finished(Spi(0), || ()).unwrap();
    drop(gic);
    line.trigger().unwrap();
    assert_eq!(Arc::strong_count(&probe), 2, "a line keeps it");
    drop(line);
    assert_eq!(Arc::strong_count(&probe), 1, "a hook does not");
    drop(hook);
}
