//! What plays the guest on a vCPU of the mock.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use super::{model::Model, registers::Registers};
use crate::{
    backends::{
        hvf::{GeneralReg, InterruptType, SysReg, Trap},
        irqchip::{CpuId, IntId, TriggerMode, gicv3::CpuInterface},
    },
    bus::BusDevice,
    sync::lock,
};

/// What plays the guest: called by `hv_vcpu_run`, on its thread.
pub(super) type Guest = Box<dyn FnMut(&GuestCpu, GuestEvent) -> GuestStep + Send>;

/// Why a guest of the mock is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// An interrupt is signalled.
    Interrupt(InterruptType),
    /// The instruction that it executed with [`GuestStep::Execute`] is done, and its vCPU runs again; or
    /// [`Process::wake_guest`](super::Process::wake_guest).
    Resumed,
}

/// What a guest of the mock does next: see [`Process::set_guest`](super::Process::set_guest).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestStep {
    /// It goes on, and sleeps. If an interrupt is signalled still, it is called again.
    Continue,
    /// It executes an instruction that traps, and goes on with [`GuestEvent::Resumed`] when its vCPU runs again:
    /// `hv_vcpu_run` returns [`VcpuExit::Exception`](super::super::VcpuExit::Exception).
    Execute(Trap),
    /// The same, and it sleeps afterwards.
    Trap(Trap),
}

impl GuestStep {
    /// It calls the hypervisor with `HVC #0`, and sleeps.
    pub fn hvc() -> Self {
        Self::Trap(Trap::Hvc(0))
    }

    /// It reads a system register that traps: `MRS`.
    pub fn mrs(operand: GeneralReg, register: SysReg) -> Self {
        Self::Execute(Trap::SysReg {
            register,
            operand: Some(operand),
            is_read: true,
        })
    }

    /// It writes a system register that traps: `MSR`.
    pub fn msr(register: SysReg, operand: GeneralReg) -> Self {
        Self::Execute(Trap::SysReg {
            register,
            operand: Some(operand),
            is_read: false,
        })
    }
}

/// A vCPU as the software on it sees it: its registers, and the framework's GIC. While there is none, there is never an
/// interrupt in it.
pub struct GuestCpu {
    /// The GIC, and which CPU of it this is.
    pub(super) gic: Option<(Arc<Model>, CpuId)>,
    pub(super) registers: Arc<Mutex<Registers>>,
}

impl GuestCpu {
    /// Switches the distributor and this CPU's interface on, for both groups and all priorities.
    pub fn start(&self) {
        if let Some((model, cpu)) = &self.gic {
            model.start(*cpu);
        }
    }

    /// Says how an interrupt is triggered, routes it to this CPU if it is an SPI, puts it into Group 1, and enables it.
    pub fn enable(&self, intid: IntId, mode: TriggerMode) {
        if let Some((model, cpu)) = &self.gic {
            model.enable(*cpu, intid, mode);
        }
    }

    /// The value of a general register.
    pub fn x(&self, register: GeneralReg) -> u64 {
        lock(&self.registers).x(register)
    }

    /// Sets a general register.
    pub fn set_x(&self, register: GeneralReg, value: u64) {
        lock(&self.registers).set_x(register, value);
    }

    /// Takes the most urgent interrupt of Group 1: a read of `ICC_IAR1_EL1`. `None` is spurious.
    pub fn acknowledge(&self) -> Option<IntId> {
        let (model, cpu) = self.gic.as_ref()?;
        model.acknowledge(*cpu)
    }

    /// Ends an interrupt of Group 1: a write to `ICC_EOIR1_EL1`.
    pub fn end(&self, intid: IntId) {
        if let Some((model, cpu)) = &self.gic {
            model.end(*cpu, intid);
        }
    }

    /// The registers of the distributor.
    pub fn distributor(&self) -> Option<&dyn BusDevice> {
        let (model, _) = self.gic.as_ref()?;
        Some(model.distributor())
    }

    /// The registers of this CPU's redistributor.
    pub fn redistributor(&self) -> Option<&dyn BusDevice> {
        let (model, cpu) = self.gic.as_ref()?;
        Some(model.redistributor(*cpu))
    }

    /// The system registers of this CPU's interface, which do not trap.
    pub fn interface(&self) -> Option<&CpuInterface> {
        let (model, cpu) = self.gic.as_ref()?;
        Some(model.interface(*cpu))
    }
}

impl fmt::Debug for GuestCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.gic.as_ref().map(|(_, cpu)| *cpu);
        f.debug_struct("GuestCpu").field("cpu", &cpu).finish_non_exhaustive()
    }
}
