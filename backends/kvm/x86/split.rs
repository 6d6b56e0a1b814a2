//! The kernel keeps the local APICs; IOAPIC and 8259 pair are devisor's.

use std::{
    fmt, io,
    sync::{Arc, Mutex, OnceLock, Weak},
};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_msi};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{inject, routes, run_page::RunPage};
use crate::{
    backends::irqchip::{
        ioapic::Pin,
        pc::{Pc, PcConfig},
    },
    interrupt::{MsiMessage, MsiSink, RequesterId},
    sync::lock,
};

/// KVM's split irqchip of a VM (`KVM_CAP_SPLIT_IRQCHIP`), and what the IOAPIC before it sends its messages to.
///
/// A message goes by `KVM_SIGNAL_MSI`. KVM tells of an EOI only if its routing table has a level-triggered message with
/// that vector at one of the GSIs that stand for pins of the IOAPIC. So these routes follow the redirection table: whenever a level
/// message goes out that the table does not have, it is made anew, before the message is sent.
///
/// Clones are handles to the same.
///
/// ```
/// use devisor::{
///     backends::{irqchip::pc::PcConfig, kvm::x86::SplitIrqchip},
///     interrupt::NoInterrupt,
///     time::HostClock,
/// };
/// use std::{sync::Arc, time::Duration};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(kvm) = kvm_ioctls::Kvm::new() else {
/// #     eprintln!("skipped: no /dev/kvm");
/// #     return Ok(());
/// # };
/// let vm = Arc::new(kvm.create_vm()?);
/// let irqchip = SplitIrqchip::new(vm, PcConfig::default())?;
/// let clock = HostClock::starting_at(Duration::ZERO);
/// // INTR goes to the wakers of the vCPUs; the alarm to a timer that calls `expire`.
/// let board = irqchip.board(NoInterrupt, clock, ())?;
/// assert_eq!(board.ioapic().config().pins, 24);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SplitIrqchip {
    shared: Arc<Shared>,
}

struct Shared {
    vm: Arc<VmFd>,
    config: PcConfig,
    /// Whose redirection table the routes follow. It owns the IOAPIC that owns this.
    board: OnceLock<Weak<Pc>>,
    /// The level messages that KVM knows, by pin.
    routes: Mutex<Vec<Option<MsiMessage>>>,
}

impl SplitIrqchip {
    /// Gives `vm` local APICs in the kernel and nothing else of an interrupt controller. To be called before the first vCPU is made.
    ///
    /// # Errors
    /// What KVM answers: it has no such capability, the VM has an irqchip, or it has vCPUs.
    pub fn new(vm: Arc<VmFd>, config: PcConfig) -> io::Result<Self> {
        let pins = config.ioapic.pins;
        vm.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [pins.into(), 0, 0, 0],
            ..Default::default()
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                vm,
                config,
                board: OnceLock::new(),
                routes: Mutex::new(vec![None; pins as usize]),
            }),
        })
    }

    /// The board before these local APICs. `intr` wakes the vCPUs: see [`Pc::new`] for it and the rest.
    ///
    /// # Errors
    /// As [`Pc::new`]; or this has a board already.
    pub fn board(
        &self,
        intr: impl crate::interrupt::LevelInterrupt + 'static,
        clock: impl crate::time::Clock + 'static,
        alarm: impl crate::time::Alarm + 'static,
    ) -> io::Result<Arc<Pc>> {
        let board = Pc::new(self.shared.config, self.clone(), intr, clock, alarm);
        let board = Arc::new(board.map_err(io::Error::other)?);
        let set = self.shared.board.set(Arc::downgrade(&board));
        set.map_err(|_| io::Error::new(io::ErrorKind::AlreadyExists, "the split irqchip has a board already"))?;
        Ok(board)
    }
}

impl Shared {
    /// Sees to it that KVM tells of the EOI of `message`.
    fn route(&self, message: MsiMessage) -> io::Result<()> {
        let mut routes = lock(&self.routes);
        if routes.contains(&Some(message)) {
            return Ok(());
        }
        let Some(board) = self.board.get().and_then(Weak::upgrade) else {
            return Ok(());
        };
        // All entries with a level, masked or not: one that was masked in its handler has an EOI to come. If `message` is
        // not among them, its entry has changed since, and its EOI is nobody's any more.
        let level = |pin| board.ioapic().message(Pin(pin)).ok().flatten().filter(is_level);
        let table: Vec<_> = (0..self.config.ioapic.pins).map(level).collect();
        routes::set_messages(&self.vm, &table)?;
        *routes = table;
        Ok(())
    }
}

/// Bit 15 of the data says that the message is level-triggered (SDM volume 3, section 12.11.2).
fn is_level(message: &MsiMessage) -> bool {
    message.data & 1 << 15 != 0
}

/// Takes messages of the board and of PCI functions. One that no local APIC accepts is lost, as on the hardware, and that is
/// `Ok`.
impl MsiSink for SplitIrqchip {
    fn send(&self, _requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        if is_level(&message) {
            self.shared.route(message)?;
        }
        let MsiMessage { address, data } = message;
        let msi = kvm_msi {
            address_lo: address as u32,
            // Where the upper 24 bits of an x2APIC destination would be: an IOAPIC's message has none.
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        match self.shared.vm.signal_msi(msi) {
            Ok(_) => Ok(()),
            Err(error) if error.errno() == libc::EPERM => Ok(()), // nobody is there
            Err(error) => Err(error.into()),
        }
    }
}

impl fmt::Debug for SplitIrqchip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitIrqchip")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

/// What a vCPU does for the 8259 pair, whose INTR is at LINT0 of its local APIC: before it enters the guest.
pub(super) fn enter(vcpu: &VcpuFd, page: &RunPage, board: &Pc) -> io::Result<()> {
    // "Ready" includes that LINT0 lets it through, which only the kernel knows.
    let pic = board.pic();
    if pic.intr() && page.is_ready_for_interrupt() {
        inject(vcpu, page, pic.acknowledge())?;
    }
    page.request_interrupt_window(pic.intr());
    Ok(())
}
