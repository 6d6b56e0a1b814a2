//! What a step of the sequence can be.

use crate::{pair::Pair, registers::*};
use devisor::{
    backends::irqchip::{Group, TriggerMode},
    bus::BusDevice,
    interrupt::{Interrupt, LevelInterrupt},
};

/// All registers are compared after every so many steps.
const SWEEP: u32 = 50;
/// Ours is saved, and another restored in its place, after every so many steps.
const MIGRATION: u32 = 37;
/// Everything is made lively again after every so many steps.
const EPISODE: u32 = 100;

impl Pair {
    pub fn step(&mut self, step: u32) {
        self.counts.steps += 1;
        if step.is_multiple_of(EPISODE) {
            self.begin_episode();
        }
        match self.random.below(100) {
            0..12 => self.line(),
            12..20 => self.pulse(),
            20..42 => self.acknowledge(),
            42..60 => self.end_of_interrupt(),
            60..66 => self.send_sgi(),
            66..84 => self.write_distributor(),
            84..89 => self.write_cpu_interface(),
            89..90 => self.write_active_priorities(),
            90..94 => self.forbidden_access(),
            94..97 => self.read_distributor(),
            _ => self.read_cpu_interface(),
        }
        if step % MIGRATION == MIGRATION - 1 {
            self.note("migration".into());
            self.ours = self.ours.migrated();
        }
        self.compare_outputs();
        if step % SWEEP == SWEEP - 1 {
            self.sweep();
        }
    }

    // What a step can be.

    /// Ends what is under way, and enables a fresh set of interrupts of few priorities.
    fn begin_episode(&mut self) {
        self.favourites = (0..20)
            .map(|_| match self.random.below(4) {
                0 => self.random.below(32),
                _ => self.random.below(INTERRUPTS),
            })
            .collect();
        self.drop_all_priorities();
        self.acknowledged.clear();
        self.forced_active.clear();
        for word in 0..INTERRUPTS / 32 {
            self.write_both(GICD, GICD_ICACTIVER + u64::from(word * 4), 4, u32::MAX);
            self.enable(word, u32::MAX);
        }
        for intid in self.favourites.clone() {
            let priority = self.random.priority();
            self.write_both(GICD, GICD_IPRIORITYR + u64::from(intid), 1, priority);
        }
        let control = self.random.pick(&[0x03, 0x07, 0x07, 0x0f, 0x0f, 0x1f, 0x207, 0x20f]);
        let binary_point = self.random.pick(&[0, 0, 1, 2, 3, 4, 5, 6, 7]);
        self.write_both(GICD, GICD_CTLR, 4, 3);
        self.write_both(GICC, GICC_CTLR, 4, control);
        self.write_both(GICC, GICC_PMR, 4, 0xff);
        self.write_both(GICC, GICC_BPR, 4, binary_point);
        self.write_both(GICC, GICC_ABPR, 4, binary_point + 1);
    }

    /// Leaves nothing running, by way of GICC_APRn as in [`write_active_priorities`](Self::write_active_priorities).
    fn drop_all_priorities(&mut self) {
        if self.read_ours(GICC, GICC_RPR, 4) == IDLE {
            return;
        }
        let group = self.interrupt_state(0).group;
        for register in 0..8 {
            // The last level of the group that the end of INTID 0 drops.
            let value = if register == group as u64 * 4 + 3 { 1 << 31 } else { 0 };
            self.write_both(GICC, GICC_APR + register * 4, 4, value);
        }
        self.write_both(GICC, GICC_EOIR, 4, 0);
        self.compare_read(GICC, GICC_RPR, 4);
    }

    fn line(&mut self) {
        let intid = self.interrupt().max(16);
        let up = self.random.below(2) == 0;
        self.note(format!("line of INTID {intid}: {up}"));
        // QEMU: the inputs are the SPIs, then 32 for each CPU of which the SGIs are not connected.
        let input = if intid < 32 { SPIS + intid } else { intid - 32 };
        self.qemu.set_input(GIC, input, up);
        let line = &self.ours.lines[intid as usize - 16];
        if up { line.trigger() } else { line.clear() }.unwrap();
    }

