//! One 8259A: requests in, the most urgent one out.

use super::registers::*;

/// How far the initialization has come (8259A, "Initialization command words").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum InitStep {
    /// Never begun: nothing is signalled yet.
    #[default]
    Icw1,
    /// The next write with A0 = 1 is ICW2.
    Icw2,
    /// The next write with A0 = 1 is ICW3.
    Icw3,
    /// The next write with A0 = 1 is ICW4.
    Icw4,
    /// Initialized.
    Done,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Chip {
    // What is configured.
    pub(super) is_master: bool,

    // What is plugged in.
    /// Inputs that are up.
    pub(super) lines: u8,

    // What the guest can change.
    /// Edges that were not acknowledged yet; no bit of a level-triggered input.
    pub(super) latched: u8,
    pub(super) isr: u8,
    pub(super) imr: u8,
    pub(super) elcr: u8,
    /// ICW2.
    pub(super) base: u8,
    pub(super) step: InitStep,
    /// ICW1.SNGL.
    pub(super) single: bool,
    /// ICW1.IC4.
    pub(super) wants_icw4: bool,
    /// ICW4.AEOI.
    pub(super) auto_eoi: bool,
    /// ICW4.SFNM.
    pub(super) special_fully_nested: bool,
    pub(super) rotate_in_auto_eoi: bool,
    /// OCW3: the special mask mode.
    pub(super) special_mask: bool,
    /// OCW3: the next read is a poll.
    pub(super) poll: bool,
    /// OCW3: A0 = 0 reads ISR and not IRR.
    pub(super) read_isr: bool,
    /// The input of the highest priority; the one before it has the lowest.
    pub(super) first: u8,
}

impl Chip {
    pub(super) fn new(is_master: bool) -> Self {
        Self {
            is_master,
            ..Self::default()
        }
    }

    /// Puts every register to its reset value. Lines stay as their devices hold them.
    pub(super) fn reset(&mut self) {
        let Self { is_master, lines, .. } = *self;
        *self = Self {
            lines,
            ..Self::new(is_master)
        };
    }

    pub(super) fn set_line(&mut self, input: u8, up: bool) {
        let bit = 1 << input;
        if up && self.lines & bit == 0 {
            self.edge(input);
        }
        self.lines = if up { self.lines | bit } else { self.lines & !bit };
    }

    /// A rise on an input. One that is level-triggered does not keep it.
    pub(super) fn edge(&mut self, input: u8) {
        self.latched |= 1 << input & !self.elcr;
    }

    pub(super) fn irr(&self) -> u8 {
        self.latched | self.lines & self.elcr
    }

    /// Of the inputs in `set`, the one with the highest priority, and how many have a higher one.
    fn most_urgent(&self, set: u8) -> Option<(u8, u32)> {
        let rank = set.rotate_right(self.first.into()).trailing_zeros();
        (set != 0).then_some(((self.first + rank as u8) & 7, rank))
    }

    /// INT, and the input that it is for.
    pub(super) fn request(&self) -> Option<u8> {
        if self.step != InitStep::Done {
            return None;
        }
        let (input, rank) = self.most_urgent(self.irr() & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        // A slave that is in service decides itself what is more urgent there.
        let nests = self.special_fully_nested && self.is_master && input == CASCADE;
        let blocked = self
            .most_urgent(in_service)
            .is_some_and(|(_, served)| served < rank || served == rank && !nests);
        (!blocked).then_some(input)
    }

    /// The interrupt acknowledge cycle: takes the request, `None` if there is none (any more).
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let input = self.request()?;
        self.latched &= !(1 << input);
        if !self.auto_eoi {
            self.isr |= 1 << input;
        } else if self.rotate_in_auto_eoi {
            self.make_lowest(input);
        }
        Some(input)
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.base | input
    }

    fn make_lowest(&mut self, input: u8) {
        self.first = (input + 1) & 7;
    }

    /// Reads a port. Not without effect while a poll is asked for: that is an acknowledge.
    pub(super) fn read(&mut self, port: u64) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.acknowledge().map_or(0, |input| POLL_REQUEST | input);
        }
        match port {
            COMMAND if self.read_isr => self.isr,
            COMMAND => self.irr(),
            _ => self.imr,
        }
    }

    pub(super) fn write(&mut self, port: u64, value: u8) {
        match port {
            COMMAND if value & ICW1 != 0 => self.initialize(value),
            COMMAND if value & OCW3 != 0 => self.ocw3(value),
            COMMAND => self.ocw2(value),
            _ => self.write_data(value),
        }
    }

    /// ICW1. What it resets is a list in the data sheet; that ISR is empty afterwards is left open there, but a guest
    /// that starts anew cannot know what to end.
    ///
    /// LTIM is not looked at: ELCR takes its place (PIIX4, section 4.2.1.1).
    fn initialize(&mut self, icw1: u8) {
        let Self {
            is_master,
            lines,
            elcr,
            base,
            ..
        } = *self;
        *self = Self {
            is_master,
            lines,
            elcr,
            base,
            step: InitStep::Icw2,
            single: icw1 & ICW1_SNGL != 0,
            wants_icw4: icw1 & ICW1_IC4 != 0,
            ..Self::default()
        };
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = match self.wants_icw4 {
            true => InitStep::Icw4,
            false => InitStep::Done,
        };
        match self.step {
            InitStep::Icw1 | InitStep::Done => self.imr = value,
            InitStep::Icw2 => {
                self.base = value & ICW2_BASE;
                self.step = if self.single { after_icw3 } else { InitStep::Icw3 };
            }
            // The cascade is wired: there is nothing to choose.
            InitStep::Icw3 => self.step = after_icw3,
            InitStep::Icw4 => {
                self.auto_eoi = value & ICW4_AEOI != 0;
                self.special_fully_nested = value & ICW4_SFNM != 0;
                self.step = InitStep::Done;
            }
        }
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & OCW2_LEVEL;
        match value >> OCW2_COMMAND_SHIFT {
            ocw2::ROTATE_IN_AEOI_CLEAR => self.rotate_in_auto_eoi = false,
            ocw2::ROTATE_IN_AEOI_SET => self.rotate_in_auto_eoi = true,
            ocw2::NON_SPECIFIC_EOI => _ = self.end_most_urgent(),
            ocw2::ROTATE_ON_NON_SPECIFIC_EOI => {
                if let Some(input) = self.end_most_urgent() {
                    self.make_lowest(input);
                }
            }
            ocw2::SPECIFIC_EOI => self.isr &= !(1 << level),
            ocw2::ROTATE_ON_SPECIFIC_EOI => {
                self.isr &= !(1 << level);
                self.make_lowest(level);
            }
            ocw2::SET_PRIORITY => self.make_lowest(level),
            _ => (),
        }
    }

    /// The non-specific EOI. In special mask mode it passes over masked inputs.
    fn end_most_urgent(&mut self) -> Option<u8> {
        let passed_over = if self.special_mask { self.imr } else { 0 };
        let (input, _) = self.most_urgent(self.isr & !passed_over)?;
        self.isr &= !(1 << input);
        Some(input)
    }

    fn ocw3(&mut self, value: u8) {
        self.poll = value & OCW3_P != 0;
        if value & OCW3_RR != 0 {
            self.read_isr = value & OCW3_RIS != 0;
        }
        if value & OCW3_ESMM != 0 {
            self.special_mask = value & OCW3_SMM != 0;
        }
    }

    pub(super) fn write_elcr(&mut self, value: u8) {
        self.elcr = value & ELCR_WRITABLE[usize::from(!self.is_master)];
        self.latched &= !self.elcr;
    }
}
