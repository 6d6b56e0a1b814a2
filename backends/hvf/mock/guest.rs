//! What plays the guest on a vCPU of the mock.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use super::{Process, model::Model, registers::Registers, vcpu::Vcpu};
use crate::{
    backends::{
        hvf::{GeneralReg, HvError, InterruptType, SysReg, Trap, VcpuHandle},
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
    /// [`Process::wake_guest`].
    Resumed,
}

/// What a guest of the mock does next: see [`Process::set_guest`].
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

/// The guest's side. None of these is a call of the framework.
impl Process {
    /// Sets what plays the guest on a vCPU: `hv_vcpu_run` calls it, on its thread, while an interrupt is signalled, and
    /// to go on after an instruction that trapped. A vCPU without a guest sleeps through all interrupts.
    ///
    /// ```
    /// use devisor::backends::hvf::{GicConfig, HvGic, HvVcpus, SysReg, VcpuExit, mock::{GuestStep, Process}};
    /// use devisor::backends::irqchip::{IntId, TriggerMode};
    ///
    /// let framework = Process::new();
    /// framework.hv_vm_create()?;
    /// framework.hv_gic_create(&GicConfig::default())?;
    /// let vcpu = framework.hv_vcpu_create()?;
    /// framework.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0)?;
    /// framework.set_guest(vcpu, |cpu, _event| {
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
        guest: impl FnMut(&GuestCpu, GuestEvent) -> GuestStep + Send + 'static,
    ) -> Result<(), HvError> {
        *lock(&self.vcpu(vcpu)?.guest) = Some(Box::new(guest));
        Ok(())
    }

    /// The guest is not asleep: the next run calls it with [`GuestEvent::Resumed`], whether it has executed something or
    /// not.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn wake_guest(&self, vcpu: VcpuHandle) -> Result<(), HvError> {
        self.vcpu(vcpu)?.wires.resume();
        Ok(())
    }

    /// The GIC as software on this vCPU sees it: for what a guest does before it waits for interrupts.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn guest_cpu(&self, vcpu: VcpuHandle) -> Result<GuestCpu, HvError> {
        let vcpu = self.vcpu(vcpu)?;
        Ok(vcpu.guest_cpu(self.model().ok()))
    }

    /// Sets the condition of a vCPU's virtual timer: that the guest has enabled it and its time has come. Unless the guest
    /// masks it, by IMASK in `CNTV_CTL_EL0`, it stops the vCPU, which
    /// [`hv_vcpu_set_vtimer_mask`](crate::backends::hvf::HvVcpus::hv_vcpu_set_vtimer_mask) holds off; with the framework's GIC it is the
    /// line of INTID 27 instead.
    ///
    /// # Errors
    /// [`HvError::BadArgument`] for a handle that names no vCPU.
    pub fn set_vtimer(&self, vcpu: VcpuHandle, met: bool) -> Result<(), HvError> {
        let vcpu = self.vcpu(vcpu)?;
        lock(&vcpu.registers).set_timer(met);
        self.tell_timer(&vcpu);
        Ok(())
    }

    /// The condition of the timer has changed, or its mask.
    pub(super) fn tell_timer(&self, vcpu: &Vcpu) {
        let fires = lock(&vcpu.registers).timer_fires();
        if let (Ok(model), Some(cpu)) = (self.model(), vcpu.cpu()) {
            model.set_timer(cpu, fires);
        }
        vcpu.wires.set_timer(fires);
    }
}
