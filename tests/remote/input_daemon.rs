//! vhost-device-input as an input device: its name is asked for by what the driver writes to the configuration space.

use std::fs;

use devisor::virtio::{DeviceId, remote::RemoteOptions};

use crate::{
    daemon::{Daemon, Place, device, machine},
    machine::{BUSES, VERSION_1},
    skip::skipped,
};

/// `VIRTIO_INPUT_CFG_ID_NAME` (virtio 1.2, section 5.8.5).
const ID_NAME: u8 = 1;

#[test]
fn an_input_device_of_vhost_device_input_says_its_name() {
    for bus in BUSES {
        let Some(program) = Daemon::find(&["vhost-device-input"]) else {
            return;
        };
        let event = fs::read_dir("/dev/input").into_iter().flatten().flatten();
        let event = event
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().contains("/event"));
        let Some(event) = event else {
            skipped("no /dev/input/event0 here");
            return;
        };
        let place = Place::new(&format!("input-{bus:?}"));
        let socket = place.join("socket0");
        let arguments = [
            "--socket-path".into(),
            place.text("socket"),
            "--event-list".into(),
            event.display().to_string(),
        ];
        let _daemon = Daemon::start(&program, &arguments, &socket);
        let (device, memory) = device(socket, RemoteOptions::new(DeviceId(18)));
        let mut machine = machine(bus, device, &memory);
        machine.start(VERSION_1);
        machine.write_config(0, &[ID_NAME, 0]);
        let config = machine.read_config(0, 136);
        let len = usize::from(config[2]);
        assert!(len != 0 && len <= 128, "{config:?}");
        assert!(config[8..8 + len].iter().all(|byte| *byte != 0));
    }
}
