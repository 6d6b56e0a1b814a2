//! What a timer tick and an interrupt from CPU to CPU cost through each controller: all that is done outside of the guest, from the
//! timer's deadline, or the sender's register, to the end of interrupt and to the next deadline. In units of what cannot be less: a
//! lock that nobody else wants, taken and released with a number changed in between.
//!
//! All of them are measured in turns, so that a machine that changes its pace in between does not decide.

use std::{
    hint::black_box,
    sync::{Arc, Mutex},
    time::Instant,
};

use devisor::{
    backends::irqchip::{
        CpuId, Ppi,
        gicv2::{self, GicV2, GicV2Config},
        gicv3::{self, GicV3, GicV3Config, SysReg},
        lapic::{ApicId, LocalApic, LocalApicParts, LocalApics, LocalApicsConfig, Vector},
        pc::{Pc, PcConfig},
    },
    bus::{Bus, BusDevice},
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
    time::{Clock, ManualClock},
};

const ROUNDS: usize = 501;
const EACH: u32 = 64;
/// Most that is seen here is a quarter of it.
const MOST: f64 = 100.0;

const TIMER: Ppi = Ppi(11);
const SPURIOUS: u32 = 1020;

fn main() {
    let once = std::env::args().any(|argument| argument == "--test");
    let costs = [
        ("a lock, a number, and the lock's release", bare()),
        ("tick of a local APIC: one-shot", local_apic(false)),
        ("tick of a local APIC: periodic", local_apic(true)),
        ("tick of the 8254 through the 8259s", pit(false)),
        ("tick of the 8254 through IOAPIC and local APIC", pit(true)),
        ("tick of a generic timer through a GICv2", timer_v2()),
        ("tick of a generic timer through a GICv3", timer_v3()),
        ("from CPU to CPU by local APICs", by_local_apics()),
        ("from CPU to CPU by a GICv2", by_gicv2()),
        ("from CPU to CPU by a GICv3", by_gicv3()),
    ];
    let rounds = if once { 1 } else { ROUNDS };
    let mut times = vec![Vec::new(); costs.len()];
    for _ in 0..rounds {
        for ((_, cost), times) in costs.iter().zip(&mut times) {
            let start = Instant::now();
            (0..EACH).for_each(|_| cost());
            times.push(start.elapsed() / EACH);
        }
    }
    times.iter_mut().for_each(|times| times.sort_unstable());
    let bare = times[0][0].as_secs_f64();
    for ((name, _), times) in costs.iter().zip(&times) {
        let (fastest, median) = (times[0], times[times.len() / 2]);
        let ratio = fastest.as_secs_f64() / bare;
        println!("{name}: {fastest:?}, {ratio:.1} times the first, median {median:?} of {rounds} rounds in turns");
        // What is measured but once says nothing.
        assert!(
            once || ratio <= MOST,
            "{name}: {ratio:.1}, where at most {MOST} are accepted"
        );
    }
}

type Cost = Box<dyn Fn()>;

fn bare() -> Cost {
    let number = Mutex::new(0_u64);
    Box::new(move || *black_box(&number).lock().unwrap() += 1)
}

// x86.

const EOI: u64 = 0x0b0;
const SVR: u64 = 0x0f0;
const ICR: u64 = 0x300;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const INITIAL_COUNT: u64 = 0x380;
const DIVIDE: u64 = 0x3e0;
const BY_ONE: u32 = 0xb;

fn write(face: &dyn BusDevice, offset: u64, value: u32) {
    face.write(offset, &value.to_le_bytes());
}

fn local_apics(cpus: u32) -> (Arc<ManualClock>, LocalApics, Vec<LocalApic>) {
    let clock = Arc::new(ManualClock::default());
    let parts = (0..cpus).map(|id| LocalApicParts {
        id: ApicId(id),
        wake: Box::new(NoInterrupt),
        alarm: Box::new(()),
    });
    let config = LocalApicsConfig::default();
    let apics = LocalApics::new(config, Arc::clone(&clock) as _, parts.collect()).unwrap();
    let cpus: Vec<_> = (0..cpus).map(|cpu| apics.cpu(CpuId(cpu)).unwrap()).collect();
    cpus.iter().for_each(|apic| write(apic, SVR, 0x1ff));
    (clock, apics, cpus)
}

