//! What the guest can read: items by their key, and files by their name.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use super::registers::*;
use crate::sync::lock;

/// The number of an item, as the guest selects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u16);

impl Key {
    /// "QEMU", by which the guest knows the device. There from the start.
    pub const SIGNATURE: Self = Self(0x00);
    /// Which interfaces there are. There from the start.
    pub const ID: Self = Self(0x01);
    /// Bytes of memory: 64 bits.
    pub const RAM_SIZE: Self = Self(0x03);
    /// How many CPUs start: 16 bits.
    pub const NB_CPUS: Self = Self(0x05);
    /// Bytes of the kernel: 32 bits.
    pub const KERNEL_SIZE: Self = Self(0x08);
    /// Bytes of the initial RAM disk: 32 bits.
    pub const INITRD_SIZE: Self = Self(0x0b);
    /// How many CPUs there can be: 16 bits.
    pub const MAX_CPUS: Self = Self(0x0f);
    /// The kernel.
    pub const KERNEL_DATA: Self = Self(0x11);
    /// The initial RAM disk.
    pub const INITRD_DATA: Self = Self(0x12);
    /// Bytes of the command line, with the NUL at its end: 32 bits.
    pub const CMDLINE_SIZE: Self = Self(0x14);
    /// The command line, with a NUL at its end.
    pub const CMDLINE_DATA: Self = Self(0x15);
    /// Bytes of the kernel's setup part: 32 bits.
    pub const SETUP_SIZE: Self = Self(0x17);
    /// The kernel's setup part, which a PC's begins with.
    pub const SETUP_DATA: Self = Self(0x18);
    /// The directory of files. There from the start.
    pub const FILE_DIR: Self = Self(0x19);
}

/// An item or a file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FwCfgError {
    /// It is a key that the device keeps for itself.
    #[error("{0:?} is taken: items are below 0x20 or from 0x8000 on, without bit 14, and not 0x00, 0x01 and 0x19")]
    Key(Key),
    /// It cannot stand in the directory.
    #[error("no file can be called {0:?}: a name has 1 to 55 bytes, and no NUL")]
    Name(String),
    /// A file of that name is there.
    #[error("a file {0:?} is there")]
    Exists(String),
    /// There are more files than keys.
    #[error("there are 16352 files: a key has 14 bits")]
    Full,
    /// The guest could not tell how much it is.
    #[error("{0} bytes: an item has less than 4 GiB")]
    Size(u64),
}

/// The bytes of an item.
#[derive(Clone)]
pub(super) enum Item {
    Fixed(Arc<dyn AsRef<[u8]> + Send + Sync>),
    Writable(Arc<Writable>),
}

/// The guest can write to it.
pub(super) struct Writable {
    bytes: Mutex<Vec<u8>>,
    hook: Hook,
}

/// Hears what the guest has written.
type Hook = Box<dyn Fn(&[u8]) + Send + Sync>;

impl Item {
    pub(super) fn fixed(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::Fixed(Arc::new(bytes))
    }

    pub(super) fn writable(bytes: Vec<u8>, hook: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self::Writable(Arc::new(Writable {
            bytes: Mutex::new(bytes),
            hook: Box::new(hook),
        }))
    }

    /// Looks at the bytes. Calls nobody but `look`.
    pub(super) fn with<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Fixed(bytes) => look((**bytes).as_ref()),
            Self::Writable(writable) => look(&lock(&writable.bytes)),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.with(|bytes| bytes.len() as u64)
    }

    /// Copies what there is from `offset` on, and returns how much that was.
    pub(super) fn copy(&self, offset: u32, to: &mut [u8]) -> usize {
        self.with(|bytes| {
            let from = bytes.get(offset as usize..).unwrap_or_default();
            let len = from.len().min(to.len());
            to[..len].copy_from_slice(&from[..len]);
            len
        })
    }
}

impl Writable {
    /// All of `from`, or nothing if it does not fit. Then tells the hook, with nothing locked.
    pub(super) fn write(&self, offset: u32, from: &[u8]) -> bool {
        let written = {
            let mut bytes = lock(&self.bytes);
            let end = (offset as usize).saturating_add(from.len());
            let Some(to) = bytes.get_mut(offset as usize..end) else {
                return false;
            };
            to.copy_from_slice(from);
            bytes.clone()
        };
        (self.hook)(&written);
        true
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }

    /// Puts back what was written, without a call of the hook.
    pub(super) fn restore(&self, saved: &[u8]) {
        lock(&self.bytes).copy_from_slice(saved);
    }
}

/// All items. The directory follows from the files.
#[derive(Clone, Default)]
pub(super) struct Items {
    items: BTreeMap<Key, Item>,
    names: Vec<String>,
}

impl Items {
    pub(super) fn new(has_dma: bool) -> Self {
        let interfaces = TRADITIONAL | if has_dma { DMA } else { 0 };
        let mut items = Self::default();
        items.items.insert(Key::SIGNATURE, Item::fixed(b"QEMU"));
        items.items.insert(Key::ID, Item::fixed(interfaces.to_le_bytes()));
        items.list_files();
        items
    }

    pub(super) fn get(&self, key: Key) -> Option<&Item> {
        self.items.get(&key)
    }

    pub(super) fn writable(&self) -> impl Iterator<Item = (Key, &Writable)> {
        self.items.iter().filter_map(|(key, item)| match item {
            Item::Writable(writable) => Some((*key, &**writable)),
            Item::Fixed(_) => None,
        })
    }

    pub(super) fn insert(&mut self, key: Key, item: Item) -> Result<(), FwCfgError> {
        let own = [Key::SIGNATURE, Key::ID, Key::FILE_DIR].contains(&key);
        if own || key.0 & WRITE != 0 || (FIRST_FILE..ARCHITECTURE).contains(&key.0) {
            return Err(FwCfgError::Key(key));
        }
        check_size(&item)?;
        self.items.insert(key, item);
        Ok(())
    }

    pub(super) fn add_file(&mut self, name: &str, item: Item) -> Result<Key, FwCfgError> {
        if name.is_empty() || name.len() >= NAME || name.contains('\0') {
            return Err(FwCfgError::Name(name.to_owned()));
        }
        if self.names.iter().any(|there| there == name) {
            return Err(FwCfgError::Exists(name.to_owned()));
        }
        check_size(&item)?;
        let key = u16::try_from(self.names.len())
            .ok()
            .and_then(|count| count.checked_add(FIRST_FILE))
            .filter(|key| *key < WRITE)
            .ok_or(FwCfgError::Full)?;
        self.items.insert(Key(key), item);
        self.names.push(name.to_owned());
        self.list_files();
        Ok(Key(key))
    }

    /// The directory: a count, then size, key, two bytes that are reserved and name of each, with the highest byte first.
    fn list_files(&mut self) {
        let mut directory = (self.names.len() as u32).to_be_bytes().to_vec();
        for (key, name) in (FIRST_FILE..).zip(&self.names) {
            let size = self.items.get(&Key(key)).map_or(0, Item::len) as u32;
            directory.extend(size.to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = [0; NAME];
            field[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(field);
        }
        self.items.insert(Key::FILE_DIR, Item::fixed(directory));
    }
}

fn check_size(item: &Item) -> Result<(), FwCfgError> {
    let len = item.len();
    match u32::try_from(len) {
        Ok(_) => Ok(()),
        Err(_) => Err(FwCfgError::Size(len)),
    }
}

impl fmt::Debug for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = self.items.iter().map(|(key, item)| (key, item.len()));
        f.debug_map().entries(sizes).finish()
    }
}
