//! A thread's turn at a lane.

use crate::virtio::queue::{End, Inside, Word};

/// A thread's turn at a lane. Dropped by a panic, it leaves the lane to the next that comes.
pub(super) struct Turn<'a> {
    /// Until the turn has ended.
    word: Option<&'a Word>,
    _inside: Inside,
}

impl<'a> Turn<'a> {
    #[inline]
    pub fn new(word: &'a Word) -> Self {
        Self {
            word: Some(word),
            _inside: Inside::new(),
        }
    }

    /// Does `next`, and then what follows from it, until nothing does. `round` says whether more is left; `stay` is that of
    /// [`Word::end`].
    #[inline(always)]
    pub fn take(mut self, mut next: End, stay: bool, mut round: impl FnMut() -> bool, tell: impl Fn()) {
        let Some(word) = self.word else { return };
        loop {
            next = match next {
                End::Again => word.end(round(), stay),
                End::Tell => {
                    tell();
                    word.told();
                    // What came since, if the stop has ended already, relied on this thread.
                    word.end(false, stay)
                }
                End::Leave => break,
            };
        }
        self.word = None;
    }
}

impl Drop for Turn<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(word) = self.word {
            word.abandon();
        }
    }
}
