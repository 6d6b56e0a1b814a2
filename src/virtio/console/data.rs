//! The data queues of a port (virtio 1.2, section 5.3.6).

use std::{io, sync::Arc};

use super::{
    Interest, Peer, Unheard,
    ports::{Flushed, Shared, View},
    registers::receive_queue,
};
use crate::virtio::{
    ChainError, Fault, QueueHandler, Round,
    queue::{Chain, Slices},
};

/// Bytes that the peer is given at a time.
const PIECE: u32 = 1 << 20;
/// How often it is given some in a round: who takes little is looked at again.
const PIECES: u32 = 256;

fn wait(round: &mut Round<'_>, peer: &dyn Peer, interest: Interest) {
    if let Some(wait) = peer.wait(interest) {
        round.wait(wait);
    }
}

/// Serves the `receiveq` of a port: input of the guest.
pub(super) struct Receive {
    shared: Arc<Shared>,
    port: u16,
    room: Slices,
}

impl Receive {
    pub fn new(shared: Arc<Shared>, port: u16) -> Self {
        let room = Slices::default();
        Self { shared, port, room }
    }
}

impl QueueHandler for Receive {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let Self { shared, port, room } = self;
        if *port != 0 && !shared.is_multiport() {
            return Ok(());
        }
        let Some(View {
            peer,
            open,
            in_use: true,
            guest_open,
            ..
        }) = shared.observe(*port)
        else {
            return Ok(());
        };
        if !open {
            wait(round, &*peer, Interest::Open);
            return Ok(());
        }
        // A guest throws away what comes to a port that it has not opened.
        if !guest_open {
            return Ok(());
        }
        while let Some(chain) = round.next()? {
            if !chain.readable().is_empty() || chain.writable_len() == 0 {
                chain.refuse()?;
                continue;
            }
            match chain.writer().with_slices(room, |slices| peer.read(slices)) {
                Err(_) => chain.refuse()?,
                Ok(Ok(len @ 1..)) => {
                    let len = u32::try_from(len).unwrap_or(u32::MAX);
                    let short = len < chain.writable_len();
                    chain.complete(len)?;
                    // All that there was, most likely; if not, the wait is over at once.
                    if short && let Some(wait) = peer.wait(Interest::Read) {
                        round.wait(wait);
                        // Whatever room is left stays where it is.
                        let _ = round.next()?;
                        return Ok(());
                    }
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(round, &*peer, Interest::Read);
                    return Ok(());
                }
                ended => {
                    if let Ok(Err(error)) = ended {
                        shared.failures.record(error);
                    }
                    shared.observe(*port);
                    wait(round, &*peer, Interest::Open);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Serves the `transmitq` of a port: output of the guest.
pub(super) struct Transmit {
    shared: Arc<Shared>,
    port: u16,
    /// Bytes of the first chain that the peer has.
    sent: u32,
    room: Slices,
    /// Output on its way to be kept.
    kept: Vec<u8>,
}

/// How far a chain has come.
enum Sent {
    All,
    /// The peer has no room.
    Blocked,
    /// The peer takes little at a time.
    Slow,
    /// The peer has failed.
    Failed,
}

impl Transmit {
    /// After a restore, goes on where it was.
    pub fn new(shared: Arc<Shared>, port: u16) -> Self {
        let sent = shared.slot(port).map_or(0, |slot| slot.sent);
        Self {
            shared,
            port,
            sent,
            room: Slices::default(),
            kept: Vec::new(),
        }
    }

    /// How far the first chain has come is part of what is saved.
    fn note(&mut self, sent: u32) {
        if self.sent != sent {
            self.sent = sent;
            if let Some(mut slot) = self.shared.slot(self.port) {
                slot.sent = sent;
            }
        }
    }

    /// Sends what is left of `chain`.
    fn send(&mut self, chain: &Chain<'_, '_>, peer: &dyn Peer, pieces: &mut u32) -> Result<Sent, ChainError> {
        let total = chain.readable_len();
        let mut sent = self.sent.min(total);
        let outcome = loop {
            if sent == total {
                break Sent::All;
            }
            let Some(left) = pieces.checked_sub(1) else {
                break Sent::Slow;
            };
            *pieces = left;
            let len = PIECE.min(total - sent);
            let piece = chain.reader().split_at(sent)?.1.split_at(len)?.0;
            match piece.with_slices(&mut self.room, |slices| peer.write(slices))? {
                Ok(0) => break Sent::Blocked,
                Ok(taken) => sent += len.min(u32::try_from(taken).unwrap_or(len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Sent::Blocked,
                Err(error) => {
                    self.shared.failures.record(error);
                    break Sent::Failed;
                }
            }
        };
        match outcome {
            Sent::All => {}
            _ => self.note(sent),
        }
        Ok(outcome)
    }

    /// Keeps what is left of `chain`, or the last of it.
    fn keep(&mut self, chain: &Chain<'_, '_>, bound: usize) -> Result<(), ChainError> {
        let (total, sent) = (chain.readable_len(), self.sent.min(chain.readable_len()));
        let len = (total - sent).min(u32::try_from(bound).unwrap_or(u32::MAX));
        self.kept.resize(len as usize, 0);
        chain.reader().split_at(total - len)?.1.read(&mut self.kept)?;
        self.shared.keep(self.port, &self.kept, bound);
        Ok(())
    }

    /// Takes all output, by `take`.
    fn take_all(
        &mut self,
        round: &mut Round<'_>,
        take: impl Fn(&mut Self, &Chain<'_, '_>) -> Result<(), ChainError>,
    ) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            match chain.writable().is_empty() && take(self, &chain).is_ok() {
                true => chain.complete(0)?,
                false => chain.refuse()?,
            }
            self.note(0);
        }
        Ok(())
    }
}

impl QueueHandler for Transmit {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        if self.port != 0 && !self.shared.is_multiport() {
            return Ok(());
        }
        let Some(View {
            peer,
            open,
            in_use: true,
            unheard,
            ..
        }) = self.shared.observe(self.port)
        else {
            // Of a port that is not there, or not there any more, output is for nobody.
            return self.take_all(round, |_, _| Ok(()));
        };
        if !open {
            if let Unheard::Keep(bound) = unheard {
                self.take_all(round, |handler, chain| handler.keep(chain, bound))?;
            }
            wait(round, &*peer, Interest::Open);
            return Ok(());
        }
        match self.shared.flush(self.port) {
            Flushed::All => {}
            Flushed::Blocked => {
                wait(round, &*peer, Interest::Write);
                return Ok(());
            }
            Flushed::Failed => {
                // Is it still there? If not, this queue is looked at again.
                if !self.shared.observe(self.port).is_some_and(|view| view.open) {
                    wait(round, &*peer, Interest::Open);
                    return Ok(());
                }
                // It stays, and does not take this.
                self.shared.forget_backlog(self.port);
            }
        }
        let mut pieces = PIECES;
        while let Some(chain) = round.next()? {
            if !chain.writable().is_empty() {
                chain.refuse()?;
                self.note(0);
                continue;
            }
            match self.send(&chain, &*peer, &mut pieces) {
                Err(_) => chain.refuse()?,
                Ok(Sent::All) => chain.complete(0)?,
                Ok(Sent::Blocked) => {
                    wait(round, &*peer, Interest::Write);
                    return Ok(());
                }
                Ok(Sent::Slow) => {
                    self.shared.look(receive_queue(self.port) + 1);
                    return Ok(());
                }
                Ok(Sent::Failed) => {
                    if !self.shared.observe(self.port).is_some_and(|view| view.open) {
                        wait(round, &*peer, Interest::Open);
                        return Ok(());
                    }
                    // It stays, and does not take this.
                    chain.complete(0)?;
                }
            }
            self.note(0);
        }
        Ok(())
    }
}

impl Drop for Transmit {
    /// A queue that is enabled again begins as new.
    fn drop(&mut self) {
        self.note(0);
    }
}
