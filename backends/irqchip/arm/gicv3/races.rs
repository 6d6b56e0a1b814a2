//! Every schedule of a line or an SGI against the CPU that acknowledges: nothing is lost, nothing comes twice, and the
//! input of the CPU ends as the registers say.

use std::{io, sync::Arc as StdArc};

use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use super::{
    super::gic::{Ppi, Spi},
    CpuInterface, CpuOutputs, GicV3, GicV3Config, SysReg,
};
use crate::{
    backends::irqchip::CpuId,
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
};

struct Pin(Arc<AtomicBool>);

impl Interrupt for Pin {
    fn trigger(&self) -> io::Result<()> {
        assert!(!self.0.swap(true, SeqCst), "told twice");
        Ok(())
    }
}

impl LevelInterrupt for Pin {
    fn clear(&self) -> io::Result<()> {
        assert!(self.0.swap(false, SeqCst), "told twice");
        Ok(())
    }
}

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(run);
}

/// One CPU with SGI 0, PPI 0 and SPI 0 enabled in Group 1, and its IRQ input.
fn gic() -> (GicV3, Arc<AtomicBool>) {
    let irq = Arc::new(AtomicBool::new(false));
    let outputs = CpuOutputs {
        irq: Box::new(Pin(irq.clone())),
        fiq: Box::new(NoInterrupt),
    };
    let config = GicV3Config {
        spis: 32,
        ..GicV3Config::new(1)
    };
    let gic = GicV3::new(config, vec![outputs]).unwrap();
    let (distributor, redistributor) = (gic.distributor(), gic.redistributor(CpuId(0)).unwrap());
    redistributor.write(0x14, &0_u32.to_le_bytes());
    for (face, base) in [(&redistributor as &dyn BusDevice, 0x1_0000), (&distributor, 4)] {
        let bits = if base == 4 { 1 } else { 1 | 1 << 16_u32 };
        face.write(base + 0x80, &u32::to_le_bytes(bits));
        face.write(base + 0x100, &u32::to_le_bytes(bits));
    }
    distributor.write(0, &2_u32.to_le_bytes());
    let cpu = gic.cpu_interface(CpuId(0)).unwrap();
    cpu.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
    cpu.write_sysreg(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();
    (gic, irq)
}

/// Acknowledges and ends once. Whether there was anything.
fn serve(cpu: &CpuInterface, expected: u64) -> bool {
    let intid = cpu.read_sysreg(SysReg::ICC_IAR1_EL1).unwrap();
    if intid == 1023 {
        return false;
    }
    assert_eq!(intid, expected);
    cpu.write_sysreg(SysReg::ICC_EOIR1_EL1, intid).unwrap();
    true
}

/// While `send` runs, the CPU looks once; afterwards it looks again as long as its input is up.
fn race(intid: u64, send: impl Fn(&GicV3) + Send + Sync + 'static) {
    let send = StdArc::new(send);
    model(move || {
        let (gic, irq) = gic();
        let sender = {
            let (gic, send) = (gic.clone(), send.clone());
            thread::spawn(move || send(&gic))
        };
        let cpu = gic.cpu_interface(CpuId(0)).unwrap();
        let mut taken = u32::from(serve(&cpu, intid));
        sender.join().unwrap();
        while irq.load(SeqCst) {
            assert!(serve(&cpu, intid), "woken for nothing");
            taken += 1;
        }
        assert_eq!(taken, 1, "once, neither lost nor doubled");
        assert!(!serve(&cpu, intid), "left without a signal");
    });
}

#[test]
fn loom_a_pulse_of_an_spi_against_acknowledge_comes_once() {
    race(32, |gic| gic.edge_line(Spi(0)).unwrap().trigger().unwrap());
}

#[test]
fn loom_an_sgi_against_acknowledge_comes_once() {
    race(0, |gic| {
        let cpu = gic.cpu_interface(CpuId(0)).unwrap();
        cpu.write_sysreg(SysReg::ICC_SGI1R_EL1, 1).unwrap();
    });
}

/// The device lowers its line while the CPU looks: whatever it saw, nothing is left.
fn falling(line: fn(&GicV3) -> super::LevelLine, intid: u64) {
    model(move || {
        let (gic, irq) = gic();
        let line = line(&gic);
        line.trigger().unwrap();
        let device = thread::spawn(move || line.clear().unwrap());
        let cpu = gic.cpu_interface(CpuId(0)).unwrap();
        serve(&cpu, intid);
        device.join().unwrap();
        assert!(!irq.load(SeqCst), "up for nothing, for ever");
        assert!(!serve(&cpu, intid));
    });
}

#[test]
fn loom_a_level_that_falls_against_acknowledge_and_end_leaves_nothing() {
    falling(|gic| gic.level_line(Spi(0)).unwrap(), 32);
    falling(|gic| gic.ppi_line(CpuId(0), Ppi(0)).unwrap(), 16);
}
