//! QEMU's firmware configuration device, from which firmware and kernels read what the machine is like: *QEMU Firmware
//! Configuration (fw_cfg) Device*.

mod describe;
mod dma;
mod items;
mod registers;
mod state;

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use vm_memory::GuestAddressSpace;

use crate::{
    bus::{BusDevice, read_le},
    sync::lock,
};
use dma::Memory;
use items::{Item, Items};
use registers::*;

pub use describe::{describe, describe_in_memory};
pub use items::{FwCfgError, Key};
pub use state::{FwCfgState, FwCfgStateError};

/// A firmware configuration device. Clones are handles to the same one, which lives as long as any of them or of its faces.
///
/// It has items, which the guest selects by number, and files, which it finds in a directory. [`ports`](Self::ports) are its face on
/// a PC, [`mmio`](Self::mmio) elsewhere.
///
/// # Threads
/// Every method may be called from any thread, also from within hooks: none of them is called with anything locked. The guest has one
/// place to read from: CPUs that use it at the same time disturb each other, as on any such device.
///
/// ```
/// use devisor::{bus::BusDevice, platform::fw_cfg::{FwCfg, Key}};
///
/// let fw_cfg = FwCfg::without_dma();
/// fw_cfg.set_item(Key::NB_CPUS, 2_u16.to_le_bytes())?;
/// let greeting = fw_cfg.add_file("opt/org.example/greeting", "hello")?;
///
/// let ports = fw_cfg.ports();
/// ports.write(0, &greeting.0.to_le_bytes());
/// let mut read = [0; 6];
/// read.chunks_mut(1).for_each(|byte| ports.read(1, byte));
/// assert_eq!(&read, b"hello\0", "and zeros after that");
/// # Ok::<(), devisor::platform::fw_cfg::FwCfgError>(())
/// ```
#[derive(Clone)]
pub struct FwCfg {
    shared: Arc<Shared>,
}

/// What is behind the handles.
struct Shared {
    memory: Option<Box<dyn Memory>>,
    model: Mutex<Model>,
}

#[derive(Debug)]
struct Model {
    items: Items,
    cursor: Cursor,
    dma_high: u32,
}

/// Where the guest reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    selector: u16,
    offset: u32,
}

impl Cursor {
    fn select(&mut self, selector: u16) {
        *self = Self { selector, offset: 0 };
    }

    fn key(self) -> u16 {
        self.selector & !WRITE
    }
}

impl FwCfg {
    /// A device that copies items to the guest's memory by itself, as firmware of today wants it. It has no item but its own, and no
    /// file.
    pub fn new(memory: impl GuestAddressSpace + Send + Sync + 'static) -> Self {
        Self::with(Some(Box::new(memory)))
    }

    /// One that is read byte by byte alone.
    pub fn without_dma() -> Self {
        Self::with(None)
    }

    fn with(memory: Option<Box<dyn Memory>>) -> Self {
        let model = Model {
            items: Items::new(memory.is_some()),
            cursor: Cursor::default(),
            dma_high: 0,
        };
        Self {
            shared: Arc::new(Shared {
                memory,
                model: Mutex::new(model),
            }),
        }
    }

