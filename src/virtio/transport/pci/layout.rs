//! What a guest finds before it talks to the device: identity, BARs and capabilities (virtio 1.2, sections 4.1.2 and 4.1.4).

use super::{VirtioPciError, VirtioPciOptions, registers::*};
use crate::{
    pci::{Bar, BarIndex, BarKind, EndpointConfig, Identity},
    virtio::{DeviceId, SharedMemoryRegion},
};

/// The BAR of all structures.
pub(super) const STRUCTURES: BarIndex = BarIndex::Bar0;
/// The BAR of the table and the pending bits of MSI-X.
const MSIX: BarIndex = BarIndex::Bar1;
/// The BAR of the shared memory regions, and of the register after it.
pub(super) const SHARED_MEMORY: BarIndex = BarIndex::Bar2;

/// Where the structures are: a page each, so that an embedder may map or forward them apart.
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = PAGE;
const DEVICE: u64 = 2 * PAGE;
const NOTIFY: u64 = 3 * PAGE;
/// `notify_off_multiplier`: room for a kick with notification data (section 4.1.4.4.1).
pub(super) const DOORBELL: u64 = 4;

/// Regions begin at multiples of the largest page that guests use, so that each is mapped by itself.
const REGION_ALIGN: u64 = 0x1_0000;

/// Where an access to the structures goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Structure {
    /// At this offset.
    Common(u64),
    Isr,
    /// At this offset of the device's configuration space.
    Device(u64),
    /// The doorbell of the queue with this number.
    Doorbell(u32),
    /// Between or across them.
    Nothing,
}

impl Structure {
    /// An access has to lie in one structure, and to begin at the beginning of a doorbell.
    #[inline]
    pub fn find(offset: u64, len: usize) -> Self {
        if offset >= NOTIFY {
            // First of all: nothing else comes as often.
            let at = offset - NOTIFY;
            let queue = u32::try_from(at / DOORBELL);
            return match queue {
                Ok(queue) if at.is_multiple_of(DOORBELL) => Self::Doorbell(queue),
                _ => Self::Nothing,
            };
        }
        let fits = |base: u64, size: u64| (offset - base).checked_add(len as u64).is_some_and(|end| end <= size);
        match offset {
            ..ISR if fits(COMMON, COMMON_LEN) => Self::Common(offset),
            ISR if len == 1 => Self::Isr,
            DEVICE.. if fits(DEVICE, PAGE) => Self::Device(offset - DEVICE),
            _ => Self::Nothing,
        }
    }

    /// Where the doorbell of `queue` is in the BAR.
    pub fn doorbell(queue: u16) -> u64 {
        NOTIFY + DOORBELL * u64::from(queue)
    }
}

/// A shared memory region and where it is in its BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub id: u8,
    pub offset: u64,
    pub len: u64,
}

/// The configuration space of a device, and what the transport has to know of it.
pub(super) struct Layout {
    pub config: EndpointConfig,
    pub regions: Vec<Region>,
    /// Where the capability is whose window leads to the BARs.
    pub window: u64,
}

impl Layout {
    pub fn new(
        device: DeviceId,
        queues: usize,
        shared_memory: impl Fn(u8) -> Option<SharedMemoryRegion>,
        options: &VirtioPciOptions,
    ) -> Result<Self, VirtioPciError> {
        let mut config = EndpointConfig::new(identity(device)?)?;
        config.pin(options.pin);
        let doorbells = DOORBELL * queues.max(1) as u64;
        config.bar(STRUCTURES, Bar::memory32((NOTIFY + doorbells).next_power_of_two()))?;
        // One for each queue and one for the configuration, as far as MSI-X goes.
        let all = u16::try_from(queues.saturating_add(1)).map_or(MOST_VECTORS, |all| all.min(MOST_VECTORS));
        match options.vectors.unwrap_or(all) {
            0 => {}
            vectors => _ = config.msix(MSIX, vectors)?,
        }
        let mut add = |kind, offset, len| capability(&mut config, &[kind, STRUCTURES as u8, 0], offset, len, &[]);
        add(COMMON_CFG, COMMON, COMMON_LEN)?;
        add(ISR_CFG, ISR, 1)?;
        add(DEVICE_CFG, DEVICE, PAGE)?;
        let multiplier = (DOORBELL as u32).to_le_bytes();
        let notify = [NOTIFY_CFG, STRUCTURES as u8, 0];
        capability(&mut config, &notify, NOTIFY, doorbells, &multiplier)?;
        let window = capability(&mut config, &[PCI_CFG, 0, 0], 0, 0, &[0; PCI_CFG_DATA])?;
        let regions = add_shared_memory(&mut config, shared_memory)?;
        Ok(Self {
            config,
            regions,
            window: window.into(),
        })
    }
}

