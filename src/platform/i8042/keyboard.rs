//! The keyboard: its commands, and the codes that its keys send (IBM PS/2 Hardware Interface Technical Reference, keyboards).

use std::collections::VecDeque;

use super::{
    registers::{ACK, BAT_COMPLETED, RESEND},
    translation::{BREAK, is_key, translate},
};

/// How many bytes of scan codes wait for the controller at most.
pub(super) const DEPTH: usize = 16;

const SET_INDICATORS: u8 = 0xed;
const ECHO: u8 = 0xee;
const SELECT_SCAN_CODES: u8 = 0xf0;
const READ_ID: u8 = 0xf2;
const SET_TYPEMATIC: u8 = 0xf3;
const ENABLE: u8 = 0xf4;
const DEFAULT_DISABLE: u8 = 0xf5;
const SET_DEFAULT: u8 = 0xf6;
const RESET: u8 = 0xff;
/// The lowest command: what is at least this is no argument.
const COMMANDS: u8 = SET_INDICATORS;

const ID: [u8; 2] = [0xab, 0x83];
/// A byte is answered with [`ID`] and what precedes it at most.
pub(super) const ANSWER: usize = 3;
/// 10.9 characters a second after half a second.
const DEFAULT_TYPEMATIC: u8 = 0x2b;
const TYPEMATIC: u8 = 0x7f;
const INDICATORS: u8 = 0b111;

/// A key, by what it sends in scan code set 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(Codes);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Codes {
    Plain(u8),
    Extended(u8),
    PrintScreen,
    Pause,
}

impl Key {
    /// Print Screen, which sends two codes.
    pub const PRINT_SCREEN: Self = Self(Codes::PrintScreen);
    /// Pause, which sends all when it is pressed and nothing when it is released.
    pub const PAUSE: Self = Self(Codes::Pause);

    /// The key whose code in set 2 this is, such as 0x1c for the letter A. None if there is no such code.
    pub fn new(code: u8) -> Option<Self> {
        is_key(code).then_some(Self(Codes::Plain(code)))
    }

    /// The key whose code in set 2 this is after 0xe0, such as 0x75 for the arrow up.
    pub fn extended(code: u8) -> Option<Self> {
        is_key(code).then_some(Self(Codes::Extended(code)))
    }

    /// What it sends in set 2.
    fn bytes(self, down: bool) -> Vec<u8> {
        let release = (!down).then_some(BREAK);
        match self.0 {
            Codes::Plain(code) => release.into_iter().chain([code]).collect(),
            Codes::Extended(code) => [0xe0].into_iter().chain(release).chain([code]).collect(),
            Codes::PrintScreen if down => vec![0xe0, 0x12, 0xe0, 0x7c],
            Codes::PrintScreen => vec![0xe0, BREAK, 0x7c, 0xe0, BREAK, 0x12],
            Codes::Pause if down => vec![0xe1, 0x14, 0x77, 0xe1, BREAK, 0x14, BREAK, 0x77],
            Codes::Pause => vec![],
        }
    }
}

/// A keyboard behind its wire, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyboardState {
    /// The answer to the last command, as far as the controller has not taken it.
    pub answer: VecDeque<u8>,
    /// Codes of keys, in the scan code set that was chosen.
    pub codes: VecDeque<u8>,
    /// The command whose argument comes next.
    pub argument_of: Option<u8>,
    /// It sends codes.
    pub scanning: bool,
    /// The scan code set: 1 or 2.
    pub set: u8,
    /// The typematic rate and delay, of which nothing comes here: the host repeats.
    pub typematic: u8,
    /// Scroll Lock, Num Lock and Caps Lock, from bit 0 on.
    pub indicators: u8,
    /// What was taken last, for who asks again.
    pub last: u8,
}

impl KeyboardState {
    pub(super) fn new() -> Self {
        Self {
            answer: VecDeque::with_capacity(ANSWER),
            codes: VecDeque::with_capacity(DEPTH + 1),
            argument_of: None,
            scanning: true,
            set: 2,
            typematic: DEFAULT_TYPEMATIC,
            indicators: 0,
            last: 0,
        }
    }

    /// Takes the next byte for the controller.
    pub(super) fn take(&mut self) -> Option<u8> {
        let byte = self.answer.pop_front().or_else(|| self.codes.pop_front())?;
        self.last = byte;
        Some(byte)
    }

