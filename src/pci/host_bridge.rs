//! The function that a host bridge shows of itself.

use super::{
    bar::BarIndex,
    config::{ConfigError, EndpointConfig, Identity},
    endpoint::Endpoint,
    function::Function,
    slot::Slot,
};

/// A host bridge's own function, usually device 0: an identity and no more. Linux on x86 looks for it before it trusts the
/// configuration ports; `pci-host-ecam-generic` on Arm does without.
///
/// ```
/// use devisor::{interrupt::NoInterrupt, pci::*};
///
/// let slot = Slot::new(DeviceFunction::new(0, 0).unwrap(), Box::new(NoInterrupt), std::sync::Arc::new(NoMessages));
/// let mut class = [0; 2];
/// HostBridge::new(slot).read_config(0x0a, &mut class);
/// assert_eq!(class, [0x00, 0x06], "a bridge, to the host");
/// ```
#[derive(Debug)]
pub struct HostBridge {
    endpoint: Endpoint,
}

/// The generic bridge among the IDs that QEMU reserves for such: no driver takes it for a chip with registers.
const GENERIC: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: [0x06, 0x00, 0x00],
    subsystem_vendor: 0,
    subsystem: 0,
};

impl HostBridge {
    /// The bridge's function, in `slot`.
    pub fn new(slot: Slot) -> Self {
        Self::with_identity(slot, GENERIC).expect("its vendor is one")
    }

    /// A bridge that is taken for another one: firmware may know a board by it. Whoever looks for registers behind the identity finds
    /// zeros, and writes nothing.
    ///
    /// # Errors
    /// As [`EndpointConfig::new`].
    ///
    /// ```
    /// use devisor::{interrupt::NoInterrupt, pci::*};
    ///
    /// let slot = Slot::new(DeviceFunction::new(0, 0).unwrap(), Box::new(NoInterrupt), std::sync::Arc::new(NoMessages));
    /// // SeaBIOS asks the firmware configuration device for memory and files if it sees this one, by these subsystem IDs.
    /// let i440fx = Identity {
    ///     vendor: 0x8086,
    ///     device: 0x1237,
    ///     revision: 2,
    ///     class: [0x06, 0x00, 0x00],
    ///     subsystem_vendor: 0x1af4,
    ///     subsystem: 0x1100,
    /// };
    /// let mut ids = [0; 4];
    /// HostBridge::with_identity(slot, i440fx)?.read_config(0, &mut ids);
    /// assert_eq!(u32::from_le_bytes(ids), 0x1237_8086);
    /// # Ok::<(), ConfigError>(())
    /// ```
    pub fn with_identity(slot: Slot, identity: Identity) -> Result<Self, ConfigError> {
        let config = EndpointConfig::new(identity)?;
        let endpoint = Endpoint::new(config, slot);
        Ok(Self { endpoint })
    }
}

/// It has no BAR.
impl Function for HostBridge {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn read_bar(&self, _bar: BarIndex, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&self, _bar: BarIndex, _offset: u64, _data: &[u8]) {}
}
