//! The two models side by side: how both are reached, and what is compared.

use crate::{
    beside::{Random, Steps},
    counts::Counts,
    ours::Ours,
    qtest::Qtest,
    registers::*,
    view::View,
};
use devisor::{
    backends::irqchip::{InterruptState, gicv2::GicV2State},
    bus::{BusDevice, read_le},
};
use std::{collections::BTreeSet, sync::atomic::Ordering::SeqCst};

/// The two models, and what the generator remembers.
pub struct Pair {
    pub qemu: Qtest,
    pub ours: Ours,
    pub random: Random,
    /// The interrupts that this episode plays with, so that they meet.
    pub favourites: Vec<u32>,
    pub acknowledged: Vec<u32>,
    /// SPIs that were made active by GICD_ISACTIVERn.
    pub forced_active: BTreeSet<u32>,
    pub steps: Steps,
    pub counts: Counts,
}

impl Pair {
    pub fn new(mut qemu: Qtest, seed: u64) -> Self {
        qemu.intercept_inputs(CPU);
        Self {
            qemu,
            ours: Ours::new(),
            random: Random(seed),
            favourites: Vec::new(),
            acknowledged: Vec::new(),
            forced_active: BTreeSet::new(),
            steps: Steps::new(seed),
            counts: Counts::default(),
        }
    }

    // What is compared.

    pub fn compare_outputs(&mut self) {
        let view = self.view();
        if view.binary_point_moved() {
            // QEMU: compares a whole priority with the running one, which is the same only while the running one was
            // made with the binary point as it is now.
            self.counts.excluded += 1;
            return;
        }
        let (mut irq, mut fiq) = (self.ours.irq.load(SeqCst), self.ours.fiq.load(SeqCst));
        if view.distributor_hides() {
            // QEMU: a pending interrupt of a group that GICD_CTLR disables hides those of the other (the choice that
            // IGNORE_GROUP_ENABLE names in the architecture's pseudocode). Ours made the other choice.
            (irq, fiq) = (false, false);
        }
        self.counts.outputs += 2;
        self.expect_equal("IRQ", self.qemu.level(0).into(), irq.into());
        self.expect_equal("FIQ", self.qemu.level(1).into(), fiq.into());
    }

    pub fn compare_highest_pending(&mut self) {
        let view = self.view();
        if view.disabled_group_first() {
            // QEMU: shows interrupts of disabled groups.
            self.counts.excluded += 1;
            return;
        }
        let (qemu, mut ours) = (self.read_qemu(GICC, GICC_HPPIR, 4), self.read_ours(GICC, GICC_HPPIR, 4));
        if view.first.is_some_and(|(priority, _)| priority >= view.priority_mask) {
            // QEMU: shows only what GICC_PMR lets pass; the architecture does not ask for that.
            ours = SPURIOUS;
        }
        self.compare("GICC_HPPIR", qemu, ours);
    }

    pub fn sweep(&mut self) {
        for offset in [0x000, 0x004, 0x008].into_iter().chain((0xf00..0x1000).step_by(4)) {
            self.compare_read(GICD, offset, 4);
        }
        for word in 0..=INTERRUPTS / 32 {
            for array in (GICD_IGROUPR..GICD_IPRIORITYR).step_by(0x80) {
                self.compare_read(GICD, array + u64::from(word * 4), 4);
            }
        }
        for word in 0..=INTERRUPTS / 16 {
            self.compare_read(GICD, GICD_ICFGR + u64::from(word * 4), 4);
        }
        for intid in self.favourites.clone() {
            self.compare_read(GICD, GICD_IPRIORITYR + u64::from(intid & !3), 4);
            self.compare_read(GICD, GICD_ITARGETSR + u64::from(intid & !3), 4);
        }
        for register in [GICC_CTLR, GICC_PMR, GICC_BPR, GICC_RPR, GICC_ABPR]
            .into_iter()
            .chain((0xd0..0x100).step_by(4))
        {
            self.compare_read(GICC, register, 4);
        }
        self.compare_highest_pending();
    }

