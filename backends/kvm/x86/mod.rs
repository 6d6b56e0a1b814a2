//! KVM on x86_64 with as much of the interrupt controllers in the kernel as is wanted.
//!
//! | mode | in the kernel | devisor's | how a device's line gets there |
//! |---|---|---|---|
//! | kernel | 8259, IOAPIC, local APIC (`KVM_CREATE_IRQCHIP`), 8254 | nothing | [`KvmIrqs`], after [`KvmIrqs::wire_as_pc`] |
//! | split | local APIC ([`SplitIrqchip`]) | 8259, IOAPIC, 8254 | [`Pc`], from there `KVM_SIGNAL_MSI` and `KVM_INTERRUPT` |
//! | software | nothing ([`prepare_software`]) | all of them | [`Pc`], [`LocalApics`], from there `KVM_INTERRUPT` |
//!
//! A vCPU is an [`X86Vcpu`] in each of them: its [`run`](X86Vcpu::run) does what the mode needs before and after the guest is
//! entered, and gives the embedder the exits that are not about interrupts. Devices do not see the difference.
//!
//! The wires of PCI are active low on a PC, and guests program it. In the two modes with a [`Pc`] they are
//! [`Pc::pci_wires`], which idle high; the kernel's IOAPIC does not look at polarity, so that there they are lines as all others. In each
//! mode the guest's tables say the same.
//!
//! The two modes with controllers of devisor's need the feature `irqchip`.
//!
//! # Reset, save and restore
//! Stop the vCPUs and [settle](X86Vcpu::settle) each. Then the registers are KVM's to give and to take (those of its interrupt
//! controllers too), and the states of devisor's controllers are theirs; only whether a vCPU [is halted](X86Vcpu::is_halted) is in neither
//! without a local APIC in the kernel. `KVM_GET_VCPU_EVENTS` and `KVM_GET_SREGS` have what was injected and not taken yet. After a reset or a
//! restore, tell each vCPU by [`restart`](X86Vcpu::restart).
//!
//! # What is KVM's
//! In the software mode the time-stamp counter is the kernel's. A local APIC's deadline is compared with it when the guest arms the
//! timer: a guest that sets IA32_TSC while the timer is armed moves no deadline.
//!
//! [`Pc`]: crate::backends::irqchip::pc::Pc
//! [`Pc::pci_wires`]: crate::backends::irqchip::pc::Pc::pci_wires
//! [`KvmIrqs`]: super::KvmIrqs
//! [`KvmIrqs::wire_as_pc`]: super::KvmIrqs::wire_as_pc
//! [`LocalApics`]: crate::backends::irqchip::lapic::LocalApics

#[cfg(feature = "irqchip")]
mod init;
mod run_page;
#[cfg(feature = "irqchip")]
mod software;
#[cfg(feature = "irqchip")]
mod split;
mod waker;
mod wires;

#[cfg(feature = "irqchip")]
use std::sync::Arc;
use std::{fmt, io};

use kvm_ioctls::{VcpuExit, VcpuFd};

use self::run_page::RunPage;
#[cfg(feature = "irqchip")]
use self::software::Software;
#[cfg(feature = "irqchip")]
use crate::backends::irqchip::{Vector, lapic::LocalApic, pc::Pc};

pub use self::waker::VcpuWaker;
#[cfg(feature = "irqchip")]
pub use self::{software::prepare_software, split::SplitIrqchip};

/// A vCPU and the interrupts that it takes.
///
/// ```
/// use devisor::backends::kvm::x86::{VcpuWaker, X86Vcpu};
/// use kvm_ioctls::VcpuExit;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(kvm) = kvm_ioctls::Kvm::new() else {
/// #     eprintln!("skipped: no /dev/kvm");
/// #     return Ok(());
/// # };
/// let vm = kvm.create_vm()?;
/// vm.create_irq_chip()?;
/// let waker = VcpuWaker::new()?;
/// let mut vcpu = X86Vcpu::kernel(vm.create_vcpu(0)?, waker.clone())?;
///
/// // On a thread of its own, until told to stop; `None` is nothing that the embedder has to see to.
/// waker.wake();
/// assert!(vcpu.run()?.is_none(), "it was woken, and asked to look");
/// # Ok(())
/// # }
/// ```
pub struct X86Vcpu {
    fd: VcpuFd,
    waker: VcpuWaker,
    controller: Controller,
}

/// Who has the controllers.
enum Controller {
    Kernel,
    #[cfg(feature = "irqchip")]
    Split(SplitIrqchip, Arc<Pc>),
    #[cfg(feature = "irqchip")]
    Software(Box<Software>),
}

impl X86Vcpu {
    /// A vCPU of a VM with all controllers in the kernel. `waker` is for this vCPU alone.
    ///
    /// # Errors
    /// The vCPU's page cannot be mapped, or `waker` is another vCPU's.
    pub fn kernel(fd: VcpuFd, waker: VcpuWaker) -> io::Result<Self> {
        Self::new(fd, waker, Controller::Kernel)
    }

