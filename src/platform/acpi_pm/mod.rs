//! The fixed hardware of ACPI: PM1 event and control registers, the power management timer, general-purpose events, buttons, and the
//! way to sleep and to power off: *Advanced Configuration and Power Interface Specification 6.5*, sections 4.8.3 and 4.8.4.
//!
//! There is no bus master status, no PM2 block and no second PM1 block. Where each block is, the FADT says.

mod describe;
mod faces;
mod model;
mod registers;
mod state;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
    time::{Alarm, AlarmOutput, Clock},
};
use model::{Model, ticks_of};
use registers::{MAX_GPES, pm1};

pub use describe::{AcpiPmPlace, describe};
pub use faces::{ControlBlock, EventBlock, GpeBlock, GpeLine, SmiCommand, TimerBlock};
pub use state::{AcpiPmState, AcpiPmStateError};

/// How far the power management timer counts: TMR_VAL_EXT of the FADT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TimerWidth {
    /// 24 bits: it is through after 4.7 seconds.
    Bits24,
    /// 32 bits: it is through after 20 minutes.
    #[default]
    Bits32,
}

impl TimerWidth {
    fn bits(self) -> u32 {
        match self {
            Self::Bits24 => 24,
            Self::Bits32 => 32,
        }
    }

    fn mask(self) -> u32 {
        u32::MAX >> (32 - self.bits())
    }
}

/// What an [`AcpiPm`] is like. The FADT says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcpiPmConfig {
    /// How far the timer counts.
    pub timer: TimerWidth,
    /// How many general-purpose events there are: a multiple of 8, 1016 at most.
    pub gpes: u32,
    /// In ACPI mode from the start, as the FADT says with an SMI_CMD of zero. Otherwise the guest enters it by
    /// [`AcpiPm::smi_command`].
    pub acpi_mode: bool,
}

impl Default for AcpiPmConfig {
    /// 32 bits, 16 events, in ACPI mode.
    fn default() -> Self {
        Self {
            timer: TimerWidth::Bits32,
            gpes: 16,
            acpi_mode: true,
        }
    }
}

/// An [`AcpiPm`] or a line of it cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiPmError {
    /// [`AcpiPmConfig::gpes`].
    #[error("{0} general-purpose events: a block has a multiple of 8, 1016 at most")]
    Gpes(u32),
    /// There is no such event.
    #[error("general-purpose event {gpe}: there are {count}, from 0 on")]
    NoGpe {
        /// The event.
        gpe: u32,
        /// How many there are.
        count: u32,
    },
}

/// The power management registers of a machine. Clones are handles to the same, which live as long as any of them or of their
/// blocks.
///
/// # Sleep
/// When the guest sets SLP_EN, the hook hears which SLP_TYP it has chosen: the numbers are those of the DSDT's `\_S5` and its like, so
/// whose tables they are knows which one is to power off. It is called on the thread of that access, which goes on when it returns.
///
/// # Threads
/// Every method may be called from any thread, also from within the line, the hook, the clock and the alarm: none of them is
/// called while the registers are locked. The alarm is told one deadline at a time, in order.
///
/// ```
/// use devisor::{bus::BusDevice, interrupt::NoInterrupt, platform::acpi_pm::{AcpiPm, AcpiPmConfig}, time::ManualClock};
///
/// let clock = ManualClock::default();
/// let sleep = |kind| println!("the guest sleeps as {kind}");
/// let pm = AcpiPm::new(AcpiPmConfig::default(), NoInterrupt, sleep, clock, ())?;
///
/// pm.event_block().write(2, &0x0100_u16.to_le_bytes()); // PWRBTN_EN
/// pm.press_power_button();
/// assert!(pm.sci());
/// pm.event_block().write(0, &0x0100_u16.to_le_bytes()); // PWRBTN_STS
/// assert!(!pm.sci());
/// # Ok::<(), devisor::platform::acpi_pm::AcpiPmError>(())
/// ```
#[derive(Clone)]
pub struct AcpiPm {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    config: AcpiPmConfig,

    // What is plugged in.
    sci: LevelOutput<Box<dyn LevelInterrupt>>,
    sleep: Box<dyn Fn(u8) + Send + Sync>,
    clock: Box<dyn Clock>,
    alarm: AlarmOutput<Box<dyn Alarm>>,

    model: Mutex<Model>,
}

