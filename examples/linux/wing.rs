//! What one architecture has to bring: cores of rsemu's with a board of devisor's around them. `arm64` and `x86_64` are the two
//! that do.

use std::{io, sync::Arc, time::Duration};

use devisor::{
    backends::recorder::Recorder,
    bus::BusDevice,
    interrupt::LevelInterrupt,
    platform::{pl011::Pl011, uart16550::Uart16550},
};

use crate::{
    counts::Source,
    devices::Devices,
    disk,
    options::Options,
    watch::{Console, Watch, Wire},
};

/// What a board is made of and with.
pub struct Plan<'a> {
    pub options: &'a Options,
    /// The one that the guest may write to.
    pub disk: &'a disk::Source,
    pub watch: &'a Arc<Watch>,
    /// What the UART sends over.
    pub wire: &'a Arc<Wire>,
}

/// A machine whose kernel is loaded, with all its devices.
pub trait Wing {
    /// Runs the cores for so much of the guest's time, or less. Devices are called on this thread.
    fn run(&self, quantum: Duration);

    /// How long the guest has been running, in its own time.
    fn time(&self) -> Duration;

    /// Lets the devices see what time it is: expires what is due.
    fn let_time_pass(&self);

    /// Whether all cores wait, and nothing has come that they wait for.
    fn sleeps(&self) -> bool;

    /// When the next of the timers is due that could wake them, in the guest's time.
    fn deadline(&self) -> Option<Duration>;

    /// Lets the guest's time pass at once until `time`, while it sleeps.
    fn sleep_until(&self, time: Duration);

    /// To be called when a device may have written code to RAM: the translating engines cannot see that, and would go on
    /// running what they made of the code that was there before.
    fn forget_translations(&self);

    /// What the guest has asked its firmware or its board for, if anything.
    fn power_request(&self) -> Option<PowerRequest>;

    fn devices(&self) -> &Devices;

    fn uart(&self) -> &dyn Uart;

    /// What recorded the lines.
    fn recorder(&self) -> &Recorder;

    /// How often the guest has accessed each device.
    fn accesses(&self) -> Vec<(&'static str, u64)>;

    /// What the guest is to find, for the verdict.
    fn facts(&self, options: &Options) -> Facts;
}

/// What the guest has to see of a board.
pub struct Facts {
    /// When the guest's time begins, counted from the Unix epoch.
    pub epoch: Duration,
    pub clock: Clock,
    /// What has to be in the disk's path below `/sys`.
    pub disk_parent: String,
    /// What interrupts it.
    pub sources: Vec<Source>,
}

/// By which it knows the time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What its kernel calls it.
    pub name: &'static str,
    /// Why no alarm of it goes off, if so.
    pub no_alarm: Option<&'static str>,
}

impl Clock {
    /// Ours in the firmware's hands. ACPI has no ID for a PL031.
    pub const OF_UEFI: Self = Self {
        name: "rtc-efi",
        no_alarm: Some("UEFI, which has the clock for a kernel with ACPI, has no alarm on it"),
    };

    /// Ours, by a driver of the guest's.
    pub const fn of_ours(name: &'static str) -> Self {
        Self { name, no_alarm: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    Off,
    Reset,
}

/// The cores sleep and nothing is left that could wake them.
#[derive(Debug, thiserror::Error)]
#[error("the guest waits for an interrupt that nothing can raise any more")]
pub struct Stuck;

/// What either UART can do.
pub trait Uart {
    /// Takes what was typed at the guest. Returns for how much there was room.
    fn type_in(&self, characters: &[u8]) -> usize;

    /// Tries again to send what the wire has not taken. Returns whether there is more.
    fn send(&self) -> io::Result<bool>;
}

impl<L: LevelInterrupt> Uart for Pl011<L, Console>
where
    Self: BusDevice,
{
    fn type_in(&self, characters: &[u8]) -> usize {
        self.receive(characters)
    }

    fn send(&self) -> io::Result<bool> {
        sent(self.flush(), self.unsent())
    }
}

impl<L: LevelInterrupt> Uart for Uart16550<L, Console>
where
    Self: BusDevice,
{
    fn type_in(&self, characters: &[u8]) -> usize {
        self.receive(characters)
    }

    fn send(&self) -> io::Result<bool> {
        sent(self.flush(), self.unsent())
    }
}

fn sent(flushed: io::Result<()>, left: usize) -> io::Result<bool> {
    match flushed {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(left != 0),
    }
}
