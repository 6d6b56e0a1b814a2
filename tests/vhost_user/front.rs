//! A front end that does what a test wants: messages as bytes, memory in a memfd, rings by hand.

use std::{
    fs::File,
    io::{self, Read, Write},
    mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    ptr,
    sync::Arc,
};

use devisor::virtio::{
    QueueIndex, VirtioDevice, VirtioTransport, Wait,
    transport::{
        TransportOptions,
        vhost_user::{ConnectionError, VhostUser, VhostUserOptions},
    },
};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::{devices::Device, ring::Ring};

pub const VERSION: u32 = 1;
pub const REPLY: u32 = 4;
pub const NEED_REPLY: u32 = 8;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
/// Where guest memory is, as the front end says.
pub const USER: u64 = 0x7f00_0000_0000;
pub const MEMORY: u64 = 1 << 20;

pub mod id {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_VRING_ENDIAN: u32 = 23;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const POSTCOPY_ADVISE: u32 = 28;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const GET_SHARED_OBJECT: u32 = 41;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

/// Both ends: the device behind its socket, and the socket's other end.
pub struct Front<D: VirtioDevice = Device> {
    pub device: VhostUser<D>,
    pub socket: UnixStream,
    pub memory: Arc<GuestMemoryMmap>,
    pub file: Arc<File>,
    pub kicks: Vec<File>,
    pub calls: Vec<File>,
    pub protocol: u64,
}

/// Those of a device that takes packed rings, too.
pub fn packed_options() -> VhostUserOptions {
    VhostUserOptions {
        transport: TransportOptions {
            packed: true,
            ..TransportOptions::default()
        },
        ..VhostUserOptions::default()
    }
}

pub fn memfd(len: u64) -> File {
    // SAFETY: the name is a string, and the result is a new descriptor.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len).expect("room");
    file
}

pub fn eventfd() -> File {
    // SAFETY: the result is a new descriptor.
    unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }
}

pub fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub fn halves(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The one region that these tests have.
pub fn region() -> Vec<u8> {
    bytes(&[0, MEMORY, USER, 0])
}

pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    [halves(&[request, flags, payload.len() as u32]), payload.to_vec()].concat()
}

/// Sends bytes with descriptors.
pub fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<usize> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    #[repr(align(8))]
    struct Control([u8; 2048]);
    let mut control = Control([0; 2048]);
    // SAFETY: the header leads to what outlives the call, and the control message fits.
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        if !descriptors.is_empty() {
            let len = size_of_val(descriptors) as u32;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(len) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(len) as _;
            ptr::copy_nonoverlapping(descriptors.as_ptr(), libc::CMSG_DATA(message).cast(), descriptors.len());
        }
        match libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) {
            ..0 => Err(io::Error::last_os_error()),
            sent => Ok(sent as usize),
        }
    }
}

/// Reads bytes, and a descriptor that comes with them.
pub fn receive(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    #[repr(align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    // SAFETY: the header leads to what outlives the call; a control message that came is sound.
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = 64;
        let read = libc::recvmsg(
            socket.as_raw_fd(),
            &raw mut header,
            libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
        );
        if read < 0 {
            return Err(io::Error::last_os_error());
        }
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        let descriptor = message
            .as_ref()
            .map(|message| OwnedFd::from_raw_fd(ptr::read_unaligned(libc::CMSG_DATA(message).cast())));
        Ok((read as usize, descriptor))
    }
}

