//! vCPUs of the mock: who may call what, what a run waits for, and what plays the guest.

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use super::{Process, model::Model};
use crate::{
    backends::{
        hvf::{HvError, HvVcpus, InterruptType, VcpuExit, VcpuHandle},
        irqchip::{CpuId, IntId, TriggerMode, gicv2::CpuOutputs},
    },
    bus::BusDevice,
    interrupt::level_from_fn,
    sync::lock,
};

/// What plays the guest: called by `hv_vcpu_run`, on its thread, while an interrupt is signalled.
type Guest = Box<dyn FnMut(&GuestCpu, InterruptType) -> GuestStep + Send>;

/// What a guest of the mock does after an interrupt: see [`Process::set_guest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestStep {
    /// It goes on, and sleeps. If an interrupt is signalled still, it is called again.
    Continue,
    /// It traps: `hv_vcpu_run` returns [`VcpuExit::Exception`].
    Trap {
        /// `ESR_EL2`.
        syndrome: u64,
        /// The faulting guest physical address of an abort.
        physical_address: u64,
    },
}

impl GuestStep {
    /// It calls the hypervisor with `HVC #0`: exception class 0x16, a 32-bit instruction.
    pub fn hvc() -> Self {
        Self::Trap {
            syndrome: 0x16 << 26 | 1 << 25,
            physical_address: 0,
        }
    }
}

/// The framework's GIC as software on one vCPU sees it. While there is none, there is never an interrupt in it.
pub struct GuestCpu {
    model: Option<Arc<Model>>,
    cpu: CpuId,
}

impl GuestCpu {
    /// Switches the distributor and this CPU's interface on, for both groups and all priorities.
    pub fn start(&self) {
        if let Some(model) = &self.model {
            model.start(self.cpu);
        }
    }

    /// Says how an interrupt is triggered, routes it to this CPU if it is an SPI, and enables it.
    pub fn enable(&self, intid: IntId, mode: TriggerMode) {
        if let Some(model) = &self.model {
            model.enable(self.cpu, intid, mode);
        }
    }

    /// Takes the most urgent interrupt: a read of `GICC_IAR`, on the framework of `ICC_IAR1_EL1`. `None` is spurious.
    pub fn acknowledge(&self) -> Option<IntId> {
        self.model.as_ref()?.acknowledge(self.cpu)
    }

    /// Ends an interrupt: a write to `GICC_EOIR`, on the framework to `ICC_EOIR1_EL1`.
    pub fn end(&self, intid: IntId) {
        if let Some(model) = &self.model {
            model.end(self.cpu, intid);
        }
    }

    /// The registers of the distributor, as this CPU sees them.
    pub fn distributor(&self) -> Option<&dyn BusDevice> {
        Some(self.model.as_ref()?.distributor(self.cpu))
    }
}

impl fmt::Debug for GuestCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gic = self.model.is_some();
        f.debug_struct("GuestCpu")
            .field("cpu", &self.cpu)
            .field("gic", &gic)
            .finish()
    }
}

/// What a vCPU can be woken by. It outlives the vCPU, for the GIC drives as many as there could be.
#[derive(Default)]
pub(super) struct Wires {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// IRQ and FIQ: by the GIC, or by `hv_vcpu_set_pending_interrupt` where there is none.
    signalled: [bool; 2],
    /// `hv_vcpus_exit` was called, and has not ended a run yet.
    exit: bool,
    /// The condition of the virtual timer.
    timer: bool,
    timer_masked: bool,
    running: bool,
}

enum Wake {
    Exit(VcpuExit),
    Interrupt(InterruptType),
}

