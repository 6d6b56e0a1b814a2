//! Address decoding for memory-mapped and port I/O.
//!
//! A hypervisor exit names an address, a width and a direction. [`Bus`] finds the device and the offset within it; the
//! device's [`BusDevice`] face decodes the register. One bus serves one address space: make one for MMIO and one for
//! ports. A device whose registers are banked by CPU (a GIC) gives a face for each CPU, so an embedder with several
//! vCPUs makes a bus for each of them: a bus is a sorted list of shared pointers, and cheap to clone.

mod doorbell;

use std::{fmt, ops::RangeInclusive, sync::Arc};

pub use doorbell::{DoorbellStore, Doorbells, Space};

/// The register face of a device.
///
/// *For embedders*: call it from any thread, with the offset into the region and the bytes of the access, little-endian
/// (as every bus that devisor models). *For device authors*: offsets and lengths come from the guest. Any length and any
/// alignment answers: accesses that the specification does not allow read as zero and write nothing, unless it says otherwise.
/// Nothing here can fail towards the embedder; a guest's mistake is device behaviour.
///
/// ```
/// use devisor::bus::{BusDevice, read_le, write_le};
/// use std::sync::atomic::{AtomicU32, Ordering};
///
/// /// One 32-bit register at offset 0.
/// struct Scratch(AtomicU32);
///
/// impl BusDevice for Scratch {
///     fn read(&self, offset: u64, data: &mut [u8]) {
///         let value = if offset == 0 { self.0.load(Ordering::Relaxed) } else { 0 };
///         write_le(data, value.into());
///     }
///     fn write(&self, offset: u64, data: &[u8]) {
///         if let (0, 4) = (offset, data.len()) {
///             self.0.store(read_le(data) as u32, Ordering::Relaxed);
///         }
///     }
/// }
///
/// let device = Scratch(AtomicU32::new(0));
/// device.write(0, &[1, 2, 3, 4]);
/// let mut data = [0; 4];
/// device.read(0, &mut data);
/// assert_eq!(data, [1, 2, 3, 4]);
/// ```
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` from the start of the device's region. Fill all of `data`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` from the start of the device's region.
    fn write(&self, offset: u64, data: &[u8]);
}

impl<T: BusDevice + ?Sized> BusDevice for Arc<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        (**self).read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) {
        (**self).write(offset, data)
    }
}

/// The value of a little-endian access of up to 8 bytes. Bytes beyond the eighth are not looked at.
///
/// ```
/// assert_eq!(devisor::bus::read_le(&[0x34, 0x12]), 0x1234);
/// ```
pub fn read_le(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = data.len().min(8);
    bytes[..len].copy_from_slice(&data[..len]);
    u64::from_le_bytes(bytes)
}

/// Fills the bytes of an access with the low bytes of `value`, little-endian. Bytes beyond the eighth become zero.
///
/// ```
/// let mut data = [0xff; 2];
/// devisor::bus::write_le(&mut data, 0x1234);
/// assert_eq!(data, [0x34, 0x12]);
/// ```
pub fn write_le(data: &mut [u8], value: u64) {
    let len = data.len().min(8);
    data[..len].copy_from_slice(&value.to_le_bytes()[..len]);
    data[len..].fill(0);
}

/// A region cannot be placed on a [`Bus`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The region has no bytes, or runs past the end of the address space.
    #[error(
        "region of {len:#x} bytes at {base:#x}: at least one byte is needed, and none above {:#x}",
        u64::MAX
    )]
    Bounds {
        /// First address of the refused region.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The region overlaps one that is there already.
    #[error("region of {len:#x} bytes at {base:#x} overlaps the one at {:#x}..={:#x}", taken.start(), taken.end())]
    Overlap {
        /// First address of the refused region.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// What is there already.
        taken: RangeInclusive<u64>,
    },
}