    fn pulse(&mut self) {
        let intid = self.interrupt().max(32);
        self.note(format!("pulse of INTID {intid}"));
        let state = self.interrupt_state(intid);
        match state.trigger {
            TriggerMode::Edge => {
                self.qemu.set_input(GIC, intid - 32, !state.line);
                self.qemu.set_input(GIC, intid - 32, state.line);
            }
            // QEMU: nothing is left of a pulse on a level-sensitive interrupt. Ours latches it, as this does.
            TriggerMode::Level => {
                self.qemu
                    .write(GICD + GICD_ISPENDR + u64::from(intid / 32 * 4), 4, 1 << (intid % 32))
            }
        }
        self.ours.pulses[intid as usize - 32].trigger().unwrap();
    }

    fn acknowledge(&mut self) {
        let view = self.view();
        if view.disabled_group_first() || view.binary_point_moved() {
            // QEMU: takes an interrupt of a disabled group, and one whose group priority is not enough since the binary point
            // moved. The state would part for good.
            self.counts.excluded += 1;
            return;
        }
        let (qemu, ours) = (self.read_qemu(GICC, GICC_IAR, 4), self.read_ours(GICC, GICC_IAR, 4));
        // QEMU: "Group 1 is pending" also if it is not urgent enough to be signalled (3.2.5 has it as 1023).
        let hidden = view.first.is_some_and(|(_, group)| group == Group::One)
            && view.interface_control & ACK_CTL == 0
            && !view.preempts();
        let qemu = if hidden && qemu == 1022 && ours == SPURIOUS {
            SPURIOUS
        } else {
            qemu
        };
        self.compare("GICC_IAR", qemu, ours);
        if ours < 1020 || (ours & 0x3ff) < 16 {
            self.acknowledged.push(ours);
            self.counts.acknowledged += 1;
        }
    }

    fn end_of_interrupt(&mut self) {
        let value = match self.random.below(20) {
            // Whatever a guest may write.
            0 => self.random.next() as u32,
            1 => self.random.below(1024),
            // Out of order.
            2 if !self.acknowledged.is_empty() => {
                let index = self.random.below(self.acknowledged.len() as u32);
                self.acknowledged.remove(index as usize)
            }
            _ => match self.acknowledged.pop() {
                Some(value) => value,
                None => return,
            },
        };
        let register = self.random.pick(&[GICC_EOIR, GICC_EOIR, GICC_EOIR, GICC_DIR]);
        self.write_both(GICC, register, 4, value);
        if register == GICC_EOIR && self.random.below(4) != 0 {
            self.write_both(GICC, GICC_DIR, 4, value);
        }
        self.release_forced(value & 0x3ff);
    }

    /// QEMU: GICD_ISACTIVERn makes an SPI active on eight CPUs, the end of the interrupt deactivates it on one, and
    /// GICD_ISACTIVERn goes on to show the others. The architecture has one state: make it one in QEMU too.
    fn release_forced(&mut self, intid: u32) {
        if self.forced_active.contains(&intid) && !self.interrupt_state(intid).active {
            self.forced_active.remove(&intid);
            self.write_both(GICD, GICD_ICACTIVER + u64::from(intid / 32 * 4), 4, 1 << (intid % 32));
        }
    }

    fn send_sgi(&mut self) {
        let intid = self.random.below(16);
        match self.random.below(6) {
            // QEMU: takes the reserved filter as "all", and remembers senders that do not exist. Ours: nobody.
            0 => self.write_nothing(GICD_SGIR, 4, 0x03ff_0000 | intid),
            1 => {
                let strangers = self.random.below(256) & 0xfe;
                self.write_nothing(GICD_SPENDSGIR + u64::from(intid), 1, strangers);
            }
            // QEMU: a zero byte makes the SGI pending without a sender, and ends QEMU at its acknowledge.
            2 => self.write_both(GICD, GICD_SPENDSGIR + u64::from(intid & !3), 4, 0x0101_0101),
            3 => self.write_both(GICD, GICD_SPENDSGIR + u64::from(intid), 1, 0x01),
            4 => {
                let value = self.random.next() as u32;
                match self.random.below(2) {
                    0 => self.write_both(GICD, GICD_CPENDSGIR + u64::from(intid), 1, value & 0xff),
                    _ => self.write_both(GICD, GICD_CPENDSGIR + u64::from(intid & !3), 4, value & 0x0303_0303),
                }
            }
            _ => {
                let filter = self.random.below(3) << 24;
                let list = self.random.below(256) << 16;
                self.write_both(GICD, GICD_SGIR, 4, filter | list | intid);
            }
        }
    }

