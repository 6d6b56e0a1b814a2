//! Saved states of the device.

use std::collections::BTreeMap;

use super::{
    Cursor, Model,
    items::{Key, Writable},
};

/// The state of an [`FwCfg`](super::FwCfg), as plain data. What the guest can only read is not in it: who restores gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgState {
    /// What the guest has selected, with bit 14 if it asked to write.
    pub selector: u16,
    /// Where the next byte is read.
    pub offset: u32,
    /// The upper half of the address of the next DMA command.
    pub dma_high: u32,
    /// The items that the guest can write to.
    pub written: BTreeMap<Key, Vec<u8>>,
}

/// An [`FwCfgState`] does not fit the items that are there. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FwCfgStateError {
    /// The items that the guest can write to are others.
    #[error("the state has {saved:?} for the guest to write to: here are {here:?}")]
    Items {
        /// Those in the state.
        saved: Vec<Key>,
        /// Those of this device.
        here: Vec<Key>,
    },
    /// One of them has another length.
    #[error("{key:?} has {saved} bytes in the state: it has {here}")]
    Length {
        /// Which one.
        key: Key,
        /// In the state.
        saved: usize,
        /// Of this device.
        here: usize,
    },
}

impl Model {
    pub(super) fn save(&self) -> FwCfgState {
        let Self {
            items,
            cursor: Cursor { selector, offset },
            dma_high,
        } = self;
        FwCfgState {
            selector: *selector,
            offset: *offset,
            dma_high: *dma_high,
            written: items.writable().map(|(key, item)| (key, item.bytes())).collect(),
        }
    }

    pub(super) fn restore(&mut self, state: &FwCfgState) -> Result<(), FwCfgStateError> {
        let FwCfgState {
            selector,
            offset,
            dma_high,
            written,
        } = state;
        let here: Vec<(Key, &Writable)> = self.items.writable().collect();
        if !here.iter().map(|(key, _)| key).eq(written.keys()) {
            return Err(FwCfgStateError::Items {
                saved: written.keys().copied().collect(),
                here: here.iter().map(|(key, _)| *key).collect(),
            });
        }
        for ((key, item), bytes) in here.iter().zip(written.values()) {
            let (saved, here) = (bytes.len(), item.bytes().len());
            if saved != here {
                let key = *key;
                return Err(FwCfgStateError::Length { key, saved, here });
            }
        }
        for ((_, item), bytes) in here.iter().zip(written.values()) {
            item.restore(bytes);
        }
        self.cursor = Cursor {
            selector: *selector,
            offset: *offset,
        };
        self.dma_high = *dma_high;
        Ok(())
    }
}
