//! The 8042: its lines follow its buffer, whatever is queued has an end, and a state that was saved is taken back and goes on the
//! same.
#![no_main]

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    platform::i8042::{I8042, I8042Lines, Key, Motion, Source},
};
use devisor_fuzz::{Access, Outside};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Data(Access),
    Command(Access),
    Read,
    Keyboard(u8),
    Mouse(u8),
    Key {
        code: u8,
        extended: bool,
        down: bool,
    },
    Special {
        pause: bool,
        down: bool,
    },
    Move {
        x: i16,
        y: i16,
        wheel: i16,
        buttons: u8,
    },
    Refuse(bool),
    Reset,
    Restore {
        flags: u8,
        bytes: [u8; 8],
    },
    /// It goes on in another machine.
    Elsewhere,
}

struct Machine {
    i8042: I8042,
    keyboard: Outside,
    mouse: Outside,
    a20: Outside,
}

impl Machine {
    fn new() -> Self {
        let (keyboard, mouse, a20) = (Outside::default(), Outside::default(), Outside::default());
        let i8042 = I8042::new(I8042Lines {
            keyboard: Box::new(keyboard.clone()),
            mouse: Box::new(mouse.clone()),
            a20: Box::new(a20.clone()),
            reset: Box::new(|| ()),
        });
        Self {
            i8042,
            keyboard,
            mouse,
            a20,
        }
    }

    fn step(&mut self, step: &Step) {
        let (data, command) = (self.i8042.data_port(), self.i8042.command_port());
        match *step {
            Step::Data(access) => access.run(&data, 1, 1),
            Step::Command(access) => access.run(&command, 1, 1),
            Step::Read => data.read(0, &mut [0]),
            Step::Keyboard(byte) => data.write(0, &[byte]),
            Step::Mouse(byte) => {
                command.write(0, &[0xd4]);
                data.write(0, &[byte]);
            }
            Step::Key { code, extended, down } => {
                let key = if extended { Key::extended(code) } else { Key::new(code) };
                if let Some(key) = key {
                    self.i8042.key(key, down);
                }
            }
            Step::Special { pause, down } => {
                let key = if pause { Key::PAUSE } else { Key::PRINT_SCREEN };
                self.i8042.key(key, down);
            }
            Step::Move { x, y, wheel, buttons } => self.i8042.mouse(Motion { x, y, wheel, buttons }),
            Step::Refuse(refuses) => {
                for line in [&self.keyboard, &self.mouse, &self.a20] {
                    line.refuse(refuses);
                }
                command.read(0, &mut [0]);
            }
            Step::Reset => self.i8042.reset(),
            Step::Restore { flags, bytes } => {
                let flag = |bit: u8| flags >> bit & 1 != 0;
                let mut state = self.i8042.save();
                state.memory[0] = bytes[0];
                state.argument_of = flag(0).then_some(bytes[1]);
                state.full = flag(1).then_some(if flag(2) { Source::Aux } else { Source::Keyboard });
                state.keyboard.answer.extend(bytes.iter().take((flags >> 6).into()));
                state.keyboard.set = bytes[2] % 4;
                state.keyboard.argument_of = flag(3).then_some(bytes[3]);
                state.mouse.device_type = bytes[4] % 5;
                state.mouse.report.extend(bytes.iter().take((flags >> 6).into()));
                state.mouse.resolution = bytes[5];
                state.mouse.argument_of = flag(4).then_some(bytes[6]);
                if self.i8042.restore(&state).is_err() {
                    assert_ne!(self.i8042.save(), state);
                }
            }
            Step::Elsewhere => {
                let state = self.i8042.save();
                let refuses = self.keyboard.refuses();
                *self = Self::new();
                self.step(&Step::Refuse(refuses));
                self.i8042.restore(&state).expect("it was saved");
                assert_eq!(self.i8042.save(), state);
            }
        }
    }

    fn check(&self) {
        let state = self.i8042.save();
        if !self.keyboard.refuses() {
            let up = |source, bit: u8| state.full == Some(source) && state.memory[0] & bit != 0;
            assert_eq!(self.keyboard.is_up(), up(Source::Keyboard, 1), "{state:x?}");
            assert_eq!(self.mouse.is_up(), up(Source::Aux, 2), "{state:x?}");
            assert_eq!(self.a20.is_up(), self.i8042.a20(), "{state:x?}");
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Machine::new();
    for step in steps.iter().take(300) {
        machine.step(step);
        machine.check();
    }
    // The mouse's movements may be long, and reports tell 127 of them at once.
    let (data, command) = (machine.i8042.data_port(), machine.i8042.command_port());
    let is_full = || {
        let mut status = [0];
        command.read(0, &mut status);
        status[0] & 1 != 0
    };
    for _ in 0..17 * 4 * 0x8000 / 8 {
        if !is_full() {
            return;
        }
        data.read(0, &mut [0]);
    }
    panic!("it does not end");
});
