//! What was written and is not known to be stable: a server that dies may lose it.

use std::{collections::BTreeMap, io, ops::Range, sync::Arc, task::Waker};

/// Bytes that are kept in one piece, at most: a piece that is overwritten in part is copied.
pub const PIECE: usize = 64 * 1024;
/// What a piece costs besides its bytes.
const OVERHEAD: usize = 128;

/// Data of a piece, or zeros.
#[derive(Clone)]
pub enum Data {
    Bytes(Arc<[u8]>),
    Zeros { may_unmap: bool },
}

struct Entry {
    len: u64,
    number: u64,
    data: Data,
}

impl Entry {
    fn cost(&self) -> usize {
        OVERHEAD
            + match &self.data {
                Data::Bytes(bytes) => bytes.len(),
                Data::Zeros { .. } => 0,
            }
    }
}

/// What all connections to an export have to agree on.
#[derive(Default)]
pub struct Agreed {
    /// By offset; no two overlap.
    entries: BTreeMap<u64, Entry>,
    /// What they cost.
    cost: usize,
    /// What writes under way will cost.
    reserved: usize,
    /// Of the next that is written.
    number: u64,
    /// Nothing before this is volatile.
    stable: u64,
    /// What was written has to be written again before a new connection is used.
    pub to_repeat: bool,
    /// That is being done.
    pub repeating: bool,
    /// Somebody has not been let through.
    refused: bool,
    /// Commands under way that change data.
    modifying: usize,
    /// One of them is alone.
    alone: bool,
    /// A flush of our own is needed, or under way.
    pub flush_wanted: bool,
    pub flushing: bool,
    /// Something is lost: the next flush says so.
    pub lost: Option<io::Error>,
    /// Who is to look again when something has changed here.
    pub wakers: Vec<(u64, Waker)>,
}

/// What a command that changes data is let through for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    reserved: usize,
    alone: bool,
}

impl Agreed {
    /// Lets a command through that changes data: so many bytes that are to be remembered, up to `limit` in all. If it is to be `alone`,
    /// no other is under way.
    pub fn enter(&mut self, bytes: usize, alone: bool, limit: usize) -> Option<Ticket> {
        let reserved = match (limit, bytes) {
            (0, _) | (_, 0) => 0,
            _ => bytes + OVERHEAD * (bytes / PIECE + 1),
        };
        let kept = self.cost + self.reserved;
        let full = reserved != 0 && kept != 0 && kept + reserved > limit;
        if full {
            self.flush_wanted |= self.cost != 0;
        }
        if full || self.alone || self.repeating || alone && self.modifying != 0 {
            self.refused = true;
            return None;
        }
        self.modifying += 1;
        self.alone = alone;
        self.reserved += reserved;
        Some(Ticket { reserved, alone })
    }

    /// A command has come to its end, or its connection has.
    pub fn leave(&mut self, ticket: Ticket) {
        self.modifying = self.modifying.saturating_sub(1);
        self.reserved = self.reserved.saturating_sub(ticket.reserved);
        if ticket.alone {
            self.alone = false;
        }
    }

    /// This was written, and is volatile. With a `limit` of zero it is only noted that there is something.
    pub fn written(&mut self, offset: u64, len: u64, limit: usize, mut data: impl FnMut(u64, usize) -> Data) {
        self.number += 1;
        if limit == 0 {
            return;
        }
        self.remove(offset..offset + len);
        let mut at = 0;
        while at < len {
            let mut here = (len - at).min(PIECE as u64);
            let data = data(at, here as usize);
            if let Data::Zeros { .. } = data {
                here = len - at;
            }
            self.insert(offset + at, here, self.number, data);
            at += here;
        }
        self.flush_wanted |= self.cost > limit / 2;
    }

    fn insert(&mut self, offset: u64, len: u64, number: u64, data: Data) {
        let entry = Entry { len, number, data };
        self.cost += entry.cost();
        self.entries.insert(offset, entry);
    }

    /// Whether nothing that changes data is under way.
    pub fn is_quiet(&self) -> bool {
        self.modifying == 0
    }

    /// What is in the range is not to be written again.
    pub fn remove(&mut self, range: Range<u64>) {
        let before = self.entries.range(..range.start).next_back();
        let first = before.filter(|(offset, entry)| *offset + entry.len > range.start);
        let mut from = first.map_or(range.start, |(offset, _)| *offset);
        while let Some((&offset, _)) = self.entries.range(from..range.end).next() {
            from = range.start;
            let Some(Entry { len, number, data }) = self.entries.remove(&offset) else {
                return;
            };
            let entry = Entry { len, number, data };
            self.cost -= entry.cost();
            let end = offset + len;
            for part in [offset..range.start.min(end), range.end.max(offset)..end] {
                if part.start < part.end {
                    let data = match &entry.data {
                        Data::Bytes(bytes) => {
                            let bytes = &bytes[(part.start - offset) as usize..(part.end - offset) as usize];
                            Data::Bytes(bytes.into())
                        }
                        zeros => zeros.clone(),
                    };
                    self.insert(part.start, part.end - part.start, number, data);
                }
            }
            if end >= range.end {
                return;
            }
        }
    }

    /// The number up to which a flush that is sent now makes things stable.
    pub fn flush_covers(&self) -> u64 {
        self.number
    }

