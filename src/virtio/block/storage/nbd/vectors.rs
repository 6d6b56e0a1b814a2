//! Memory that one system call reads into or writes from.

use super::super::Piece;

/// How many pieces of memory one system call is given.
const VECTORS: usize = 64;

/// Contiguous memory that something is read into or written from, for the length of a call.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Vector(libc::iovec);

impl Vector {
    pub const EMPTY: Self = Self(libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    });

    /// The memory lives for as long as the vector is used: a caller keeps what it is of.
    pub fn of(bytes: &[u8]) -> Self {
        Self(libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        })
    }

    pub fn of_mut(bytes: &mut [u8]) -> Self {
        Self(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        })
    }

    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    #[cfg(feature = "nbd-tls")]
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }
}

/// A list of them, as long as one call takes.
pub struct Vectors {
    list: [Vector; VECTORS],
    count: usize,
    len: usize,
}

impl Vectors {
    pub fn new() -> Self {
        Self {
            list: [Vector::EMPTY; VECTORS],
            count: 0,
            len: 0,
        }
    }

    pub fn is_full(&self) -> bool {
        self.count == VECTORS
    }

    /// Bytes in all of them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// It has to be there for as long as the list is used.
    pub fn push(&mut self, vector: Vector) {
        if !self.is_full() && vector.len() != 0 {
            self.list[self.count] = vector;
            self.count += 1;
            self.len += vector.len();
        }
    }

    /// The `len` bytes of `pieces` from `skip` on, as far as there is room. Nothing beyond the pieces.
    pub fn push_pieces(&mut self, pieces: &[Piece], mut skip: usize, mut len: usize) {
        for piece in pieces {
            let before = skip.min(piece.len());
            skip -= before;
            let here = len.min(piece.len() - before);
            len -= here;
            if here != 0 {
                self.push(Vector(libc::iovec {
                    // Within the piece.
                    iov_base: piece.as_ptr().wrapping_add(before).cast(),
                    iov_len: here,
                }));
            }
            if len == 0 || self.is_full() {
                return;
            }
        }
    }

    pub fn as_slice(&self) -> &[Vector] {
        &self.list[..self.count]
    }
}
