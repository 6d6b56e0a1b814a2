//! The way to the BARs through configuration space (virtio 1.2, section 4.1.4.9), for who cannot map them.

use super::{VirtioPci, registers::*};
use crate::{
    bus::read_le,
    pci::{BarIndex, Function},
    virtio::VirtioDevice,
};

/// An access to a BAR, as the driver has described it in the capability.
struct Target {
    bar: BarIndex,
    offset: u64,
    len: usize,
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// Where `pci_cfg_data` is in configuration space.
    fn window_data(&self) -> u64 {
        self.window + CAP_END
    }

    /// What the fields of the capability name now: 1, 2 or 4 bytes, aligned, of a BAR. Other values are nothing's.
    fn window_target(&self) -> Option<Target> {
        let mut fields = [0; (CAP_END - CAP_BAR) as usize];
        self.endpoint().read_config(self.window + CAP_BAR, &mut fields);
        let bar = BarIndex::from_number(fields[0])?;
        let offset = read_le(&fields[4..8]);
        let len = read_le(&fields[8..12]) as usize;
        let possible = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64);
        possible.then_some(Target { bar, offset, len })
    }

    /// After configuration space has answered a read: adds what the BAR reads, if the access begins where the window is.
    /// An access that begins elsewhere and runs into it finds zeros, and reads no register.
    pub(super) fn read_window(&self, offset: u64, data: &mut [u8]) {
        if offset != self.window_data() {
            return;
        }
        let Some(Target { bar, offset, len }) = self.window_target() else {
            return;
        };
        let mut answer = [0; PCI_CFG_DATA];
        if !self.endpoint().read_bar(bar, offset, &mut answer[..len]) {
            self.read_bar(bar, offset, &mut answer[..len]);
        }
        for (byte, answer) in data.iter_mut().zip(answer) {
            *byte = answer;
        }
    }

    /// The driver writes configuration space: passes it on to the BAR, if it begins where the window is and has all bytes.
    pub(super) fn write_window(&self, offset: u64, data: &[u8]) {
        if offset != self.window_data() {
            return;
        }
        let Some(Target { bar, offset, len }) = self.window_target() else {
            return;
        };
        let Some(data) = data.get(..len) else { return };
        if !self.endpoint().write_bar(bar, offset, data) {
            self.write_bar(bar, offset, data);
        }
    }
}
