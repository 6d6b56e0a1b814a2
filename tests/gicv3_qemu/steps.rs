//! What a step can be.

use devisor::{
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt},
};

use crate::{MIGRATION, SWEEP, pair::Pair, registers::*};

impl Pair {
    pub fn step(&mut self, step: u32) {
        self.steps += 1;
        match self.random.below(100) {
            0..25 => self.line(),
            25..55 => self.write_distributor(),
            55..80 => self.write_private(),
            80..86 => self.write_redistributor(),
            86..92 => self.forbidden_access(),
            _ => self.read_anything(),
        }
        if step % MIGRATION == MIGRATION - 1 {
            self.note("migration".into());
            self.ours = self.ours.migrated();
        }
        if step % SWEEP == SWEEP - 1 {
            self.sweep();
        }
    }

    fn line(&mut self) {
        let line = self.random.below(CPUS * 16 + SPIS);
        let up = self.random.below(2) == 0;
        self.note(format!("line {line}: {up}"));
        // QEMU: the inputs are the SPIs, then 32 for each CPU of which the SGIs are not connected.
        let input = match line.checked_sub(CPUS * 16) {
            Some(spi) => spi,
            None => QEMU_SPIS + line / 16 * 32 + 16 + line % 16,
        };
        self.qemu.set_input(GIC, input, up);
        let line = &self.ours.lines[line as usize];
        if up { line.trigger() } else { line.clear() }.unwrap();
    }

    /// A word of an array: where it begins, and the value for it.
    fn array(&mut self, words: u32) -> (u64, u64) {
        let value = match self.random.below(3) {
            0 => self.random.next(),
            _ => 1 << self.random.below(32),
        };
        match self.random.below(10) {
            bits @ 0..7 => (
                IGROUPR + u64::from(bits * 0x80 + self.random.below(words) * 4),
                value & 0xffff_ffff,
            ),
            7 | 8 => (
                IPRIORITYR + u64::from(self.random.below(words * 8) * 4),
                value & 0xffff_ffff,
            ),
            _ => (ICFGR + u64::from(self.random.below(words * 2) * 4), value & 0xffff_ffff),
        }
    }

    fn write_distributor(&mut self) {
        match self.random.below(12) {
            0 => {
                let value = self.random.pick(&[0, 1, 2, 3, 3]);
                self.write_both(GICD, 4, value);
            }
            1..=3 => {
                let intid = u64::from(32 + self.random.below(SPIS));
                let near = u64::from(self.random.below(CPUS + 1));
                let far = self.random.next() & 0xff_00ff_ffff;
                let router = self.random.pick(&[near, near, far]);
                match self.random.below(4) {
                    0 => self.write_both(GICD + GICD_IROUTER + intid * 8, 4, router & 0xffff_ffff),
                    1 => self.write_both(GICD + GICD_IROUTER + intid * 8 + 4, 4, router >> 32),
                    _ => self.write_both(GICD + GICD_IROUTER + intid * 8, 8, router),
                }
            }
            4 => {
                let intid = u64::from(self.random.below(32 + SPIS));
                let value = self.random.next() & 0xff;
                self.write_implemented(GICD + IPRIORITYR + intid, 1, value);
            }
            // Read-only and reserved.
            5 => {
                let offset = self
                    .random
                    .pick(&[0x004, 0x008, 0x800, 0x820, 0xf00, 0xf10, 0xf20, 0xffe8]);
                let value = self.random.next() & 0xffff_ffff;
                self.write_both(GICD + offset, 4, value);
            }
            _ => {
                // Word 0 is the redistributors'.
                let (offset, value) = self.array((32 + SPIS) / 32);
                self.write_implemented(GICD + offset, 4, value);
            }
        }
    }

    fn write_private(&mut self) {
        let base = self.sgi_base();
        if self.random.below(6) == 0 {
            let intid = u64::from(self.random.below(32));
            let value = self.random.next() & 0xff;
            self.write_implemented(base + IPRIORITYR + intid, 1, value);
        } else {
            let (offset, value) = self.array(1);
            self.write_implemented(base + offset, 4, value);
        }
    }

    fn write_redistributor(&mut self) {
        let base = GICR + REDISTRIBUTOR * u64::from(self.random.below(CPUS));
        let value = self.random.next();
        match self.random.below(6) {
            0 => {
                let value = self.random.pick(&[0, 2]);
                self.write_both(base + GICR_WAKER, 4, value);
            }
            // QEMU: keeps reserved bits, and PTZ, which is write-only.
            1 => self.write_both(base + GICR_PROPBASER, 8, value & 0x070f_ffff_ffff_ff9f),
            2 => self.write_both(base + GICR_PENDBASER, 8, value & 0x070f_ffff_ffff_0f80),
            3 => {
                let register = self.random.pick(&[GICR_PROPBASER, GICR_PENDBASER]);
                let (half, mask) = self.random.pick(&[(0, 0xffff_0f80), (4, 0x070f_ffff)]);
                self.write_both(base + register + half, 4, value & mask);
            }
            // LPIs on, and off again, with tables that are in memory: QEMU's is zero, and ours.
            4 => {
                self.write_both(base + GICR_PROPBASER, 8, RAM | 15);
                self.write_both(base + GICR_PENDBASER, 8, RAM + 0x2_0000);
                self.write_both(base + GICR_CTLR, 4, 1);
                self.compare_read(base + GICR_CTLR, 4);
                self.write_both(base + GICR_CTLR, 4, 0);
            }
            _ => {
                let offset = self.random.pick(&[0x04, 0x08, 0x0c, 0xffe8]);
                self.write_both(base + offset, 4, value & 0xffff_ffff);
            }
        }
        self.compare_read(base + GICR_PROPBASER, 8);
        self.compare_read(base + GICR_PENDBASER, 8);
    }

    /// What does not have to work.
    fn forbidden_access(&mut self) {
        let distributor = self.random.below(2) == 0;
        let priorities = [0x400..0x800, 0x2000..0x2400, 0x1_0400..0x1_0800];
        let Some(access) = self.random.forbidden(0x2_0000, &[4, 8], &priorities) else {
            return;
        };
        self.note(format!("{access:x?}, of the distributor {distributor}"));
        let face: &dyn BusDevice = match distributor {
            true => &self.ours.distributor,
            false => &self.ours.redistributors,
        };
        if !access.is_ignored(face, || self.ours.gic.save()) {
            self.fail("a forbidden access had an effect, or read something");
        }
    }

    fn read_anything(&mut self) {
        let word = u64::from(self.random.below(0x1000 / 4) * 4);
        let intid = u64::from(self.random.below(32 + SPIS));
        let base = self.sgi_base();
        match self.random.below(4) {
            0 => self.compare_read(GICD + word, 4),
            1 => self.compare_read(base + word, 4),
            2 => self.compare_read(GICD + IPRIORITYR + intid, 1),
            _ => self.compare_read(GICD + GICD_IROUTER + intid * 8, 8),
        }
    }
}
