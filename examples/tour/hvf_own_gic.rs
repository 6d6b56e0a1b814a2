//! Hypervisor.framework without a GIC, as before macOS 15: our GICv3 in front of the vCPU, whose guest traps to reach it.
//! The mock is in the framework's place here too.

use std::{
    error::Error,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use devisor::{
    backends::{
        hvf::{
            GeneralReg, HvVcpus, SoftwareVcpu, SoftwareVcpuParts, SysReg, VcpuExit, VcpuHandle, VcpuInputs,
            mock::{Config, GuestEvent, GuestStep, Process},
        },
        irqchip::{
            CpuId, IntId, Ppi, Spi, TriggerMode,
            gicv3::{CpuOutputs, GicV3, GicV3Config},
        },
    },
    bus::{Bus, BusDevice},
    interrupt::{MsiMessage, SinkVectors},
    virtio::transport::mmio::Line,
};

use crate::{
    board::{Attach, Bench, Board, Handler, PlugError, Wake, Wiring},
    guest_cpu::Cpu,
    row::PATIENCE,
};

/// The lines of this backend.
pub const WIRINGS: &[Wiring] = &[
    Wiring {
        backend: "hvf",
        line: "own GICv3, level",
        plug: |bench| {
            plug(bench, TriggerMode::Level, |gic| {
                Ok(Attach::Mmio(Line::Level(Arc::new(gic.level_line(SPI)?))))
            })
        },
    },
    Wiring {
        backend: "hvf",
        line: "MSI-X, own GICv3",
        plug: |bench| {
            plug(bench, TriggerMode::Edge, |gic| {
                let sink = gic.spi_messages(DISTRIBUTOR)?;
                let message = MsiMessage {
                    address: DISTRIBUTOR + 0x40, // GICD_SETSPI_NSR
                    data: IntId::from(SPI).0,
                };
                let vectors = Arc::new(SinkVectors::new(Arc::new(sink)));
                Ok(Attach::MsiX { vectors, message })
            })
        },
    },
];

const SPI: Spi = Spi(3);
const DISTRIBUTOR: u64 = 0x0800_0000;
const REDISTRIBUTORS: u64 = 0x080a_0000;

fn plug(
    _bench: &Bench,
    mode: TriggerMode,
    attach: impl FnOnce(&GicV3) -> Result<Attach, Box<dyn Error>>,
) -> Result<Board, PlugError> {
    let vcpu = Vcpu::new().map_err(PlugError::failed)?;
    let gic = vcpu.gic().map_err(PlugError::failed)?;
    let attach = attach(&gic).map_err(PlugError::failed)?;
    Ok(Board {
        attach,
        start: Box::new(move |handler| {
            boot(&gic, mode)?;
            vcpu.start(&gic, handler)?;
            Ok(Rc::new(vcpu) as Rc<dyn Cpu>)
        }),
    })
}

/// What the guest's kernel does with the GIC before it waits for interrupts.
fn boot(gic: &GicV3, mode: TriggerMode) -> Result<(), Box<dyn Error>> {
    let (distributor, redistributor) = (gic.distributor(), gic.redistributor(CpuId(0))?);
    let IntId(intid) = IntId::from(SPI);
    let write = |offset: u64, value: u32| distributor.write(offset, &value.to_le_bytes());
    redistributor.write(0x14, &0_u32.to_le_bytes()); // GICR_WAKER
    write(0x000, 0b11); // GICD_CTLR
    write(0x084, 1 << (intid - 32)); // GICD_IGROUPR1
    if mode == TriggerMode::Edge {
        write(0xc08, 0b10 << (2 * (intid - 32))); // GICD_ICFGR2
    }
    write(0x104, 1 << (intid - 32)); // GICD_ISENABLER1
    let interface = gic.cpu_interface(CpuId(0))?;
    for (register, value) in [(SysReg::ICC_PMR_EL1, 0xff), (SysReg::ICC_IGRPEN1_EL1, 1)] {
        interface
            .write_sysreg(register, value)
            .ok_or("a register that every GICv3 has")?;
    }
    Ok(())
}

/// A vCPU on a thread of its own, which makes it, and runs it once there is something to run.
struct Vcpu {
    framework: Arc<Process>,
    handle: VcpuHandle,
    inputs: Mutex<Option<VcpuInputs<Process>>>,
    go: mpsc::Sender<(SoftwareVcpuParts, VcpuInputs<Process>)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    acknowledged: Wake,
}

impl Vcpu {
    fn new() -> Result<Self, Box<dyn Error>> {
        let framework = Arc::new(Process::with_config(Config {
            gic: false,
            ..Config::default()
        })?);
        framework.hv_vm_create()?;
        let (made, handle) = mpsc::channel();
        let (go, parts) = mpsc::channel::<(SoftwareVcpuParts, VcpuInputs<Process>)>();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("vcpu".into()).spawn({
            let (framework, stop) = (Arc::clone(&framework), Arc::clone(&stop));
            move || {
                let created = framework.hv_vcpu_create().and_then(|vcpu| {
                    framework.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0)?;
                    Ok(vcpu)
                });
                // Nobody listens only if the tour has given up; nothing comes only if it did so later.
                let _ = made.send(created);
                if let Ok((parts, inputs)) = parts.recv() {
                    let mut vcpu = SoftwareVcpu::new(inputs, parts);
                    // A line that rises ends a run too.
                    while !stop.load(Ordering::SeqCst) && vcpu.run() == Ok(VcpuExit::Canceled) {}
                }
            }
        })?;
        let handle = handle.recv()??;
        Ok(Self {
            inputs: Mutex::new(Some(VcpuInputs::new(Arc::clone(&framework), handle))),
            framework,
            handle,
            go,
            stop,
            thread: Some(thread),
            acknowledged: Wake::default(),
        })
    }

    /// A GIC whose outputs are the vCPU's inputs.
    fn gic(&self) -> Result<GicV3, Box<dyn Error>> {
        let inputs = self.inputs.lock().map_err(|_| "poisoned")?;
        let inputs = inputs.as_ref().ok_or("the vCPU runs already")?;
        let outputs = CpuOutputs {
            irq: Box::new(inputs.irq()),
            fiq: Box::new(inputs.fiq()),
        };
        Ok(GicV3::new(GicV3Config::new(1), vec![outputs])?)
    }

    fn start(&self, gic: &GicV3, handler: Handler) -> Result<(), Box<dyn Error>> {
        let x0 = GeneralReg::new(0).ok_or("x0")?;
        let acknowledged = self.acknowledged.clone();
        self.framework.set_guest(self.handle, {
            let mut in_handler = false;
            move |cpu, event| match (event, in_handler) {
                (GuestEvent::Interrupt(_), _) => {
                    in_handler = true;
                    GuestStep::mrs(x0, SysReg::ICC_IAR1_EL1)
                }
                (GuestEvent::Resumed, true) => {
                    in_handler = false;
                    match cpu.x(x0) == u64::from(IntId::from(SPI).0) && handler.handle() {
                        true => acknowledged.wake(),
                        // Who raised the level lowers it, and may need this processor for that.
                        false => thread::yield_now(),
                    }
                    GuestStep::msr(SysReg::ICC_EOIR1_EL1, x0)
                }
                (GuestEvent::Resumed, false) => GuestStep::Continue,
            }
        })?;
        let redistributors = gic.redistributors(0)?;
        let mut bus = Bus::new();
        bus.insert(DISTRIBUTOR, 0x1_0000, Arc::new(gic.distributor()))?;
        bus.insert(REDISTRIBUTORS, redistributors.size(), Arc::new(redistributors))?;
        let parts = SoftwareVcpuParts {
            interface: gic.cpu_interface(CpuId(0))?,
            timer: Box::new(gic.ppi_line(CpuId(0), Ppi(11))?),
            bus,
        };
        let inputs = self.inputs.lock().map_err(|_| "poisoned")?.take();
        self.go.send((parts, inputs.ok_or("the vCPU runs already")?))?;
        Ok(())
    }
}

impl Cpu for Vcpu {
    fn take_interrupt(&self) -> Result<(), String> {
        match self.acknowledged.sleep() {
            true => Ok(()),
            false => Err(format!("the vCPU acknowledged nothing for {PATIENCE:?}")),
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // A vCPU that never ran waits for what it is to run.
        self.go = mpsc::channel().0;
        if self.framework.hv_vcpus_exit(&[self.handle]).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
