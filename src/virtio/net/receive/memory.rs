//! Frames that wait in memory of the host, and come into buffers of the guest.

use super::{Incoming, Receiver, is_buffer, start_of};
use crate::{
    sync::lock,
    virtio::{
        net::{
            Header, NetFrame,
            burst::Burst,
            checksum,
            hash::Packet,
            header::HEADROOM,
            registers::{feature, header::LEN},
            verdict::{Hash, Verdict, header_bytes, is_plain, judge, report},
        },
        queue::{Ahead, ChainError, QueueError},
    },
};

/// What the guest is told of a frame.
struct Told {
    header: Header,
    hash: Option<Hash>,
    /// Its checksum is to be completed before.
    completes: bool,
}

impl Told {
    /// Nothing else is to be done for it than to say this.
    #[inline]
    fn is_all(&self, by: &Receiver) -> bool {
        !self.completes && self.hash.is_none() && by.seen.header_len == LEN
    }
}

/// So many short frames are delivered together.
const TOGETHER: usize = 16;

/// Bytes of a frame that is short: what it costs is to take a cache line or two from another core.
const SHORT: usize = 128;

impl Incoming<'_, '_> {
    /// Delivers the first frames of a burst, as far as they are short and there is nothing to say of them: first the bytes of all, and then
    /// what else becomes of their buffers. So the lines that they go to are taken from another core at the same time: with what is
    /// stored for each in between, few of them would be under way at a time. How many.
    #[inline]
    pub(in crate::virtio::net) fn deliver_short(&mut self, burst: &mut Burst) -> usize {
        if !self.goes_on() || self.by.seen.header_len != LEN || self.ahead.next_len().is_none() {
            return 0;
        }
        let Self { by, ahead, .. } = self;
        let num_buffers = 1;
        let start = Header {
            num_buffers,
            ..Header::PLAIN
        }
        .to_bytes();
        let (mut count, mut lens) = (0, [0; TOGETHER]);
        while let (Some(kept), Some((header, frame))) = (lens.get_mut(count), burst.frame(count)) {
            let len = LEN + frame.len();
            let fits = ahead.len_after(count).is_some_and(|room| room as usize >= len);
            if !fits || frame.len() > SHORT || !is_plain(&by.seen, &header, frame.len()) {
                break;
            }
            ahead.write_start(count, &start);
            ahead.write(count, LEN as u32, frame);
            *kept = len as u32;
            count += 1;
        }
        for &len in &lens[..count] {
            burst.pop();
            if let Err(error) = self.ahead.put(len) {
                self.broken = Err(error);
                break;
            }
            self.got += 1;
        }
        count
    }

    /// Delivers a frame that waits in memory, behind [`HEADROOM`] bytes for its header. `false`: there is no room for it now.
    #[inline]
    pub(in crate::virtio::net) fn deliver(&mut self, header: Header, packet: &mut [u8]) -> bool {
        let taken = self.try_deliver(header, packet);
        taken.unwrap_or_else(|error| {
            self.broken = Err(error);
            false
        })
    }

    #[inline]
    fn try_deliver(&mut self, header: Header, packet: &mut [u8]) -> Result<bool, QueueError> {
        if !self.goes_on() {
            return Ok(false);
        }
        let frame = &packet[HEADROOM..];
        let by = &*self.by;
        // As nearly all are: what they come to is not put together in memory, to be read again.
        let plain = by.seen.header_len == LEN && is_plain(&by.seen, &header, frame.len());
        if plain && self.put_ahead(Header::PLAIN, frame)? {
            self.got += 1;
            return Ok(true);
        }
        let by = &*self.by;
        let told = match judge(&by.shared, &by.seen, by.pair, &header, start_of(frame), frame.len()) {
            Verdict::Here(header, hash) => Told {
                header,
                hash,
                completes: false,
            },
            Verdict::Checksum => Told {
                header: Header::default(),
                hash: report(&by.seen.settings, Packet::parse(start_of(frame)).as_ref()),
                completes: true,
            },
            other => {
                self.put_elsewhere(other, header, frame);
                return Ok(true);
            }
        };
        if plain || !told.is_all(by) || !self.put_ahead(told.header, frame)? {
            return self.deliver_further(header, told, packet);
        }
        self.got += 1;
        Ok(true)
    }