    fn write_distributor(&mut self) {
        let intid = self.interrupt();
        let word = u64::from(intid / 32 * 4);
        // One of the favourites, or a handful.
        let bits = match self.random.below(3) {
            0 => (self.random.next() & self.random.next() & self.random.next()) as u32,
            _ => 1 << (intid % 32),
        };
        match self.random.below(24) {
            0 => {
                let value = self.random.pick(&[0, 1, 2, 3, 3, 3, 3, 3, 3, u32::MAX]);
                self.write_both(GICD, GICD_CTLR, 4, value);
            }
            1 | 2 => {
                let groups = self.read_ours(GICD, GICD_IGROUPR + word, 4);
                self.write_both(GICD, GICD_IGROUPR + word, 4, groups ^ bits);
            }
            3..=5 => self.enable(intid / 32, bits),
            6 | 7 => self.write_both(GICD, GICD_ICENABLER + word, 4, bits),
            8..=10 => self.write_both(GICD, GICD_ISPENDR + word, 4, bits),
            11 | 12 => self.write_both(GICD, GICD_ICPENDR + word, 4, bits),
            13 => {
                self.write_both(GICD, GICD_ISACTIVER + word, 4, bits);
                let spis = (0..32)
                    .filter(|bit| bits >> bit & 1 != 0)
                    .map(|bit| intid / 32 * 32 + bit);
                self.forced_active.extend(spis.filter(|&intid| intid >= 32));
            }
            14..=16 => self.write_both(GICD, GICD_ICACTIVER + word, 4, bits),
            17..=19 => {
                let priority = self.random.priority();
                self.write_both(GICD, GICD_IPRIORITYR + u64::from(intid), 1, priority);
            }
            20 => {
                let value = self.random.next() as u32;
                self.write_both(GICD, GICD_IPRIORITYR + u64::from(intid & !3), 4, value);
            }
            21 => {
                let value = self.random.next() as u32;
                self.write_both(GICD, GICD_ITARGETSR + u64::from(intid & !3), 4, value);
                self.write_both(GICD, GICD_ITARGETSR + u64::from(intid), 1, value & 0xff);
            }
            22 => {
                let register = GICD_ICFGR + u64::from(intid / 16 * 4);
                let config = self.read_ours(GICD, register, 4);
                let random = self.random.next() as u32;
                let value = self.random.pick(&[config ^ 2 << (intid % 16 * 2), random]);
                self.write_both(GICD, register, 4, value);
            }
            // Read-only, reserved, and interrupts that do not exist.
            _ => {
                let offset = self
                    .random
                    .pick(&[0x004, 0x008, 0x00c, 0x040, 0x07c, 0xd00, 0xe00, 0xf04, 0xf30, 0xfe8]);
                let value = self.random.next() as u32;
                self.write_both(GICD, offset, 4, value);
                let array = self
                    .random
                    .pick(&[GICD_IGROUPR, GICD_ISENABLER, GICD_ISPENDR, GICD_ISACTIVER]);
                self.write_both(GICD, array + u64::from(INTERRUPTS / 8), 4, value);
                self.write_both(GICD, GICD_IPRIORITYR + u64::from(INTERRUPTS), 4, value);
            }
        }
    }

    /// GICD_ISENABLERn.
    ///
    /// QEMU: latches a level-sensitive interrupt whose line is up, so that it stays pending when the line drops. The
    /// architecture has no such latch: clear it in both.
    fn enable(&mut self, word: u32, bits: u32) {
        self.write_both(GICD, GICD_ISENABLER + u64::from(word * 4), 4, bits);
        let latched = (0..32)
            .filter(|bit| bits >> bit & 1 != 0)
            .filter(|bit| {
                let state = self.interrupt_state(word * 32 + bit);
                state.trigger == TriggerMode::Level && state.line
            })
            .fold(0, |mask, bit| mask | 1 << bit);
        if latched != 0 {
            self.write_both(GICD, GICD_ICPENDR + u64::from(word * 4), 4, latched);
        }
    }

