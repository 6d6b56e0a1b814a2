//! vCPUs of the mock: who may call what, what a run waits for, and what plays the guest.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use super::{
    guest::{Guest, GuestCpu, GuestEvent, GuestStep},
    model::Model,
    registers::Registers,
};
use crate::{
    backends::{
        hvf::{InterruptType, Trap, VcpuExit, VcpuHandle},
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
pub(super) struct State {
    /// IRQ and FIQ: by the GIC, or by `hv_vcpu_set_pending_interrupt` where there is none.
    pub(super) signalled: [bool; 2],
    /// `hv_vcpus_exit` was called, and has not ended a run yet.
    pub(super) exit: bool,
    /// The condition of the virtual timer.
    pub(super) timer: bool,
    pub(super) timer_masked: bool,
    pub(super) running: bool,
    /// The guest goes on after an instruction that trapped.
    pub(super) resumed: bool,
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
    pub(super) fn take(&self, vcpu: &Vcpu) -> bool {
        let mut taken = lock(&self.0);
        if taken.by.as_ref().is_some_and(|by| !Arc::ptr_eq(by, &vcpu.wires)) {
            return false;
        }
        vcpu.wires.change(|state| state.signalled = taken.signalled);
        taken.by = Some(Arc::clone(&vcpu.wires));
        true
    }

    /// The vCPU has another one now.
    pub(super) fn forget(&self) {
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
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
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

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
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
    pub(super) cpu: Mutex<Option<CpuId>>,
    pub(super) registers: Arc<Mutex<Registers>>,
    pub(super) owner: ThreadId,
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
    pub(super) fn run(&self, guest: &mut Option<Guest>, cpu: &GuestCpu, timer_exits: bool) -> VcpuExit {
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
