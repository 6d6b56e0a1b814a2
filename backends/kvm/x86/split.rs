//! The kernel keeps the local APICs; IOAPIC and 8259 pair are devisor's.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::VcpuFd;

use super::{inject, run_page::RunPage};
use crate::{
    backends::{
        irqchip::{
            ioapic::Pin,
            pc::{Pc, PcConfig},
        },
        kvm::{KvmIrqs, KvmMsi, routes::WIRES},
    },
    interrupt::{Acceptance, LevelInterrupt, MsiMessage, MsiSink, RequesterId},
    sync::lock,
    time::{Alarm, Clock},
};

/// KVM's split irqchip of a VM (`KVM_CAP_SPLIT_IRQCHIP`), and what the IOAPIC before it sends its messages to.
///
/// A message goes by `KVM_SIGNAL_MSI`. KVM tells of an EOI only if its routing table has a level-triggered message with
/// that vector at one of the GSIs that stand for pins of the IOAPIC. So these routes
/// ([`KvmIrqs::route_ioapic_pins`]) follow the redirection table: whenever a level message goes out that they do not have, they
/// are made anew, before the message is sent; and before a vCPU enters the guest after a restore of the board.
///
/// A level that no local APIC accepts is still up. KVM does not tell when one would accept it, so that it is tried again when
/// any vCPU next enters the guest, and with what happens next to the IOAPIC. (KVM's own IOAPIC waits for the latter.)
///
/// Clones are handles to the same.
///
/// ```
/// use devisor::{
///     backends::{irqchip::pc::PcConfig, kvm::{KvmIrqs, x86::SplitIrqchip}},
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
/// let irqs = KvmIrqs::new(vm, 24..=31)?;
/// let irqchip = SplitIrqchip::new(&irqs, PcConfig::default())?;
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
    irqs: KvmIrqs,
    messages: KvmMsi,
    config: PcConfig,
    /// Whose redirection table the routes follow. It owns the IOAPIC that owns this.
    board: OnceLock<Weak<Pc>>,
    /// The level messages that KVM knows, by pin.
    routes: Mutex<Vec<Option<MsiMessage>>>,
    /// How many restores of the IOAPIC they have followed.
    restores: AtomicU64,
}

impl SplitIrqchip {
    /// Gives the VM of `irqs` local APICs in the kernel and nothing else of an interrupt controller. To be called before the
    /// first vCPU is made. The GSIs of `irqs` lead to no pin then; its messages work.
    ///
    /// # Errors
    /// What KVM answers: it has no such capability, the VM has an irqchip, or it has vCPUs. Or `config` has more pins than the 24
    /// that GSIs are kept for.
    pub fn new(irqs: &KvmIrqs, config: PcConfig) -> io::Result<Self> {
        let pins = config.ioapic.pins;
        if pins > WIRES {
            let why = format!("an IOAPIC of {pins} pins: before KVM's split irqchip it has {WIRES} at most");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        irqs.vm().enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [pins.into(), 0, 0, 0],
            ..Default::default()
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                irqs: irqs.clone(),
                messages: irqs.messages(),
                config,
                board: OnceLock::new(),
                routes: Mutex::new(vec![None; pins as usize]),
                restores: AtomicU64::new(0),
            }),
        })
    }

    /// The board before these local APICs. `intr` wakes the vCPUs: see [`Pc::new`] for it and the rest.
    ///
    /// # Errors
    /// As [`Pc::new`]; or this has a board already.
    pub fn board(
        &self,
        intr: impl LevelInterrupt + 'static,
        clock: impl Clock + 'static,
        alarm: impl Alarm + 'static,
    ) -> io::Result<Arc<Pc>> {
        let board = Pc::new(self.shared.config, self.clone(), intr, clock, alarm);
        let board = Arc::new(board.map_err(io::Error::other)?);
        let set = self.shared.board.set(Arc::downgrade(&board));
        set.map_err(|_| io::Error::new(io::ErrorKind::AlreadyExists, "the split irqchip has a board already"))?;
        Ok(board)
    }
}

impl SplitIrqchip {
    pub(super) fn existing_board(&self) -> io::Result<Arc<Pc>> {
        let board = self.shared.board.get().and_then(Weak::upgrade);
        board.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "the split irqchip has no board: make it before its vCPUs",
            )
        })
    }
}

impl Shared {
    /// Sees to it that KVM tells of the EOI of `message`.
    fn route(&self, message: MsiMessage) -> io::Result<()> {
        let mut routes = lock(&self.routes);
        if routes.contains(&Some(message)) {
            return Ok(());
        }
        match self.board.get().and_then(Weak::upgrade) {
            // If `message` is not among its own, the entry has changed since, and its EOI is nobody's any more.
            Some(board) => self.route_all(&board, &mut routes),
            None => Ok(()),
        }
    }

    /// Sees to it that KVM tells of the EOIs of pins that were in service when the board's state was saved.
    fn follow_restore(&self, board: &Pc) -> io::Result<()> {
        let restores = board.ioapic().restores();
        if restores != self.restores.load(Ordering::Relaxed) {
            self.route_all(board, &mut lock(&self.routes))?;
            self.restores.store(restores, Ordering::Relaxed);
        }
        Ok(())
    }

    fn route_all(&self, board: &Pc, routes: &mut Vec<Option<MsiMessage>>) -> io::Result<()> {
        // All entries with a level, masked or not: one that was masked in its handler has an EOI to come.
        let level = |pin| board.ioapic().message(Pin(pin)).ok().flatten().filter(is_level);
        let table: Vec<_> = (0..self.config.ioapic.pins).map(level).collect();
        let changes: Vec<_> = (0..).zip(table.iter().copied()).collect();
        self.irqs.route_ioapic_pins(&changes).map_err(io::Error::other)?;
        *routes = table;
        Ok(())
    }
}

/// Bit 15 of the data says that the message is level-triggered (SDM volume 3, section 12.11.2).
fn is_level(message: &MsiMessage) -> bool {
    message.data & 1 << 15 != 0
}

/// Takes messages of the board and of PCI functions. One that no local APIC accepts is lost, as on the hardware, and that is
/// `Ok`; the board, which offers its own, keeps a level.
impl MsiSink for SplitIrqchip {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.offer(requester, message)?;
        Ok(())
    }

    fn offer(&self, requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        if is_level(&message) {
            self.shared.route(message)?;
        }
        self.shared.messages.offer(requester, message)
    }
}

impl fmt::Debug for SplitIrqchip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitIrqchip")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

/// What a vCPU does before it enters the guest: for the IOAPIC, and for the 8259 pair, whose INTR is at LINT0 of its local APIC.
pub(super) fn enter(vcpu: &VcpuFd, page: &RunPage, irqchip: &SplitIrqchip, board: &Pc) -> io::Result<()> {
    irqchip.shared.follow_restore(board)?;
    let ioapic = board.ioapic();
    if ioapic.owes() {
        ioapic.retry();
    }
    // "Ready" includes that LINT0 lets it through, which only the kernel knows.
    let pic = board.pic();
    if pic.intr() && page.is_ready_for_interrupt() {
        inject(vcpu, page, pic.acknowledge())?;
    }
    page.request_interrupt_window(pic.intr());
    Ok(())
}
