//! Devices for these tests: one that answers at once, one that keeps what it is given until it is told to let go.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use devisor::virtio::{
    DeviceId, DeviceState, DeviceStateError, Fault, Handle, QueueHandler, QueueIndex, Round, VirtioDevice,
    device::read_config_bytes, queue::OwnedChain,
};

/// What a device has seen.
#[derive(Default)]
pub struct Seen {
    pub resets: AtomicUsize,
    pub features: Mutex<Vec<u64>>,
    pub requests: AtomicUsize,
    pub config: Mutex<Vec<u8>>,
    /// Chains that are kept, by queue.
    pub kept: Mutex<Vec<OwnedChain>>,
    /// What is kept goes back untouched when the queue is stopped.
    pub gives_back: std::sync::atomic::AtomicBool,
    pub handle: Mutex<Option<Handle>>,
    /// What happens when a request is answered.
    pub each: Mutex<Option<Each>>,
}

pub type Each = Box<dyn FnMut() + Send>;

/// Answers with its request's first byte plus one; or keeps each request.
pub struct Device {
    pub seen: Arc<Seen>,
    pub keeps: bool,
    sizes: Vec<u16>,
}

impl Device {
    pub fn new(queues: usize) -> (Self, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        seen.config.lock().unwrap().extend(0..32);
        let device = Self {
            seen: Arc::clone(&seen),
            keeps: false,
            sizes: vec![64; queues],
        };
        (device, seen)
    }

    pub fn keeping(queues: usize) -> (Self, Arc<Seen>) {
        let (device, seen) = Self::new(queues);
        (Self { keeps: true, ..device }, seen)
    }
}

impl VirtioDevice for Device {
    fn device_id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn features(&self) -> u64 {
        0b11
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn attach(&mut self, handle: Handle) {
        *self.seen.handle.lock().unwrap() = Some(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.seen.config.lock().unwrap(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.seen.config.lock().unwrap();
        for (place, byte) in config.iter_mut().skip(offset as usize).zip(data) {
            *place = *byte;
        }
    }

    fn accepts(&self, features: u64) -> bool {
        features & 0b10 == 0
    }

    fn negotiated(&mut self, features: u64) {
        self.seen.features.lock().unwrap().push(features);
    }

    fn start(&mut self, _: QueueIndex) -> Box<dyn QueueHandler> {
        Box::new(Handler {
            seen: Arc::clone(&self.seen),
            keeps: self.keeps,
        })
    }

    fn reset(&mut self) {
        self.seen.resets.fetch_add(1, Ordering::SeqCst);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Other {
            version: 1,
            data: self.seen.config.lock().unwrap().clone(),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Other { version: 1, data } => {
                *self.seen.config.lock().unwrap() = data.clone();
                Ok(())
            }
            other => Err(DeviceStateError::kind(other, "one of this test's")),
        }
    }
}

struct Handler {
    seen: Arc<Seen>,
    keeps: bool,
}

impl QueueHandler for Handler {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        if self.keeps {
            while let Some(chain) = round.next()? {
                self.seen.requests.fetch_add(1, Ordering::SeqCst);
                self.seen.kept.lock().unwrap().push(chain.take());
            }
            return Ok(());
        }
        round.each(|chain| {
            self.seen.requests.fetch_add(1, Ordering::SeqCst);
            let mut byte = [0];
            chain.reader().read(&mut byte)?;
            chain.writer().write(&[byte[0].wrapping_add(1)])?;
            self.seen.each.lock().unwrap().iter_mut().for_each(|each| each());
            Ok(1)
        })?;
        Ok(())
    }

    fn pause(&mut self) {
        let kept = std::mem::take(&mut *self.seen.kept.lock().unwrap());
        if self.seen.gives_back.load(Ordering::SeqCst) {
            kept.into_iter().for_each(OwnedChain::give_back);
        } else {
            *self.seen.kept.lock().unwrap() = kept;
        }
    }
}
