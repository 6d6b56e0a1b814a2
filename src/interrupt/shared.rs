//! Several devices on one wire (wired-OR).

use std::{fmt, io};

use super::{Interrupt, LevelInterrupt, LevelOutput, NoInterrupt};
use crate::sync::{Arc, AtomicU64, Ordering};

/// One wire that several devices hold up, each with a [`LineSource`] of its own.
///
/// The wire is up while any source is; the line behind it hears transitions only, and dropping a source lets go.
///
/// *For embedders*: make one over the backend's line and hand each device a [`source`](Self::source). *For device
/// authors*: nothing changes, a source is a [`LevelInterrupt`]. *For backends*: your line hears what it would hear from
/// one device.
///
/// ```
/// use devisor::interrupt::{Interrupt, LevelInterrupt, SharedLine, level_from_fn};
/// use std::sync::{Arc, Mutex};
///
/// let heard = Arc::new(Mutex::new(Vec::new()));
/// let log = Arc::clone(&heard);
/// let wire = SharedLine::new(level_from_fn(move |up| Ok(log.lock().unwrap().push(up))));
/// let (uart, clock) = (wire.source()?, wire.source()?);
///
/// uart.trigger()?;
/// clock.trigger()?;
/// uart.clear()?;
/// assert_eq!(*heard.lock().unwrap(), [true], "the clock still holds it up");
/// drop(clock);
/// assert_eq!(*heard.lock().unwrap(), [true, false]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SharedLine<L: LevelInterrupt> {
    wire: Arc<Wire<L>>,
}

struct Wire<L: LevelInterrupt> {
    output: LevelOutput<L>,
    /// One bit a source that is out there.
    taken: AtomicU64,
}

/// A [`SharedLine`] has no room for another source.
///
/// ```
/// use devisor::interrupt::{NoInterrupt, SharedLine};
///
/// let wire = SharedLine::new(NoInterrupt);
/// let sources: Vec<_> = std::iter::from_fn(|| wire.source().ok()).collect();
/// assert_eq!(sources.len(), SharedLine::<NoInterrupt>::MAX_SOURCES as usize);
/// assert!(wire.source().unwrap_err().to_string().contains("put another shared line over one of them"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManySources;

impl fmt::Display for TooManySources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = SharedLine::<NoInterrupt>::MAX_SOURCES;
        write!(
            f,
            "a shared line takes at most {limit} sources: put another shared line over one of them"
        )
    }
}

impl std::error::Error for TooManySources {}

impl<L: LevelInterrupt> SharedLine<L> {
    /// How many sources one shared line takes. A source can carry another shared line where that is not enough.
    pub const MAX_SOURCES: u32 = LevelOutput::<L>::CAUSES.count_ones();

    /// Shares `line`, which is down.
    pub fn new(line: L) -> Self {
        Self {
            wire: Arc::new(Wire {
                output: LevelOutput::new(line),
                taken: AtomicU64::new(0),
            }),
        }
    }

    /// A handle for one more device. It starts down.
    ///
    /// # Errors
    /// [`TooManySources`] if [`MAX_SOURCES`](Self::MAX_SOURCES) handles are out already.
    pub fn source(&self) -> Result<LineSource<L>, TooManySources> {
        let mut taken = self.wire.taken.load(Ordering::SeqCst);
        loop {
            let bit = !taken & taken.wrapping_add(1);
            if bit & LevelOutput::<L>::CAUSES == 0 {
                return Err(TooManySources);
            }
            match self
                .wire
                .taken
                .compare_exchange(taken, taken | bit, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => {
                    let wire = Arc::clone(&self.wire);
                    return Ok(LineSource { wire, bit });
                }
                Err(now) => taken = now,
            }
        }
    }

    /// The output that all sources drive, for its level and its count of failures.
    pub fn output(&self) -> &LevelOutput<L> {
        &self.wire.output
    }
}

impl<L: LevelInterrupt> Clone for SharedLine<L> {
    fn clone(&self) -> Self {
        Self {
            wire: Arc::clone(&self.wire),
        }
    }
}

/// One device's hold on a [`SharedLine`]. Dropping it lets go.
///
/// *For device authors*: a level line like any other. *For embedders*: it can carry a shared line in its turn, where one
/// is not enough.
///
/// ```
/// use devisor::interrupt::{Interrupt, LevelInterrupt, NoInterrupt, SharedLine};
///
/// let pin = SharedLine::new(NoInterrupt);
/// let slot = SharedLine::new(pin.source()?);
/// let function = slot.source()?;
/// function.trigger()?;
/// assert!(pin.output().is_up());
/// function.clear()?;
/// assert!(!pin.output().is_up());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LineSource<L: LevelInterrupt> {
    wire: Arc<Wire<L>>,
    bit: u64,
}

impl<L: LevelInterrupt> LineSource<L> {
    /// Holds the wire up, or lets go of it.
    fn hold(&self, up: bool) -> io::Result<()> {
        let output = &self.wire.output;
        let with = |causes, up| if up { causes | self.bit } else { causes & !self.bit };
        let held = output.update(|causes| with(causes, up)) & self.bit != 0;
        output.settle().inspect_err(|_| {
            // The wire is as it was, so our hold on it is too: a device that was refused may never make the opposite call.
            output.update(|causes| with(causes, held));
            // In case somebody else has told the wire of our hold meanwhile.
            let _ = output.settle();
        })
    }
}

impl<L: LevelInterrupt> Interrupt for LineSource<L> {
    fn trigger(&self) -> io::Result<()> {
        self.hold(true)
    }
}

impl<L: LevelInterrupt> LevelInterrupt for LineSource<L> {
    fn clear(&self) -> io::Result<()> {
        self.hold(false)
    }
}

impl<L: LevelInterrupt> Drop for LineSource<L> {
    fn drop(&mut self) {
        // A refusal is counted by the output, and told again by the next source that moves.
        self.wire.output.update(|causes| causes & !self.bit);
        let _ = self.wire.output.settle();
        self.wire.taken.fetch_and(!self.bit, Ordering::SeqCst);
    }
}

impl<L: LevelInterrupt> fmt::Debug for SharedLine<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLine").field("output", &self.wire.output).finish()
    }
}

impl<L: LevelInterrupt> fmt::Debug for LineSource<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineSource")
            .field("source", &self.bit.trailing_zeros())
            .field("output", &self.wire.output)
            .finish()
    }
}
