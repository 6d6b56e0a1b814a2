//! The vhost-user protocol, as both ends speak it: messages, the socket that carries them with their descriptors, and
//! descriptors that the other end has too.
//!
//! Names and numbers are those of the specification (QEMU's `docs/interop/vhost-user.rst`). The back end is
//! [`transport::vhost_user`](super::transport::vhost_user).

mod foreign;
mod message;
mod payload;
mod signal;
mod socket;

pub(crate) use foreign::Foreign;
pub(crate) use message::{BackRequest, FrontRequest, Header, Message};
pub(crate) use payload::{
    Config, DeviceStateTransfer, Inflight, Iotlb, IotlbKind, Log, MemoryMap, Region, ShmemConfig, Single, Table,
    VringAddress, VringFile, VringState, Word,
};
pub(crate) use signal::signal;
pub(crate) use socket::{Received, Socket, send_at_once};

/// Bits of the feature mask that mean something to vhost alone.
pub mod vhost_feature {
    /// `VHOST_F_LOG_ALL`: writes to guest memory are logged.
    pub const LOG_ALL: u64 = 1 << 26;
    /// `VHOST_USER_F_PROTOCOL_FEATURES`: there are protocol features.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
}

/// Protocol features (`VHOST_USER_PROTOCOL_F_*`).
pub mod protocol_feature {
    /// The number of queues can be asked.
    pub const MQ: u64 = 1 << 0;
    /// The log of dirty pages is in shared memory.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// A request may ask for an answer that says whether it was done.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The back end has a channel for requests of its own.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// The configuration space is the back end's.
    pub const CONFIG: u64 = 1 << 9;
    /// Requests of the back end's own may come with descriptors.
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    /// Requests under way are tracked in shared memory.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// The device can be reset.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// Regions of memory come and go one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// The back end is told the device status.
    pub const STATUS: u64 = 1 << 16;
    /// Back ends share objects with each other by UUIDs.
    pub const SHARED_OBJECT: u64 = 1 << 18;
    /// The device's own state can be moved through a pipe.
    pub const DEVICE_STATE: u64 = 1 << 19;
    /// The back end may have files mapped in shared memory regions of the device (`SHMEM_MAP`).
    pub const SHMEM: u64 = 1 << 22;
}
