//! A transmit queue (virtio 1.2, section 5.1.6.2).

use std::{fmt, io, mem, sync::Arc, sync::atomic::Ordering::Relaxed};

use vm_memory::VolatileSlice;

use super::{
    Header, Port, Progress,
    backlog::frame_buffer,
    checksum,
    coalesce::Coalescer,
    hash::LOOK,
    header::{HEADROOM, MAX_FRAME, MIN_FRAME},
    port::copy_from,
    registers::header::{self as bits, LEN},
    shared::{Seen, Shared},
};
use crate::virtio::{
    Fault, QueueHandler, QueueIndex, Round, Wait,
    queue::{Ahead, AheadRoom, Chain, ChainError, QueueError, Slices},
};

/// Serves `transmitqN`.
pub(super) struct Transmitter {
    shared: Arc<Shared>,
    pair: u16,
    seen: Seen,
    room: Slices,
    ahead: AheadRoom,
    /// For packets that are copied before they are sent.
    scratch: Box<[u8]>,
    coalescer: Coalescer,
}

/// What became of a frame.
enum Sent {
    /// It is on its way, or lost.
    Gone,
    Later(Option<Wait>),
    /// The driver must not have it sent.
    Refused,
}

/// Where packets go that are copied out of guest memory first.
pub(super) trait Sink {
    /// Room for so many bytes at least. Most often the frame in it is [sent](Self::send) next.
    /// Its address is `like` that of what is copied there, as far as cache lines are concerned, if that is cheap to have: copies are
    /// faster so.
    fn room(&mut self, len: usize, like: u64) -> &mut [u8];

    /// Sends the frame of `len` bytes that is in the room, behind [`HEADROOM`] bytes for anything. It begins with `ends`.
    fn send(&mut self, header: &Header, len: usize, ends: &Ends) -> io::Result<Progress<()>>;
}

/// Destination and source address of a frame.
pub(super) type Ends = [u8; 12];

/// Those of a packet that has room for a header in front.
pub(super) fn ends(packet: &[u8]) -> Ends {
    packet[HEADROOM..].first_chunk().copied().unwrap_or_default()
}

/// [`Port::send`].
type Send<'a> = dyn FnMut(&Header, &[VolatileSlice<'_>]) -> io::Result<Progress<()>> + 'a;

/// What a transmit queue has to send, for a [`Port`].
pub struct Outgoing<'a, 'q> {
    by: &'a mut Transmitter,
    round: &'a mut Round<'q>,
    /// How many chains were used.
    used: u32,
    broken: Result<(), QueueError>,
}

impl<'q> Outgoing<'_, 'q> {
    /// Sends one frame after the other by `send`, which is [`Port::send`], until there is none or one has to wait.
    pub fn each(&mut self, send: &mut Send<'_>) {
        self.run(|by, chain| by.send_in_place(chain, send));
    }

    /// As [`each`](Self::each), of packets that are copied where `sink` has room. Where the guest is to complete a checksum that the
    /// port does not take, that is done on the way.
    pub(super) fn each_copied(&mut self, sink: &mut impl Sink) {
        let mut room = mem::take(&mut self.by.ahead);
        self.broken = self.run_ahead(&mut room, sink);
        self.by.ahead = room;
    }

    fn run_ahead(&mut self, room: &mut AheadRoom, sink: &mut impl Sink) -> Result<(), QueueError> {
        let Self { by, round, used, .. } = self;
        loop {
            let mut ahead = round.ahead(room, false);
            while let Some(len) = ahead.next_len() {
                match by.send_next(&ahead, len, sink) {
                    Sent::Gone => ahead.put(0)?,
                    Sent::Refused => ahead.refuse()?,
                    Sent::Later(wait) => {
                        ahead.leave();
                        wait.into_iter().for_each(|wait| round.wait(wait));
                        return Ok(());
                    }
                }
                *used += 1;
            }
            // One that is something else.
            if !by.one(round, &mut |by, chain| by.send_copied(chain, sink))? {
                return Ok(());
            }
            *used += 1;
        }
    }

    /// As [`each_copied`](Self::each_copied) of packets that are short, and as [`each`](Self::each) of others.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for TAP interfaces"))]
    pub(super) fn each_copied_up_to(&mut self, limit: u32, sink: &mut impl Sink, send: &mut Send<'_>) {
        self.run(|by, chain| match chain.readable_len() <= limit {
            true => by.send_copied(chain, sink),
            false => by.send_in_place(chain, send),
        });
    }

    /// Room for any packet, to be [put back](Self::put_scratch).
    pub(super) fn take_scratch(&mut self) -> Box<[u8]> {
        let scratch = mem::take(&mut self.by.scratch);
        if scratch.is_empty() { frame_buffer() } else { scratch }
    }

    pub(super) fn put_scratch(&mut self, scratch: Box<[u8]>) {
        self.by.scratch = scratch;
    }

    #[inline(always)]
    fn run(&mut self, mut send: impl FnMut(&mut Transmitter, &Chain<'_, 'q>) -> Result<Sent, ChainError>) {
        let Self { by, round, used, .. } = self;
        self.broken = (|| {
            while by.one(round, &mut send)? {
                *used += 1;
            }
            Ok(())
        })();
    }
}

