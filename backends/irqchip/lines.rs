//! The lines into a controller's inputs, the same for every controller that has pins.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::interrupt::{Interrupt, LevelInterrupt};

/// A controller whose inputs can be driven. It numbers them by itself.
pub(super) trait Inputs: Send + Sync {
    /// Under the controller's lock, asks `held` whether its holding or letting go is new; if so, one handle more or one
    /// less holds the input up. Then, with nothing locked, tells outputs what came of it.
    fn hold(&self, input: u32, held: &Held, up: bool);

    /// A pulse of the input. Then tells outputs what came of it.
    fn pulse(&self, input: u32);

    /// What the input is called.
    fn name(&self, input: u32) -> String;
}

/// Whether a handle holds its input up. Changes under the lock of the controller only, so that its count of holders is
/// right also while several threads drive one handle.
#[derive(Debug, Default)]
pub(super) struct Held(AtomicBool);

impl Held {
    /// Whether this is new.
    pub(super) fn set(&self, up: bool) -> bool {
        let is_new = self.0.load(Ordering::Relaxed) != up;
        if is_new {
            self.0.store(up, Ordering::Relaxed);
        }
        is_new
    }
}

/// A device's level line into an input: `trigger` drives it high and `clear` low. Dropping it lets go of the line.
///
/// Several handles of one input are a wired-OR. The controller takes every change, so the calls are never an `Err`: what an
/// output of the controller refuses is the controller's to tell again, as it says for itself, and the device has nothing to
/// remember.
pub struct LevelLine {
    controller: Arc<dyn Inputs>,
    input: u32,
    held: Held,
}

impl LevelLine {
    pub(super) fn new(controller: Arc<dyn Inputs>, input: u32) -> Self {
        Self {
            controller,
            input,
            held: Held::default(),
        }
    }
}

impl Interrupt for LevelLine {
    fn trigger(&self) -> io::Result<()> {
        self.controller.hold(self.input, &self.held, true);
        Ok(())
    }
}

impl LevelInterrupt for LevelLine {
    fn clear(&self) -> io::Result<()> {
        self.controller.hold(self.input, &self.held, false);
        Ok(())
    }
}

impl Drop for LevelLine {
    fn drop(&mut self) {
        self.controller.hold(self.input, &self.held, false);
    }
}

impl fmt::Debug for LevelLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelLine")
            .field("input", &format_args!("{}", self.controller.name(self.input)))
            .field("up", &self.held.0.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// A device's edge line into an input: each trigger is a pulse, whatever the level that a [`LevelLine`] of the same input
/// holds.
///
/// As with the level line, the controller takes every pulse, so `trigger` is never an `Err`.
pub struct EdgeLine {
    controller: Arc<dyn Inputs>,
    input: u32,
}

impl EdgeLine {
    pub(super) fn new(controller: Arc<dyn Inputs>, input: u32) -> Self {
        Self { controller, input }
    }
}

impl Interrupt for EdgeLine {
    fn trigger(&self) -> io::Result<()> {
        self.controller.pulse(self.input);
        Ok(())
    }
}

impl fmt::Debug for EdgeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeLine")
            .field("input", &format_args!("{}", self.controller.name(self.input)))
            .finish_non_exhaustive()
    }
}
