//! The control queues (virtio 1.2, section 5.3.6.2).

use std::sync::{Arc, atomic::Ordering};

use super::{
    ResizeOrder, Size,
    registers::{CONTROL_RECEIVE, control},
    shared::Shared,
    slot::Message,
};
use crate::virtio::{Fault, QueueHandler, Round, queue::Chain};

/// Serves `control receiveq`: messages to the driver. They follow from the state of the ports, so that none is lost while there is no
/// buffer for it, and no more than the ports need are kept.
pub(super) struct ControlReceive {
    shared: Arc<Shared>,
    /// The port that was told of last.
    port: u16,
}

impl ControlReceive {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, port: 0 }
    }
}

impl QueueHandler for ControlReceive {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        if !self.shared.is_multiport() {
            return Ok(());
        }
        while let Some(message) = self.shared.message(&mut self.port) {
            let Some(chain) = round.next()? else { return Ok(()) };
            let bytes = encode(self.port, &message, self.shared.options.resize_order);
            // A buffer that is too short for it is none.
            if !chain.readable().is_empty() || chain.writer().write(&bytes).is_err() {
                chain.refuse()?;
                continue;
            }
            // Before the driver sees it: it may answer at once, by the other queue.
            self.shared.has_told(self.port, &message);
            chain.complete(bytes.len() as u32)?;
        }
        Ok(())
    }
}

fn encode(port: u16, message: &Message, order: ResizeOrder) -> Vec<u8> {
    let (event, value) = match message {
        Message::Add(_) => (control::DEVICE_ADD, 0),
        Message::Remove => (control::DEVICE_REMOVE, 0),
        Message::ConsolePort => (control::CONSOLE_PORT, 1),
        Message::Name(_) => (control::PORT_NAME, 1),
        Message::Open(open) => (control::PORT_OPEN, u16::from(*open)),
        Message::Resize(_) => (control::RESIZE, 0),
    };
    let mut bytes = u32::from(port).to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    match message {
        Message::Name(name) => bytes.extend(name.as_bytes()),
        Message::Resize(Size { cols, rows }) => {
            let (first, second) = match order {
                ResizeOrder::ColumnsFirst => (cols, rows),
                ResizeOrder::RowsFirst => (rows, cols),
            };
            bytes.extend(first.to_le_bytes());
            bytes.extend(second.to_le_bytes());
        }
        _ => {}
    }
    bytes
}

/// Serves `control transmitq`: messages of the driver.
pub(super) struct ControlTransmit(pub Arc<Shared>);

impl ControlTransmit {
    /// Whether it is a message.
    fn take(&self, chain: &Chain<'_, '_>) -> bool {
        let mut message = [0; control::LEN];
        if !chain.writable().is_empty() || chain.reader().read(&mut message).is_err() {
            return false;
        }
        let [a, b, c, d, e, f, g, h] = message;
        let port = u32::from_le_bytes([a, b, c, d]);
        let (event, value) = (u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
        let port = u16::try_from(port);
        match (event, value, port) {
            // The port number is unused.
            (control::DEVICE_READY, 0 | 1, _) => {
                self.0.device_ready.store(value == 1, Ordering::SeqCst);
                self.0.look(CONTROL_RECEIVE);
                true
            }
            (control::PORT_READY, 0 | 1, Ok(port)) => self.0.port_ready(port, value == 1),
            (control::PORT_OPEN, 0 | 1, Ok(port)) => self.0.guest_opened(port, value == 1),
            _ => false,
        }
    }
}

impl QueueHandler for ControlTransmit {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        if !self.0.is_multiport() {
            return Ok(());
        }
        while let Some(chain) = round.next()? {
            match self.take(&chain) {
                true => chain.complete(0)?,
                // There is no status that could say so.
                false => chain.refuse()?,
            }
        }
        Ok(())
    }
}
