//! What an interrupt costs on a GICv3, beside a GICv2: from an SPI's line to the CPU's input, an SGI to many CPUs, and the
//! acknowledge and end of each kind. None of it must depend on how many SPIs and LPIs there are, nor on how many others
//! are pending; an SGI costs as much as it has targets.
//!
//! A line that is up cannot be raised again, so a raise alone is measured over many GICs: each of their CPUs hears one,
//! and what lowers them again is not timed.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use devisor::{
    backends::irqchip::{
        CpuId, IntId, Spi, gicv2,
        gicv3::{CpuInterface, CpuOutputs, GicV3, GicV3Config, LevelLine, LpiSupport, SysReg},
    },
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt, level_from_fn},
};
use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// GICs that are raised in turn: enough to hide what reading the time costs, few enough to stay in a cache.
const GICS: usize = 64;
const RAM: u64 = 0x4000_0000;
const PENDING: u64 = RAM + 0x10_0000;

type Input = Arc<AtomicBool>;

fn outputs(cpus: u32) -> (Vec<CpuOutputs>, Vec<Input>) {
    let inputs: Vec<Input> = (0..cpus).map(|_| Input::default()).collect();
    let output = |input: &Input| {
        let pin = Arc::clone(input);
        CpuOutputs {
            irq: Box::new(level_from_fn(move |up| {
                pin.store(up, Relaxed);
                Ok(())
            })),
            fiq: Box::new(NoInterrupt),
        }
    };
    (inputs.iter().map(output).collect(), inputs)
}

/// A GICv2 on which every SPI is enabled and goes to CPU 0, at the same priority but for the last, which comes first.
fn gicv2(spis: u32) -> (gicv2::GicV2, Vec<Input>) {
    let (outputs, inputs) = outputs(1);
    let config = gicv2::GicV2Config {
        spis,
        ..gicv2::GicV2Config::default()
    };
    let gic = gicv2::GicV2::new(config, outputs).unwrap();
    let distributor = gic.distributor(CpuId(0)).unwrap();
    for word in 1..=spis.div_ceil(32) {
        distributor.write(0x100 + u64::from(word) * 4, &u32::MAX.to_le_bytes());
    }
    for intid in 32..32 + u64::from(spis) {
        distributor.write(0x400 + intid, &[0xa0]);
    }
    distributor.write(0x400 + 31 + u64::from(spis), &[0x80]);
    distributor.write(0x000, &1_u32.to_le_bytes());
    let cpu = gic.cpu_interface(CpuId(0)).unwrap();
    cpu.write(0x004, &0xff_u32.to_le_bytes());
    cpu.write(0x000, &1_u32.to_le_bytes());
    (gic, inputs)
}

/// The same GIC of version 3, with so many CPUs, all awake and with their SGIs enabled, and with LPIs of which all are
/// enabled.
fn gicv3(cpus: u32, spis: u32) -> (GicV3, Vec<Input>) {
    let (outputs, inputs) = outputs(cpus);
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x20_0000)]).unwrap();
    memory.write_slice(&[0xa1; 0xe000], GuestAddress(RAM)).unwrap();
    let config = GicV3Config {
        spis,
        lpis: LpiSupport::Direct,
        ..GicV3Config::new(cpus)
    };
    let gic = GicV3::with_lpis(config, outputs, Arc::new(memory)).unwrap();
    let distributor = gic.distributor();
    for word in 1..=spis.div_ceil(32) {
        distributor.write(0x080 + u64::from(word) * 4, &u32::MAX.to_le_bytes());
        distributor.write(0x100 + u64::from(word) * 4, &u32::MAX.to_le_bytes());
    }
    for intid in 32..32 + u64::from(spis) {
        distributor.write(0x400 + intid, &[0xa0]);
    }
    distributor.write(0x400 + 31 + u64::from(spis), &[0x80]);
    distributor.write(0x000, &2_u32.to_le_bytes());
    for cpu in (0..cpus).map(CpuId) {
        let redistributor = gic.redistributor(cpu).unwrap();
        redistributor.write(0x14, &0_u32.to_le_bytes());
        redistributor.write(0x1_0080, &u32::MAX.to_le_bytes());
        redistributor.write(0x1_0100, &u32::MAX.to_le_bytes());
        redistributor.write(0x70, &(RAM | 15).to_le_bytes());
        redistributor.write(0x78, &(PENDING | 1 << 62).to_le_bytes());
        if cpu.0 == 0 {
            redistributor.write(0x00, &1_u32.to_le_bytes());
        }
        let interface = gic.cpu_interface(cpu).unwrap();
        interface.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
        interface.write_sysreg(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();
    }
    (gic, inputs)
}

/// Raises each of the lines in turn, and lowers them again outside of the time.
fn time_raises(raises: u64, lines: &[(LevelLine, Input)]) -> Duration {
    let mut time = Duration::ZERO;
    let mut left = raises as usize;
    while left > 0 {
        let round = &lines[..left.min(GICS)];
        let start = Instant::now();
        for (line, _) in round {
            line.trigger().unwrap();
        }
        time += start.elapsed();
        for (line, irq) in round {
            assert!(irq.load(Relaxed));
            line.clear().unwrap();
            assert!(!irq.load(Relaxed));
        }
        left -= round.len();
    }
    time
}

