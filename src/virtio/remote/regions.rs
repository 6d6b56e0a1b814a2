//! Guest memory that can be shared: what a back end is told of each region.

use std::{fs::File, sync::Arc};

use vm_memory::{GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::RemoteError;
use crate::virtio::vhost_user::Region;

/// A region and the file that is mapped there.
#[derive(Clone)]
pub(super) struct SharedRegion {
    pub region: Region,
    pub file: Arc<File>,
}

impl PartialEq for SharedRegion {
    fn eq(&self, other: &Self) -> bool {
        self.region == other.region && Arc::ptr_eq(&self.file, &other.file)
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
            let (Some(file), Ok(host)) = (region.file_offset(), host) else {
                return Err(RemoteError::NotShared(guest));
            };
            regions.push(SharedRegion {
                region: Region {
                    guest,
                    size: region.len(),
                    user: host as u64,
                    offset: file.start(),
                },
                file: Arc::clone(file.arc()),
            });
        }
        Ok(regions)
    })
}

/// The address by which the back end knows the `len` bytes at guest address `address`, if they are in one region.
pub(super) fn user_address(regions: &[SharedRegion], address: u64, len: u64) -> Option<u64> {
    regions.iter().find_map(|SharedRegion { region, .. }| {
        let offset = address.checked_sub(region.guest)?;
        let within = offset < region.size && len <= region.size - offset;
        within.then(|| region.user.wrapping_add(offset))
    })
}