    /// A flush that was sent at `number` has succeeded.
    pub fn flushed(&mut self, number: u64) {
        self.stable = self.stable.max(number);
        let stable = self.stable;
        let cost = &mut self.cost;
        self.entries.retain(|_, entry| {
            let stays = entry.number > stable;
            if !stays {
                *cost -= entry.cost();
            }
            stays
        });
        self.refused |= self.cost == 0;
    }

    /// A connection was lost.
    pub fn connection_lost(&mut self, limit: usize) {
        if self.number == self.stable {
            return;
        }
        match limit {
            0 => {
                self.stable = self.number;
                self.forget("what was written since the last flush may be lost: the NBD server was");
            }
            _ => self.to_repeat = !self.entries.is_empty(),
        }
    }

    /// What was written is not to be had any more.
    pub fn forget(&mut self, why: &'static str) {
        self.entries.clear();
        self.cost = 0;
        self.lost = Some(io::Error::other(why));
    }

    /// All that is to be written again.
    pub fn entries(&self) -> impl Iterator<Item = (u64, u64, &Data)> {
        self.entries
            .iter()
            .map(|(offset, entry)| (*offset, entry.len, &entry.data))
    }

    /// Whom to wake, now that something may have changed: to be called once this is unlocked.
    pub fn take_wakers(&mut self) -> Vec<Waker> {
        match std::mem::take(&mut self.refused) {
            true => self.wakers.iter().map(|(_, waker)| waker.clone()).collect(),
            false => Vec::new(),
        }
    }

    /// Has everybody look again.
    pub fn stir(&mut self) {
        self.refused = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn write(agreed: &mut Agreed, offset: u64, bytes: &[u8]) {
        let ticket = agreed.enter(bytes.len(), false, LIMIT).expect("let through");
        agreed.leave(ticket);
        agreed.written(offset, bytes.len() as u64, LIMIT, |at, len| {
            Data::Bytes(bytes[at as usize..][..len].into())
        });
    }

    fn contents(agreed: &Agreed, len: usize) -> Vec<u8> {
        let mut all = vec![0xee; len];
        let mut cost = 0;
        for (offset, len, data) in agreed.entries() {
            let part = &mut all[offset as usize..(offset + len) as usize];
            assert!(part.iter().all(|&byte| byte == 0xee), "entries overlap");
            match data {
                Data::Bytes(bytes) => part.copy_from_slice(bytes),
                Data::Zeros { .. } => part.fill(0),
            }
            cost += OVERHEAD + if let Data::Bytes(bytes) = data { bytes.len() } else { 0 };
        }
        assert_eq!(agreed.cost, cost);
        all
    }

    #[test]
    fn the_newest_is_remembered_whatever_overlaps() {
        let mut agreed = Agreed::default();
        let mut model = vec![0xee_u8; 4096];
        let mut seed = 1_u64;
        for round in 0..2000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let offset = (seed >> 33) % 4000;
            let len = ((seed >> 20) % 300 + 1).min(4096 - offset);
            let range = offset as usize..(offset + len) as usize;
            if round % 7 == 0 {
                let ticket = agreed.enter(0, false, LIMIT).unwrap();
                agreed.leave(ticket);
                agreed.written(offset, len, LIMIT, |_, _| Data::Zeros { may_unmap: true });
                model[range].fill(0);
            } else {
                write(&mut agreed, offset, &vec![(round % 200) as u8 + 1; len as usize]);
                model[range].fill((round % 200) as u8 + 1);
            }
            assert_eq!(contents(&agreed, 4096), model);
        }
        agreed.flushed(agreed.flush_covers());
        assert_eq!((agreed.cost, agreed.entries().count()), (0, 0));
    }

    #[test]
    fn a_flush_covers_what_had_ended_when_it_was_sent() {
        let mut agreed = Agreed::default();
        write(&mut agreed, 0, &[1; 10]);
        let covers = agreed.flush_covers();
        write(&mut agreed, 100, &[2; 10]);
        agreed.flushed(covers);
        assert_eq!(agreed.entries().map(|(offset, ..)| offset).collect::<Vec<_>>(), [100]);
        agreed.connection_lost(LIMIT);
        assert!(agreed.to_repeat);
    }

    #[test]
    fn memory_is_bounded_and_whoever_waits_for_it_asks_for_a_flush() {
        let mut agreed = Agreed::default();
        let mut held = 0;
        loop {
            let offset = held * 65536;
            let Some(ticket) = agreed.enter(65536, false, LIMIT) else {
                break;
            };
            agreed.leave(ticket);
            agreed.written(offset, 65536, LIMIT, |_, len| Data::Bytes(vec![1; len].into()));
            held += 1;
        }
        assert!(agreed.cost <= LIMIT && held == 15, "{held}");
        assert!(agreed.flush_wanted);
        agreed.flushed(agreed.flush_covers());
        assert!(agreed.enter(65536, false, LIMIT).is_some());
    }

    #[test]
    fn without_a_memory_a_lost_connection_is_told_once() {
        let mut agreed = Agreed::default();
        agreed.connection_lost(0);
        assert!(agreed.lost.is_none());
        agreed.written(0, 10, 0, |_, _| Data::Zeros { may_unmap: false });
        agreed.connection_lost(0);
        assert!(agreed.lost.take().is_some());
        agreed.connection_lost(0);
        assert!(agreed.lost.is_none() && !agreed.to_repeat);
    }
}
