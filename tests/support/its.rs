//! The commands of an ITS as a guest writes them into its queue (IHI 0069, 5.3).
#![allow(dead_code, reason = "each test uses its own part of this")]

pub type Command = [u64; 4];

pub const VALID: u64 = 1 << 63;

pub fn movi(device: u32, event: u32, collection: u16) -> Command {
    [u64::from(device) << 32 | 0x01, event.into(), collection.into(), 0]
}

pub fn int(device: u32, event: u32) -> Command {
    [u64::from(device) << 32 | 0x03, event.into(), 0, 0]
}

pub fn clear(device: u32, event: u32) -> Command {
    [u64::from(device) << 32 | 0x04, event.into(), 0, 0]
}

pub fn sync(processor: u32) -> Command {
    [0x05, 0, u64::from(processor) << 16, 0]
}

/// With room for events of `bits` bits.
pub fn mapd(device: u32, itt: u64, bits: u32) -> Command {
    [u64::from(device) << 32 | 0x08, u64::from(bits - 1), VALID | itt, 0]
}

pub fn unmapd(device: u32) -> Command {
    [u64::from(device) << 32 | 0x08, 0, 0, 0]
}

pub fn mapc(collection: u16, processor: u32) -> Command {
    [0x09, 0, VALID | u64::from(processor) << 16 | u64::from(collection), 0]
}

pub fn unmapc(collection: u16) -> Command {
    [0x09, 0, collection.into(), 0]
}

pub fn mapti(device: u32, event: u32, lpi: u32, collection: u16) -> Command {
    [
        u64::from(device) << 32 | 0x0a,
        u64::from(lpi) << 32 | u64::from(event),
        collection.into(),
        0,
    ]
}

pub fn mapi(device: u32, event: u32, collection: u16) -> Command {
    [u64::from(device) << 32 | 0x0b, event.into(), collection.into(), 0]
}

pub fn inv(device: u32, event: u32) -> Command {
    [u64::from(device) << 32 | 0x0c, event.into(), 0, 0]
}

pub fn invall(collection: u16) -> Command {
    [0x0d, 0, collection.into(), 0]
}

pub fn movall(from: u32, to: u32) -> Command {
    [0x0e, 0, u64::from(from) << 16, u64::from(to) << 16]
}

pub fn discard(device: u32, event: u32) -> Command {
    [u64::from(device) << 32 | 0x0f, event.into(), 0, 0]
}
