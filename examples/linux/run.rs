//! The loop of every VMM.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use crate::{
    arm64,
    firmware::Typist,
    options::Arch,
    watch::{Watch, Wire},
    wing::{Plan, PowerRequest, Stuck, Wing},
    x86_64,
};

/// The machine of the architecture that is asked for.
pub fn machine(plan: &Plan<'_>) -> Result<Box<dyn Wing>, Box<dyn Error>> {
    Ok(match plan.options.arch {
        Arch::Arm64 => Box::new(arm64::Arm64::new(plan)?),
        Arch::X86_64 => Box::new(x86_64::X86_64::new(plan)?),
    })
}

/// What the wire behind the UART takes each time that the cores have run a little.
pub const CHARACTERS_AT_A_TIME: usize = 16;

/// Runs the guest, then sees to what it has caused, until it powers off.
pub fn until_off(
    wing: &dyn Wing,
    watch: &Watch,
    wire: &Wire,
    at_a_time: usize,
    mut typist: Typist,
    timeout: Duration,
) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let mut heard = 0;
    let devices = wing.devices();
    loop {
        devices.with_cores(|| wing.forget_translations(), || wing.run());
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
        wire.make_room(at_a_time);
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
