//! Between front end and back end: a thread that passes messages on, counts them, cuts the connection, or lies.

use std::{
    io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    thread::{self, JoinHandle},
};

/// A whole message.
#[derive(Debug)]
pub struct Message {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

#[repr(C, align(8))]
struct Control([u8; 256]);

/// Reads a message, waiting for it. `None`: the other end has gone.
pub fn receive(stream: &UnixStream) -> Option<Message> {
    let mut descriptors = Vec::new();
    let mut header = [0; 12];
    fill(stream, &mut header, &mut descriptors)?;
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; word(8) as usize];
    fill(stream, &mut payload, &mut descriptors)?;
    Some(Message {
        request: word(0),
        flags: word(4),
        payload,
        descriptors,
    })
}

fn fill(stream: &UnixStream, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Option<()> {
    let mut done = 0;
    while done < bytes.len() {
        let mut iov = libc::iovec {
            iov_base: bytes[done..].as_mut_ptr().cast(),
            iov_len: bytes.len() - done,
        };
        let mut control = Control([0; 256]);
        // SAFETY: all zeros are a valid `msghdr`; what it leads to outlives the call, and descriptors are owned once.
        unsafe {
            let mut header: libc::msghdr = mem::zeroed();
            header.msg_iov = &raw mut iov;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.0.len() as _;
            let read = libc::recvmsg(stream.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC);
            if read <= 0 {
                return None;
            }
            done += read as usize;
            let mut message = libc::CMSG_FIRSTHDR(&raw const header);
            while !message.is_null() {
                let count = ((*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                for at in 0..count {
                    let fd = libc::CMSG_DATA(message).cast::<RawFd>().add(at).read_unaligned();
                    descriptors.push(OwnedFd::from_raw_fd(fd));
                }
                message = libc::CMSG_NXTHDR(&raw const header, message);
            }
        }
    }
    Some(())
}

/// Sends a message as it is, right or wrong. `size` is what its header says.
pub fn send_as(stream: &UnixStream, message: &Message, size: u32) -> io::Result<()> {
    let mut bytes = [message.request, message.flags, size].map(u32::to_ne_bytes).concat();
    bytes.extend(&message.payload);
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; 256]);
    let len = (message.descriptors.len() * size_of::<RawFd>()) as u32;
    // SAFETY: as above.
    let sent = unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        if len != 0 {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(len) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(len) as _;
            for (at, fd) in message.descriptors.iter().enumerate() {
                libc::CMSG_DATA(first)
                    .cast::<RawFd>()
                    .add(at)
                    .write_unaligned(fd.as_raw_fd());
            }
        }
        libc::sendmsg(stream.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL)
    };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

pub fn send(stream: &UnixStream, message: &Message) -> io::Result<()> {
    send_as(stream, message, message.payload.len() as u32)
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToBack,
    ToFront,
}

/// What becomes of a message.
pub enum Fate {
    Pass,
    /// With another size in its header than its payload has.
    PassAs(u32),
    Drop,
    /// The connection ends before it.
    Cut,
}

/// Passes on what goes between the two, as `decide` says. Ends with either of them.
pub fn between(
    front: UnixStream,
    back: UnixStream,
    decide: impl Fn(Way, &mut Message) -> Fate + Send + Sync + 'static,
) -> [JoinHandle<()>; 2] {
    let decide = std::sync::Arc::new(decide);
    let pass = |way: Way, from: UnixStream, to: UnixStream| {
        let decide = std::sync::Arc::clone(&decide);
        thread::spawn(move || {
            while let Some(mut message) = receive(&from) {
                let sent = match decide(way, &mut message) {
                    Fate::Pass => send(&to, &message),
                    Fate::PassAs(size) => send_as(&to, &message, size),
                    Fate::Drop => Ok(()),
                    Fate::Cut => break,
                };
                if sent.is_err() {
                    break;
                }
            }
            let _ = from.shutdown(std::net::Shutdown::Both);
            let _ = to.shutdown(std::net::Shutdown::Both);
        })
    };
    let (front2, back2) = (front.try_clone().unwrap(), back.try_clone().unwrap());
    [pass(Way::ToBack, front, back), pass(Way::ToFront, back2, front2)]
}
