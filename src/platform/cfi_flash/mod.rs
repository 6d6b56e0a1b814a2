//! A parallel NOR flash, in which firmware lies and keeps its variables: *Common Flash Interface Specification* (JESD68) with Intel's
//! extended command set, as in *Intel StrataFlash Memory (J3) Datasheet*.
//!
//! What the model leaves out: the time that programming and erasing take, suspending them, and locks of single blocks, which can be set
//! and cleared and change nothing.

mod describe;
mod model;
mod query;
mod registers;

use std::{fmt, sync::Mutex};

use crate::{bus::BusDevice, sync::lock};
use model::Model;
use registers::status;

pub use describe::describe;
pub use model::{Expects, ReadMode};

/// What a [`CfiFlash`] is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CfiFlashConfig {
    /// Bytes of a block, which is what is erased at once: of all devices of the bank together.
    pub block_size: u64,
    /// Bytes that the bank is wide: 1, 2 or 4. Several devices can lie side by side.
    pub bank_width: u64,
    /// Bytes that a device is wide: 1 or 2, and not more than the bank.
    pub device_width: u64,
    /// Nothing can be programmed or erased.
    pub read_only: bool,
    /// What clears the status register clears its bit 7 too, until something is programmed or erased. The data sheet's does not, but
    /// QEMU's does, and OVMF takes that for the sign that it has a flash before it.
    pub clears_ready: bool,
}

impl CfiFlashConfig {
    /// As PCs have it, and OVMF expects it: one device of 8 bits, in blocks of 4 KiB.
    pub const PC: Self = Self {
        block_size: 0x1000,
        bank_width: 1,
        device_width: 1,
        read_only: false,
        clears_ready: true,
    };

    /// As QEMU's `virt` boards have it: two devices of 16 bits side by side, in blocks of 256 KiB.
    pub const VIRT: Self = Self {
        block_size: 0x4_0000,
        bank_width: 4,
        device_width: 2,
        read_only: false,
        clears_ready: false,
    };

    /// How many devices lie side by side.
    fn lanes(&self) -> u64 {
        self.bank_width / self.device_width
    }

    fn check(&self, size: u64) -> Result<(), CfiFlashError> {
        let Self {
            block_size,
            bank_width,
            device_width,
            read_only: _,
            clears_ready: _,
        } = *self;
        if !matches!((bank_width, device_width), (1 | 2 | 4, 1) | (2 | 4, 2)) {
            return Err(CfiFlashError::Width {
                bank_width,
                device_width,
            });
        }
        let device_block = block_size / self.lanes();
        let is_block = block_size.is_power_of_two() && (256..=0xffff * 256).contains(&device_block);
        if !is_block || size == 0 || !size.is_multiple_of(block_size) || size / block_size > 0x1_0000 {
            return Err(CfiFlashError::Size { size, block_size });
        }
        Ok(())
    }
}

/// A [`CfiFlash`] cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CfiFlashError {
    /// [`CfiFlashConfig::bank_width`] and [`CfiFlashConfig::device_width`].
    #[error(
        "a bank {bank_width} bytes wide, of devices of {device_width}: a bank has 1, 2 or 4, and a device 1 or 2 of them"
    )]
    Width {
        /// Of the bank.
        bank_width: u64,
        /// Of a device.
        device_width: u64,
    },
    /// The contents, or [`CfiFlashConfig::block_size`].
    #[error(
        "{size:#x} bytes in blocks of {block_size:#x}: 1 to 65536 blocks are needed, each a power of two, and of a device 256 bytes \
         to 16 MiB less 256"
    )]
    Size {
        /// Bytes of the contents.
        size: u64,
        /// Bytes of a block.
        block_size: u64,
    },
}

