//! What an embedder says of a device that a back end serves.

use std::time::Duration;

use super::{error::RemoteError, kinds, objects::SharedObjects, registers::MAX_QUEUES};
use crate::virtio::{DeviceId, SharedMemoryRegion};

/// Where the configuration space comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSpace {
    /// So many bytes, up to 256, of the back end's (`GET_CONFIG`). Some back ends refuse to be asked for more than they have.
    BackEnd(u16),
    /// These bytes, which the embedder knows: for a back end that has none, as those of file systems, whose tag it does not know, and of
    /// network devices. The driver's writes change nothing.
    Own(Vec<u8>),
}

/// A device that a back end serves, and how patient it is.
///
/// ```
/// use devisor::virtio::{DeviceId, remote::{ConfigSpace, RemoteOptions}};
///
/// // A disk: one queue or as many as the back end has, a configuration space that is the back end's.
/// let disk = RemoteOptions::new(DeviceId::BLOCK);
/// assert_eq!(disk.config, ConfigSpace::BackEnd(60));
/// // A file system, whose tag is ours to say.
/// let mut files = RemoteOptions::new(DeviceId(26));
/// let mut config = b"shared".to_vec();
/// config.resize(36, 0);
/// config.extend(1_u32.to_le_bytes());
/// files.config = ConfigSpace::Own(config);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteOptions {
    /// The device type.
    pub device: DeviceId,
    /// Number of queues, from 1 to 256. `None`: as many as the back end has, or one if it does not say.
    pub queues: Option<u16>,
    /// Size of each queue, a power of two up to 32768. Many back ends take 1024 at most.
    pub queue_size: u16,
    /// The configuration space.
    pub config: ConfigSpace,
    /// Features of the device type that are offered besides those of the back end: of fields in a configuration space that is our own.
    pub more_features: u64,
    /// Features of the back end that are not offered.
    pub without_features: u64,
    /// How long the back end may take to answer all that it is asked in a row, to set up a connection, memory and a queue: so long a vCPU may
    /// be held.
    /// One that takes longer has its connection closed. For an object that another back end waits for, it has a quarter of that.
    pub patience: Duration,
    /// How long it may take to end the requests of a queue that is stopped.
    pub drain: Duration,
    /// How long to wait before it is tried again to reach a back end that has gone.
    pub retry: Duration,
    /// Shared memory regions of the device, each with its ID: guest addresses that the embedder has kept free, where a back end has files
    /// [mapped](super::MapShared). As long as the back end's, if it has any.
    pub shared_memory: Vec<(u8, SharedMemoryRegion)>,
    /// Where the back end exports objects to others, and finds theirs, if it may (SHARED_OBJECT).
    pub shared_objects: Option<SharedObjects>,
    /// The most bytes of a state of the back end's own (DEVICE_STATE) that are saved.
    pub most_state: usize,
}

impl RemoteOptions {
    /// A device of this type, as back ends for it are known to be.
    pub fn new(device: DeviceId) -> Self {
        let kind = kinds::of(device);
        Self {
            device,
            queues: kind.queues,
            queue_size: 128,
            config: ConfigSpace::BackEnd(kind.config),
            more_features: 0,
            without_features: kind.without,
            patience: Duration::from_secs(1),
            drain: Duration::from_secs(10),
            retry: Duration::from_millis(100),
            shared_memory: Vec::new(),
            shared_objects: None,
            most_state: 64 << 20,
        }
    }

    pub(super) fn check(&self) -> Result<(), RemoteError> {
        if let Some(queues) = self.queues
            && !(1..=MAX_QUEUES).contains(&queues)
        {
            return Err(RemoteError::Queues {
                asked: queues,
                most: MAX_QUEUES,
            });
        }
        if !self.queue_size.is_power_of_two() {
            return Err(RemoteError::QueueSize(self.queue_size));
        }
        let config = match &self.config {
            ConfigSpace::BackEnd(len) => usize::from(*len),
            ConfigSpace::Own(bytes) => bytes.len(),
        };
        if config > 256 {
            return Err(RemoteError::ConfigSize(config));
        }
        Ok(())
    }
}
