//! The legacy interrupt of a function (PCI Local Bus 3.0, section 2.2.6): causes, and what keeps them from the wire.

use std::{fmt, io};

use crate::interrupt::{LevelInterrupt, LevelOutput};

type Output = LevelOutput<Box<dyn LevelInterrupt>>;

/// The causes and what gates them share one word with the wire that they move.
const CAUSES_SHIFT: u32 = 48;
const CAUSES: u64 = 0xff << CAUSES_SHIFT;
/// INTx Disable is set, or messages are sent instead.
const GATED: u64 = 1 << 56;
/// The device's own note.
const NOTE: u64 = 1 << 57;
const _: () = assert!((CAUSES | GATED | NOTE) & !Output::NOTES == 0);

/// A function's INTx: up to eight causes, and a wire that is up while there is one and the guest lets it through.
///
/// The causes are what the status register's Interrupt Status says, whatever keeps them from the wire: INTx Disable, or MSI or
/// MSI-X being enabled. A device may keep an interrupt status register of its own in them, such as virtio's ISR, to
/// read and clear it in one step with the wire.
///
/// ```
/// # use devisor::{interrupt::NoInterrupt, pci::*};
/// # let mut config = EndpointConfig::new(Identity::default())?;
/// # config.pin(Pin::A);
/// # let slot = Slot::new(DeviceFunction::new(1, 0).unwrap(), Box::new(NoInterrupt), std::sync::Arc::new(NoMessages));
/// # let endpoint = Endpoint::new(config, slot);
/// let intx = endpoint.intx();
/// intx.update(|isr| isr | 1);
/// intx.settle()?;
/// assert!(intx.is_up());
///
/// assert_eq!(intx.update(|_| 0), 1, "what the guest reads");
/// intx.settle()?;
/// assert!(!intx.is_up());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Intx {
    output: Output,
}

impl Intx {
    pub(crate) fn new(line: Box<dyn LevelInterrupt>) -> Self {
        let output = LevelOutput::new(line);
        Self { output }
    }

    /// Changes the causes in one atomic step, and returns what they were. Calls nobody, so it may be used under any lock:
    /// follow it with [`settle`](Self::settle) after the unlock. `change` may run more than once.
    pub fn update(&self, mut change: impl FnMut(u8) -> u8) -> u8 {
        self.update_noted(|causes, noted| (change(causes), noted)).0
    }

    /// [`update`](Self::update), with a bit for the device's own use that changes in the same step: whether causes may
    /// come, for one. It moves nothing, and outlives a reset of the endpoint.
    pub(crate) fn update_noted(&self, mut change: impl FnMut(u8, bool) -> (u8, bool)) -> (u8, bool) {
        let of = |bits: u64| ((bits >> CAUSES_SHIFT) as u8, bits & NOTE != 0);
        let before = self.output.update(|bits| {
            let (causes, noted) = of(bits);
            let (causes, noted) = change(causes, noted);
            let note = if noted { NOTE } else { 0 };
            derive(bits & GATED | u64::from(causes) << CAUSES_SHIFT | note)
        });
        of(before)
    }

    /// The device's note now.
    #[inline]
    pub(crate) fn is_noted(&self) -> bool {
        self.output.bits() & NOTE != 0
    }

    /// Tells the wire its level, as [`LevelOutput::settle`].
    ///
    /// # Errors
    /// What the wire answered. The causes stand, and the next `settle` tells it again.
    pub fn settle(&self) -> io::Result<()> {
        self.output.settle()
    }

    /// Whether there is nothing to [`settle`](Self::settle).
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.output.is_settled()
    }

    /// The causes now.
    pub fn causes(&self) -> u8 {
        (self.output.bits() >> CAUSES_SHIFT) as u8
    }

    /// Whether the wire is held up.
    pub fn is_up(&self) -> bool {
        self.output.is_up()
    }

    /// How often the wire refused to be told.
    pub fn failures(&self) -> u64 {
        self.output.failures()
    }

    /// Keeps the causes from the wire, or lets them through. Calls nobody.
    pub(super) fn gate(&self, gated: bool) {
        let gate = if gated { GATED } else { 0 };
        self.output.update(|bits| derive(bits & (CAUSES | NOTE) | gate));
    }
}

fn derive(notes: u64) -> u64 {
    notes | u64::from(notes & CAUSES != 0 && notes & GATED == 0)
}

impl fmt::Debug for Intx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intx").field("output", &self.output).finish()
    }
}
