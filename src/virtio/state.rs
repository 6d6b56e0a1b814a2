//! What devices keep for their guests, as plain data.

use super::{
    balloon::BalloonState, block::BlockState, console::ConsoleState, entropy::EntropyState, iommu::IommuState,
    mem::MemoryDeviceState, net::NetState, pmem::PmemState, vsock::VsockState,
};

/// The state of a device without its transport.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// It keeps nothing.
    None,
    /// A [memory balloon](super::balloon::Balloon).
    Balloon(BalloonState),
    /// A [block device](super::block::Block).
    Block(BlockState),
    /// A [console device](super::console::Console).
    Console(ConsoleState),
    /// An [entropy device](super::entropy::Entropy).
    Entropy(EntropyState),
    /// An [IOMMU](super::iommu::Iommu).
    Iommu(IommuState),
    /// A [memory device](super::mem::MemoryDevice).
    Memory(MemoryDeviceState),
    /// A [network device](super::net::Net).
    Net(NetState),
    /// A [PMEM device](super::pmem::Pmem).
    Pmem(PmemState),
    /// A [device that a back end serves](super::remote::Remote).
    #[cfg(all(target_os = "linux", feature = "vhost-user"))]
    Remote(super::remote::RemoteState),
    /// A [socket device](super::vsock::Vsock).
    Vsock(VsockState),
    /// A device of somebody else.
    Other {
        /// Of the format of `data`: the device knows it.
        version: u32,
        /// What the device makes of its state.
        data: Vec<u8>,
    },
}

impl DeviceState {
    fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Balloon(_) => "a balloon's",
            Self::Block(_) => "a block device's",
            Self::Console(_) => "a console device's",
            Self::Entropy(_) => "an entropy device's",
            Self::Iommu(_) => "an IOMMU's",
            Self::Memory(_) => "a memory device's",
            Self::Net(_) => "a network device's",
            Self::Pmem(_) => "a PMEM device's",
            #[cfg(all(target_os = "linux", feature = "vhost-user"))]
            Self::Remote(_) => "one of a device that a back end serves",
            Self::Vsock(_) => "a socket device's",
            Self::Other { .. } => "one of a foreign format",
        }
    }
}

/// A saved state is refused; the device is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceStateError {
    /// It is of another kind of device.
    #[error("the state is {saved}: {needed} is needed")]
    Kind {
        /// What it is.
        saved: &'static str,
        /// What would do.
        needed: &'static str,
    },
    /// It is of such a device, and this one was made otherwise.
    #[error("the device was made otherwise: {0}")]
    Otherwise(String),
}

impl DeviceStateError {
    /// `state` is not the kind that is `needed`.
    pub fn kind(state: &DeviceState, needed: &'static str) -> Self {
        let saved = state.name();
        Self::Kind { saved, needed }
    }
}
