//! How much is read at once.

/// How much a source that is read again and again is expected to have: what it had last time until there was no more.
#[derive(Default)]
pub(super) struct Burst {
    expected: u32,
    /// Since there was no more.
    read: u32,
}

impl Burst {
    /// The most that is read at a time.
    pub const MOST: u32 = 256 << 10;

    pub fn expected(&self) -> u32 {
        self.expected
    }

    /// So many bytes were read. `all`: with room for more.
    pub fn has_read(&mut self, len: u32, all: bool) {
        self.read = self.read.saturating_add(len);
        if all {
            self.expected = self.read.min(Self::MOST);
            self.read = 0;
        } else {
            self.expected = self.expected.max(self.read.saturating_mul(4)).min(Self::MOST);
        }
    }

    /// There was nothing.
    pub fn was_empty(&mut self) {
        if self.read != 0 {
            self.has_read(0, true);
        }
    }
}
