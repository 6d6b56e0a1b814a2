//! Stands in for vhost in the kernel: answers its ioctls, in the order that the kernel wants them, with a back end of ours behind a socket.

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use devisor::virtio::remote::kernel::{OpenVhost, VhostDevice};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::{
    back::{Back, World, pair},
    wire::{Message, receive, send},
};

/// Of vhost-user.
mod ask {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
}

const PROTOCOL_FEATURES: u64 = 1 << 30;
const LOG_ALL: u64 = 1 << 26;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Net,
    Vsock,
    Vdpa,
}

/// What all devices that were opened share.
pub struct Kernel {
    kind: Kind,
    world: Arc<World>,
    memory: Arc<GuestMemoryMmap>,
    /// Every request: its number, and its argument.
    pub asked: Mutex<Vec<(u32, Vec<u8>)>>,
    /// The request of this number fails.
    pub fails: Mutex<Option<u32>>,
    /// Devices that were closed when their log was no longer mapped.
    pub logs_gone: AtomicUsize,
}

impl Kernel {
    pub fn new(kind: Kind, world: &Arc<World>, memory: &Arc<GuestMemoryMmap>) -> Arc<Self> {
        Arc::new(Self {
            kind,
            world: Arc::clone(world),
            memory: Arc::clone(memory),
            asked: Mutex::default(),
            fails: Mutex::default(),
            logs_gone: AtomicUsize::new(0),
        })
    }

    pub fn open(self: &Arc<Self>) -> OpenVhost {
        let kernel = Arc::clone(self);
        Box::new(move || Ok(Box::new(StandIn::new(&kernel))))
    }

    /// The arguments of the requests with this number.
    pub fn arguments(&self, number: u32) -> Vec<Vec<u8>> {
        let asked = self.asked.lock().unwrap();
        let found = asked.iter().filter(|(request, _)| request & 0xff == number);
        found.map(|(_, argument)| argument.clone()).collect()
    }
}

#[derive(Default)]
struct Ring {
    kick: Option<OwnedFd>,
    base: u32,
    runs: bool,
    enabled: bool,
}

struct StandIn {
    kernel: Arc<Kernel>,
    socket: UnixStream,
    _back: Back,
    owned: bool,
    rings: BTreeMap<u32, Ring>,
    features: u64,
    status: u8,
    config_call: Option<OwnedFd>,
    /// Ranges of guest addresses, by messages.
    translations: BTreeMap<u64, (u64, u64)>,
    log: Option<u64>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn dup(descriptor: RawFd) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: whoever asks has it open for as long as the call lasts.
    unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()
}

fn busy() -> io::Error {
    io::Error::from_raw_os_error(libc::EBUSY)
}

impl StandIn {
    fn new(kernel: &Arc<Kernel>) -> Self {
        let (socket, back) = pair();
        Self {
            _back: Back::new(&kernel.world, back),
            kernel: Arc::clone(kernel),
            socket,
            owned: false,
            rings: BTreeMap::new(),
            features: 0,
            status: 0,
            config_call: None,
            translations: BTreeMap::new(),
            log: None,
        }
    }

    fn tell(&self, request: u32, payload: Vec<u8>, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let flags = 1;
        send(
            &self.socket,
            &Message {
                request,
                flags,
                payload,
                descriptors,
            },
        )
    }

    fn ask(&self, request: u32, payload: Vec<u8>) -> io::Result<Vec<u8>> {
        self.tell(request, payload, Vec::new())?;
        Ok(receive(&self.socket).ok_or(io::ErrorKind::BrokenPipe)?.payload)
    }

    fn set_memory(&self, regions: &[(u64, u64, u64)]) -> io::Result<()> {
        let mut payload = [regions.len() as u32, 0].map(u32::to_ne_bytes).concat();
        let mut files = Vec::new();
        for &(guest, size, user) in regions {
            let mut all = self.kernel.memory.iter();
            let found = all.find(|region| region.start_addr().0 == guest && region.len() == size);
            let file = found.ok_or(io::ErrorKind::AddrNotAvailable)?.file_offset().unwrap();
            payload.extend([guest, size, user, file.start()].map(u64::to_ne_bytes).concat());
            files.push(file.file().try_clone()?.into());
        }
        self.tell(ask::SET_MEM_TABLE, payload, files)
    }

