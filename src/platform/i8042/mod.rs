//! The keyboard controller of a PC ("8042") with a keyboard and a mouse, as in *IBM PS/2 Hardware Interface Technical Reference*.
//!
//! What the model leaves out: time on the wires, so that an answer is there at once; scan code set 3, which the keyboard refuses;
//! and repetition of keys that are held, which the host has already.

mod controller;
mod describe;
mod keyboard;
mod mouse;
mod registers;
mod state;
mod translation;

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use crate::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, LevelOutput, NoInterrupt},
    sync::lock,
};
use controller::Controller;

pub use controller::Source;
pub use describe::describe;
pub use keyboard::{Key, KeyboardState};
pub use mouse::{Motion, MouseState};
pub use state::{I8042State, I8042StateError};

/// What an [`I8042`] drives.
pub struct I8042Lines {
    /// IRQ 1 of a PC: up while there is a byte of the keyboard or of the controller, if the guest wants interrupts.
    pub keyboard: Box<dyn LevelInterrupt>,
    /// IRQ 12 of a PC: the same of the mouse.
    pub mouse: Box<dyn LevelInterrupt>,
    /// Address line 20 is let through. Up from the start on, of which it is told.
    pub a20: Box<dyn LevelInterrupt>,
    /// The guest resets the machine. Called on the thread of that access, which goes on when it returns.
    pub reset: Box<dyn Fn() + Send + Sync>,
}

/// Lines that lead nowhere.
impl Default for I8042Lines {
    fn default() -> Self {
        Self {
            keyboard: Box::new(NoInterrupt),
            mouse: Box::new(NoInterrupt),
            a20: Box::new(NoInterrupt),
            reset: Box::new(|| ()),
        }
    }
}

impl fmt::Debug for I8042Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042Lines").finish_non_exhaustive()
    }
}

/// An 8042, its keyboard and its mouse. Clones are handles to the same one, which lives as long as any of them or of its ports.
///
/// It is as after power on and a self-test: both devices are there and enabled, nothing is translated, A20 is up.
///
/// # Input
/// [`key`](Self::key) and [`mouse`](Self::mouse) are what the host's user does. A guest that reads slowly loses keys, as the keyboard
/// has 16 bytes of memory, and sees an overrun; of the mouse's movements it loses none, but they come in fewer reports.
///
/// # Threads
/// Every method may be called from any thread, also from within the lines and the hook: none of them is called while the
/// registers are locked.
///
/// ```
/// use devisor::{bus::BusDevice, platform::i8042::{I8042, I8042Lines, Key}};
///
/// let i8042 = I8042::new(I8042Lines {
///     reset: Box::new(|| println!("the guest resets the machine")),
///     ..I8042Lines::default()
/// });
/// let letter_a = Key::new(0x1c).unwrap();
/// assert!(i8042.key(letter_a, true));
///
/// let mut byte = [0];
/// i8042.command_port().read(0, &mut byte);
/// assert_eq!(byte[0] & 1, 1, "the output buffer is full");
/// i8042.data_port().read(0, &mut byte);
/// assert_eq!(byte, [0x1c]);
/// ```
#[derive(Clone)]
pub struct I8042 {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    // What is plugged in.
    keyboard: Line,
    mouse: Line,
    a20: Line,
    reset: Box<dyn Fn() + Send + Sync>,

    controller: Mutex<Controller>,
}

type Line = LevelOutput<Box<dyn LevelInterrupt>>;

