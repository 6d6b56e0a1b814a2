//! Numbers of the PMEM device (virtio 1.2, section 5.19).

/// `VIRTIO_PMEM_F_SHMEM_REGION` (section 5.19.3), as a mask: the memory is a shared memory region.
pub const F_SHMEM_REGION: u64 = 1 << 0;

/// The ID of that region (section 5.19.5.1).
pub const SHMEM_REGION_ID: u8 = 0;

/// Bytes of the configuration space (section 5.19.4): `start`, then `size`.
pub const CONFIG: usize = 16;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH` (section 5.19.6).
pub const REQ_TYPE_FLUSH: u32 = 0;

/// Bytes of a request, and of a response.
pub const REQUEST: u32 = 4;
pub const RESPONSE: u32 = 4;

/// `ret` (section 5.19.7.2.1): "0" for success and "-1" for failure.
pub const SUCCESS: u32 = 0;
pub const FAILURE: u32 = u32::MAX;
