//! Lines over `KVM_IRQFD` (`virt/kvm/api.rst`, section 4.75): an eventfd whose signal interrupts the guest.

use std::{
    fmt, io,
    os::fd::{AsRawFd, RawFd},
};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Gsi, GsiClaim, IrqName, KvmIrqError, irq_line::check_route};
use crate::interrupt::{EdgeToLevel, Interrupt, LevelInterrupt};

/// An edge line: one `write(2)` to an eventfd that KVM turns into an edge on the GSI.
///
/// [`eventfd`](Self::eventfd) can be given to whoever is to interrupt the guest in the device's place (vhost, another
/// process). Dropping the line takes the eventfd off the GSI, also for holders of a duplicate, and frees the GSI; an
/// edge that was signalled before is delivered before.
///
/// # Errors of `trigger`
/// KVM takes every signal off the eventfd as it comes, so its counter stays near zero and the write succeeds. `WouldBlock` means
/// that it is full, which is that nobody has taken signals for a long time: the eventfd was taken off the GSI behind the
/// line's back. That signal is not delivered, and `Err` says so; those in the counter are, as one edge, if the eventfd is ever
/// put on a GSI again. The eventfd is non-blocking, so no caller waits for that.
pub struct Irqfd(Attached);

impl Irqfd {
    pub(super) fn new(claim: GsiClaim) -> Result<Self, KvmIrqError> {
        Attached::new(claim, |vm, eventfd, gsi| vm.register_irqfd(eventfd, gsi.0)).map(Self)
    }

    /// The GSI that the line interrupts.
    pub fn gsi(&self) -> Gsi {
        self.0.claim.gsi()
    }

    /// The eventfd: writing 1 to it is what [`trigger`](Interrupt::trigger) does. Reading it takes signals away from the guest.
    pub fn eventfd(&self) -> &EventFd {
        &self.0.eventfd
    }
}

impl Interrupt for Irqfd {
    #[inline]
    fn trigger(&self) -> io::Result<()> {
        signal(&self.0.eventfd)
    }
}

/// Adds one to the counter of an eventfd: `EventFd::write` without the calls between here and the system. After a system
/// call each return is one that the processor did not foresee, so these calls are most of what a line adds to it.
#[inline]
pub(super) fn signal(eventfd: &EventFd) -> io::Result<()> {
    let one = 1_u64;
    // SAFETY: the descriptor is open as long as `eventfd` is borrowed, and `one` has the eight bytes that are read.
    let written = unsafe { libc::write(eventfd.as_raw_fd(), (&raw const one).cast(), size_of_val(&one)) };
    match written {
        // An eventfd takes eight bytes or none.
        8 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The file descriptor of [`Irqfd::eventfd`].
impl AsRawFd for Irqfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.eventfd.as_raw_fd()
    }
}

impl fmt::Debug for Irqfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Irqfd")
            .field("gsi", &self.gsi())
            .field("fd", &self.as_raw_fd())
            .finish()
    }
}

/// A level line over an irqfd: KVM raises the wire on a signal and lowers it on the guest's EOI, and says so on
/// [`resample_fd`](Self::resample_fd); the line signals again if its level is still up.
///
/// That last step needs a thread, and it is the embedder's: either its own event loop watches `resample_fd` and calls
/// [`guest_done`](Self::guest_done), or a [`Resampler`](super::Resampler) does both.
///
/// What an irqfd cannot do is lower the wire: if the device lets go before the guest has taken the interrupt, the
/// guest takes one that has no cause any more. Where no file descriptor is needed, [`IrqLine`](super::IrqLine) has no such case.
///
/// Dropping the line takes the irqfd off the GSI, which lowers the wire, and frees the GSI. Needs the whole interrupt
/// controller in the kernel, on x86_64 not the split one.
pub struct ResampleIrqfd {
    line: EdgeToLevel<Irqfd>,
    resample: EventFd,
}

