//! The mouse: its commands, and what it reports (IBM PS/2 Hardware Interface Technical Reference, mouse), with a wheel and five
//! buttons for who asks for them as Microsoft's IntelliMouse is asked.

use std::collections::VecDeque;

use super::registers::{ACK, BAT_COMPLETED, RESEND};

/// How many movements wait at most: one for each change of the buttons.
pub(super) const DEPTH: usize = 16;
/// An answer is as long as that to a read of data: [`ACK`] and a report. A report has 4 bytes at most.
pub(super) const ANSWER: usize = 5;
pub(super) const REPORT: usize = 4;

const RESET_SCALING: u8 = 0xe6;
const SET_SCALING: u8 = 0xe7;
const SET_RESOLUTION: u8 = 0xe8;
const STATUS_REQUEST: u8 = 0xe9;
const SET_STREAM_MODE: u8 = 0xea;
const READ_DATA: u8 = 0xeb;
const RESET_WRAP_MODE: u8 = 0xec;
const SET_WRAP_MODE: u8 = 0xee;
const SET_REMOTE_MODE: u8 = 0xf0;
const READ_DEVICE_TYPE: u8 = 0xf2;
const SET_SAMPLING_RATE: u8 = 0xf3;
const ENABLE: u8 = 0xf4;
const DISABLE: u8 = 0xf5;
const SET_DEFAULT: u8 = 0xf6;
const RESET: u8 = 0xff;

/// What asks for the wheel, and then for five buttons: three sampling rates in a row. The answer is in the device type.
const WHEEL: [u8; 3] = [200, 100, 80];
const FIVE_BUTTONS: [u8; 3] = [200, 200, 80];
const TYPE_WHEEL: u8 = 3;
const TYPE_FIVE_BUTTONS: u8 = 4;

const RATES: [u8; 7] = [10, 20, 40, 60, 80, 100, 200];
const DEFAULT_RATE: u8 = 100;
const MAX_RESOLUTION: u8 = 3;
const DEFAULT_RESOLUTION: u8 = 2;
const BUTTONS: u8 = 0b1_1111;
/// How far a report goes, also when scaling doubles it.
const LIMIT: i16 = 127;

/// A movement of the mouse, and its buttons after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Motion {
    /// To the right.
    pub x: i16,
    /// Up.
    pub y: i16,
    /// Of the wheel, towards the user.
    pub wheel: i16,
    /// Those that are down: left, right, middle, and the fourth and fifth, from bit 0 on.
    pub buttons: u8,
}

/// A mouse behind its wire, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MouseState {
    /// The answer to the last command, as far as the controller has not taken it.
    pub answer: VecDeque<u8>,
    /// The report that is being sent.
    pub report: VecDeque<u8>,
    /// What was not reported. Of two in a row the buttons differ.
    pub motions: VecDeque<Motion>,
    /// The buttons as they were reported last.
    pub buttons: u8,
    /// The command whose argument comes next.
    pub argument_of: Option<u8>,
    /// It reports by itself.
    pub reporting: bool,
    /// It reports when it is asked.
    pub remote: bool,
    /// It sends back what it is sent.
    pub wrap: bool,
    /// Whether what is reported grows faster than the movement.
    pub scaling: bool,
    /// The code of the resolution: 0 to 3.
    pub resolution: u8,
    /// The sampling rate. Here it reports as fast as it is read.
    pub rate: u8,
    /// The last three sampling rates, the latest last.
    pub rates: [u8; 3],
    /// 0, or with a wheel 3, or with five buttons too 4.
    pub device_type: u8,
    /// What was taken last, for who asks again.
    pub last: u8,
}

impl MouseState {
    pub(super) fn new() -> Self {
        Self {
            answer: VecDeque::with_capacity(ANSWER),
            report: VecDeque::with_capacity(REPORT),
            motions: VecDeque::with_capacity(DEPTH),
            buttons: 0,
            argument_of: None,
            reporting: false,
            remote: false,
            wrap: false,
            scaling: false,
            resolution: DEFAULT_RESOLUTION,
            rate: DEFAULT_RATE,
            rates: [0; 3],
            device_type: 0,
            last: 0,
        }
    }

