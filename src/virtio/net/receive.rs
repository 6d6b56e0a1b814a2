//! A receive queue (virtio 1.2, sections 5.1.6.3 and 5.1.6.4).

mod incoming;

use std::{
    io, mem,
    sync::{
        Arc, OnceLock,
        atomic::Ordering::{Relaxed, SeqCst},
    },
};

use vm_memory::{VolatileMemory, VolatileSlice};

use super::{
    Header, Port, Progress, Received,
    backlog::{NetFrame, frame_buffer},
    checksum,
    coalesce::Coalescer,
    filter,
    hash::{LOOK, Packet},
    header::{HEADROOM, MAX_FRAME, MIN_FRAME},
    port::{copy_from, length},
    registers::{feature, header::LEN},
    shared::{Seen, Shared},
    verdict::{Hash, Verdict, header_bytes, judge, judge_here, report},
};
use crate::{
    sync::lock,
    virtio::{
        Fault, Handle, QueueHandler, QueueIndex, Round,
        queue::{Chain, ChainError, OwnedChain, QueueError, Slices},
    },
};

pub use incoming::Incoming;
use incoming::Receive;

/// As many frames that are not for this queue end a round, which nothing else does.
const OTHERS: u32 = 256;

/// Serves `receiveqN`.
pub(super) struct Receiver {
    shared: Arc<Shared>,
    pair: usize,
    handle: Arc<OnceLock<Handle>>,
    seen: Seen,
    room: Slices,
    /// What a frame has beyond the first buffer.
    overflow: Box<[u8]>,
    /// Buffers that were gathered for the frame that waits first, and are not enough.
    held: Vec<OwnedChain>,
    coalescer: Coalescer,
}

/// What was done with a received frame while its buffer was at hand.
enum Taken {
    /// It is in the buffer.
    InPlace(Header, Option<Hash>, usize),
    /// Its beginning fills the buffer, and the rest is beyond.
    Begun(Begun),
    /// It was copied, for this queue or another.
    Copied(usize, NetFrame),
    Lost(Verdict),
    Nothing(Option<crate::virtio::Wait>),
    Failed(std::io::Error),
}

/// A frame that is longer than the buffer that it was received into.
struct Begun {
    /// As it came.
    header: Header,
    /// As the guest is told.
    told: Header,
    hash: Option<Hash>,
    /// How much of it is in the buffer.
    here: usize,
    len: usize,
}

/// Whether a frame that waited was delivered.
enum Delivery {
    Done,
    /// There are not enough buffers.
    NoRoom,
}

impl Receiver {
    pub fn new(shared: Arc<Shared>, pair: usize, handle: Arc<OnceLock<Handle>>) -> Self {
        shared.set_receiving(pair, true);
        Self {
            seen: Seen::new(&shared),
            shared,
            pair,
            handle,
            room: Slices::default(),
            overflow: frame_buffer(),
            held: Vec::new(),
            coalescer: Coalescer::default(),
        }
    }

    /// How many frames the guest has got.
    fn receive(&mut self, port: &dyn Port, round: &mut Round<'_>) -> Result<u32, QueueError> {
        let (mut got, mut others) = (0, 0);
        loop {
            if self.pair >= self.seen.active {
                self.hand_over();
                return Ok(got);
            }
            if self.waits() {
                match self.deliver(round)? {
                    Delivery::Done => {
                        got += 1;
                        continue;
                    }
                    Delivery::NoRoom => return Ok(got),
                }
            }
            if !self.shared.pairs[self.pair].reads {
                return Ok(got);
            }
            let mut frames = Incoming {
                by: self,
                round,
                got,
                others,
                again: false,
                broken: Ok(()),
            };
            port.receive_all(&mut frames);
            let again = frames.again;
            (got, others) = (frames.got, frames.others);
            frames.broken?;
            if !again {
                return Ok(got);
            }
        }
    }

    /// Whether there is a frame in the backlog.
    #[inline]
    fn waits(&self) -> bool {
        self.shared.pairs[self.pair].waits.load(SeqCst)
    }

