//! The rx queue: packets to the guest.

use std::sync::{Arc, atomic::Ordering};

use super::{
    connection::Produced,
    registers::{HEADER, RX},
    table::{Shared, Work},
};
use crate::{
    sync::lock,
    virtio::{Fault, QueueHandler, Round, Wait, queue::Slices},
};

/// Serves `rx`, and is who asks the host side and keeps the time.
pub(super) struct Receive {
    shared: Arc<Shared>,
    room: Slices,
}

impl Receive {
    pub fn new(shared: Arc<Shared>) -> Self {
        let room = Slices::default();
        Self { shared, room }
    }

    fn packets(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let Self { shared, room } = self;
        let mut any = false;
        while let Some(work) = shared.work() {
            let Some(chain) = round.next()? else {
                shared.put_back(work);
                return Ok(());
            };
            if !chain.readable().is_empty() || chain.writable_len() < HEADER as u32 {
                chain.refuse()?;
                shared.put_back(work);
                continue;
            }
            any = true;
            match work {
                Work::Reset(header) => match chain.writer().write(&header.encode()) {
                    Ok(()) => {
                        chain.complete(HEADER as u32)?;
                        shared.refused();
                    }
                    Err(_) => {
                        chain.refuse()?;
                        shared.put_back(work);
                    }
                },
                Work::Connection(connection) => {
                    let mut flow = lock(&connection.flow);
                    connection.queued.store(false, Ordering::SeqCst);
                    let produced = flow.produce(connection.key, &chain, room, &shared.options, &shared.failures);
                    shared.settle(&connection, flow, RX);
                    match produced {
                        Ok(Produced::Packet(len)) => chain.complete(len)?,
                        Ok(Produced::Nothing) => {}
                        Ok(Produced::NoRoom) | Err(_) => chain.refuse()?,
                    }
                }
            }
        }
        if any {
            // Whatever room is left stays where it is: who has something for it looks again.
            let _ = round.next()?;
        }
        Ok(())
    }
}

impl QueueHandler for Receive {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        self.shared.poll();
        self.shared.expire();
        self.shared.accept();
        self.packets(round)?;
        // A connection that has ended makes room for another.
        self.shared.accept();
        self.shared
            .host
            .waits(self.shared.is_full(), &mut |wait| round.wait(wait));
        if let Some(deadline) = self.shared.deadline() {
            round.wait(Wait::Until(deadline));
        }
        Ok(())
    }
}
