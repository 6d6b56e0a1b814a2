//! The entropy device (virtio 1.2, section 5.4).

mod source;

use std::fmt;

use vm_memory::GuestMemory;

use super::{
    DeviceId, Queue, QueueError, QueueIndex, Queues, Round, VirtioDevice,
    queue::{Chain, Writer},
};

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
/// available, and is tried again when the device is next processed: have the transport do that
/// ([`VirtioMmio::process`](super::VirtioMmio::process)) once the source has recovered. A request that the source fails
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
/// assert_eq!(rng.with_device(|rng| rng.failures()), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Entropy {
    source: Plugged,
    failures: u64,
}

/// What is plugged in: the seeded generator is known by name, because its state is saved.
enum Plugged {
    Seeded(SeededRandom),
    Other(Box<dyn Source>),
}

/// The state of an entropy device as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntropyState {
    /// The state of a [seeded](Entropy::seeded) generator: the next bytes follow from it.
    Seeded(u64),
    /// The source is outside: the operating system's, or the embedder's own.
    External,
}

/// A saved state is refused; the device is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("state of {saved} for an entropy device with {present}: the same kind of source is needed")]
pub struct EntropyStateError {
    saved: &'static str,
    present: &'static str,
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
    /// use devisor::virtio::entropy::{Entropy, EntropyState};
    ///
    /// assert_eq!(Entropy::seeded(7).save(), EntropyState::Seeded(7));
    /// ```
    pub fn seeded(seed: u64) -> Self {
        Self::plugged(Plugged::Seeded(SeededRandom::new(seed)))
    }

    /// Randomness from `source`.
    pub fn new(source: impl Source + 'static) -> Self {
        Self::plugged(Plugged::Other(Box::new(source)))
    }

    fn plugged(source: Plugged) -> Self {
        Self { source, failures: 0 }
    }

    /// How often the source has failed.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The state.
    pub fn save(&self) -> EntropyState {
        // What has failed is a count of this process, not state of the guest's device.
        let Self { source, failures: _ } = self;
        match source {
            Plugged::Seeded(source) => EntropyState::Seeded(source.state()),
            Plugged::Other(_) => EntropyState::External,
        }
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// It is of another kind of source.
    pub fn restore(&mut self, state: &EntropyState) -> Result<(), EntropyStateError> {
        const NAMES: [&str; 2] = ["a seeded generator", "an external source"];
        let refused = |saved, present| EntropyStateError {
            saved: NAMES[saved],
            present: NAMES[present],
        };
        match (&mut self.source, *state) {
            (Plugged::Seeded(source), EntropyState::Seeded(state)) => *source = SeededRandom::new(state),
            (Plugged::Other(_), EntropyState::External) => {}
            (Plugged::Seeded(_), EntropyState::External) => return Err(refused(1, 0)),
            (Plugged::Other(_), EntropyState::Seeded(_)) => return Err(refused(0, 1)),
        }
        Ok(())
    }

    /// The next bytes, or none.
    fn draw(&mut self) -> Option<[u8; CHUNK]> {
        let mut chunk = [0; CHUNK];
        let filled = match &mut self.source {
            Plugged::Seeded(source) => source.fill(&mut chunk),
            Plugged::Other(source) => source.fill(&mut chunk),
        };
        if filled.is_err() {
            self.failures += 1;
        }
        filled.ok().map(|()| chunk)
    }

    /// Fills a request, of which `chunk` is the beginning. Returns how many bytes it got.
    fn answer<M: GuestMemory>(&mut self, chain: &Chain, memory: &M, mut chunk: [u8; CHUNK]) -> Result<u32, QueueError> {
        let mut room = checked_room(chain, memory)?;
        let wanted = room.remaining().min(MAX_BYTES_PER_REQUEST);
        let mut done = 0;
        loop {
            let len = (CHUNK as u32).min(wanted - done);
            room.write(&chunk[..len as usize])?;
            done += len;
            if done == wanted {
                return Ok(done);
            }
            match self.draw() {
                Some(next) => chunk = next,
                None => return Ok(done),
            }
        }
    }

    fn serve<M: GuestMemory>(&mut self, queue: &mut Queue, memory: &M) -> Result<Round, QueueError> {
        queue.signal_again();
        for _ in 0..queue.size() {
            // A request is looked for before bytes are drawn, and taken when they are there: one that cannot be
            // answered stays in the ring, where a reset, a save and the next attempt find it.
            if queue.expect_kicks(memory)? == Round::Drained {
                return Ok(Round::Drained);
            }
            let Some(chunk) = self.draw() else {
                return Ok(Round::Drained);
            };
            let Some(chain) = queue.pop(memory)? else {
                return Ok(Round::Drained);
            };
            let written = self.answer(&chain, memory, chunk)?;
            queue.complete(memory, chain, written)?;
        }
        Ok(Round::More)
    }
}

/// The buffer of a request (section 5.4.6.1: the driver "MUST NOT place device-readable buffers into the queue").
fn checked_room<'a, M: GuestMemory>(chain: &'a Chain, memory: &'a M) -> Result<Writer<'a, M>, QueueError> {
    if !chain.readable().is_empty() {
        return Err(QueueError::Request("an entropy request has a device-readable buffer"));
    }
    if chain.writable_len() == 0 {
        return Err(QueueError::Request("an entropy request has no room for a byte"));
    }
    Ok(chain.writer(memory))
}

impl<M: GuestMemory> VirtioDevice<M> for Entropy {
    fn device_id(&self) -> DeviceId {
        DeviceId::ENTROPY
    }

    fn queue_sizes(&self) -> &[u16] {
        &REQUEST_QUEUE_SIZES
    }

    fn process(&mut self, index: QueueIndex, queues: &mut Queues<'_, M>) -> Result<Round, QueueError> {
        match queues.get(index) {
            Some((queue, memory)) => self.serve(queue, memory),
            None => Ok(Round::Drained),
        }
    }
}

impl fmt::Debug for Entropy {
    /// Says nothing of the source's state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entropy")
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}
