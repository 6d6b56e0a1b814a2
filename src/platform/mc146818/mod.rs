//! The MC146818 real-time clock of a PC with its memory ("CMOS"), as in *MC146818A Real-Time Clock Plus RAM (RTC)* (Motorola),
//! with 128 registers and the century at 0x32 as PCs have them.
//!
//! What the model leaves out: the square wave is no pin; daylight saving (DSE) reads back and changes no hour, as the rules that
//! the chip knows have long been repealed.

mod calendar;
mod describe;
mod registers;
mod rtc;
mod state;

use std::{fmt, sync::Mutex, time::Duration};

use crate::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, LevelOutput},
    sync::lock,
    time::{Alarm, AlarmOutput, Clock},
};
use registers::{CENTURY, COUNT, MEMORY, NMI_MASK};
use rtc::{Rtc, ticks_of};

pub use describe::describe;
pub use state::{Mc146818State, Mc146818StateError};

/// How many ports: 0x70, the index, and 0x71, the register, on a PC.
pub const PORTS: u64 = 2;

/// An MC146818: its ports are its [`BusDevice`] face, `L` is its IRQ (IRQ 8 on a PC), `C` its time, and `A` hears when
/// [`expire`](Self::expire) is to be called.
///
/// The time goes on with each whole second of the clock, until a guest sets it otherwise: what it then is, [`save`](Self::save)
/// tells. Interrupts are at most one until the guest reads register C, however many periods went by, as in the chip.
///
/// # Threads
/// Every method may be called from any thread, also from within the line, the clock and the alarm: none of them is
/// called while the registers are locked. The alarm is told one deadline at a time, in order.
///
/// ```
/// use devisor::{bus::BusDevice, interrupt::NoInterrupt, platform::mc146818::Mc146818, time::ManualClock};
/// use std::{sync::Arc, time::Duration};
///
/// // 2023-11-14, 22:13:20.
/// let clock = Arc::new(ManualClock::new(Duration::from_secs(1_700_000_000)));
/// let rtc = Mc146818::new(NoInterrupt, Arc::clone(&clock), ());
///
/// rtc.write(0, &[0x0b]); // Register B:
/// rtc.write(1, &[0x12]); // an interrupt each second, 24 hours, BCD.
/// clock.advance(Duration::from_secs(41));
/// rtc.expire();
/// assert!(rtc.interrupt().is_up());
///
/// rtc.write(0, &[0x02]); // Minutes.
/// let mut minutes = [0];
/// rtc.read(1, &mut minutes);
/// assert_eq!(minutes, [0x14]);
/// ```
pub struct Mc146818<L, C, A> {
    // What is plugged in.
    interrupt: LevelOutput<L>,
    clock: C,
    alarm: AlarmOutput<A>,

    registers: Mutex<Rtc>,
}

/// A byte that the host would put where there is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} bytes from register {index:#04x} on: memory is 0x0e to 0x7f, without the century at 0x32")]
pub struct NoMemory {
    /// The first of them.
    pub index: u8,
    /// How many.
    pub count: usize,
}

impl<L: LevelInterrupt, C: Clock, A: Alarm> Mc146818<L, C, A> {
    /// A clock that runs and tells `clock`'s time, as one with a battery does, in BCD and 24 hours. For the guest to see the
    /// right date in UTC, `clock` counts from the Unix epoch. Its memory is zero; `line` is down, `alarm` is not set.
    pub fn new(line: L, clock: C, alarm: A) -> Self {
        let rtc = Rtc::new(ticks_of(clock.now()));
        Self {
            interrupt: LevelOutput::new(line),
            clock,
            alarm: AlarmOutput::new(alarm),
            registers: Mutex::new(rtc),
        }
    }

