//! What a function is, before a guest has seen it: identity, BARs and capabilities, laid out as a type 0 configuration
//! space (PCI Local Bus 3.0, section 6.1) with a mask of what the guest writes.

use super::{
    bar::{Bar, BarIndex},
    registers::*,
};

/// Who a function says it is.
///
/// ```
/// use devisor::pci::Identity;
///
/// let disk = Identity {
///     vendor: 0x1af4,
///     device: 0x1042,
///     class: [0x01, 0x80, 0x00],
///     ..Identity::default()
/// };
/// assert_eq!(disk.revision, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID. All ones means that nothing is there.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class, sub-class and programming interface, in this order.
    pub class: [u8; 3],
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Which of the four wires of its slot a function interrupts on, in its Interrupt Pin register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pin {
    /// INTA#, which a device of one function uses.
    A = 1,
    /// INTB#.
    B = 2,
    /// INTC#.
    C = 3,
    /// INTD#.
    D = 4,
}

/// A function cannot be laid out so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The identity is the one of an empty slot.
    #[error("vendor ID 0xffff says that nothing is there: any other is possible")]
    NoVendor,
    /// A BAR of this size cannot be sized by the guest.
    #[error("{bar:?} of {size:#x} bytes: a power of two from {least:#x} to {most:#x} is needed")]
    BarSize {
        /// The refused one.
        bar: BarIndex,
        /// Its size in bytes.
        size: u64,
        /// The smallest possible, in bytes.
        least: u64,
        /// The largest possible, in bytes.
        most: u64,
    },
    /// The register is taken, by a BAR or by the upper half of one.
    #[error("{0:?} is taken, or the upper half of a 64-bit BAR")]
    BarTaken(BarIndex),
    /// A 64-bit BAR needs a register after it.
    #[error("{0:?} is the last: a 64-bit BAR needs two, so one of Bar0 to Bar4")]
    NoUpperHalf(BarIndex),
    /// The capability does not fit.
    #[error("capability {id:#x} of {len} bytes: {left} are left")]
    NoRoom {
        /// Capability ID.
        id: u8,
        /// Its length, with ID and next pointer, rounded up to four bytes.
        len: usize,
        /// How many there are.
        left: usize,
    },
    /// A mask is not as long as what it masks.
    #[error("capability {id:#x} has {body} bytes and a mask of {mask}")]
    MaskLength {
        /// Capability ID.
        id: u8,
        /// Bytes after the next pointer.
        body: usize,
        /// Bytes of the mask.
        mask: usize,
    },
    /// That many vectors cannot be named.
    #[error("{count} vectors: {allowed}")]
    Vectors {
        /// The refused count.
        count: u16,
        /// What is possible.
        allowed: &'static str,
    },
    /// A function has this capability once.
    #[error("the function has {0} already")]
    Twice(&'static str),
}

/// Where the MSI-X structures of a function lie: a BAR of their own, the table at its start, the PBA on a later page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiXLayout {
    pub at: usize,
    pub bar: BarIndex,
    pub count: u16,
    pub pba: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiLayout {
    pub at: usize,
    pub count: u16,
}

/// A function's configuration space as it comes out of reset.
///
/// Capabilities are linked in the order in which they are added.
///
/// ```
/// use devisor::pci::{Bar, BarIndex, EndpointConfig, Identity, Pin};
///
/// let mut config = EndpointConfig::new(Identity { vendor: 0x1af4, device: 0x1042, ..Identity::default() })?;
/// config.pin(Pin::A);
/// config.bar(BarIndex::Bar0, Bar::memory64(0x4000))?;
/// config.msix(BarIndex::Bar2, 5)?;
/// // Vendor-specific: length and two bytes, of which the guest writes the last.
/// let at = config.capability(0x09, &[5, 0, 0], &[0, 0, 0xff])?;
/// assert_eq!(at, 0x4c, "after the 12 bytes of MSI-X");
/// assert!(config.bar(BarIndex::Bar1, Bar::io(8)).is_err(), "the upper half of BAR 0");
/// # Ok::<(), devisor::pci::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Every byte as reset leaves it.
    pub(super) reset: [u8; SPACE],
    /// The bits that the guest writes.
    pub(super) writable: [u8; SPACE],
    pub(super) bars: [Option<Bar>; BarIndex::COUNT],
    pub(super) msix: Option<MsiXLayout>,
    pub(super) msi: Option<MsiLayout>,
    pub(super) pin: Option<Pin>,
    /// It has the extended configuration space.
    pub(super) express: bool,
    /// Where the next capability goes.
    free: usize,
    /// The pointer that will name it.
    link: usize,
}

