//! The lines of devices into a GIC.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::IntId;
use crate::interrupt::{Interrupt, LevelInterrupt};

/// Where lines lead: the inputs of a GIC.
pub(super) trait Inputs: Send + Sync {
    /// A handle holds an input up, or lets go of it. `held` says what the handle does now; it changes under the lock of
    /// the input only. Whether that is new, and what the outputs answered.
    fn hold(&self, input: Input, held: &AtomicBool, up: bool) -> (bool, io::Result<()>);

    /// A pulse on an input. What the outputs answered.
    fn pulse(&self, input: Input) -> io::Result<()>;
}

/// Which input.
#[derive(Clone, Copy)]
pub(super) struct Input {
    /// The CPU of a private interrupt. Does not matter for an SPI.
    pub(super) cpu: usize,
    pub(super) intid: u32,
}

/// A device's level line into a GIC. Dropping it lets go of the line.
pub struct LevelLine {
    gic: Arc<dyn Inputs>,
    input: Input,
    /// Whether this handle holds the line up.
    up: AtomicBool,
}

impl LevelLine {
    pub(super) fn new(gic: Arc<dyn Inputs>, input: Input) -> Self {
        Self {
            gic,
            input,
            up: AtomicBool::new(false),
        }
    }

    fn drive(&self, up: bool) -> (bool, io::Result<()>) {
        self.gic.hold(self.input, &self.up, up)
    }
}

/// An `Err` says that an output of a CPU refused to be told. The line is then as it was: what its device failed to raise,
/// it does not clear.
impl Interrupt for LevelLine {
    fn trigger(&self) -> io::Result<()> {
        let (raised, told) = self.drive(true);
        if raised && told.is_err() {
            let _ = self.drive(false);
        }
        told
    }
}

/// Never refused: the GIC has the level, and tells an output that refused again with the next change that concerns it, and
/// when its CPU finds nothing to acknowledge.
impl LevelInterrupt for LevelLine {
    fn clear(&self) -> io::Result<()> {
        let _ = self.drive(false);
        Ok(())
    }
}

impl Drop for LevelLine {
    fn drop(&mut self) {
        let _ = self.drive(false);
    }
}

impl fmt::Debug for LevelLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelLine")
            .field("intid", &IntId(self.input.intid))
            .field("up", &self.up.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// An edge line into a GIC.
pub struct EdgeLine {
    gic: Arc<dyn Inputs>,
    input: Input,
}

impl EdgeLine {
    pub(super) fn new(gic: Arc<dyn Inputs>, input: Input) -> Self {
        Self { gic, input }
    }
}

/// An `Err` says that an output of a CPU refused to be told. The interrupt is pending all the same.
impl Interrupt for EdgeLine {
    fn trigger(&self) -> io::Result<()> {
        self.gic.pulse(self.input)
    }
}

impl fmt::Debug for EdgeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeLine")
            .field("intid", &IntId(self.input.intid))
            .finish_non_exhaustive()
    }
}
