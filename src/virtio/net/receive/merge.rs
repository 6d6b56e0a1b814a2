//! Frames that are longer than a buffer, over several of them that are gathered one after the other (VIRTIO_NET_F_MRG_RXBUF).

use std::{mem, sync::atomic::Ordering::SeqCst};

use super::{Receiver, is_buffer, taken::Begun};
use crate::{
    sync::lock,
    virtio::{
        Round,
        net::{
            Header, NetFrame,
            header::HEADROOM,
            port::copy_from,
            verdict::{Hash, header_bytes},
        },
        queue::QueueError,
    },
};

impl Receiver {
    /// A frame fills its first buffer, which is held, and the rest of it is beyond: gathers buffers for that, or has all of it wait.
    pub(super) fn go_on(&mut self, round: &mut Round<'_>, begun: Begun) -> Result<(), QueueError> {
        let Begun {
            header,
            told,
            hash,
            here,
            len,
        } = begun;
        let header_len = self.seen.header_len;
        if !self.gather(round, header_len + here, header_len + len)? {
            let data = self.begun(here, len);
            self.wait_for_room(NetFrame { header, data });
            return Ok(());
        }
        let overflow = mem::take(&mut self.overflow);
        let spread = self.spread(round, here, &overflow[..len - here], told, hash);
        self.overflow = overflow;
        spread
    }

    /// A frame is longer than its first buffer, which is held: gathers others, or has it wait.
    pub(super) fn merge(
        &mut self,
        round: &mut Round<'_>,
        header: Header,
        told: Header,
        hash: Option<Hash>,
        packet: &[u8],
    ) -> Result<(), QueueError> {
        let header_len = self.seen.header_len;
        let frame = &packet[HEADROOM..];
        let room = self.held.iter().map(|chain| chain.writable_len() as usize).sum();
        if !self.gather(round, room, header_len + frame.len())? {
            let data = frame.to_vec();
            self.wait_for_room(NetFrame { header, data });
            return Ok(());
        }
        self.spread(round, 0, frame, told, hash)
    }

    /// Holds buffers, `room` bytes of which are held, until there are `needed`. Whether there are.
    fn gather(&mut self, round: &mut Round<'_>, mut room: usize, needed: usize) -> Result<bool, QueueError> {
        while room < needed {
            let Some(chain) = round.next()? else {
                return Ok(false);
            };
            if !is_buffer(&chain, self.seen.header_len) {
                chain.refuse()?;
                continue;
            }
            room += chain.writable_len() as usize;
            self.held.push(chain.take());
        }
        Ok(true)
    }

    /// There are not enough buffers for a frame: it waits, whole.
    fn wait_for_room(&mut self, frame: NetFrame) {
        self.put_back(frame);
        self.shared.pairs[self.pair].waits.store(true, SeqCst);
    }

    /// All of a frame whose beginning is in the first buffer that is held.
    fn begun(&mut self, here: usize, len: usize) -> Vec<u8> {
        let mut data = lock(&self.shared.pairs[self.pair].backlog).room();
        data.resize(len, 0);
        if let Some(first) = self.held.first() {
            let body = first.writer().split_at(self.seen.header_len as u32);
            // Memory that is taken away takes the frame with it.
            let _ =
                body.and_then(|(_, body)| body.with_slices(&mut self.room, |room| copy_from(room, &mut data[..here])));
        }
        data[here..].copy_from_slice(&self.overflow[..len - here]);
        data
    }

    /// Spreads a frame over the buffers that are held, all but the last of which it fills (section 5.1.6.4.1). Its first `done` bytes
    /// are in place.
    pub(super) fn spread(
        &mut self,
        round: &mut Round<'_>,
        done: usize,
        mut data: &[u8],
        header: Header,
        hash: Option<Hash>,
    ) -> Result<(), QueueError> {
        let mut held = mem::take(&mut self.held);
        let buffers = held.len() as u16;
        for (number, chain) in held.drain(..).enumerate() {
            let mut room = chain.writer();
            let mut written = 0;
            if number == 0 {
                let bytes = header_bytes(header, hash, buffers);
                // Memory that is taken away takes the frame with it.
                let _ = room.write(&bytes[..self.seen.header_len]);
                written = self.seen.header_len + done;
            }
            let free = chain.writable_len() as usize - written;
            let (here, rest) = data.split_at(data.len().min(free));
            let _ = room.write(here);
            written += here.len();
            data = rest;
            round.put(chain, written as u32)?;
        }
        self.held = held;
        // All at once.
        round.publish()
    }
}