    /// A vCPU of a VM with a [`SplitIrqchip`], which has its [board](SplitIrqchip::board). INTR of the board wakes it by `waker`.
    ///
    /// # Errors
    /// As [`kernel`](Self::kernel); or there is no board.
    #[cfg(feature = "irqchip")]
    pub fn split(fd: VcpuFd, waker: VcpuWaker, irqchip: &SplitIrqchip) -> io::Result<Self> {
        let board = irqchip.existing_board()?;
        Self::new(fd, waker, Controller::Split(irqchip.clone(), board))
    }

    /// A vCPU of a VM without an irqchip, after [`prepare_software`]. `waker` is the wake line of `apic`.
    ///
    /// The register page of `apic` is wherever the guest moves it, except onto RAM: there KVM does not ask.
    ///
    /// # Errors
    /// As [`kernel`](Self::kernel).
    #[cfg(feature = "irqchip")]
    pub fn software(fd: VcpuFd, waker: VcpuWaker, apic: LocalApic, board: Arc<Pc>) -> io::Result<Self> {
        let software = Software::new(apic, board);
        Self::new(fd, waker, Controller::Software(Box::new(software)))
    }

    fn new(fd: VcpuFd, waker: VcpuWaker, controller: Controller) -> io::Result<Self> {
        let page = RunPage::map(&fd)?;
        let attached = waker.attach(page);
        attached.map_err(|_| io::Error::new(io::ErrorKind::AlreadyExists, "the waker is another vCPU's"))?;
        Ok(Self { fd, waker, controller })
    }

    /// The vCPU itself, to give it registers and CPUID.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The vCPU itself, for what of it needs to be alone with it: between two [runs](Self::run), on the vCPU's thread.
    pub fn fd_mut(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Gives the vCPU back. What wakes it does so no more; an exit that is not finished stays so.
    pub fn into_fd(self) -> VcpuFd {
        self.fd
    }

    /// What wakes it.
    pub fn waker(&self) -> &VcpuWaker {
        &self.waker
    }

    /// Runs the guest until an exit, sleeps while it is halted, and sees to its interrupts before and after.
    ///
    /// `None` is an exit that needs nothing of the embedder, or a [wake-up](VcpuWaker::wake): look whether to stop, and call it again.
    /// The exit of a port or of memory is answered by filling its data before the next call. Always from the same thread.
    ///
    /// # Errors
    /// What KVM answers, other than that it was interrupted.
    pub fn run(&mut self) -> io::Result<Option<Exit<'_>>> {
        let Self { fd, waker, controller } = self;
        match controller.enter(fd, waker.page())? {
            Entry::Guest => (),
            Entry::Again => return Ok(None),
            Entry::Sleep => {
                waker.sleep();
                return Ok(None);
            }
        }
        if !waker.enter() {
            return Ok(None);
        }
        let result = fd.run();
        waker.leave();
        #[cfg(feature = "irqchip")]
        if let Controller::Software(software) = controller {
            software.leave(waker.page());
        }
        let exit = match result {
            Ok(VcpuExit::Intr) => return Ok(None),
            Ok(exit) => exit,
            Err(error) if is_interrupted(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let exit = controller.handle(exit);
        Ok(exit.map(|exit| Exit::new(exit, waker.page())))
    }

    /// Ends what the guest is in the middle of, and does not let it go on: the instruction of the last exit, which KVM finishes
    /// with its next run, and what the guest has written to a local APIC of devisor's. Further exits of that instruction go to
    /// `serve`, to be answered as those of [`run`](Self::run).
    ///
    /// To be called before anybody else reads or sets the state of the vCPU, its local APIC or the board. On the vCPU's thread.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn settle(&mut self, mut serve: impl FnMut(Exit<'_>)) -> io::Result<()> {
        let Self { fd, waker, controller } = self;
        let page = waker.page();
        finish_exit(fd, page, |exit| {
            if let Some(exit) = controller.handle(exit) {
                serve(Exit::new(exit, page));
            }
        })?;
        #[cfg(feature = "irqchip")]
        if let Controller::Software(software) = controller {
            software.leave(page);
            software.settle(fd)?;
        }
        Ok(())
    }

    /// Whether it is halted, without a local APIC in the kernel. With one, KVM knows (`KVM_GET_MP_STATE`), and this is `false`.
    pub fn is_halted(&self) -> bool {
        match &self.controller {
            #[cfg(feature = "irqchip")]
            Controller::Software(software) => software.is_halted(),
            _ => false,
        }
    }

    /// Its registers and its local APIC were set from outside, after [`settle`](Self::settle): it goes on from there, `halted` or not. A
    /// reset says `false`, a restore what [`is_halted`](Self::is_halted) was. With a local APIC in the kernel, `KVM_SET_MP_STATE`
    /// decides instead.
    #[cfg_attr(not(feature = "irqchip"), expect(unused_variables, reason = "KVM knows"))]
    pub fn restart(&mut self, halted: bool) {
        match &mut self.controller {
            Controller::Kernel => (),
            #[cfg(feature = "irqchip")]
            Controller::Split(..) => self.waker.page().is_no_longer_ready(),
            #[cfg(feature = "irqchip")]
            Controller::Software(software) => software.restart(halted, self.waker.page()),
        }
    }
}

/// Why the guest was left.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads a port.
    PortIn {
        /// Which one.
        port: u16,
        /// How many bytes an access has: 1, 2 or 4.
        width: usize,
        /// To be filled, one access after the other: a string instruction has several.
        data: &'a mut [u8],
    },
    /// The guest writes to a port.
    PortOut {
        /// Which one.
        port: u16,
        /// How many bytes an access has: 1, 2 or 4.
        width: usize,
        /// What it writes, one access after the other: a string instruction has several.
        data: &'a [u8],
    },
    /// Any other reason.
    Other(VcpuExit<'a>),
}

impl<'a> Exit<'a> {
    /// `VcpuExit` does not say where an access to a port ends and the next begins.
    fn new(exit: VcpuExit<'a>, page: &RunPage) -> Self {
        match exit {
            VcpuExit::IoIn(port, data) => {
                let width = page.port_width();
                Self::PortIn { port, width, data }
            }
            VcpuExit::IoOut(port, data) => {
                let width = page.port_width();
                Self::PortOut { port, width, data }
            }
            exit => Self::Other(exit),
        }
    }
}

/// Where the vCPU's thread goes after it has looked.
#[cfg_attr(not(feature = "irqchip"), expect(dead_code, reason = "the kernel does it all"))]
enum Entry {
    Guest,
    Sleep,
    /// There is something that came after it was looked for.
    Again,
}

impl Controller {
    /// Before the guest is entered.
    #[cfg_attr(
        not(feature = "irqchip"),
        expect(unused_variables, reason = "the kernel does it all")
    )]
    fn enter(&mut self, fd: &mut VcpuFd, page: &RunPage) -> io::Result<Entry> {
        match self {
            Self::Kernel => Ok(Entry::Guest),
            #[cfg(feature = "irqchip")]
            Self::Split(irqchip, board) => split::enter(fd, page, irqchip, board).map(|()| Entry::Guest),
            #[cfg(feature = "irqchip")]
            Self::Software(software) => software.enter(fd, page),
        }
    }
}

