//! What an embedder decides about a socket device.

use std::time::Duration;

use super::registers::is_guest_cid;

/// The most payload of a packet to the guest. Linux has buffers for as much.
pub(super) const MAX_PACKET: u32 = 64 << 10;

/// How a socket device looks to the guest, and what its guest may have it hold.
///
/// A connection holds up to `buf_alloc` bytes that the host side has no room for, and four bytes for each message among them; the
/// device up to `max_connections` connections, and `max_resets` refusals that the guest has given it no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockOptions {
    /// `guest_cid`: the guest's address, 3 to 0xfffffffe.
    pub guest_cid: u32,
    /// Offers VIRTIO_VSOCK_F_SEQPACKET.
    pub seqpacket: bool,
    /// Size of each queue, a power of two up to 32768.
    pub queue_size: u16,
    /// Connections that there can be at a time, at least one. Further ones are refused, and wait if they come from the host.
    pub max_connections: usize,
    /// `buf_alloc`: what the guest may send on a connection that the host side has not taken yet, from 4 KiB to 1 GiB.
    pub buf_alloc: u32,
    /// Bytes of the longest message of a seqpacket connection, in both directions, less than 1 GiB. One that is longer resets its connection; so does
    /// one to the guest that is longer than the guest's own buffer.
    pub max_message: u32,
    /// Refusals (VIRTIO_VSOCK_OP_RST to what is no connection) that wait for room, at least one. With more of them, the tx queue waits.
    pub max_resets: usize,
    /// How long a guest has to answer a connection that the host side asks for.
    pub connect_timeout: Duration,
    /// How long a connection that both sides have shut down may take to end.
    pub shutdown_timeout: Duration,
}

impl Default for VsockOptions {
    fn default() -> Self {
        Self {
            guest_cid: 3,
            seqpacket: true,
            queue_size: 128,
            max_connections: 256,
            buf_alloc: 256 << 10,
            max_message: 64 << 20,
            max_resets: 256,
            connect_timeout: Duration::from_secs(2),
            shutdown_timeout: Duration::from_secs(8),
        }
    }
}

/// An option of a socket device is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VsockError {
    /// A CID that is reserved.
    #[error("guest CID {0}: 3 to 0xfffffffe are possible")]
    Cid(u32),
    /// A queue size that cannot be.
    #[error("queues of {0} entries: a power of two up to 32768 is needed")]
    QueueSize(u16),
    /// `buf_alloc` is out of range.
    #[error("{0} bytes of buffer a connection: 4 KiB to 1 GiB are possible")]
    BufAlloc(u32),
    /// `max_message` is out of range.
    #[error("messages of {0} bytes: less than 1 GiB is possible")]
    MaxMessage(u32),
    /// A bound is zero.
    #[error("`{0}` is zero: at least one is needed")]
    Zero(&'static str),
}

impl VsockOptions {
    pub(super) fn check(&self) -> Result<(), VsockError> {
        if !is_guest_cid(self.guest_cid.into()) {
            return Err(VsockError::Cid(self.guest_cid));
        }
        if !self.queue_size.is_power_of_two() {
            return Err(VsockError::QueueSize(self.queue_size));
        }
        if !(4 << 10..=1 << 30).contains(&self.buf_alloc) {
            return Err(VsockError::BufAlloc(self.buf_alloc));
        }
        if self.max_message >= 1 << 30 {
            return Err(VsockError::MaxMessage(self.max_message));
        }
        for (name, bound) in [
            ("max_connections", self.max_connections),
            ("max_resets", self.max_resets),
            ("max_message", self.max_message as usize),
        ] {
            if bound == 0 {
                return Err(VsockError::Zero(name));
            }
        }
        Ok(())
    }
}
