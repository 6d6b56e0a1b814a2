//! The PL061 general-purpose I/O, as in *PrimeCell General Purpose Input/Output (PL061) Technical Reference Manual*, ARM DDI 0190B.
//!
//! What the model leaves out: hardware control of pins (GPIOAFSEL reads back and changes nothing), and pins that nobody drives.

mod describe;
mod gpio;
mod registers;

use std::{fmt, sync::Mutex};

use super::primecell;
use crate::{
    bus::{BusDevice, read_le, write_le},
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
};
use gpio::Gpio;

pub use describe::describe;

/// Bytes of the device's register region.
pub const REGION_SIZE: u64 = primecell::REGION_SIZE;

/// How many pins there are.
pub const PINS: usize = 8;

/// A PL061: its registers are its [`BusDevice`] face, `L` is its GPIOINTR and what its pins are, as outputs, connected to.
///
/// All pins are inputs and down until the guest or the host says otherwise. A board's power button is an input that goes up for a
/// moment; its power off, an output.
///
/// # Threads
/// Every method may be called from any thread, also from within the lines: none of them is called while the registers are locked.
///
/// ```
/// use devisor::{bus::BusDevice, interrupt::NoInterrupt, platform::pl061::Pl061};
///
/// let gpio = Pl061::new(NoInterrupt, [NoInterrupt; 8]);
/// gpio.write(0x40c, &[1 << 3]); // GPIOIEV: a rise
/// gpio.write(0x410, &[1 << 3]); // GPIOIE: of pin 3 interrupts.
/// gpio.set_inputs(1 << 3, true);
/// gpio.set_inputs(1 << 3, false);
/// assert!(gpio.interrupt().is_up());
/// gpio.write(0x41c, &[1 << 3]); // GPIOIC
/// assert!(!gpio.interrupt().is_up());
/// ```
pub struct Pl061<L> {
    // What is plugged in.
    interrupt: LevelOutput<L>,
    outputs: [LevelOutput<L>; PINS],

    registers: Mutex<Gpio>,
}

/// Everything about a [`Pl061`] that its guest can see, a bit for each pin. Every value is one that it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pl061State {
    /// What the outside drives.
    pub inputs: u8,
    /// What the guest drives, or did last.
    pub data: u8,
    /// GPIODIR.
    pub dir: u8,
    /// GPIOIS.
    pub is: u8,
    /// GPIOIBE.
    pub ibe: u8,
    /// GPIOIEV.
    pub iev: u8,
    /// GPIOIE.
    pub ie: u8,
    /// GPIOAFSEL.
    pub afsel: u8,
    /// Edges that were seen and not cleared.
    pub edges: u8,
}

impl<L: LevelInterrupt> Pl061<L> {
    /// Pins as after a reset. `interrupt` and `outputs` are down.
    pub fn new(interrupt: L, outputs: [L; PINS]) -> Self {
        Self {
            interrupt: LevelOutput::new(interrupt),
            outputs: outputs.map(LevelOutput::new),
            registers: Mutex::default(),
        }
    }

    /// The outside drives the pins that are set in `pins` up or down. Those that are outputs hear of it when they are inputs.
    pub fn set_inputs(&self, pins: u8, up: bool) {
        self.change(|gpio| gpio.set_inputs(pins, up));
    }

    /// The levels that the guest drives, of the pins that are outputs.
    pub fn outputs(&self) -> u8 {
        lock(&self.registers).outputs()
    }

    /// A reset of the system. The inputs stay as the outside drives them.
    pub fn reset(&self) {
        self.change(|gpio| {
            *gpio = Gpio {
                inputs: gpio.inputs,
                ..Gpio::default()
            };
        });
    }

    /// The interrupt line, for its level and its count of failures.
    pub fn interrupt(&self) -> &LevelOutput<L> {
        &self.interrupt
    }

    /// Every access: makes the change, derives the outputs, then tells them with nothing locked.
    fn change<T>(&self, change: impl FnOnce(&mut Gpio) -> T) -> T {
        let result = {
            let mut gpio = lock(&self.registers);
            let result = change(&mut gpio);
            self.interrupt.set(gpio.mis() != 0);
            for (pin, output) in self.outputs.iter().enumerate() {
                output.set(gpio.outputs() >> pin & 1 != 0);
            }
            result
        };
        for output in self.outputs.iter().chain([&self.interrupt]) {
            // A refusal is counted by the output, and told again after the next change.
            let _ = output.settle();
        }
        result
    }

    /// The state now.
    pub fn save(&self) -> Pl061State {
        let Gpio {
            inputs,
            data,
            dir,
            is,
            ibe,
            iev,
            ie,
            afsel,
            edges,
        } = *lock(&self.registers);
        Pl061State {
            inputs,
            data,
            dir,
            is,
            ibe,
            iev,
            ie,
            afsel,
            edges,
        }
    }

    /// Takes over a saved state and drives the lines accordingly. Inputs are as they were when it was saved, so that no edge is made
    /// up: drive them anew, if the outside drives others now.
    pub fn restore(&self, state: &Pl061State) {
        let Pl061State {
            inputs,
            data,
            dir,
            is,
            ibe,
            iev,
            ie,
            afsel,
            edges,
        } = *state;
        self.change(|gpio| {
            *gpio = Gpio {
                inputs,
                data,
                dir,
                is,
                ibe,
                iev,
                ie,
                afsel,
                edges,
            };
        });
    }
}

/// Registers answer to accesses of 1, 2 and 4 bytes at their first byte; all others read as zero and write nothing.
impl<L: LevelInterrupt> BusDevice for Pl061<L> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let register = primecell::register(offset, data.len());
        let value = register.map_or(0, |register| self.change(|gpio| gpio.read(register)));
        write_le(data, value.into());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(register) = primecell::register(offset, data.len()) {
            self.change(|gpio| gpio.write(register, read_le(data) as u8));
        }
    }
}

impl<L> fmt::Debug for Pl061<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pl061")
            .field("registers", &*lock(&self.registers))
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}
