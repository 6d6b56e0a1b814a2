//! What a port has received into a buffer of the guest, and what is to become of it.

use std::io;

use vm_memory::{VolatileMemory, VolatileSlice};

use super::Receiver;
use crate::{
    sync::lock,
    virtio::{
        net::{
            Header, NetFrame, Progress, Received, checksum, filter,
            hash::LOOK,
            header::{MAX_FRAME, MIN_FRAME},
            port::{copy_from, length},
            registers::{feature, header::LEN},
            shared::{Seen, Shared},
            verdict::{Hash, Verdict, header_bytes, judge},
        },
        queue::{Chain, ChainError},
    },
};

/// [`Port::receive`](crate::virtio::net::Port::receive).
pub(super) type Receive<'a> = dyn FnMut(&[VolatileSlice<'_>], &mut [u8]) -> io::Result<Progress<Received>> + 'a;

/// What was done with a received frame while its buffer was at hand.
pub(super) enum Taken {
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
pub(super) struct Begun {
    /// As it came.
    pub header: Header,
    /// As the guest is told.
    pub told: Header,
    pub hash: Option<Hash>,
    /// How much of it is in the buffer.
    pub here: usize,
    pub len: usize,
}

impl Receiver {
    /// Receives a frame into `chain` by `receive`, and decides what it is.
    pub(super) fn take_frame(&mut self, chain: &Chain<'_, '_>, receive: &mut Receive<'_>) -> Result<Taken, ChainError> {
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
    pub(super) fn take_packet(
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

    /// Puts the header in front of a frame that is in a buffer. How long it is.
    pub(super) fn write_header(
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

/// The first bytes of a frame that was received, as many as `start` has room for.
fn copy_start<'a>(room: &[VolatileSlice<'_>], overflow: &[u8], start: &'a mut [u8]) -> &'a [u8] {
    let from_room = copy_from(room, start);
    let rest = start.len() - from_room;
    start[from_room..].copy_from_slice(&overflow[..rest]);
    start
}
