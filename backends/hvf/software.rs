//! A vCPU whose GICv3 is ours: before macOS 15, or where the framework's GIC is not wanted.

use std::{fmt, sync::Arc};

use super::{GeneralReg, HvError, HvVcpus, MmioAccess, Reg, SysReg, Trap, VcpuExit, VcpuHandle, VcpuInputs};
use crate::{
    backends::irqchip::gicv3::CpuInterface,
    bus::{Bus, read_le, write_le},
    interrupt::LevelInterrupt,
};

/// `CNTV_CTL_EL0`: enabled, not masked, and its time has come.
const TIMER_BITS: u64 = 0b111;
const TIMER_FIRES: u64 = 0b101;

/// A vCPU in front of a [`GicV3`](crate::backends::irqchip::gicv3::GicV3) of ours: it runs the guest, and serves what
/// the guest does with the GIC and the virtual timer by itself.
///
/// | the guest | leads to |
/// |---|---|
/// | accesses an `ICC_*` register | the [`CpuInterface`] |
/// | loads or stores where a device is on the bus, the GIC's frames among them | the [`Bus`] |
/// | has its virtual timer fire | the timer's line, PPI 27; the timer is unmasked when the guest is done with it |
/// | does anything else | [`run`](Self::run) returns the exit; [`Trap::decode`] tells what it was |
///
/// The framework's virtual machines have no firmware before UEFI, and EDK2 leaves GICR_WAKER to that: to boot one, make the GIC with
/// [`redistributors_awake`](crate::backends::irqchip::gicv3::GicV3Config::redistributors_awake).
///
/// *Threads*: it belongs to the thread that owns the vCPU. The GIC may be driven from all. See the [module](super) for an
/// example.
pub struct SoftwareVcpu<H> {
    framework: Arc<H>,
    vcpu: VcpuHandle,
    inputs: VcpuInputs<H>,
    parts: SoftwareVcpuParts,
    /// The framework has masked the timer.
    timer_masked: bool,
}

/// What a [`SoftwareVcpu`] is in front of.
pub struct SoftwareVcpuParts {
    /// This CPU's interface. The outputs of the GIC for this CPU are the vCPU's [`VcpuInputs::irq`] and `fiq`.
    pub interface: CpuInterface,
    /// The line of this CPU's virtual timer: PPI 11 counted from 0, which is INTID 27.
    pub timer: Box<dyn LevelInterrupt>,
    /// Distributor, redistributors and every device that the guest reaches with loads and stores.
    pub bus: Bus,
}

impl<H: HvVcpus> SoftwareVcpu<H> {
    /// The vCPU `inputs` is of, in front of `parts`.
    pub fn new(inputs: VcpuInputs<H>, parts: SoftwareVcpuParts) -> Self {
        Self {
            framework: Arc::clone(inputs.framework()),
            vcpu: inputs.vcpu(),
            inputs,
            parts,
            timer_masked: false,
        }
    }

    /// The interrupt inputs: what a vCPU that waits for interrupts looks at.
    pub fn inputs(&self) -> &VcpuInputs<H> {
        &self.inputs
    }

    /// Runs the guest until it does what is not of the GIC, the timer or the bus, or [`HvVcpus::hv_vcpus_exit`] is
    /// called: by a device's embedder, or by a line that rises.
    ///
    /// After an exit for an instruction that the embedder has carried out, let it [`skip`](Self::skip) that.
    ///
    /// # Errors
    /// What the framework answered. The guest can run again: what it was about to do is done then.
    pub fn run(&mut self) -> Result<VcpuExit, HvError> {
        loop {
            self.unmask_timer()?;
            let exit = self.inputs.run()?;
            let served = match exit {
                VcpuExit::VtimerActivated => {
                    self.timer_masked = true;
                    true
                }
                VcpuExit::Exception {
                    syndrome,
                    physical_address,
                } => self.serve(Trap::decode(syndrome, physical_address))?,
                VcpuExit::Canceled | VcpuExit::Unknown => false,
            };
            if !served {
                return Ok(exit);
            }
        }
    }

    /// The guest goes on behind the instruction that it trapped at.
    ///
    /// # Errors
    /// What the framework answered.
    pub fn skip(&self) -> Result<(), HvError> {
        let pc = self.framework.hv_vcpu_get_reg(self.vcpu, Reg::Pc)?;
        self.framework.hv_vcpu_set_reg(self.vcpu, Reg::Pc, pc.wrapping_add(4))
    }

    /// If the timer is masked: its line follows its condition, and it is unmasked when that is gone. A line that refuses to
    /// rise leaves it unmasked, so that it fires again at once.
    fn unmask_timer(&mut self) -> Result<(), HvError> {
        if !self.timer_masked {
            return Ok(());
        }
        let control = self.framework.hv_vcpu_get_sys_reg(self.vcpu, SysReg::CNTV_CTL_EL0)?;
        let fires = control & TIMER_BITS == TIMER_FIRES;
        let line = &self.parts.timer;
        let told = if fires { line.trigger() } else { line.clear() };
        if !fires || told.is_err() {
            self.framework.hv_vcpu_set_vtimer_mask(self.vcpu, false)?;
            // A line that refused to fall is told again before the next run.
            self.timer_masked = !fires && told.is_err();
        }
        Ok(())
    }

    /// Whether it was something of the GIC's or the bus's.
    fn serve(&self, trap: Trap) -> Result<bool, HvError> {
        let interface = &self.parts.interface;
        match trap {
            Trap::SysReg {
                register,
                operand,
                is_read: true,
            } => {
                let Some(value) = interface.read_sysreg(register) else {
                    return Ok(false);
                };
                self.set(operand, value)?;
            }
            Trap::SysReg {
                register,
                operand,
                is_read: false,
            } => {
                if interface.write_sysreg(register, self.get(operand)?).is_none() {
                    return Ok(false);
                }
            }
            Trap::Mmio {
                address,
                len,
                operand,
                access,
            } => {
                let data = &mut [0; 8][..usize::from(len)];
                if access == MmioAccess::Store {
                    write_le(data, self.get(operand)?);
                    if self.parts.bus.write(address, data).is_err() {
                        return Ok(false);
                    }
                } else {
                    if self.parts.bus.read(address, data).is_err() {
                        return Ok(false);
                    }
                    self.set(operand, access.extend(read_le(data), len))?;
                }
            }
            _ => return Ok(false),
        }
        self.skip()?;
        Ok(true)
    }

    fn get(&self, register: Option<GeneralReg>) -> Result<u64, HvError> {
        match register {
            Some(register) => self.framework.hv_vcpu_get_reg(self.vcpu, Reg::X(register)),
            None => Ok(0),
        }
    }

    fn set(&self, register: Option<GeneralReg>, value: u64) -> Result<(), HvError> {
        match register {
            Some(register) => self.framework.hv_vcpu_set_reg(self.vcpu, Reg::X(register), value),
            None => Ok(()),
        }
    }
}

impl<H> fmt::Debug for SoftwareVcpu<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftwareVcpu")
            .field("vcpu", &self.vcpu)
            .field("inputs", &self.inputs)
            .field("timer_masked", &self.timer_masked)
            .finish_non_exhaustive()
    }
}