impl Controller {
    /// Takes what is for a controller here. Returns what is not.
    fn handle<'a>(&mut self, exit: VcpuExit<'a>) -> Option<VcpuExit<'a>> {
        match self {
            Self::Kernel => Some(exit),
            #[cfg(feature = "irqchip")]
            Self::Split(_, board) => match exit {
                VcpuExit::IoapicEoi(vector) => {
                    board.eoi(Vector(vector));
                    None
                }
                VcpuExit::IrqWindowOpen => None,
                exit => Some(exit),
            },
            #[cfg(feature = "irqchip")]
            Self::Software(software) => software.handle(exit),
        }
    }
}

/// It has not run, or not to an exit.
fn is_interrupted(error: &kvm_ioctls::Error) -> bool {
    matches!(error.errno(), libc::EINTR | libc::EAGAIN)
}

/// Lets the instruction of the last exit finish, which KVM does when it is entered the next time: what is changed before that,
/// it would change again.
fn finish_exit(vcpu: &mut VcpuFd, page: &RunPage, mut serve: impl FnMut(VcpuExit<'_>)) -> io::Result<()> {
    // KVM goes on with a string instruction for 1024 rounds before it looks around. Each is a read and a write, and what crosses
    // pages has two exits.
    const EXITS: usize = 4 * 1024;
    for _ in 0..=EXITS {
        page.set_immediate_exit(true);
        match vcpu.run() {
            Ok(VcpuExit::Intr) => (),
            Ok(exit) => {
                serve(exit);
                continue;
            }
            Err(error) if is_interrupted(&error) => (),
            Err(error) => return Err(error.into()),
        }
        page.set_immediate_exit(false);
        return Ok(());
    }
    Err(io::Error::other("KVM does not finish an instruction of the guest"))
}

impl fmt::Debug for X86Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X86Vcpu")
            .field("waker", &self.waker)
            .finish_non_exhaustive()
    }
}

/// The vCPU takes `vector` when it is entered, as if it had acknowledged it (`KVM_INTERRUPT`).
#[cfg(feature = "irqchip")]
fn inject(vcpu: &VcpuFd, page: &RunPage, vector: Vector) -> io::Result<()> {
    use kvm_bindings::{KVMIO, kvm_interrupt};
    use vmm_sys_util::ioctl::ioctl_with_ref;

    vmm_sys_util::ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);

    let irq = kvm_interrupt { irq: vector.0.into() };
    // SAFETY: the file is a vCPU's, and this ioctl of it reads one `kvm_interrupt`, which is what it gets.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &irq) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    page.is_no_longer_ready();
    Ok(())
}
