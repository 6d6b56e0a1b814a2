//! A source of entropy that follows from a seed.

use std::{convert::Infallible, rc::Rc};

use devisor::virtio::{
    entropy::{Entropy, SeededRandom},
    queue::QueueCounters,
};

use super::{Guest, SEED, Work, ensure, random_bytes};
use crate::{
    guest::{GuestError, Rng},
    guest_cpu::Cpu,
    guest_drivers::Sleeping,
    row::{Row, RowError, Setting},
};

/// How often the guest asks for entropy, and for how much.
const REQUESTS: usize = 256;
const BYTES: usize = 512;

pub fn run(setting: &Setting<'_>) -> Result<Row, RowError> {
    setting.guest("entropy", |_| Ok::<_, Infallible>(Entropy::seeded(SEED)), UseRng)
}

/// Asks for entropy and compares it with what follows from the seed.
struct UseRng;

impl Guest for UseRng {
    fn work<T: Sleeping>(
        self,
        transport: T,
        cpu: Rc<dyn Cpu>,
        queues: &dyn Fn() -> QueueCounters,
    ) -> Result<Work, GuestError> {
        let mut rng = Rng::over(transport, cpu)?;
        let mut random = SeededRandom::new(SEED);
        for _ in 0..REQUESTS {
            let expected = random_bytes(&mut random, BYTES);
            ensure(rng.request(BYTES)? == expected, || {
                "the entropy is not what follows from the seed".into()
            })?;
        }
        Ok(Work {
            requests: rng.requests(),
            bytes: (REQUESTS * BYTES) as u64,
            queues: queues(),
        })
    }
}
