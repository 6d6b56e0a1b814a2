//! Memory statistics (section 5.5.6.1): the device holds the driver's buffer, and asks by giving it back.

use std::{sync::Arc, time::Duration};

use super::{shared::Shared, statistic::Statistics};
use crate::{
    sync::lock,
    virtio::{ChainError, Fault, QueueHandler, Round, Wait},
};

/// Serves `statsq`. The buffer that the device holds is left in the ring: a pause, a save and a reset find it there, and whoever serves
/// the queue after a restore reads it again.
pub(super) struct StatisticsQueue {
    shared: Arc<Shared>,
    /// The buffer at the front was read, and when by the clock.
    held: Option<Option<Duration>>,
}

impl StatisticsQueue {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, held: None }
    }

    /// When the buffer that was read then is to be given back.
    fn deadline(&self, read: Option<Duration>) -> Option<Duration> {
        Some(read?.saturating_add(lock(&self.shared.asking).interval?))
    }
}

impl QueueHandler for StatisticsQueue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            let now = self.shared.now();
            let Some(read) = self.held else {
                // "an output buffer" (section 5.5.6.1.1).
                let told = match chain.writable() {
                    [] => Statistics::read(chain.reader()),
                    _ => Err(ChainError::Request("statistics have nothing to write to")),
                };
                let Ok(told) = told else {
                    chain.refuse()?;
                    continue;
                };
                let mut asking = lock(&self.shared.asking);
                let count = asking.last.map_or(0, |last| last.count) + 1;
                let mut told = told;
                (told.count, told.at) = (count, now);
                asking.last = Some(told);
                asking.asked = false;
                self.held = Some(now);
                continue;
            };
            let asked = lock(&self.shared.asking).asked;
            let deadline = self.deadline(read);
            if asked || deadline.zip(now).is_some_and(|(deadline, now)| now >= deadline) {
                self.held = None;
                chain.complete(0)?;
                continue;
            }
            if let Some(deadline) = deadline {
                round.wait(Wait::Until(deadline));
            }
            return Ok(());
        }
        Ok(())
    }
}
