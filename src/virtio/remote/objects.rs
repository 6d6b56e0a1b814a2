//! Objects that back ends share with each other (virtio 1.2, section 2.11; `SHARED_OBJECT`): by which of them one is exported.

use std::{
    collections::HashMap,
    fmt, io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, OnceLock, Weak},
};

use crate::sync::lock;

/// By what an object is known.
pub(super) type Uuid = [u8; 16];

/// A device whose back end can be asked for what it exports.
pub(super) trait Export: Send + Sync {
    /// The object of that name, as a file.
    ///
    /// # Errors
    /// The back end has none, or cannot be asked now.
    fn export(&self, uuid: Uuid) -> io::Result<OwnedFd>;
}

/// The exported objects of a machine: those of all devices that are given this table in
/// [their options](super::RemoteOptions::shared_objects). A back end exports an object with a UUID, another one asks for it, and is
/// given what the exporter gives, a dma-buf say. What a back end has exported goes with its connection.
///
/// Clones are the same table.
///
/// ```
/// use devisor::virtio::{DeviceId, remote::{RemoteOptions, SharedObjects}};
///
/// let objects = SharedObjects::new(1024);
/// let [mut gpu, mut video] = [DeviceId(16), DeviceId(31)].map(RemoteOptions::new);
/// gpu.shared_objects = Some(objects.clone());
/// video.shared_objects = Some(objects.clone());
/// assert_eq!(objects.count(), 0);
/// ```
#[derive(Clone)]
pub struct SharedObjects(Arc<Table>);

struct Table {
    most: usize,
    exporters: Mutex<HashMap<Uuid, Weak<Exporter>>>,
}

/// A device, once it is behind a transport.
#[derive(Default)]
struct Exporter(OnceLock<Weak<dyn Export>>);

impl SharedObjects {
    /// A table of at most so many objects, of all back ends together: those that would export more are refused. One may take all of it.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Table {
            most,
            exporters: Mutex::default(),
        }))
    }

    /// How many objects are exported.
    pub fn count(&self) -> usize {
        lock(&self.0.exporters).len()
    }

    /// The object with this UUID, from the back end that exports it, which is waited for a quarter as long as
    /// [its patience](super::RemoteOptions::patience) lasts.
    ///
    /// # Errors
    /// Nobody exports it, or who does has not given it.
    pub fn get(&self, uuid: [u8; 16]) -> io::Result<OwnedFd> {
        let exporter = lock(&self.0.exporters).get(&uuid).and_then(Weak::upgrade);
        let device = exporter.and_then(|exporter| exporter.0.get()?.upgrade());
        device.ok_or(io::ErrorKind::NotFound)?.export(uuid)
    }
}

impl fmt::Debug for SharedObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedObjects")
            .field("most", &self.0.most)
            .field("count", &self.count())
            .finish()
    }
}

/// Whether it is the same table.
impl PartialEq for SharedObjects {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SharedObjects {}

/// A device's part in a table.
pub(super) struct Member {
    objects: SharedObjects,
    me: Arc<Exporter>,
}

impl Member {
    pub fn new(objects: &SharedObjects) -> Self {
        Self {
            objects: objects.clone(),
            me: Arc::default(),
        }
    }

    /// From here on, what is exported can be asked for.
    pub fn join(&self, device: Weak<dyn Export>) {
        let _ = self.me.0.set(device);
    }

    fn is_me(&self, exporter: &Weak<Exporter>) -> bool {
        exporter.ptr_eq(&Arc::downgrade(&self.me))
    }

    pub fn add(&self, uuid: Uuid) -> io::Result<()> {
        let mut exporters = lock(&self.objects.0.exporters);
        if exporters.contains_key(&uuid) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if exporters.len() >= self.objects.0.most {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        exporters.insert(uuid, Arc::downgrade(&self.me));
        Ok(())
    }

    /// "Only the back-end owning the entry (i.e., the one that first added it) will have permission to remove it."
    pub fn remove(&self, uuid: Uuid) -> io::Result<()> {
        let mut exporters = lock(&self.objects.0.exporters);
        match exporters.get(&uuid) {
            Some(exporter) if self.is_me(exporter) => {
                exporters.remove(&uuid);
                Ok(())
            }
            Some(_) => Err(io::ErrorKind::PermissionDenied.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// What another one exports: this one's connection is in use.
    pub fn look_up(&self, uuid: Uuid) -> io::Result<OwnedFd> {
        let is_own = lock(&self.objects.0.exporters)
            .get(&uuid)
            .is_some_and(|exporter| self.is_me(exporter));
        match is_own {
            true => Err(io::ErrorKind::InvalidInput.into()),
            false => self.objects.get(uuid),
        }
    }

    /// The back end has gone.
    pub fn forget(&self) {
        lock(&self.objects.0.exporters).retain(|_, exporter| !self.is_me(exporter));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.forget();
    }
}
