//! KVM: the kernel's interrupt controller, and a vCPU whose program takes the interrupts and acknowledges them by accesses
//! to our device's registers.

use std::{error::Error, io, rc::Rc, sync::Arc, thread};

use devisor::{
    backends::kvm::{Gsi, GsiClaim, KvmIrqs, Resampler},
    bus::{Bus, BusDevice, read_le},
    virtio::transport::mmio::{Line, REGION_SIZE},
};

use crate::{
    board::{Bench, Board, Handler, PlugError, Wake, Wiring},
    guest_cpu::Cpu,
    guest_drivers::{INTERRUPT_ACK, INTERRUPT_STATUS},
    kvm_guest::{Action, Controller, Guest, Machine, Program, Sensing, Wire, unavailable},
    row::PATIENCE,
};

/// The lines of this backend.
pub const WIRINGS: &[Wiring] = &[
    Wiring {
        backend: "kvm",
        line: "irqfd, edge",
        plug: |bench| {
            plug(bench, Sensing::Edge, |claim| {
                Ok((Line::Edge(Arc::new(claim.irqfd()?)), None))
            })
        },
    },
    Wiring {
        backend: "kvm",
        line: "irqfd, resample",
        plug: |bench| {
            plug(bench, Sensing::Level, |claim| {
                let line = Arc::new(claim.resample_irqfd()?);
                let resampler = ResamplerThread::spawn()?;
                resampler.resampler.add(&line)?;
                Ok((Line::Level(line), Some(resampler)))
            })
        },
    },
    Wiring {
        backend: "kvm",
        line: "KVM_IRQ_LINE",
        plug: |bench| {
            plug(bench, Sensing::Level, |claim| {
                Ok((Line::Level(Arc::new(claim.irq_line()?)), None))
            })
        },
    },
];

/// The device's wire.
const GSI: Gsi = Gsi(11);
/// Where the guest finds the device: beyond all memory.
const DEVICE: u32 = 0xd000_0000;
/// Where the guest says that it took an interrupt, at once.
const PORT_TAKEN: u16 = 0x500;

fn plug(
    bench: &Bench,
    sensing: Sensing,
    line: impl FnOnce(GsiClaim) -> Result<(Line, Option<ResamplerThread>), Box<dyn Error>>,
) -> Result<Board, PlugError> {
    if let Some(why) = unavailable() {
        return Err(PlugError::Unavailable(why));
    }
    let machine = Machine::new(bench.memory.clone()).map_err(PlugError::failed)?;
    let irqs = KvmIrqs::new(Arc::clone(machine.vm()), 5..=15).map_err(PlugError::failed)?;
    let claim = irqs.claim(GSI, "tour").map_err(PlugError::failed)?;
    let (line, resampler) = line(claim).map_err(PlugError::failed)?;
    Ok(Board {
        line,
        start: Box::new(move |handler| {
            let acknowledged = Wake::default();
            let mut mmio = Bus::new();
            let registers = Registers {
                device: Arc::clone(&handler.device),
                acknowledged: acknowledged.clone(),
            };
            mmio.insert(DEVICE.into(), REGION_SIZE, Arc::new(registers))?;
            let mut ports = Bus::new();
            ports.insert(PORT_TAKEN.into(), 1, Arc::new(TakenPort(handler)))?;
            let wire = Wire {
                gsi: GSI,
                sensing,
                handler: vec![
                    Action::OutByte {
                        port: PORT_TAKEN,
                        value: 0,
                    },
                    Action::CopyLong {
                        from: DEVICE + INTERRUPT_STATUS as u32,
                        to: DEVICE + INTERRUPT_ACK as u32,
                    },
                ],
            };
            let guest = machine.start(Program {
                controller: Controller::IoApic,
                wires: vec![wire],
                mmio,
                ports,
                ..Default::default()
            })?;
            Ok(Rc::new(Vcpu {
                guest,
                acknowledged,
                _resampler: resampler,
            }))
        }),
    })
}

/// The first thing that the guest's handler writes to.
struct TakenPort(Handler);

impl BusDevice for TakenPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        self.0.taken();
    }
}

/// The device's registers, as the vCPU reaches them.
struct Registers {
    device: Arc<dyn BusDevice>,
    /// An interrupt for which the device had a reason.
    acknowledged: Wake,
}

impl BusDevice for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.write(offset, data);
        if offset == INTERRUPT_ACK && read_le(data) != 0 {
            self.acknowledged.wake();
        }
    }
}

/// The vCPU, as the drivers on this thread see it. It takes and handles interrupts by itself, and wakes them.
struct Vcpu {
    guest: Guest,
    acknowledged: Wake,
    _resampler: Option<ResamplerThread>,
}

impl Cpu for Vcpu {
    fn take_interrupt(&self) -> Result<(), String> {
        match self.acknowledged.sleep() {
            true => Ok(()),
            false => Err(format!(
                "the vCPU acknowledged nothing for {PATIENCE:?}; it has taken {} interrupts",
                self.guest.taken(GSI).count
            )),
        }
    }
}

/// A thread of the embedder's that hears of the guest's EOIs.
struct ResamplerThread {
    resampler: Arc<Resampler>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl ResamplerThread {
    fn spawn() -> io::Result<Self> {
        let resampler = Arc::new(Resampler::new()?);
        let served = Arc::clone(&resampler);
        let thread = thread::Builder::new()
            .name("resampler".into())
            .spawn(move || served.run())?;
        let thread = Some(thread);
        Ok(Self { resampler, thread })
    }
}

impl Drop for ResamplerThread {
    fn drop(&mut self) {
        // It would not end if it is not told to.
        if self.resampler.stop().is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