/// A flash: the bank is its [`BusDevice`] face.
///
/// The hook hears of each change of the contents, where and what is there now, before the guest's access returns: let it write to where
/// they last. Other writes wait for it meanwhile, so it writes nothing to the flash itself; it may read. Contents are not part of the state that is saved: they are given when the flash is made.
///
/// ```
/// use devisor::{bus::BusDevice, platform::cfi_flash::{CfiFlash, CfiFlashConfig}};
///
/// let flash = CfiFlash::new(CfiFlashConfig::PC, vec![0xff; 0x1_0000], |offset, bytes| {
///     println!("{} bytes at {offset:#x} are to be kept", bytes.len());
/// })?;
/// flash.write(0x123, &[0x40]);
/// flash.write(0x123, &[0x5a]);
/// flash.write(0x123, &[0xff]); // Back to the contents.
/// let mut byte = [0];
/// flash.read(0x123, &mut byte);
/// assert_eq!(byte, [0x5a]);
/// # Ok::<(), devisor::platform::cfi_flash::CfiFlashError>(())
/// ```
pub struct CfiFlash {
    /// Locked from before a write until the hook has heard of it: what lasts is what was last.
    hook: Mutex<Hook>,
    model: Mutex<Model>,
}

type Hook = Box<dyn Fn(u64, &[u8]) + Send>;

/// The state of a [`CfiFlash`] besides its contents, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CfiFlashState {
    /// What reads show.
    pub mode: ReadMode,
    /// The status register.
    pub status: u8,
    /// What the next write is.
    pub expects: Expects,
}

impl CfiFlashState {
    fn after_reset() -> Self {
        Self {
            mode: ReadMode::Array,
            status: status::READY,
            expects: Expects::Command,
        }
    }
}

/// A [`CfiFlashState`] is not one that this flash can have: what would be. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("of a flash, {0}")]
pub struct CfiFlashStateError(&'static str);

impl CfiFlash {
    /// A flash with these contents.
    ///
    /// # Errors
    /// [`CfiFlashError`] if a flash cannot be of that size, or laid out so.
    pub fn new(
        config: CfiFlashConfig,
        contents: Vec<u8>,
        hook: impl Fn(u64, &[u8]) + Send + 'static,
    ) -> Result<Self, CfiFlashError> {
        config.check(contents.len() as u64)?;
        Ok(Self {
            hook: Mutex::new(Box::new(hook)),
            model: Mutex::new(Model::new(config, contents)),
        })
    }

    /// Bytes of the flash.
    pub fn size(&self) -> u64 {
        lock(&self.model).contents.len() as u64
    }

    /// The contents now.
    pub fn contents(&self) -> Vec<u8> {
        lock(&self.model).contents.clone()
    }

    /// What reads show. While it is the contents, a hypervisor can let the guest read them without an exit.
    pub fn mode(&self) -> ReadMode {
        lock(&self.model).state.mode
    }

    /// A reset of the system: reads show the contents, and what was begun is forgotten.
    pub fn reset(&self) {
        lock(&self.model).state = CfiFlashState::after_reset();
    }

    /// The state now, without the contents.
    pub fn save(&self) -> CfiFlashState {
        lock(&self.model).state.clone()
    }

    /// Takes over a saved state, all or nothing.
    ///
    /// # Errors
    /// [`CfiFlashStateError`]: the state is not one that this flash can have.
    pub fn restore(&self, state: &CfiFlashState) -> Result<(), CfiFlashStateError> {
        let mut model = lock(&self.model);
        model.check(state).map_err(CfiFlashStateError)?;
        model.state = state.clone();
        Ok(())
    }
}

/// Reads are of any width. A write is up to as wide as the bank; one that is wider, or past the end, writes nothing.
impl BusDevice for CfiFlash {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let model = lock(&self.model);
        for (byte, at) in data.iter_mut().zip(offset..=u64::MAX) {
            *byte = model.read(at);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let hook = lock(&self.hook);
        let changed = lock(&self.model).write(offset, data);
        if let Some(changed) = changed {
            hook(changed.offset, &changed.bytes);
        }
    }
}

impl fmt::Debug for CfiFlash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = lock(&self.model);
        f.debug_struct("CfiFlash")
            .field("config", &model.config)
            .field("state", &model.state)
            .finish_non_exhaustive()
    }
}
