//! Where a function is, and what follows from that.

use std::fmt;

use super::config::Pin;
use crate::interrupt::RequesterId;

/// Where a function is on its bus: device 0 to 31, function 0 to 7.
///
/// ```
/// use devisor::{interrupt::RequesterId, pci::{DeviceFunction, Pin}};
///
/// let address = DeviceFunction::new(3, 1).unwrap();
/// assert_eq!(address.to_string(), "03.1");
/// assert_eq!(address.requester(), RequesterId(0x19));
/// assert_eq!(address.wire(Pin::A), 3, "the first function's would be INTD of the root");
/// assert_eq!(DeviceFunction::new(32, 0), None);
///
/// /// Where there is no such device, this does not compile.
/// const DISK: DeviceFunction = DeviceFunction::new(4, 0).unwrap();
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceFunction(pub(super) u8);

impl DeviceFunction {
    /// Device and function, or none if there is no such one.
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        match device < 32 && function < 8 {
            true => Some(Self(device << 3 | function)),
            false => None,
        }
    }

    /// 0 to 31.
    pub fn device(self) -> u8 {
        self.0 >> 3
    }

    /// 0 to 7.
    pub fn function(self) -> u8 {
        self.0 & 7
    }

    /// Who sends the function's messages: it, on bus 0.
    pub fn requester(self) -> RequesterId {
        RequesterId(self.0.into())
    }

    /// Which of the root's four wires a pin of this device pulls (PCI-to-PCI Bridge Architecture 1.2, section 9.1). A device
    /// tree's `interrupt-map`, and ACPI's `_PRT`, say the same.
    pub fn wire(self, pin: Pin) -> usize {
        usize::from(self.device() + pin as u8 - 1) % 4
    }
}

impl fmt::Display for DeviceFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.device(), self.function())
    }
}

impl fmt::Debug for DeviceFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
