//! The `transmitq` of a port: output of the guest (virtio 1.2, section 5.3.6).

use std::{io, mem, sync::Arc};

use vm_memory::VolatileSlice;

use super::{
    Interest, Peer, Unheard,
    registers::receive_queue,
    shared::{Shared, View},
    slot::Flushed,
};
use crate::virtio::{
    ChainError, Fault, QueueHandler, Round,
    queue::{Chain, Several, SeveralRoom, Slices},
};

/// Bytes that the peer is given at a time.
const PIECE: u32 = 1 << 20;
/// How often it is given some in a round: who takes little is looked at again.
const PIECES: u32 = 256;

/// Gives the peer `len` bytes. How many it has taken, or why none.
fn give(peer: &dyn Peer, slices: &[VolatileSlice<'_>], len: u32, pieces: &mut u32) -> Result<u32, Sent> {
    *pieces = pieces.checked_sub(1).ok_or(Sent::Slow)?;
    match peer.write(slices) {
        Ok(0) => Err(Sent::Blocked),
        Ok(taken) => Ok(len.min(u32::try_from(taken).unwrap_or(len))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Sent::Blocked),
        Err(error) => Err(Sent::Failed(error)),
    }
}

fn wait(round: &mut Round<'_>, peer: &dyn Peer, interest: Interest) {
    if let Some(wait) = peer.wait(interest) {
        round.wait(wait);
    }
}

/// Serves the `transmitq` of a port. The peer is given what several chains have, at once.
pub(super) struct Transmit {
    shared: Arc<Shared>,
    port: u16,
    /// Bytes of the first chain that the peer has.
    sent: u32,
    room: Slices,
    several: SeveralRoom,
    /// The peer did not take what it was given last, or there was only one chain: it gets one at first.
    careful: bool,
    /// Output on its way to be kept.
    kept: Vec<u8>,
}

/// How far output has come.
enum Sent {
    All,
    /// The peer has no room.
    Blocked,
    /// The peer takes little at a time.
    Slow,
    /// The peer has failed.
    Failed(io::Error),
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
            several: SeveralRoom::default(),
            careful: false,
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

    /// Puts chains together, as long as they are what they should be, and sends them. Of those of which something is left, it stays where
    /// it was. `None`: there are none.
    fn send_several(
        &mut self,
        round: &mut Round<'_>,
        peer: &dyn Peer,
        pieces: &mut u32,
        chains: &mut usize,
    ) -> Result<Option<Sent>, Fault> {
        let mut room = mem::take(&mut self.several);
        let mut output = round.several(&mut room);
        while output.bytes() < PIECE
            && let Some(chain) = output.next()?
        {
            let (len, is_output) = (chain.readable_len(), chain.writable().is_empty());
            let first = output.is_empty();
            if is_output {
                let sent = if first { self.sent.min(len) } else { 0 };
                output.push(sent, len - sent);
            } else if first {
                output.push(0, 0);
                output.refuse()?;
                self.note(0);
            } else {
                // After those that came before.
                break;
            }
        }
        *chains += output.len();
        let sent = match output.is_empty() {
            true => None,
            false => Some(self.give_several(&mut output, peer, pieces)?),
        };
        drop(output);
        self.several = room;
        round.publish()?;
        Ok(sent)
    }

    fn give_several(&mut self, output: &mut Several<'_, '_>, peer: &dyn Peer, pieces: &mut u32) -> Result<Sent, Fault> {
        let mut done = output.moved(0);
        let outcome = loop {
            for _ in 0..done {
                output.put(0)?;
            }
            // Before the peer is called again, which may panic.
            self.note(output.first_from());
            if output.is_empty() {
                break Sent::All;
            }
            let len = output.bytes().min(PIECE);
            done = match output.read(len, |slices| give(peer, slices, len, pieces)) {
                Ok(Ok(taken)) => output.moved(taken),
                Ok(Err(left)) => break left,
                Err(_) => {
                    // One of them is gone. So that it goes on, it is the first that suffers.
                    output.refuse()?;
                    output.moved(0)
                }
            };
        };
        Ok(outcome)
    }

    /// Sends what is left of `chain`.
    fn send(&mut self, chain: &Chain<'_, '_>, peer: &dyn Peer, pieces: &mut u32) -> Result<Sent, ChainError> {
        let total = chain.readable_len();
        let mut sent = self.sent.min(total);
        let outcome = loop {
            if sent == total {
                break Sent::All;
            }
            // As above.
            self.note(sent);
            let len = PIECE.min(total - sent);
            let piece = chain.reader().split_at(sent)?.1.split_at(len)?.0;
            match piece.with_slices(&mut self.room, |slices| give(peer, slices, len, pieces))? {
                Ok(taken) => sent += taken,
                Err(left) => break left,
            }
        };
        if let Sent::All = outcome {
            self.note(0);
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
            listens,
            in_use: true,
            unheard,
            ..
        }) = self.shared.observe(self.port)
        else {
            // Of a port that is not there, or not there any more, output is for nobody.
            return self.take_all(round, |_, _| Ok(()));
        };
        if !listens {
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
                if !self.shared.observe(self.port).is_some_and(|view| view.listens) {
                    wait(round, &*peer, Interest::Open);
                    return Ok(());
                }
                // It stays, and does not take this.
                self.shared.forget_backlog(self.port);
            }
        }
        let mut pieces = PIECES;
        let mut chains = 0;
        loop {
            let sent = if self.careful {
                let Some(chain) = round.next()? else { return Ok(()) };
                chains += 1;
                if !chain.writable().is_empty() {
                    chain.refuse()?;
                    self.note(0);
                    continue;
                }
                match self.send(&chain, &*peer, &mut pieces) {
                    Err(_) => {
                        chain.refuse()?;
                        self.note(0);
                        continue;
                    }
                    Ok(Sent::All) => {
                        chain.complete(0)?;
                        Sent::All
                    }
                    Ok(left) => left,
                }
            } else {
                let Some(sent) = self.send_several(round, &*peer, &mut pieces, &mut chains)? else {
                    self.careful = chains == 1;
                    return Ok(());
                };
                sent
            };
            let was_careful = mem::replace(&mut self.careful, !matches!(sent, Sent::All));
            match sent {
                Sent::All => continue,
                Sent::Blocked => wait(round, &*peer, Interest::Write),
                Sent::Slow => self.shared.look(receive_queue(self.port) + 1),
                Sent::Failed(error) => {
                    let stays = self.shared.observe(self.port).is_some_and(|view| view.listens);
                    if stays && !was_careful {
                        // Which of them it does not take is to be found out.
                        continue;
                    }
                    self.shared.failures.record(error);
                    if stays {
                        // It does not take this.
                        if let Some(chain) = round.next()? {
                            chain.complete(0)?;
                        }
                        self.note(0);
                        continue;
                    }
                    wait(round, &*peer, Interest::Open);
                }
            }
            // The rest stays where it is.
            let _ = round.next()?;
            return Ok(());
        }
    }
}

impl Drop for Transmit {
    /// A queue that is enabled again begins as new.
    fn drop(&mut self) {
        self.note(0);
    }
}