    /// A key is pressed, repeated or released. Whether its codes fit; if not, an overrun is there instead.
    pub(super) fn key(&mut self, key: Key, down: bool) -> bool {
        /// What stands for lost codes in set 1 and in set 2.
        const OVERRUN: [u8; 2] = [0xff, 0x00];
        if !self.scanning {
            return false;
        }
        let bytes = key.bytes(down);
        let set_1 = self.set == 1;
        let len = match set_1 {
            true => bytes.iter().filter(|byte| **byte != BREAK).count(),
            false => bytes.len(),
        };
        if self.codes.len() + len > DEPTH {
            // The last place is for that.
            if self.codes.len() <= DEPTH {
                self.codes.truncate(DEPTH);
                self.codes.push_back(OVERRUN[usize::from(self.set - 1)]);
            }
            return false;
        }
        let mut released = 0;
        for byte in bytes {
            match byte {
                BREAK if set_1 => released = 0x80,
                byte if set_1 => self.codes.push_back(translate(byte) | std::mem::take(&mut released)),
                byte => self.codes.push_back(byte),
            }
        }
        true
    }

    /// A byte from the controller.
    pub(super) fn write(&mut self, byte: u8) {
        self.answer.clear();
        match self.argument_of.take() {
            Some(command) if byte < COMMANDS => self.argument(command, byte),
            _ => self.command(byte),
        }
    }

    fn answers(&mut self, bytes: &[u8]) {
        self.answer.extend(bytes);
    }

    fn command(&mut self, command: u8) {
        match command {
            SET_INDICATORS | SELECT_SCAN_CODES | SET_TYPEMATIC => {
                self.argument_of = Some(command);
                self.answers(&[ACK]);
            }
            ECHO => self.answers(&[ECHO]),
            READ_ID => self.answers(&[ACK, ID[0], ID[1]]),
            ENABLE => {
                self.codes.clear();
                self.scanning = true;
                self.answers(&[ACK]);
            }
            // The second goes on as it was: it scans if it did.
            DEFAULT_DISABLE | SET_DEFAULT => {
                self.default();
                self.scanning &= command == SET_DEFAULT;
                self.answers(&[ACK]);
            }
            RESEND => self.answers(&[self.last]),
            RESET => {
                self.default();
                self.scanning = true;
                self.indicators = 0;
                self.answers(&[ACK, BAT_COMPLETED]);
            }
            _ => self.answers(&[RESEND]),
        }
    }

    fn argument(&mut self, command: u8, argument: u8) {
        match (command, argument) {
            (SET_INDICATORS, _) => self.indicators = argument & INDICATORS,
            (SET_TYPEMATIC, _) => self.typematic = argument & TYPEMATIC,
            (_, 0) => return self.answers(&[ACK, self.set]),
            (_, 1 | 2) => {
                self.set = argument;
                self.codes.clear();
            }
            // Set 3 is not here.
            _ => return self.answers(&[RESEND]),
        }
        self.answers(&[ACK]);
    }

    fn default(&mut self) {
        self.codes.clear();
        self.set = 2;
        self.typematic = DEFAULT_TYPEMATIC;
    }

    /// Whether a guest and a host can have brought it about.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let Self {
            answer,
            codes,
            argument_of,
            scanning: _,
            set,
            typematic,
            indicators,
            last: _,
        } = self;
        let has_argument = |command: &u8| [SET_INDICATORS, SELECT_SCAN_CODES, SET_TYPEMATIC].contains(command);
        let checks = [
            (answer.len() <= ANSWER, "an answer of the keyboard has 3 bytes at most"),
            (
                codes.len() <= DEPTH + 1,
                "the keyboard has 16 bytes of codes and an overrun at most",
            ),
            (
                argument_of.iter().all(has_argument),
                "the keyboard's commands with an argument are 0xed, 0xf0 and 0xf3",
            ),
            (matches!(set, 1 | 2), "the keyboard has the scan code sets 1 and 2"),
            (typematic & !TYPEMATIC == 0, "the typematic rate has 7 bits"),
            (indicators & !INDICATORS == 0, "there are 3 indicators"),
        ];
        checks
            .iter()
            .find(|(good, _)| !good)
            .map_or(Ok(()), |(_, what)| Err(what))
    }
}