impl EndpointConfig {
    /// A function without BARs, capabilities and interrupts.
    ///
    /// # Errors
    /// [`ConfigError::NoVendor`] for vendor ID 0xffff.
    pub fn new(identity: Identity) -> Result<Self, ConfigError> {
        if identity.vendor == 0xffff {
            return Err(ConfigError::NoVendor);
        }
        let mut config = Self {
            reset: [0; SPACE],
            writable: [0; SPACE],
            bars: [None; BarIndex::COUNT],
            msix: None,
            msi: None,
            pin: None,
            express: false,
            free: HEADER_END,
            link: CAPABILITIES_POINTER,
        };
        let [class, sub_class, interface] = identity.class;
        config.put(VENDOR_ID, &identity.vendor.to_le_bytes());
        config.put(DEVICE_ID, &identity.device.to_le_bytes());
        config.put(REVISION_ID, &[identity.revision]);
        config.put(CLASS_CODE, &[interface, sub_class, class]);
        config.put(SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        config.put(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        for Register { offset, writable } in HEADER {
            config.allow(*offset, writable);
        }
        Ok(config)
    }

    /// The function interrupts on `pin` when it has no message-signalled interrupts enabled.
    pub fn pin(&mut self, pin: Pin) -> &mut Self {
        self.pin = Some(pin);
        self.put(INTERRUPT_PIN, &[pin as u8]);
        self
    }

    /// Adds a BAR. The guest finds it at address 0, and places it.
    ///
    /// # Errors
    /// [`ConfigError`] if the size is none that a BAR can have, or the register is taken.
    pub fn bar(&mut self, index: BarIndex, bar: Bar) -> Result<&mut Self, ConfigError> {
        let (least, most) = bar.kind.sizes();
        let size = bar.size;
        if !size.is_power_of_two() || size < least || size > most {
            let bar = index;
            return Err(ConfigError::BarSize { bar, size, least, most });
        }
        if bar.is_64_bit() && index == BarIndex::Bar5 {
            return Err(ConfigError::NoUpperHalf(index));
        }
        let at = index as usize;
        let below = at.checked_sub(1).and_then(|below| self.bars[below]);
        let taken = self.bars[at].is_some()
            || below.is_some_and(|below| below.is_64_bit())
            || bar.is_64_bit() && self.bars[at + 1].is_some();
        if taken {
            return Err(ConfigError::BarTaken(index));
        }
        // What is not written by the guest tells it the size (section 6.2.5.1).
        let offset = index.register();
        let mask = !(size - 1);
        let halves: usize = if bar.is_64_bit() { 8 } else { 4 };
        self.put(offset, &bar.kind.flags().to_le_bytes());
        self.allow(offset, &mask.to_le_bytes()[..halves]);
        self.allow(COMMAND, &bar.kind.enable().to_le_bytes());
        self.bars[at] = Some(bar);
        Ok(self)
    }

    /// Adds a capability: its bytes after ID and next pointer, and which of their bits the guest writes. Returns its
    /// offset in configuration space.
    ///
    /// # Errors
    /// [`ConfigError`] if it does not fit below 0x100, or the mask is not as long as the bytes.
    pub fn capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, ConfigError> {
        if body.len() != writable.len() {
            let (body, mask) = (body.len(), writable.len());
            return Err(ConfigError::MaskLength { id, body, mask });
        }
        let len = (body.len() + 2).next_multiple_of(4);
        let left = SPACE - self.free;
        if len > left {
            return Err(ConfigError::NoRoom { id, len, left });
        }
        let at = self.free;
        self.put(at, &[id]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(self.link, &[at as u8]);
        self.put(STATUS, &CAPABILITIES_LIST.to_le_bytes());
        self.link = at + 1;
        self.free = at + len;
        Ok(at as u8)
    }

    /// Adds MSI-X with `count` vectors, from 1 to 2048, and `bar`, of 32 bits, with nothing in it but the table and the PBA.
    /// The guest's accesses to that BAR end in the [`Endpoint`](super::Endpoint).
    ///
    /// # Errors
    /// [`ConfigError`] if the count cannot be, the BAR is taken, there is no room, or the function has MSI-X already.
    pub fn msix(&mut self, bar: BarIndex, count: u16) -> Result<&mut Self, ConfigError> {
        if self.msix.is_some() {
            return Err(ConfigError::Twice("MSI-X"));
        }
        if count == 0 || count > MSIX_VECTORS {
            let allowed = "MSI-X has 1 to 2048";
            return Err(ConfigError::Vectors { count, allowed });
        }
        const PAGE: u64 = 4096;
        let pba = (u64::from(count) * MSIX_ENTRY).next_multiple_of(PAGE);
        let mut draft = self.clone();
        draft.bar(bar, Bar::memory32((pba + PAGE).next_power_of_two()))?;
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(count - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(bar as u32).to_le_bytes());
        body[6..].copy_from_slice(&(pba as u32 | bar as u32).to_le_bytes());
        let mut writable = [0; 10];
        writable[..2].copy_from_slice(&(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());
        let at = draft.capability(MSIX_ID, &body, &writable)?.into();
        draft.msix = Some(MsiXLayout { at, bar, count, pba });
        *self = draft;
        Ok(self)
    }

    /// Adds MSI with `count` vectors, a power of two up to 32, 64-bit addresses and a mask for each vector.
    ///
    /// # Errors
    /// [`ConfigError`] if the count cannot be, there is no room, or the function has MSI already.
    pub fn msi(&mut self, count: u16) -> Result<&mut Self, ConfigError> {
        if self.msi.is_some() {
            return Err(ConfigError::Twice("MSI"));
        }
        if !count.is_power_of_two() || count > MSI_VECTORS {
            let allowed = "MSI has 1, 2, 4, 8, 16 or 32";
            return Err(ConfigError::Vectors { count, allowed });
        }
        let capable = (count.trailing_zeros() as u16) << MSI_MULTIPLE_CAPABLE_SHIFT;
        let mut body = [0; MSI_LEN];
        body[MESSAGE_CONTROL..][..2].copy_from_slice(&(capable | MSI_64_BIT | MSI_MASKABLE).to_le_bytes());
        let mut writable = [0; MSI_LEN];
        writable[MESSAGE_CONTROL..][..2].copy_from_slice(&(MSI_ENABLE | MSI_MULTIPLE_ENABLE).to_le_bytes());
        writable[MSI_ADDRESS..][..8].copy_from_slice(&(!3u64).to_le_bytes());
        writable[MSI_DATA..][..2].fill(0xff);
        let vectors = u32::MAX >> (32 - u32::from(count));
        writable[MSI_MASK..][..4].copy_from_slice(&vectors.to_le_bytes());
        let at = self.capability(MSI_ID, &body[2..], &writable[2..])?.into();
        self.msi = Some(MsiLayout { at, count });
        Ok(self)
    }

    /// Makes it a function of PCI Express, integrated into the root complex: adds that capability, and with it the extended
    /// configuration space of 4096 bytes, which has no capability and so reads as zero.
    ///
    /// # Errors
    /// [`ConfigError`] if there is no room, or the function is one already.
    pub fn express(&mut self) -> Result<&mut Self, ConfigError> {
        if self.express {
            return Err(ConfigError::Twice("the PCI Express capability"));
        }
        let mut body = [0; EXPRESS_LEN];
        let mut writable = body;
        let mut put = |at: usize, bytes: &[u8]| body[at..][..bytes.len()].copy_from_slice(bytes);
        put(EXPRESS_CAPABILITIES, &EXPRESS_INTEGRATED.to_le_bytes());
        put(EXPRESS_DEVICE_CAPABILITIES, &EXPRESS_ROLE_BASED_ERRORS.to_le_bytes());
        put(EXPRESS_DEVICE_CONTROL, &EXPRESS_CONTROL_RESET.to_le_bytes());
        writable[EXPRESS_DEVICE_CONTROL..][..2].copy_from_slice(&EXPRESS_CONTROL_WRITABLE.to_le_bytes());
        self.capability(EXPRESS_ID, &body[2..], &writable[2..])?;
        self.express = true;
        Ok(self)
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.reset[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (at, bits) in self.writable[offset..].iter_mut().zip(mask) {
            *at |= bits;
        }
    }
}
