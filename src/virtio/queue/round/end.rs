//! How a round ends: what was put is shown, and the next kick is asked for.

use super::{
    super::{
        Gone, QueueError,
        available::{Available, Kicks},
        view::View,
    },
    Looked, ROUND_BYTES, Rest, Round,
};

impl Round<'_> {
    /// Ends the round, and arranges for the next kick if nothing is left.
    ///
    /// # Errors
    /// The ring is no longer in guest memory.
    pub fn end(mut self) -> Result<Rest, QueueError> {
        self.finish()
    }

    /// [`end`](Self::end), where the round is. Nothing but its drop follows.
    #[inline(always)]
    pub(crate) fn finish(&mut self) -> Result<Rest, QueueError> {
        self.publish()?;
        if !self.holds && self.shared.holds() {
            self.signal();
        }
        self.ended = true;
        if self.closed {
            let again = self.looked == Looked::Taken;
            return Ok(if again { Rest::More } else { Rest::Left });
        }
        match self.looked {
            _ if self.budget == 0 => Ok(Rest::More),
            Looked::Taken => Ok(Rest::More),
            Looked::Left if self.available.kicks() != Kicks::Stay => Ok(Rest::Left),
            Looked::Empty if self.available.is_asked() => Ok(Rest::Drained),
            Looked::Empty if self.available.kicks() == Kicks::Polled => Ok(Rest::Left),
            // A kick is all that has the queue looked at again.
            Looked::Left => self.rest(Rest::Left, Available::expect_kicks_for_more),
            Looked::Empty => self.rest(Rest::Drained, Available::expect_kicks),
        }
    }

    /// What is left to do for a round that has ended.
    #[inline(always)]
    pub(crate) fn settle(&mut self) {
        self.mark_used();
        let all = (ROUND_BYTES - 1).wrapping_sub(self.bytes);
        self.shared.counters.bytes(all.wrapping_sub(self.reading));
        // Others may have it.
        self.ring = None;
    }

    /// A round that was left by an error or a panic shows what was put all the same; the next call signals it.
    #[cold]
    fn leave(&mut self) {
        let view = self.view;
        if self.with_used(|shared, used| shared.publish(&mut used.ring, view)) == Ok(true) {
            self.shared.owe(true);
        }
    }

    /// Asks for kicks: there is `rest`, or there is more.
    #[inline]
    fn rest(
        &mut self,
        rest: Rest,
        expect: impl FnOnce(&mut Available, &View) -> Result<bool, Gone>,
    ) -> Result<Rest, QueueError> {
        match expect(self.available, self.view) {
            Ok(true) => Ok(Rest::More),
            Ok(false) => Ok(rest),
            Err(Gone) => Err(self.shared.gone()),
        }
    }
}

impl Drop for Round<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.ended {
            self.leave();
        }
        self.settle();
    }
}
