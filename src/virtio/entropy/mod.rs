//! The entropy device (virtio 1.2, section 5.4).

mod source;

use std::{
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    ChainError, DeviceId, DeviceState, DeviceStateError, FailureLog, Fault, HostFailures, QueueHandler, QueueIndex,
    Round, VirtioDevice, queue::Chain,
};
use crate::sync::lock;

pub use source::{OsRandom, SeededRandom, Source};

/// The most that one request is given, in bytes. The driver is told how much it got (section 5.4.6.2: the device "MAY
/// use less than the entire buffer length") and asks again.
pub const MAX_BYTES_PER_REQUEST: u32 = 64 * 1024;

/// Bytes that are asked of the source at a time, and that one request costs in memory.
const CHUNK: usize = 512;

/// The only queue: `requestq`.
const REQUEST_QUEUE_SIZES: [u16; 1] = [64];

/// A source of randomness for the guest.
///
/// *A source that fails*: the specification wants "one or more random bytes" in every buffer that is used (section
/// 5.4.6.2), and Linux waits for ever after an empty one. So a request that the source fails at its first byte stays
/// available, and is tried again when the queue is next looked at: have the transport do that
/// ([`VirtioTransport::process`](super::VirtioTransport::process)) once the source has recovered. A request that the source fails
/// later is completed with the bytes that it has. What the source did not deliver is never handed out: neither zeros nor
/// what an earlier request got.
///
/// ```
/// use devisor::{
///     interrupt::NoInterrupt,
///     virtio::{VirtioMmio, entropy::Entropy, transport::mmio::Line},
/// };
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let line = Line::Edge(Arc::new(NoInterrupt));
/// let rng = VirtioMmio::new(Entropy::from_os(), memory, line)?;
/// assert_eq!(rng.with_device(|rng| rng.host_failures().count), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Entropy {
    shared: Arc<Shared>,
}

/// What the control face and the queue share.
struct Shared {
    source: Plugged,
    failures: FailureLog,
}

/// What is plugged in: the seeded generator is known by name, because its state is saved.
enum Plugged {
    /// All of its state, which only the queue's handler moves on: that needs no lock.
    Seeded(AtomicU64),
    Other(Mutex<Box<dyn Source>>),
}

impl Plugged {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Seeded(state) => {
                let mut source = SeededRandom::new(state.load(Ordering::Relaxed));
                source.fill(bytes)?;
                state.store(source.state(), Ordering::Relaxed);
                Ok(())
            }
            Self::Other(source) => lock(source).fill(bytes),
        }
    }
}

/// The state of an entropy device as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntropyState {
    /// The state of a [seeded](Entropy::seeded) generator: the next bytes follow from it.
    Seeded(u64),
    /// The source is outside: the operating system's, or the embedder's own.
    External,
}

impl Entropy {
    /// Randomness from the operating system, fit for keys.
    pub fn from_os() -> Self {
        Self::new(OsRandom)
    }

    /// A sequence that follows from `seed`: for tests and for replays, **not for production**. A guest that makes keys
    /// from it has no secrets.
    ///
    /// ```
    /// use devisor::virtio::{DeviceState, VirtioDevice, entropy::{Entropy, EntropyState}};
    ///
    /// assert_eq!(Entropy::seeded(7).save(), DeviceState::Entropy(EntropyState::Seeded(7)));
    /// ```
    pub fn seeded(seed: u64) -> Self {
        Self::plugged(Plugged::Seeded(AtomicU64::new(seed)))
    }

    /// Randomness from `source`.
    pub fn new(source: impl Source + 'static) -> Self {
        Self::plugged(Plugged::Other(Mutex::new(Box::new(source))))
    }

    fn plugged(source: Plugged) -> Self {
        let shared = Shared {
            source,
            failures: FailureLog::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What the source has failed at. The guest waits.
    pub fn host_failures(&self) -> HostFailures {
        self.shared.failures.get()
    }
}

impl Shared {
    /// The next bytes of what is wanted, or none.
    fn draw<'a>(&self, chunk: &'a mut [u8; CHUNK], wanted: u32) -> Option<&'a [u8]> {
        let bytes = &mut chunk[..CHUNK.min(wanted as usize)];
        // Nothing of an earlier request is in it, whatever the source does.
        bytes.fill(0);
        match self.source.fill(bytes) {
            Ok(()) => Some(bytes),
            Err(error) => {
                self.failures.record(error);
                None
            }
        }
    }

    /// Fills a request. Returns how many bytes it got: none, if the source has none.
    fn answer(&self, chain: &Chain<'_, '_>, chunk: &mut [u8; CHUNK]) -> Result<u32, ChainError> {
        let mut room = chain.writer();
        let wanted = room.remaining().min(MAX_BYTES_PER_REQUEST);
        let mut done = 0;
        while done < wanted
            && let Some(bytes) = self.draw(chunk, wanted - done)
        {
            room.write(bytes)?;
            done += bytes.len() as u32;
        }
        Ok(done)
    }
}

impl VirtioDevice for Entropy {
    fn device_id(&self) -> DeviceId {
        DeviceId::ENTROPY
    }

    fn queue_sizes(&self) -> &[u16] {
        &REQUEST_QUEUE_SIZES
    }

    fn start(&mut self, _queue: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(RequestQueue {
            shared: Arc::clone(&self.shared),
            chunk: [0; CHUNK],
        })
    }

    fn save(&self) -> DeviceState {
        DeviceState::Entropy(match &self.shared.source {
            Plugged::Seeded(state) => EntropyState::Seeded(state.load(Ordering::Relaxed)),
            Plugged::Other(_) => EntropyState::External,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Entropy(state) = *state else {
            return Err(DeviceStateError::kind(state, "an entropy device's"));
        };
        match (&self.shared.source, state) {
            (Plugged::Seeded(now), EntropyState::Seeded(state)) => now.store(state, Ordering::Relaxed),
            (Plugged::Other(_), EntropyState::External) => {}
            (Plugged::Seeded(_), EntropyState::External) => {
                return Err(DeviceStateError::Otherwise(
                    "with a seeded generator, where the state needs an external source".into(),
                ));
            }
            (Plugged::Other(_), EntropyState::Seeded(_)) => {
                return Err(DeviceStateError::Otherwise(
                    "with an external source, where the state needs a seeded generator".into(),
                ));
            }
        }
        Ok(())
    }
}

/// Serves `requestq`.
struct RequestQueue {
    shared: Arc<Shared>,
    /// What the source leaves behind when it fails is in here, and goes nowhere.
    chunk: [u8; CHUNK],
}

impl QueueHandler for RequestQueue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            // The driver "MUST NOT place device-readable buffers into the queue" (section 5.4.6.1).
            if !chain.readable().is_empty() || chain.writable_len() == 0 {
                chain.refuse()?;
                continue;
            }
            match self.shared.answer(&chain, &mut self.chunk) {
                // A request that cannot be answered stays in the ring, where a reset, a save and the next attempt find it.
                Ok(0) => return Ok(()),
                Ok(written) => chain.complete(written)?,
                Err(_) => chain.refuse()?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Entropy {
    /// Says nothing of the source's state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entropy")
            .field("failures", &self.shared.failures)
            .finish_non_exhaustive()
    }
}
