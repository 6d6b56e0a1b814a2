//! The recorder: nothing but a log of what the device signals. The guest sleeps until the log has the next raise.

use std::{rc::Rc, sync::Arc};

use devisor::{interrupt::NoInterrupt, virtio::transport::mmio::Line};

use crate::{
    board::{Board, PlugError, Wiring},
    guest_cpu::RecorderCpu,
    row::PATIENCE,
};

/// The lines of this backend.
pub const WIRINGS: &[Wiring] = &[
    Wiring {
        backend: "recorder",
        line: "edge",
        plug: |_| plug(Line::Edge(Arc::new(NoInterrupt))),
    },
    Wiring {
        backend: "recorder",
        line: "level",
        plug: |_| plug(Line::Level(Arc::new(NoInterrupt))),
    },
];

/// Each line of the tour is recorded, so here it needs to lead nowhere.
fn plug(line: Line) -> Result<Board, PlugError> {
    Ok(Board {
        line,
        start: Box::new(|handler| {
            let line = handler.line.clone();
            Ok(Rc::new(RecorderCpu::new(line, PATIENCE, move || handler.handle())))
        }),
    })
}
