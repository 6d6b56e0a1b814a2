//! stdin as the guest's keyboard.

use std::{
    io::{self, IsTerminal, Read},
    mem::MaybeUninit,
    os::fd::AsRawFd,
    sync::{Arc, Mutex, OnceLock, mpsc},
    thread,
};

use crate::{
    machine::{End, Ending},
    timers::lock,
};

/// The terminal's settings before they were changed.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();

/// Keeps the terminal in raw mode. Dropping it restores what was there before; so does a signal that ends the process.
pub struct RawTerminal(());

impl RawTerminal {
    /// `None` if stdin is no terminal.
    pub fn new() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let mut settings = MaybeUninit::uninit();
        // SAFETY: `settings` has room for what is written.
        if unsafe { libc::tcgetattr(io::stdin().as_raw_fd(), settings.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call before has written it.
        let before = *BEFORE.get_or_init(|| unsafe { settings.assume_init() });
        let mut raw = before;
        // SAFETY: it changes the settings that it is given.
        unsafe { libc::cfmakeraw(&mut raw) };
        // What the guest prints has line feeds alone.
        raw.c_oflag = before.c_oflag;
        set(&raw)?;
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: the handler calls nothing that is not allowed in one.
            unsafe { libc::signal(signal, restore_and_end as *const () as libc::sighandler_t) };
        }
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn set(settings: &libc::termios) -> io::Result<()> {
    // SAFETY: the settings are whole, and the descriptor is open or the call says that it is not.
    match unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts the terminal back to what it was before, if it was changed.
pub fn restore() {
    if let Some(before) = BEFORE.get() {
        let _ = set(before);
    }
}

extern "C" fn restore_and_end(signal: libc::c_int) {
    restore();
    // SAFETY: both calls are allowed in a handler: the signal's own effect follows.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Tells the thread that brings input when there is room for more.
#[derive(Clone, Default)]
pub struct Room(Arc<OnceLock<thread::Thread>>);

impl Room {
    pub fn notify(&self) {
        if let Some(feeder) = self.0.get() {
            feeder.unpark();
        }
    }
}

/// What takes some of what is typed, and says how much.
type Receive = Box<dyn Fn(&[u8]) -> usize + Send>;

/// stdin, plugged into the machine that is there.
pub struct Keyboard {
    room: Room,
    machine: Arc<Mutex<Plugged>>,
}

#[derive(Default)]
struct Plugged {
    receive: Option<Receive>,
    ending: Option<Ending>,
    /// The user has ended it, maybe before it was there.
    quit: bool,
}

impl Keyboard {
    /// Brings what is typed, until the end of the input. With `is_terminal`, Ctrl-A x ends the machine.
    pub fn new(is_terminal: bool) -> io::Result<Self> {
        let keyboard = Self {
            room: Room::default(),
            machine: Arc::default(),
        };
        let (machine, quits) = (Arc::clone(&keyboard.machine), Arc::clone(&keyboard.machine));
        let receive = move |typed: &[u8]| lock(&machine).receive.as_ref().map_or(0, |receive| receive(typed));
        let quit = move || {
            let mut machine = lock(&quits);
            machine.quit = true;
            if let Some(ending) = &machine.ending {
                ending.end(End::Quit);
            }
        };
        start(is_terminal, keyboard.room(), receive, quit)?;
        Ok(keyboard)
    }

    /// To be told when there is room for more.
    pub fn room(&self) -> Room {
        self.room.clone()
    }

    /// `receive` takes what is typed from now on.
    pub fn plug(&self, receive: impl Fn(&[u8]) -> usize + Send + 'static) {
        lock(&self.machine).receive = Some(Box::new(receive));
        self.room.notify();
    }

    /// It is this machine that the user ends from now on.
    pub fn quits(&self, ending: &Ending) {
        let mut machine = lock(&self.machine);
        machine.ending = Some(ending.clone());
        if machine.quit {
            ending.end(End::Quit);
        }
    }
}

/// Brings the guest what is typed, until the end of the input. `receive` takes some of it and says how much; `quit` is
/// called for Ctrl-A x if `is_terminal`.
fn start(
    is_terminal: bool,
    room: Room,
    receive: impl Fn(&[u8]) -> usize + Send + 'static,
    quit: impl Fn() + Send + 'static,
) -> io::Result<()> {
    const ESCAPE: u8 = 1; // Ctrl-A
    const READS: usize = 64; // that wait for the guest
    let (reads, typed) = mpsc::sync_channel::<Vec<u8>>(READS);
    let feed = move || {
        room.0.get_or_init(thread::current);
        for typed in typed {
            let mut rest = &typed[..];
            while !rest.is_empty() {
                match receive(rest) {
                    0 => thread::park(),
                    taken => rest = &rest[taken..],
                }
            }
        }
    };
    thread::Builder::new().name("feeder".into()).spawn(feed)?;
    let run = move || {
        let mut escaped = false;
        let mut buffer = [0; 256];
        while let Ok(len @ 1..) = io::stdin().read(&mut buffer) {
            let mut typed = Vec::with_capacity(len);
            for character in &buffer[..len] {
                match (is_terminal, escaped, *character) {
                    (true, false, ESCAPE) => escaped = true,
                    (true, true, b'x') => quit(),
                    (_, _, character) => {
                        escaped = false;
                        typed.push(character);
                    }
                }
            }
            // What comes from a file waits. A user is always heard, and loses what the guest does not want.
            let _ = match is_terminal {
                true => reads.try_send(typed).is_ok(),
                false => reads.send(typed).is_ok(),
            };
        }
    };
    thread::Builder::new().name("console".into()).spawn(run).map(drop)
}
