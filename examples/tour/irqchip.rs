//! Our own GICv2, with this thread as its CPU: it sleeps until its IRQ input rises, and acknowledges and ends interrupts at
//! the CPU interface.

use std::{
    error::Error,
    rc::Rc,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use devisor::{
    backends::irqchip::{
        CpuId, IntId, Spi, TriggerMode,
        gicv2::{CpuOutputs, EdgeLine, GicV2, GicV2Config},
        gicv2m::GicV2mFrame,
    },
    bus::{BusDevice, read_le},
    interrupt::{Interrupt, LevelInterrupt, MsiVectors, NoInterrupt, RequesterId, SinkVectors, level_from_fn},
    virtio::transport::mmio::Line,
};

use crate::{
    board::{Attach, Bench, Board, Handler, PlugError, Trace, Wiring},
    guest_cpu::Cpu,
    row::PATIENCE,
};

/// The lines of this backend.
pub const WIRINGS: &[Wiring] = &[
    Wiring {
        backend: "irqchip",
        line: "GICv2 SPI, level",
        plug: |bench| {
            plug(bench, TriggerMode::Level, Spi(3), |gic| {
                Ok(Attach::Mmio(Line::Level(Arc::new(gic.level_line(Spi(3))?))))
            })
        },
    },
    Wiring {
        backend: "irqchip",
        line: "GICv2 SPI, edge",
        plug: |bench| plug_edge(bench, |line| line),
    },
    Wiring {
        backend: "irqchip",
        line: "GICv2m MSI",
        plug: |bench| {
            plug(bench, TriggerMode::Edge, Spi(40), |gic| {
                let frame = Arc::new(GicV2mFrame::new(gic, 0x0802_0000, Spi(40), 8)?);
                let vector = SinkVectors::new(Arc::clone(&frame)).vector(RequesterId(1 << 3))?;
                vector.program(frame.message(0))?;
                Ok(Attach::Mmio(Line::Edge(Arc::new(vector))))
            })
        },
    },
    Wiring {
        backend: "irqchip",
        line: "PCI INTx, SPI",
        plug: |bench| {
            plug(bench, TriggerMode::Level, Spi(3), |gic| {
                Ok(Attach::Intx(Arc::new(gic.level_line(Spi(3))?)))
            })
        },
    },
    Wiring {
        backend: "irqchip",
        line: "PCI MSI-X, GICv2m",
        plug: |bench| {
            plug(bench, TriggerMode::Edge, Spi(40), |gic| {
                let frame = Arc::new(GicV2mFrame::new(gic, 0x0802_0000, Spi(40), 8)?);
                let message = frame.message(0).ok_or("a frame has at least one SPI")?;
                let vectors = Arc::new(SinkVectors::new(frame));
                Ok(Attach::MsiX { vectors, message })
            })
        },
    },
];

/// An edge-triggered SPI, behind what `wrap` makes of its line.
pub fn plug_edge<I: Interrupt + 'static>(bench: &Bench, wrap: fn(EdgeLine) -> I) -> Result<Board, PlugError> {
    plug(bench, TriggerMode::Edge, Spi(3), |gic| {
        Ok(Attach::Mmio(Line::Edge(Arc::new(wrap(gic.edge_line(Spi(3))?)))))
    })
}

fn plug(
    bench: &Bench,
    mode: TriggerMode,
    spi: Spi,
    attach: impl FnOnce(&GicV2) -> Result<Attach, Box<dyn Error>>,
) -> Result<Board, PlugError> {
    let pin = Pin::default();
    let outputs = CpuOutputs {
        irq: Box::new(pin.input(&bench.trace)),
        fiq: Box::new(NoInterrupt),
    };
    let gic = GicV2::new(GicV2Config::default(), vec![outputs]).map_err(PlugError::failed)?;
    let attach = attach(&gic).map_err(PlugError::failed)?;
    Ok(Board {
        attach,
        start: Box::new(move |handler| {
            let distributor = gic.distributor(CpuId(0))?;
            let interface = gic.cpu_interface(CpuId(0))?;
            Ok(Rc::new(GicCpu::new(
                &distributor,
                interface,
                pin,
                spi.into(),
                mode,
                handler,
            )))
        }),
    })
}

