//! Guest memory without host addresses.

use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, Permissions, bitmap::BS,
    guest_memory::GuestMemorySliceIterator,
};

/// Memory as behind an IOMMU: accesses are translated one by one, and no host address is stable.
pub struct Translated<M>(pub Arc<M>);

impl<M: GuestMemoryBackend + 'static> GuestMemory for Translated<M> {
    type PhysicalMemory = M;
    type Bitmap = <M as GuestMemory>::Bitmap;

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(&*self.0, address, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        GuestMemory::get_slices(&*self.0, address, count, access)
    }
}
