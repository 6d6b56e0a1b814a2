//! The two models side by side: how both are reached, and what is compared.

use std::sync::Arc;

use devisor::bus::{BusDevice, read_le};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{
    beside::{Random, Steps},
    ours::Ours,
    qtest::Qtest,
    registers::*,
};

pub struct Pair {
    pub qemu: Qtest,
    pub ours: Ours,
    pub random: Random,
    pub log: Steps,
    pub steps: u32,
    pub reads: u32,
    /// Reads that showed a pending interrupt.
    pub pending: u32,
}

impl Pair {
    pub fn new(qemu: Qtest, seed: u64) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x10_0000)]).unwrap();
        Self {
            qemu,
            ours: Ours::new(Arc::new(memory)),
            random: Random(seed),
            log: Steps::new(seed),
            steps: 0,
            reads: 0,
            pending: 0,
        }
    }

    pub fn sweep(&mut self) {
        for offset in [0x000, 0x004, 0x008].into_iter().chain((0xffd0..0x1_0000).step_by(4)) {
            self.compare_read(GICD + offset, 4);
        }
        for word in 0..(32 + SPIS) / 32 {
            for array in (IGROUPR..IPRIORITYR).step_by(0x80) {
                self.compare_read(GICD + array + u64::from(word * 4), 4);
            }
        }
        for word in 0..(32 + SPIS) / 16 {
            self.compare_read(GICD + ICFGR + u64::from(word * 4), 4);
        }
        for word in 0..(32 + SPIS) / 4 {
            self.compare_read(GICD + IPRIORITYR + u64::from(word * 4), 4);
        }
        for intid in 32..32 + SPIS {
            self.compare_read(GICD + GICD_IROUTER + u64::from(intid * 8), 8);
        }
        for cpu in 0..CPUS {
            let base = GICR + REDISTRIBUTOR * u64::from(cpu);
            for offset in [GICR_CTLR, 0x04, GICR_TYPER, GICR_TYPER + 4, 0x10, GICR_WAKER, 0xc0]
                .into_iter()
                .chain((0xffd0..0x1_0000).step_by(4))
            {
                self.compare_read(base + offset, 4);
            }
            self.compare_read(base + GICR_TYPER, 8);
            let arrays = (IGROUPR..IPRIORITYR)
                .step_by(0x80)
                .chain((IPRIORITYR..IPRIORITYR + 0x20).step_by(4))
                .chain([ICFGR, ICFGR + 4]);
            for offset in arrays {
                self.compare_read(base + SGI_BASE + offset, 4);
            }
        }
    }

    pub fn sgi_base(&mut self) -> u64 {
        GICR + REDISTRIBUTOR * u64::from(self.random.below(CPUS)) + SGI_BASE
    }

    pub fn compare_read(&mut self, address: u64, width: usize) {
        self.reads += 1;
        let (qemu, ours) = (self.qemu.read(address, width), self.read_ours(address, width));
        if qemu != ours {
            self.fail(&format!("{address:#x}: QEMU has {qemu:#x}, ours {ours:#x}"));
        }
        self.pending += u32::from(ours != 0 && (ISPENDR..ISPENDR + 0x80).contains(&(address & 0xffff)));
    }

    pub fn fail(&self, what: &str) -> ! {
        self.log.fail(what, self.steps, &self.ours.gic.save())
    }

    pub fn face(&self, address: u64) -> (&dyn BusDevice, u64) {
        match address.checked_sub(GICR) {
            Some(offset) => (&self.ours.redistributors, offset),
            None => (&self.ours.distributor, address - GICD),
        }
    }

    /// QEMU: keeps all bits of a priority in the distributor and the redistributors; ours has 5 of them.
    pub fn write_implemented(&mut self, address: u64, width: usize, value: u64) {
        let within = if address < GICR {
            address - GICD
        } else {
            (address - GICR) % REDISTRIBUTOR - SGI_BASE
        };
        let priorities = (IPRIORITYR..IPRIORITYR + 0x400).contains(&within);
        let mask = if priorities { 0xf8f8_f8f8 } else { 0xffff_ffff };
        self.write_both(address, width, value & mask);
    }

    pub fn write_both(&mut self, address: u64, width: usize, value: u64) {
        self.note(format!("write of {width} bytes at {address:#x}: {value:#x}"));
        self.qemu.write(address, width, value);
        let (face, offset) = self.face(address);
        face.write(offset, &value.to_le_bytes()[..width]);
    }

    pub fn read_ours(&self, address: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        let (face, offset) = self.face(address);
        face.read(offset, &mut data[..width]);
        read_le(&data[..width])
    }

    pub fn note(&mut self, line: String) {
        self.log.note(line);
    }
}
