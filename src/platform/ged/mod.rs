//! The generic event device of hardware-reduced ACPI, with buttons, sleep and reset: *Advanced Configuration and Power
//! Interface Specification 6.5*, sections 5.6.9 and 4.8.3.7. Its registers are laid out as QEMU has them, which is what
//! `describe` tells the guest.
//!
//! What the model leaves out are the events of things that this crate does not plug: memory, CPUs, NVDIMMs.

mod describe;
mod registers;

use std::{
    fmt,
    sync::{Arc, Mutex},
};

pub use describe::describe;
pub use registers::{REGISTERS_SIZE, S5, SELECTOR_SIZE};

use crate::{
    bus::{BusDevice, read_le, write_le},
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
};
use registers::*;

/// What a guest asks of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerRequest {
    /// SLP_EN was set with this SLP_TYP: that of `\_S5`, which is [`S5`], is to power off.
    Sleep(u8),
    /// The reset register was written with its value.
    Reset,
}

/// The state of a [`Ged`], as plain data. Its line follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GedState {
    /// Events that the guest has not read.
    pub events: u32,
    /// SLP_TYP.
    pub sleep_type: u8,
    /// WAK_STS.
    pub woken: bool,
}

/// A [`GedState`] is not one that this device can have. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GedStateError {
    /// There are no such events.
    #[error("events {0:#010x}: there are none but {all:#010x}", all = event::ALL)]
    Events(u32),
    /// SLP_TYP has three bits.
    #[error("SLP_TYP is {0}: it is 7 at most")]
    SleepType(u8),
}

/// A generic event device. Clones are handles to the same, which lives as long as any of them or of its faces.
///
/// Its line is level-triggered: it is up as long as there are events that the guest has not read.
///
/// # Sleep and reset
/// The hook hears what the guest asks for, on the thread of that access, which goes on when it returns.
///
/// # Threads
/// Every method may be called from any thread, also from within the line and the hook: neither is called while the registers
/// are locked.
///
/// ```
/// use devisor::{bus::BusDevice, interrupt::NoInterrupt, platform::ged::Ged};
///
/// let ged = Ged::new(NoInterrupt, |request| println!("the guest: {request:?}"));
/// ged.press_power_button();
/// assert!(ged.interrupt().is_up());
/// let mut events = [0; 4];
/// ged.selector().read(0, &mut events);
/// assert_eq!(events, [2, 0, 0, 0]);
/// assert!(!ged.interrupt().is_up());
/// ged.registers().write(0, &[5 << 2 | 1 << 5]); // SLP_TYP of S5, SLP_EN
/// ```
pub struct Ged<L> {
    shared: Arc<Shared<L>>,
}

struct Shared<L> {
    // What is plugged in.
    line: LevelOutput<L>,
    hook: Box<dyn Fn(PowerRequest) + Send + Sync>,

    state: Mutex<GedState>,
}

