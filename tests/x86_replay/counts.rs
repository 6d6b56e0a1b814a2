//! What was compared.

use std::time::Duration;

#[derive(Debug, Default)]
pub struct Counts {
    pub events: usize,
    /// Reads of which all bits were compared, and those of which not all were.
    pub reads: usize,
    pub partly: usize,
    /// Reads of a counter.
    pub counters: usize,
    /// Messages of the IOAPIC.
    pub messages: usize,
    /// Interrupts taken from a local APIC, and from the 8259s.
    pub taken: usize,
    pub external: usize,
    /// INITs and start-ups that a CPU has heard.
    pub started: usize,
    /// Timers of local APICs that expired, and rises of the 8254's first output.
    pub expired: usize,
    pub rises: usize,
    /// Those of both that QEMU told of within a millisecond.
    pub prompt: usize,
    pub migrations: usize,
}

impl Counts {
    /// A timer has done so, with QEMU that much later than ours says.
    pub fn goes_off(&mut self, late: Duration) {
        self.prompt += usize::from(late < Duration::from_millis(1));
    }

    pub fn compare(&mut self, ours: u64, theirs: u64, determined: u64) -> Result<(), String> {
        match determined {
            u64::MAX => self.reads += 1,
            _ => self.partly += 1,
        }
        match (ours ^ theirs) & determined {
            0 => Ok(()),
            _ => Err(format!("ours is {ours:x}")),
        }
    }
}
