//! The flash behind its lock: an array, and a machine that takes commands.

use super::{CfiFlashConfig, CfiFlashState, query::query, registers::*};

/// What reads show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadMode {
    /// The contents.
    Array,
    /// The status register.
    Status,
    /// Manufacturer and device.
    Id,
    /// The query table.
    Query,
}

/// What the next write is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expects {
    /// A command.
    Command,
    /// A word to program.
    Word,
    /// The confirmation that a block is to be erased.
    EraseConfirm,
    /// What is to be done to a lock. Blocks have none here.
    LockConfirm,
    /// How many words the buffer is given, less one.
    Count,
    /// A word for the buffer.
    Data {
        /// How many are to come.
        left: u32,
        /// What came: bytes and where they go.
        buffer: Vec<(u64, u8)>,
    },
    /// The confirmation that the buffer is to be programmed.
    BufferConfirm {
        /// Bytes and where they go.
        buffer: Vec<(u64, u8)>,
    },
}

/// Bytes of the array that have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) config: CfiFlashConfig,
    pub(super) contents: Vec<u8>,
    pub(super) state: CfiFlashState,
}

impl Model {
    pub(super) fn new(config: CfiFlashConfig, contents: Vec<u8>) -> Self {
        Self {
            config,
            contents,
            state: CfiFlashState::after_reset(),
        }
    }

    fn blocks(&self) -> u64 {
        self.contents.len() as u64 / self.config.block_size
    }

    /// A byte as it is read.
    pub(super) fn read(&self, offset: u64) -> u8 {
        let Ok(index) = usize::try_from(offset) else { return 0 };
        if self.state.mode == ReadMode::Array {
            return self.contents.get(index).copied().unwrap_or(0);
        }
        // All devices of the bank answer, with their lowest byte.
        if offset >= self.contents.len() as u64 || !offset.is_multiple_of(self.config.device_width) {
            return 0;
        }
        let word = offset / self.config.bank_width;
        match self.state.mode {
            ReadMode::Array => 0,
            ReadMode::Status => self.state.status,
            ReadMode::Query => query(&self.config, self.blocks(), word),
            // The lowest words of each block: manufacturer, device, and that it is not locked.
            ReadMode::Id => ID.get((word & 0xff) as usize).copied().unwrap_or(0),
        }
    }

