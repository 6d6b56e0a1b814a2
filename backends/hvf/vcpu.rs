//! The interrupt inputs of one vCPU, for a VM that brings its own interrupt controller.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{HvError, HvVcpus, InterruptType, VcpuExit, VcpuHandle};
use crate::interrupt::{Interrupt, LevelInterrupt};

/// IRQ and FIQ of one vCPU as level lines, without the framework's GIC: before macOS 15, or with a controller of
/// [`irqchip`](crate::backends::irqchip) in front.
///
/// The framework wants pending interrupts from the thread that owns the vCPU, before every run, and forgets them when
/// the run returns. Here other threads set the levels, and [`run`](Self::run) passes them on. A line that rises while
/// the vCPU runs stops it (`hv_vcpus_exit`), so that the next run has it; one that falls does not, for the guest
/// traps to the controller to acknowledge it and thereby ends the run.
///
/// ```
/// use devisor::backends::hvf::{VcpuExit, VcpuInputs, mock::{GuestStep, Process}};
/// use devisor::interrupt::Interrupt;
/// use std::sync::Arc;
///
/// let framework = Arc::new(Process::new());
/// framework.hv_vm_create()?;
/// let vcpu = framework.hv_vcpu_create()?;
/// framework.set_guest(vcpu, |_cpu: &_, _event| GuestStep::hvc())?; // it traps to read the controller
///
/// let inputs = VcpuInputs::new(framework, vcpu);
/// inputs.irq().trigger()?;
/// assert!(matches!(inputs.run()?, VcpuExit::Exception { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VcpuInputs<H> {
    inner: Arc<Inner<H>>,
}

struct Inner<H> {
    framework: Arc<H>,
    vcpu: VcpuHandle,
    irq: AtomicBool,
    fiq: AtomicBool,
    /// A run has read the levels, or is about to: who raises one now must stop it.
    running: AtomicBool,
}

/// One input of [`VcpuInputs`]. Any thread may drive it.
pub struct VcpuInput<H> {
    inner: Arc<Inner<H>>,
    kind: InterruptType,
}

impl<H: HvVcpus> VcpuInputs<H> {
    /// The inputs of `vcpu`, both down.
    pub fn new(framework: Arc<H>, vcpu: VcpuHandle) -> Self {
        Self {
            inner: Arc::new(Inner {
                framework,
                vcpu,
                irq: AtomicBool::new(false),
                fiq: AtomicBool::new(false),
                running: AtomicBool::new(false),
            }),
        }
    }

    /// The vCPU that the inputs are of.
    pub fn vcpu(&self) -> VcpuHandle {
        self.inner.vcpu
    }

    /// What runs it.
    pub fn framework(&self) -> &Arc<H> {
        &self.inner.framework
    }

    /// Whether an input is up: a vCPU that waits for interrupts has something to do.
    pub fn is_up(&self) -> bool {
        [InterruptType::Irq, InterruptType::Fiq]
            .iter()
            .any(|kind| self.inner.level(*kind).load(Ordering::SeqCst))
    }

    /// The IRQ input.
    pub fn irq(&self) -> VcpuInput<H> {
        self.input(InterruptType::Irq)
    }

    /// The FIQ input.
    pub fn fiq(&self) -> VcpuInput<H> {
        self.input(InterruptType::Fiq)
    }

    /// Runs the vCPU with the inputs as they are: in place of `hv_vcpu_run`, on the thread that owns the vCPU.
    ///
    /// # Errors
    /// What the framework answered.
    pub fn run(&self) -> Result<VcpuExit, HvError> {
        let inner = &*self.inner;
        let (framework, vcpu) = (&*inner.framework, inner.vcpu);
        // Before the levels are read. A rise after that is seen here, or sees this and stops the run: the stop
        // sticks, so it does not matter if it comes before the run has begun.
        inner.running.store(true, Ordering::SeqCst);
        let result = inner.set_pending().and_then(|()| framework.hv_vcpu_run(vcpu));
        inner.running.store(false, Ordering::SeqCst);
        result
    }

    fn input(&self, kind: InterruptType) -> VcpuInput<H> {
        let inner = Arc::clone(&self.inner);
        VcpuInput { inner, kind }
    }
}

impl<H: HvVcpus> Inner<H> {
    fn set_pending(&self) -> Result<(), HvError> {
        for kind in [InterruptType::Irq, InterruptType::Fiq] {
            let up = self.level(kind).load(Ordering::SeqCst);
            self.framework.hv_vcpu_set_pending_interrupt(self.vcpu, kind, up)?;
        }
        Ok(())
    }
}

impl<H> Inner<H> {
    fn level(&self, kind: InterruptType) -> &AtomicBool {
        match kind {
            InterruptType::Irq => &self.irq,
            InterruptType::Fiq => &self.fiq,
        }
    }
}

impl<H: HvVcpus> Interrupt for VcpuInput<H> {
    fn trigger(&self) -> io::Result<()> {
        let inner = &*self.inner;
        inner.level(self.kind).store(true, Ordering::SeqCst);
        // Repeats stop the run too: the last attempt may have failed.
        if inner.running.load(Ordering::SeqCst) {
            inner.framework.hv_vcpus_exit(&[inner.vcpu])?;
        }
        Ok(())
    }
}

impl<H: HvVcpus> LevelInterrupt for VcpuInput<H> {
    fn clear(&self) -> io::Result<()> {
        self.inner.level(self.kind).store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl<H> fmt::Debug for VcpuInputs<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuInputs")
            .field("vcpu", &self.inner.vcpu)
            .field("irq", &self.inner.irq)
            .field("fiq", &self.inner.fiq)
            .finish_non_exhaustive()
    }
}

impl<H> fmt::Debug for VcpuInput<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuInput")
            .field("vcpu", &self.inner.vcpu)
            .field("kind", &self.kind)
            .field("up", self.inner.level(self.kind))
            .finish_non_exhaustive()
    }
}
