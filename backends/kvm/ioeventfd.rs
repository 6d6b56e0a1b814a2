//! Doorbell stores that the kernel turns into a signal of an eventfd (`virt/kvm/api.rst`, section 4.59, `KVM_IOEVENTFD`).

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
};

use kvm_bindings::{
    KVMIO, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::{
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
    ioctl::ioctl_with_ref,
};

use crate::{
    bus::{DoorbellStore, Doorbells, Space},
    sync::lock,
};

// Not `VmFd::register_ioevent`: it knows no store of a given width and any value.
vmm_sys_util::ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

/// Doorbells of one device by ioeventfd: one eventfd for each number, which the embedder watches in an event loop.
///
/// The eventfd of a number outlives what is caught for it: a BAR that moves takes its stores along, and what was rung
/// before is still there to be read. Cheap to clone: the device has one, the event loop another.
///
/// ```
/// use devisor::{backends::kvm::KvmDoorbells, bus::{DoorbellStore, Doorbells, Space}};
/// use std::sync::Arc;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(kvm) = kvm_ioctls::Kvm::new() else {
/// #     eprintln!("skipped: no /dev/kvm");
/// #     return Ok(());
/// # };
/// # let vm = Arc::new(kvm.create_vm()?);
/// let doorbells = KvmDoorbells::new(vm);
/// let store = DoorbellStore { space: Space::Memory, address: 0xd000_0050, len: Some(4), value: Some(1) };
/// let caught = doorbells.catch(1, store)?;
///
/// // In your event loop: when it is readable, read it, and let queue 1 be looked at.
/// let queue_1 = doorbells.eventfd(1)?;
/// assert!(queue_1.read().is_err(), "nobody has rung");
/// # drop(caught);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct KvmDoorbells {
    vm: Arc<VmFd>,
    eventfds: Arc<Mutex<BTreeMap<u16, Arc<EventFd>>>>,
}

impl KvmDoorbells {
    /// Doorbells for a device of `vm`.
    pub fn new(vm: Arc<VmFd>) -> Self {
        let eventfds = Arc::default();
        Self { vm, eventfds }
    }

    /// The eventfd that doorbell `number` signals, whether or not a store is caught for it yet. Non-blocking.
    ///
    /// # Errors
    /// What `eventfd(2)` answers.
    pub fn eventfd(&self, number: u16) -> io::Result<Arc<EventFd>> {
        let mut eventfds = lock(&self.eventfds);
        if let Some(eventfd) = eventfds.get(&number) {
            return Ok(Arc::clone(eventfd));
        }
        let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        eventfds.insert(number, Arc::clone(&eventfd));
        Ok(eventfd)
    }
}

impl Doorbells for KvmDoorbells {
    /// # Errors
    /// `InvalidInput` for a store that no guest can make; `AlreadyExists` if the VM catches it already; what else the kernel
    /// answers, which has room for about a thousand in a VM.
    fn catch(&self, number: u16, store: DoorbellStore) -> io::Result<Box<dyn Send + Sync>> {
        let args = Caught::args(store).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let eventfd = self.eventfd(number)?;
        let args = kvm_ioeventfd {
            fd: eventfd.as_raw_fd(),
            ..args
        };
        let vm = Arc::clone(&self.vm);
        ioeventfd(&vm, &args)?;
        let _eventfd = eventfd;
        Ok(Box::new(Caught { vm, args, _eventfd }))
    }
}

/// A store that is caught until this is dropped.
struct Caught {
    vm: Arc<VmFd>,
    args: kvm_ioeventfd,
    /// Open for as long as its number is in `args`.
    _eventfd: Arc<EventFd>,
}

impl Caught {
    fn args(store: DoorbellStore) -> Result<kvm_ioeventfd, &'static str> {
        let DoorbellStore {
            space,
            address,
            len,
            value,
        } = store;
        let mut flags = 0;
        if space == Space::Ports {
            flags |= 1 << kvm_ioeventfd_flag_nr_pio;
        }
        if value.is_some() {
            flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
        }
        let last = match len {
            Some(len @ (1 | 2 | 4 | 8)) => address.checked_add(u64::from(len) - 1),
            Some(_) => return Err("a store has 1, 2, 4 or 8 bytes"),
            None if value.is_some() => return Err("a store of any width has no value to look for"),
            None => Some(address),
        };
        match (space, last) {
            (Space::Memory, Some(_)) | (Space::Ports, Some(..=0xffff)) => {}
            _ => return Err("the store runs past the end of its address space"),
        }
        Ok(kvm_ioeventfd {
            datamatch: value.unwrap_or(0),
            addr: address,
            len: len.unwrap_or(0).into(),
            flags,
            ..Default::default()
        })
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        let args = kvm_ioeventfd {
            flags: self.args.flags | 1 << kvm_ioeventfd_flag_nr_deassign,
            ..self.args
        };
        // Whoever stores while this runs either rings the eventfd, which stays, or exits.
        if let Err(error) = ioeventfd(&self.vm, &args) {
            log::error!(
                "a store to {:#x} is still caught: KVM refused to let it go: {error}",
                args.addr
            );
        }
    }
}

fn ioeventfd(vm: &VmFd, args: &kvm_ioeventfd) -> io::Result<()> {
    // SAFETY: the file is a VM's, and this ioctl of it reads one `kvm_ioeventfd`, which is what it gets.
    match unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), args) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl fmt::Debug for KvmDoorbells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let eventfds = lock(&self.eventfds);
        let numbered = eventfds.iter().map(|(number, eventfd)| (number, eventfd.as_raw_fd()));
        f.debug_map().entries(numbered).finish()
    }
}
