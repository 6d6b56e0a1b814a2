//! Lines over `KVM_IRQ_LINE` (`virt/kvm/api.rst`, section 4.25): an ioctl that sets the level of a wire.

use std::{
    fmt, io,
    sync::{Arc, Mutex},
};

use kvm_ioctls::VmFd;

#[cfg(target_arch = "aarch64")]
use super::{ArmIrq, KvmIrqs};
use super::{Gsi, GsiClaim, IrqName, KvmIrqError};
use crate::{
    interrupt::{Interrupt, LevelInterrupt},
    sync::lock,
};

/// A level line: `KVM_IRQ_LINE` with the level, on every call.
///
/// The wire goes down the moment that it is cleared, also if the guest has not taken the interrupt yet; and while it is up,
/// the kernel interrupts the guest again after each EOI, without the embedder. Prefer it to [`ResampleIrqfd`] where no
/// file descriptor is needed. Put a [`LevelOutput`] or a [`SharedLine`] in front, as devices do, and the ioctl is made for
/// transitions alone.
///
/// Dropping it lowers the wire and frees the GSI.
///
/// On Arm the ioctl names an INTID and does not look at the routing table: GSI n is SPI n here, routed or not.
///
/// [`LevelOutput`]: crate::interrupt::LevelOutput
/// [`ResampleIrqfd`]: super::ResampleIrqfd
/// [`SharedLine`]: crate::interrupt::SharedLine
pub struct IrqLine(Wire);

impl IrqLine {
    pub(super) fn new(claim: GsiClaim) -> Result<Self, KvmIrqError> {
        Wire::of_claim(claim).map(Self)
    }

    /// What the line drives.
    pub fn name(&self) -> IrqName {
        self.0.name
    }
}

impl Interrupt for IrqLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.set(true)
    }
}

impl LevelInterrupt for IrqLine {
    fn clear(&self) -> io::Result<()> {
        self.0.set(false)
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IrqLine").field(&self.0.name).finish()
    }
}

/// An edge line: `KVM_IRQ_LINE` up and down again.
///
/// For platforms where no file descriptor is wanted, a process with few of them for one. [`Irqfd`](super::Irqfd) costs
/// less per signal. Dropping it frees the GSI.
pub struct IrqPulse {
    wire: Wire,
    /// Held from the rise to the fall: a rise within another thread's pulse would be no edge, and the guest may be through
    /// with that thread's interrupt already. What is locked: whether the wire was left up.
    stuck: Mutex<bool>,
}

impl IrqPulse {
    pub(super) fn new(claim: GsiClaim) -> Result<Self, KvmIrqError> {
        let wire = Wire::of_claim(claim)?;
        let stuck = Mutex::default();
        Ok(Self { wire, stuck })
    }

    /// What the line drives.
    pub fn name(&self) -> IrqName {
        self.wire.name
    }
}

impl Interrupt for IrqPulse {
    fn trigger(&self) -> io::Result<()> {
        pulse(&self.stuck, |up| self.wire.set(up))
    }
}

/// One whole pulse at a time. The rise is what the guest takes: a fall that fails is made up for by the next pulse, as an
/// `Err` now would say that nothing was delivered.
fn pulse(stuck: &Mutex<bool>, set: impl Fn(bool) -> io::Result<()>) -> io::Result<()> {
    let mut stuck = lock(stuck);
    if *stuck {
        set(false)?;
    }
    *stuck = false;
    set(true)?;
    *stuck = set(false).is_err();
    Ok(())
}

impl fmt::Debug for IrqPulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IrqPulse").field(&self.wire.name).finish()
    }
}

#[cfg(target_arch = "aarch64")]
impl KvmIrqs {
    /// A level line on any interrupt that the Arm `KVM_IRQ_LINE` knows: PPIs, core pins, and SPIs whatever GSI is
    /// routed to them. It claims no GSI; that nobody else drives `irq` is the embedder's care.
    ///
    /// # Errors
    /// [`KvmIrqError::NoIrqchip`] or [`KvmIrqError::Refused`].
    pub fn arm_irq_line(&self, irq: ArmIrq) -> Result<IrqLine, KvmIrqError> {
        Wire::lowered(Arc::clone(self.vm()), irq.bits(), IrqName::Arm(irq), None).map(IrqLine)
    }
}

/// A wire that this process alone drives. It is down when made and lowered when dropped.
struct Wire {
    vm: Arc<VmFd>,
    /// As `KVM_IRQ_LINE` wants it: a GSI, or the encoding of [`ArmIrq`](super::ArmIrq).
    irq: u32,
    name: IrqName,
    /// Freed after the wire is lowered.
    _claim: Option<GsiClaim>,
}

impl Wire {
    #[cfg(target_arch = "aarch64")]
    fn of_claim(claim: GsiClaim) -> Result<Self, KvmIrqError> {
        let gsi = claim.gsi();
        let irq = ArmIrq::try_from(gsi).map_err(|source| KvmIrqError::NotAWire { gsi, source })?;
        let vm = Arc::clone(&claim.shared.vm);
        Self::lowered(vm, irq.bits(), IrqName::Gsi(gsi), Some(claim))
    }