impl fmt::Debug for Outgoing<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("round", &self.round)
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

impl Transmitter {
    pub fn new(shared: Arc<Shared>, pair: u16) -> Self {
        Self {
            seen: Seen::new(&shared),
            shared,
            pair,
            room: Slices::default(),
            ahead: AheadRoom::default(),
            scratch: Box::default(),
            coalescer: Coalescer::default(),
        }
    }

    /// The length of the frame in a chain with so many readable bytes, if it can be one.
    #[inline]
    fn frame_len(&self, readable: u32) -> Option<usize> {
        let len = (readable as usize).checked_sub(self.seen.header_len)?;
        (MIN_FRAME..=MAX_FRAME).contains(&len).then_some(len)
    }

    /// A frame that may be sent goes nowhere.
    #[inline]
    fn is_down(&self) -> bool {
        let down = !self.seen.settings.link_up;
        if down {
            self.shared.counters.link_down.fetch_add(1, Relaxed);
        }
        down
    }

    /// Sends the next frame by `send`. Whether there was one, and its chain was used.
    #[inline(always)]
    fn one<'q>(
        &mut self,
        round: &mut Round<'q>,
        send: &mut impl FnMut(&mut Self, &Chain<'_, 'q>) -> Result<Sent, ChainError>,
    ) -> Result<bool, QueueError> {
        let Some(chain) = round.next()? else { return Ok(false) };
        match send(self, &chain) {
            // Nothing is written into a chain of this queue.
            Ok(Sent::Gone) => chain.put(0)?,
            Ok(Sent::Refused) | Err(_) => chain.refuse()?,
            Ok(Sent::Later(wait)) => {
                // The frame stays where it is.
                wait.into_iter().for_each(|wait| round.wait(wait));
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send_in_place(&mut self, chain: &Chain<'_, '_>, send: &mut Send<'_>) -> Result<Sent, ChainError> {
        let Some(len) = self.frame_len(chain.readable_len()) else {
            return Ok(Sent::Refused);
        };
        let mut bytes = [0; LEN];
        let (mut head, frame) = chain.reader().split_at(self.seen.header_len as u32)?;
        // Once: the driver can change it.
        head.read(&mut bytes)?;
        let Ok(mut header) = Header::from_bytes(&bytes).checked(len, self.seen.host) else {
            return Ok(Sent::Refused);
        };
        if self.is_down() {
            return Ok(Sent::Gone);
        }
        let Self {
            shared,
            pair,
            seen,
            room,
            scratch,
            ..
        } = self;
        let completes = header.needs_checksum() && !shared.port_offloads.send.checksum;
        let sent = frame.with_slices(room, |frame| {
            if seen.steers {
                let mut start = [0; LOOK];
                let len = copy_from(frame, &mut start);
                shared.note_flow(&start[..len], *pair);
            }
            if !completes {
                return send(&header, frame);
            }
            if scratch.is_empty() {
                *scratch = frame_buffer();
            }
            let len = copy_from(frame, scratch);
            checksum::complete(&mut header, &mut scratch[..len]);
            send(&header, &[VolatileSlice::from(&mut scratch[..len])])
        })?;
        Ok(self.came_to(sent))
    }

    #[inline]
    fn send_copied(&mut self, chain: &Chain<'_, '_>, sink: &mut impl Sink) -> Result<Sent, ChainError> {
        let Some(len) = self.frame_len(chain.readable_len()) else {
            return Ok(Sent::Refused);
        };
        let start = HEADROOM - self.seen.header_len;
        let like = chain.readable().first().map_or(0, |first| first.address);
        let packet = &mut sink.room(HEADROOM + len, like.wrapping_sub(start as u64))[..HEADROOM + len];
        match *chain.readable() {
            [mut whole] => chain.pin().read_from(&mut whole, &mut packet[start..])?,
            _ => chain.reader().read(&mut packet[start..])?,
        }
        let header = self.header_of(&mut packet[start..]);
        let ends = ends(packet);
        Ok(header.map_or_else(|sent| sent, |header| self.came_to(sink.send(&header, len, &ends))))
    }

    /// [`send_copied`](Self::send_copied), of the next chain, whose buffer has so many bytes.
    #[inline(always)]
    fn send_next(&self, ahead: &Ahead<'_, '_>, len: u32, sink: &mut impl Sink) -> Sent {
        let Some(len) = self.frame_len(len) else {
            return Sent::Refused;
        };
        let start = HEADROOM - self.seen.header_len;
        let like = ahead.address().wrapping_sub(start as u64);
        let packet = &mut sink.room(HEADROOM + len, like)[..HEADROOM + len];
        // What is decided by is not loaded from where it was just stored, nor is a header put together there: a load that no one store
        // has all of waits for all stores before it, those of the packet included.
        let [header, first] = ahead.read::<LEN>(&mut packet[start..]);
        if self.seen.header_len == LEN && self.is_plain(&header) {
            return self.came_to(sink.send(&Header::PLAIN, len, &first));
        }
        let header = self.header_of(&mut packet[start..]);
        let ends = ends(packet);
        header.map_or_else(|sent| sent, |header| self.came_to(sink.send(&header, len, &ends)))
    }

    /// The header of a packet that was copied, checked; or what becomes of it.
    #[inline(always)]
    fn header_of(&self, packet: &mut [u8]) -> Result<Header, Sent> {
        match self.is_plain(packet) {
            true => Ok(Header::PLAIN),
            false => self.look_at(packet),
        }
    }

    /// Whether a packet that was copied asks for nothing, as nearly all, and there is nothing else to do for it.
    #[inline(always)]
    fn is_plain(&self, packet: &[u8]) -> bool {
        matches!(packet, [0, bits::GSO_NONE, ..]) && self.seen.settings.link_up && !self.seen.steers
    }

    /// The same of any header; the checksum is completed if nobody else does.
    #[inline(never)]
    fn look_at(&self, packet: &mut [u8]) -> Result<Header, Sent> {
        let (head, frame) = packet.split_at_mut(self.seen.header_len);
        let header = head.first_chunk().map(Header::from_bytes).unwrap_or_default();
        let checked = header.checked(frame.len(), self.seen.host);
        let mut header = checked.map_err(|_| Sent::Refused)?;
        if self.is_down() {
            return Err(Sent::Gone);
        }
        if self.seen.steers {
            self.shared.note_flow(&frame[..frame.len().min(LOOK)], self.pair);
        }
        if header.needs_checksum() && !self.shared.port_offloads.send.checksum {
            checksum::complete(&mut header, frame);
        }
        Ok(header)
    }

    #[inline]
    fn came_to(&self, sent: io::Result<Progress<()>>) -> Sent {
        match sent {
            Ok(Progress::Done(())) => Sent::Gone,
            Ok(Progress::Later(wait)) => Sent::Later(wait),
            Err(error) => {
                self.shared.failures.record(error);
                Sent::Gone
            }
        }
    }

    /// Goes on with what was sent in part. Whether there is none of it any more.
    fn flush(&self, round: &mut Round<'_>) -> bool {
        match self.port().flush() {
            Ok(Progress::Done(())) => true,
            Ok(Progress::Later(wait)) => {
                wait.into_iter().for_each(|wait| round.wait(wait));
                false
            }
            Err(error) => {
                self.shared.failures.record(error);
                true
            }
        }
    }

    fn port(&self) -> &dyn Port {
        &*self.shared.pairs[usize::from(self.pair)].port
    }

    fn send_all(&mut self, round: &mut Round<'_>) -> Result<u32, QueueError> {
        if !self.flush(round) {
            return Ok(0);
        }
        let shared = Arc::clone(&self.shared);
        let port = &*shared.pairs[usize::from(self.pair)].port;
        let mut frames = Outgoing {
            by: self,
            round,
            used: 0,
            broken: Ok(()),
        };
        port.send_all(&mut frames);
        let Outgoing { used, broken, .. } = frames;
        broken?;
        self.flush(round);
        Ok(used)
    }
}

impl QueueHandler for Transmitter {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let generation = self.shared.generation();
        self.seen.refresh(&self.shared, generation);
        let queue = QueueIndex(self.pair * 2 + 1);
        let coalescing = self.seen.coalescing(queue);
        // Ports may have something locked while they look for frames.
        round.hold_signals(true);
        let used = self.send_all(round)?;
        self.coalescer
            .end(coalescing, self.shared.clock.as_deref(), used, round);
        Ok(())
    }
}