/// The most vectors that MSI-X can have.
const MOST_VECTORS: u16 = 2048;

/// Adds a `struct virtio_pci_cap` of type, BAR and ID, with what follows it. The fields of the window are the driver's to
/// write.
fn capability(
    config: &mut EndpointConfig,
    &[kind, bar, id]: &[u8; 3],
    offset: u64,
    len: u64,
    tail: &[u8],
) -> Result<u8, VirtioPciError> {
    let cap_len = CAP_END as u8 + tail.len() as u8;
    let mut body = vec![cap_len, kind, bar, id, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(tail);
    let mut writable = vec![0; body.len()];
    if kind == PCI_CFG {
        // After ID and next pointer, which the body is without.
        writable[CAP_BAR as usize - 2] = 0xff;
        writable[CAP_OFFSET as usize - 2..CAP_END as usize - 2].fill(0xff);
    }
    Ok(config.capability(VENDOR_SPECIFIC, &body, &writable)?)
}

/// Adds a `struct virtio_pci_cap64` for each region (section 4.1.4.7), and a BAR that has them all.
fn add_shared_memory(
    config: &mut EndpointConfig,
    shared_memory: impl Fn(u8) -> Option<SharedMemoryRegion>,
) -> Result<Vec<Region>, VirtioPciError> {
    let mut regions: Vec<Region> = Vec::new();
    let mut end = 0u64;
    for id in 0..=u8::MAX {
        let Some(SharedMemoryRegion { base: _, len }) = shared_memory(id) else {
            continue;
        };
        let too_long = VirtioPciError::SharedMemory { id, len };
        let offset = end.checked_next_multiple_of(REGION_ALIGN).ok_or(too_long.clone())?;
        end = offset.checked_add(len).filter(|&end| end <= 1 << 63).ok_or(too_long)?;
        regions.push(Region { id, offset, len });
    }
    if regions.is_empty() {
        return Ok(regions);
    }
    let bar = Bar {
        kind: BarKind::Prefetchable64,
        size: end.next_power_of_two().max(REGION_ALIGN),
    };
    config.bar(SHARED_MEMORY, bar)?;
    for &Region { id, offset, len } in &regions {
        let mut high = [0; 8];
        high[..4].copy_from_slice(&((offset >> 32) as u32).to_le_bytes());
        high[4..].copy_from_slice(&((len >> 32) as u32).to_le_bytes());
        let kind = [SHARED_MEMORY_CFG, SHARED_MEMORY as u8, id];
        capability(config, &kind, offset, len, &high)?;
    }
    Ok(regions)
}

fn identity(DeviceId(device): DeviceId) -> Result<Identity, VirtioPciError> {
    if !(1..=DEVICE_TYPES).contains(&device) {
        return Err(VirtioPciError::DeviceType(device));
    }
    Ok(Identity {
        vendor: VENDOR,
        device: DEVICE_ID_BASE + device as u16,
        revision: REVISION,
        class: class(device),
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    })
}

/// Class, sub-class and interface (PCI Local Bus 3.0, appendix D) by device type (virtio 1.2, section 5). Drivers bind by
/// device ID; firmware and people go by the class.
fn class(device: u32) -> [u8; 3] {
    match device {
        // Network: an Ethernet controller.
        1 => [0x02, 0x00, 0x00],
        // Block, file system, persistent memory: other mass storage.
        2 | 26 | 27 => [0x01, 0x80, 0x00],
        // Console, socket: other communication.
        3 | 19 => [0x07, 0x80, 0x00],
        // SCSI host.
        8 => [0x01, 0x00, 0x00],
        // 9P: other network.
        9 => [0x02, 0x80, 0x00],
        // GPU: other display, for it has no VGA.
        16 => [0x03, 0x80, 0x00],
        // Input: other input.
        18 => [0x09, 0x80, 0x00],
        // Crypto: other encryption.
        20 => [0x10, 0x80, 0x00],
        // Sound: audio.
        25 => [0x04, 0x01, 0x00],
        // No class is for them.
        _ => [0xff, 0x00, 0x00],
    }
}
