//! The reset control register of a PC, port 0xcf9: RST_CNT of *Intel I/O Controller Hub 9 Family Datasheet*, section 13.7.5.

use std::{fmt, sync::Mutex};

use crate::{
    bus::BusDevice,
    description::{Acpi, Part, Register, Space},
    sync::lock,
};

/// How many ports its face has: those of CONFIG_ADDRESS, 0xcf8 to 0xcfb, of which the register is the second.
pub const PORTS: u64 = 4;

const RST_CNT: u64 = 1;

const SYS_RST: u8 = 1 << 1;
const RST_CPU: u8 = 1 << 2;
const FULL_RST: u8 = 1 << 3;
const WRITABLE: u8 = SYS_RST | RST_CPU | FULL_RST;

/// The register at port 0xcf9 as its guest is told of it: RESET_REG of the FADT. It has no region of its own, as it lies
/// among the ports of PCI's CONFIG_ADDRESS.
pub fn describe() -> Part {
    let register = Register {
        space: Space::Ports,
        address: 0xcf8 + RST_CNT,
    };
    Part::new("reset-control").acpi(Acpi::Reset(register, SYS_RST | RST_CPU))
}

/// How a guest wants to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reset {
    /// The CPUs alone: INIT.
    Soft,
    /// The whole machine.
    Hard,
    /// The whole machine, with its power off for some seconds.
    PowerCycle,
}

/// A reset control register. Its [`BusDevice`] face are the ports of CONFIG_ADDRESS, which it lies among: give it to
/// [`ConfigPorts::beside`](crate::pci::ConfigPorts::beside), or place it at 0xcf8 where there is no PCI.
///
/// The hook hears how the guest resets the machine, on the thread of that access, which goes on when it returns.
///
/// ```
/// use devisor::{bus::BusDevice, platform::reset_control::ResetControl};
///
/// let control = ResetControl::new(|reset| println!("the guest resets: {reset:?}"));
/// control.write(1, &[0x02]);
/// control.write(1, &[0x06]); // Hard.
/// ```
pub struct ResetControl {
    hook: Box<dyn Fn(Reset) + Send + Sync>,
    value: Mutex<u8>,
}

/// A saved register has bits that there are not. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RST_CNT is {0:#04x}: it has no bits but 0x0e")]
pub struct ResetControlStateError(u8);

impl ResetControl {
    /// A register as after a reset.
    pub fn new(hook: impl Fn(Reset) + Send + Sync + 'static) -> Self {
        Self {
            hook: Box::new(hook),
            value: Mutex::default(),
        }
    }

    /// A reset of the system. Without one, RST_CPU stays set, and it is its rise that resets.
    pub fn reset(&self) {
        *lock(&self.value) = 0;
    }

    /// The state now: the register.
    pub fn save(&self) -> u8 {
        *lock(&self.value)
    }

    /// Takes over a saved register, and resets nothing.
    ///
    /// # Errors
    /// [`ResetControlStateError`] if it has bits that there are not.
    pub fn restore(&self, state: u8) -> Result<(), ResetControlStateError> {
        if state & !WRITABLE != 0 {
            return Err(ResetControlStateError(state));
        }
        *lock(&self.value) = state;
        Ok(())
    }
}

/// The register is a byte; what else is there reads as ones.
impl BusDevice for ResetControl {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (RST_CNT, [byte]) = (offset, data) {
            *byte = self.save();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (RST_CNT, &[value]) = (offset, data) else {
            return;
        };
        let value = value & WRITABLE;
        let was = std::mem::replace(&mut *lock(&self.value), value);
        if value & !was & RST_CPU != 0 {
            (self.hook)(match value & (SYS_RST | FULL_RST) {
                0 | FULL_RST => Reset::Soft,
                SYS_RST => Reset::Hard,
                _ => Reset::PowerCycle,
            });
        }
    }
}

impl fmt::Debug for ResetControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResetControl")
            .field("value", &self.save())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn control() -> (ResetControl, Arc<Mutex<Vec<Reset>>>) {
        let heard: Arc<Mutex<Vec<Reset>>> = Arc::default();
        let log = Arc::clone(&heard);
        (ResetControl::new(move |reset| lock(&log).push(reset)), heard)
    }

    #[test]
    fn the_rise_of_one_bit_resets_as_the_others_say() {
        let (control, heard) = control();
        for (value, expected) in [
            (0x0a, None),
            (0x0e, Some(Reset::PowerCycle)),
            (0x06, None),
            (0x02, None),
            (0x06, Some(Reset::Hard)),
            (0x00, None),
            (0x04, Some(Reset::Soft)),
            (0xf1, None),
            (0x0c, Some(Reset::Soft)),
        ] {
            control.write(1, &[value]);
            assert_eq!(lock(&heard).pop(), expected, "{value:#x}");
            let mut byte = [0];
            control.read(1, &mut byte);
            assert_eq!(byte, [value & 0x0e]);
        }
    }

    #[test]
    fn other_accesses_read_as_ones_and_reset_nothing() {
        let (control, heard) = control();
        for (offset, data) in [(0, &[6; 4][..]), (0, &[6]), (1, &[6; 2]), (2, &[6]), (1, &[])] {
            control.write(offset, data);
            let mut read = vec![0; data.len()];
            control.read(offset, &mut read);
            assert!(read.iter().all(|byte| *byte == 0xff));
        }
        assert!(lock(&heard).is_empty());
    }

    #[test]
    fn a_state_is_taken_back_and_resets_nothing() {
        let (control, heard) = control();
        assert_eq!(control.restore(0x06), Ok(()));
        assert_eq!(control.save(), 0x06);
        control.write(1, &[0x06]);
        assert!(lock(&heard).is_empty(), "it was set before");
        assert_eq!(control.restore(0x10), Err(ResetControlStateError(0x10)));
        control.reset();
        control.write(1, &[0x06]);
        assert_eq!(*lock(&heard), [Reset::Hard]);
    }
}
