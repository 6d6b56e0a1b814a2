//! Entries for reads and writes, and which of them direct I/O takes as they are.

use io_uring::{opcode, squeue};

use super::{
    super::{Buffers, Operation, Piece},
    lane::FILE,
};

/// A read or write of `pieces`, `head` bytes before its offset; they lie in the memory that is registered as `place`, if there is one.
pub fn transfer(operation: Operation, pieces: &[Piece], head: u64, place: Option<u16>) -> squeue::Entry {
    let vectors: *const libc::iovec = pieces.as_ptr().cast();
    let count = pieces.len() as u32;
    match operation {
        Operation::Write { offset, fua } => {
            let (offset, flags) = (offset - head, if fua { libc::RWF_DSYNC } else { 0 });
            match (pieces, place) {
                ([piece], Some(place)) => opcode::WriteFixed::new(FILE, piece.as_ptr(), length(piece), place)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                ([piece], None) => opcode::Write::new(FILE, piece.as_ptr(), length(piece))
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                (_, Some(place)) => opcode::WritevFixed::new(FILE, vectors, count, place)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                (_, None) => opcode::Writev::new(FILE, vectors, count)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Operation::Read { offset } => {
            let offset = offset - head;
            match (pieces, place) {
                ([piece], Some(place)) => opcode::ReadFixed::new(FILE, piece.as_ptr(), length(piece), place)
                    .offset(offset)
                    .build(),
                ([piece], None) => opcode::Read::new(FILE, piece.as_ptr(), length(piece))
                    .offset(offset)
                    .build(),
                (_, Some(place)) => opcode::ReadvFixed::new(FILE, vectors, count, place)
                    .offset(offset)
                    .build(),
                (_, None) => opcode::Readv::new(FILE, vectors, count).offset(offset).build(),
            }
        }
        // Only those two are transfers.
        _ => opcode::Nop::new().build(),
    }
}

/// A transfer may be short.
fn length(piece: &Piece) -> u32 {
    u32::try_from(piece.len()).unwrap_or(1 << 30)
}

/// How many of the first pieces direct I/O takes as they are: those whose addresses are multiples of `memory`, and whose lengths are of
/// `block`.
pub fn straight(offset: u64, buffers: &Buffers, block: u64, memory: usize) -> usize {
    if !offset.is_multiple_of(block) {
        return 0;
    }
    let fits =
        |piece: &&Piece| (piece.as_ptr() as usize).is_multiple_of(memory) && (piece.len() as u64).is_multiple_of(block);
    buffers.pieces().iter().take_while(fits).count()
}

/// Whether what is changed begins or ends within a block.
pub fn is_part(operation: &Operation, transferred: u64, block: u64) -> bool {
    let (offset, len) = match *operation {
        Operation::Write { offset, .. } => (offset, transferred),
        Operation::WriteZeroes { offset, len, .. } => (offset, len),
        _ => return false,
    };
    !offset.is_multiple_of(block) || !len.is_multiple_of(block)
}

/// Whether all of them are whole blocks, in the file and in memory.
pub fn are_whole(offset: u64, pieces: &[Piece], block: u64) -> bool {
    let whole = |piece: &Piece| (piece.as_ptr() as u64 | piece.len() as u64).is_multiple_of(block);
    offset.is_multiple_of(block) && pieces.iter().all(whole)
}
