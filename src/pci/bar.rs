//! Base address registers (PCI Local Bus 3.0, section 6.2.5.1).

use super::registers::*;

/// One of the six base address registers of a type 0 function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say all there is")]
pub enum BarIndex {
    Bar0,
    Bar1,
    Bar2,
    Bar3,
    Bar4,
    Bar5,
}

impl BarIndex {
    pub(super) const COUNT: usize = 6;
    /// All of them, in order.
    pub const ALL: [Self; Self::COUNT] = [Self::Bar0, Self::Bar1, Self::Bar2, Self::Bar3, Self::Bar4, Self::Bar5];

    /// The register with this number: 0 to 5, or none.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its offset in configuration space.
    pub(super) fn register(self) -> usize {
        BARS + 4 * self as usize
    }
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Memory, anywhere below 4 GiB.
    Memory32,
    /// Memory anywhere. Takes two registers.
    Memory64,
    /// Memory anywhere whose reads have no side effects. Takes two registers.
    Prefetchable64,
    /// Ports.
    Io,
}

impl BarKind {
    /// The read-only low bits.
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::Memory32 => 0,
            Self::Memory64 => BAR_64,
            Self::Prefetchable64 => BAR_64 | BAR_PREFETCHABLE,
            Self::Io => BAR_IO,
        }
    }

    /// The bit of the command register that lets it decode.
    pub(super) fn enable(self) -> u16 {
        match self {
            Self::Io => IO_SPACE,
            _ => MEMORY_SPACE,
        }
    }

    /// The smallest and the largest size, in bytes.
    pub(super) fn sizes(self) -> (u64, u64) {
        match self {
            Self::Memory32 => (16, 1 << 31),
            Self::Memory64 | Self::Prefetchable64 => (16, 1 << 63),
            Self::Io => (4, 256),
        }
    }
}

/// A BAR: what it decodes, and how many bytes of it.
///
/// ```
/// use devisor::pci::{Bar, BarKind};
///
/// assert_eq!(Bar::memory32(0x1000), Bar { kind: BarKind::Memory32, size: 0x1000 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// What it decodes.
    pub kind: BarKind,
    /// Its size in bytes: a power of two.
    pub size: u64,
}

impl Bar {
    /// `size` bytes of memory below 4 GiB.
    pub fn memory32(size: u64) -> Self {
        let kind = BarKind::Memory32;
        Self { kind, size }
    }

    /// `size` bytes of memory anywhere.
    pub fn memory64(size: u64) -> Self {
        let kind = BarKind::Memory64;
        Self { kind, size }
    }

    /// `size` ports.
    pub fn io(size: u64) -> Self {
        let kind = BarKind::Io;
        Self { kind, size }
    }

    pub(super) fn is_64_bit(self) -> bool {
        matches!(self.kind, BarKind::Memory64 | BarKind::Prefetchable64)
    }
}