    /// It moves, or a button does. What nobody asks for is kept, as one movement for each change of the buttons.
    pub(super) fn moved(&mut self, motion: Motion) {
        let buttons = motion.buttons & BUTTONS;
        let full = self.motions.len() == DEPTH;
        match self.motions.back_mut() {
            Some(last) if last.buttons == buttons || full => {
                *last = Motion {
                    x: last.x.saturating_add(motion.x),
                    y: last.y.saturating_add(motion.y),
                    wheel: last.wheel.saturating_add(motion.wheel),
                    buttons,
                };
            }
            _ => self.motions.push_back(Motion { buttons, ..motion }),
        }
    }

    /// Takes the next byte for the controller.
    pub(super) fn take(&mut self) -> Option<u8> {
        let reports = self.reporting && !self.remote && !self.wrap;
        if reports
            && self.answer.is_empty()
            && self.report.is_empty()
            && let Some(motion) = self.next_motion()
        {
            let report = self.report_of(motion, self.scaling);
            self.report.extend(report);
        }
        let byte = self.answer.pop_front().or_else(|| self.report.pop_front())?;
        self.last = byte;
        Some(byte)
    }

    /// What is to be reported next, if anything is: as much as a report can say. The rest is in the next one.
    fn next_motion(&mut self) -> Option<Motion> {
        fn share(of: &mut i16, from: i16, to: i16) -> i16 {
            let share = (*of).clamp(from, to);
            *of -= share;
            share
        }
        loop {
            let motion = self.motions.front_mut()?;
            let next = Motion {
                x: share(&mut motion.x, -LIMIT, LIMIT),
                y: share(&mut motion.y, -LIMIT, LIMIT),
                wheel: share(&mut motion.wheel, -8, 7),
                buttons: motion.buttons,
            };
            let still = |buttons: u8| Motion {
                buttons,
                ..Motion::default()
            };
            if *motion == still(motion.buttons) || (self.device_type == 0 && (motion.x, motion.y) == (0, 0)) {
                self.motions.pop_front();
            }
            if next != still(self.buttons) {
                self.buttons = next.buttons;
                return Some(next);
            }
        }
    }

    fn report_of(&self, motion: Motion, scaling: bool) -> impl Iterator<Item = u8> + use<> {
        let Motion { x, y, wheel, buttons } = motion;
        let [x, y] = if scaling { [x, y].map(scale) } else { [x, y] };
        let sign = |value: i16, bit: u8| u8::from(value < 0) << bit;
        let first = buttons & 0b111 | 1 << 3 | sign(x, 4) | sign(y, 5);
        let fourth = match self.device_type {
            0 => None,
            TYPE_FIVE_BUTTONS => Some(wheel as u8 & 0xf | buttons >> 3 << 4),
            _ => Some(wheel as u8),
        };
        [first, x as u8, y as u8].into_iter().chain(fourth)
    }

    /// A byte from the controller.
    pub(super) fn write(&mut self, byte: u8) {
        self.answer.clear();
        // A report that has begun is not taken up again.
        self.report.clear();
        if self.wrap && byte != RESET && byte != RESET_WRAP_MODE {
            return self.answers(&[byte]);
        }
        match self.argument_of.take() {
            Some(command) => self.argument(command, byte),
            None => self.command(byte),
        }
    }

    fn answers(&mut self, bytes: &[u8]) {
        self.answer.extend(bytes);
    }

