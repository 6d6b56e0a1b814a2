//! What is known of back ends by their device type: how many queues, how much of a configuration space, and features whose queues are not
//! theirs.

use crate::virtio::DeviceId;

pub(super) struct Kind {
    /// `None`: the back end says.
    pub queues: Option<u16>,
    /// Bytes of the configuration space.
    pub config: u16,
    /// Features that a back end offers and does not serve.
    pub without: u64,
}

/// Of a network device: GUEST_OFFLOADS, CTRL_VQ and what hangs on it, MQ; DEVICE_STATS, HASH_TUNNEL, VQ_NOTF_COAL, NOTF_COAL, HASH_REPORT,
/// RSS. A back end serves receive and transmit queues alone; the control queue would be the front end's.
const NET_CONTROL: u64 = 1 << 2 | 0x3f << 17 | 1 << 23 | 0xf << 50 | 1 << 57 | 1 << 60;

/// Of a console: MULTIPORT, whose driver wants control queues, and two for each port.
const CONSOLE_PORTS: u64 = 1 << 1;

/// The device type with this number.
pub(super) fn of(device: DeviceId) -> Kind {
    let kind = |queues, config| Kind {
        queues,
        config,
        without: 0,
    };
    match device.0 {
        // Net: receive and transmit.
        1 => Kind {
            without: NET_CONTROL,
            ..kind(Some(2), 12)
        },
        // Block: up to and with `write_zeroes_may_unmap` and its padding (section 5.2.4); more is refused by some.
        2 => kind(None, 60),
        // Console: the first port.
        3 => Kind {
            without: CONSOLE_PORTS,
            ..kind(Some(2), 12)
        },
        // Entropy.
        4 => kind(Some(1), 0),
        // Balloon: inflate and deflate.
        5 => kind(Some(2), 8),
        // SCSI host: control, event, and a request queue.
        8 => kind(Some(3), 36),
        // GPU, input.
        16 => kind(Some(2), 16),
        18 => kind(Some(2), 136),
        // Socket: receive, transmit, event.
        19 => kind(Some(3), 8),
        // File system: high priority, and a request queue.
        26 => kind(Some(2), 40),
        // Sound: control, event, transmit, receive.
        25 => kind(Some(4), 12),
        // RPMB.
        28 => kind(Some(1), 3),
        // I2C adapter.
        34 => kind(Some(1), 0),
        // GPIO: requests and events.
        41 => kind(Some(2), 8),
        _ => kind(None, 0),
    }
}
