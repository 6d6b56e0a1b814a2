//! The front end's memory, as the addresses of its rings lead to it: where a ring that is started has come to is found there.

use crate::memory::Pin;

/// A ring cannot be started.
#[derive(Debug)]
pub(super) enum Unstarted {
    /// It is not what it says.
    Wrong(String),
    /// Of what was in flight, this address is not translated yet.
    Missing(u64),
}

/// The front end's memory, by addresses of rings.
pub(super) struct Found<'a> {
    pub pin: Pin,
    /// How many bytes from this address on are where.
    pub find: &'a dyn Fn(u64) -> Option<(u64, u64)>,
}

impl Found<'_> {
    /// Reads, piece by piece.
    pub fn read(&self, mut address: u64, mut data: &mut [u8]) -> Result<(), Unstarted> {
        while !data.is_empty() {
            let (at, len) = (self.find)(address).ok_or(Unstarted::Missing(address))?;
            let (now, rest) = data.split_at_mut(data.len().min(usize::try_from(len).unwrap_or(usize::MAX)));
            let read = self.pin.read(at, now);
            read.map_err(|outside| Unstarted::Wrong(outside.to_string()))?;
            address = address.wrapping_add(now.len() as u64);
            data = rest;
        }
        Ok(())
    }

    /// Writes what is in one piece: an entry of a ring.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<()> {
        let (at, len) = (self.find)(address)?;
        (data.len() as u64 <= len)
            .then(|| self.pin.write(at, data).ok())
            .flatten()
    }
}
