//! How a round finds its chains: the short way first, and what it leaves to the long one.

use std::sync::atomic::Ordering;

use super::{
    super::{
        ChainError, Gone, QueueError,
        chain::{MAX_SEGMENTS, Outline},
        counters::Kind,
        format::Format,
        split::{Look, LookNear},
        view::Short,
        walk::Broken,
    },
    DESCRIPTOR_BYTES, Looked, Round,
};

impl Round<'_> {
    /// Looks for a chain the short way, in plain guest memory or in translated one.
    #[inline(always)]
    pub(super) fn find_short(&mut self) -> bool {
        match self.short == Short::Split {
            true => self.find_near::<false>(),
            false => self.find_other_short(),
        }
    }

    #[cold]
    fn find_other_short(&mut self) -> bool {
        match self.short == Short::Packed {
            true => self.find_packed_near::<false>(),
            false => self.find_near::<true>() || self.find_packed_near::<true>(),
        }
    }

    /// The short way of [`find`](Self::find), for what nearly all chains are. Whether it has found one; if not, it may know that there is
    /// none, and otherwise nothing.
    ///
    /// It calls nothing, so that it need not save registers for that.
    #[inline(never)]
    fn find_near<const TRANSLATED: bool>(&mut self) -> bool {
        self.looked = Looked::Left;
        let Some(Format::Split(view)) = &self.flat else {
            return false;
        };
        if self.budget == 0 {
            return false;
        }
        let head = match self.available.split.look_near(&view.ring, || self.view.pin.tracks()) {
            LookNear::Head(head) => head,
            LookNear::Nothing if self.alone() || !self.shared.returns() => {
                self.looked = Looked::Empty;
                return false;
            }
            LookNear::Nothing | LookNear::Far => return false,
        };
        let shared = self.shared;
        if self.checks() && (shared.returns() || shared.is_in_flight(head.index())) {
            return false;
        }
        let segments = &mut self.hands.segments;
        segments.walk_near::<TRANSLATED>(&mut self.outline, view, head, self.indirect)
    }

    /// [`find_near`](Self::find_near) in a packed ring.
    #[inline(never)]
    fn find_packed_near<const TRANSLATED: bool>(&mut self) -> bool {
        self.looked = Looked::Left;
        let Some(Format::Packed(view)) = &self.flat else {
            return false;
        };
        let available = &self.available.packed;
        let Some(first) = available.look_near(&view.ring) else {
            return false;
        };
        if self.budget == 0 || self.checks() && self.shared.returns() {
            return false;
        }
        let segments = &mut self.hands.segments;
        let walked =
            segments.walk_packed_near::<TRANSLATED>(&mut self.outline, view, first, available.next, self.indirect);
        walked && (!self.checks() || self.fits(&self.outline).is_ok())
    }

    /// Whether a chain of a packed ring can be, beside those that are in flight.
    fn fits(&self, outline: &Outline) -> Result<(), QueueError> {
        let (shared, size) = (self.shared, self.shared.layout.size);
        if shared.is_in_flight(outline.head) {
            return Err(QueueError::InFlight(outline.head));
        }
        let out = self
            .hands
            .descriptors
            .wrapping_sub(shared.ended.load(Ordering::Acquire));
        match out + u32::from(outline.descriptors) {
            made if made > size.into() => Err(QueueError::Overrun { made, size }),
            _ => Ok(()),
        }
    }

    /// Looks for the next chain and walks it. Whether there is one that keeps the rules; others are given back at once.
    #[cold]
    pub(super) fn find(&mut self) -> Result<bool, QueueError> {
        self.looked = Looked::Left;
        while self.budget != 0 {
            let mut read = 0;
            let walked = match self.walk(&mut read) {
                Ok(Some(walked)) => walked,
                Ok(None) => {
                    self.looked = Looked::Empty;
                    return Ok(false);
                }
                Err(Broken::Ring(error)) => return Err(error),
                Err(Broken::Gone) => return Err(self.shared.gone()),
            };
            self.has_read(read);
            let spilled = self.shared.spilled.load(Ordering::SeqCst);
            let kind = match &walked {
                // What comes again in a packed ring has been held all along.
                Ok(()) if read == 0 || spilled + self.outline.spilled() <= MAX_SEGMENTS => return Ok(true),
                Ok(()) => Kind::Held,
                // It stays where it is: who tells of the translation that is missing has this looked at again.
                Err(_) if self.view.pin.awaits() => return Ok(false),
                Err(error) => error.into(),
            };
            self.shared.counters.malformed(kind);
            self.give_back::<true>(0).map_err(|Gone| self.shared.gone())?;
        }
        Ok(false)
    }

    /// Looks for another chain beside those that are [set aside](Self::set_aside). Whether there is one that keeps the rules: what else
    /// is there is found again when they are given back.
    #[inline]
    pub(in super::super) fn find_beside(&mut self) -> bool {
        self.find_short() || self.looked != Looked::Empty && self.find_beside_far()
    }

    #[cold]
    fn find_beside_far(&mut self) -> bool {
        self.looked = Looked::Left;
        if self.budget == 0 || self.comes_one_before() {
            return false;
        }
        let mut read = 0;
        let walked = self.walk(&mut read);
        self.has_read(read);
        if let Ok(None) = walked {
            self.looked = Looked::Empty;
        }
        matches!(walked, Ok(Some(Ok(()))))
    }

    /// Whether a chain that was taken before one of those that are set aside has been given back untouched since: what comes now would
    /// be one of these again, or one after it.
    fn comes_one_before(&self) -> bool {
        let Some(last) = self.hands.aside_again.checked_sub(1) else {
            return false;
        };
        let used = self.shared.used.lock();
        let last = used.resubmit.get(last);
        last.is_none_or(|last| self.shared.place(last.head) != self.hands.aside_last)
    }

    /// So many descriptors were read the long way.
    fn has_read(&mut self, read: u32) {
        if read != 0 {
            // The next is looked for where this one is.
            self.flat = self.view.flat_near(self.hands.segments.first());
            let reading = u64::from(read) * DESCRIPTOR_BYTES;
            self.reading += reading;
            self.spend_bytes(reading, 1);
        }
    }

    /// Walks the next chain, if there is one. How many descriptors it has read the long way is added to `read`.
    fn walk(&mut self, read: &mut u32) -> Result<Option<Result<(), ChainError>>, Broken> {
        let returns = !self.alone() && self.shared.returns();
        let again = if returns { self.walk_again(read) } else { None };
        self.set_returned(again.is_some());
        if self.returned() {
            return Ok(again);
        }
        let walked = match self.view.ring() {
            Format::Split(ring) => {
                let available = &mut self.available.split;
                let head = match available.look(ring) {
                    Look::Head(head) => head,
                    Look::Nothing => return Ok(None),
                    Look::Broken(found) => return Err(Broken::Ring(available.broken(found))),
                    Look::Gone => return Err(Broken::Gone),
                };
                if self.checks() && self.shared.is_in_flight(head) {
                    return Err(Broken::Ring(QueueError::InFlight(head)));
                }
                self.walk_split(head, read)
            }
            Format::Packed(ring) => {
                let available = &mut self.available.packed;
                let Look::Head(first) = available.look(ring)? else {
                    return Ok(None);
                };
                let (outline, spot, indirect) = (&mut self.outline, available.next, self.indirect);
                let segments = &mut self.hands.segments;
                let near = match &self.flat {
                    Some(Format::Packed(view)) => {
                        segments.walk_packed_near::<true>(outline, view, first, spot, indirect)
                    }
                    _ => false,
                };
                let walked = match near {
                    true => Ok(()),
                    false => segments.walk_packed(outline, ring, first, spot, indirect, read)?,
                };
                if self.checks() {
                    self.fits(&self.outline).map_err(Broken::Ring)?;
                }
                walked
            }
        };
        Ok(Some(walked))
    }

    /// Walks the chain at `head` of a split ring.
    fn walk_split(&mut self, head: u16, read: &mut u32) -> Result<(), ChainError> {
        let (segments, outline, indirect) = (&mut self.hands.segments, &mut self.outline, self.indirect);
        if let Some(Format::Split(view)) = &self.flat
            && let Some(head) = view.ring.head(head)
            && segments.walk_near::<true>(outline, view, head, indirect)
        {
            return Ok(());
        }
        match self.view.ring() {
            Format::Split(ring) => segments.walk(outline, ring, head, indirect, read),
            Format::Packed(_) => unreachable!("a queue has one format"),
        }
    }

    /// Walks the first chain that was given back untouched and is not set aside, if there is one.
    fn walk_again(&mut self, read: &mut u32) -> Option<Result<(), ChainError>> {
        let shared = self.shared;
        let used = shared.used.lock();
        // By its place: more may come back before those that are set aside at any time.
        let after = match self.hands.aside_again {
            0 => 0,
            _ => self.hands.aside_last,
        };
        let mut returned = used.resubmit.iter();
        let returned = returned.find(|returned| shared.place(returned.head) > after)?;
        if let Some((outline, segments)) = &returned.chain {
            self.outline = *outline;
            self.hands.segments.copy(outline, segments);
            drop(used);
            return Some(self.hands.segments.check(&self.outline, &self.view.pin));
        }
        let head = returned.head;
        drop(used);
        Some(self.walk_split(head, read))
    }
}
