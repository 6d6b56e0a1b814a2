//! A disk in memory that erases for good, and can tell how worn it is.

use std::{io, sync::Arc};

use devisor::virtio::block::{Abilities, Lifetime, MemoryStorage, Storage};
use vm_memory::VolatileSlice;

pub struct Worn(pub Arc<MemoryStorage>);

/// What it says of itself: pre-EOL information, and both estimates.
pub const WORN: [u16; 3] = [1, 3, 4];

impl Storage for Worn {
    fn capacity(&self) -> io::Result<u64> {
        self.0.capacity()
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            secure_erase: true,
            ..self.0.abilities()
        }
    }

    fn lifetime(&self) -> Option<Lifetime> {
        let [pre_eol_info, device_lifetime_est_typ_a, device_lifetime_est_typ_b] = WORN;
        Some(Lifetime {
            pre_eol_info,
            device_lifetime_est_typ_a,
            device_lifetime_est_typ_b,
        })
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.0.read_at(offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.0.write_at(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }

    fn secure_erase(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.write_zeroes(offset, len, false)
    }
}
