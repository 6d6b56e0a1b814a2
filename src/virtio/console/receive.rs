//! The `receiveq` of a port: input of the guest (virtio 1.2, section 5.3.6).

use std::{io, sync::Arc};

use super::{
    Interest, Peer,
    shared::{Shared, View},
};
use crate::virtio::{
    ChainError, Fault, QueueHandler, Round,
    burst::Burst,
    queue::{Chain, SeveralRoom, Slices},
};

/// Serves the `receiveq` of a port. What the peer has is read into as many buffers as it takes, at once.
pub(super) struct Receive {
    shared: Arc<Shared>,
    port: u16,
    room: Slices,
    several: SeveralRoom,
    burst: Burst,
    /// A look has found nothing: the next asks with one buffer. Most of those are for the guest's kicks.
    careful: bool,
}

/// What a read has come to, and of how much room it was.
type Read = (Result<io::Result<usize>, ChainError>, u32);

impl Receive {
    pub fn new(shared: Arc<Shared>, port: u16) -> Self {
        Self {
            shared,
            port,
            room: Slices::default(),
            several: SeveralRoom::default(),
            burst: Burst::default(),
            careful: false,
        }
    }

    /// Reads into one buffer.
    fn read_one(&mut self, chain: Chain<'_, '_>, peer: &dyn Peer) -> Result<Read, Fault> {
        let limit = chain.writable_len();
        let read = chain.writer().with_slices(&mut self.room, |slices| peer.read(slices));
        match &read {
            Ok(Ok(len)) if *len != 0 => chain.complete(length(*len, limit))?,
            Ok(_) => {}
            Err(_) => chain.refuse()?,
        }
        Ok((read, limit))
    }

    /// Reads into `chain` and others, which are in the guest's hands again afterwards.
    fn read_several(&mut self, chain: Chain<'_, '_>, peer: &dyn Peer) -> Result<Read, Fault> {
        let Self { several, burst, .. } = self;
        let first = chain.writable_len();
        let mut buffers = chain.with_others(several, 0, first);
        // With more room than that, what comes is known to be all that there is.
        while buffers.bytes() <= burst.expected() {
            let Some(chain) = buffers.next()? else { break };
            let len = chain.writable_len();
            if !chain.readable().is_empty() || len == 0 {
                // For another time.
                break;
            }
            buffers.push(0, len);
        }
        let limit = buffers.bytes().min(Burst::MOST);
        let read = buffers.fill(limit, |slices| peer.read(slices));
        let mut left = match &read {
            Ok(Ok(len)) => length(*len, limit),
            Ok(Err(_)) => 0,
            Err(_) => {
                // One of them is gone. So that it goes on, it is the first that suffers.
                buffers.refuse()?;
                0
            }
        };
        while left != 0
            && let Some(len) = buffers.first_len()
        {
            let len = left.min(len);
            left -= len;
            buffers.put(len)?;
        }
        Ok((read, limit))
    }
}

fn length(len: usize, limit: u32) -> u32 {
    limit.min(u32::try_from(len).unwrap_or(limit))
}

fn is_buffer(chain: &Chain<'_, '_>) -> bool {
    chain.readable().is_empty() && chain.writable_len() != 0
}

fn wait(round: &mut Round<'_>, peer: &dyn Peer, interest: Interest) -> Result<(), Fault> {
    if let Some(wait) = peer.wait(interest) {
        round.wait(wait);
    }
    // Whatever room is left stays where it is.
    let _ = round.next()?;
    Ok(())
}

impl QueueHandler for Receive {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let port = self.port;
        if port != 0 && !self.shared.is_multiport() {
            return Ok(());
        }
        let Some(View {
            peer,
            open,
            in_use: true,
            guest_open,
            ..
        }) = self.shared.observe(port)
        else {
            return Ok(());
        };
        if !open {
            return wait(round, &*peer, Interest::Open);
        }
        // A guest throws away what comes to a port that it has not opened.
        if !guest_open {
            return Ok(());
        }
        let mut any = false;
        while let Some(chain) = round.next()? {
            if !is_buffer(&chain) {
                chain.refuse()?;
                continue;
            }
            let several = !self.careful && self.burst.expected() >= chain.writable_len();
            let (read, limit) = match several {
                false => self.read_one(chain, &*peer)?,
                true => self.read_several(chain, &*peer)?,
            };
            round.publish()?;
            match read {
                Err(_) => {}
                Ok(Ok(len @ 1..)) => {
                    let len = length(len, limit);
                    let short = len < limit;
                    self.burst.has_read(len, short);
                    (self.careful, any) = (false, true);
                    // All that there was, most likely; if not, the wait is over at once.
                    if short && peer.wait(Interest::Read).is_some() {
                        return wait(round, &*peer, Interest::Read);
                    }
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.careful = !any;
                    self.burst.was_empty();
                    return wait(round, &*peer, Interest::Read);
                }
                Ok(ended) => {
                    if let Err(error) = ended {
                        self.shared.failures.record(error);
                    }
                    self.careful = true;
                    self.burst.was_empty();
                    self.shared.observe(port);
                    return wait(round, &*peer, Interest::Open);
                }
            }
        }
        Ok(())
    }
}