/// The guest's part of it, after the vCPU has been told.
fn serve(apic: &LocalApic) {
    assert!(black_box(apic).acknowledge().is_some());
    write(apic, EOI, 0);
}

fn local_apic(periodic: bool) -> Cost {
    const COUNT: u32 = 1_000_000;
    let (clock, _, mut apics) = local_apics(1);
    let apic = apics.remove(0);
    write(&apic, DIVIDE, BY_ONE);
    write(&apic, LVT_TIMER, 0xec | u32::from(periodic) << 17);
    write(&apic, INITIAL_COUNT, COUNT);
    Box::new(move || {
        clock.advance_to(apic.deadline().expect("the timer runs"));
        apic.expire();
        serve(&apic);
        if !periodic {
            write(&apic, INITIAL_COUNT, COUNT);
        }
    })
}

/// At 250 Hz, as a kernel has it.
fn pit(by_apic: bool) -> Cost {
    const PORTS: [(u64, u8); 3] = [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x12)];
    const PICS: [(u64, u8); 10] = [
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0x21, 0xfa),
        (0xa1, 0xff),
    ];
    let (clock, apics, mut cpus) = local_apics(1);
    let apic = cpus.remove(0);
    let pc = Pc::with_local_apics(PcConfig::default(), &apics, Arc::clone(&clock), ()).unwrap();
    let (mut memory, mut ports) = (Bus::new(), Bus::new());
    pc.plug(&mut memory, &mut ports).unwrap();
    let out = |(port, byte): &(u64, u8)| ports.write(*port, &[*byte]).unwrap();
    if by_apic {
        const IOAPIC: u64 = 0xfec0_0000;
        const TABLE: u32 = 0x10;
        // Pin 2: fixed, edge-triggered, to the first CPU.
        for (register, value) in [(TABLE + 5, 0_u32), (TABLE + 4, 0x30)] {
            memory.write(IOAPIC, &register.to_le_bytes()).unwrap();
            memory.write(IOAPIC + 0x10, &value.to_le_bytes()).unwrap();
        }
        write(&apic, LVT_LINT0, 1 << 16);
    } else {
        PICS.iter().for_each(out);
    }
    PORTS.iter().for_each(out);
    Box::new(move || {
        // It goes down for a tick before it goes up.
        while !is_pending(&pc, &apic, by_apic) {
            clock.advance_to(pc.pit().deadline().expect("the timer runs").max(clock.now()));
            pc.pit().expire();
        }
        if by_apic {
            return serve(&apic);
        }
        assert_eq!(pc.pic().acknowledge(), Vector(0x30));
        ports.write(0x20, &[0x60]).unwrap();
    })
}

fn is_pending(pc: &Pc, apic: &LocalApic, by_apic: bool) -> bool {
    if by_apic {
        apic.pending().request
    } else {
        pc.pic().intr()
    }
}

fn by_local_apics() -> Cost {
    let (_, apics, cpus) = local_apics(2);
    Box::new(move || {
        let _ = &apics;
        // The first is the one that waits for no start-up.
        write(&cpus[1], ICR, 3 << 18 | 0xfd);
        serve(&cpus[0]);
    })
}

// Arm.

/// Of each CPU of a GICv2, its distributor and its CPU interface.
type Frames = Vec<(gicv2::Distributor, gicv2::CpuInterface)>;

