//! The devices of the tour: a table of them, and a file for each with what is behind the device, and what its guest does with it.

mod block;
mod console;
mod entropy;
mod net;
mod vsock;

use std::rc::Rc;

use devisor::virtio::{
    entropy::{SeededRandom, Source},
    queue::QueueCounters,
};

use crate::{
    completion::Completion,
    guest::GuestError,
    guest_cpu::Cpu,
    guest_drivers::Sleeping,
    row::{Row, RowError, RunsOn, Setting},
};

/// A device of the tour.
pub struct Device {
    /// What the table calls it.
    pub name: &'static str,
    /// Where it can run and complete its requests in the round that finds them.
    pub at_once: &'static [RunsOn],
    /// When else it can complete them.
    pub later: &'static [Completion],
    /// Runs a row of it.
    pub run: fn(&Setting<'_>) -> Result<Row, RowError>,
}

/// All of them.
pub const DEVICES: [Device; 5] = [
    Device {
        name: "block",
        at_once: &ANYWHERE,
        later: &[Completion::Late, Completion::Shuffled, Completion::Thread],
        run: block::run,
    },
    Device {
        name: "entropy",
        at_once: &ANYWHERE,
        later: &[],
        run: entropy::run,
    },
    Device {
        name: "net",
        at_once: &ON_A_WORKER,
        later: &[],
        run: net::run,
    },
    Device {
        name: "console",
        at_once: &ON_A_WORKER,
        later: &[],
        run: console::run,
    },
    Device {
        name: "vsock",
        at_once: &ON_A_WORKER,
        later: &[],
        run: vsock::run,
    },
];

/// Of a device that does what its guest asks for, and nothing else.
const ANYWHERE: [RunsOn; 2] = [RunsOn::Worker(Completion::Round), RunsOn::Kick];
/// Of one that has something for its guest when nobody kicks: somebody else must run it then.
const ON_A_WORKER: [RunsOn; 1] = [RunsOn::Worker(Completion::Round)];

/// What a guest has done.
pub struct Work {
    /// Requests that it made.
    pub requests: u64,
    /// Bytes that it compared with what they must be.
    pub bytes: u64,
    /// What the device's queues did meanwhile.
    pub queues: QueueCounters,
}

/// A guest that has a use for a device.
pub trait Guest {
    /// Whether the device interrupts once for all that it has completed in a round. If not, each completion has its interrupt.
    const ONCE_A_ROUND: bool = false;

    /// Uses it, by a driver that is gone afterwards: `queues` counts what the device did, as long as it is there.
    ///
    /// # Errors
    /// The device is not what it must be.
    fn work<T: Sleeping>(
        self,
        transport: T,
        cpu: Rc<dyn Cpu>,
        queues: &dyn Fn() -> QueueCounters,
    ) -> Result<Work, GuestError>;
}

/// The seed of everything that is random here.
const SEED: u64 = 0x5eed;

fn random_bytes(random: &mut SeededRandom, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes).expect("this source does not fail");
    bytes
}

/// The guest is content if this holds.
fn ensure(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), GuestError> {
    match holds {
        true => Ok(()),
        false => Err(GuestError::Wrong(complaint())),
    }
}