impl<L: LevelInterrupt> Ged<L> {
    /// A device as after a reset. `line` is down.
    pub fn new(line: L, hook: impl Fn(PowerRequest) + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                line: LevelOutput::new(line),
                hook: Box::new(hook),
                state: Mutex::default(),
            }),
        }
    }

    /// The user presses the power button.
    pub fn press_power_button(&self) {
        self.shared.change(|state| state.events |= event::POWER_BUTTON);
    }

    /// The user presses the sleep button.
    pub fn press_sleep_button(&self) {
        self.shared.change(|state| state.events |= event::SLEEP_BUTTON);
    }

    /// The machine wakes from a sleep that it had gone to: WAK_STS.
    pub fn wake(&self) {
        self.shared.change(|state| state.woken = true);
    }

    /// The event selector.
    pub fn selector(&self) -> GedSelector<L> {
        let ged = Arc::clone(&self.shared);
        GedSelector { ged }
    }

    /// The sleep and reset registers.
    pub fn registers(&self) -> GedRegisters<L> {
        let ged = Arc::clone(&self.shared);
        GedRegisters { ged }
    }

    /// The interrupt line, for its level and its count of failures. What it refused is told again with the next access.
    pub fn interrupt(&self) -> &LevelOutput<L> {
        &self.shared.line
    }

    /// A reset of the system.
    pub fn reset(&self) {
        self.shared.change(|state| *state = GedState::default());
    }

    /// The state now.
    pub fn save(&self) -> GedState {
        *lock(&self.shared.state)
    }

    /// Takes over a saved state, all or nothing, and drives the line accordingly. Nothing is asked for.
    ///
    /// # Errors
    /// [`GedStateError`]: the state is not one that this device can have.
    pub fn restore(&self, state: &GedState) -> Result<(), GedStateError> {
        let GedState {
            events,
            sleep_type,
            woken: _,
        } = *state;
        if events & !event::ALL != 0 {
            return Err(GedStateError::Events(events));
        }
        if sleep_type > control::SLP_TYP >> control::SLP_TYP_SHIFT {
            return Err(GedStateError::SleepType(sleep_type));
        }
        self.shared.change(|here| *here = *state);
        Ok(())
    }
}

impl<L: LevelInterrupt> Shared<L> {
    /// Every access: makes the change, derives the line, then tells it with nothing locked.
    fn change<T>(&self, change: impl FnOnce(&mut GedState) -> T) -> T {
        let result = {
            let mut state = lock(&self.state);
            let result = change(&mut state);
            self.line.set(state.events != 0);
            result
        };
        // A refusal is counted by the output, and told again after the next change.
        let _ = self.line.settle();
        result
    }
}

/// The event selector: see [`Ged::selector`]. It is [`SELECTOR_SIZE`] bytes; other accesses read as zero and clear nothing.
pub struct GedSelector<L> {
    ged: Arc<Shared<L>>,
}

impl<L: LevelInterrupt> BusDevice for GedSelector<L> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let events = match (offset, data.len()) {
            (0, 4) => self.ged.change(|state| std::mem::take(&mut state.events)),
            _ => 0,
        };
        write_le(data, events.into());
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// The sleep and reset registers: see [`Ged::registers`], [`REGISTERS_SIZE`] bytes. Each is a byte; wider accesses read as
/// zero and write nothing.
pub struct GedRegisters<L> {
    ged: Arc<Shared<L>>,
}

impl<L: LevelInterrupt> BusDevice for GedRegisters<L> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match (offset, data.len()) {
            (SLEEP_CONTROL, 1) => self.ged.change(|state| state.sleep_type << control::SLP_TYP_SHIFT),
            (SLEEP_STATUS, 1) => self.ged.change(|state| if state.woken { WAK_STS } else { 0 }),
            _ => 0,
        };
        write_le(data, value.into());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if data.len() != 1 {
            return;
        }
        let value = read_le(data) as u8;
        let request = self.ged.change(|state| match offset {
            SLEEP_CONTROL => {
                state.sleep_type = (value & control::SLP_TYP) >> control::SLP_TYP_SHIFT;
                (value & control::SLP_EN != 0).then_some(PowerRequest::Sleep(state.sleep_type))
            }
            SLEEP_STATUS => {
                state.woken &= value & WAK_STS == 0;
                None
            }
            RESET => (value == RESET_VALUE).then_some(PowerRequest::Reset),
            _ => None,
        });
        if let Some(request) = request {
            (self.ged.hook)(request);
        }
    }
}

impl<L> Clone for Ged<L> {
    fn clone(&self) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { shared }
    }
}

impl<L> fmt::Debug for Ged<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ged")
            .field("state", &*lock(&self.shared.state))
            .field("line", &self.shared.line)
            .finish_non_exhaustive()
    }
}

impl<L> fmt::Debug for GedSelector<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GedSelector").finish_non_exhaustive()
    }
}

impl<L> fmt::Debug for GedRegisters<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GedRegisters").finish_non_exhaustive()
    }
}
