//! Hypervisor.framework, with the mock in its place: its own GIC, and a vCPU on a thread that owns it. On macOS, an
//! implementation of `HvGic` and `HvVcpus` with bindings takes the place of the mock's, and nothing else here changes.

use std::{
    error::Error,
    rc::Rc,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use devisor::{
    backends::{
        hvf::{
            Gic, GicConfig, HvError, HvVcpus, IntIdRange, MsiConfig, SysReg, VcpuExit, VcpuHandle,
            mock::{GuestStep, Process},
        },
        irqchip::{IntId, Spi, TriggerMode},
    },
    interrupt::{MsiMessage, MsiVectors, RequesterId, SinkVectors},
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
        line: "mock SPI, level",
        plug: |bench| {
            plug(bench, SPI.into(), TriggerMode::Level, |gic| {
                Ok(Attach::Mmio(Line::Level(Arc::new(gic.level_line(SPI)?))))
            })
        },
    },
    Wiring {
        backend: "hvf",
        line: "mock SPI, edge",
        plug: |bench| {
            plug(bench, SPI.into(), TriggerMode::Edge, |gic| {
                Ok(Attach::Mmio(Line::Edge(Arc::new(gic.edge_line(SPI)?))))
            })
        },
    },
    Wiring {
        backend: "hvf",
        line: "mock MSI",
        plug: |bench| {
            let intid = MSI.interrupts.first;
            plug(bench, intid, TriggerMode::Edge, |gic| {
                let vector = SinkVectors::new(Arc::new(gic.msi_sink()?)).vector(RequesterId(1 << 3))?;
                vector.program(Some(message(intid)))?;
                Ok(Attach::Mmio(Line::Edge(Arc::new(vector))))
            })
        },
    },
    Wiring {
        backend: "hvf",
        line: "PCI INTx, mock",
        plug: |bench| {
            plug(bench, SPI.into(), TriggerMode::Level, |gic| {
                Ok(Attach::Intx(Arc::new(gic.level_line(SPI)?)))
            })
        },
    },
    Wiring {
        backend: "hvf",
        line: "PCI MSI-X, mock",
        plug: |bench| {
            let intid = MSI.interrupts.first;
            plug(bench, intid, TriggerMode::Edge, |gic| {
                let vectors = Arc::new(SinkVectors::new(Arc::new(gic.msi_sink()?)));
                let message = message(intid);
                Ok(Attach::MsiX { vectors, message })
            })
        },
    },
];

/// What a function is programmed with that is to interrupt by `intid`.
fn message(intid: IntId) -> MsiMessage {
    MsiMessage {
        address: MSI.doorbell(),
        data: intid.0,
    }
}

/// The device's line, where it has one.
const SPI: Spi = Spi(3);

const MSI: MsiConfig = MsiConfig {
    region_base: 0x0802_0000,
    interrupts: IntIdRange {
        first: IntId(64),
        count: 32,
    },
};

const GIC: GicConfig = GicConfig {
    distributor_base: 0x0800_0000,
    redistributor_base: 0x080a_0000,
    msi: Some(MSI),
};

fn plug(
    _bench: &Bench,
    intid: IntId,
    mode: TriggerMode,
    attach: impl FnOnce(&Gic<Process>) -> Result<Attach, Box<dyn Error>>,
) -> Result<Board, PlugError> {
    let framework = Arc::new(Process::new());
    framework.hv_vm_create().map_err(PlugError::failed)?;
    let gic = Gic::create(Arc::clone(&framework), GIC).map_err(PlugError::failed)?;
    let attach = attach(&gic).map_err(PlugError::failed)?;
    Ok(Board {
        attach,
        start: Box::new(move |handler| {
            let vcpu = Vcpu::start(framework, intid, mode, handler)?;
            Ok(Rc::new(vcpu) as Rc<dyn Cpu>)
        }),
    })
}

/// A vCPU that takes and handles interrupts by itself, and wakes the drivers on this thread.
struct Vcpu {
    framework: Arc<Process>,
    handle: VcpuHandle,
    thread: Option<JoinHandle<Result<(), HvError>>>,
    acknowledged: Wake,
}

impl Vcpu {
    fn start(
        framework: Arc<Process>,
        intid: IntId,
        mode: TriggerMode,
        handler: Handler,
    ) -> Result<Self, Box<dyn Error>> {
        let acknowledged = Wake::default();
        let (made, handle) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("vcpu".into()).spawn({
            let framework = Arc::clone(&framework);
            let acknowledged = acknowledged.clone();
            // A vCPU belongs to the thread that makes it.
            move || {
                let vcpu = framework.hv_vcpu_create()?;
                framework.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0)?;
                let cpu = framework.guest_cpu(vcpu)?;
                cpu.start();
                cpu.enable(intid, mode);
                framework.set_guest(vcpu, move |cpu, _event| {
                    if let Some(taken) = cpu.acknowledge() {
                        let handled = taken == intid && handler.handle();
                        cpu.end(taken);
                        match handled {
                            true => acknowledged.wake(),
                            // Who raised the level lowers it, and may need this processor for that.
                            false => thread::yield_now(),
                        }
                    }
                    GuestStep::Continue
                })?;
                // Nobody listens only if `start` has given up.
                let _ = made.send(vcpu);
                while framework.hv_vcpu_run(vcpu)? != VcpuExit::Canceled {}
                framework.hv_vcpu_destroy(vcpu)
            }
        })?;
        let Ok(handle) = handle.recv() else {
            // It ended before it had a vCPU.
            return Err(match thread.join() {
                Ok(Err(error)) => error.into(),
                _ => "the vCPU's thread ended".into(),
            });
        };
        let thread = Some(thread);
        Ok(Self {
            framework,
            handle,
            thread,
            acknowledged,
        })
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
        // It would not end if it is not told to.
        if self.framework.hv_vcpus_exit(&[self.handle]).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