    pub fn compare_read(&mut self, base: u64, offset: u64, width: usize) {
        let (qemu, ours) = (self.read_qemu(base, offset, width), self.read_ours(base, offset, width));
        self.compare(&format!("{:#x}", base + offset), qemu, ours);
    }

    pub fn compare(&mut self, what: &str, qemu: u32, ours: u32) {
        self.counts.reads += 1;
        self.expect_equal(what, qemu, ours);
    }

    pub fn expect_equal(&self, what: &str, qemu: u32, ours: u32) {
        if qemu != ours {
            self.fail(&format!("{what}: QEMU has {qemu:#x}, ours {ours:#x}"));
        }
    }

    pub fn fail(&self, what: &str) -> ! {
        self.steps.fail(what, self.counts.steps, &self.view())
    }

    // How the two are reached.

    pub fn write_both(&mut self, base: u64, offset: u64, width: usize, value: u32) {
        self.note(format!("write of {width} bytes at {:#x}: {value:#x}", base + offset));
        self.qemu.write(base + offset, width, value.into());
        self.write_ours(base, offset, width, value);
    }

    /// A write to the distributor that does nothing in ours. What QEMU makes of it instead is said where it is called.
    pub fn write_nothing(&mut self, offset: u64, width: usize, value: u32) {
        self.note(format!(
            "write without effect of {width} bytes at {offset:#x}: {value:#x}"
        ));
        let before = self.ours.gic.save();
        self.write_ours(GICD, offset, width, value);
        if before != self.ours.gic.save() {
            self.fail("a write that does nothing did something");
        }
    }

    pub fn write_ours(&mut self, base: u64, offset: u64, width: usize, value: u32) {
        let data = &value.to_le_bytes()[..width];
        if base == GICD {
            self.ours.distributor.write(offset, data)
        } else {
            self.ours.cpu.write(offset, data)
        }
    }

    pub fn read_ours(&mut self, base: u64, offset: u64, width: usize) -> u32 {
        let mut data = [0; 4];
        let data = &mut data[..width];
        if base == GICD {
            self.ours.distributor.read(offset, data)
        } else {
            self.ours.cpu.read(offset, data)
        }
        read_le(data) as u32
    }

    pub fn read_qemu(&mut self, base: u64, offset: u64, width: usize) -> u32 {
        self.note(format!("read of {width} bytes at {:#x}", base + offset));
        self.qemu.read(base + offset, width) as u32
    }

    pub fn note(&mut self, line: String) {
        self.steps.note(line);
    }

    pub fn interrupt(&mut self) -> u32 {
        match self.random.below(8) {
            0 => self.random.below(INTERRUPTS),
            _ => self.random.pick(&self.favourites),
        }
    }

    pub fn interrupt_state(&self, intid: u32) -> InterruptState {
        let GicV2State { cpus, spis, .. } = self.ours.gic.save();
        match intid.checked_sub(32) {
            None => cpus[0].private[intid as usize],
            Some(spi) => spis.get(spi as usize).map(|spi| spi.state).unwrap_or_default(),
        }
    }

    pub fn view(&self) -> View {
        let state = self.ours.gic.save();
        let cpu = &state.cpus[0];
        let all = cpu.private.iter().chain(state.spis.iter().map(|spi| &spi.state));
        let first = all
            .enumerate()
            .filter(|(_, state)| state.enabled && state.pending() && !state.active)
            .min_by_key(|(intid, state)| (state.priority, *intid))
            .map(|(_, state)| (state.priority, state.group));
        let levels = cpu.active_priorities.iter().zip(&cpu.non_secure_active_priorities);
        let running = levels
            .enumerate()
            .find(|(_, (zero, one))| *zero | *one != 0)
            .map(|(word, (zero, one))| (word as u32 * 32 + (zero | one).trailing_zeros()) << 1);
        View {
            distributor_control: state.control,
            interface_control: cpu.control,
            priority_mask: cpu.priority_mask,
            binary_point: cpu.binary_point,
            aliased_binary_point: cpu.aliased_binary_point,
            first,
            running,
        }
    }
}
