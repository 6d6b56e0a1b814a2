//! What the guest has sent on a connection, and the host side has not taken yet.

use std::{collections::VecDeque, io};

use vm_memory::VolatileSlice;

use super::{Boundary, Stream};

/// Room that is kept when it is empty.
const KEPT: usize = 4096;

/// Bytes, and where messages end among them. How much there is, the guest's credit bounds.
#[derive(Default)]
pub(super) struct Outbound {
    bytes: VecDeque<u8>,
    /// Of a seqpacket connection: the length of each piece, and in the two upper bits what ends with it.
    pieces: VecDeque<u32>,
}

const LEN: u32 = (1 << 30) - 1;

impl Outbound {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.pieces.is_empty()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Room for `len` more bytes, as a place to read them into.
    pub fn push(&mut self, bytes: &[u8], boundary: Option<Boundary>) {
        self.bytes.extend(bytes);
        if let Some(boundary) = boundary {
            self.pieces
                .push_back(bytes.len() as u32 & LEN | (boundary as u32) << 30);
        }
    }

    /// All of it is given up. How many bytes that were.
    pub fn clear(&mut self) -> u32 {
        let len = self.len() as u32;
        *self = Self::default();
        len
    }

    /// Writes as much of it to `stream` as that takes. How many bytes it has taken, and whether it has failed.
    pub fn flush(&mut self, stream: &dyn Stream) -> (u32, io::Result<()>) {
        let mut taken = 0;
        let result = loop {
            if self.is_empty() {
                break Ok(());
            }
            let piece = self.pieces.front().copied();
            let (len, boundary) = match piece {
                None => (self.bytes.len(), Boundary::None),
                Some(piece) => ((piece & LEN) as usize, boundary(piece)),
            };
            let (front, back) = self.bytes.as_mut_slices();
            let (front_len, back_len) = (front.len().min(len), back.len().min(len - front.len().min(len)));
            let slices = [
                VolatileSlice::from(&mut front[..front_len]),
                VolatileSlice::from(&mut back[..back_len]),
            ];
            let slices = if back_len == 0 { &slices[..1] } else { &slices[..] };
            match stream.write(slices, boundary) {
                Ok(0) if len != 0 => break Err(io::ErrorKind::WouldBlock.into()),
                Ok(written) => {
                    let written = written.min(len);
                    self.bytes.drain(..written);
                    taken += written as u32;
                    match self.pieces.front_mut() {
                        Some(_) if written == len => _ = self.pieces.pop_front(),
                        Some(piece) => *piece -= written as u32,
                        None => {}
                    }
                }
                Err(error) => break Err(error),
            }
        };
        if self.is_empty() && self.bytes.capacity() > KEPT {
            *self = Self::default();
        }
        (taken, result)
    }
}

fn boundary(piece: u32) -> Boundary {
    match piece >> 30 {
        0 => Boundary::None,
        1 => Boundary::Message,
        _ => Boundary::Record,
    }
}
