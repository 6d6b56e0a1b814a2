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
    /// Where there is room for the next packet.
    end: usize,
    /// Where the packet begins that is in the room.
    at: usize,
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
        self.at = self.end;
        &mut self.data[self.at..]
    }

    /// The same, which begins in a cache line where `like` does.
    #[inline]
    pub fn room_like(&mut self, len: usize, like: u64) -> &mut [u8] {
        if self.data.len() - self.end < len + ALIGN {
            self.grow(len);
        }
        let here = self.data.as_ptr().addr() + self.end;
        // Only what is pushed takes this from those that come.
        self.at = self.end + (like as usize).wrapping_sub(here) % ALIGN;
        &mut self.data[self.at..]
    }

    /// The packet of `len` bytes that is in the room.
    pub fn in_room(&self, len: usize) -> &[u8] {
        &self.data[self.at..][..len]
    }

    #[cold]
    fn grow(&mut self, len: usize) {
        let needed = (self.end + len + 2 * ALIGN).max(2 * self.data.len()).max(16 * 1024);
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
        let start = self.at;
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

    /// The frame that comes so many after the first that waits, and its header.
    #[inline]
    pub fn frame(&self, by: usize) -> Option<(Header, &[u8])> {
        let &Entry { header, start, len } = self.frames.get(self.taken + by)?;
        Some((header, &self.data[start + HEADROOM..][..len]))
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
    fn packets_that_are_not_pushed_take_no_room_wherever_they_begin() {
        let mut burst = Burst::default();
        burst.room_like(HEADROOM + 60, 0);
        burst.push(Header::default(), 60);
        let len = burst.data.len();
        for like in 0..100_000 {
            let room = burst.room_like(HEADROOM + 60, like * 37);
            assert_eq!(room.as_ptr().addr() as u64 % 64, like * 37 % 64);
        }
        assert_eq!(burst.data.len(), len);
        burst.push(Header::default(), 60);
        assert_eq!(burst.waiting(), (2, 120));
    }

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
