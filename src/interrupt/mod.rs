//! Triggering an interrupt: the one thing that every device needs from its hypervisor.
//!
//! Devices are written against [`Interrupt`] or [`LevelInterrupt`] and [backends](crate#backends) implement them.
//! Everything in this module needs `std` alone: no hypervisor, no interrupt controller, and no file
//! descriptor: a vector that has one may show it.
//!
//! | type | for | what it is |
//! |---|---|---|
//! | [`Interrupt`] | both sides | an edge, or "raise" |
//! | [`LevelInterrupt`] | both sides | a wire that stays up until it is cleared |
//! | [`LevelOutput`] | device authors | derives a wire from causes, without calling out under a lock |
//! | [`SharedLine`] | embedders | several devices on one wire (wired-OR) |
//! | [`EdgeToLevel`] | backend authors | a level line over something that only knows edges |
//! | [`MsiSink`], [`MsiVectors`] | backend authors | the two ways in which a platform delivers messages |
//! | [`from_fn`], [`level_from_fn`], [`NoInterrupt`] | embedders | a closure as a line, and silence |

mod closure;
mod edge_to_level;
mod level_output;
mod msi;
mod shared;

use std::{io, sync::Arc};

pub use closure::{FnInterrupt, FnLevelInterrupt, NoInterrupt, from_fn, level_from_fn};
pub use edge_to_level::EdgeToLevel;
pub use level_output::LevelOutput;
pub use msi::{Acceptance, MsiMessage, MsiSink, MsiVector, MsiVectors, RequesterId, SinkVectors};
pub use shared::{LineSource, SharedLine, TooManySources};

/// A line that can interrupt the guest.
///
/// *For who calls it* (a device, a transport): call [`trigger`](Self::trigger) once the guest can see why, from any
/// thread, as often as there is something to tell. `Err` means that the signal was not delivered: keep the pending
/// state (a status register, a pending bit), so that nothing is lost and the next signal carries it. Count it if
/// that helps; never panic for it.
///
/// *For who implements it* (a backend, a test): be cheap enough to be called for each request, and never wait for
/// another device or for the guest. Signals may be coalesced as the hardware does, but one that comes after the
/// guest has seen the last must reach it. Return `Err` only if nothing was delivered.
///
/// ```
/// use devisor::interrupt::{Interrupt, from_fn};
/// use std::{io, sync::Arc};
///
/// /// A device knows no more of its hypervisor than this field.
/// struct Doorbell {
///     interrupt: Arc<dyn Interrupt>,
/// }
///
/// impl Doorbell {
///     fn press(&self) -> io::Result<()> {
///         self.interrupt.trigger()
///     }
/// }
///
/// let (sender, receiver) = std::sync::mpsc::sync_channel(1);
/// let line = from_fn(move || sender.try_send(()).map_err(io::Error::other));
/// let bell = Doorbell { interrupt: Arc::new(line) };
///
/// bell.press()?;
/// assert_eq!(receiver.try_recv(), Ok(()));
/// # Ok::<(), io::Error>(())
/// ```
pub trait Interrupt: Send + Sync {
    /// Signals the guest.
    ///
    /// # Errors
    /// The signal was not delivered; the caller's pending state still stands and a later call carries it.
    fn trigger(&self) -> io::Result<()>;
}

/// A wire that stays up until it is cleared.
///
/// [`trigger`](Interrupt::trigger) asserts it and [`clear`](Self::clear) deasserts it. Both are idempotent, and neither
/// depends on how often the other was called: two triggers and one clear leave the wire down.
///
/// *For who calls it*: derive the wire from the registers in one place (`line = pending & enabled`), after every
/// change of state; never pulse it. [`LevelOutput`] does that without a lock held over the call.
///
/// *For who implements it*: the guest is interrupted as long as the wire is up, whether or not it was told before. An
/// `Err` from either call leaves the wire as it was: [`LevelOutput`] does not clear what it failed to assert.
/// A platform that can only signal edges is lifted to this contract by [`EdgeToLevel`].
///
/// ```
/// use devisor::interrupt::{Interrupt, LevelInterrupt, level_from_fn};
/// use std::{io, sync::atomic::{AtomicBool, Ordering}, sync::Arc};
///
/// let wire = Arc::new(AtomicBool::new(false));
/// let pin = Arc::clone(&wire);
/// let line = level_from_fn(move |up| {
///     pin.store(up, Ordering::SeqCst);
///     Ok(())
/// });
///
/// line.trigger()?;
/// line.trigger()?;
/// assert!(wire.load(Ordering::SeqCst));
/// line.clear()?;
/// assert!(!wire.load(Ordering::SeqCst));
/// # Ok::<(), io::Error>(())
/// ```
pub trait LevelInterrupt: Interrupt {
    /// Deasserts the wire.
    ///
    /// # Errors
    /// The wire is still up as far as the guest is concerned; a later call carries the change.
    fn clear(&self) -> io::Result<()>;
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T: Interrupt + ?Sized> Interrupt for $pointer {
            fn trigger(&self) -> io::Result<()> {
                (**self).trigger()
            }
        }

        impl<T: LevelInterrupt + ?Sized> LevelInterrupt for $pointer {
            fn clear(&self) -> io::Result<()> {
                (**self).clear()
            }
        }
    )*};
}

forward!(&T, Box<T>, Arc<T>);
