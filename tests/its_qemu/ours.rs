//! Our models.

use std::sync::Arc;

use devisor::{
    backends::irqchip::{
        CpuId,
        gicv3::{CpuOutputs, GicV3, GicV3Config, LpiSupport, Redistributor},
        its::{ControlFrame, Its, ItsConfig},
    },
    interrupt::NoInterrupt,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::registers::*;

/// Our models, with a memory of their own.
pub struct Ours {
    pub gic: GicV3,
    pub its: Its,
    pub frame: ControlFrame,
    pub redistributors: Vec<Redistributor>,
    pub memory: Arc<GuestMemoryMmap>,
}

impl Ours {
    pub fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE as usize)]).unwrap();
        Self::over(Arc::new(memory))
    }

    fn over(memory: Arc<GuestMemoryMmap>) -> Self {
        let config = GicV3Config {
            lpis: LpiSupport::Its,
            ..GicV3Config::new(CPUS)
        };
        let outputs = (0..CPUS).map(|_| CpuOutputs {
            irq: Box::new(NoInterrupt),
            fiq: Box::new(NoInterrupt),
        });
        let gic = GicV3::with_lpis(config, outputs.collect(), Arc::clone(&memory)).unwrap();
        let its = Its::new(ItsConfig::default(), &gic, Arc::clone(&memory)).unwrap();
        Self {
            frame: its.control_frame(),
            redistributors: (0..CPUS).map(|cpu| gic.redistributor(CpuId(cpu)).unwrap()).collect(),
            gic,
            its,
            memory,
        }
    }

    /// Another GIC and another ITS in the place of these, over the same memory.
    pub fn migrated(&self) -> Self {
        let new = Self::over(Arc::clone(&self.memory));
        new.gic.restore(&self.gic.save()).unwrap();
        new.its.restore(&self.its.save()).unwrap();
        new
    }
}