    /// Puts bytes into memory from register `index` on: what the firmware is to find there.
    ///
    /// # Errors
    /// [`NoMemory`] if any of them would be a register of the clock, or past the end.
    pub fn set_memory(&self, index: u8, bytes: &[u8]) -> Result<(), NoMemory> {
        let range = usize::from(index)..usize::from(index).saturating_add(bytes.len());
        if range.start < MEMORY || range.end > COUNT || range.contains(&CENTURY) {
            let count = bytes.len();
            return Err(NoMemory { index, count });
        }
        self.change(|rtc| rtc.registers[range].copy_from_slice(bytes));
        Ok(())
    }

    /// Says how much memory the machine has where the firmware of PCs looks: `below` are the bytes below 4 GiB, from 0 on, and
    /// `above` those from 4 GiB on.
    pub fn set_memory_size(&self, below: u64, above: u64) {
        const MIB: u64 = 1 << 20;
        let units = |bytes: u64, shift: u32| u16::try_from(bytes >> shift).unwrap_or(u16::MAX).to_le_bytes();
        let base = units(below.min(640 << 10), 10);
        let extended = units(below.saturating_sub(MIB), 10);
        let above_16_mib = units(below.saturating_sub(16 * MIB), 16);
        let [low, middle, high, ..] = (above >> 16).min(0xff_ffff).to_le_bytes();
        self.change(|rtc| {
            let mut put = |at: usize, bytes: &[u8]| rtc.registers[at..at + bytes.len()].copy_from_slice(bytes);
            put(0x15, &base);
            put(0x17, &extended);
            put(0x30, &extended);
            put(0x34, &above_16_mib);
            put(0x5b, &[low, middle, high]);
        });
    }

    /// A reset of the system: interrupts are disabled and forgotten. Time and memory go on, as with a battery.
    pub fn reset(&self) {
        self.change(Rtc::reset);
    }

    /// Whether the guest masks NMIs, with bit 7 of the index port. Nothing here sends one: it is for who does.
    pub fn masks_nmi(&self) -> bool {
        lock(&self.registers).index & NMI_MASK != 0
    }

    /// Looks at the clock and raises the line if it is time. Call it when the deadline that the alarm was told has passed; at any
    /// other time it does no harm.
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
        let now = ticks_of(self.clock.now());
        let result = {
            let mut rtc = lock(&self.registers);
            rtc.advance(now);
            let result = change(&mut rtc);
            self.interrupt.set(rtc.irqf());
            result
        };
        // A refusal is counted by the output, and told again after the next change.
        let _ = self.interrupt.settle();
        self.alarm.settle(|| self.deadline());
        result
    }

    /// The state now.
    pub fn save(&self) -> Mc146818State {
        self.change(|rtc| rtc.save())
    }

    /// Puts the clock into `state`, lets the time since it was saved pass, and drives line and alarm accordingly: an alarm that was
    /// reached meanwhile interrupts now.
    ///
    /// That takes a clock on the scale of the one that ran when the state was saved, such as the Unix epoch's. If this
    /// clock reads less, no time has passed. To let the guest's clock stand still meanwhile, set
    /// [`Mc146818State::ticks`] to what the clock reads now.
    ///
    /// # Errors
    /// [`Mc146818StateError`]: the state is refused as a whole.
    pub fn restore(&self, state: &Mc146818State) -> Result<(), Mc146818StateError> {
        let now = ticks_of(self.clock.now());
        let mut restored = Rtc::restored(state, now)?;
        restored.advance(now);
        self.change(|rtc| *rtc = restored);
        Ok(())
    }
}

/// Each port is a byte: a wider access is one of each byte in turn, from the lowest port on. The index cannot be read: it
/// reads as ones.
impl<L: LevelInterrupt, C: Clock, A: Alarm> BusDevice for Mc146818<L, C, A> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (byte, port) in data.iter_mut().zip(offset..PORTS) {
            *byte = match port {
                0 => 0xff,
                _ => self.change(Rtc::read),
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (byte, port) in data.iter().zip(offset..PORTS) {
            self.change(|rtc| match port {
                0 => rtc.index = *byte,
                _ => rtc.write(*byte),
            });
        }
    }
}

impl<L, C, A> fmt::Debug for Mc146818<L, C, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mc146818")
            .field("registers", &*lock(&self.registers))
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}
