//! KVM: the kernel's interrupt controller, and a vCPU whose program takes the interrupts and acknowledges them by accesses
//! to our device's registers.

use std::{error::Error, rc::Rc, sync::Arc};

use devisor::{
    backends::kvm::{Gsi, GsiClaim, KvmIrqs, ResampleIrqfd, Resampler},
    bus::{Bus, BusDevice, read_le},
    event_loop::{EventLoop, Watch},
    interrupt::MsiMessage,
    virtio::transport::mmio::{Line, REGION_SIZE},
};

use crate::{
    board::{Acknowledge, Attach, Bench, Board, Handler, PlugError, Wake, Wiring},
    guest_cpu::Cpu,
    guest_drivers::{INTERRUPT_ACK, INTERRUPT_STATUS},
    guest_pci::IsrStatus,
    kvm_guest::{Action, Controller, Guest, Machine, Program, Sensing, Wire, unavailable},
    row::PATIENCE,
};

/// The lines of this backend.
pub const WIRINGS: &[Wiring] = &[
    Wiring {
        backend: "kvm",
        line: "irqfd, edge",
        plug: |bench| {
            plug(bench, Sensing::Edge, |_, _, claim| {
                Ok((Attach::Mmio(Line::Edge(Arc::new(claim.irqfd()?))), None))
            })
        },
    },
    Wiring {
        backend: "kvm",
        line: "irqfd, resample",
        plug: |bench| {
            plug(bench, Sensing::Level, |bench, _, claim| {
                let (line, resampler) = resampled(&bench.events, claim)?;
                Ok((Attach::Mmio(Line::Level(line)), Some(resampler)))
            })
        },
    },
    Wiring {
        backend: "kvm",
        line: "KVM_IRQ_LINE",
        plug: |bench| {
            plug(bench, Sensing::Level, |_, _, claim| {
                Ok((Attach::Mmio(Line::Level(Arc::new(claim.irq_line()?))), None))
            })
        },
    },
    Wiring {
        backend: "kvm",
        line: "PCI INTx, resample",
        plug: |bench| {
            plug(bench, Sensing::Level, |bench, _, claim| {
                let (line, resampler) = resampled(&bench.events, claim)?;
                Ok((Attach::Intx(line), Some(resampler)))
            })
        },
    },
    Wiring {
        backend: "kvm",
        line: "PCI MSI-X, irqfd",
        plug: |bench| {
            plug(bench, Sensing::Message, |_, irqs, _| {
                let vectors = Arc::new(irqs.messages());
                let message = MsiMessage {
                    address: 0xfee0_0000,
                    data: Controller::IoApic.vector(GSI).into(),
                };
                Ok((Attach::MsiX { vectors, message }, None))
            })
        },
    },
];

/// A line that hears of the guest's EOIs from the event loop.
fn resampled(events: &EventLoop, claim: GsiClaim) -> Result<(Arc<ResampleIrqfd>, Watch), Box<dyn Error>> {
    let line = Arc::new(claim.resample_irqfd()?);
    let resampler = Resampler::new()?;
    resampler.add(&line)?;
    // A signal that fails is counted, and stays owed.
    let watch = events.watch(resampler, |resampler| _ = resampler.serve())?;
    Ok((line, watch))
}

/// The device's wire.
const GSI: Gsi = Gsi(11);
/// Where the guest finds the device: beyond all memory.
const DEVICE: u32 = 0xd000_0000;
/// Where the guest says that it took an interrupt, at once.
const PORT_TAKEN: u16 = 0x500;

fn plug(
    bench: &Bench,
    sensing: Sensing,
    attach: impl FnOnce(&Bench, &KvmIrqs, GsiClaim) -> Result<(Attach, Option<Watch>), Box<dyn Error>>,
) -> Result<Board, PlugError> {
    if let Some(why) = unavailable() {
        return Err(PlugError::Unavailable(why));
    }
    let machine = Machine::new(bench.memory.clone()).map_err(PlugError::failed)?;
    let irqs = KvmIrqs::new(Arc::clone(machine.vm()), 5..=15).map_err(PlugError::failed)?;
    let claim = irqs.claim(GSI, "tour").map_err(PlugError::failed)?;
    let (attach, resampler) = attach(bench, &irqs, claim).map_err(PlugError::failed)?;
    Ok(Board {
        attach,
        start: Box::new(move |handler| {
            let acknowledged = Wake::default();
            let mut mmio = Bus::new();
            let mut actions = vec![Action::OutByte {
                port: PORT_TAKEN,
                value: 0,
            }];
            match &handler.acknowledge {
                Acknowledge::Mmio(device) => {
                    let registers = Registers {
                        device: Arc::clone(device),
                        acknowledged: acknowledged.clone(),
                    };
                    mmio.insert(DEVICE.into(), REGION_SIZE, Arc::new(registers))?;
                    actions.push(Action::CopyLong {
                        from: DEVICE + INTERRUPT_STATUS as u32,
                        to: DEVICE + INTERRUPT_ACK as u32,
                    });
                }
                Acknowledge::Isr(isr) => {
                    let face = IsrFace {
                        isr: isr.clone(),
                        acknowledged: acknowledged.clone(),
                    };
                    mmio.insert(isr.address, 1, Arc::new(face))?;
                    let from = u32::try_from(isr.address)?;
                    actions.push(Action::LoadByte { from });
                }
                // There is nothing to do at the device: the first write is the last.
                Acknowledge::Message => {}
            }
            let wakes = matches!(handler.acknowledge, Acknowledge::Message).then(|| acknowledged.clone());
            let mut ports = Bus::new();
            ports.insert(PORT_TAKEN.into(), 1, Arc::new(TakenPort { handler, wakes }))?;
            let wire = Wire {
                gsi: GSI,
                sensing,
                handler: actions,
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
struct TakenPort {
    handler: Handler,
    /// Who sleeps until then.
    wakes: Option<Wake>,
}

impl BusDevice for TakenPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        self.handler.taken();
        self.wakes.iter().for_each(Wake::wake);
    }
}

/// The ISR status, as the vCPU reaches it.
struct IsrFace {
    isr: IsrStatus,
    /// An interrupt for which the device had a reason.
    acknowledged: Wake,
}

impl BusDevice for IsrFace {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let status = self.isr.read();
        data.fill(status.bits() as u8);
        if !status.is_empty() {
            self.acknowledged.wake();
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
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
    _resampler: Option<Watch>,
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