    fn ring(&mut self, index: u32) -> io::Result<&mut Ring> {
        let queues = match self.kernel.kind {
            Kind::Vdpa => 3,
            _ => 2,
        };
        if index >= queues {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        Ok(self.rings.entry(index).or_default())
    }

    fn run(&mut self, index: u32) -> io::Result<()> {
        let ring = self.ring(index)?;
        if ring.runs {
            return Ok(());
        }
        ring.runs = true;
        let kick = ring.kick.as_ref().ok_or(io::ErrorKind::InvalidInput)?.try_clone()?;
        self.tell(ask::SET_VRING_KICK, u64::from(index).to_ne_bytes().into(), vec![kick])
    }

    fn stop(&mut self, index: u32) -> io::Result<()> {
        if !self.ring(index)?.runs {
            return Ok(());
        }
        let payload = [index, 0].map(u32::to_ne_bytes).concat();
        let base = word(&self.ask(ask::GET_VRING_BASE, payload)?, 4);
        let ring = self.ring(index)?;
        (ring.runs, ring.base) = (false, base);
        Ok(())
    }

    fn all(&self) -> Vec<u32> {
        self.rings.keys().copied().collect()
    }

    /// The requests that all kernels' know.
    fn common(&mut self, number: u32, argument: &mut [u8]) -> io::Result<()> {
        match number {
            0x10 | 0x12 => {
                let (index, num) = (word(argument, 0), word(argument, 4));
                let ring = self.ring(index)?;
                if ring.runs {
                    return Err(busy());
                }
                if number == 0x12 {
                    ring.base = num;
                }
                let request = if number == 0x10 {
                    ask::SET_VRING_NUM
                } else {
                    ask::SET_VRING_BASE
                };
                self.tell(request, argument.to_vec(), Vec::new())
            }
            0x11 => {
                // The log is written by the kernel where it is in our memory.
                if let (1, Some(log)) = (word(argument, 4), self.log.filter(|_| self.features & LOG_ALL != 0)) {
                    let page = long(argument, 32) / 4096;
                    // SAFETY: it was told that the log is there.
                    unsafe { *((log + page / 8) as *mut u8) |= 1 << (page % 8) };
                }
                let mut plain = argument.to_vec();
                plain[4..8].fill(0);
                self.tell(ask::SET_VRING_ADDR, plain, Vec::new())
            }
            0x20..=0x22 => {
                let index = word(argument, 0);
                let file = dup(word(argument, 4) as RawFd)?;
                self.ring(index)?;
                let request = match number {
                    0x20 => {
                        self.ring(index)?.kick = Some(file);
                        return Ok(());
                    }
                    0x21 => ask::SET_VRING_CALL,
                    _ => ask::SET_VRING_ERR,
                };
                self.tell(request, u64::from(index).to_ne_bytes().into(), vec![file])
            }
            _ => Err(io::Error::from_raw_os_error(libc::ENOTTY)),
        }
    }

    fn net_or_vsock(&mut self, number: u32, argument: &mut [u8]) -> io::Result<()> {
        match (self.kernel.kind, number) {
            (_, 0x03) => {
                let count = word(argument, 0) as usize;
                let region = |at: usize| {
                    let at = 8 + 32 * at;
                    (long(argument, at), long(argument, at + 8), long(argument, at + 16))
                };
                let regions: Vec<_> = (0..count).map(region).collect();
                self.set_memory(&regions)
            }
            (Kind::Net, 0x30) => match (word(argument, 0), word(argument, 4) as i32) {
                (index, -1) => self.stop(index),
                (index, file) => {
                    dup(file)?;
                    self.run(index)
                }
            },
            (Kind::Vsock, 0x60) if long(argument, 0) > 2 => Ok(()),
            (Kind::Vsock, 0x61) => match word(argument, 0) {
                0 => self.all().into_iter().try_for_each(|index| self.stop(index)),
                _ if self.all().len() == 2 => self.all().into_iter().try_for_each(|index| self.run(index)),
                _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            },
            _ => self.common(number, argument),
        }
    }

    fn vdpa(&mut self, number: u32, argument: &mut [u8]) -> io::Result<()> {
        match number {
            0x26 => argument.copy_from_slice(&(1_u64 << 1 | 1 << 4).to_ne_bytes()),
            0x25 => {}
            0x71 => argument[0] = self.status,
            0x72 if argument[0] == 0 => {
                // As new.
                let kernel = Arc::clone(&self.kernel);
                let translations = std::mem::take(&mut self.translations);
                let config_call = self.config_call.take();
                *self = Self::new(&kernel);
                (self.owned, self.config_call, self.translations) = (true, config_call, translations);
            }
            0x72 => {
                let set = argument[0];
                let new = set & !self.status;
                self.status = set;
                if new & FEATURES_OK != 0 && self.features & 1 << 32 == 0 {
                    self.status &= !FEATURES_OK;
                }
                if new & DRIVER_OK != 0 {
                    let memory = self.translations.iter();
                    // It is known by the addresses of the guest.
                    let memory: Vec<_> = memory.map(|(guest, (size, _))| (*guest, *size, *guest)).collect();
                    self.set_memory(&memory)?;
                    let enabled = self.rings.iter().filter(|(_, ring)| ring.enabled);
                    let enabled: Vec<_> = enabled.map(|(index, _)| *index).collect();
                    enabled.into_iter().try_for_each(|index| self.run(index))?;
                }
            }
            0x73 => {
                let config = self.kernel.world.config.lock().unwrap();
                let (offset, len) = (word(argument, 0) as usize, word(argument, 4) as usize);
                argument[8..8 + len]
                    .copy_from_slice(config.get(offset..offset + len).ok_or(io::ErrorKind::InvalidInput)?);
            }
            0x74 => {
                let mut config = self.kernel.world.config.lock().unwrap();
                let offset = word(argument, 0) as usize;
                for (place, byte) in config[offset..].iter_mut().zip(&argument[8..]) {
                    *place = *byte;
                }
            }
            0x75 => {
                let enabled = word(argument, 4) == 1;
                self.ring(word(argument, 0))?.enabled = enabled;
            }
            0x77 => self.config_call = Some(dup(word(argument, 0) as RawFd)?),
            0x7d if self.status & DRIVER_OK != 0 => self.all().into_iter().try_for_each(|index| self.stop(index))?,
            0x80 => argument.copy_from_slice(&3_u32.to_ne_bytes()),
            _ => return self.common(number, argument),
        }
        Ok(())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let Some(log) = self.log else { return };
        // SAFETY: a call that takes numbers, and says whether something is mapped there.
        if unsafe { libc::msync(log as *mut _, 4096, libc::MS_ASYNC) } != 0 {
            self.kernel.logs_gone.fetch_add(1, SeqCst);
        }
    }
}

impl VhostDevice for StandIn {
    fn request(&mut self, request: u32, argument: &mut [u8]) -> io::Result<()> {
        let number = request & 0xff;
        assert_eq!(request >> 8 & 0xff, 0xaf, "{request:#x}");
        self.kernel.asked.lock().unwrap().push((request, argument.to_vec()));
        if *self.kernel.fails.lock().unwrap() == Some(number) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let reads = request >> 30 & 2 != 0;
        match number {
            0x01 if self.owned => return Err(busy()),
            0x01 => {
                self.owned = true;
                return Ok(());
            }
            _ if !self.owned => return Err(io::ErrorKind::PermissionDenied.into()),
            _ => {}
        }
        match number {
            0x00 if reads => {
                let features = long(&self.ask(ask::GET_FEATURES, Vec::new())?, 0);
                argument.copy_from_slice(&(features & !PROTOCOL_FEATURES).to_ne_bytes());
                Ok(())
            }
            0x00 => {
                self.features = long(argument, 0);
                let told = self.features & !LOG_ALL;
                self.tell(ask::SET_FEATURES, told.to_ne_bytes().into(), Vec::new())
            }
            0x04 if self.kernel.kind != Kind::Vdpa => {
                self.log = Some(long(argument, 0));
                Ok(())
            }
            0x12 if reads => {
                let base = self.ring(word(argument, 0))?.base;
                argument[4..8].copy_from_slice(&base.to_ne_bytes());
                Ok(())
            }
            _ if self.kernel.kind == Kind::Vdpa => self.vdpa(number, argument),
            _ => self.net_or_vsock(number, argument),
        }
    }

    fn message(&mut self, message: &[u8]) -> io::Result<()> {
        assert_eq!((self.kernel.kind, message.len(), word(message, 0)), (Kind::Vdpa, 72, 2));
        let (address, size, user) = (long(message, 8), long(message, 16), long(message, 24));
        match message[33] {
            2 => {
                let before = self.translations.insert(address, (size, user));
                before.map_or(Ok(()), |_| Err(io::ErrorKind::AlreadyExists.into()))
            }
            3 => {
                self.translations.remove(&address);
                Ok(())
            }
            other => panic!("a message of type {other}"),
        }
    }
}
