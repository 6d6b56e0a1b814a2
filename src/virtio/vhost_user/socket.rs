//! The socket: messages cut anywhere, with descriptors (`SCM_RIGHTS`), and never waited for.

use std::{
    collections::VecDeque,
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    ptr,
};

use super::message::{Header, Message};

/// The most descriptors that come with a message.
const MAX_DESCRIPTORS: usize = 8;
/// Room for their control message; a header is 16 bytes, and what the kernel has no room for it closes and says so.
const CONTROL: usize = 16 + MAX_DESCRIPTORS * size_of::<RawFd>();

#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// What came of reading.
pub(crate) enum Received {
    /// A message.
    Message(Message),
    /// Nothing for now, or a part of a message.
    Nothing,
}

/// One end of a connection.
pub(crate) struct Socket {
    stream: UnixStream,
    /// Of the message that is on its way in: header, then payload.
    incoming: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// What is on its way out.
    outgoing: VecDeque<Outgoing>,
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl Socket {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            incoming: Vec::new(),
            descriptors: Vec::new(),
            outgoing: VecDeque::new(),
        }
    }

    pub fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Reads until a message is whole or nothing is there.
    ///
    /// # Errors
    /// The other end has gone, or sends what is no message.
    pub fn receive(&mut self) -> io::Result<Received> {
        loop {
            let wanted = match self.incoming.first_chunk() {
                None => Header::SIZE,
                Some(&header) => {
                    let header = Header::from_bytes(header);
                    if !header.is_sound() {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("flags {:#x} and {} bytes of payload", header.flags, header.size),
                        ));
                    }
                    let whole = Header::SIZE + header.size as usize;
                    if self.incoming.len() == whole {
                        let payload = self.incoming.split_off(Header::SIZE);
                        self.incoming.clear();
                        return Ok(Received::Message(Message {
                            header,
                            payload,
                            descriptors: mem::take(&mut self.descriptors),
                        }));
                    }
                    whole
                }
            };
            if !self.read(wanted)? {
                return Ok(Received::Nothing);
            }
        }
    }

    /// Reads up to so many bytes of the message. Whether there were any.
    fn read(&mut self, wanted: usize) -> io::Result<bool> {
        let begun = self.incoming.len();
        self.incoming.resize(wanted, 0);
        let mut iov = libc::iovec {
            iov_base: self.incoming[begun..].as_mut_ptr().cast(),
            iov_len: wanted - begun,
        };
        let mut control = Control([0; CONTROL]);
        // SAFETY: all zeros are a valid `msghdr`.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the header leads to one buffer and one control buffer, both of the lengths that it says, which outlive the call.
        let read = unsafe { libc::recvmsg(self.stream.as_raw_fd(), &raw mut header, flags) };
        let error = io::Error::last_os_error();
        self.incoming.truncate(begun + read.max(0) as usize);
        if read < 0 {
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            };
        }
        // SAFETY: the kernel has filled in the control buffer, whose length is in the header now.
        unsafe { take_descriptors(&header, &mut self.descriptors) };
        let cut = header.msg_flags & libc::MSG_CTRUNC != 0;
        if cut || self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("more than {MAX_DESCRIPTORS} descriptors with a message, or than this process may have"),
            ));
        }
        match read {
            0 if begun == 0 => Err(io::ErrorKind::ConnectionAborted.into()),
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(true),
        }
    }

    /// Sends a message, or keeps what the socket has no room for.
    ///
    /// # Errors
    /// The other end has gone.
    pub fn send(&mut self, header: Header, payload: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
        self.send_with(header, payload, descriptor.into_iter().collect())
    }

    /// As [`send`](Self::send), with up to eight descriptors.
    ///
    /// # Errors
    /// As [`send`](Self::send), or there are more.
    pub fn send_with(&mut self, header: Header, payload: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<()> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        self.outgoing.push_back(Outgoing {
            bytes,
            sent: 0,
            descriptors,
        });
        self.flush()
    }

    /// Whether something is kept that was to be sent.
    pub fn is_full(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends what was kept, as far as there is room.
    ///
    /// # Errors
    /// The other end has gone.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(first) = self.outgoing.front_mut() {
            match send(&self.stream, &first.bytes[first.sent..], &first.descriptors) {
                Ok(sent) => {
                    // They go with the first byte.
                    first.descriptors.clear();
                    first.sent += sent;
                    if first.sent == first.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Up to [`MAX_DESCRIPTORS`].
fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; CONTROL]);
    // SAFETY: all zeros are a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let len = (descriptors.len().min(MAX_DESCRIPTORS) * size_of::<RawFd>()) as u32;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: it computes.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as _;
        // SAFETY: there is room for a control message of so many descriptors, which is aligned as its header is.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(len) as _;
            let data = libc::CMSG_DATA(message).cast::<RawFd>();
            for (at, descriptor) in descriptors.iter().take(MAX_DESCRIPTORS).enumerate() {
                ptr::write_unaligned(data.add(at), descriptor.as_raw_fd());
            }
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header leads to one buffer, which is read, and one control buffer at most, both of the lengths that it says.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const header, flags) };
    match usize::try_from(sent) {
        Ok(sent) => Ok(sent),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Owns all descriptors of a message that was received.
///
/// # Safety
/// The header is as `recvmsg` has left it.
unsafe fn take_descriptors(header: &libc::msghdr, descriptors: &mut Vec<OwnedFd>) {
    // SAFETY: as the caller says; the kernel makes sound control messages, and the macros stay within their buffer. Each descriptor in
    // one of SCM_RIGHTS is this process's to own, and is named once.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(present) = message.as_ref() {
            if present.cmsg_level == libc::SOL_SOCKET && present.cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                let bytes = present.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as _) as u64;
                for at in 0..usize::try_from(bytes).unwrap_or(0) / size_of::<RawFd>() {
                    descriptors.push(OwnedFd::from_raw_fd(ptr::read_unaligned(data.add(at))));
                }
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
}

/// Sends a message on a channel that nobody reads replies from: whole, or not at all.
///
/// # Errors
/// There is no room, or the other end has gone.
pub(crate) fn send_at_once(channel: BorrowedFd<'_>, header: Header, payload: &[u8]) -> io::Result<()> {
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(payload);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes outlive the call.
    let sent = unsafe { libc::send(channel.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