    #[cfg(not(target_arch = "aarch64"))]
    fn of_claim(claim: GsiClaim) -> Result<Self, KvmIrqError> {
        let gsi = claim.gsi();
        let vm = Arc::clone(&claim.shared.vm);
        check_route(&vm, gsi)?;
        Self::lowered(vm, gsi.0, IrqName::Gsi(gsi), Some(claim))
    }

    fn lowered(vm: Arc<VmFd>, irq: u32, name: IrqName, claim: Option<GsiClaim>) -> Result<Self, KvmIrqError> {
        // First of all the ioctl, without a `Wire` that would repeat it when dropped: this is where KVM says no.
        vm.set_irq_line(irq, false).map_err(|error| refusal(error, name))?;
        let _claim = claim;
        Ok(Self { vm, irq, name, _claim })
    }

    fn set(&self, up: bool) -> io::Result<()> {
        Ok(self.vm.set_irq_line(self.irq, up)?)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Err(error) = self.set(false) {
            log::error!("{} may still be up: KVM refused to lower it: {error}", self.name);
        }
    }
}

fn refusal(error: kvm_ioctls::Error, irq: IrqName) -> KvmIrqError {
    let source = error.into();
    match error.errno() {
        // No controller; one that is there, but is not initialized yet (VGIC).
        libc::ENXIO | libc::EBUSY => KvmIrqError::NoIrqchip { irq, source },
        _ => KvmIrqError::Refused {
            operation: "KVM_IRQ_LINE",
            irq,
            source,
        },
    }
}

/// Fails if `gsi` is routed to no pin: KVM takes signals for such a GSI and drops them without a word.
///
/// Not on Arm: its ioctl does not look at the routing table, so there is nothing to ask, and lowering the wire of the same
/// number could be lowering somebody else's.
#[cfg(target_arch = "aarch64")]
pub(super) fn check_route(_vm: &VmFd, _gsi: Gsi) -> Result<(), KvmIrqError> {
    Ok(())
}

/// Fails if `gsi` is routed to no pin: KVM takes signals for such a GSI and drops them without a word.
#[cfg(not(target_arch = "aarch64"))]
pub(super) fn check_route(vm: &VmFd, gsi: Gsi) -> Result<(), KvmIrqError> {
    use kvm_bindings::{KVMIO, kvm_irq_level, kvm_irq_level__bindgen_ty_1};
    use vmm_sys_util::ioctl::ioctl_with_mut_ref;

    // The variant of KVM_IRQ_LINE that tells what became of it: negative if the GSI has no route.
    vmm_sys_util::ioctl_iowr_nr!(KVM_IRQ_LINE_STATUS, KVMIO, 0x67, kvm_irq_level);

    let mut down = kvm_irq_level {
        __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 { irq: gsi.0 },
        level: 0,
    };
    // SAFETY: the file is a VM's, and this ioctl of it reads and writes one `kvm_irq_level`, which is what it gets.
    let result = unsafe { ioctl_with_mut_ref(vm, KVM_IRQ_LINE_STATUS(), &mut down) };
    if result != 0 {
        return Err(refusal(kvm_ioctls::Error::last(), IrqName::Gsi(gsi)));
    }
    // SAFETY: both fields of the union are 32-bit integers, and the kernel has written the status.
    let status = unsafe { down.__bindgen_anon_1.status };
    if status < 0 {
        return Err(KvmIrqError::NoRoute { gsi });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, thread};

    #[test]
    fn two_threads_never_pulse_into_each_other() {
        let stuck = Mutex::new(false);
        let heard = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pulse(&stuck, |up| {
                            lock(&heard).push(up);
                            thread::yield_now();
                            Ok(())
                        })
                        .unwrap();
                    }
                });
            }
        });
        let heard = heard.into_inner().unwrap();
        assert_eq!(heard.len(), 800);
        assert!(heard.chunks(2).all(|pair| pair == [true, false]));
    }

    #[test]
    fn a_pulse_that_could_not_fall_is_delivered_and_the_next_one_is_still_an_edge() {
        let stuck = Mutex::new(false);
        let heard = RefCell::new(Vec::new());
        let wire = |refused: Option<bool>| {
            let heard = &heard;
            move |up| {
                heard.borrow_mut().push(up);
                if refused == Some(up) {
                    return Err(io::Error::other("refused"));
                }
                Ok(())
            }
        };
        pulse(&stuck, wire(Some(false))).unwrap();
        pulse(&stuck, wire(None)).unwrap();
        assert_eq!(*heard.borrow(), [true, false, false, true, false]);

        pulse(&stuck, wire(Some(true))).unwrap_err();
        heard.borrow_mut().clear();
        pulse(&stuck, wire(None)).unwrap();
        assert_eq!(*heard.borrow(), [true, false], "what did not rise need not fall");
    }
}
