//! Closures as lines, and a line that leads nowhere.

use std::{fmt, io};

use super::{Interrupt, LevelInterrupt};

/// Makes an [`Interrupt`] of a closure.
///
/// *For embedders*: the shortest way to hook a device to whatever your hypervisor offers. *For device authors*: what
/// to hand a device in a test. The closure follows the contract of [`Interrupt`]: cheap, from any thread, `Err` only if
/// nothing was delivered.
///
/// ```
/// use devisor::interrupt::{Interrupt, from_fn};
/// use std::sync::atomic::{AtomicU32, Ordering};
///
/// let raised = AtomicU32::new(0);
/// let line = from_fn(|| {
///     raised.fetch_add(1, Ordering::SeqCst);
///     Ok(())
/// });
/// line.trigger()?;
/// assert_eq!(raised.load(Ordering::SeqCst), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn from_fn<F>(trigger: F) -> FnInterrupt<F>
where
    F: Fn() -> io::Result<()> + Send + Sync,
{
    FnInterrupt(trigger)
}

/// Makes a [`LevelInterrupt`] of a closure that is told the level: `true` is asserted.
///
/// The closure must take repeats: put a [`LevelOutput`](super::LevelOutput) or a [`SharedLine`](super::SharedLine) in
/// front of it to hear transitions only.
///
/// ```
/// use devisor::interrupt::{Interrupt, LevelInterrupt, level_from_fn};
/// use std::sync::Mutex;
///
/// let heard = Mutex::new(Vec::new());
/// let line = level_from_fn(|up| Ok(heard.lock().unwrap().push(up)));
/// line.trigger()?;
/// line.clear()?;
/// assert_eq!(*heard.lock().unwrap(), [true, false]);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn level_from_fn<F>(set: F) -> FnLevelInterrupt<F>
where
    F: Fn(bool) -> io::Result<()> + Send + Sync,
{
    FnLevelInterrupt(set)
}

/// A closure as an edge line: see [`from_fn`].
///
/// ```
/// use devisor::interrupt::{FnInterrupt, Interrupt, from_fn};
///
/// let line: FnInterrupt<_> = from_fn(|| Ok(()));
/// line.trigger()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct FnInterrupt<F>(F);

/// A closure as a level line: see [`level_from_fn`].
///
/// ```
/// use devisor::interrupt::{FnLevelInterrupt, LevelInterrupt, level_from_fn};
///
/// let line: FnLevelInterrupt<_> = level_from_fn(|_up| Ok(()));
/// line.clear()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct FnLevelInterrupt<F>(F);

impl<F> fmt::Debug for FnInterrupt<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FnInterrupt").finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for FnLevelInterrupt<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FnLevelInterrupt").finish_non_exhaustive()
    }
}

impl<F: Fn() -> io::Result<()> + Send + Sync> Interrupt for FnInterrupt<F> {
    fn trigger(&self) -> io::Result<()> {
        (self.0)()
    }
}

impl<F: Fn(bool) -> io::Result<()> + Send + Sync> Interrupt for FnLevelInterrupt<F> {
    fn trigger(&self) -> io::Result<()> {
        (self.0)(true)
    }
}

impl<F: Fn(bool) -> io::Result<()> + Send + Sync> LevelInterrupt for FnLevelInterrupt<F> {
    fn clear(&self) -> io::Result<()> {
        (self.0)(false)
    }
}

/// A line that is connected to nothing: every signal succeeds and is dropped.
///
/// For a guest that polls, and for tests of everything but the interrupt.
///
/// ```
/// use devisor::interrupt::{Interrupt, LevelInterrupt, NoInterrupt};
///
/// NoInterrupt.trigger()?;
/// NoInterrupt.clear()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoInterrupt;

impl Interrupt for NoInterrupt {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

impl LevelInterrupt for NoInterrupt {
    fn clear(&self) -> io::Result<()> {
        Ok(())
    }
}
