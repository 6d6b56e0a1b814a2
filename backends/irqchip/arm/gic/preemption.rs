//! Preemption: which priorities are active on a CPU, and what may interrupt them (IHI 0048B, 3.3).

use super::Group;

/// The part of a priority that decides on preemption: all bits above the binary point (3.3.3, table 3-2). A binary
/// point of 7 leaves none, so that nothing preempts anything.
pub(in super::super) fn group_priority_mask(binary_point: u8) -> u8 {
    (0xff00_u16 >> (7 - binary_point.min(7))) as u8
}

/// The priorities that are active on one CPU, as the active priorities registers show them: a bit for each preemption
/// level, and a set of bits for each group.
#[derive(Clone, Debug)]
pub(in super::super) struct ActivePriorities {
    /// The smallest binary point, which sets how many levels there are.
    min_binary_point: u8,
    levels: [[u32; 4]; 2],
}

impl ActivePriorities {
    /// For a GIC with this many bits of priority: each of them takes part in preemption, as far as the binary point
    /// reaches.
    pub fn new(priority_bits: u32) -> Self {
        Self {
            min_binary_point: 7_u32.saturating_sub(priority_bits) as u8,
            levels: [[0; 4]; 2],
        }
    }

    pub fn min_binary_point(&self) -> u8 {
        self.min_binary_point
    }

    /// The urgency of what runs now: its group priority, or `None` if nothing is active.
    pub fn running(&self) -> Option<u8> {
        let [zero, one] = &self.levels;
        let word = (0..4).find(|&word| zero[word] | one[word] != 0)?;
        let level = word as u32 * 32 + (zero[word] | one[word]).trailing_zeros();
        Some((level << self.shift()) as u8)
    }

    /// The group of what runs now.
    pub fn running_group(&self) -> Option<Group> {
        let [zero, one] = &self.levels;
        let word = (0..4).find(|&word| zero[word] | one[word] != 0)?;
        Some(match zero[word].trailing_zeros() <= one[word].trailing_zeros() {
            true => Group::Zero,
            false => Group::One,
        })
    }

    /// Whether an interrupt of this priority interrupts what runs now, where `mask` leaves the group priority.
    pub fn preempted_by(&self, priority: u8, mask: u8) -> bool {
        self.running().is_none_or(|running| priority & mask < running & mask)
    }

    /// An interrupt is acknowledged: the level of its group priority becomes active.
    pub fn activate(&mut self, group: Group, priority: u8, mask: u8) {
        let level = (priority & mask) >> self.shift();
        self.levels[group as usize][usize::from(level / 32)] |= 1 << (level % 32);
    }

    /// The most urgent level of a group is no longer active.
    pub fn drop_priority(&mut self, group: Group) {
        if let Some(word) = self.levels[group as usize].iter_mut().find(|word| **word != 0) {
            *word &= *word - 1;
        }
    }

    /// An active priorities register.
    pub fn register(&self, group: Group, index: usize) -> u32 {
        self.levels[group as usize][index]
    }

    /// Sets an active priorities register; bits of levels that do not exist stay clear.
    pub fn set_register(&mut self, group: Group, index: usize, value: u32) {
        self.levels[group as usize][index] = value & self.register_mask(index);
    }

    /// The bits of an active priorities register that stand for a level.
    pub fn register_mask(&self, index: usize) -> u32 {
        let levels = 1_u64 << (8 - self.shift());
        let below = levels.saturating_sub(index as u64 * 32).min(32);
        ((1_u64 << below) - 1) as u32
    }

    fn shift(&self) -> u32 {
        u32::from(self.min_binary_point) + 1
    }
}

/// The bits of a priority that are implemented.
pub(in super::super) fn implemented(priority_bits: u32) -> u8 {
    (0xff_u32 << (8 - priority_bits)) as u8
}

