//! Messages over KVM: vectors, each a GSI with a route and an irqfd, and a sink (`virt/kvm/api.rst`, sections 4.52, 4.75 and
//! 4.70).

use std::{
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use kvm_bindings::{KVM_MSI_VALID_DEVID, kvm_msi};
use kvm_ioctls::Cap;
use vmm_sys_util::eventfd::EventFd;

use super::{
    Gsi, IrqName, KvmIrqError, KvmIrqs, Shared,
    irqfd::{eventfd, signal},
    routes::Route,
};
use crate::{
    interrupt::{Acceptance, Interrupt, MsiMessage, MsiSink, MsiVector, MsiVectors, RequesterId},
    sync::lock,
};

/// The messages of a VM: programmable vectors for PCI functions, and a sink. Cheap to clone.
///
/// A **vector** is a GSI above all wires, a route of it to the message, and an eventfd. It signals by one `write(2)`, and its
/// [descriptor](MsiVector::descriptor) can be given to vhost or to another process. Programming it makes or rewrites the
/// route and puts the eventfd on the GSI; taking the message away takes the eventfd off, and what is signalled then waits in it.
/// Dropping it takes the eventfd off for good, removes the route and frees the GSI. Each open vector is a file
/// descriptor of this process: mind `RLIMIT_NOFILE`.
///
/// The **sink** is `KVM_SIGNAL_MSI`: an ioctl for each message, and nothing that is held meanwhile.
///
/// On aarch64 messages carry the requester as the device ID if the VM has an ITS, so ask for this once it has.
///
/// ```
/// use devisor::{
///     backends::kvm::KvmIrqs,
///     interrupt::{Interrupt, MsiMessage, MsiVectors, RequesterId},
/// };
/// use std::sync::Arc;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(kvm) = kvm_ioctls::Kvm::new() else {
/// #     eprintln!("skipped: no /dev/kvm");
/// #     return Ok(());
/// # };
/// # if cfg!(not(target_arch = "x86_64")) {
/// #     eprintln!("skipped: written for the interrupt controller of x86_64");
/// #     return Ok(());
/// # }
/// # let vm = Arc::new(kvm.create_vm()?);
/// # vm.create_irq_chip()?;
/// let messages = KvmIrqs::new(vm, 5..=15)?.messages();
///
/// let vector = messages.vector(RequesterId(0x18))?;
/// vector.program(Some(MsiMessage { address: 0xfee0_0000, data: 0x41 }))?;
/// vector.trigger()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct KvmMsi {
    shared: Arc<Shared>,
    /// Whether messages carry a device ID.
    device_ids: bool,
}

impl KvmMsi {
    pub(super) fn new(irqs: &KvmIrqs) -> Self {
        let shared = Arc::clone(&irqs.shared);
        let device_ids = shared.vm.check_extension(Cap::MsiDevid);
        Self { shared, device_ids }
    }

    fn device(&self, requester: RequesterId) -> Option<u32> {
        self.device_ids.then_some(requester.0.into())
    }
}

impl MsiVectors for KvmMsi {
    fn vector(&self, requester: RequesterId) -> io::Result<Box<dyn MsiVector>> {
        let gsi = MessageGsi::new(&self.shared, requester).map_err(io::Error::other)?;
        let eventfd = eventfd(gsi.gsi).map_err(io::Error::other)?;
        Ok(Box::new(Vector {
            eventfd,
            device: self.device(requester),
            connected: AtomicBool::new(false),
            programming: Mutex::default(),
            gsi,
        }))
    }
}

impl MsiSink for KvmMsi {
    /// That no vCPU takes the message because its local APIC is disabled or not there is no error, as it is none on a bus.
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.offer(requester, message)?;
        Ok(())
    }

    fn offer(&self, requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        check(message).map_err(io::Error::other)?;
        let device = self.device(requester);
        let taken = self.shared.vm.signal_msi(kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            flags: if device.is_some() { KVM_MSI_VALID_DEVID } else { 0 },
            devid: device.unwrap_or(0),
            ..Default::default()
        });
        match taken {
            // How many have taken it: the guest keeps those out that it is for.
            Ok(taken) => Ok((taken > 0).into()),
            // And this is what it says if there is none that it is for.
            Err(error) if error.errno() == libc::EPERM => Ok(Acceptance::Dropped),
            Err(error) => Err(error.into()),
        }
    }
}

/// The kernel takes any address for one of the local APICs, whose are 0xfee0_0000 to 0xfeef_ffff (Intel SDM volume 3,
/// section 12.11.1).
#[cfg(target_arch = "x86_64")]
fn check(message: MsiMessage) -> Result<(), KvmIrqError> {
    match message.address as u32 >> 20 {
        0xfee => Ok(()),
        _ => Err(KvmIrqError::NoDoorbell { message }),
    }
}

/// The kernel knows its doorbells.
#[cfg(not(target_arch = "x86_64"))]
fn check(_message: MsiMessage) -> Result<(), KvmIrqError> {
    Ok(())
}