impl AcpiPm {
    /// Registers as after a reset. `sci` is the system control interrupt, and down; `sleep` hears SLP_TYP; `alarm` is not set.
    ///
    /// # Errors
    /// [`AcpiPmError`] if there can be no such number of events.
    pub fn new(
        config: AcpiPmConfig,
        sci: impl LevelInterrupt + 'static,
        sleep: impl Fn(u8) + Send + Sync + 'static,
        clock: impl Clock + 'static,
        alarm: impl Alarm + 'static,
    ) -> Result<Self, AcpiPmError> {
        if !config.gpes.is_multiple_of(8) || config.gpes > MAX_GPES {
            return Err(AcpiPmError::Gpes(config.gpes));
        }
        let model = Model::new(config, ticks_of(clock.now()));
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                sci: LevelOutput::new(Box::new(sci)),
                sleep: Box::new(sleep),
                clock: Box::new(clock),
                alarm: AlarmOutput::new(Box::new(alarm)),
                model: Mutex::new(model),
            }),
        })
    }

    /// The user presses the power button.
    pub fn press_power_button(&self) {
        self.set_status(pm1::PWRBTN);
    }

    /// The user presses the sleep button.
    pub fn press_sleep_button(&self) {
        self.set_status(pm1::SLPBTN);
    }

    /// The alarm of the real-time clock has come.
    pub fn rtc_alarm(&self) {
        self.set_status(pm1::RTC);
    }

    /// The machine wakes from a sleep that it had gone to: WAK_STS.
    pub fn wake(&self) {
        self.set_status(pm1::WAK);
    }

    /// The general-purpose event `gpe` happens, once. For one that lasts there is [`gpe_line`](Self::gpe_line).
    ///
    /// # Errors
    /// [`AcpiPmError::NoGpe`] if there is no such event.
    pub fn raise_gpe(&self, gpe: u32) -> Result<(), AcpiPmError> {
        let count = self.shared.config.gpes;
        if gpe >= count {
            return Err(AcpiPmError::NoGpe { gpe, count });
        }
        self.shared.change(|model| model.latch_gpe(gpe));
        Ok(())
    }

    fn set_status(&self, bit: u16) {
        self.shared.change(|model| model.status |= bit);
    }

    /// Whether the system control interrupt is asserted.
    pub fn sci(&self) -> bool {
        self.shared.sci.is_up()
    }

    /// How often the line refused to be told its level: see [`LevelOutput::failures`]. What it refused is told again with the
    /// next access or expiry.
    pub fn output_failures(&self) -> u64 {
        self.shared.sci.failures()
    }

    /// Looks at the clock and raises the line if it is time. Call it when the deadline that the alarm was told has passed; at any
    /// other time it does no harm.
    pub fn expire(&self) {
        self.shared.alarm.expired();
        self.shared.change(|_| ());
    }

    /// When [`expire`](Self::expire) needs to be called next, on the clock's scale: what the alarm was told.
    pub fn deadline(&self) -> Option<Duration> {
        lock(&self.shared.model).deadline()
    }

    /// A reset of the system: all is forgotten but what lines hold, and what the timer has counted.
    pub fn reset(&self) {
        self.shared.change(Model::reset);
    }

    /// The state now.
    pub fn save(&self) -> AcpiPmState {
        self.shared.change(|model| model.save())
    }

    /// Takes over a saved state, all or nothing, and drives line and alarm accordingly. The timer goes on from where it was saved.
    ///
    /// # Errors
    /// [`AcpiPmStateError`]: the state is not one that this device can have.
    pub fn restore(&self, state: &AcpiPmState) -> Result<(), AcpiPmStateError> {
        self.shared.change(|model| model.restore(state))
    }
}

impl Shared {
    /// Every access: lets the time pass, makes the change, derives the outputs, then tells them with nothing locked.
    fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let now = ticks_of(self.clock.now());
        let (result, sleep) = {
            let mut model = lock(&self.model);
            model.advance(now);
            let result = change(&mut model);
            self.sci.set(model.sci());
            (result, model.sleep.take())
        };
        // A refusal is counted by the output, and told again after the next change.
        let _ = self.sci.settle();
        self.alarm.settle(|| lock(&self.model).deadline());
        if let Some(kind) = sleep {
            (self.sleep)(kind);
        }
        result
    }
}

impl fmt::Debug for AcpiPm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcpiPm")
            .field("model", &*lock(&self.shared.model))
            .field("sci", &self.shared.sci)
            .finish_non_exhaustive()
    }
}