/// From the line to the CPU's input, and nothing else.
fn raise(c: &mut Criterion) {
    let mut group = c.benchmark_group("raise an SPI");
    for spis in [32, 988] {
        let line =
            |(gic, inputs): (gicv2::GicV2, Vec<Input>)| (gic.level_line(Spi(spis - 1)).unwrap(), inputs[0].clone());
        let lines: Vec<_> = (0..GICS).map(|_| line(gicv2(spis))).collect();
        group.bench_function(BenchmarkId::new("GICv2, SPIs", spis), |b| {
            b.iter_custom(|raises| time_raises(raises, &lines));
        });
        let line = |(gic, inputs): (GicV3, Vec<Input>)| (gic.level_line(Spi(spis - 1)).unwrap(), inputs[0].clone());
        let lines: Vec<_> = (0..GICS).map(|_| line(gicv3(1, spis))).collect();
        group.bench_function(BenchmarkId::new("GICv3, SPIs", spis), |b| {
            b.iter_custom(|raises| time_raises(raises, &lines));
        });
    }
    group.finish();
}

/// All the others are pending, so the line makes no difference to the CPU: what the arbitration itself costs.
fn raise_among_pending(c: &mut Criterion) {
    let mut group = c.benchmark_group("raise and lower an SPI, all others pending");
    for spis in [32, 988] {
        let (gic, _inputs) = gicv3(1, spis);
        for spi in 0..spis - 1 {
            gic.edge_line(Spi(spi)).unwrap().trigger().unwrap();
        }
        let line = gic.level_line(Spi(spis - 1)).unwrap();
        group.bench_function(BenchmarkId::new("GICv3, SPIs", spis), |b| {
            b.iter(|| {
                line.trigger().unwrap();
                line.clear().unwrap();
            });
        });
    }
    group.finish();
}

/// One write to ICC_SGI1R_EL1 to all others, all of which hear it.
fn broadcast(c: &mut Criterion) {
    let mut group = c.benchmark_group("SGI to all others");
    for targets in [1, 8, 128] {
        let (gic, inputs) = gicv3(targets + 1, 32);
        let interfaces: Vec<CpuInterface> = (0..=targets)
            .map(|cpu| gic.cpu_interface(CpuId(cpu)).unwrap())
            .collect();
        group.bench_function(BenchmarkId::new("targets", targets), |b| {
            b.iter_custom(|sends| {
                let mut time = Duration::ZERO;
                for _ in 0..sends {
                    let start = Instant::now();
                    interfaces[0].write_sysreg(SysReg::ICC_SGI1R_EL1, 1 << 40).unwrap();
                    time += start.elapsed();
                    for (interface, irq) in interfaces.iter().zip(&inputs).skip(1) {
                        assert!(irq.load(Relaxed));
                        acknowledge_and_end(interface, 0);
                    }
                }
                time
            });
        });
    }
    group.finish();
}

fn acknowledge_and_end(cpu: &CpuInterface, expected: u64) {
    let intid = cpu.read_sysreg(SysReg::ICC_IAR1_EL1);
    assert_eq!(intid, Some(expected));
    cpu.write_sysreg(SysReg::ICC_EOIR1_EL1, expected).unwrap();
}

/// What makes each kind pending is a part of it, for nothing else can be acknowledged.
fn pulse_acknowledge_end(c: &mut Criterion) {
    let mut group = c.benchmark_group("pend, acknowledge, end");
    {
        let (gic, _inputs) = gicv2(988);
        let (line, cpu) = (gic.edge_line(Spi(500)).unwrap(), gic.cpu_interface(CpuId(0)).unwrap());
        group.bench_function("GICv2, SPI", |b| {
            b.iter(|| {
                line.trigger().unwrap();
                let mut iar = [0; 4];
                cpu.read(0x00c, &mut iar);
                assert_eq!(u32::from_le_bytes(iar), 532);
                cpu.write(0x010, &iar);
            });
        });
    }
    let (gic, _inputs) = gicv3(1, 988);
    let cpu = gic.cpu_interface(CpuId(0)).unwrap();
    let line = gic.edge_line(Spi(500)).unwrap();
    group.bench_function("GICv3, SPI", |b| {
        b.iter(|| {
            line.trigger().unwrap();
            acknowledge_and_end(&cpu, 532);
        });
    });
    group.bench_function("GICv3, SGI to itself", |b| {
        b.iter(|| {
            cpu.write_sysreg(SysReg::ICC_SGI1R_EL1, 3 << 24 | 1).unwrap();
            acknowledge_and_end(&cpu, 3);
        });
    });
    for others in [0, 57_000] {
        let (gic, _inputs) = gicv3(1, 32);
        let cpu = gic.cpu_interface(CpuId(0)).unwrap();
        for other in 0..others {
            gic.send_lpi(CpuId(0), IntId(8193 + other)).unwrap();
        }
        group.bench_function(BenchmarkId::new("GICv3, LPI, others pending", others), |b| {
            b.iter(|| {
                gic.send_lpi(CpuId(0), black_box(IntId(8192))).unwrap();
                acknowledge_and_end(&cpu, 8192);
            });
        });
    }
    group.finish();
}

criterion_group!(gic, raise, raise_among_pending, broadcast, pulse_acknowledge_end);
criterion_main!(gic);
