//! Bytes that wait in memory, to and from pieces of guest memory.

use std::{collections::VecDeque, io};

use vm_memory::VolatileSlice;

/// Moves bytes from the front of `bytes` into `room`.
pub(super) fn take_front(bytes: &mut VecDeque<u8>, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
    if bytes.is_empty() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let mut moved = 0;
    for slice in room {
        let mut at = 0;
        while at < slice.len() {
            let (front, _) = bytes.as_slices();
            if front.is_empty() {
                return Ok(moved);
            }
            let len = front.len().min(slice.len() - at);
            let Ok(piece) = slice.subslice(at, len) else {
                return Ok(moved);
            };
            piece.copy_from(&front[..len]);
            bytes.drain(..len);
            at += len;
            moved += len;
        }
    }
    Ok(moved)
}

/// Moves `data` to the back of `bytes`, which hold up to `bound`.
pub(super) fn put_back(bytes: &mut VecDeque<u8>, data: &[VolatileSlice<'_>], bound: usize) -> io::Result<usize> {
    let mut moved = 0;
    let mut block = [0; 1024];
    for slice in data {
        let mut at = 0;
        while at < slice.len() {
            let len = block.len().min(slice.len() - at).min(bound.saturating_sub(bytes.len()));
            if len == 0 {
                break;
            }
            let Ok(piece) = slice.subslice(at, len) else { break };
            piece.copy_to(&mut block[..len]);
            bytes.extend(&block[..len]);
            at += len;
            moved += len;
        }
    }
    match moved {
        0 if data.iter().any(|slice| !slice.is_empty()) => Err(io::ErrorKind::WouldBlock.into()),
        moved => Ok(moved),
    }
}