impl<D: VirtioDevice + 'static> Front<D> {
    /// A front end that has said nothing yet.
    pub fn new(device: D) -> Self {
        Self::with_options(device, VhostUserOptions::default())
    }

    pub fn with_options(device: D, options: VhostUserOptions) -> Self {
        let file = Arc::new(memfd(MEMORY));
        Self::with_memory(device, options, file)
    }

    /// One whose memory has been there before.
    pub fn with_memory(device: D, options: VhostUserOptions, file: Arc<File>) -> Self {
        let offset = FileOffset::from_arc(Arc::clone(&file), 0);
        let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY as usize, Some(offset))]);
        let device = VhostUser::new(device, options).expect("a device");
        let (socket, theirs) = UnixStream::pair().expect("sockets");
        device.connect(theirs).expect("no front end yet");
        Self {
            device,
            socket,
            memory: Arc::new(memory.expect("mapped")),
            file,
            kicks: Vec::new(),
            calls: Vec::new(),
            protocol: 0,
        }
    }

    /// Has the other end do what it can.
    pub fn pump(&self) -> Result<(), ConnectionError> {
        while self.device.serve_connection()? {}
        Ok(())
    }

    pub fn try_send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        descriptors: &[RawFd],
    ) -> Result<(), ConnectionError> {
        send(&self.socket, &message(request, flags | VERSION, payload), descriptors).expect("sent");
        self.pump()
    }

    /// Sends a request that has no answer.
    pub fn tell(&self, request: u32, payload: &[u8], descriptors: &[RawFd]) {
        let told = self.try_send(request, 0, payload, descriptors);
        told.unwrap_or_else(|error| panic!("request {request}: {error}; {:?}", self.device.refusals().last));
    }

    /// An answer that is there.
    pub fn answer(&self) -> Option<(u32, Vec<u8>, Option<OwnedFd>)> {
        let mut header = [0; 12];
        let (read, descriptor) = receive(&self.socket, &mut header).ok()?;
        assert_eq!(read, 12);
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(word(4), VERSION | REPLY);
        let mut payload = vec![0; word(8) as usize];
        (&self.socket).read_exact(&mut payload).expect("a payload");
        Some((word(0), payload, descriptor))
    }

    /// Sends a request that has an answer, and gets it.
    pub fn ask(&self, request: u32, payload: &[u8], descriptors: &[RawFd]) -> (Vec<u8>, Option<OwnedFd>) {
        self.tell(request, payload, descriptors);
        let (answered, payload, descriptor) = self.answer().expect("an answer");
        assert_eq!(answered, request);
        (payload, descriptor)
    }

    pub fn ask_word(&self, request: u32, payload: &[u8]) -> u64 {
        let (payload, _) = self.ask(request, payload, &[]);
        u64::from_ne_bytes(payload.try_into().expect("a number"))
    }

    /// Whether a request was done: it is to say so.
    pub fn acknowledged(&self, request: u32, payload: &[u8], descriptors: &[RawFd]) -> bool {
        let sent = self.try_send(request, NEED_REPLY, payload, descriptors);
        sent.unwrap_or_else(|error| panic!("request {request}: {error}"));
        let (answered, payload, _) = self.answer().expect("an answer");
        assert_eq!(answered, request);
        payload == bytes(&[0])
    }

    /// Negotiates features and protocol features.
    pub fn negotiate(&mut self, features: u64, protocol: u64) {
        self.tell(id::SET_OWNER, &[], &[]);
        let offered = self.ask_word(id::GET_FEATURES, &[]);
        assert_eq!(offered & features, features, "of {offered:#x}");
        if features & PROTOCOL_FEATURES != 0 {
            let offered = self.ask_word(id::GET_PROTOCOL_FEATURES, &[]);
            assert_eq!(offered & protocol, protocol, "of {offered:#x}");
            self.tell(id::SET_PROTOCOL_FEATURES, &bytes(&[protocol]), &[]);
            self.protocol = protocol;
        }
        self.tell(id::SET_FEATURES, &bytes(&[features]), &[]);
    }

    pub fn share_memory(&self) {
        let table = [halves(&[1, 0]), region()].concat();
        self.tell(id::SET_MEM_TABLE, &table, &[self.file.as_raw_fd()]);
    }

    pub fn ring(&self, index: u32) -> Ring {
        Ring::new(&self.memory, 0x10000 * (u64::from(index) + 1), 64)
    }

    /// Describes a ring, all but its kick.
    pub fn describe(&mut self, index: u32, ring: &Ring, base: u32) {
        let layout = ring.layout;
        self.tell(id::SET_VRING_NUM, &halves(&[index, layout.size.into()]), &[]);
        self.tell(id::SET_VRING_BASE, &halves(&[index, base]), &[]);
        self.tell(id::SET_VRING_ADDR, &Self::address(index, ring), &[]);
        self.calls.push(eventfd());
        let call = self.calls[self.calls.len() - 1].as_raw_fd();
        self.tell(id::SET_VRING_CALL, &bytes(&[index.into()]), &[call]);
    }

    pub fn address(index: u32, ring: &Ring) -> Vec<u8> {
        let layout = ring.layout;
        let areas = [layout.descriptor_area, layout.device_area, layout.driver_area].map(|area| USER + area);
        [halves(&[index, 0]), bytes(&areas), bytes(&[layout.device_area])].concat()
    }

    pub fn set_kick(&mut self, index: u32) {
        self.kicks.push(eventfd());
        let kick = self.kicks[self.kicks.len() - 1].as_raw_fd();
        self.tell(id::SET_VRING_KICK, &bytes(&[index.into()]), &[kick]);
    }

    /// All of that: a ring that runs.
    pub fn start(&mut self, index: u32) -> Ring {
        let ring = self.ring(index);
        self.describe(index, &ring, 0);
        self.set_kick(index);
        self.enable(index, true);
        ring
    }

    pub fn enable(&self, index: u32, enable: bool) {
        self.tell(id::SET_VRING_ENABLE, &halves(&[index, enable.into()]), &[]);
    }

    /// With the features that most tests want.
    pub fn ready(device: D, protocol: u64) -> Self {
        let mut front = Self::new(device);
        front.negotiate(VERSION_1 | PROTOCOL_FEATURES, protocol);
        front.share_memory();
        front
    }

    /// The driver kicks its queue by the last kick descriptor, and the device's owner sees to it.
    pub fn kick(&self, queue: u16) {
        self.kicks[self.kicks.len() - 1]
            .try_clone()
            .unwrap()
            .write_all(&1u64.to_ne_bytes())
            .unwrap();
        self.serve(queue);
    }

    /// Whether what is waited for is there.
    pub fn is_there(&self, wait: &Wait) -> bool {
        match *wait {
            Wait::Readable(descriptor) => {
                let mut poll = libc::pollfd {
                    fd: descriptor,
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one structure, as is said.
                (unsafe { libc::poll(&raw mut poll, 1, 0) }) == 1
            }
            _ => false,
        }
    }

    /// As an embedder's loop does: what a queue waits for, and serves it.
    pub fn serve(&self, queue: u16) {
        while self
            .device
            .waits(QueueIndex(queue))
            .iter()
            .any(|wait| self.is_there(wait))
        {
            while self.device.serve(QueueIndex(queue)) {}
        }
    }

    /// How often a queue was called since this was asked last.
    pub fn called(&self, at: usize) -> u64 {
        let mut value = [0; 8];
        match (&self.calls[at]).read(&mut value) {
            Ok(8) => u64::from_ne_bytes(value),
            _ => 0,
        }
    }

    pub fn base(&self, index: u32) -> u32 {
        let (payload, _) = self.ask(id::GET_VRING_BASE, &halves(&[index, 0]), &[]);
        u32::from_ne_bytes(payload[4..8].try_into().unwrap())
    }
}