/// No device claims all bytes of an access. A read has left all ones in its data, as an undriven bus does; an
/// embedder whose platform answers otherwise (an external abort on Arm) does that instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no device claims the {len}-byte access at {address:#x}")]
pub struct Unclaimed {
    /// First address of the access.
    pub address: u64,
    /// Its length in bytes.
    pub len: usize,
}

#[derive(Clone)]
struct Region {
    range: RangeInclusive<u64>,
    device: Arc<dyn BusDevice>,
}

/// An address space with devices in it.
///
/// ```
/// use devisor::bus::{Bus, BusDevice, write_le};
/// use std::sync::Arc;
///
/// struct Id(u64);
/// impl BusDevice for Id {
///     fn read(&self, _offset: u64, data: &mut [u8]) {
///         write_le(data, self.0);
///     }
///     fn write(&self, _offset: u64, _data: &[u8]) {}
/// }
///
/// let mut bus = Bus::new();
/// bus.insert(0x1000, 0x1000, Arc::new(Id(7)))?;
/// assert!(bus.insert(0x1800, 0x1000, Arc::new(Id(8))).is_err(), "it overlaps");
///
/// let mut data = [0; 4];
/// bus.read(0x1004, &mut data)?;
/// assert_eq!(data, [7, 0, 0, 0]);
/// assert!(bus.read(0x3000, &mut data).is_err());
/// assert_eq!(data, [0xff; 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Bus {
    /// Sorted by address, without overlap.
    regions: Vec<Region>,
}

impl Bus {
    /// A bus with nothing on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places `device` at the `len` bytes from `base` on.
    ///
    /// # Errors
    /// [`BusError`] if the region is empty, runs past the end of the address space or overlaps another.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|span| base.checked_add(span))
            .ok_or(BusError::Bounds { base, len })?;
        let at = self.regions.partition_point(|region| *region.range.end() < base);
        if let Some(region) = self.regions.get(at).filter(|region| *region.range.start() <= last) {
            let taken = region.range.clone();
            return Err(BusError::Overlap { base, len, taken });
        }
        let range = base..=last;
        self.regions.insert(at, Region { range, device });
        Ok(())
    }

    /// Takes the device that starts at `base` off the bus.
    pub fn remove(&mut self, base: u64) -> Option<Arc<dyn BusDevice>> {
        let at = self.regions.binary_search_by_key(&base, |region| *region.range.start());
        at.ok().map(|at| self.regions.remove(at).device)
    }

    /// The guest reads `data.len()` bytes at `address`.
    ///
    /// # Errors
    /// [`Unclaimed`] if no single device has all these bytes; `data` is all ones then.
    #[inline]
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Unclaimed> {
        match self.find(address, data.len()) {
            Ok((device, offset)) => {
                device.read(offset, data);
                Ok(())
            }
            Err(unclaimed) => {
                data.fill(0xff);
                Err(unclaimed)
            }
        }
    }

    /// The guest writes `data` at `address`.
    ///
    /// # Errors
    /// [`Unclaimed`] if no single device has all these bytes; nothing was written then.
    #[inline]
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Unclaimed> {
        let (device, offset) = self.find(address, data.len())?;
        device.write(offset, data);
        Ok(())
    }

    #[inline]
    fn find(&self, address: u64, len: usize) -> Result<(&dyn BusDevice, u64), Unclaimed> {
        let at = self.regions.partition_point(|region| *region.range.end() < address);
        self.regions
            .get(at)
            .filter(|region| *region.range.start() <= address)
            // The last of these bytes; of none, there is room for them anywhere.
            .filter(|region| (len as u64).saturating_sub(1) <= region.range.end() - address)
            .map(|region| (&*region.device, address - region.range.start()))
            .ok_or(Unclaimed { address, len })
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.regions.iter().map(|region| &region.range);
        f.debug_list()
            .entries(ranges.map(|r| format!("{:#x}..={:#x}", r.start(), r.end())))
            .finish()
    }
}
