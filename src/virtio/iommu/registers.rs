//! Features, configuration space and request formats (virtio 1.2, sections 5.13.3, 5.13.4 and 5.13.6).

/// `VIRTIO_IOMMU_F_INPUT_RANGE` (section 5.13.3): `input_range` says which addresses can be mapped.
pub const F_INPUT_RANGE: u64 = 1 << 0;
/// `VIRTIO_IOMMU_F_DOMAIN_RANGE`: `domain_range` says which domains can be named.
pub const F_DOMAIN_RANGE: u64 = 1 << 1;
/// `VIRTIO_IOMMU_F_MAP_UNMAP`: MAP and UNMAP requests.
pub const F_MAP_UNMAP: u64 = 1 << 2;
/// `VIRTIO_IOMMU_F_BYPASS`: endpoints that are attached to nothing bypass the IOMMU.
pub const F_BYPASS: u64 = 1 << 3;
/// `VIRTIO_IOMMU_F_PROBE`: PROBE requests.
pub const F_PROBE: u64 = 1 << 4;
/// `VIRTIO_IOMMU_F_MMIO`: mappings may be of registers.
pub const F_MMIO: u64 = 1 << 5;
/// `VIRTIO_IOMMU_F_BYPASS_CONFIG`: `bypass` says whether endpoints that are attached to nothing bypass the IOMMU, and domains can be
/// ones that do.
pub const F_BYPASS_CONFIG: u64 = 1 << 6;

/// Offset of `bypass` in the configuration space (section 5.13.4).
pub(super) const BYPASS: u64 = 36;
/// Length of the configuration space.
pub(super) const CONFIG_LEN: usize = 40;

/// The configuration space, field by field.
pub(super) struct Config {
    pub page_size_mask: u64,
    pub input_range: [u64; 2],
    pub domain_range: [u32; 2],
    pub probe_size: u32,
    pub bypass: bool,
}

impl Config {
    pub fn bytes(&self) -> [u8; CONFIG_LEN] {
        let mut bytes = [0; CONFIG_LEN];
        bytes[..8].copy_from_slice(&self.page_size_mask.to_le_bytes());
        for (at, address) in [8, 16].into_iter().zip(self.input_range) {
            bytes[at..at + 8].copy_from_slice(&address.to_le_bytes());
        }
        for (at, number) in [24, 28].into_iter().zip(self.domain_range) {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        bytes[32..36].copy_from_slice(&self.probe_size.to_le_bytes());
        bytes[36] = self.bypass.into();
        bytes
    }
}

/// `type` of a request (section 5.13.6).
pub(super) mod request {
    pub const ATTACH: u8 = 1;
    pub const DETACH: u8 = 2;
    pub const MAP: u8 = 3;
    pub const UNMAP: u8 = 4;
    pub const PROBE: u8 = 5;
}

/// Bytes of the readable part of a request of this type, if there is such a type.
pub(super) fn request_len(kind: u8) -> Option<usize> {
    Some(match kind {
        request::ATTACH | request::DETACH => 20,
        request::MAP => 36,
        request::UNMAP => 28,
        request::PROBE => 72,
        _ => return None,
    })
}

/// The longest of them.
pub(super) const REQUEST_MAX: usize = 72;

/// Bytes of `struct virtio_iommu_req_tail`: the status, and what is reserved.
pub(super) const TAIL: u32 = 4;

/// `status` of a request (section 5.13.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    Unsupported = 2,
    Invalid = 4,
    Range = 5,
    NoEntry = 6,
    NoMemory = 8,
}

/// `VIRTIO_IOMMU_ATTACH_F_BYPASS` (section 5.13.6.3).
pub(super) const ATTACH_F_BYPASS: u32 = 1 << 0;

/// `VIRTIO_IOMMU_MAP_F_READ` (section 5.13.6.5).
pub(super) const MAP_F_READ: u32 = 1 << 0;
/// `VIRTIO_IOMMU_MAP_F_WRITE`.
pub(super) const MAP_F_WRITE: u32 = 1 << 1;
/// `VIRTIO_IOMMU_MAP_F_MMIO`.
pub(super) const MAP_F_MMIO: u32 = 1 << 2;

/// `VIRTIO_IOMMU_PROBE_T_RESV_MEM` (section 5.13.6.8).
pub(super) const PROBE_T_RESV_MEM: u16 = 1;
/// Bytes of such a property, with its head.
pub(super) const RESV_MEM_LEN: u32 = 24;

/// Bytes of `struct virtio_iommu_fault` (section 5.13.6.9).
pub(super) const FAULT_LEN: u32 = 24;
/// `VIRTIO_IOMMU_FAULT_F_READ`.
pub(super) const FAULT_F_READ: u32 = 1 << 0;
/// `VIRTIO_IOMMU_FAULT_F_WRITE`.
pub(super) const FAULT_F_WRITE: u32 = 1 << 1;
/// `VIRTIO_IOMMU_FAULT_F_ADDRESS`.
pub(super) const FAULT_F_ADDRESS: u32 = 1 << 8;