    fn command(&mut self, command: u8) {
        match command {
            RESEND => return self.answers(&[self.last]),
            RESET => {
                *self = Self {
                    buttons: self.buttons,
                    ..Self::new()
                };
                return self.answers(&[ACK, BAT_COMPLETED, self.device_type]);
            }
            STATUS_REQUEST => return self.answers(&[ACK, self.status(), self.resolution, self.rate]),
            READ_DEVICE_TYPE => return self.answers(&[ACK, self.device_type]),
            READ_DATA => {
                // What is asked for is there, if only to say that nothing has moved.
                let motion = self.next_motion().unwrap_or(Motion {
                    buttons: self.buttons,
                    ..Motion::default()
                });
                let report = self.report_of(motion, false);
                self.answers(&[ACK]);
                return self.answer.extend(report);
            }
            SET_RESOLUTION | SET_SAMPLING_RATE => self.argument_of = Some(command),
            RESET_SCALING | SET_SCALING => self.scaling = command == SET_SCALING,
            SET_STREAM_MODE | SET_REMOTE_MODE => self.remote = command == SET_REMOTE_MODE,
            SET_WRAP_MODE | RESET_WRAP_MODE => self.wrap = command == SET_WRAP_MODE,
            ENABLE | DISABLE => self.reporting = command == ENABLE,
            SET_DEFAULT => {
                self.scaling = false;
                self.resolution = DEFAULT_RESOLUTION;
                self.rate = DEFAULT_RATE;
                self.remote = false;
                self.reporting = false;
            }
            _ => return self.answers(&[RESEND]),
        }
        self.answers(&[ACK]);
    }

    fn argument(&mut self, command: u8, argument: u8) {
        match command {
            SET_RESOLUTION if argument <= MAX_RESOLUTION => self.resolution = argument,
            SET_SAMPLING_RATE if RATES.contains(&argument) => {
                self.rate = argument;
                self.rates = [self.rates[1], self.rates[2], argument];
                match self.rates {
                    WHEEL => self.device_type = TYPE_WHEEL,
                    FIVE_BUTTONS if self.device_type != 0 => self.device_type = TYPE_FIVE_BUTTONS,
                    _ => {}
                }
            }
            _ => return self.answers(&[RESEND]),
        }
        self.answers(&[ACK]);
    }

    fn status(&self) -> u8 {
        let bit = |set: bool, bit: u8| u8::from(set) << bit;
        let button = |from: u8, to: u8| (self.buttons >> from & 1) << to;
        button(1, 0) | button(2, 1) | button(0, 2) | bit(self.scaling, 4) | bit(self.reporting, 5) | bit(self.remote, 6)
    }

    /// Whether a guest and a host can have brought it about.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let Self {
            answer,
            report,
            motions,
            buttons,
            argument_of,
            reporting: _,
            remote: _,
            wrap: _,
            scaling: _,
            resolution,
            rate,
            rates,
            device_type,
            last: _,
        } = self;
        let has_argument = |command: &u8| [SET_RESOLUTION, SET_SAMPLING_RATE].contains(command);
        let is_rate = |rate: &u8| RATES.contains(rate);
        let buttons_of = |motion: &Motion| motion.buttons & !BUTTONS == 0;
        let checks = [
            (answer.len() <= ANSWER, "an answer of the mouse has 5 bytes at most"),
            (report.len() <= REPORT, "a report of the mouse has 4 bytes at most"),
            (motions.len() <= DEPTH, "the mouse keeps 16 movements at most"),
            (
                buttons & !BUTTONS == 0 && motions.iter().all(buttons_of),
                "the mouse has 5 buttons",
            ),
            (
                argument_of.iter().all(has_argument),
                "the mouse's commands with an argument are 0xe8 and 0xf3",
            ),
            (*resolution <= MAX_RESOLUTION, "the resolution of the mouse is 0 to 3"),
            (
                is_rate(rate) && rates.iter().all(|rate| *rate == 0 || is_rate(rate)),
                "the sampling rates of the mouse are 10, 20, 40, 60, 80, 100 and 200",
            ),
            (
                matches!(*device_type, 0 | TYPE_WHEEL | TYPE_FIVE_BUTTONS),
                "the mouse is of the type 0, 3 or 4",
            ),
        ];
        checks
            .iter()
            .find(|(good, _)| !good)
            .map_or(Ok(()), |(_, what)| Err(what))
    }
}

/// 2:1 scaling, in stream mode alone.
fn scale(counts: i16) -> i16 {
    let far = match counts.abs() {
        counts @ (0 | 1) => counts,
        2 => 1,
        3 => 3,
        4 => 6,
        5 => 9,
        counts => 2 * counts,
    };
    far * counts.signum()
}
