//! The set as a sink of messages, in the format of SDM 12.11.

use std::io;

use super::{message::Message, set::LocalApics};
use crate::interrupt::{Acceptance, MsiMessage, MsiSink, RequesterId};

/// The address that a message was sent to is not one of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message to {address:#x}: local APICs listen at 0xfee00000 to 0xfeefffff")]
pub struct NoSuchDoorbell {
    /// Where it was sent to.
    pub address: u64,
}

/// Takes messages in the format of SDM 12.11: destination in address bits 12 to 19, redirection hint in bit 3, logical
/// destination mode in bit 2; vector in data bits 0 to 7, delivery mode in bits 8 to 10, level-triggered in bit 15. The
/// requester is not looked at.
///
/// A message for an APIC that is not there or not enabled is lost, as on the hardware, and that is `Ok`;
/// [`offer`](MsiSink::offer) tells it, and [`LocalApics::on_accepting`] when it is worth another
/// try. `Err` is an address outside of the range ([`NoSuchDoorbell`]), or a wake line's refusal; the interrupt is pending then all the
/// same.
impl MsiSink for LocalApics {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.offer(requester, message)?;
        Ok(())
    }

    fn offer(&self, _requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        let MsiMessage { address, data } = message;
        if address >> 20 != 0xfee {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                NoSuchDoorbell { address },
            ));
        }
        let accepted = match Message::written(address as u32, data) {
            Some(message) => self.shared.deliver(None, &message)?,
            None => false,
        };
        Ok(accepted.into())
    }
}