    /// What becomes of a frame that is not for this queue.
    #[cold]
    fn put_elsewhere(&mut self, verdict: Verdict, header: Header, frame: &[u8]) {
        let Self { by, others, .. } = self;
        match verdict {
            Verdict::To(other) => {
                let mut data = lock(&by.shared.pairs[other].backlog).room();
                data.clear();
                data.extend_from_slice(frame);
                by.keep(other, NetFrame { header, data });
            }
            lost => by.count(lost),
        }
        *others += 1;
    }

    /// Puts a frame into the buffers that come next, if they are of the kind that nearly all are. Whether they are.
    #[inline(always)]
    fn put_ahead(&mut self, header: Header, frame: &[u8]) -> Result<bool, QueueError> {
        let Self { by, ahead, .. } = self;
        let needed = LEN + frame.len();
        let Some(room) = ahead.next_len() else {
            return Ok(false);
        };
        if room as usize >= needed {
            put_next(ahead, header, 1, frame)?;
            return Ok(true);
        }
        let several = by.seen.settings.has(feature::MRG_RXBUF);
        match several.then(|| ahead.gather(needed, LEN)).flatten() {
            Some(buffers) => spread(ahead, header, buffers, frame).map(|()| true),
            None => Ok(false),
        }
    }

    /// One buffer after the other, whatever it is like.
    #[inline(never)]
    fn deliver_further(&mut self, mut header: Header, told: Told, packet: &mut [u8]) -> Result<bool, QueueError> {
        let Self {
            by, ahead, got, others, ..
        } = self;
        let round = ahead.round();
        let header_len = by.seen.header_len;
        let needed = header_len + packet.len() - HEADROOM;
        while let Some(chain) = round.next()? {
            let room = chain.writable_len() as usize;
            if !is_buffer(&chain, header_len) {
                chain.refuse()?;
                continue;
            }
            if room < needed && !by.seen.settings.has(feature::MRG_RXBUF) {
                by.count(Verdict::Dropped);
                *others += 1;
                return Ok(true);
            }
            if told.completes {
                // Not before there is room: once.
                checksum::complete(&mut header, &mut packet[HEADROOM..]);
            }
            if room < needed {
                by.held.push(chain.take());
                by.merge(round, header, told.header, told.hash, packet)?;
                *got += 1;
                return Ok(true);
            }
            let start = HEADROOM - header_len;
            let bytes = header_bytes(told.header, told.hash, 1);
            packet[start..HEADROOM].copy_from_slice(&bytes[..header_len]);
            let written = match *chain.writable() {
                [mut whole] => chain
                    .pin()
                    .write_to(&mut whole, &packet[start..])
                    .map_err(ChainError::from),
                _ => chain.writer().write(&packet[start..]),
            };
            match written {
                Ok(()) => chain.put(needed as u32)?,
                // Memory that is taken away takes the frame with it.
                Err(_) => chain.refuse()?,
            }
            *got += 1;
            return Ok(true);
        }
        Ok(false)
    }
}

/// Puts what a packet begins with into the next buffer.
#[inline(always)]
fn put_next(ahead: &mut Ahead<'_, '_>, header: Header, num_buffers: u16, frame: &[u8]) -> Result<(), QueueError> {
    // One after the other, and not put together before: what was just stored and is loaded with more than that waits until all stores
    // before it are done, those to the guest included.
    ahead.write_start(0, &Header { num_buffers, ..header }.to_bytes());
    ahead.write(0, LEN as u32, frame);
    ahead.put((LEN + frame.len()) as u32)
}

/// Spreads a frame over so many buffers, which have room for it (section 5.1.6.4.1). The driver sees all of them together.
fn spread(ahead: &mut Ahead<'_, '_>, header: Header, buffers: u16, frame: &[u8]) -> Result<(), QueueError> {
    let here = |ahead: &mut Ahead<'_, '_>, taken: usize| (ahead.next_len().unwrap_or(0) as usize).saturating_sub(taken);
    let (first, mut rest) = frame.split_at(here(ahead, LEN).min(frame.len()));
    put_next(ahead, header, buffers, first)?;
    for _ in 1..buffers {
        let (piece, after) = rest.split_at(here(ahead, 0).min(rest.len()));
        ahead.write(0, 0, piece);
        ahead.put(piece.len() as u32)?;
        rest = after;
    }
    Ok(())
}
