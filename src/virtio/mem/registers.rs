//! Numbers of the memory device (virtio 1.2, section 5.15).

/// Feature bits (section 5.15.3), as masks.
pub mod feature {
    /// `VIRTIO_MEM_F_ACPI_PXM`: `node_id` is valid.
    pub const ACPI_PXM: u64 = 1 << 0;
    /// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`: the driver does not even read what is unplugged.
    pub const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
}

/// Offsets in the configuration space (section 5.15.4), which the driver only reads.
pub mod config {
    pub const BLOCK_SIZE: usize = 0;
    pub const NODE_ID: usize = 8;
    pub const ADDR: usize = 16;
    pub const REGION_SIZE: usize = 24;
    pub const USABLE_REGION_SIZE: usize = 32;
    pub const PLUGGED_SIZE: usize = 40;
    pub const REQUESTED_SIZE: usize = 48;
    pub const LEN: usize = 56;
}

/// Request types (section 5.15.6).
pub mod request {
    pub const PLUG: u16 = 0;
    pub const UNPLUG: u16 = 1;
    pub const UNPLUG_ALL: u16 = 2;
    pub const STATE: u16 = 3;

    /// Bytes of any request: type and padding, then `addr`, `nb_blocks` and padding.
    pub const LEN: usize = 24;
    pub const ADDR: usize = 8;
    pub const NB_BLOCKS: usize = 16;
}

/// Bytes of any response: type and padding, then the state.
pub const RESPONSE: usize = 10;

/// Response types (section 5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Response {
    Ack = 0,
    Nack = 1,
    Busy = 2,
    Error = 3,
}

/// States of blocks (section 5.15.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BlockState {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}
