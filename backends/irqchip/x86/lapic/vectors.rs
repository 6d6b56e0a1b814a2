//! A set of interrupt vectors, as IRR, ISR and TMR are.

pub use super::super::vector::Vector;

impl Vector {
    /// The priority class, which is what priorities are compared by (SDM 12.8.3).
    pub(super) fn class(self) -> u8 {
        self.0 >> 4
    }

    /// Where it is in a set of vectors: the word, and its bit there.
    pub(super) fn place(self) -> (usize, u64) {
        (usize::from(self.0 / 64), 1 << (self.0 % 64))
    }
}

/// A bit for each of the 256 vectors: vector 64 n + m is bit m of word n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vectors(pub [u64; 4]);

impl Vectors {
    pub fn contains(&self, vector: Vector) -> bool {
        let (word, bit) = vector.place();
        self.0[word] & bit != 0
    }

    pub fn set(&mut self, vector: Vector, member: bool) {
        let (word, bit) = vector.place();
        if member {
            self.0[word] |= bit;
        } else {
            self.0[word] &= !bit;
        }
    }

    pub fn highest(&self) -> Option<Vector> {
        let word = (0..4).rev().find(|word| self.0[*word] != 0)?;
        Some(Vector((64 * word as u32 + self.0[word].ilog2()) as u8))
    }

    /// The register of 32 vectors that a guest reads.
    pub fn register(&self, n: usize) -> u32 {
        (self.0[n / 2] >> (n % 2 * 32)) as u32
    }
}