    fn write_cpu_interface(&mut self) {
        let value = self.random.next() as u32;
        match self.random.below(8) {
            0 | 1 => {
                let control = self
                    .random
                    .pick(&[value, 0x03, 0x07, 0x07, 0x07, 0x0f, 0x0f, 0x1f, 0x207, 0x20f]);
                self.write_both(GICC, GICC_CTLR, 4, control);
            }
            2 | 3 => {
                // Most telling is the priority of what waits.
                let first = self.view().first.map_or(0xff, |(priority, _)| u32::from(priority));
                let mask = self
                    .random
                    .pick(&[0xff, 0xff, 0xff, 0xf0, first, first.wrapping_add(1), value]);
                self.write_both(GICC, GICC_PMR, 4, mask);
            }
            4 => self.write_both(GICC, GICC_BPR, 4, value),
            5 => self.write_both(GICC, GICC_ABPR, 4, value),
            _ => {
                let register = self
                    .random
                    .pick(&[GICC_IAR, GICC_RPR, GICC_HPPIR, GICC_IIDR, 0x2c, 0xf0, 0x1004]);
                self.write_both(GICC, register, 4, value);
            }
        }
    }

    /// GICC_APRn and GICC_NSAPRn.
    ///
    /// QEMU: the running priority follows at the next end of an interrupt only, and only if one is running.
    fn write_active_priorities(&mut self) {
        if self.read_ours(GICC, GICC_RPR, 4) == IDLE {
            return;
        }
        let register = GICC_APR + u64::from(self.random.below(8) * 4);
        let value = (self.random.next() & self.random.next() & self.random.next()) as u32;
        self.write_both(GICC, register, 4, value);
        if self.read_ours(GICC, GICC_RPR, 4) == IDLE {
            // Ours is idle now and would ignore the end that QEMU waits for.
            self.write_both(GICC, register, 4, 1);
        }
        let intid = self.random.below(INTERRUPTS);
        self.write_both(GICC, GICC_EOIR, 4, intid);
        self.release_forced(intid);
    }

    /// What does not have to work (4.1.4). QEMU: takes bytes and halves everywhere, and cuts 64 bits in two.
    fn forbidden_access(&mut self) {
        let (base, size) = self.random.pick(&[(GICD, 0x1000), (GICC, 0x2000)]);
        let bytes = [GICD_IPRIORITYR..GICD_ICFGR, GICD_CPENDSGIR..0xf30];
        let bytes = if base == GICD { &bytes[..] } else { &[] };
        let Some(access) = self.random.forbidden(size, &[4], bytes) else {
            return;
        };
        self.note(format!("{access:x?} from {base:#x} on"));
        let face: &dyn BusDevice = if base == GICD {
            &self.ours.distributor
        } else {
            &self.ours.cpu
        };
        if !access.is_ignored(face, || self.ours.gic.save()) {
            self.fail("a forbidden access had an effect, or read something");
        }
    }

    fn read_distributor(&mut self) {
        let intid = self.interrupt();
        let offset = match self.random.below(4) {
            0 => u64::from(self.random.below(0x400) * 4),
            1 => return self.compare_read(GICD, GICD_IPRIORITYR + u64::from(intid), 1),
            2 => return self.compare_read(GICD, GICD_ITARGETSR + u64::from(intid), 1),
            _ => return self.compare_read(GICD, GICD_SPENDSGIR + u64::from(intid % 16), 1),
        };
        self.compare_read(GICD, offset, 4);
    }

    fn read_cpu_interface(&mut self) {
        let register = self.random.pick(&[
            GICC_CTLR, GICC_PMR, GICC_BPR, GICC_EOIR, GICC_RPR, GICC_ABPR, 0x2c, 0x40, GICC_APR, 0xe0, 0xf0, GICC_IIDR,
            GICC_DIR,
        ]);
        // Not 0x20 to 0x28. QEMU: has no GICC_AIAR, GICC_AEOIR and GICC_AHPPIR.
        self.compare_read(GICC, register, 4);
        self.compare_highest_pending();
    }
}
