//! What answers requests: a device file of the kernel's, or what stands in for it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use super::numbers;

/// What answers the requests of vhost: a device file of the kernel's, unless a test stands in for it.
///
/// Addresses in arguments are of this process: of guest memory, as long as it is told of (`VHOST_SET_MEM_TABLE`, or messages), of rings in
/// it, and of the log of dirty pages.
pub trait VhostDevice: Send {
    /// Does what `request` (`linux/vhost.h`) asks for. `argument` is the structure that it names, with what follows it; what is answered is
    /// written there. A request without an argument has none.
    ///
    /// # Errors
    /// What the system answers.
    fn request(&mut self, request: u32, argument: &mut [u8]) -> io::Result<()>;

    /// Takes a message (`struct vhost_msg_v2`).
    ///
    /// # Errors
    /// What the system answers.
    fn message(&mut self, message: &[u8]) -> io::Result<()>;
}

/// Opens a device, the first time and after it has failed: anything of this kind may stand in for [a file](std::fs::File).
pub type OpenVhost = Box<dyn FnMut() -> io::Result<Box<dyn VhostDevice>> + Send>;

/// What opens a device file.
pub(super) fn open(path: impl AsRef<Path> + Send + 'static) -> OpenVhost {
    Box::new(move || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path.as_ref());
        let file =
            file.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.as_ref().display())))?;
        Ok(Box::new(DeviceFile(file)))
    })
}

/// Not for others: addresses in arguments are believed.
struct DeviceFile(File);

impl VhostDevice for DeviceFile {
    fn request(&mut self, request: u32, argument: &mut [u8]) -> io::Result<()> {
        if !numbers::is_vhost(request) || argument.len() < needed(request, argument) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let pointer = argument.as_mut_ptr();
        // SAFETY: the argument is as long as the request, and the count in it, say; of the addresses in it `Peer` says what keeps them.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, pointer) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn message(&mut self, message: &[u8]) -> io::Result<()> {
        self.0.write_all(message)
    }
}

/// How long an argument is, with what follows it.
fn needed(request: u32, argument: &[u8]) -> usize {
    let count = |at: usize| {
        argument.get(at..at + 4).map_or(0, |bytes| {
            u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
        })
    };
    let more = match request {
        // `struct vhost_memory`: so many regions.
        numbers::SET_MEM_TABLE => count(0).saturating_mul(32),
        // `struct vhost_vdpa_config`: offset, so many bytes.
        numbers::VDPA_GET_CONFIG | numbers::VDPA_SET_CONFIG => count(4),
        _ => 0,
    };
    numbers::size(request).saturating_add(more)
}