fn gic_v2(cpus: u32) -> (GicV2, Frames) {
    let outputs = || gicv2::CpuOutputs {
        irq: Box::new(NoInterrupt),
        fiq: Box::new(NoInterrupt),
    };
    let config = GicV2Config {
        cpus,
        ..GicV2Config::default()
    };
    let gic = GicV2::new(config, (0..cpus).map(|_| outputs()).collect()).unwrap();
    let faces = (0..cpus).map(|cpu| {
        let (distributor, interface) = (
            gic.distributor(CpuId(cpu)).unwrap(),
            gic.cpu_interface(CpuId(cpu)).unwrap(),
        );
        write(&distributor, 0x100, u32::MAX); // GICD_ISENABLER0
        write(&distributor, 0x000, 1); // GICD_CTLR
        write(&interface, 0x004, 0xff); // GICC_PMR
        write(&interface, 0x000, 1); // GICC_CTLR
        (distributor, interface)
    });
    let faces = faces.collect();
    (gic, faces)
}

fn acknowledge_v2(interface: &gicv2::CpuInterface) -> u32 {
    let mut data = [0; 4];
    interface.read(0x00c, &mut data); // GICC_IAR
    let id = u32::from_le_bytes(data);
    assert!(id & 0x3ff < SPURIOUS);
    id
}

fn timer_v2() -> Cost {
    let (gic, mut faces) = gic_v2(1);
    let line = gic.ppi_line(CpuId(0), TIMER).unwrap();
    let (_, interface) = faces.remove(0);
    Box::new(move || {
        line.trigger().unwrap();
        let id = acknowledge_v2(&interface);
        // The guest sets the next deadline, which lowers the timer's output.
        line.clear().unwrap();
        write(&interface, 0x010, id); // GICC_EOIR
    })
}

fn by_gicv2() -> Cost {
    let (gic, faces) = gic_v2(2);
    Box::new(move || {
        let _ = &gic;
        let [(distributor, _), (_, interface)] = &faces[..] else {
            unreachable!("there are two")
        };
        write(distributor, 0xf00, 0b10 << 16 | 1); // GICD_SGIR
        let id = acknowledge_v2(interface);
        write(interface, 0x010, id);
    })
}

fn gic_v3(cpus: u32) -> (GicV3, Vec<gicv3::CpuInterface>) {
    let outputs = || gicv3::CpuOutputs {
        irq: Box::new(NoInterrupt),
        fiq: Box::new(NoInterrupt),
    };
    let gic = GicV3::new(GicV3Config::new(cpus), (0..cpus).map(|_| outputs()).collect()).unwrap();
    write(&gic.distributor(), 0x000, 2); // GICD_CTLR
    let interfaces = (0..cpus).map(|cpu| {
        let redistributor = gic.redistributor(CpuId(cpu)).unwrap();
        write(&redistributor, 0x14, 0); // GICR_WAKER
        write(&redistributor, 0x1_0080, u32::MAX); // GICR_IGROUPR0
        write(&redistributor, 0x1_0100, u32::MAX); // GICR_ISENABLER0
        let interface = gic.cpu_interface(CpuId(cpu)).unwrap();
        interface.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
        interface.write_sysreg(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();
        interface
    });
    let interfaces = interfaces.collect();
    (gic, interfaces)
}

fn acknowledge_v3(interface: &gicv3::CpuInterface) -> u64 {
    let id = interface.read_sysreg(SysReg::ICC_IAR1_EL1).unwrap();
    assert!(id < SPURIOUS.into());
    id
}

fn timer_v3() -> Cost {
    let (gic, interfaces) = gic_v3(1);
    let line = gic.ppi_line(CpuId(0), TIMER).unwrap();
    Box::new(move || {
        line.trigger().unwrap();
        let id = acknowledge_v3(&interfaces[0]);
        line.clear().unwrap();
        interfaces[0].write_sysreg(SysReg::ICC_EOIR1_EL1, id).unwrap();
    })
}

fn by_gicv3() -> Cost {
    let (gic, interfaces) = gic_v3(2);
    Box::new(move || {
        let _ = &gic;
        interfaces[0]
            .write_sysreg(SysReg::ICC_SGI1R_EL1, 1 << 24 | 0b10)
            .unwrap();
        let id = acknowledge_v3(&interfaces[1]);
        interfaces[1].write_sysreg(SysReg::ICC_EOIR1_EL1, id).unwrap();
    })
}
