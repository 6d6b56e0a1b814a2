//! Commands of the DMA interface: the device copies an item to guest memory, or from there.

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{
    Cursor,
    items::{Item, Items, Key},
    registers::{COMMAND, control},
};

/// How many bytes are copied at a time.
const CHUNK: usize = 16 * 1024;

/// Guest memory, at addresses that the guest chooses.
pub(super) trait Memory: Send + Sync {
    /// Fills all of `data`, or says that it could not.
    fn read(&self, address: u64, data: &mut [u8]) -> bool;
    /// Writes all of `data`, or says that it could not.
    fn write(&self, address: u64, data: &[u8]) -> bool;
}

impl<A: GuestAddressSpace + Send + Sync> Memory for A {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.memory().read_slice(data, GuestAddress(address)).is_ok()
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.memory().write_slice(data, GuestAddress(address)).is_ok()
    }
}

/// A command that was read, and what of the device it needs. It is carried out with nothing locked.
pub(super) struct Transfer {
    item: Option<Item>,
    offset: u32,
    kind: Kind,
    length: u32,
    address: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Read,
    Write,
}

/// Reads the command at `address`.
pub(super) fn fetch(memory: &dyn Memory, address: u64) -> Option<[u8; COMMAND]> {
    let mut command = [0; COMMAND];
    memory.read(address, &mut command).then_some(command)
}

/// What a command does to the cursor, and what is left to copy.
pub(super) fn begin(command: [u8; COMMAND], cursor: &mut Cursor, items: &Items) -> Transfer {
    let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = command;
    let control = u32::from_be_bytes([c0, c1, c2, c3]);
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    if control & control::SELECT != 0 {
        cursor.select((control >> control::SELECTOR_SHIFT) as u16);
    }
    let kind = match control {
        control if control & control::READ != 0 => Kind::Read,
        control if control & control::WRITE != 0 => Kind::Write,
        _ => Kind::None,
    };
    let offset = cursor.offset;
    if kind != Kind::None || control & control::SKIP != 0 {
        cursor.offset = offset.saturating_add(length);
    }
    Transfer {
        item: items.get(Key(cursor.key())).cloned(),
        offset,
        kind,
        length,
        address: u64::from_be_bytes(address),
    }
}

impl Transfer {
    /// Whether all of it could be done.
    pub(super) fn run(self, memory: &dyn Memory) -> bool {
        match self.kind {
            Kind::None => true,
            _ if self.length == 0 => true,
            Kind::Read => self.read(memory),
            Kind::Write => self.write(memory),
        }
    }

    /// Past the end of an item there are zeros. Stops where memory ends, so that a command lasts no longer than there is memory.
    fn read(&self, memory: &dyn Memory) -> bool {
        let mut chunk = [0; CHUNK];
        let mut done = 0_u32;
        while done < self.length {
            let len = CHUNK.min((self.length - done) as usize);
            let there = match (&self.item, self.offset.checked_add(done)) {
                (Some(item), Some(offset)) => item.copy(offset, &mut chunk[..len]),
                _ => 0,
            };
            chunk[there..len].fill(0);
            let address = self.address.checked_add(done.into());
            if !address.is_some_and(|address| memory.write(address, &chunk[..len])) {
                return false;
            }
            done += len as u32;
        }
        true
    }

    fn write(&self, memory: &dyn Memory) -> bool {
        let Some(Item::Writable(writable)) = &self.item else {
            return false;
        };
        // What does not fit need not be fetched: the guest could ask for much.
        let room = self.item.as_ref().map_or(0, Item::len);
        if u64::from(self.offset) + u64::from(self.length) > room {
            return false;
        }
        let mut data = vec![0; self.length as usize];
        memory.read(self.address, &mut data) && writable.write(self.offset, &data)
    }
}

/// Tells the guest how the command at `address` has ended.
pub(super) fn end(memory: &dyn Memory, address: u64, good: bool) {
    let control = if good { 0 } else { control::ERROR };
    // Where a command is not memory, nobody can be told.
    let _ = memory.write(address, &control.to_be_bytes());
}
