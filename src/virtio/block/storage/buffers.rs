//! Memory that a request reads or writes, for as long as it is under way.

use std::{
    alloc::{self, Layout},
    fmt,
    ptr::NonNull,
    sync::Arc,
};

use vm_memory::VolatileSlice;

use crate::memory::{Pin, Segment};

/// The memory of a request, in order: of the guest, kept mapped, or of the storage's own.
///
/// It is shared with the guest by its nature: it is copied, never referred to. Two pieces may be the same memory.
///
/// It is as large as a pointer: it goes from hand to hand, from the device to a storage, through those that are stacked on it, and back.
#[derive(Default)]
pub struct Buffers(Box<Lent>);

/// What they are.
#[derive(Default)]
struct Lent {
    pieces: Vec<Piece>,
    /// The pieces before this one are behind us.
    first: usize,
    len: u64,
    hold: Hold,
}

/// Contiguous bytes of this process, laid out as `struct iovec`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Piece {
    base: *mut u8,
    len: usize,
}

impl Piece {
    /// The address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What keeps the pieces where they are.
#[derive(Clone, Default)]
enum Hold {
    #[default]
    Nothing,
    #[cfg_attr(
        not(all(target_os = "linux", feature = "io-uring")),
        expect(dead_code, reason = "it is kept, no more")
    )]
    Guest(Pin),
    #[expect(dead_code, reason = "it is kept, no more")]
    Own(Arc<Own>),
}

/// Memory of our own.
struct Own {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the bytes are accessed by volatile copies alone.
unsafe impl Send for Own {}
// SAFETY: as above.
unsafe impl Sync for Own {}

impl Drop for Own {
    fn drop(&mut self) {
        if self.layout.size() != 0 {
            // SAFETY: allocated with this layout, by `Buffers::new`.
            unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) };
        }
    }
}

// SAFETY: the pieces lead to memory that `hold` keeps, whoever has it; it is accessed by volatile copies alone.
unsafe impl Send for Buffers {}
// SAFETY: as above.
unsafe impl Sync for Buffers {}

/// Pieces for which room is kept from one request to the next.
const KEPT: usize = 256;

impl Buffers {
    /// `len` bytes of zeros, of this process, at an address that is a multiple of `align`, a power of two.
    pub fn zeroed(len: usize, align: usize) -> Self {
        let layout = Layout::from_size_align(len, align.next_power_of_two()).unwrap_or(Layout::new::<()>());
        let base = match layout.size() {
            0 => NonNull::dangling(),
            // SAFETY: not of size zero.
            _ => NonNull::new(unsafe { alloc::alloc_zeroed(layout) })
                .unwrap_or_else(|| alloc::handle_alloc_error(layout)),
        };
        let piece = Piece {
            base: base.as_ptr(),
            len: layout.size(),
        };
        Self(Box::new(Lent {
            pieces: vec![piece],
            first: 0,
            len: layout.size() as u64,
            hold: Hold::Own(Arc::new(Own { base, layout })),
        }))
    }

    /// Makes this the `len` bytes of guest memory behind the first `skip` ones of `segments`. If some of them have no address that stays,
    /// there is none, and this says so.
    pub(in crate::virtio::block) fn set_guest(
        &mut self,
        pin: &Pin,
        segments: &[Segment],
        mut skip: u32,
        len: u32,
    ) -> bool {
        self.clear();
        let mut left = len;
        for segment in segments {
            let before = skip.min(segment.len);
            let here = left.min(segment.len - before);
            skip -= before;
            if here == 0 {
                continue;
            }
            // Within a segment, which does not wrap.
            let Some(host) = pin.host(&mut segment.at(segment.address + u64::from(before), here)) else {
                self.clear();
                return false;
            };
            self.0.pieces.push(Piece {
                base: host.as_ptr(),
                len: here as usize,
            });
            left -= here;
            if left == 0 {
                break;
            }
        }
        self.0.len = (len - left).into();
        self.0.hold = Hold::Guest(pin.clone());
        true
    }

    /// The map of guest memory that it is in, if it is the guest's.
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    pub(super) fn guest(&self) -> Option<&Pin> {
        match &self.0.hold {
            Hold::Guest(pin) => Some(pin),
            Hold::Nothing | Hold::Own(_) => None,
        }
    }

    /// Lets go of the memory, and keeps the room for some pieces.
    #[inline]
    pub(in crate::virtio::block) fn clear(&mut self) {
        let Lent {
            pieces,
            first,
            len,
            hold,
        } = &mut *self.0;
        pieces.clear();
        // What a long chain needed is not kept: in time each could have needed that.
        if pieces.capacity() > KEPT {
            pieces.shrink_to(KEPT);
        }
        (*first, *len, *hold) = (0, 0, Hold::Nothing);
    }

    /// Bytes in all of it.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The pieces, in order; none is empty but that of no bytes at all. On Unix each is a `struct iovec`.
    ///
    /// The memory is there while these buffers, or [parts](Self::part) of them, are.
    pub fn pieces(&self) -> &[Piece] {
        &self.0.pieces[self.0.first..]
    }

    /// Drops the first `count` bytes, which were moved.
    #[inline]
    pub fn advance(&mut self, count: u64) {
        let lent = &mut *self.0;
        if count >= lent.len {
            (lent.first, lent.len) = (lent.pieces.len(), 0);
            return;
        }
        let mut left = count;
        lent.len -= left;
        while left != 0 {
            let piece = &mut lent.pieces[lent.first];
            if left < piece.len as u64 {
                // SAFETY: within the piece.
                piece.base = unsafe { piece.base.add(left as usize) };
                piece.len -= left as usize;
                return;
            }
            left -= piece.len as u64;
            lent.first += 1;
        }
    }