/// The registers of a CPU interface that decide what a CPU is signalled: GICC_* in version 2, ICC_* in version 3.
#[derive(Clone, Debug)]
pub(in super::super) struct Preemption {
    implemented: u8,
    /// PMR: only what is more urgent is signalled.
    priority_mask: u8,
    /// BPR, ICC_BPR0_EL1.
    binary_point: u8,
    /// ABPR, ICC_BPR1_EL1: for Group 1, unless CBPR makes the other one common to both.
    aliased_binary_point: u8,
    /// The active priorities registers.
    pub active: ActivePriorities,
}

impl Preemption {
    pub fn new(priority_bits: u32) -> Self {
        let active = ActivePriorities::new(priority_bits);
        Self {
            implemented: implemented(priority_bits),
            priority_mask: 0,
            binary_point: active.min_binary_point(),
            aliased_binary_point: active.min_binary_point() + 1,
            active,
        }
    }

    pub fn priority_mask(&self) -> u8 {
        self.priority_mask
    }

    pub fn set_priority_mask(&mut self, value: u8) {
        self.priority_mask = value & self.implemented;
    }

    pub fn binary_point(&self) -> u8 {
        self.binary_point
    }

    pub fn set_binary_point(&mut self, value: u8) {
        self.binary_point = (value & 0b111).max(self.active.min_binary_point());
    }

    pub fn aliased_binary_point(&self) -> u8 {
        self.aliased_binary_point
    }

    pub fn set_aliased_binary_point(&mut self, value: u8) {
        self.aliased_binary_point = (value & 0b111).max(self.active.min_binary_point() + 1);
    }

    /// Which bits of a group's priority decide on preemption (3.3.3). The one for Group 1 counts from 1 (4.4.8), and
    /// is not used where the other is `common`.
    fn group_priority_mask(&self, group: Group, common: bool) -> u8 {
        group_priority_mask(match group {
            Group::One if !common => self.aliased_binary_point - 1,
            _ => self.binary_point,
        })
    }

    /// Whether an interrupt is urgent enough to be signalled: for the mask, and for what runs now.
    pub fn admits(&self, priority: u8, group: Group, common: bool) -> bool {
        priority < self.priority_mask
            && self
                .active
                .preempted_by(priority, self.group_priority_mask(group, common))
    }

    /// An interrupt is acknowledged.
    pub fn activate(&mut self, priority: u8, group: Group, common: bool) {
        let mask = self.group_priority_mask(group, common);
        self.active.activate(group, priority, mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_point_parts_the_priority_as_in_table_3_2() {
        let masks: Vec<u8> = (0..8).map(group_priority_mask).collect();
        assert_eq!(masks, [0xfe, 0xfc, 0xf8, 0xf0, 0xe0, 0xc0, 0x80, 0x00]);
    }

    #[test]
    fn the_priority_bits_decide_how_many_levels_there_are() {
        let masks = |bits| [0, 1, 2, 3].map(|index| ActivePriorities::new(bits).register_mask(index));
        const ALL: u32 = u32::MAX;
        assert_eq!(masks(8), [ALL; 4]);
        assert_eq!(masks(7), [ALL; 4]);
        assert_eq!(masks(6), [ALL, ALL, 0, 0]);
        assert_eq!(masks(5), [ALL, 0, 0, 0]);
        assert_eq!(masks(4), [0xffff, 0, 0, 0]);
    }

    #[test]
    fn the_running_priority_is_the_most_urgent_of_both_groups() {
        let mut active = ActivePriorities::new(5);
        assert_eq!(active.running(), None);
        active.activate(Group::One, 0xa7, 0xf8);
        assert_eq!(active.running(), Some(0xa0));
        active.activate(Group::Zero, 0x10, 0xf8);
        assert_eq!(active.running(), Some(0x10));
        active.drop_priority(Group::Zero);
        assert_eq!(active.running(), Some(0xa0));
        active.drop_priority(Group::Zero);
        assert_eq!(active.running(), Some(0xa0), "Group 0 has none left to drop");
    }
}
