//! Guest memory that is registered with a ring, so that the kernel need not find the pages of each request.

use std::ops::Range;

use io_uring::{IoUring, Probe, opcode};

use super::{super::Piece, Shared};
use crate::{
    memory::{Pin, Which},
    sync::lock,
};

/// The most bytes that the kernel takes as one buffer.
const LARGEST: u64 = 1 << 30;

pub struct Registered {
    wanted: bool,
    /// The kernel takes requests in several pieces as well (Linux 6.15).
    pieces: bool,
    /// The map whose memory is registered, or was refused.
    map: Option<Which>,
    /// Host addresses, in the order of the kernel's table; none, if it was refused.
    buffers: Vec<Range<usize>>,
}

impl Registered {
    pub fn new(shared: &Shared, ring: &IoUring) -> Self {
        let wanted = shared.options.register_memory;
        let mut probe = Probe::new();
        let pieces = wanted
            && ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::ReadvFixed::CODE)
            && probe.is_supported(opcode::WritevFixed::CODE);
        Self {
            wanted,
            pieces,
            map: None,
            buffers: Vec::new(),
        }
    }

    /// In which of the buffers all of `pieces` are, which are of `pin`. Another map is registered if that one is `idle`: no request is
    /// under way by it.
    #[inline]
    pub fn place(&mut self, ring: &IoUring, shared: &Shared, pin: &Pin, pieces: &[Piece], idle: bool) -> Option<u16> {
        if !self.wanted {
            return None;
        }
        if !self.map.as_ref().is_some_and(|map| map.is_of(pin)) {
            if !idle {
                return None;
            }
            self.register(ring, shared, pin);
        }
        let (first, others) = pieces.split_first()?;
        if !others.is_empty() && !self.pieces {
            return None;
        }
        let has = |buffer: &Range<usize>, piece: &Piece| {
            let start = piece.as_ptr() as usize;
            start >= buffer.start && start < buffer.end && piece.len() <= buffer.end - start
        };
        let place = self.buffers.iter().position(|buffer| has(buffer, first))?;
        let all = others.iter().all(|piece| has(&self.buffers[place], piece));
        all.then_some(place as u16)
    }

    #[cold]
    fn register(&mut self, ring: &IoUring, shared: &Shared, pin: &Pin) {
        self.let_go(ring, shared);
        self.map = Some(pin.which());
        let mut vectors = Vec::new();
        for (base, len) in pin.host_ranges() {
            let mut done = 0;
            while done < len {
                let now = (len - done).min(LARGEST);
                // Within a region of guest memory.
                let start = base.as_ptr().wrapping_add(done as usize);
                vectors.push(libc::iovec {
                    iov_base: start.cast(),
                    iov_len: now as usize,
                });
                self.buffers.push(start as usize..start as usize + now as usize);
                done += now;
            }
        }
        // SAFETY: they are mapped, as the pin is there. Used are those alone in which a piece of a pin of this map lies, which keeps
        // them mapped; the pages themselves are kept by the kernel until they are let go of.
        let result = unsafe { ring.submitter().register_buffers(&vectors) };
        let mut status = lock(&shared.status);
        match result {
            Ok(()) => status.registered += 1,
            Err(error) => {
                self.buffers.clear();
                status.refused = Some(error.to_string());
            }
        }
    }

    /// Nobody uses the map any more: its pages are the host's again.
    #[inline]
    pub fn let_go_of_old(&mut self, ring: &IoUring, shared: &Shared) {
        if self.map.as_ref().is_some_and(Which::is_gone) {
            self.let_go(ring, shared);
        }
    }

    #[cold]
    pub fn let_go(&mut self, ring: &IoUring, shared: &Shared) {
        self.map = None;
        if !self.buffers.is_empty() {
            self.buffers.clear();
            // Refused, they go with the ring.
            let _ = ring.submitter().unregister_buffers();
            lock(&shared.status).registered -= 1;
        }
    }
}
