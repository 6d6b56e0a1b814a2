//! Saved states of the controller.

use super::{
    Source,
    controller::{Controller, takes_argument},
    keyboard::KeyboardState,
    mouse::MouseState,
    registers::*,
};

/// The state of an [`I8042`](super::I8042), as plain data. The lines follow from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct I8042State {
    /// The controller's memory. Byte 0 is the command byte.
    pub memory: [u8; MEMORY],
    /// The system flag of the status register.
    pub system: bool,
    /// The last write was to the command port.
    pub was_command: bool,
    /// The command whose argument comes next.
    pub argument_of: Option<u8>,
    /// The output port, bits 0 and 1: reset, which is low if it is clear, and A20.
    pub output_port: u8,
    /// The output buffer, or what was in it last.
    pub buffer: u8,
    /// Where what is in the output buffer comes from, if it is full.
    pub full: Option<Source>,
    /// What the controller itself puts there next.
    pub answer: Option<(Source, u8)>,
    /// The translation has taken off a 0xf0, and the next code is that of a released key.
    pub released: bool,
    /// The keyboard.
    pub keyboard: KeyboardState,
    /// The mouse.
    pub mouse: MouseState,
}

/// An [`I8042State`] is not one that a controller can have: what is wrong. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct I8042StateError(&'static str);

impl I8042State {
    fn check(&self) -> Result<(), I8042StateError> {
        let Self {
            memory,
            system: _,
            was_command: _,
            argument_of,
            output_port,
            buffer: _,
            full: _,
            answer: _,
            released: _,
            keyboard,
            mouse,
        } = self;
        let checks = [
            (
                memory[0] & !command_byte::WRITABLE == 0,
                "the command byte has bits 0 to 6",
            ),
            (
                argument_of.is_none_or(takes_argument),
                "the controller's commands with an argument are 0x60 to 0x7f and 0xd1 to 0xd4",
            ),
            (
                output_port & !output_port::WRITABLE == 0,
                "of the output port, bits 0 and 1 are kept",
            ),
        ];
        let what = checks
            .iter()
            .find(|(good, _)| !good)
            .map_or(Ok(()), |(_, what)| Err(*what));
        what.and_then(|()| keyboard.check())
            .and_then(|()| mouse.check())
            .map_err(I8042StateError)
    }
}

impl Controller {
    pub(super) fn restore(&mut self, state: &I8042State) -> Result<(), I8042StateError> {
        state.check()?;
        self.state = state.clone();
        Ok(())
    }
}
