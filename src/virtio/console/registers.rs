//! Features, configuration space and control messages (virtio 1.2, section 5.3).

/// Feature bits of the device type, as masks (section 5.3.3).
pub mod feature {
    /// `VIRTIO_CONSOLE_F_SIZE`: `cols` and `rows` are valid.
    pub const SIZE: u64 = 1 << 0;
    /// `VIRTIO_CONSOLE_F_MULTIPORT`: `max_nr_ports` is valid, and there are control queues.
    pub const MULTIPORT: u64 = 1 << 1;
    /// `VIRTIO_CONSOLE_F_EMERG_WRITE`: `emerg_wr` can be written at any time.
    pub const EMERG_WRITE: u64 = 1 << 2;
}

/// Offsets in the configuration space (section 5.3.4).
pub mod config {
    pub const COLS: usize = 0;
    pub const ROWS: usize = 2;
    pub const MAX_NR_PORTS: usize = 4;
    pub const EMERG_WR: usize = 8;
    /// Its length.
    pub const LEN: usize = 12;
}

/// Control messages (section 5.3.6.2).
pub mod control {
    /// Bytes of `id`, `event` and `value`.
    pub const LEN: usize = 8;

    pub const DEVICE_READY: u16 = 0;
    pub const DEVICE_ADD: u16 = 1;
    pub const DEVICE_REMOVE: u16 = 2;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// `control receiveq`, device to driver (section 5.3.2).
pub const CONTROL_RECEIVE: u16 = 2;
/// `control transmitq`, driver to device.
pub const CONTROL_TRANSMIT: u16 = 3;

/// `receiveq` of a port. Its `transmitq` is the next.
pub fn receive_queue(port: u16) -> u16 {
    match port {
        0 => 0,
        port => 2 * port + 2,
    }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Receive(u16),
    Transmit(u16),
    ControlReceive,
    ControlTransmit,
}

impl Role {
    pub fn of(queue: u16) -> Self {
        let port = match queue / 2 {
            0 => 0,
            1 if queue == CONTROL_RECEIVE => return Self::ControlReceive,
            1 if queue == CONTROL_TRANSMIT => return Self::ControlTransmit,
            pair => pair - 1,
        };
        match queue % 2 {
            0 => Self::Receive(port),
            _ => Self::Transmit(port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_lie_as_the_specification_numbers_them() {
        use Role::*;
        let expected = [
            Receive(0),
            Transmit(0),
            ControlReceive,
            ControlTransmit,
            Receive(1),
            Transmit(1),
            Receive(2),
            Transmit(2),
        ];
        for (queue, role) in (0..).zip(expected) {
            assert_eq!(Role::of(queue), role);
            match role {
                Receive(port) => assert_eq!(receive_queue(port), queue),
                Transmit(port) => assert_eq!(receive_queue(port) + 1, queue),
                _ => {}
            }
        }
    }
}
