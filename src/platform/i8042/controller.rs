//! The controller as its guest sees it, with both devices behind it.

use super::{I8042State, keyboard::KeyboardState, mouse::MouseState, registers::*, translation};

/// Where the byte in the output buffer is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The keyboard, or the controller itself.
    Keyboard,
    /// The auxiliary device, which is the mouse.
    Aux,
}

/// Everything behind the lock.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) state: I8042State,

    // What the outside is to be told once the lock is released.
    /// A byte was taken: the line has been down, whatever comes next.
    pub(super) taken: bool,
    /// The guest has pulled the reset line.
    pub(super) reset: bool,
}

impl Controller {
    pub(super) fn new() -> Self {
        let state = I8042State {
            memory: std::array::from_fn(|index| match index {
                0 => command_byte::KEYBOARD_INTERRUPT | command_byte::AUX_INTERRUPT,
                _ => 0,
            }),
            system: false,
            was_command: true,
            argument_of: None,
            output_port: output_port::NO_RESET | output_port::A20,
            buffer: 0,
            full: None,
            answer: None,
            released: false,
            keyboard: KeyboardState::new(),
            mouse: MouseState::new(),
        };
        Self {
            state,
            taken: false,
            reset: false,
        }
    }

    /// Which line is up: the one place from which they are derived.
    pub(super) fn interrupts(&self, source: Source) -> bool {
        let enabled = match source {
            Source::Keyboard => command_byte::KEYBOARD_INTERRUPT,
            Source::Aux => command_byte::AUX_INTERRUPT,
        };
        self.state.full == Some(source) && self.is(enabled)
    }

    pub(super) fn a20(&self) -> bool {
        self.state.output_port & output_port::A20 != 0
    }

    /// Whether a bit of the command byte is set.
    fn is(&self, bit: u8) -> bool {
        self.state.memory[0] & bit != 0
    }

    /// Puts the next byte into the output buffer if it is empty: to be called after every change.
    pub(super) fn fill(&mut self) {
        if self.state.full.is_none()
            && let Some((source, byte)) = self.next()
        {
            self.state.full = Some(source);
            self.state.buffer = byte;
        }
    }

    fn next(&mut self) -> Option<(Source, u8)> {
        if let Some(answer) = self.state.answer.take() {
            return Some(answer);
        }
        if !self.is(command_byte::DISABLE_KEYBOARD) {
            while let Some(byte) = self.state.keyboard.take() {
                if let Some(byte) = self.translated(byte) {
                    return Some((Source::Keyboard, byte));
                }
            }
        }
        if !self.is(command_byte::DISABLE_AUX) {
            return self.state.mouse.take().map(|byte| (Source::Aux, byte));
        }
        None
    }

    /// A byte of the keyboard as the guest gets it, if it does.
    fn translated(&mut self, byte: u8) -> Option<u8> {
        if !self.is(command_byte::TRANSLATE) {
            self.state.released = false;
            return Some(byte);
        }
        if byte == translation::BREAK {
            self.state.released = true;
            return None;
        }
        let released = if std::mem::take(&mut self.state.released) {
            0x80
        } else {
            0
        };
        Some(translation::translate(byte) | released)
    }

    /// A read of the data port. An empty buffer still has what was in it.
    pub(super) fn read_data(&mut self) -> u8 {
        self.taken |= self.state.full.take().is_some();
        self.state.buffer
    }

    /// A read of the command port.
    pub(super) fn status(&self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let I8042State {
            system,
            was_command,
            full,
            ..
        } = self.state;
        status::UNLOCKED
            | bit(full.is_some(), status::OBF)
            | bit(full == Some(Source::Aux), status::AUX_OBF)
            | bit(system, status::SYS)
            | bit(was_command, status::COMMAND)
    }

    /// A write of the data port.
    pub(super) fn write_data(&mut self, data: u8) {
        self.state.was_command = false;
        match self.state.argument_of.take() {
            Some(command::WRITE_OUTPUT_PORT) => self.set_output_port(data),
            Some(command::WRITE_KEYBOARD_BUFFER) => self.state.answer = Some((Source::Keyboard, data)),
            Some(command::WRITE_AUX_BUFFER) => self.state.answer = Some((Source::Aux, data)),
            Some(command::WRITE_AUX) => {
                self.set(command_byte::DISABLE_AUX, false);
                self.state.mouse.write(data);
            }
            Some(command) => self.write_memory(command, data),
            // What is sent to the keyboard enables it.
            None => {
                self.set(command_byte::DISABLE_KEYBOARD, false);
                self.state.keyboard.write(data);
            }
        }
    }

    fn write_memory(&mut self, command: u8, data: u8) {
        let index = usize::from(command) % MEMORY;
        self.state.memory[index] = data;
        if index == 0 {
            self.state.memory[0] &= command_byte::WRITABLE;
            self.state.system = self.is(command_byte::SYS);
        }
    }

    /// A write of the command port.
    pub(super) fn command(&mut self, command: u8) {
        self.state.was_command = true;
        self.state.argument_of = None;
        match command {
            command::READ_MEMORY..command::WRITE_MEMORY if command < command::READ_MEMORY + MEMORY as u8 => {
                self.answers(self.state.memory[usize::from(command) % MEMORY]);
            }
            command if takes_argument(command) => self.state.argument_of = Some(command),
            command::DISABLE_AUX => self.set(command_byte::DISABLE_AUX, true),
            command::ENABLE_AUX => self.set(command_byte::DISABLE_AUX, false),
            command::TEST_AUX | command::TEST_KEYBOARD => self.answers(INTERFACE_GOOD),
            command::SELF_TEST => {
                self.state.system = true;
                self.answers(SELF_TEST_PASSED);
            }
            command::DISABLE_KEYBOARD => self.set(command_byte::DISABLE_KEYBOARD, true),
            command::ENABLE_KEYBOARD => self.set(command_byte::DISABLE_KEYBOARD, false),
            command::READ_INPUT_PORT => self.answers(INPUT_PORT),
            command::READ_OUTPUT_PORT => {
                let buffer = match self.state.full {
                    None => 0,
                    Some(Source::Keyboard) => output_port::OBF,
                    Some(Source::Aux) => output_port::AUX_OBF,
                };
                self.answers(self.state.output_port | output_port::ONES | buffer);
            }
            command::DISABLE_A20 => self.state.output_port &= !output_port::A20,
            command::ENABLE_A20 => self.state.output_port |= output_port::A20,
            // Of A20 a pulse is nothing that a guest could tell.
            command::PULSE_OUTPUT_PORT.. => self.reset |= command & output_port::NO_RESET == 0,
            _ => {}
        }
    }

    fn answers(&mut self, byte: u8) {
        self.state.answer = Some((Source::Keyboard, byte));
    }

    /// Sets or clears a bit of the command byte.
    fn set(&mut self, bit: u8, set: bool) {
        let command_byte = &mut self.state.memory[0];
        *command_byte = *command_byte & !bit | if set { bit } else { 0 };
    }

    fn set_output_port(&mut self, value: u8) {
        // As long as it is low the system would be held in reset: it is the fall that counts.
        self.reset |= self.state.output_port & !value & output_port::NO_RESET != 0;
        self.state.output_port = value & output_port::WRITABLE;
    }
}

/// Whether the next byte of data is the command's.
pub(super) fn takes_argument(command: u8) -> bool {
    matches!(
        command,
        command::WRITE_OUTPUT_PORT
            | command::WRITE_KEYBOARD_BUFFER
            | command::WRITE_AUX_BUFFER
            | command::WRITE_AUX
            | command::WRITE_MEMORY..=0x7f
    )
}