    /// Gives the item `key` these bytes, whether it was there or not. Numbers have the lowest byte first. `bytes` are read when the
    /// guest reads them: a mapped file need not be copied.
    ///
    /// # Errors
    /// [`FwCfgError`] if the device has that key for itself, or for files.
    pub fn set_item(&self, key: Key, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<(), FwCfgError> {
        lock(&self.shared.model).items.insert(key, Item::fixed(bytes))
    }

    /// Adds a file, and says which key it has. Do so before the guest runs, for it reads the directory once.
    ///
    /// # Errors
    /// [`FwCfgError`] if there is such a file, or there can be none of that name.
    pub fn add_file(&self, name: &str, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Key, FwCfgError> {
        lock(&self.shared.model).items.add_file(name, Item::fixed(bytes))
    }

    /// Adds a file that the guest can write to, by DMA. It keeps its length; `hook` is given all of it after each write.
    ///
    /// # Errors
    /// As of [`add_file`](Self::add_file).
    pub fn add_writable_file(
        &self,
        name: &str,
        bytes: Vec<u8>,
        hook: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<Key, FwCfgError> {
        let item = Item::writable(bytes, hook);
        lock(&self.shared.model).items.add_file(name, item)
    }

    /// The ports: 0x510 to 0x51b of a PC.
    pub fn ports(&self) -> FwCfgPorts {
        let fw_cfg = Arc::clone(&self.shared);
        FwCfgPorts { fw_cfg }
    }

    /// The registers in memory, as boards without ports have them.
    pub fn mmio(&self) -> FwCfgMmio {
        let fw_cfg = Arc::clone(&self.shared);
        FwCfgMmio { fw_cfg }
    }

    /// A reset of the system: nothing is selected but the signature. Items stay, also as the guest has written them.
    pub fn reset(&self) {
        let mut model = lock(&self.shared.model);
        model.cursor = Cursor::default();
        model.dma_high = 0;
    }

    /// The state now.
    pub fn save(&self) -> FwCfgState {
        lock(&self.shared.model).save()
    }

    /// Takes over a saved state, all or nothing, and calls no hook. The items are to be those of the device that was saved.
    ///
    /// # Errors
    /// [`FwCfgStateError`]: what the guest can write to is something else here.
    pub fn restore(&self, state: &FwCfgState) -> Result<(), FwCfgStateError> {
        lock(&self.shared.model).restore(state)
    }
}

impl Shared {
    fn select(&self, selector: u16) {
        lock(&self.model).cursor.select(selector);
    }

    /// The next bytes of the item that is selected: zeros past its end, and where there is none.
    fn read_data(&self, data: &mut [u8]) {
        data.fill(0);
        let mut model = lock(&self.model);
        let Cursor { offset, .. } = model.cursor;
        let len = match model.items.get(Key(model.cursor.key())) {
            Some(item) => item.copy(offset, data),
            None => 0,
        };
        model.cursor.offset = offset.saturating_add(len as u32);
    }

    fn read_dma(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if self.memory.is_some() {
            for (byte, at) in data.iter_mut().zip(offset..WIDE) {
                *byte = DMA_SIGNATURE[at as usize];
            }
        }
    }

    /// The address register, with the highest byte first: halves, or all at once. The lower half starts the command.
    fn write_dma(&self, offset: u64, data: &[u8]) {
        let Some(memory) = &self.memory else { return };
        let address = match (offset, data) {
            (0, &[a, b, c, d]) => {
                lock(&self.model).dma_high = u32::from_be_bytes([a, b, c, d]);
                return;
            }
            (4, &[a, b, c, d]) => {
                let high = std::mem::take(&mut lock(&self.model).dma_high);
                u64::from(high) << 32 | u64::from(u32::from_be_bytes([a, b, c, d]))
            }
            (0, &[a, b, c, d, e, f, g, h]) => {
                lock(&self.model).dma_high = 0;
                u64::from_be_bytes([a, b, c, d, e, f, g, h])
            }
            _ => return,
        };
        let good = dma::fetch(&**memory, address).is_some_and(|command| {
            let transfer = {
                let Model { items, cursor, .. } = &mut *lock(&self.model);
                dma::begin(command, cursor, items)
            };
            transfer.run(&**memory)
        });
        dma::end(&**memory, address, good);
    }
}

/// The ports of the device: selector, data and the address of DMA.
pub struct FwCfgPorts {
    fw_cfg: Arc<Shared>,
}

impl FwCfgPorts {
    /// How many ports.
    pub const SIZE: u64 = PORT_DMA + WIDE;
}

/// The selector is written with two bytes, and reads as zero. A wider read of the data port is one of each of its bytes.
impl BusDevice for FwCfgPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            PORT_DATA => self.fw_cfg.read_data(data),
            PORT_DMA..Self::SIZE => self.fw_cfg.read_dma(offset - PORT_DMA, data),
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data.len()) {
            (PORT_SELECTOR, 2) => self.fw_cfg.select(read_le(data) as u16),
            (PORT_DMA..Self::SIZE, _) => self.fw_cfg.write_dma(offset - PORT_DMA, data),
            // The data port was for writing once.
            _ => {}
        }
    }
}

/// The registers of the device in memory.
pub struct FwCfgMmio {
    fw_cfg: Arc<Shared>,
}

impl FwCfgMmio {
    /// Bytes of the region.
    pub const SIZE: u64 = MMIO_DMA + WIDE;
}

/// The selector is written with two bytes, the highest first, and reads as zero. Data are read up to eight bytes at a time, in their
/// order.
impl BusDevice for FwCfgMmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            MMIO_DATA if data.len() as u64 <= WIDE => self.fw_cfg.read_data(data),
            MMIO_DMA..Self::SIZE => self.fw_cfg.read_dma(offset - MMIO_DMA, data),
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (MMIO_SELECTOR, &[high, low]) => self.fw_cfg.select(u16::from_be_bytes([high, low])),
            (MMIO_DMA..Self::SIZE, _) => self.fw_cfg.write_dma(offset - MMIO_DMA, data),
            _ => {}
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FwCfg")
            .field("has_dma", &self.memory.is_some())
            .field("model", &*lock(&self.model))
            .finish()
    }
}

macro_rules! debug {
    ($($kind:ident: $field:ident),*) => {$(
        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.$field.fmt(f)
            }
        }
    )*};
}

debug!(FwCfg: shared, FwCfgPorts: fw_cfg, FwCfgMmio: fw_cfg);