/// See [`KvmIrqs::route_ioapic_pins`].
#[cfg(target_arch = "x86_64")]
pub(super) fn route_pins(shared: &Shared, changes: &[(u8, Option<MsiMessage>)]) -> Result<(), KvmIrqError> {
    use super::routes::WIRES;

    let route = |&(pin, message): &(u8, Option<MsiMessage>)| {
        let (gsi, device) = (Gsi(pin.into()), None);
        if gsi.0 >= WIRES {
            let range = 0..=WIRES - 1;
            return Err(KvmIrqError::OutOfRange { gsi, range });
        }
        message.map_or(Ok(()), check)?;
        Ok((gsi, message.map(|message| Route { message, device })))
    };
    let changes: Result<Vec<_>, KvmIrqError> = changes.iter().map(route).collect();
    shared.routes.change(&shared.vm, &changes?)
}

/// A GSI that is no wire. Its route, if it has one, goes with it.
struct MessageGsi {
    gsi: Gsi,
    shared: Arc<Shared>,
}

impl MessageGsi {
    fn new(shared: &Arc<Shared>, RequesterId(id): RequesterId) -> Result<Self, KvmIrqError> {
        let owner = format!("MSI of {:02x}:{:02x}.{}", id >> 8, id >> 3 & 0x1f, id & 7);
        let gsi = shared.messages.allocate(owner)?;
        let shared = Arc::clone(shared);
        Ok(Self { gsi, shared })
    }

    fn route(&self, route: Option<Route>) -> Result<(), KvmIrqError> {
        self.shared.routes.change(&self.shared.vm, &[(self.gsi, route)])
    }
}

impl Drop for MessageGsi {
    fn drop(&mut self) {
        match self.route(None) {
            Ok(()) => self.shared.messages.release(self.gsi),
            // Not freed: the next owner's signals could go along it.
            Err(error) => log::error!("{} stays routed and claimed: {error}", self.gsi),
        }
    }
}

struct Vector {
    eventfd: EventFd,
    device: Option<u32>,
    /// Whether the eventfd is on the GSI, and so whether there is a message. Changes under the lock alone.
    connected: AtomicBool,
    programming: Mutex<()>,
    /// Freed last.
    gsi: MessageGsi,
}

impl Vector {
    fn connect(&self, message: MsiMessage) -> Result<(), KvmIrqError> {
        check(message)?;
        let device = self.device;
        // The route first: nothing goes out along an older one. An eventfd that is on the GSI follows it.
        self.gsi.route(Some(Route { message, device }))?;
        if self.connected.load(Ordering::Relaxed) {
            return Ok(());
        }
        let gsi = self.gsi.gsi;
        let vm = &self.gsi.shared.vm;
        vm.register_irqfd(&self.eventfd, gsi.0).map_err(|error| {
            let (irq, source) = (IrqName::Gsi(gsi), error.into());
            match error.errno() {
                libc::EINVAL | libc::EAGAIN => KvmIrqError::NoIrqchip { irq, source },
                _ => KvmIrqError::Refused {
                    operation: "KVM_IRQFD",
                    irq,
                    source,
                },
            }
        })?;
        // What waited in it is delivered by the kernel, which looks for it when the eventfd is put on and leaves it there.
        // From then on it takes what comes as it comes, so this takes nothing away.
        let _ = self.eventfd.read();
        self.connected.store(true, Ordering::Release);
        Ok(())
    }

    fn disconnect(&self) -> io::Result<()> {
        if self.connected.load(Ordering::Relaxed) {
            // Waits for edges under way.
            self.gsi.shared.vm.unregister_irqfd(&self.eventfd, self.gsi.gsi.0)?;
            self.connected.store(false, Ordering::Release);
        }
        Ok(())
    }
}

impl Interrupt for Vector {
    #[inline]
    fn trigger(&self) -> io::Result<()> {
        if !self.connected.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the vector has no message: program it first",
            ));
        }
        signal(&self.eventfd)
    }
}

impl MsiVector for Vector {
    fn program(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let _programming = lock(&self.programming);
        let Some(message) = message else {
            // The route stays for the next message, which after a mask is the same again.
            return self.disconnect();
        };
        self.connect(message).map_err(|error| {
            // It has no message now, and the old route must not be used.
            let _ = self.disconnect();
            io::Error::other(error)
        })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the eventfd is open as long as `self` is borrowed.
        Some(unsafe { BorrowedFd::borrow_raw(self.eventfd.as_raw_fd()) })
    }

    fn is_signalled(&self) -> bool {
        let mut look = libc::pollfd {
            fd: self.eventfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one `pollfd` is handed over, and the descriptor in it is open.
        let ready = unsafe { libc::poll(&raw mut look, 1, 0) };
        ready == 1 && look.revents & libc::POLLIN != 0
    }

    fn take_signal(&self) -> bool {
        self.eventfd.read().is_ok()
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        if let Err(error) = self.disconnect() {
            log::error!(
                "the eventfd of {} may still be on it: KVM refused to take it off: {error}",
                self.gsi.gsi
            );
        }
    }
}

impl fmt::Debug for KvmMsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmMsi")
            .field("gsis", &self.shared.messages)
            .field("device_ids", &self.device_ids)
            .finish_non_exhaustive()
    }
}
