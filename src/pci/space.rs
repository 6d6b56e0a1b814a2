//! The bytes of a type 0 configuration space, with the mask of what the guest writes.

use super::{
    bar::{Bar, BarIndex},
    config::EndpointConfig,
    error::StateError,
    registers::*,
};

pub(super) struct ConfigSpace {
    config: EndpointConfig,
    values: [u8; SPACE],
}

impl ConfigSpace {
    pub fn new(config: EndpointConfig) -> Self {
        let values = config.reset;
        Self { config, values }
    }

    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    pub fn reset(&mut self) {
        self.values = self.config.reset;
    }

    /// Any width and alignment answers, byte by byte. Above the space there is nothing: ones, as of an absent register.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in addresses(offset).zip(data) {
            *byte = match at {
                at if at < SPACE as u64 => self.values[at as usize],
                // The first extended capability has ID 0: there is none (PCI Express 7.6.1).
                at if at < ECAM_FUNCTION && self.config.express => 0,
                _ => 0xff,
            };
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in addresses(offset).zip(data) {
            if at < SPACE as u64 {
                let at = at as usize;
                let writable = self.config.writable[at];
                self.values[at] = self.values[at] & !writable | byte & writable;
            }
        }
    }

    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.values[offset], self.values[offset + 1]])
    }

    pub fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    pub fn command(&self) -> u16 {
        self.u16(COMMAND)
    }

    /// The address that `bar` decodes now, if it exists and the command register lets it.
    pub fn decoded(&self, index: BarIndex) -> Option<(Bar, u64)> {
        let bar = self.config.bars[index as usize]?;
        if self.command() & bar.kind.enable() == 0 {
            return None;
        }
        let low = u64::from(self.u32(index.register()));
        let high = if bar.is_64_bit() {
            u64::from(self.u32(index.register() + 4)) << 32
        } else {
            0
        };
        // The flags lie below the size.
        Some((bar, (high | low) & !(bar.size - 1)))
    }

    pub fn save(&self) -> [u8; SPACE] {
        self.values
    }

    /// Whether `values` differs from a space of this function in no bit that the guest cannot write.
    pub fn check(&self, values: &[u8; SPACE]) -> Result<(), StateError> {
        let EndpointConfig { reset, writable, .. } = &self.config;
        match (0..SPACE).find(|&at| (values[at] ^ reset[at]) & !writable[at] != 0) {
            Some(offset) => Err(StateError::ReadOnly {
                offset: offset as u8,
                found: values[offset],
                expected: reset[offset],
                writable: writable[offset],
            }),
            None => Ok(()),
        }
    }

    /// Takes over what was [checked](Self::check).
    pub fn restore(&mut self, values: &[u8; SPACE]) {
        self.values = *values;
    }
}
