//! What is to become of a received frame (virtio 1.2, section 5.1.6.4).

use std::sync::atomic::Ordering::SeqCst;

use super::{
    Header, MIN_FRAME,
    hash::Packet,
    registers::{
        feature,
        header::{DATA_VALID, LEN, LEN_WITH_HASH},
    },
    settings::Settings,
    shared::{Seen, Shared},
};

/// What is to become of a received frame.
#[derive(Clone, Copy)]
pub(super) enum Verdict {
    /// It is for this queue, with this header.
    Here(Header, Option<Hash>),
    /// It is for another one.
    To(usize),
    /// Its checksum is to be completed before.
    Checksum,
    Filtered,
    Dropped,
}

/// The value of a hash, and of which type it is.
pub(super) type Hash = (u32, u32);

/// Whether a frame of `len` bytes is for this queue, whatever it begins with, and there is nothing to say of it.
#[inline]
pub(super) fn is_plain(seen: &Seen, header: &Header, len: usize) -> bool {
    seen.open && header.is_plain() && (MIN_FRAME..=seen.plain).contains(&len)
}

/// What is to become of a frame of `len` bytes that begins with `start`.
#[inline]
pub(super) fn judge(shared: &Shared, seen: &Seen, pair: usize, header: &Header, start: &[u8], len: usize) -> Verdict {
    if !seen.open && !seen.settings.filter.lets_through(start, seen.own_mac, seen.in_force) {
        return Verdict::Filtered;
    }
    // As nearly all are.
    if header.is_plain() && (MIN_FRAME..=seen.plain).contains(&len) {
        return Verdict::Here(Header::default(), None);
    }
    judge_further(shared, seen, pair, header, start, len)
}

#[inline(never)]
fn judge_further(shared: &Shared, seen: &Seen, pair: usize, header: &Header, start: &[u8], len: usize) -> Verdict {
    match steer(shared, seen, pair, start) {
        Some(to) if to == pair => judge_here(seen, header, start, len),
        Some(to) => Verdict::To(to),
        None => Verdict::Dropped,
    }
}

/// As [`judge`], of a frame that is for this queue.
pub(super) fn judge_here(seen: &Seen, header: &Header, start: &[u8], len: usize) -> Verdict {
    if !seen.settings.link_up || len < MIN_FRAME {
        return Verdict::Dropped;
    }
    if let Some(mtu) = seen.mtu
        && !header.is_large()
    {
        let tag = if start.get(12..14) == Some(&[0x81, 0x00]) { 4 } else { 0 };
        if len > mtu + MIN_FRAME + tag {
            return Verdict::Dropped;
        }
    }
    if header.needs_checksum() && !seen.guest.checksum && !header.is_large() {
        return Verdict::Checksum;
    }
    let Ok(mut checked) = header.checked(len, seen.guest) else {
        return Verdict::Dropped;
    };
    if seen.guest.checksum {
        checked.flags |= header.flags & DATA_VALID;
    }
    let hash = match seen.settings.hash.is_some() {
        true => report(&seen.settings, Packet::parse(start).as_ref()),
        false => None,
    };
    Verdict::Here(checked, hash)
}

pub(super) fn report(settings: &Settings, packet: Option<&Packet<'_>>) -> Option<Hash> {
    let hashing = settings
        .hash
        .as_deref()
        .filter(|_| settings.has(feature::HASH_REPORT))?;
    packet?.hash(hashing.types, &hashing.toeplitz)
}

/// For which queue pair a frame is (sections 5.1.6.5.6 and 5.1.6.5.7); `None` if for one that is not there.
fn steer(shared: &Shared, seen: &Seen, pair: usize, start: &[u8]) -> Option<usize> {
    if let Some(hashing) = seen.settings.hash.as_deref()
        && let Some(steering) = &hashing.steering
    {
        let packet = Packet::parse(start);
        let to = match packet.and_then(|packet| packet.hash(hashing.types, &hashing.toeplitz)) {
            Some((hash, _)) => steering.table[hash as usize & (steering.table.len() - 1)],
            None => steering.unclassified,
        };
        let there = shared.pairs.get(usize::from(to))?.receives.load(SeqCst);
        return there.then_some(to.into());
    }
    if !seen.steers {
        return Some(pair);
    }
    let flow = Packet::parse(start).and_then(|packet| shared.flow(&packet));
    let to = flow.map_or(pair, usize::from);
    let there = to < seen.active && shared.pairs[to].receives.load(SeqCst);
    Some(if there { to } else { pair })
}

#[inline]
pub(super) fn header_bytes(header: Header, hash: Option<Hash>, buffers: u16) -> [u8; LEN_WITH_HASH] {
    let header = Header {
        num_buffers: buffers,
        ..header
    };
    let mut bytes = [0; LEN_WITH_HASH];
    bytes[..LEN].copy_from_slice(&header.to_bytes());
    if let Some((value, kind)) = hash {
        bytes[12..16].copy_from_slice(&value.to_le_bytes());
        // The type `1 << n` is reported as `n + 1` (section 5.1.6.4.4).
        bytes[16..18].copy_from_slice(&(kind.trailing_zeros() as u16 + 1).to_le_bytes());
    }
    bytes
}
