//! Port B of a PC: GATE and OUT of counter 2.

use crate::machine::*;
use devisor::bus::BusDevice;
use std::time::Duration;

#[test]
fn port_b_gates_counter_2_and_the_speaker() {
    let machine = new();
    let port = machine.pit.port_b();
    let read = || {
        let mut data = [0];
        port.read(0, &mut data);
        data[0] & !0x10
    };
    machine.start(2, 3, 4);
    port.write(0, &[0xff]);
    machine.at(1);
    assert_eq!((read(), machine.pit.speaker()), (0x2f, true));
    machine.at(3);
    assert_eq!((read(), machine.pit.speaker()), (0x0f, false));
    port.write(0, &[1]);
    machine.at(5);
    assert_eq!((read(), machine.pit.speaker()), (0x21, false));
}

#[test]
fn the_refresh_bit_toggles_about_every_15_microseconds() {
    let machine = new();
    let mut toggles = 0;
    let mut last = 0;
    for _ in 0..1000 {
        machine.clock.advance(Duration::from_micros(1));
        let mut data = [0];
        machine.pit.port_b().read(0, &mut data);
        toggles += u32::from(data[0] & 0x10 != last);
        last = data[0] & 0x10;
    }
    assert!((64..=68).contains(&toggles), "{toggles}");
}