impl I8042 {
    /// A controller as after power on.
    pub fn new(lines: I8042Lines) -> Self {
        let I8042Lines {
            keyboard,
            mouse,
            a20,
            reset,
        } = lines;
        let shared = Shared {
            keyboard: LevelOutput::new(keyboard),
            mouse: LevelOutput::new(mouse),
            a20: LevelOutput::new(a20),
            reset,
            controller: Mutex::new(Controller::new()),
        };
        shared.change(|_| ());
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The data port: 0x60 of a PC.
    pub fn data_port(&self) -> DataPort {
        let i8042 = Arc::clone(&self.shared);
        DataPort { i8042 }
    }

    /// The port of commands and status: 0x64 of a PC.
    pub fn command_port(&self) -> CommandPort {
        let i8042 = Arc::clone(&self.shared);
        CommandPort { i8042 }
    }

    /// A key is pressed, is held and repeats, or is released. Whether the guest will hear of it: not if the keyboard is full or
    /// the guest has disabled it.
    pub fn key(&self, key: Key, down: bool) -> bool {
        self.shared
            .change(|controller| controller.state.keyboard.key(key, down))
    }

    /// The mouse moves, or its buttons do.
    pub fn mouse(&self, motion: Motion) {
        self.shared.change(|controller| controller.state.mouse.moved(motion));
    }

    /// The keyboard's lights: Scroll Lock, Num Lock and Caps Lock, from bit 0 on.
    pub fn indicators(&self) -> u8 {
        lock(&self.shared.controller).state.keyboard.indicators
    }

    /// Whether A20 is let through.
    pub fn a20(&self) -> bool {
        lock(&self.shared.controller).a20()
    }

    /// A reset of the system: everything is as after power on, and what the user has done is forgotten.
    pub fn reset(&self) {
        self.shared.change(|controller| {
            controller.taken = true;
            controller.state = Controller::new().state;
        });
    }

    /// How often a line refused to be told its level: see [`LevelOutput::failures`]. What it refused is told again with the next
    /// access.
    pub fn output_failures(&self) -> u64 {
        let Shared {
            keyboard, mouse, a20, ..
        } = &*self.shared;
        [keyboard, mouse, a20].iter().map(|line| line.failures()).sum()
    }

    /// The state now.
    pub fn save(&self) -> I8042State {
        lock(&self.shared.controller).state.clone()
    }

    /// Takes over a saved state, all or nothing, and drives the lines accordingly.
    ///
    /// # Errors
    /// [`I8042StateError`]: the state is not one that a controller can have.
    pub fn restore(&self, state: &I8042State) -> Result<(), I8042StateError> {
        self.shared.change(|controller| controller.restore(state))
    }
}

impl Shared {
    /// Every access: makes the change, derives the outputs, then tells them with nothing locked.
    fn change<T>(&self, change: impl FnOnce(&mut Controller) -> T) -> T {
        let (result, reset) = {
            let mut controller = lock(&self.controller);
            let result = change(&mut controller);
            controller.fill();
            let taken = std::mem::take(&mut controller.taken);
            for (line, source) in [(&self.keyboard, Source::Keyboard), (&self.mouse, Source::Aux)] {
                if taken {
                    // An input that takes edges hears of the next byte too.
                    line.set(false);
                }
                line.set(controller.interrupts(source));
            }
            self.a20.set(controller.a20());
            (result, std::mem::take(&mut controller.reset))
        };
        for line in [&self.keyboard, &self.mouse, &self.a20] {
            // A refusal is counted by the output, and told again after the next change.
            let _ = line.settle();
        }
        if reset {
            (self.reset)();
        }
        result
    }
}

/// The data port. A wider access than a byte is one of the byte alone.
pub struct DataPort {
    i8042: Arc<Shared>,
}

impl BusDevice for DataPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.i8042.change(Controller::read_data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(byte)) = (offset, data.first()) {
            self.i8042.change(|controller| controller.write_data(*byte));
        }
    }
}

/// The command port. A wider access than a byte is one of the byte alone.
pub struct CommandPort {
    i8042: Arc<Shared>,
}

impl BusDevice for CommandPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.i8042.change(|controller| controller.status());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(byte)) = (offset, data.first()) {
            self.i8042.change(|controller| controller.command(*byte));
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042")
            .field("controller", &*lock(&self.controller))
            .field("keyboard", &self.keyboard)
            .field("mouse", &self.mouse)
            .field("a20", &self.a20)
            .finish_non_exhaustive()
    }
}

macro_rules! debug {
    ($($kind:ident: $field:ident),*) => {$(
        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.$field.fmt(f)
            }
        }
    )*};
}

debug!(I8042: shared, DataPort: i8042, CommandPort: i8042);
