//! A message: its header, the names of requests, its payload as bytes and its descriptors.

use std::os::fd::OwnedFd;

/// The largest payload that is taken. The largest that means something is 268 bytes; front ends are known to send more than they need.
pub(crate) const MAX_PAYLOAD: usize = 4096;

/// Bits of the flags.
const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What comes before each payload, in the byte order of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub request: u32,
    pub flags: u32,
    pub size: u32,
}

impl Header {
    pub const SIZE: usize = 12;

    pub fn request(request: u32, size: usize) -> Self {
        Self {
            request,
            flags: VERSION,
            size: size as u32,
        }
    }

    pub fn reply(request: u32, size: usize) -> Self {
        Self {
            request,
            flags: VERSION | REPLY,
            size: size as u32,
        }
    }

    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            request: word(0),
            flags: word(4),
            size: word(8),
        }
    }

    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (place, word) in bytes.chunks_exact_mut(4).zip([self.request, self.flags, self.size]) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// The other end is to say whether it was done (`REPLY_ACK`).
    pub fn with_answer(self) -> Self {
        Self {
            flags: self.flags | NEED_REPLY,
            ..self
        }
    }

    /// Of the one version that there is.
    pub fn is_sound(self) -> bool {
        self.flags & VERSION_MASK == VERSION && self.size as usize <= MAX_PAYLOAD
    }

    pub fn is_reply(self) -> bool {
        self.flags & REPLY != 0
    }

    pub fn needs_reply(self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A whole message.
#[derive(Debug)]
pub(crate) struct Message {
    pub header: Header,
    pub payload: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

macro_rules! requests {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub(crate) enum $name {
            $($variant = $number,)*
        }

        impl $name {
            /// The request with this number, if there is one.
            pub fn new(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

requests! {
    /// What a front end asks (`VHOST_USER_*`).
    FrontRequest {
        GetFeatures = 1,
        SetFeatures = 2,
        SetOwner = 3,
        ResetOwner = 4,
        SetMemTable = 5,
        SetLogBase = 6,
        SetLogFd = 7,
        SetVringNum = 8,
        SetVringAddr = 9,
        SetVringBase = 10,
        GetVringBase = 11,
        SetVringKick = 12,
        SetVringCall = 13,
        SetVringErr = 14,
        GetProtocolFeatures = 15,
        SetProtocolFeatures = 16,
        GetQueueNum = 17,
        SetVringEnable = 18,
        SendRarp = 19,
        NetSetMtu = 20,
        SetBackendReqFd = 21,
        IotlbMsg = 22,
        SetVringEndian = 23,
        GetConfig = 24,
        SetConfig = 25,
        CreateCryptoSession = 26,
        CloseCryptoSession = 27,
        PostcopyAdvise = 28,
        PostcopyListen = 29,
        PostcopyEnd = 30,
        GetInflightFd = 31,
        SetInflightFd = 32,
        GpuSetSocket = 33,
        ResetDevice = 34,
        VringKick = 35,
        GetMaxMemSlots = 36,
        AddMemReg = 37,
        RemMemReg = 38,
        SetStatus = 39,
        GetStatus = 40,
        GetSharedObject = 41,
        SetDeviceStateFd = 42,
        CheckDeviceState = 43,
        GetShmemConfig = 44,
    }
}

requests! {
    /// What a back end asks (`VHOST_USER_BACKEND_*`).
    BackRequest {
        IotlbMsg = 1,
        ConfigChangeMsg = 2,
        SharedObjectAdd = 6,
        SharedObjectRemove = 7,
        SharedObjectLookup = 8,
        ShmemMap = 9,
        ShmemUnmap = 10,
    }
}
