//! The PL031 real-time clock, as in *PrimeCell Real Time Clock (PL031) Technical Reference Manual*, ARM DDI 0224C.

mod describe;
mod registers;
mod rtc;

use std::{fmt, sync::Mutex, time::Duration};

use super::primecell;
use crate::{
    bus::{BusDevice, read_le, write_le},
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
    time::{Alarm, AlarmOutput, Clock},
};
use rtc::Rtc;

pub use describe::describe;

/// Bytes of the device's register region.
pub const REGION_SIZE: u64 = primecell::REGION_SIZE;

/// A PL031 real-time clock: its registers are its [`BusDevice`] face, `L` is its RTCINTR, `C` its time, and `A` hears
/// when [`expire`](Self::expire) is to be called.
///
/// The counter of 32 bits goes up by one with each whole second of the clock, and the interrupt is set when the
/// counter comes to the match value. A match value in the past is reached after the counter has wrapped, at 2^32.
///
/// # Threads
/// Every method may be called from any thread, also from within the line, the clock and the alarm: none of them is
/// called while the registers are locked. The alarm is told one deadline at a time, in order.
///
/// ```
/// use devisor::{bus::BusDevice, interrupt::NoInterrupt, platform::pl031::Pl031, time::ManualClock};
/// use std::{sync::Arc, time::Duration};
///
/// let clock = Arc::new(ManualClock::new(Duration::from_secs(1_700_000_000)));
/// let rtc = Pl031::new(NoInterrupt, Arc::clone(&clock), ());
///
/// rtc.write(0x004, &1_700_000_060u32.to_le_bytes()); // RTCMR: in a minute,
/// rtc.write(0x010, &[1]); // RTCIMSC: with an interrupt.
/// assert_eq!(rtc.deadline(), Some(Duration::from_secs(1_700_000_060)));
///
/// clock.advance(Duration::from_secs(60));
/// rtc.expire();
/// assert!(rtc.interrupt().is_up());
/// ```
pub struct Pl031<L, C, A> {
    // What is plugged in.
    interrupt: LevelOutput<L>,
    clock: C,
    alarm: AlarmOutput<A>,

    registers: Mutex<Rtc>,
}

impl<L: LevelInterrupt, C: Clock, A: Alarm> Pl031<L, C, A> {
    /// A clock that runs and tells `clock`'s time in seconds, as one with a battery does. For the guest to see the
    /// right date, `clock` counts from the Unix epoch. `line` is down, `alarm` is not set.
    pub fn new(line: L, clock: C, alarm: A) -> Self {
        let seconds = clock.now().as_secs();
        let rtc = Rtc {
            seconds,
            // Of a time after 2106 the guest sees the low half, as of any.
            counter: seconds as u32,
            running: true,
            ..Rtc::default()
        };
        Self::with(rtc, line, clock, alarm)
    }

    /// A clock as the manual's reset leaves it: at zero, and stopped until the guest starts it.
    pub fn at_reset(line: L, clock: C, alarm: A) -> Self {
        let rtc = Rtc {
            seconds: clock.now().as_secs(),
            ..Rtc::default()
        };
        Self::with(rtc, line, clock, alarm)
    }

    fn with(rtc: Rtc, line: L, clock: C, alarm: A) -> Self {
        Self {
            interrupt: LevelOutput::new(line),
            clock,
            alarm: AlarmOutput::new(alarm),
            registers: Mutex::new(rtc),
        }
    }

    /// A reset of the system: match, load and interrupt registers go to zero. The time goes on, as with a battery.
    pub fn reset(&self) {
        self.change(|rtc| {
            let Rtc {
                seconds,
                counter,
                running,
                ..
            } = *rtc;
            *rtc = Rtc {
                seconds,
                counter,
                running,
                ..Rtc::default()
            };
        });
    }

    /// Looks at the clock and raises the line if the match was reached. Call it when the deadline that the alarm was
    /// told has passed; at any other time it does no harm.
    pub fn expire(&self) {
        self.alarm.expired();
        self.change(|_| ());
    }

    /// When [`expire`](Self::expire) needs to be called next, on the clock's scale: what the alarm was told.
    pub fn deadline(&self) -> Option<Duration> {
        lock(&self.registers).deadline()
    }

    /// The interrupt line, for its level and its count of failures.
    pub fn interrupt(&self) -> &LevelOutput<L> {
        &self.interrupt
    }

    /// Every access: lets the time pass, makes the change, derives the outputs, then tells them with nothing locked.
    fn change<T>(&self, change: impl FnOnce(&mut Rtc) -> T) -> T {
        let now = self.clock.now().as_secs();
        let result = {
            let mut rtc = lock(&self.registers);
            rtc.advance(now);
            let result = change(&mut rtc);
            self.interrupt.set(rtc.mis());
            result
        };
        // A refusal is counted by the output, and told again after the next change.
        let _ = self.interrupt.settle();
        self.alarm.settle(|| self.deadline());
        result
    }

    /// The state now.
    pub fn save(&self) -> Pl031State {
        self.change(|rtc| {
            let Rtc {
                seconds,
                counter,
                matched,
                load,
                running,
                imsc,
                ris,
            } = *rtc;
            Pl031State {
                seconds,
                dr: counter,
                mr: matched,
                lr: load,
                started: running,
                imsc,
                ris,
            }
        })
    }

    /// Puts the clock into `state`, lets the time since it was saved pass, and drives line and alarm accordingly: a
    /// match that was reached meanwhile interrupts now.
    ///
    /// That takes a clock on the scale of the one that ran when the state was saved, such as the Unix epoch's. If this
    /// clock reads less, no time has passed. To let the guest's clock stand still meanwhile, set
    /// [`Pl031State::seconds`] to what the clock reads now.
    pub fn restore(&self, state: &Pl031State) {
        let Pl031State {
            seconds,
            dr,
            mr,
            lr,
            started,
            imsc,
            ris,
        } = *state;
        let now = self.clock.now().as_secs();
        self.change(|rtc| {
            *rtc = Rtc {
                seconds: seconds.min(now),
                counter: dr,
                matched: mr,
                load: lr,
                running: started,
                imsc,
                ris,
            };
            rtc.advance(now);
        });
    }
}

/// Everything about a [`Pl031`] that its guest can see, as [`Pl031::save`] gives it. Every value is one that a
/// clock can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pl031State {
    /// What the injected clock read, in whole seconds.
    pub seconds: u64,
    /// RTCDR at that time.
    pub dr: u32,
    /// RTCMR.
    pub mr: u32,
    /// RTCLR.
    pub lr: u32,
    /// RTCCR.START.
    pub started: bool,
    /// RTCIMSC.
    pub imsc: bool,
    /// RTCRIS.
    pub ris: bool,
}

/// Registers answer to accesses of 1, 2 and 4 bytes at their first byte; all others read as zero and write nothing.
impl<L: LevelInterrupt, C: Clock, A: Alarm> BusDevice for Pl031<L, C, A> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let register = primecell::register(offset, data.len());
        let value = register.map_or(0, |register| self.change(|rtc| rtc.read(register)));
        write_le(data, value.into());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(register) = primecell::register(offset, data.len()) {
            self.change(|rtc| rtc.write(register, read_le(data) as u32));
        }
    }
}

impl<L, C, A> fmt::Debug for Pl031<L, C, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pl031")
            .field("registers", &*lock(&self.registers))
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}
