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
        queue::{QueueError, Several, SeveralRoom, Slices},
    },
};

/// Serves `rx`, and is who asks the host side and keeps the time.
///
/// What a stream has is read into as many buffers as it takes, at once.
pub(super) struct Receive {
    shared: Arc<Shared>,
    room: Slices,
    several: SeveralRoom,
    told: Vec<(Token, Ready)>,
}

impl Receive {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            room: Slices::default(),
            several: SeveralRoom::default(),
            told: Vec::new(),
        }
    }

    fn packets(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let Self {
            shared, room, several, ..
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
                    let len = payload(chain.writable_len());
                    if len != 0 && at_once >= len {
                        let mut buffers = chain.with_others(several, HEADER as u32, len);
                        gather(&mut buffers, at_once)?;
                        let data =
                            flow.produce_several(connection.key, &mut buffers, &shared.options, &shared.failures);
                        shared.settle(&connection, flow, RX);
                        give_back(buffers, data)?;
                        round.publish()?;
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

/// How much data a packet in a buffer of so many bytes may carry.
fn payload(writable_len: u32) -> u32 {
    writable_len.saturating_sub(HEADER as u32).min(MAX_PACKET)
}

/// Puts more buffers together, for so many bytes, as far as there are any.
#[inline]
fn gather(buffers: &mut Several<'_, '_>, bytes: u32) -> Result<(), QueueError> {
    // With more room than that, what comes is known to be all that there is.
    while buffers.bytes() <= bytes {
        let Some(chain) = buffers.next()? else { break };
        let len = payload(chain.writable_len());
        if !chain.readable().is_empty() || len == 0 {
            // For another time, if it is one.
            break;
        }
        buffers.push(HEADER as u32, len);
    }
    Ok(())
}

/// Gives the guest the buffers that so many bytes are in now, behind headers. The others stay its.
#[inline]
fn give_back(mut buffers: Several<'_, '_>, data: Result<Option<u32>, ChainError>) -> Result<(), QueueError> {
    let mut left = match data {
        Ok(Some(data)) => data,
        Ok(None) => return Ok(()),
        // One of them is gone. So that it goes on, it is the first that suffers.
        Err(_) => return buffers.refuse(),
    };
    while let Some(len) = buffers.first_len() {
        let len = left.min(len);
        left -= len;
        buffers.put(HEADER as u32 + len)?;
        if left == 0 {
            break;
        }
    }
    Ok(())
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