impl ResampleIrqfd {
    pub(super) fn new(claim: GsiClaim) -> Result<Self, KvmIrqError> {
        let resample = eventfd(claim.gsi())?;
        let irqfd = Attached::new(claim, |vm, eventfd, gsi| {
            vm.register_irqfd_with_resample(eventfd, &resample, gsi.0)
        })?;
        let line = EdgeToLevel::new(Irqfd(irqfd));
        Ok(Self { line, resample })
    }

    /// The GSI that the line interrupts.
    pub fn gsi(&self) -> Gsi {
        self.line.edge().gsi()
    }

    /// Whether the device holds the line up. The guest may have to finish an earlier interrupt before it sees it.
    pub fn is_up(&self) -> bool {
        self.line.is_up()
    }

    /// The eventfd that raises the wire until the next EOI. It can be given to whoever holds the level in the device's place
    /// (vfio), together with [`resample_fd`](Self::resample_fd); then nobody calls this line's own methods.
    pub fn eventfd(&self) -> &EventFd {
        self.line.edge().eventfd()
    }

    /// The eventfd that becomes readable when the guest has finished an interrupt. Non-blocking; it has one reader.
    pub fn resample_fd(&self) -> &EventFd {
        &self.resample
    }

    /// To be called when [`resample_fd`](Self::resample_fd) is readable: takes the notice, and signals again if the
    /// level is still up. From any thread; one call too many does no harm.
    ///
    /// # Errors
    /// What the signal answered, as [`Irqfd`] says. It stays owed: the next `trigger` or `guest_done` tries again.
    pub fn guest_done(&self) -> io::Result<()> {
        // Taken before the level is looked at: a notice that comes later makes the eventfd readable again. That there
        // may be none to take is fine; the eventfd answers nothing else.
        let _ = self.resample.read();
        self.line.guest_done()
    }
}

impl Interrupt for ResampleIrqfd {
    #[inline]
    fn trigger(&self) -> io::Result<()> {
        self.line.trigger()
    }
}

impl LevelInterrupt for ResampleIrqfd {
    fn clear(&self) -> io::Result<()> {
        self.line.clear()
    }
}

impl fmt::Debug for ResampleIrqfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResampleIrqfd")
            .field("gsi", &self.gsi())
            .field("up", &self.is_up())
            .finish_non_exhaustive()
    }
}

/// An eventfd on a GSI. It is taken off when dropped.
struct Attached {
    eventfd: EventFd,
    /// Freed after the eventfd is taken off.
    claim: GsiClaim,
}

impl Attached {
    fn new(
        claim: GsiClaim,
        register: impl FnOnce(&VmFd, &EventFd, Gsi) -> Result<(), kvm_ioctls::Error>,
    ) -> Result<Self, KvmIrqError> {
        let gsi = claim.gsi();
        check_route(&claim.shared.vm, gsi)?;
        let eventfd = eventfd(gsi)?;
        register(&claim.shared.vm, &eventfd, gsi).map_err(|error| {
            let (irq, source) = (IrqName::Gsi(gsi), error.into());
            match error.errno() {
                // None, or none that resamples; one that is there, but is not initialized yet (VGIC).
                libc::EINVAL | libc::EAGAIN => KvmIrqError::NoIrqchip { irq, source },
                _ => refused("KVM_IRQFD", gsi, source),
            }
        })?;
        Ok(Self { eventfd, claim })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let gsi = self.claim.gsi();
        // Waits for edges under way, and lowers the wire if this was what held it up.
        if let Err(error) = self.claim.shared.vm.unregister_irqfd(&self.eventfd, gsi.0) {
            log::error!("the eventfd of {gsi} may still be on it: KVM refused to take it off: {error}");
        }
    }
}

/// Non-blocking, so that no `trigger` waits for a reader.
pub(super) fn eventfd(gsi: Gsi) -> Result<EventFd, KvmIrqError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| refused("eventfd", gsi, source))
}

fn refused(operation: &'static str, gsi: Gsi, source: io::Error) -> KvmIrqError {
    let irq = IrqName::Gsi(gsi);
    KvmIrqError::Refused { operation, irq, source }
}
