//! Our model.

use std::sync::Arc;

use devisor::{
    backends::irqchip::{
        CpuId, Ppi, Spi,
        gicv3::{CpuOutputs, Distributor, GicV3, GicV3Config, LevelLine, LpiSupport, RedistributorRegion},
    },
    interrupt::{Interrupt, NoInterrupt},
};
use vm_memory::GuestMemoryMmap;

use crate::registers::*;

pub struct Ours {
    pub gic: GicV3,
    pub distributor: Distributor,
    pub redistributors: RedistributorRegion,
    /// The PPIs of each CPU, then the SPIs.
    pub lines: Vec<LevelLine>,
    pub memory: Arc<GuestMemoryMmap>,
}

impl Ours {
    pub fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        let config = GicV3Config {
            spis: SPIS,
            one_of_n: false,
            message_based_spis: false,
            lpis: LpiSupport::Its,
            ..GicV3Config::new(CPUS)
        };
        let output = |_| CpuOutputs {
            irq: Box::new(NoInterrupt),
            fiq: Box::new(NoInterrupt),
        };
        let gic = GicV3::with_lpis(config, (0..CPUS).map(output).collect(), memory.clone()).unwrap();
        let ppis = (0..CPUS * 16).map(|line| gic.ppi_line(CpuId(line / 16), Ppi(line % 16)).unwrap());
        let spis = (0..SPIS).map(|spi| gic.level_line(Spi(spi)).unwrap());
        Self {
            distributor: gic.distributor(),
            redistributors: gic.redistributors(0).unwrap(),
            lines: ppis.chain(spis).collect(),
            gic,
            memory,
        }
    }

    /// Another GIC in the place of this one, with its state, and with the lines that its devices drive.
    pub fn migrated(&self) -> Self {
        let state = self.gic.save();
        let new = Self::new(self.memory.clone());
        new.gic.restore(&state).unwrap();
        let ppis = state.cpus.iter().flat_map(|cpu| &cpu.private[16..]);
        let inputs = ppis.chain(state.spis.iter().map(|spi| &spi.state));
        for (line, _) in new.lines.iter().zip(inputs).filter(|(_, input)| input.line) {
            line.trigger().unwrap();
        }
        assert_eq!(new.gic.save(), state);
        new
    }
}
