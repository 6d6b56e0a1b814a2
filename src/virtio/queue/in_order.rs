//! VIRTIO_F_IN_ORDER (virtio 1.2, sections 2.7.9 and 2.8.8): a chain that ends before an earlier one waits for that, with its length.

use std::collections::VecDeque;

/// A chain that was taken and is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub head: u16,
    /// How many descriptors of a packed ring it takes.
    pub descriptors: u16,
    /// It has ended, with so many bytes written into it, and waits for those before it.
    pub written: Option<u32>,
}

/// The chains that are not used, in the order in which they were made available. The first has not ended.
#[derive(Default)]
pub(super) struct InOrder {
    kept: VecDeque<Kept>,
    /// When the first was taken: each has the number after that of the one before it.
    first: u64,
}

impl InOrder {
    /// Of a restored queue.
    pub fn new(kept: impl Iterator<Item = Kept>) -> Self {
        let kept = kept.collect();
        Self { kept, first: 1 }
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.kept.iter()
    }

    /// A chain that is taken, by the number `place`, or that has ended in its round while others have not.
    pub fn push(&mut self, place: u64, kept: Kept) {
        if self.kept.is_empty() {
            self.first = place;
        }
        // As many as the queue is long: each has a head of its own.
        self.kept.push_back(kept);
    }

    /// The chain that was taken by the number `place` has ended.
    pub fn end(&mut self, place: u64, written: u32) {
        let at = usize::try_from(place.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        if let Some(kept) = self.kept.get_mut(at) {
            kept.written = Some(written);
        }
    }

    /// The first, if it has ended.
    pub fn ended(&self) -> Option<(Kept, u32)> {
        let first = self.kept.front()?;
        Some((*first, first.written?))
    }

    /// The first is used.
    pub fn pop(&mut self) {
        self.kept.pop_front();
        self.first += 1;
    }
}
