//! Guest memory as it is shared: what a back end is told of each region.

use std::{fs::File, sync::Arc};

use vm_memory::{GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::error::RemoteError;
use crate::virtio::vhost_user::Region;

/// A region, and the file that is mapped there, if it is one.
#[derive(Clone)]
pub(super) struct SharedRegion {
    pub region: Region,
    pub file: Option<Arc<File>>,
}

impl PartialEq for SharedRegion {
    fn eq(&self, other: &Self) -> bool {
        let same_file = match (&self.file, &other.file) {
            (Some(file), Some(other)) => Arc::ptr_eq(file, other),
            (None, None) => true,
            _ => false,
        };
        self.region == other.region && same_file
    }
}

/// All regions as they are now.
pub(super) type Regions = Box<dyn Fn() -> Result<Vec<SharedRegion>, RemoteError> + Send + Sync>;

/// The regions of an embedder's memory, whatever its type.
pub(super) fn of<A>(space: A) -> Regions
where
    A: GuestAddressSpace + Send + Sync + 'static,
{
    Box::new(move || {
        let memory = space.memory();
        let physical = memory.physical_memory().ok_or(RemoteError::Translated)?;
        let mut regions = Vec::with_capacity(physical.num_regions());
        for region in physical.iter() {
            let guest = region.start_addr().0;
            let host = region.get_host_address(MemoryRegionAddress(0));
            let host = host.map_err(|_| RemoteError::NotShared(guest))?;
            let file = region.file_offset();
            regions.push(SharedRegion {
                region: Region {
                    guest,
                    size: region.len(),
                    user: host as u64,
                    offset: file.map_or(0, |file| file.start()),
                },
                file: file.map(|file| Arc::clone(file.arc())),
            });
        }
        Ok(regions)
    })
}

/// A region that only this process has.
pub(super) fn not_shared(regions: &[SharedRegion]) -> Result<(), RemoteError> {
    match regions.iter().find(|shared| shared.file.is_none()) {
        Some(SharedRegion { region, .. }) => Err(RemoteError::NotShared(region.guest)),
        None => Ok(()),
    }
}

/// The address by which the back end knows the `len` bytes at guest address `address`, if they are in one region.
pub(super) fn user_address(regions: &[SharedRegion], address: u64, len: u64) -> Option<u64> {
    regions.iter().find_map(|SharedRegion { region, .. }| {
        let offset = address.checked_sub(region.guest)?;
        let within = offset < region.size && len <= region.size - offset;
        within.then(|| region.user.wrapping_add(offset))
    })
}
