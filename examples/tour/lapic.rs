//! Our own local APIC, with this thread as its CPU: it sleeps until its APIC wakes it, and takes what is to be injected.

use std::{error::Error, rc::Rc, sync::Arc, thread};

use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{ApicId, LocalApic, LocalApicParts, LocalApics, LocalApicsConfig, Request, Vector},
    },
    bus::BusDevice,
    interrupt::{MsiMessage, SinkVectors},
    time::ManualClock,
};

use crate::{
    board::{Attach, Bench, Board, Handler, PlugError, Wiring},
    guest_cpu::Cpu,
    irqchip::Pin,
    row::PATIENCE,
};

/// The lines of this controller.
pub const WIRINGS: &[Wiring] = &[Wiring {
    backend: "irqchip",
    line: "PCI MSI-X, APIC",
    plug,
}];

/// The vector that the guest has for the device's queue, and the message that requests it (SDM, "Message Signalled
/// Interrupts").
const VECTOR: Vector = Vector(0x41);
const MESSAGE: MsiMessage = MsiMessage {
    address: 0xfee0_0000,
    data: VECTOR.0 as u32,
};

/// Registers of the page: spurious-interrupt vector, with the software enable, and end of interrupt.
const SVR: (u64, u32) = (0x0f0, 0x1ff);
const EOI: u64 = 0x0b0;

fn plug(bench: &Bench) -> Result<Board, PlugError> {
    let pin = Pin::default();
    let parts = LocalApicParts {
        id: ApicId(0),
        wake: Box::new(pin.input(&bench.trace)),
        alarm: Box::new(()),
    };
    // Nothing here has a time.
    let clock = Arc::new(ManualClock::default());
    let apics = LocalApics::new(LocalApicsConfig::default(), clock, vec![parts]).map_err(PlugError::failed)?;
    let apic = apics.cpu(CpuId(0)).map_err(PlugError::failed)?;
    Ok(Board {
        attach: Attach::MsiX {
            vectors: Arc::new(SinkVectors::new(Arc::new(apics))),
            message: MESSAGE,
        },
        start: Box::new(move |handler| -> Result<Rc<dyn Cpu>, Box<dyn Error>> {
            let (register, value) = SVR;
            apic.write(register, &value.to_le_bytes());
            Ok(Rc::new(ApicCpu { apic, pin, handler }))
        }),
    })
}

struct ApicCpu {
    apic: LocalApic,
    pin: Pin,
    handler: Handler,
}

impl Cpu for ApicCpu {
    fn take_interrupt(&self) -> Result<(), String> {
        loop {
            if !self.pin.sleep() {
                return Err(format!("the local APIC did not wake its CPU within {PATIENCE:?}"));
            }
            match self.apic.acknowledge() {
                Some(Request::Vector(VECTOR)) => {
                    let handled = self.handler.handle();
                    self.apic.write(EOI, &[0; 4]);
                    if handled {
                        return Ok(());
                    }
                }
                Some(other) => return Err(format!("took {other:?} instead of {VECTOR:?}")),
                // Who wakes it is not done yet.
                None => thread::yield_now(),
            }
        }
    }
}