impl Wires {
    /// Outputs of a CPU interface that lead here.
    pub(super) fn outputs(self: &Arc<Self>) -> CpuOutputs {
        let output = |kind: InterruptType| {
            let wires = Arc::clone(self);
            Box::new(level_from_fn(move |up| {
                wires.change(|state| state.signalled[kind as usize] = up);
                Ok(())
            }))
        };
        CpuOutputs {
            irq: output(InterruptType::Irq),
            fiq: output(InterruptType::Fiq),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Sleeps until there is something to do. Interrupts wake a guest only, if there is one.
    fn wait(&self, timer_exits: bool, has_guest: bool) -> Wake {
        let mut state = self.state();
        loop {
            if std::mem::take(&mut state.exit) {
                return Wake::Exit(VcpuExit::Canceled);
            }
            if timer_exits && state.timer && !state.timer_masked {
                state.timer_masked = true;
                return Wake::Exit(VcpuExit::VtimerActivated);
            }
            let signalled = |kind: &InterruptType| has_guest && state.signalled[*kind as usize];
            if let Some(kind) = [InterruptType::Fiq, InterruptType::Irq].into_iter().find(signalled) {
                return Wake::Interrupt(kind);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

pub(super) struct Vcpu {
    pub(super) handle: VcpuHandle,
    /// The CPU interface that it has: the lowest that was free.
    pub(super) cpu: CpuId,
    pub(super) mpidr: Mutex<Option<u64>>,
    owner: ThreadId,
    wires: Arc<Wires>,
    guest: Mutex<Option<Guest>>,
}

impl Vcpu {
    /// A vCPU of the thread that calls.
    pub(super) fn new(handle: VcpuHandle, cpu: CpuId, wires: Arc<Wires>) -> Self {
        // The signals of a GIC belong to the CPU interface. The rest is that of a vCPU that is gone.
        wires.change(|state| {
            let signalled = state.signalled;
            *state = State {
                signalled,
                ..State::default()
            };
        });
        Self {
            handle,
            cpu,
            mpidr: Mutex::default(),
            owner: thread::current().id(),
            wires,
            guest: Mutex::default(),
        }
    }

    pub(super) fn is_mine(&self) -> bool {
        self.owner == thread::current().id()
    }

    pub(super) fn is_running(&self) -> bool {
        self.wires.state().running
    }

    /// Runs `guest`, or sleeps, until the vCPU exits.
    fn run(&self, guest: &mut Option<Guest>, cpu: &GuestCpu, timer_exits: bool) -> VcpuExit {
        loop {
            let kind = match self.wires.wait(timer_exits, guest.is_some()) {
                Wake::Exit(exit) => return exit,
                Wake::Interrupt(kind) => kind,
            };
            if let Some(GuestStep::Trap {
                syndrome,
                physical_address,
            }) = guest.as_mut().map(|guest| guest(cpu, kind))
            {
                return VcpuExit::Exception {
                    syndrome,
                    physical_address,
                };
            }
        }
    }
}

/// The guest's side. None of these is a call of the framework.
impl Process {
    /// Sets what plays the guest on a vCPU: `hv_vcpu_run` calls it, on its thread, while an interrupt is signalled. A
    /// vCPU without a guest sleeps through all interrupts.
    ///
    /// ```
    /// use devisor::backends::hvf::{GicConfig, HvGic, HvVcpus, VcpuExit, mock::{GuestStep, Process}};
    /// use devisor::backends::irqchip::{IntId, TriggerMode};
    ///
    /// let framework = Process::new();
    /// framework.hv_vm_create()?;
    /// framework.hv_gic_create(&GicConfig::default())?;
    /// let vcpu = framework.hv_vcpu_create()?;
    /// framework.hv_vcpu_set_mpidr_el1(vcpu, 0)?;
    /// framework.set_guest(vcpu, |cpu, _kind| {
    ///     let intid = cpu.acknowledge().expect("an interrupt was signalled");
    ///     assert_eq!(intid, IntId(33));
    ///     cpu.end(intid);
    ///     GuestStep::hvc()
    /// })?;
    /// let cpu = framework.guest_cpu(vcpu)?;
    /// cpu.start();
    /// cpu.enable(IntId(33), TriggerMode::Edge);
    ///
    /// framework.hv_gic_set_spi(IntId(33), true)?; // a device, on any thread
    /// assert!(matches!(framework.hv_vcpu_run(vcpu)?, VcpuExit::Exception { .. }));
    /// # Ok::<(), devisor::backends::hvf::HvError>(())
    /// ```
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn set_guest(
        &self,
        vcpu: VcpuHandle,
        guest: impl FnMut(&GuestCpu, InterruptType) -> GuestStep + Send + 'static,
    ) -> Result<(), HvError> {
        *lock(&self.vcpu(vcpu)?.guest) = Some(Box::new(guest));
        Ok(())
    }

    /// The GIC as software on this vCPU sees it: for what a guest does before it waits for interrupts.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn guest_cpu(&self, vcpu: VcpuHandle) -> Result<GuestCpu, HvError> {
        let cpu = self.vcpu(vcpu)?.cpu;
        let model = self.model().ok();
        Ok(GuestCpu { model, cpu })
    }

    /// Sets the condition of a vCPU's virtual timer. It stops the vCPU unless masked; with the framework's GIC it is the
    /// line of INTID 27 instead.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn set_vtimer(&self, vcpu: VcpuHandle, met: bool) -> Result<(), HvError> {
        let vcpu = self.vcpu(vcpu)?;
        if let Ok(model) = self.model() {
            model.set_timer(vcpu.cpu, met);
        }
        vcpu.wires.change(|state| state.timer = met);
        Ok(())
    }

    /// The vCPU, if the thread that calls owns it.
    pub(super) fn mine(&self, handle: VcpuHandle) -> Result<Arc<Vcpu>, HvError> {
        let vcpu = self.vcpu(handle)?;
        match vcpu.is_mine() {
            true => Ok(vcpu),
            false => Err(self.config().codes.foreign_thread),
        }
    }
}

impl HvVcpus for Process {
    fn hv_vcpu_run(&self, vcpu: VcpuHandle) -> Result<VcpuExit, HvError> {
        let vcpu = self.mine(vcpu)?;
        self.about_to_run(&vcpu)?;
        let model = self.model().ok();
        let has_gic = model.is_some();
        let cpu = GuestCpu { model, cpu: vcpu.cpu };
        let timer_exits = !has_gic || self.config().vtimer_exits_with_gic;
        if std::mem::replace(&mut vcpu.wires.state().running, true) {
            // By the guest of this very run, for there is one owner.
            return Err(HvError::Busy);
        }
        // Taken out, so that it may call anything of the process, and be replaced.
        let mut guest = lock(&vcpu.guest).take();
        let exit = vcpu.run(&mut guest, &cpu, timer_exits);
        let mut slot = lock(&vcpu.guest);
        *slot = slot.take().or(guest);
        drop(slot);
        vcpu.wires.change(|state| {
            state.running = false;
            if !has_gic {
                state.signalled = [false; 2];
            }
        });
        Ok(exit)
    }

    fn hv_vcpu_set_pending_interrupt(
        &self,
        vcpu: VcpuHandle,
        kind: InterruptType,
        pending: bool,
    ) -> Result<(), HvError> {
        let vcpu = self.mine(vcpu)?;
        if self.model().is_ok() {
            return Err(self.config().codes.pending_with_gic);
        }
        vcpu.wires.change(|state| state.signalled[kind as usize] = pending);
        Ok(())
    }

    fn hv_vcpu_get_pending_interrupt(&self, vcpu: VcpuHandle, kind: InterruptType) -> Result<bool, HvError> {
        Ok(self.mine(vcpu)?.wires.state().signalled[kind as usize])
    }

    fn hv_vcpu_set_vtimer_mask(&self, vcpu: VcpuHandle, masked: bool) -> Result<(), HvError> {
        self.mine(vcpu)?.wires.change(|state| state.timer_masked = masked);
        Ok(())
    }

    fn hv_vcpu_get_vtimer_mask(&self, vcpu: VcpuHandle) -> Result<bool, HvError> {
        Ok(self.mine(vcpu)?.wires.state().timer_masked)
    }

    fn hv_vcpus_exit(&self, vcpus: &[VcpuHandle]) -> Result<(), HvError> {
        // All or none.
        let vcpus: Vec<_> = vcpus.iter().map(|vcpu| self.vcpu(*vcpu)).collect::<Result<_, _>>()?;
        for vcpu in vcpus {
            vcpu.wires.change(|state| state.exit = true);
        }
        Ok(())
    }
}