/// The IRQ input of a CPU that can sleep until it is up. Clones are the same input.
#[derive(Clone, Default)]
pub struct Pin {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Pin {
    /// What the interrupt controller drives.
    pub fn input(&self, trace: &Trace) -> impl LevelInterrupt + use<> {
        let shared = Arc::clone(&self.shared);
        let input = level_from_fn(move |up| {
            let (level, changed) = &*shared;
            *level.lock().unwrap_or_else(PoisonError::into_inner) = up;
            changed.notify_all();
            Ok(())
        });
        trace.level("IRQ", input)
    }

    /// Sleeps until it is up. Returns whether it is.
    pub fn sleep(&self) -> bool {
        let (level, changed) = &*self.shared;
        let level = level.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = changed.wait_timeout_while(level, PATIENCE, |up| !*up);
        *woken.unwrap_or_else(PoisonError::into_inner).0
    }
}

// Registers (ARM IHI 0048B, sections 4.3 and 4.4).
const GICD_CTLR: u64 = 0x000;
const GICD_ISENABLER: u64 = 0x100;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_ITARGETSR: u64 = 0x800;
const GICD_ICFGR: u64 = 0xc00;
const GICC_CTLR: u64 = 0x000;
const GICC_PMR: u64 = 0x004;
const GICC_IAR: u64 = 0x00c;
const GICC_EOIR: u64 = 0x010;

/// The INTID in GICC_IAR, and the one that says that there is none.
const INTID: u64 = 0x3ff;
const SPURIOUS: u64 = 1023;

/// A CPU with a GICv2, that listens to one interrupt.
pub struct GicCpu<I> {
    interface: I,
    pin: Pin,
    intid: IntId,
    handler: Handler,
}

impl<I: BusDevice> GicCpu<I> {
    /// Initializes the GIC as a guest does: enables `intid` and lets everything through.
    pub fn new(
        distributor: &impl BusDevice,
        interface: I,
        pin: Pin,
        intid: IntId,
        mode: TriggerMode,
        handler: Handler,
    ) -> Self {
        let IntId(id) = intid;
        let distributor = |register: u64, value: u32| distributor.write(register, &value.to_le_bytes());
        let edge = u32::from(mode == TriggerMode::Edge) * 2;
        distributor(GICD_ICFGR + u64::from(id / 16 * 4), edge << (id % 16 * 2));
        distributor(GICD_IPRIORITYR + u64::from(id / 4 * 4), 0x80 << (id % 4 * 8));
        distributor(GICD_ITARGETSR + u64::from(id / 4 * 4), 1 << (id % 4 * 8));
        distributor(GICD_ISENABLER + u64::from(id / 32 * 4), 1 << (id % 32));
        distributor(GICD_CTLR, 1);
        interface.write(GICC_PMR, &0xff_u32.to_le_bytes());
        interface.write(GICC_CTLR, &1_u32.to_le_bytes());
        Self {
            interface,
            pin,
            intid,
            handler,
        }
    }
}

impl<I: BusDevice> Cpu for GicCpu<I> {
    fn take_interrupt(&self) -> Result<(), String> {
        loop {
            if !self.pin.sleep() {
                return Err(format!("the CPU's IRQ input did not rise within {PATIENCE:?}"));
            }
            let mut iar = [0; 4];
            self.interface.read(GICC_IAR, &mut iar);
            match read_le(&iar) & INTID {
                // A level that went down before it was acknowledged.
                SPURIOUS => continue,
                id if id == u64::from(self.intid.0) => {}
                id => return Err(format!("took INTID {id} instead of {}", self.intid.0)),
            }
            let handled = self.handler.handle();
            self.interface.write(GICC_EOIR, &iar);
            if handled {
                return Ok(());
            }
            // Who raised the level lowers it, and may need this processor for that.
            thread::yield_now();
        }
    }
}
