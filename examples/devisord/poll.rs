//! Queues that are served again and again, on a thread that has nothing else to do; and what that costs.

use std::time::{Duration, Instant};

use devisor::virtio::{VirtioDevice as _, VirtioTransport as _};

use super::{Served, events::Target};

/// So many turns at the queues are taken before the rest is looked at.
const TURNS: u32 = 64;

/// What is polled: nothing, by default.
#[derive(Default)]
pub struct Poll {
    pub targets: Vec<Target>,
    turn: u32,
    /// Since when, and how many requests there had been before, of the turn that is measured.
    measured: Option<(Instant, u64)>,
    /// Of such turns, those that have found requests.
    requests: u64,
    time: Duration,
}

impl Poll {
    /// All queues.
    pub fn of(served: &[Served]) -> Self {
        let queues = |served: &Served| served.device.with_device(|device| device.queue_sizes().len());
        let targets = served
            .iter()
            .flat_map(|served| (0..queues(served) as u16).map(|index| Target::Queue(served.number, index)));
        Self {
            targets: targets.collect(),
            ..Self::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Another turn. Whether something else than queues is to be looked at, too.
    pub fn begin(&mut self, served: &[Served]) -> bool {
        if self.is_empty() {
            return true;
        }
        let requests = || served.iter().map(|served| served.device.counters().requests).sum();
        if let Some((began, before)) = self.measured.take() {
            let time = began.elapsed();
            // A ring that is set up anew counts from zero.
            if let Some(found) = u64::checked_sub(requests(), before).filter(|&found| found != 0) {
                self.requests += found;
                self.time += time;
            }
        }
        self.turn = (self.turn + 1) % TURNS;
        if self.turn == TURNS / 2 {
            let before = requests();
            self.measured = Some((Instant::now(), before));
        }
        self.turn == 0
    }

    /// Says what a request has cost, on average.
    pub fn say(&self) {
        if self.requests != 0 {
            let each = self.time.as_nanos() as f64 / self.requests as f64;
            eprintln!("devisord: {each:.1} ns a request, in turns that have found any");
        }
    }
}
