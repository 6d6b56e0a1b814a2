//! Our GICv2, with all that is plugged into it.

use crate::registers::*;
use devisor::{
    backends::irqchip::{
        CpuId, Ppi, Spi,
        gicv2::{CpuInterface, CpuOutputs, Distributor, EdgeLine, GicV2, GicV2Config, LevelLine},
    },
    interrupt::{Interrupt, level_from_fn},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

/// Our model, with all that is plugged into it.
pub struct Ours {
    pub gic: GicV2,
    pub distributor: Distributor,
    pub cpu: CpuInterface,
    pub irq: Arc<AtomicBool>,
    pub fiq: Arc<AtomicBool>,
    /// PPIs first: the index of a line is its INTID less 16.
    pub lines: Vec<LevelLine>,
    pub pulses: Vec<EdgeLine>,
}

impl Ours {
    pub fn new() -> Self {
        let wire = || {
            let level = Arc::new(AtomicBool::new(false));
            let pin = Arc::clone(&level);
            (
                level,
                Box::new(level_from_fn(move |up| {
                    assert_ne!(pin.swap(up, SeqCst), up, "an output is told a level twice");
                    Ok(())
                })),
            )
        };
        let ((irq, irq_pin), (fiq, fiq_pin)) = (wire(), wire());
        let config = GicV2Config {
            cpus: 1,
            spis: SPIS,
            priority_bits: 8,
        };
        let gic = GicV2::new(
            config,
            vec![CpuOutputs {
                irq: irq_pin,
                fiq: fiq_pin,
            }],
        )
        .unwrap();
        let cpu = CpuId(0);
        let ppis = (0..16).map(|ppi| gic.ppi_line(cpu, Ppi(ppi)).unwrap());
        let spis = (0..SPIS).map(|spi| gic.level_line(Spi(spi)).unwrap());
        Self {
            distributor: gic.distributor(cpu).unwrap(),
            cpu: gic.cpu_interface(cpu).unwrap(),
            irq,
            fiq,
            lines: ppis.chain(spis).collect(),
            pulses: (0..SPIS).map(|spi| gic.edge_line(Spi(spi)).unwrap()).collect(),
            gic,
        }
    }

    /// Another GIC in the place of this one, with its state, and with the lines that its devices drive.
    pub fn migrated(&self) -> Self {
        let state = self.gic.save();
        let new = Self::new();
        new.gic.restore(&state).unwrap();
        let ppis = state.cpus[0].private[16..].iter();
        let inputs = ppis.chain(state.spis.iter().map(|spi| &spi.state));
        for (line, _) in new.lines.iter().zip(inputs).filter(|(_, input)| input.line) {
            line.trigger().unwrap();
        }
        new
    }
}
