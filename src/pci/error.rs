//! Why a saved function is refused.

/// A state that no such function can be in. Nothing was restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A bit of configuration space that the guest cannot have changed.
    #[error(
        "configuration space has {found:#04x} at {offset:#04x}: this function has {expected:#04x}, and the guest \
         writes {writable:#04x} of it"
    )]
    ReadOnly {
        /// The first such byte.
        offset: u8,
        /// Its value in the state.
        found: u8,
        /// Its value after reset.
        expected: u8,
        /// The bits that may differ.
        writable: u8,
    },
    /// MSI-X is there on one side alone.
    #[error("the state is of a function {} MSI-X, this one is otherwise", if *found { "with" } else { "without" })]
    MsiX {
        /// Whether the state has it.
        found: bool,
    },
    /// The table or the pending bits are those of another function.
    #[error("{entries} MSI-X entries and {words} words of pending bits: this function has {count} vectors, 64 a word")]
    MsiXLength {
        /// Vectors of this function.
        count: usize,
        /// Entries in the state.
        entries: usize,
        /// Words of pending bits in the state.
        words: usize,
    },
    /// An address that the table cannot hold.
    #[error("the address of MSI-X vector {vector} is no multiple of 4")]
    MsiXAddress {
        /// The first such vector.
        vector: usize,
    },
    /// A pending bit where there cannot be one: no such vector, or not enabled.
    #[error("vector {vector} is pending: only vectors that exist can be, while MSI or MSI-X is enabled")]
    Pending {
        /// The first such vector.
        vector: usize,
    },
}