    /// Receives a frame into `chain` by `receive`, and decides what it is.
    fn take_frame(&mut self, chain: &Chain<'_, '_>, receive: &mut Receive<'_>) -> Result<Taken, ChainError> {
        let Self {
            shared,
            pair,
            seen,
            room,
            overflow,
            ..
        } = self;
        let (_, body) = chain.writer().split_at(seen.header_len as u32)?;
        body.with_slices(room, |room| match receive(room, overflow) {
            Ok(Progress::Done(received)) => came(shared, seen, *pair, received, room, overflow),
            Ok(Progress::Later(wait)) => Taken::Nothing(wait),
            Err(error) => Taken::Failed(error),
        })
    }

    /// The same of a frame that comes with its header in front, if `chain` is one piece of the host's memory: how long both are, if that is
    /// all there is to it; or else what it is is in `taken`.
    #[inline(always)]
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for TAP interfaces"))]
    fn take_packet(
        &mut self,
        chain: &Chain<'_, '_>,
        receive: &mut impl FnMut(&VolatileSlice<'_>, &mut [u8]) -> io::Result<Progress<usize>>,
        taken: &mut Option<Taken>,
    ) -> Option<u32> {
        let [mut whole] = *chain.writable() else { return None };
        if self.seen.header_len != LEN {
            return None;
        }
        let whole = chain.pin().lend_whole(&mut whole, |packet| {
            let received = receive(packet, &mut self.overflow);
            if let Ok(Progress::Done(len)) = received
                && len <= packet.len()
                && self.seen.open
                && self.is_plain(packet, len)
            {
                return Some(len as u32);
            }
            *taken = Some(self.came_with_header(packet, received));
            None
        });
        whole.flatten()
    }

    /// Whether there is nothing to decide about a packet, nor to do, but for what this does.
    #[inline]
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for TAP interfaces"))]
    fn is_plain(&self, packet: &VolatileSlice<'_>, len: usize) -> bool {
        let kind = packet.get_ref::<u16>(0).map(|kind| kind.load());
        let buffers = packet.get_ref(LEN - 2);
        let (Ok(0), Ok(buffers)) = (kind, buffers) else {
            return false;
        };
        let plain = (LEN + MIN_FRAME..=self.seen.plain.saturating_add(LEN)).contains(&len);
        if plain {
            // The host does not write it.
            buffers.store(1_u16.to_le());
        }
        plain
    }

    #[inline(never)]
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for TAP interfaces"))]
    fn came_with_header(&mut self, packet: &VolatileSlice<'_>, received: io::Result<Progress<usize>>) -> Taken {
        let len = match received {
            Ok(Progress::Done(len)) => len,
            Ok(Progress::Later(wait)) => return Taken::Nothing(wait),
            Err(error) => return Taken::Failed(error),
        };
        let mut header = [0; LEN];
        packet.copy_to(&mut header[..]);
        let (Ok(body), Some(len)) = (packet.offset(LEN), len.checked_sub(LEN)) else {
            return Taken::Lost(Verdict::Dropped);
        };
        let header = Header::from_bytes(&header);
        let received = Received { header, len };
        came(&self.shared, &self.seen, self.pair, received, &[body], &self.overflow)
    }

    /// Delivers the frame that waits first.
    fn deliver(&mut self, round: &mut Round<'_>) -> Result<Delivery, QueueError> {
        let Some(mut frame) = self.pop() else {
            return Ok(Delivery::Done);
        };
        let header_len = self.seen.header_len;
        let mergeable = self.seen.settings.has(feature::MRG_RXBUF);
        // What was negotiated or set may have changed while it waited.
        let start = &frame.data[..frame.data.len().min(LOOK)];
        let verdict = judge_here(&self.seen, &frame.header, start, frame.data.len());
        let (header, hash) = match verdict {
            Verdict::Here(header, hash) => (header, hash),
            Verdict::Checksum => {
                checksum::complete(&mut frame.header, &mut frame.data);
                (
                    Header::default(),
                    report(&self.seen.settings, Packet::parse(start_of(&frame.data)).as_ref()),
                )
            }
            lost => {
                self.count(lost);
                // They go back, and are found again first: the next frame may need fewer, or may be received elsewhere.
                self.held.clear();
                self.recycle(frame);
                return Ok(Delivery::Done);
            }
        };
        let needed = header_len + frame.data.len();
        let mut room: usize = self.held.iter().map(|chain| chain.writable_len() as usize).sum();
        while room < needed {
            let Some(chain) = round.next()? else {
                self.put_back(frame);
                return Ok(Delivery::NoRoom);
            };
            let len = chain.writable_len() as usize;
            if !is_buffer(&chain, header_len) {
                chain.refuse()?;
                continue;
            }
            if self.held.is_empty() && (len >= needed || !mergeable) {
                if len < needed {
                    self.count(Verdict::Dropped);
                } else {
                    let written = self.write_header(&chain, header, hash, 1).and_then(|header_len| {
                        let (_, mut body) = chain.writer().split_at(header_len)?;
                        body.write(&frame.data)
                    });
                    match written {
                        Ok(()) => chain.put(needed as u32)?,
                        Err(_) => chain.refuse()?,
                    }
                }
                self.recycle(frame);
                return Ok(Delivery::Done);
            }
            room += len;
            self.held.push(chain.take());
        }
        self.spread(round, 0, &frame.data, header, hash)?;
        self.recycle(frame);
        Ok(Delivery::Done)
    }

    /// A frame fills its first buffer, which is held, and the rest of it is beyond: gathers buffers for that, or has all of it wait.
    fn go_on(&mut self, round: &mut Round<'_>, begun: Begun) -> Result<(), QueueError> {
        let Begun {
            header,
            told,
            hash,
            here,
            len,
        } = begun;
        let header_len = self.seen.header_len;
        let mut room = header_len + here;
        while room < header_len + len {
            let Some(chain) = round.next()? else {
                let data = self.begun(here, len);
                self.put_back(NetFrame { header, data });
                self.shared.pairs[self.pair].waits.store(true, SeqCst);
                return Ok(());
            };
            if !is_buffer(&chain, header_len) {
                chain.refuse()?;
                continue;
            }
            room += chain.writable_len() as usize;
            self.held.push(chain.take());
        }
        let overflow = mem::take(&mut self.overflow);
        let spread = self.spread(round, here, &overflow[..len - here], told, hash);
        self.overflow = overflow;
        spread
    }

    /// A frame is longer than its first buffer, which is held: gathers others, or has it wait.
    fn merge(
        &mut self,
        round: &mut Round<'_>,
        header: Header,
        told: Header,
        hash: Option<Hash>,
        packet: &[u8],
    ) -> Result<(), QueueError> {
        let header_len = self.seen.header_len;
        let frame = &packet[HEADROOM..];
        let mut room: usize = self.held.iter().map(|chain| chain.writable_len() as usize).sum();
        while room < header_len + frame.len() {
            let Some(chain) = round.next()? else {
                let data = frame.to_vec();
                self.put_back(NetFrame { header, data });
                self.shared.pairs[self.pair].waits.store(true, SeqCst);
                return Ok(());
            };
            if !is_buffer(&chain, header_len) {
                chain.refuse()?;
                continue;
            }
            room += chain.writable_len() as usize;
            self.held.push(chain.take());
        }
        self.spread(round, 0, frame, told, hash)
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
    fn spread(
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

    fn write_header(
        &self,
        chain: &Chain<'_, '_>,
        header: Header,
        hash: Option<Hash>,
        buffers: u16,
    ) -> Result<u32, ChainError> {
        let len = self.seen.header_len;
        let bytes = header_bytes(header, hash, buffers);
        match *chain.writable() {
            [mut whole] => chain.pin().write_to(&mut whole, &bytes[..len])?,
            _ => chain.writer().write(&bytes[..len])?,
        }
        Ok(len as u32)
    }

    fn pop(&self) -> Option<NetFrame> {
        let pair = &self.shared.pairs[self.pair];
        let mut backlog = lock(&pair.backlog);
        let frame = backlog.pop();
        if frame.is_none() {
            pair.waits.store(false, SeqCst);
        }
        frame
    }

    fn put_back(&self, frame: NetFrame) {
        lock(&self.shared.pairs[self.pair].backlog).put_back(frame);
    }

    fn recycle(&self, frame: NetFrame) {
        lock(&self.shared.pairs[self.pair].backlog).recycle(frame.data);
    }

    /// Has a frame wait for a queue.
    fn keep(&self, pair: usize, frame: NetFrame) {
        let to = &self.shared.pairs[pair];
        if pair == self.pair {
            // The next of this round.
            lock(&to.backlog).put_back(frame);
            to.waits.store(true, SeqCst);
        } else if to.receives.load(SeqCst) && lock(&to.backlog).push(frame, self.shared.options.backlog) {
            if !to.waits.swap(true, SeqCst) {
                self.look(pair);
            }
        } else {
            self.count(Verdict::Dropped);
        }
    }

    /// This queue is not in use any more: what waits for it is for the first.
    fn hand_over(&mut self) {
        self.held.clear();
        while let Some(frame) = self.pop() {
            self.keep(0, frame);
        }
    }

    fn look(&self, pair: usize) {
        if let Some(handle) = self.handle.get() {
            handle.look(QueueIndex(pair as u16 * 2));
        }
    }

    fn count(&self, verdict: Verdict) {
        let counters = &self.shared.counters;
        let counter = match verdict {
            Verdict::Filtered => &counters.filtered,
            _ if !self.seen.settings.link_up => &counters.link_down,
            _ => &counters.dropped,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// What is to become of a frame that was received into `room`, and beyond it into `overflow`.
fn came(
    shared: &Shared,
    seen: &Seen,
    pair: usize,
    Received { header, len }: Received,
    room: &[VolatileSlice<'_>],
    overflow: &[u8],
) -> Taken {
    let here = length(room);
    // Neither is kept, for another queue or a state.
    if len > here + overflow.len() || !(MIN_FRAME..=MAX_FRAME).contains(&len) {
        return Taken::Lost(Verdict::Dropped);
    }
    // What is not looked at is not cleared.
    let (mut addresses, mut headers);
    let look = seen.look.min(len);
    let start = match look {
        0 => &[],
        1..=filter::LOOK => {
            addresses = [0; filter::LOOK];
            copy_start(room, overflow, &mut addresses[..look])
        }
        _ => {
            headers = [0; LOOK];
            copy_start(room, overflow, &mut headers[..look])
        }
    };
    let copied = |to: usize, change: &dyn Fn(&mut NetFrame)| {
        let mut data = lock(&shared.pairs[to].backlog).room();
        data.resize(len, 0);
        let from_room = copy_from(room, &mut data);
        data[from_room..].copy_from_slice(&overflow[..len - from_room]);
        let mut frame = NetFrame { header, data };
        change(&mut frame);
        Taken::Copied(to, frame)
    };
    match judge(shared, seen, pair, &header, start, len) {
        Verdict::Here(header, hash) if len <= here => Taken::InPlace(header, hash, len),
        // Spread over several buffers.
        Verdict::Here(told, hash) if seen.settings.has(feature::MRG_RXBUF) => Taken::Begun(Begun {
            header,
            told,
            hash,
            here,
            len,
        }),
        Verdict::Here(..) => Taken::Lost(Verdict::Dropped),
        Verdict::To(other) => copied(other, &|_| {}),
        Verdict::Checksum => copied(pair, &|frame| checksum::complete(&mut frame.header, &mut frame.data)),
        lost => Taken::Lost(lost),
    }
}

/// Whether a chain can be one of the buffers of a frame: all of it is for the device to write, and "each buffer MUST be at least the
/// size of the struct virtio_net_hdr" (section 5.1.6.3.1).
fn is_buffer(chain: &Chain<'_, '_>, header_len: usize) -> bool {
    chain.readable().is_empty() && chain.writable_len() as usize >= header_len
}

fn start_of(data: &[u8]) -> &[u8] {
    &data[..data.len().min(LOOK)]
}

/// The first bytes of a frame that was received, as many as `start` has room for.
fn copy_start<'a>(room: &[VolatileSlice<'_>], overflow: &[u8], start: &'a mut [u8]) -> &'a [u8] {
    let from_room = copy_from(room, start);
    let rest = start.len() - from_room;
    start[from_room..].copy_from_slice(&overflow[..rest]);
    start
}

impl QueueHandler for Receiver {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        let shared = Arc::clone(&self.shared);
        let entered = shared.enter(self.pair);
        self.seen.refresh(&shared, entered.generation);
        let coalescing = self.seen.coalescing(QueueIndex(self.pair as u16 * 2));
        // Ports may have something locked while they look for frames.
        round.hold_signals(true);
        let received = self.receive(&*shared.pairs[self.pair].port, round);
        // Before those who wait for this round believe that it is over.
        let published = round.publish();
        drop(entered);
        let got = received?;
        published?;
        self.coalescer.end(coalescing, shared.clock.as_deref(), got, round);
        Ok(())
    }

    /// The frame that they were for is in the backlog.
    fn pause(&mut self) {
        self.held.clear();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.set_receiving(self.pair, false);
    }
}
