//! vhost-device-input as an input device: its name is asked for by what the driver writes to the configuration space, and what is typed
//! comes to the driver.

use devisor::virtio::{DeviceId, features, remote::RemoteOptions};

use crate::{
    daemon::{Daemon, Place, device, machine, work_until},
    evdev::Evdev,
    machine::{BUSES, VERSION_1},
    skip::skipped,
};

/// `VIRTIO_INPUT_CFG_ID_NAME` (virtio 1.2, section 5.8.5).
const ID_NAME: u8 = 1;
const NAME: &str = "A keyboard of sorts";
const EVENTS: u16 = 0;

/// `struct virtio_input_event`.
fn event((kind, code, value): (u16, u16, u32)) -> Vec<u8> {
    let mut bytes = [kind, code].map(u16::to_le_bytes).concat();
    bytes.extend(value.to_le_bytes());
    bytes
}

#[test]
fn an_input_device_of_vhost_device_input_says_its_name_and_what_is_typed() {
    for bus in BUSES {
        let Some(program) = Daemon::find(&["vhost-device-input"]) else {
            return;
        };
        let place = Place::new(&format!("input-{bus:?}"));
        let keyboard = match Evdev::mount(&place.join("dev"), NAME) {
            Ok(keyboard) => keyboard,
            Err(error) => {
                skipped(format!("no file system of ours can be mounted: {error}"));
                return;
            }
        };
        let socket = place.join("socket0");
        let arguments = [
            "--socket-path".into(),
            place.text("socket"),
            "--event-list".into(),
            keyboard.path().display().to_string(),
        ];
        let daemon = Daemon::start(&program, &arguments, &socket);
        let (device, memory) = device(socket, RemoteOptions::new(DeviceId(18)));
        let mut machine = machine(bus, device, &memory);
        // It forgets events without.
        machine.start(VERSION_1 | features::EVENT_IDX);
        machine.write_config(0, &[ID_NAME, 0]);
        let config = machine.read_config(0, 136);
        let len = usize::from(config[2]);
        // All of its room, with what ends it.
        let name = std::ffi::CStr::from_bytes_until_nul(&config[8..8 + len]).unwrap();
        assert_eq!(name.to_bytes(), NAME.as_bytes(), "{config:?}");

        (0..4).for_each(|_| _ = machine.room(EVENTS, 8));
        work_until(&mut machine, |_| true);
        // A key goes down, and up; each of them is reported with what ends it.
        for value in [1, 0] {
            let typed = [(1, 30, value), (0, 0, 0)];
            keyboard.emit(&typed);
            let mut got = Vec::new();
            let came = work_until(&mut machine, |machine| {
                got.extend(machine.received(EVENTS));
                got.len() >= 2
            });
            let failures = machine.with_device(|device| device.host_failures());
            assert!(came, "{got:?}; failures: {failures:?}");
            assert_eq!(got, typed.map(event));
        }
        drop(machine);
        drop(daemon);
    }
}
