//! Guest memory as a GICv3 and its ITS use it: tables whose addresses the guest chooses.

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

/// Tables in guest memory. Addresses come from the guest: what is not memory answers an error, whatever the address.
///
/// An access is not one step: the guest may write to the same bytes meanwhile, which the architecture forbids it.
pub(in super::super) trait Tables: Send + Sync {
    /// Fills all of `data` from `address` on. After an error `data` may be filled in part.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), NoMemory>;

    /// Writes all of `data` from `address` on. After an error it may be written in part.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), NoMemory>;
}

/// Not all of the bytes of an access are guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct NoMemory;

impl<A: GuestAddressSpace + Send + Sync> Tables for A {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), NoMemory> {
        let memory = self.memory();
        memory.read_slice(data, GuestAddress(address)).map_err(|_| NoMemory)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), NoMemory> {
        let memory = self.memory();
        memory.write_slice(data, GuestAddress(address)).map_err(|_| NoMemory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vm_memory::GuestMemoryMmap;

    #[test]
    fn an_access_beyond_memory_is_an_error_at_any_address() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap();
        let tables: Arc<dyn Tables> = Arc::new(Arc::new(memory));
        assert_eq!(tables.write(0x1ff8, &[1, 2, 3, 4, 5, 6, 7, 8]), Ok(()));
        let mut data = [0; 8];
        assert_eq!(tables.read(0x1ff8, &mut data), Ok(()));
        assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8]);
        for address in [0, 0xffc, 0x1ffc, 0x2000, u64::MAX - 3] {
            assert_eq!(tables.read(address, &mut data), Err(NoMemory));
            assert_eq!(tables.write(address, &data), Err(NoMemory));
        }
    }
}