    /// A write of some bytes, of which the lowest is what all devices of the bank are told.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Option<Changed> {
        let &value = data.first()?;
        let end = offset.checked_add(data.len() as u64)?;
        if end > self.contents.len() as u64 || data.len() as u64 > self.config.bank_width {
            return None;
        }
        match std::mem::replace(&mut self.state.expects, Expects::Command) {
            Expects::Command => {
                self.command(value);
                None
            }
            Expects::Word => self.program((offset..).zip(data.iter().copied()).collect()),
            Expects::EraseConfirm if value == CONFIRM => self.erase(offset),
            Expects::LockConfirm if value == CONFIRM || value == LOCK => {
                self.show_status(status::READY);
                None
            }
            Expects::Count => {
                // As wide as a device: a buffer has more words of 16 bits than a byte can count.
                let count = data.iter().take(self.config.device_width as usize).rev();
                self.begin_buffer(count.fold(0, |count, byte| count << 8 | u32::from(*byte)) + 1);
                None
            }
            Expects::Data { left, mut buffer } => {
                buffer.extend((offset..).zip(data.iter().copied()));
                self.state.expects = match left - 1 {
                    0 => Expects::BufferConfirm { buffer },
                    left => Expects::Data { left, buffer },
                };
                None
            }
            Expects::BufferConfirm { buffer } if value == CONFIRM => match self.is_one_buffer(&buffer) {
                true => self.program(buffer),
                false => {
                    self.show_status(status::READY | status::SEQUENCE_ERROR);
                    None
                }
            },
            // Anything else is an error of the sequence, but that it also ends it.
            Expects::EraseConfirm | Expects::LockConfirm | Expects::BufferConfirm { .. } => {
                match value {
                    READ_ARRAY => self.state.mode = ReadMode::Array,
                    _ => self.show_status(status::READY | status::SEQUENCE_ERROR),
                }
                None
            }
        }
    }

    fn command(&mut self, command: u8) {
        match command {
            READ_ID => self.state.mode = ReadMode::Id,
            READ_QUERY => self.state.mode = ReadMode::Query,
            READ_STATUS => self.state.mode = ReadMode::Status,
            CLEAR_STATUS => {
                self.state.status = match self.config.clears_ready {
                    true => 0,
                    false => status::READY,
                };
            }
            PROGRAM | PROGRAM_ALTERNATE => self.expect(Expects::Word),
            BLOCK_ERASE => self.expect(Expects::EraseConfirm),
            LOCK_SETUP => self.expect(Expects::LockConfirm),
            WRITE_TO_BUFFER => self.expect(Expects::Count),
            // Also a command that there is not.
            _ => self.state.mode = ReadMode::Array,
        }
    }

    fn expect(&mut self, expects: Expects) {
        self.show_status(status::READY);
        self.state.expects = expects;
    }

    /// Shows the status with some bits more.
    fn show_status(&mut self, bits: u8) {
        self.state.mode = ReadMode::Status;
        self.state.status |= bits;
    }

    fn buffer_size(&self) -> u64 {
        self.config.lanes() << BUFFER_SHIFT
    }

    fn begin_buffer(&mut self, words: u32) {
        if u64::from(words) * self.config.bank_width > self.buffer_size() {
            return self.show_status(status::READY | status::SEQUENCE_ERROR);
        }
        self.state.expects = Expects::Data {
            left: words,
            buffer: Vec::new(),
        };
    }

    /// Whether all of it is within as much of the array as a buffer is for.
    fn is_one_buffer(&self, buffer: &[(u64, u8)]) -> bool {
        let part = |offset: u64| offset / self.buffer_size();
        buffer.iter().all(|(offset, _)| part(*offset) == part(buffer[0].0))
    }

    /// Programming clears bits, and sets none.
    fn program(&mut self, bytes: Vec<(u64, u8)>) -> Option<Changed> {
        if self.config.read_only {
            self.show_status(status::READY | status::PROGRAM_ERROR | status::LOCKED);
            return None;
        }
        self.show_status(status::READY);
        let first = bytes.iter().map(|(offset, _)| *offset).min()?;
        let last = bytes.iter().map(|(offset, _)| *offset).max()?;
        for (offset, byte) in bytes {
            // They were looked at when they came.
            if let Some(there) = self.contents.get_mut(offset as usize) {
                *there &= byte;
            }
        }
        self.changed(first, last - first + 1)
    }

    fn erase(&mut self, offset: u64) -> Option<Changed> {
        if self.config.read_only {
            self.show_status(status::READY | status::ERASE_ERROR | status::LOCKED);
            return None;
        }
        self.show_status(status::READY);
        let size = self.config.block_size;
        let block = offset / size * size;
        self.contents
            .get_mut(block as usize..(block + size) as usize)?
            .fill(0xff);
        self.changed(block, size)
    }

    fn changed(&self, offset: u64, len: u64) -> Option<Changed> {
        let bytes = self.contents.get(offset as usize..(offset + len) as usize)?.to_vec();
        Some(Changed { offset, bytes })
    }

    /// Whether a guest can have brought it about.
    pub(super) fn check(&self, state: &CfiFlashState) -> Result<(), &'static str> {
        let CfiFlashState {
            mode: _,
            status,
            expects,
        } = state;
        let is_ready = status & status::READY != 0 || self.config.clears_ready && *status == 0;
        if status & !status::ALL != 0 || !is_ready {
            return Err("the status is ready, and has bits 1, 4 and 5 besides");
        }
        let (left, buffer) = match expects {
            Expects::Data { left: 0, .. } => return Err("there are words to come, if any are expected"),
            Expects::Data { left, buffer } => (*left, buffer),
            Expects::BufferConfirm { buffer } if buffer.is_empty() => return Err("a buffer to be confirmed has bytes"),
            Expects::BufferConfirm { buffer } => (0, buffer),
            _ => return Ok(()),
        };
        let all = buffer.len() as u64 + u64::from(left) * self.config.bank_width;
        if all > self.buffer_size() {
            return Err("what is in the buffer, and what is to come, fits into it");
        }
        if buffer.iter().any(|(offset, _)| *offset >= self.contents.len() as u64) {
            return Err("what is in the buffer goes into the flash");
        }
        Ok(())
    }
}
