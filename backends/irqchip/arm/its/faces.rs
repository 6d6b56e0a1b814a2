//! The register faces of an ITS.

use std::{fmt, sync::Arc};

use super::{Its, Shared, registers, registers::Register};
use crate::{
    bus::{BusDevice, read_le, write_le},
    sync::lock,
};

impl Its {
    /// The control registers: [`ControlFrame::SIZE`] bytes at [`ItsConfig::base`](super::ItsConfig::base).
    pub fn control_frame(&self) -> ControlFrame {
        let its = Arc::clone(&self.shared);
        ControlFrame { its }
    }

    /// The frame that messages go to: [`TranslationFrame::SIZE`] bytes behind the control registers.
    pub fn translation_frame(&self) -> TranslationFrame {
        TranslationFrame(())
    }
}

/// The registers of an ITS (GITS_*).
///
/// A write to GITS_CWRITER carries out the commands that wait, on the thread that writes, in order, and each is complete
/// when GITS_CREADR has passed it. While one thread is at it, others leave their commands to it. One access carries out at
/// most 32768 commands, the largest queue, of which an INVALL or a MOVALL counts as 512. The rest is carried out by who next
/// reads GITS_CREADR, as guests do that wait for their commands, or writes GITS_CWRITER.
pub struct ControlFrame {
    its: Arc<Shared>,
}

impl ControlFrame {
    /// Size of the region in bytes.
    pub const SIZE: u64 = registers::FRAME_SIZE;
}

impl BusDevice for ControlFrame {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = Register::at(offset, data.len()).map_or(0, |(register, lane)| {
            if register == Register::CommandRead {
                self.its.carry_out();
            }
            lock(&self.its.model).read(register) >> lane
        });
        write_le(data, value);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some((register, lane)) = Register::at(offset, data.len()) else {
            return;
        };
        let mask = u64::MAX >> (64 - data.len() * 8);
        lock(&self.its.model).write(register, read_le(data) << lane, mask << lane);
        if matches!(register, Register::Control | Register::CommandWrite) {
            self.its.carry_out();
        }
    }
}

/// The frame of GITS_TRANSLATER, as a CPU sees it: reads as zero and writes nothing.
///
/// A message has a DeviceID because the interconnect says who sends it. A CPU has none, so what it stores to
/// GITS_TRANSLATER is ignored, as hardware does (INT is the command for that). Messages come by
/// [`MsiSink`](crate::interrupt::MsiSink).
pub struct TranslationFrame(());

impl TranslationFrame {
    /// Size of the region in bytes.
    pub const SIZE: u64 = registers::FRAME_SIZE;
}

impl BusDevice for TranslationFrame {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

impl fmt::Debug for ControlFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlFrame").finish_non_exhaustive()
    }
}

impl fmt::Debug for TranslationFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TranslationFrame").finish_non_exhaustive()
    }
}
