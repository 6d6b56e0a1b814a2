//! `inflateq` and `deflateq` (section 5.5.6): arrays of page numbers.

use std::{ops::Range, sync::Arc};

use super::{registers::PAGE, shared::Shared};
use crate::{
    sync::lock,
    virtio::{ChainError, Fault, QueueHandler, Round, queue::Chain},
};

/// Serves either of them.
pub(super) struct PageQueue {
    shared: Arc<Shared>,
    deflate: bool,
    /// Of one request. Kept, so that none allocates.
    numbers: Vec<u32>,
}

impl PageQueue {
    pub fn inflate(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            deflate: false,
            numbers: Vec::new(),
        }
    }

    pub fn deflate(shared: Arc<Shared>) -> Self {
        Self {
            deflate: true,
            ..Self::inflate(shared)
        }
    }

    fn read(&mut self, chain: &Chain<'_, '_>) -> Result<(), ChainError> {
        let count = chain.readable_len() / 4;
        if !chain.writable().is_empty() || count == 0 || !chain.readable_len().is_multiple_of(4) {
            return Err(ChainError::Request("not an array of page numbers"));
        }
        if count > self.shared.max_pages {
            return Err(ChainError::Request("more page numbers than a request may have"));
        }
        self.numbers.clear();
        let mut reader = chain.reader();
        let mut bytes = [0; 1024];
        while reader.remaining() != 0 {
            let piece = &mut bytes[..1024.min(reader.remaining() as usize)];
            reader.read(piece)?;
            let numbers = piece.chunks_exact(4);
            self.numbers
                .extend(numbers.map(|number| u32::from_le_bytes(std::array::from_fn(|i| number[i]))));
        }
        Ok(())
    }
}

/// The ranges of pages that follow each other, of numbers in any order: each page once.
fn runs(numbers: &mut Vec<u32>) -> impl Iterator<Item = Range<u64>> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers
        .chunk_by(|&one, &next| one + 1 == next)
        .map(|run| u64::from(run[0]) * PAGE..(u64::from(run[0]) + run.len() as u64) * PAGE)
}

impl QueueHandler for PageQueue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        round.each(|chain| {
            if let Err(error) = self.read(chain) {
                // The driver is not told so, and may use what it has named: nothing counts on it being in the balloon.
                if self.deflate {
                    lock(&self.shared.partial).clear();
                }
                return Err(error);
            }
            for Range { start, end } in runs(&mut self.numbers) {
                match self.deflate {
                    false => self.shared.inflate(start, end - start),
                    true => self.shared.deflate(start, end - start),
                }
            }
            Ok(0)
        })?;
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_any_order_are_ranges_without_repetition() {
        let mut numbers = vec![7, 3, 5, 4, 3, u32::MAX, 0, u32::MAX - 1];
        let runs: Vec<_> = runs(&mut numbers).collect();
        assert_eq!(
            runs,
            [
                0..0x1000,
                0x3000..0x6000,
                0x7000..0x8000,
                0x0fff_ffff_e000..0x1000_0000_0000
            ]
        );
    }
}
