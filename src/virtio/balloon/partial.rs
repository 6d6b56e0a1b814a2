//! Pages of a host with larger ones than the balloon's, of which a part is in the balloon.

use std::{collections::BTreeMap, ops::Range};

use super::registers::PAGE;

/// Which 4 KiB of a host page are in the balloon. It may be given back once all are.
///
/// What is remembered from one request to the next is right only if the driver tells before it uses a page again
/// (VIRTIO_BALLOON_F_MUST_TELL_HOST): it could use one that is still counted here.
#[derive(Debug, Default)]
pub(super) struct Partial {
    /// By address, a bit for each page of the balloon's.
    pages: BTreeMap<u64, HostPage>,
}

#[derive(Debug)]
struct HostPage {
    len: u64,
    given: Box<[u64]>,
    missing: u64,
}

impl Partial {
    /// `piece` of the host page of `len` bytes at `base` is in the balloon. Whether all of the host page is: it is forgotten then.
    /// A piece of a page that there is no room for is forgotten too.
    pub fn give(&mut self, base: u64, len: u64, piece: Range<u64>, max: usize) -> bool {
        let room = self.pages.len() < max;
        if !self.pages.contains_key(&base) && !room {
            return false;
        }
        let pages = len / PAGE;
        let page = self.pages.entry(base).or_insert_with(|| HostPage {
            len,
            given: vec![0; (pages as usize).div_ceil(64)].into(),
            missing: pages,
        });
        page.change(base, &piece, true);
        let whole = page.missing == 0;
        if whole {
            self.pages.remove(&base);
        }
        whole
    }

    /// The guest has `range` again, or all of it was given back.
    pub fn take(&mut self, range: Range<u64>) {
        if self.pages.is_empty() {
            return;
        }
        // Host pages do not overlap, so only the one that begins before the range can reach into it.
        let before = self.pages.range(..range.start).next_back().map(|(&base, _)| base);
        let first = before.unwrap_or(range.start);
        let mut empty = Vec::new();
        for (&base, page) in self.pages.range_mut(first..range.end) {
            page.change(base, &range, false);
            if page.missing == page.len / PAGE {
                empty.push(base);
            }
        }
        empty.iter().for_each(|base| _ = self.pages.remove(base));
    }

    pub fn clear(&mut self) {
        self.pages.clear();
    }
}

impl HostPage {
    /// Sets what is in `range` of the page at `base`.
    fn change(&mut self, base: u64, range: &Range<u64>, given: bool) {
        let first = range.start.max(base);
        let end = range.end.min(base + self.len);
        for index in (first..end)
            .step_by(PAGE as usize)
            .map(|address| (address - base) / PAGE)
        {
            let (word, bit) = (&mut self.given[(index / 64) as usize], 1 << (index % 64));
            match (given, *word & bit != 0) {
                (true, false) => self.missing -= 1,
                (false, true) => self.missing += 1,
                _ => continue,
            }
            *word ^= bit;
        }
    }
}
