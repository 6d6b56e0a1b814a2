//! What becomes of a chain that a round has found: it is taken, or given back, the short way or the long one.

use std::sync::atomic::Ordering;

use super::{
    super::{Gone, chain::Outline, format::Format, in_order::Kept, shared::Taking, track::Taken},
    Company, Looked, ROUND_BYTES, Ring, Round,
};
use crate::virtio::features;

/// A chain that stays lent while others are looked for.
pub(in super::super) struct Aside {
    pub outline: Outline,
    /// Where the round was.
    at: u16,
    /// What it might take.
    budget: u16,
    /// It was given back untouched before.
    again: bool,
}

/// What a chain has come to on the short way into the used ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Near {
    /// It is there.
    Done,
    /// It is there, and the driver is to be told.
    Signal,
    /// It is not: the long way has to be taken.
    Far,
}

impl Round<'_> {
    /// The chain that was looked at is taken, as the last of those that are.
    #[inline(always)]
    pub(in super::super) fn take_simple(&mut self) {
        let place = self.hands.taken();
        // Seen by who completes it, and by the next round.
        if let Some(taken) = self.shared.places.get(usize::from(self.outline.head)) {
            taken.store(place, Ordering::Release);
        }
        self.available.split.advance();
        self.spend();
    }

    /// The same of a packed ring, or of a queue in order; or of what was given back, which keeps its place.
    #[inline(never)]
    pub(in super::super) fn take_other(&mut self) {
        let (shared, Outline { head, descriptors, .. }) = (self.shared, self.outline);
        if self.returned() {
            shared.forget_returned(&mut shared.used.lock(), head);
        } else {
            let place = self.hands.taken();
            if let Some(tracker) = &shared.tracker {
                // What is put and not shown comes before what is taken now. Memory that is gone is found by the next look.
                let _ = self.publish();
                let at = self.available.next();
                tracker.taken(&Taken::new(head, descriptors, at, shared.layout.size, self.view));
            }
            self.hands.descriptors = self.hands.descriptors.wrapping_add(descriptors.into());
            // As above.
            shared.places[usize::from(head)].store(place, Ordering::Release);
            if shared.features & features::IN_ORDER != 0 {
                let written = None;
                let kept = Kept {
                    head,
                    descriptors,
                    written,
                };
                shared
                    .used
                    .lock()
                    .order
                    .iter_mut()
                    .for_each(|order| order.push(place, kept));
            }
        }
        self.consumed();
    }

    /// The chain that was looked at stays lent, and others are looked for. Until it is [put](Self::put_aside) or
    /// [set back](Self::set_back), it is in flight, as far as the driver's mistakes go; no other thread has to do with it.
    #[inline(always)]
    pub(in super::super) fn set_aside(&mut self) -> Aside {
        let (outline, budget) = (self.outline, self.budget);
        if self.company == Company::None {
            self.company = Company::Aside;
        }
        let again = self.returned();
        self.set_returned(false);
        let at = if again {
            self.hands.aside_again += 1;
            self.hands.aside_last = self.shared.place(outline.head);
            self.available.next()
        } else {
            self.hands.descriptors = self.hands.descriptors.wrapping_add(outline.descriptors.into());
            if let Some(place) = self.shared.places.get(usize::from(outline.head)) {
                place.store(1, Ordering::Release);
            }
            self.available.step(outline.descriptors)
        };
        self.spend();
        Aside {
            outline,
            at,
            budget,
            again,
        }
    }

    /// Puts a chain that was set aside, the first of those that are. The driver does not see it yet.
    #[inline(always)]
    pub(in super::super) fn put_aside(&mut self, aside: &Aside, written: u32) -> Result<(), Gone> {
        let (outline, shared) = (&aside.outline, self.shared);
        let written = written.min(outline.writable_len);
        if aside.again {
            return self.put_aside_far(aside, written);
        }
        // Before the driver sees that it may have it again.
        shared.forget(outline.head);
        self.hands.descriptors = self.hands.descriptors.wrapping_sub(outline.descriptors.into());
        match (&mut self.ring, &self.flat) {
            (Some(ring), Some(Format::Split(view))) => {
                let ring = &mut ring.used.ring.split;
                ring.use_near::<false>(&view.ring, outline.head, written, &shared.counters);
            }
            (Some(ring), Some(Format::Packed(view))) => {
                let ring = &mut ring.used.ring.packed;
                ring.use_near::<false>(&view.ring, outline.head, outline.descriptors, written, &shared.counters);
            }
            _ => return self.put_aside_far(aside, written),
        }
        Ok(())
    }

    #[cold]
    fn put_aside_far(&mut self, aside: &Aside, written: u32) -> Result<(), Gone> {
        self.outline = aside.outline;
        self.set_returned(aside.again);
        self.hands.aside_again -= usize::from(aside.again);
        let put = self.put_far(written, false, aside.at);
        self.set_returned(false);
        put.map(drop)
    }

    /// Leaves chains that were set aside where they were: those from `first` on, all that are left.
    pub(in super::super) fn set_back<'a>(&mut self, first: &Aside, all: impl Iterator<Item = &'a Aside>) {
        for Aside { outline, again, .. } in all {
            if *again {
                self.hands.aside_again -= 1;
            } else {
                self.shared.forget(outline.head);
                self.hands.descriptors = self.hands.descriptors.wrapping_sub(outline.descriptors.into());
            }
            self.bytes = self.bytes.wrapping_add(outline.len());
        }
        self.available.go_back(first.at);
        // One that has come to its end by bytes that were read in vain goes on to the next, as if that had been left.
        let most = if self.bytes < ROUND_BYTES { u16::MAX } else { 1 };
        self.budget = first.budget.min(most);
        self.looked = Looked::Left;
    }

    /// None is set aside any more: some were put, if `any`.
    #[inline]
    pub(in super::super) fn none_aside(&mut self, any: bool) {
        if self.company == Company::Aside {
            self.company = Company::None;
        }
        if any && self.looked == Looked::Left {
            // What comes next was not taken up because of them.
            self.looked = Looked::Taken;
        }
    }

    /// Puts the chain into the used ring.
    #[inline]
    pub(in super::super) fn give_back<const PUBLISH: bool>(&mut self, written: u32) -> Result<(), Gone> {
        // As in `next`.
        let near = match self.give_back_near::<PUBLISH>(written) {
            Near::Far if self.shared.is_packed() => self.give_back_packed_near::<PUBLISH>(written),
            near => near,
        };
        match near {
            Near::Done => Ok(()),
            Near::Signal => {
                self.signal();
                Ok(())
            }
            Near::Far => self.give_back_far(written, PUBLISH),
        }
    }

    /// The short way. It calls nothing, as [`find_near`](Self::find_near).
    #[inline(never)]
    fn give_back_near<const PUBLISH: bool>(&mut self, written: u32) -> Near {
        let (Some(_), Some(Format::Split(_))) = (&self.ring, &self.flat) else {
            return Near::Far;
        };
        self.available.split.advance();
        self.spend();
        let (Some(ring), Some(Format::Split(view))) = (&mut self.ring, &self.flat) else {
            return Near::Far;
        };
        if PUBLISH {
            self.available.split.fenced();
        }
        let written = written.min(self.outline.writable_len);
        let ring = &mut ring.used.ring.split;
        match ring.use_near::<PUBLISH>(&view.ring, self.outline.head, written, &self.shared.counters) {
            true => Near::Signal,
            false => Near::Done,
        }
    }

    /// [`give_back_near`](Self::give_back_near) in a packed ring.
    #[inline(never)]
    fn give_back_packed_near<const PUBLISH: bool>(&mut self, written: u32) -> Near {
        let (Some(ring), Some(Format::Packed(view))) = (&mut self.ring, &self.flat) else {
            return Near::Far;
        };
        let Outline {
            head,
            descriptors,
            writable_len,
            ..
        } = self.outline;
        self.available.packed.advance(descriptors);
        let (ring, written) = (&mut ring.used.ring.packed, written.min(writable_len));
        let wanted = ring.use_near::<PUBLISH>(&view.ring, head, descriptors, written, &self.shared.counters);
        self.spend();
        match wanted {
            true => Near::Signal,
            false => Near::Done,
        }
    }

    #[cold]
    fn give_back_far(&mut self, written: u32, publish: bool) -> Result<(), Gone> {
        let signal = self.put_far(written, publish, self.available.next())?;
        if self.alone() && self.ring.is_none() {
            // SAFETY: as in `new`.
            self.ring = Some(unsafe { Ring::alone(self.shared) });
        }
        self.consumed();
        if signal {
            self.signal();
        }
        Ok(())
    }

    /// Puts the chain, which was found `at` this place, and shows it if `publish`. Whether the driver is to be told.
    fn put_far(&mut self, written: u32, publish: bool, at: u16) -> Result<bool, Gone> {
        let outline = self.outline;
        let Outline { head, descriptors, .. } = outline;
        let written = written.min(outline.writable_len);
        let (shared, view) = (self.shared, self.view);
        self.unshown = !publish;
        let mut locked;
        let used = match &mut self.ring {
            Some(ring) => &mut *ring.used,
            // Others may have a part in it.
            None => {
                locked = shared.used.lock();
                &mut *locked
            }
        };
        if self.taking == Taking::Again {
            shared.forget_returned(used, head);
            shared.end_taken(used, view, &outline, written)?;
        } else if let Some(order) = used.order.as_mut().filter(|order| !order.is_empty()) {
            // It waits for those before it.
            let place = self.hands.taken();
            if let Some(tracker) = &shared.tracker {
                tracker.taken(&Taken::new(head, descriptors, at, shared.layout.size, view));
            }
            self.hands.descriptors = self.hands.descriptors.wrapping_add(descriptors.into());
            shared.places[usize::from(head)].store(place, Ordering::Release);
            let written = Some(written);
            order.push(
                place,
                Kept {
                    head,
                    descriptors,
                    written,
                },
            );
        } else {
            if let Some(tracker) = shared.tracker.as_ref().filter(|_| shared.is_packed()) {
                tracker.taken(&Taken::new(head, descriptors, at, shared.layout.size, view));
            }
            shared.put(&mut used.ring, view, (head, descriptors), written)?;
        }
        Ok(publish && shared.publish(&mut used.ring, view)?)
    }
}
