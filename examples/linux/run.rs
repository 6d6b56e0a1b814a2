//! The loop of every VMM.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    arm64, disk,
    firmware::Typist,
    more::Room,
    options::{Arch, Options},
    watch::{Watch, Wire},
    wing::{Plan, PowerRequest, Stuck, Wing},
    x86_64,
};

/// What the board of an architecture has for more devices.
pub fn room(arch: Arch) -> &'static Room {
    match arch {
        Arch::Arm64 => &arm64::board::ROOM,
        Arch::X86_64 => &x86_64::ROOM,
    }
}

/// How often it is looked after a guest.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For how much of its time it runs before.
    pub quantum: Duration,
    /// What the wire behind the UART takes each time.
    pub characters: usize,
}

impl Pace {
    /// Its devices answer soon, and the wire is slower than it is.
    pub const CLOSE: Self = Self {
        quantum: Duration::from_micros(100),
        characters: 16,
    };
}

/// A machine of the architecture that is asked for, and what the host sees of its guest.
pub struct Guest {
    pub wing: Box<dyn Wing>,
    pub watch: Arc<Watch>,
    wire: Arc<Wire>,
}

impl Guest {
    /// One that has not run yet. `disk` is the one that it may write to.
    pub fn new(options: &Options, disk: &disk::Source) -> Result<Self, Box<dyn Error>> {
        let (watch, wire) = (Arc::new(Watch::default()), Arc::new(Wire::default()));
        let plan = Plan {
            options,
            disk,
            watch: &watch,
            wire: &wire,
        };
        let wing: Box<dyn Wing> = match options.arch {
            Arch::Arm64 => Box::new(arm64::Arm64::new(&plan)?),
            Arch::X86_64 => Box::new(x86_64::X86_64::new(&plan)?),
        };
        Ok(Self { wing, watch, wire })
    }
}

/// Runs the guest, then sees to what it has caused, until it powers off. `between` is called each time before it runs.
pub fn until_off(
    guest: &Guest,
    pace: Pace,
    mut typist: Typist,
    timeout: Duration,
    between: impl Fn(),
) -> Result<(), Box<dyn Error>> {
    let Guest { wing, watch, wire } = guest;
    let (wing, started) = (&**wing, Instant::now());
    let mut heard = 0;
    let devices = wing.devices();
    loop {
        between();
        devices.with_cores(|| wing.forget_translations(), || wing.run(pace.quantum));
        match wing.power_request() {
            Some(PowerRequest::Off) => return Ok(()),
            Some(PowerRequest::Reset) => {
                return Err("the guest wants a reset, which it does when it has panicked".into());
            }
            None => {}
        }
        devices.run()?;
        for line in watch.lines(&mut heard) {
            devices.hear(&line)?;
        }
        typist.go_on(watch, |typed| wing.uart().type_in(typed));
        wire.make_room(pace.characters);
        let sending = wing.uart().send()?;
        wing.let_time_pass();
        if !sending && wing.sleeps() {
            sleep(wing)?;
            wing.let_time_pass();
        }
        if started.elapsed() > timeout {
            return Err(format!("the guest has not powered off within {timeout:?}").into());
        }
    }
}

/// The guest sleeps: its time passes at once until one of its timers is due. But while something of the host's is awaited, which takes
/// the host's time, the guest's passes no faster, or its timers would give up what is on its way.
fn sleep(wing: &dyn Wing) -> Result<(), Box<dyn Error>> {
    let (now, deadline) = (wing.time(), wing.deadline());
    let until = match wing.devices().awaits_host() {
        false => deadline.ok_or(Stuck)?,
        true => {
            let since = Instant::now();
            let most = deadline.map_or(PATIENCE, |deadline| deadline.saturating_sub(now).min(PATIENCE));
            wing.devices().wait(most)?;
            now + since.elapsed().min(most)
        }
    };
    wing.sleep_until(until);
    Ok(())
}

/// How long the host is waited for before the run is looked at again.
const PATIENCE: Duration = Duration::from_millis(10);
