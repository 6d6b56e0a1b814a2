//! The pins of an IOAPIC as lines for devices, and the way back that tells an adapter that the guest has finished.

use std::sync::Arc;

use super::{IoApic, IoApicError, Pin, Shared};
use crate::backends::irqchip::{
    finished::FinishedHook,
    lines::{EdgeLine, Held, Inputs, LevelLine},
};

impl IoApic {
    /// A level line into a pin.
    ///
    /// The guest decides how it is understood. With the usual polarity, active high: level-sensitive, a message is
    /// sent when the line is up, and again after each EOI while it still is; edge-triggered, with each rise. With the
    /// other polarity it is the low pin that counts. A line that is up makes its pin high, unless that [idles
    /// high](Self::pull_up).
    ///
    /// A message that the sink refuses is owed by the IOAPIC (see [there](IoApic#messages)) and not by the device.
    ///
    /// # Errors
    /// [`IoApicError::NoSuchPin`].
    pub fn level_line(&self, pin: Pin) -> Result<LevelLine, IoApicError> {
        let number = self.shared.pin(pin)?;
        Ok(LevelLine::new(Arc::clone(&self.shared) as _, number))
    }

    /// An edge line into a pin: each trigger is a pulse, which sends one message, whatever the level that a
    /// [`LevelLine`] of the same pin holds and whatever the polarity.
    ///
    /// While the guest has the pin masked, a pulse is lost, as on the 82093AA. While it has the pin level-sensitive, a
    /// pulse sends a message if none is in service.
    ///
    /// # Errors
    /// [`IoApicError::NoSuchPin`].
    pub fn edge_line(&self, pin: Pin) -> Result<EdgeLine, IoApicError> {
        let number = self.shared.pin(pin)?;
        Ok(EdgeLine::new(Arc::clone(&self.shared) as _, number))
    }

    /// Gives `pin` a pull-up, as the wires of PCI have one: it is high while no line holds it up, and low while one does, so that an
    /// entry that is active low takes it as other entries take other pins. It stays so, over resets and restores; to be called
    /// before the guest runs, or its state is restored. No edge comes of it.
    ///
    /// # Errors
    /// [`IoApicError::NoSuchPin`].
    pub fn pull_up(&self, pin: Pin) -> Result<(), IoApicError> {
        let number = self.shared.pin(pin)?;
        self.shared.with(|model| model.pull_up(number));
        Ok(())
    }

    /// Calls `hook` whenever the guest has finished with a level-sensitive pin, that is, at each EOI of its vector by
    /// either way, as long as the returned [`FinishedHook`] lives. Several hooks of one pin are all called.
    ///
    /// This is for what holds a level outside of the IOAPIC and must look at it again when the guest is done: a physical
    /// device whose interrupt stays masked on the host until then, KVM's resamplefd where its irqfd goes past this IOAPIC
    /// by a route, or an [`EdgeToLevel`](crate::interrupt::EdgeToLevel). Devices on a [`LevelLine`] need no hook.
    ///
    /// It is called for each pin that has the vector, whether or not the interrupt was that pin's. It is called
    /// between the end of the interrupt and the message that follows if the line is still up: a hook that lets go of the
    /// line spares the guest that message. No lock is held. It may be called once more while the [`FinishedHook`] is
    /// dropped on another thread.
    ///
    /// ```
    /// # use devisor::backends::irqchip::{Vector, ioapic::{IoApic, IoApicConfig, Pin}};
    /// # use devisor::{bus::BusDevice, interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, RequesterId}};
    /// # use std::sync::{Arc, atomic::{AtomicU32, Ordering::SeqCst}};
    /// # #[derive(Default)]
    /// # struct Messages(AtomicU32);
    /// # impl MsiSink for Messages {
    /// #     fn send(&self, _: RequesterId, _: MsiMessage) -> std::io::Result<()> {
    /// #         self.0.fetch_add(1, SeqCst);
    /// #         Ok(())
    /// #     }
    /// # }
    /// # let messages = Arc::new(Messages::default());
    /// # let ioapic = IoApic::new(IoApicConfig::default(), Arc::clone(&messages))?;
    /// # ioapic.write(0x00, &[0x10 + 2 * 16]);
    /// # ioapic.write(0x10, &0x8041_u32.to_le_bytes());
    /// // A physical device on pin 16. The host has masked its interrupt, and says that it came:
    /// let line = Arc::new(ioapic.level_line(Pin(16))?);
    /// line.trigger()?;
    /// // The guest is done: let go, then unmask. If the device is not satisfied, the interrupt comes again.
    /// let hook = ioapic.on_finished(Pin(16), {
    ///     let line = Arc::downgrade(&line);
    ///     move || {
    ///         if let Some(line) = line.upgrade() {
    ///             let _ = line.clear();
    ///             // unmask
    ///         }
    ///     }
    /// })?;
    /// ioapic.eoi(Vector(0x41));
    /// assert_eq!(messages.0.load(SeqCst), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`IoApicError::NoSuchPin`].
    pub fn on_finished(&self, pin: Pin, hook: impl Fn() + Send + Sync + 'static) -> Result<FinishedHook, IoApicError> {
        let number = self.shared.pin(pin)?;
        Ok(self.shared.finished.add(number, hook))
    }
}

impl Inputs for Shared {
    fn hold(&self, pin: u32, held: &Held, up: bool) {
        self.with(|model| {
            if held.set(up) {
                model.hold(pin, up);
            }
        });
    }

    fn pulse(&self, pin: u32) {
        self.with(|model| model.pulse(pin));
    }

    fn name(&self, pin: u32) -> String {
        Pin(pin).to_string()
    }
}