    /// The `len` bytes from `offset` on, as far as there are any, of the same memory.
    pub fn part(&self, offset: u64, len: u64) -> Self {
        let mut part = Lent {
            hold: self.0.hold.clone(),
            ..Lent::default()
        };
        self.each(offset, len, |base, len| {
            part.pieces.push(Piece { base, len });
            part.len += len as u64;
        });
        Self(Box::new(part))
    }

    /// Calls `each` for the pieces of the `len` bytes from `offset` on.
    fn each(&self, mut offset: u64, mut len: u64, mut each: impl FnMut(*mut u8, usize)) {
        for piece in self.pieces() {
            let skip = offset.min(piece.len as u64);
            offset -= skip;
            let here = len.min(piece.len as u64 - skip);
            len -= here;
            if here != 0 {
                // SAFETY: within the piece.
                each(unsafe { piece.base.add(skip as usize) }, here as usize);
            }
        }
    }

    /// Calls `each` for the pieces of the `len` bytes from `offset` on, as slices, with how many bytes there were before.
    fn each_slice(&self, offset: u64, len: u64, mut each: impl FnMut(usize, VolatileSlice<'_>)) -> usize {
        let mut done = 0;
        self.each(offset, len, |base, len| {
            // SAFETY: `len` bytes from `base` on are in a piece, which is mapped while `self` is borrowed.
            each(done, unsafe { VolatileSlice::new(base, len) });
            done += len;
        });
        done
    }

    /// Copies the bytes from `offset` on into `data`. How many there were.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> usize {
        self.each_slice(offset, data.len() as u64, |at, slice| {
            slice.copy_to(&mut data[at..at + slice.len()]);
        })
    }

    /// Copies `data` to the bytes from `offset` on. How many there were.
    pub fn write(&self, offset: u64, data: &[u8]) -> usize {
        self.each_slice(offset, data.len() as u64, |at, slice| {
            slice.copy_from(&data[at..at + slice.len()]);
        })
    }

    /// Makes all bytes `value`.
    pub fn fill(&self, value: u8) {
        let block = [value; 4096];
        self.each_slice(0, self.len(), |_, slice| {
            let mut rest = slice;
            while !rest.is_empty() {
                let now = rest.len().min(block.len());
                rest.copy_from(&block[..now]);
                rest = rest.offset(now).unwrap_or_else(|_| unreachable!("it is that long"));
            }
        });
    }

    /// Copies as many bytes as both have.
    pub fn copy_to(&self, other: &Self) {
        let mut block = [0; 4096];
        let (mut offset, len) = (0, self.len().min(other.len()));
        while offset < len {
            let now = (len - offset).min(block.len() as u64) as usize;
            self.read(offset, &mut block[..now]);
            other.write(offset, &block[..now]);
            offset += now as u64;
        }
    }

    /// Lends them as slices.
    pub fn with_slices<R>(&self, f: impl FnOnce(&[VolatileSlice<'_>]) -> R) -> R {
        const FEW: usize = 8;
        // SAFETY: each piece is mapped while `self` is borrowed, and the slices are gone before that ends.
        let slice = |piece: &Piece| unsafe { VolatileSlice::new(piece.base, piece.len) };
        let pieces = self.pieces();
        match pieces.len() {
            count @ 1..=FEW => {
                let few: [_; FEW] = std::array::from_fn(|index| slice(&pieces[index.min(count - 1)]));
                f(&few[..count])
            }
            _ => f(&pieces.iter().map(slice).collect::<Vec<_>>()),
        }
    }
}

impl From<&[u8]> for Buffers {
    /// A copy.
    fn from(data: &[u8]) -> Self {
        let buffers = Self::zeroed(data.len(), 1);
        buffers.write(0, data);
        buffers
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers")
            .field("len", &self.len())
            .field("pieces", &self.pieces().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_moved_is_behind_and_parts_are_the_same_memory() {
        let mut all = Buffers::from(&b"0123456789"[..]);
        all.advance(3);
        assert_eq!(all.len(), 7);
        let part = all.part(2, 4);
        part.fill(b'x');
        let mut bytes = [0; 7];
        assert_eq!(all.read(0, &mut bytes), 7);
        assert_eq!(&bytes, b"34xxxx9");
        assert_eq!(all.part(5, 100).len(), 2);
        all.advance(100);
        assert!(all.is_empty() && all.with_slices(|slices| slices.is_empty()));
        drop(all);
        assert_eq!(part.read(0, &mut bytes), 4);
    }

    #[test]
    fn memory_of_our_own_is_aligned_and_may_be_none() {
        for (len, align) in [(0, 1), (512, 4096), (1, 64)] {
            let buffers = Buffers::zeroed(len, align);
            assert_eq!(buffers.len(), len as u64);
            if len != 0 {
                assert!((buffers.pieces()[0].as_ptr() as usize).is_multiple_of(align));
            }
        }
    }

    #[test]
    fn copies_go_as_far_as_both_reach() {
        let (from, to) = (Buffers::from(&[7; 5000][..]), Buffers::zeroed(4500, 1));
        from.copy_to(&to);
        let mut bytes = [0; 4500];
        to.read(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 7));
    }
}
