//! The registers behind their lock, at ticks of the timer. Nothing here calls out.

use std::time::Duration;

use super::{AcpiPmConfig, registers::*};

const NANOSECONDS: u128 = 1_000_000_000;
/// Ticks of a clock. What is beyond forty thousand years of them stands still.
const MAX_TICKS: u64 = 1 << 62;

pub(super) fn ticks_of(now: Duration) -> u64 {
    let ticks = now.as_nanos().saturating_mul(HZ.into()) / NANOSECONDS;
    u64::try_from(ticks).unwrap_or(u64::MAX).min(MAX_TICKS)
}

/// The first nanosecond of a tick.
fn time_of(ticks: u64) -> Duration {
    let nanoseconds = (u128::from(ticks) * NANOSECONDS).div_ceil(HZ.into());
    Duration::new((nanoseconds / NANOSECONDS) as u64, (nanoseconds % NANOSECONDS) as u32)
}

/// Eight GPEs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gpes {
    pub(super) status: u8,
    pub(super) enable: u8,
    /// How many line handles hold each up.
    pub(super) holders: [u32; 8],
}

impl Gpes {
    /// Clears status bits. That of a line that is up is set again at once.
    pub(super) fn clear(&mut self, bits: u8) {
        let held = (0..8).filter(|bit| self.holders[*bit] != 0);
        self.status = held.fold(self.status & !bits, |status, bit| status | 1 << bit);
    }
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) config: AcpiPmConfig,
    /// The tick of the clock up to which everything has happened.
    pub(super) host: u64,
    /// The timer at that tick.
    pub(super) timer: u64,

    // What the guest can change.
    pub(super) status: u16,
    pub(super) enable: u16,
    /// With SCI_EN.
    pub(super) control: u16,
    pub(super) gpes: Vec<Gpes>,

    /// The guest goes to sleep: what the outside is to be told once the lock is released.
    pub(super) sleep: Option<u8>,
}

impl Model {
    pub(super) fn new(config: AcpiPmConfig, host: u64) -> Self {
        Self {
            config,
            host,
            timer: 0,
            status: 0,
            enable: 0,
            control: sci_en(config.acpi_mode),
            gpes: vec![Gpes::default(); config.gpes as usize / 8],
            sleep: None,
        }
    }

    /// A reset of the system. The timer goes on, and lines stay as they are held.
    pub(super) fn reset(&mut self) {
        self.status = 0;
        self.enable = 0;
        self.control = sci_en(self.config.acpi_mode);
        for gpes in &mut self.gpes {
            gpes.clear(0xff);
            gpes.enable = 0;
        }
    }

    /// Lets the time up to `now` happen. A `now` that has passed already is no time.
    pub(super) fn advance(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.host);
        self.host += elapsed;
        let counted = self.timer + elapsed;
        // The highest bit has changed, in either direction (4.8.3.3).
        if self.timer >> self.top() != counted >> self.top() {
            self.status |= pm1::TMR;
        }
        self.timer = counted & u64::from(self.config.timer.mask());
    }

    /// The number of the timer's highest bit.
    fn top(&self) -> u32 {
        self.config.timer.bits() - 1
    }

    fn in_acpi_mode(&self) -> bool {
        self.control & control::SCI_EN != 0
    }

    /// Whether the line is up: the one place from which it is derived.
    pub(super) fn sci(&self) -> bool {
        let fixed = self.status & self.enable & pm1::ENABLES != 0;
        let general = self.gpes.iter().any(|gpes| gpes.status & gpes.enable != 0);
        self.in_acpi_mode() && (fixed || general)
    }

    /// When the line will rise by itself.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let waits = self.in_acpi_mode() && !self.sci() && self.enable & pm1::TMR != 0;
        if !waits {
            return None;
        }
        let half = 1 << self.top();
        let at = self.host + half - self.timer % half;
        (at <= MAX_TICKS).then(|| time_of(at))
    }

    pub(super) fn event_block(&self) -> [u8; EVENT_BLOCK] {
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        [s0, s1, e0, e1]
    }

    /// A byte of the event block: ones clear the status.
    pub(super) fn write_event(&mut self, at: u64, byte: u8) {
        let shifted = |shift: u64| u16::from(byte) << (8 * shift);
        match at {
            0 | 1 => self.status &= !shifted(at),
            2 | 3 => self.enable = (self.enable & !(0xff << (8 * (at - 2))) | shifted(at - 2)) & pm1::ENABLES,
            _ => {}
        }
    }

    /// A byte of the control block. SCI_EN is the firmware's to change, by the SMI command port.
    pub(super) fn write_control(&mut self, at: u64, byte: u8) {
        if at >= CONTROL_BLOCK as u64 {
            return;
        }
        let shift = 8 * at;
        let kept = control::KEPT & 0xff << shift;
        let value = u16::from(byte) << shift;
        self.control = self.control & !kept | value & kept;
        if value & control::SLP_EN != 0 {
            self.sleep = Some(((self.control & control::SLP_TYP) >> control::SLP_TYP_SHIFT) as u8);
        }
    }

    pub(super) fn set_acpi_mode(&mut self, on: bool) {
        self.control = self.control & !control::SCI_EN | sci_en(on);
    }

    /// Bytes of the GPE block.
    pub(super) fn gpe_block(&self) -> u64 {
        2 * self.gpes.len() as u64
    }

    /// A byte of the GPE block: all status registers, then all enable registers.
    pub(super) fn read_gpe(&self, at: u64) -> u8 {
        let count = self.gpes.len() as u64;
        let gpes = |index: u64| usize::try_from(index).ok().and_then(|index| self.gpes.get(index));
        match at.checked_sub(count) {
            None => gpes(at).map_or(0, |gpes| gpes.status),
            Some(at) => gpes(at).map_or(0, |gpes| gpes.enable),
        }
    }

    pub(super) fn write_gpe(&mut self, at: u64, byte: u8) {
        let count = self.gpes.len() as u64;
        let is_status = at < count;
        let index = if is_status { at } else { at - count };
        let gpes = usize::try_from(index).ok().and_then(|index| self.gpes.get_mut(index));
        match (gpes, is_status) {
            (Some(gpes), true) => gpes.clear(byte),
            (Some(gpes), false) => gpes.enable = byte,
            (None, _) => {}
        }
    }

    pub(super) fn latch_gpe(&mut self, gpe: u32) {
        self.gpes[gpe as usize / 8].status |= 1 << (gpe % 8);
    }

    /// A line handle takes hold of a GPE, or lets go of it.
    pub(super) fn hold_gpe(&mut self, gpe: u32, up: bool) {
        let gpes = &mut self.gpes[gpe as usize / 8];
        let holders = &mut gpes.holders[gpe as usize % 8];
        *holders = match up {
            true => holders.saturating_add(1),
            false => holders.saturating_sub(1),
        };
        if up {
            gpes.status |= 1 << (gpe % 8);
        }
    }
}

fn sci_en(on: bool) -> u16 {
    if on { control::SCI_EN } else { 0 }
}
