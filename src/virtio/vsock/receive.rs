//! The rx queue: packets to the guest.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Ready, Token,
    connection::Produced,
    options::MAX_PACKET,
    registers::{HEADER, RX},
    table::{Shared, Work},
};
use crate::{
    sync::lock,
    virtio::{
        ChainError, Fault, QueueHandler, Round, Wait,
        gathered::Gathered,
        queue::{Chain, Slices},
    },
};

/// Serves `rx`, and is who asks the host side and keeps the time.
///
/// What a stream has is read into as many buffers as it takes, at once.
pub(super) struct Receive {
    shared: Arc<Shared>,
    room: Slices,
    /// Buffers that are put together.
    gathered: Gathered,
    told: Vec<(Token, Ready)>,
}

impl Receive {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            room: Slices::default(),
            gathered: Gathered::default(),
            told: Vec::new(),
        }
    }

    fn packets(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let Self {
            shared, room, gathered, ..
        } = self;
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
                    let at_once = flow.reads_at_once();
                    let len = payload(&chain);
                    if len != 0 && at_once >= len {
                        gathered.push(chain.take(), HEADER as u32, len);
                        gather(round, gathered, at_once)?;
                        let data = flow.produce_several(connection.key, gathered, &shared.options, &shared.failures);
                        shared.settle(&connection, flow, RX);
                        give_back(round, gathered, data)?;
                        continue;
                    }
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

/// How much data a packet in this buffer may carry.
fn payload(chain: &Chain<'_, '_>) -> u32 {
    chain.writable_len().saturating_sub(HEADER as u32).min(MAX_PACKET)
}

/// Puts more buffers together, for so many bytes, as far as there are any.
fn gather(round: &mut Round<'_>, gathered: &mut Gathered, bytes: u32) -> Result<(), Fault> {
    // With more room than that, what comes is known to be all that there is.
    while gathered.bytes() <= bytes && !gathered.is_full() {
        let Some(chain) = round.next()? else { break };
        let len = payload(&chain);
        if !chain.readable().is_empty() || len == 0 {
            // For another time, if it is one.
            break;
        }
        gathered.push(chain.take(), HEADER as u32, len);
    }
    Ok(())
}

/// Gives the guest the buffers that `data` bytes are in now, behind headers. The others stay its.
fn give_back(round: &mut Round<'_>, gathered: &mut Gathered, data: Result<u32, ChainError>) -> Result<(), Fault> {
    let mut parts = gathered.drain();
    let mut left = match data {
        Ok(data) => data,
        Err(_) => {
            // One of them is gone. So that it goes on, it is the first that suffers.
            parts.by_ref().take(1).for_each(|part| part.chain.refuse());
            0
        }
    };
    while left != 0
        && let Some(part) = parts.next()
    {
        let len = left.min(part.len);
        left -= len;
        round.put(part.chain, HEADER as u32 + len)?;
    }
    drop(parts);
    Ok(round.publish()?)
}

impl QueueHandler for Receive {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        self.shared.poll(&mut self.told);
        self.shared.expire();
        let was_full = !self.shared.accept();
        self.packets(round)?;
        if was_full {
            // A connection that has ended makes room for another.
            self.shared.accept();
        }
        self.shared
            .host
            .waits(self.shared.is_full(), &mut |wait| round.wait(wait));
        if let Some(deadline) = self.shared.deadline() {
            round.wait(Wait::Until(deadline));
        }
        Ok(())
    }
}
