//! The recorder: nothing but a log of what the device signals. The guest sleeps until the log has the next raise.

use std::{rc::Rc, sync::Arc};

use devisor::{
    backends::recorder::Recorder,
    interrupt::{MsiMessage, NoInterrupt},
    virtio::transport::mmio::Line,
};

use crate::{
    board::{Attach, Board, PlugError, Wiring},
    guest_cpu::RecorderCpu,
    row::PATIENCE,
};

/// The lines of this backend.
pub const WIRINGS: &[Wiring] = &[
    Wiring {
        backend: "recorder",
        line: "edge",
        plug: |_| plug(Attach::Mmio(Line::Edge(Arc::new(NoInterrupt)))),
    },
    Wiring {
        backend: "recorder",
        line: "level",
        plug: |_| plug(Attach::Mmio(Line::Level(Arc::new(NoInterrupt)))),
    },
    Wiring {
        backend: "recorder",
        line: "PCI INTx",
        plug: |_| plug(Attach::Intx(Arc::new(NoInterrupt))),
    },
    Wiring {
        backend: "recorder",
        line: "PCI MSI-X",
        plug: |_| {
            plug(Attach::MsiX {
                vectors: Arc::new(Recorder::new().vectors("any")),
                message: MsiMessage {
                    address: 0x0802_0040,
                    data: 80,
                },
            })
        },
    },
];

/// Each line of the tour is recorded, so here it needs to lead nowhere.
fn plug(attach: Attach) -> Result<Board, PlugError> {
    Ok(Board {
        attach,
        start: Box::new(|handler| {
            let line = handler.line.clone();
            Ok(Rc::new(RecorderCpu::new(line, PATIENCE, move || handler.handle())))
        }),
    })
}
