//! vCPUs of the mock: who may call what, what a run waits for, and what plays the guest.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use super::{
    guest::{Guest, GuestCpu, GuestEvent, GuestStep},
    model::Model,
    process::Process,
    registers::Registers,
};
use crate::{
    backends::{
        hvf::{HvError, HvVcpus, InterruptType, Reg, SysReg, Trap, VcpuExit, VcpuHandle},
        irqchip::{CpuId, gicv3::CpuOutputs},
    },
    interrupt::level_from_fn,
    sync::lock,
};

/// What a vCPU can be woken by.
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
    /// The guest goes on after an instruction that trapped.
    resumed: bool,
}

enum Wake {
    Exit(VcpuExit),
    Guest(GuestEvent),
}

/// The CPU interface of the framework's GIC that a vCPU has once its `MPIDR_EL1` is set.
#[derive(Default)]
pub(super) struct Seat(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    signalled: [bool; 2],
    by: Option<Arc<Wires>>,
}

impl Seat {
    /// Outputs of a CPU interface that lead here.
    pub(super) fn outputs(self: &Arc<Self>) -> CpuOutputs {
        let output = |kind: InterruptType| {
            let seat = Arc::clone(self);
            Box::new(level_from_fn(move |up| {
                let mut taken = lock(&seat.0);
                taken.signalled[kind as usize] = up;
                if let Some(wires) = &taken.by {
                    wires.change(|state| state.signalled[kind as usize] = up);
                }
                Ok(())
            }))
        };
        CpuOutputs {
            irq: output(InterruptType::Irq),
            fiq: output(InterruptType::Fiq),
        }
    }

    /// False if another vCPU has it.
    fn take(&self, vcpu: &Vcpu) -> bool {
        let mut taken = lock(&self.0);
        if taken.by.as_ref().is_some_and(|by| !Arc::ptr_eq(by, &vcpu.wires)) {
            return false;
        }
        vcpu.wires.change(|state| state.signalled = taken.signalled);
        taken.by = Some(Arc::clone(&vcpu.wires));
        true
    }

    /// The vCPU has another one now.
    fn forget(&self) {
        lock(&self.0).by = None;
    }

    /// The vCPU is gone.
    pub(super) fn leave(&self) {
        if let Some(wires) = lock(&self.0).by.take() {
            wires.change(|state| state.signalled = [false; 2]);
        }
    }
}

impl Wires {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The condition of the virtual timer.
    pub(super) fn set_timer(&self, met: bool) {
        self.change(|state| state.timer = met);
    }

    /// The guest goes on.
    pub(super) fn resume(&self) {
        self.change(|state| state.resumed = true);
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
            // In a handler, so before the next interrupt.
            if has_guest && std::mem::take(&mut state.resumed) {
                return Wake::Guest(GuestEvent::Resumed);
            }
            let signalled = |kind: &InterruptType| has_guest && state.signalled[*kind as usize];
            if let Some(kind) = [InterruptType::Fiq, InterruptType::Irq].into_iter().find(signalled) {
                return Wake::Guest(GuestEvent::Interrupt(kind));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

pub(super) struct Vcpu {
    pub(super) handle: VcpuHandle,
    /// What the framework's GIC calls it: known once its `MPIDR_EL1` is set.
    cpu: Mutex<Option<CpuId>>,
    pub(super) registers: Arc<Mutex<Registers>>,
    owner: ThreadId,
    pub(super) wires: Arc<Wires>,
    pub(super) guest: Mutex<Option<Guest>>,
}

impl Vcpu {
    /// A vCPU of the thread that calls.
    pub(super) fn new(handle: VcpuHandle) -> Self {
        Self {
            handle,
            cpu: Mutex::default(),
            registers: Arc::default(),
            owner: thread::current().id(),
            wires: Arc::default(),
            guest: Mutex::default(),
        }
    }

    pub(super) fn cpu(&self) -> Option<CpuId> {
        *lock(&self.cpu)
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
            let event = match self.wires.wait(timer_exits, guest.is_some()) {
                Wake::Exit(exit) => return exit,
                Wake::Guest(event) => event,
            };
            let Some(guest) = guest else { continue };
            let trap = match guest(cpu, event) {
                GuestStep::Continue => continue,
                GuestStep::Trap(trap) => trap,
                GuestStep::Execute(trap) => {
                    self.wires.resume();
                    trap
                }
            };
            return VcpuExit::Exception {
                // A length that no instruction has is no instruction.
                syndrome: trap.syndrome().unwrap_or(0),
                physical_address: match trap {
                    Trap::Mmio { address, .. } => address,
                    _ => 0,
                },
            };
        }
    }

    pub(super) fn guest_cpu(&self, model: Option<Arc<Model>>) -> GuestCpu {
        GuestCpu {
            gic: model.zip(self.cpu()),
            registers: Arc::clone(&self.registers),
        }
    }
}

impl Process {
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
        let cpu = vcpu.guest_cpu(model);
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

    fn hv_vcpu_get_reg(&self, vcpu: VcpuHandle, register: Reg) -> Result<u64, HvError> {
        Ok(lock(&self.mine(vcpu)?.registers).get(register))
    }

    fn hv_vcpu_set_reg(&self, vcpu: VcpuHandle, register: Reg, value: u64) -> Result<(), HvError> {
        lock(&self.mine(vcpu)?.registers).set(register, value);
        Ok(())
    }

    fn hv_vcpu_get_sys_reg(&self, vcpu: VcpuHandle, register: SysReg) -> Result<u64, HvError> {
        Ok(lock(&self.mine(vcpu)?.registers).system(register))
    }

    fn hv_vcpu_set_sys_reg(&self, vcpu: VcpuHandle, register: SysReg, value: u64) -> Result<(), HvError> {
        let mine = self.mine(vcpu)?;
        self.with_vm(|vm| {
            let mut others = vm.vcpus.iter().filter(|other| other.handle != vcpu);
            if register == SysReg::MPIDR_EL1 && others.any(|other| lock(&other.registers).mpidr() == Some(value)) {
                return Err(HvError::BadArgument);
            }
            if register == SysReg::MPIDR_EL1
                && let Some(gic) = &vm.gic
            {
                let cpu = gic.model.cpu(value).ok_or(HvError::BadArgument)?;
                if !vm.seats[cpu.0 as usize].take(&mine) {
                    return Err(HvError::BadArgument);
                }
                if let Some(old) = lock(&mine.cpu).replace(cpu).filter(|old| *old != cpu) {
                    vm.seats[old.0 as usize].forget();
                }
            }
            lock(&mine.registers).set_system(register, value);
            Ok(())
        })?;
        if register == SysReg::CNTV_CTL_EL0 {
            self.tell_timer(&mine);
        }
        Ok(())
    }
}
