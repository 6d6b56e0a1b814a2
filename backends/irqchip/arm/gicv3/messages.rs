//! Message-signalled interrupts that become SPIs (IHI 0069, chapter 4).

use std::{fmt, io, sync::Arc};

use super::{GicV3, GicV3Error, Shared, registers};
use crate::interrupt::{MsiMessage, MsiSink, RequesterId};

impl GicV3 {
    /// Takes messages of devices to GICD_SETSPI_NSR and GICD_CLRSPI_NSR, where the distributor is at guest physical address
    /// `distributor`. For the PCI layer of a machine without an ITS: a device tree says so with `mbi-ranges`.
    ///
    /// ```
    /// use devisor::{
    ///     backends::irqchip::gicv3::{CpuOutputs, GicV3, GicV3Config},
    ///     interrupt::{MsiMessage, MsiSink, NoInterrupt, RequesterId},
    /// };
    ///
    /// let outputs = vec![CpuOutputs { irq: Box::new(NoInterrupt), fiq: Box::new(NoInterrupt) }];
    /// let gic = GicV3::new(GicV3Config::new(1), outputs)?;
    /// let messages = gic.spi_messages(0x0800_0000)?;
    /// messages.send(RequesterId(8), MsiMessage { address: 0x0800_0040, data: 81 })?;
    /// assert!(gic.save().spis[49].state.pending());
    /// assert!(messages.send(RequesterId(8), MsiMessage { address: 0x0800_0040, data: 8192 }).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`GicV3Error::NoMessages`] without [`GicV3Config::message_based_spis`](super::GicV3Config::message_based_spis), or
    /// if the distributor cannot be at that address.
    pub fn spi_messages(&self, distributor: u64) -> Result<SpiMessages, GicV3Error> {
        let fits = distributor.is_multiple_of(registers::DISTRIBUTOR_SIZE);
        if !self.shared.config.message_based_spis || !fits {
            return Err(GicV3Error::NoMessages { distributor });
        }
        Ok(SpiMessages {
            gic: Arc::clone(&self.shared),
            distributor,
        })
    }
}

/// Where devices send messages that become SPIs: see [`GicV3::spi_messages`].
pub struct SpiMessages {
    gic: Arc<Shared>,
    distributor: u64,
}

impl MsiSink for SpiMessages {
    /// The GIC takes every message to an SPI that there is. What its outputs refuse it tells again: see
    /// [`CpuOutputs`](super::CpuOutputs).
    ///
    /// # Errors
    /// `NotFound` if the message is for neither register, or names no SPI that there is.
    fn send(&self, _requester: RequesterId, MsiMessage { address, data }: MsiMessage) -> io::Result<()> {
        let (set, clear) = (registers::SET_SPI, registers::CLEAR_SPI);
        let offset = address.wrapping_sub(self.distributor);
        if !(offset == set || offset == clear) || self.gic.layout.shared(data).is_none() {
            let base = self.distributor;
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "message {data:#x} to {address:#x}: taken are INTIDs of SPIs at {:#x} and {:#x}",
                    base + set,
                    base + clear
                ),
            ));
        }
        self.gic.with_distributor(|distributor| {
            distributor.message(data, offset == set);
            distributor.concern(data);
        });
        Ok(())
    }
}

impl fmt::Debug for SpiMessages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiMessages")
            .field("distributor", &format_args!("{:#x}", self.distributor))
            .finish_non_exhaustive()
    }
}
