//! Frames one after the other in one piece of memory.

use super::{Header, header::HEADROOM, registers::header::LEN};

/// Frames one after the other in one piece of memory, each behind [`HEADROOM`] bytes for its header. The memory grows to what has waited
/// at a time, and is used again.
#[derive(Default)]
pub(super) struct Burst {
    data: Vec<u8>,
    frames: Vec<Entry>,
    /// How many of them were taken.
    taken: usize,
    /// Where the next packet goes.
    end: usize,
    /// Bytes of frames that were not taken.
    bytes: usize,
}

struct Entry {
    header: Header,
    start: usize,
    len: usize,
}

/// Most packets begin, with the header that most have, where a cache line does, as they do in the memory of most guests: copies are
/// faster so.
const ALIGN: usize = 64;

impl Burst {
    /// How many frames wait, and their bytes.
    #[inline]
    pub fn waiting(&self) -> (usize, usize) {
        (self.frames.len() - self.taken, self.bytes)
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.taken == self.frames.len()
    }

    /// Room for a packet of `len` bytes, after the last one.
    #[inline]
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        if self.data.len() - self.end < len {
            self.grow(len);
        }
        &mut self.data[self.end..]
    }

    /// The same, which begins in a cache line where `like` does.
    #[inline]
    pub fn room_like(&mut self, len: usize, like: u64) -> &mut [u8] {
        let here = self.data.as_ptr().addr() + self.end;
        self.end = (self.end + (like as usize).wrapping_sub(here) % ALIGN).min(self.data.len());
        self.room(len)
    }

    #[cold]
    fn grow(&mut self, len: usize) {
        let needed = (self.end + len + ALIGN).max(2 * self.data.len()).max(16 * 1024);
        self.data.resize(needed, 0);
        if self.frames.is_empty() {
            self.end = self.begin();
        }
    }

    /// Where the first packet goes.
    fn begin(&self) -> usize {
        let header = self.data.as_ptr().addr() + HEADROOM - LEN;
        header.next_multiple_of(ALIGN) - header
    }

    /// The packet that is in the room is there from here on, its frame of `len` bytes behind [`HEADROOM`] others.
    #[inline]
    pub fn push(&mut self, header: Header, len: usize) {
        let start = self.end;
        self.end = (start + (HEADROOM + len).next_multiple_of(ALIGN)).min(self.data.len());
        self.bytes += len;
        self.frames.push(Entry { header, start, len });
    }

    /// The first frame that waits: its header, and the packet.
    #[inline]
    pub fn first(&mut self) -> Option<(Header, &mut [u8])> {
        let &Entry { header, start, len } = self.frames.get(self.taken)?;
        Some((header, &mut self.data[start..start + HEADROOM + len]))
    }

    /// It is taken.
    #[inline]
    pub fn pop(&mut self) {
        if let Some(entry) = self.frames.get(self.taken) {
            self.bytes -= entry.len;
            self.taken += 1;
        }
    }

    /// Of an empty one, all of its memory is free again.
    #[inline]
    pub fn clear(&mut self) {
        self.frames.clear();
        (self.taken, self.end, self.bytes) = (0, self.begin().min(self.data.len()), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut burst = Burst::default();
        for round in 0..3 {
            for n in 0..40_usize {
                let len = 14 + n * 97;
                let room = burst.room(HEADROOM + len);
                room[HEADROOM..][..len].fill((n + round) as u8);
                let header = Header {
                    num_buffers: n as u16,
                    ..Header::default()
                };
                burst.push(header, len);
            }
            assert_eq!(burst.waiting(), (40, (0..40).map(|n| 14 + n * 97).sum()));
            for n in 0..40 {
                let (header, packet) = burst.first().unwrap();
                assert_eq!(
                    (header.num_buffers, packet.len()),
                    (n, HEADROOM + 14 + usize::from(n) * 97)
                );
                assert!(
                    packet[HEADROOM..]
                        .iter()
                        .all(|&byte| byte == (usize::from(n) + round) as u8)
                );
                burst.pop();
            }
            assert!(burst.is_empty() && burst.first().is_none());
            assert_eq!(burst.waiting(), (0, 0));
            burst.clear();
        }
    }
}
