//! The root bus: who is found where, by both ways to configuration space, and which wire a device pulls.

use std::sync::{Arc, Mutex};

use devisor::{bus::BusDevice, pci::*};

use crate::world::*;

fn read32(face: &dyn BusDevice, offset: u64) -> u32 {
    let mut data = [0; 4];
    face.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn bus_with(addresses: &[(u8, u8)]) -> RootBus {
    let (bus, _, _) = root_bus();
    for &(device, function) in addresses {
        let slot = bus.slot(at(device, function)).unwrap();
        bus.insert(Device::new(config(1), slot)).unwrap();
    }
    bus
}

#[test]
fn the_ecam_shows_each_function_at_its_page_and_ones_elsewhere() {
    let bus = bus_with(&[(0, 0), (3, 2), (31, 7)]);
    let ecam = bus.ecam();
    for number in 0..512u64 {
        let there = [0, 3 << 3 | 2, 255].contains(&number);
        let expected = if there { 0x1042_1af4 } else { u32::MAX };
        assert_eq!(read32(&ecam, number << 12), expected, "function {number:#x}");
    }
    assert_eq!(read32(&ecam, 0x100), u32::MAX, "no PCI Express registers");
    assert_eq!(read32(&ecam, 1 << 28), u32::MAX);
    assert_eq!(read32(&ecam, u64::MAX - 3), u32::MAX);
}

#[test]
fn an_access_over_the_end_of_a_function_reaches_neither() {
    let bus = bus_with(&[(0, 0), (0, 1)]);
    let ecam = bus.ecam();
    let mut data = [0; 8];
    ecam.read(0xffc, &mut data);
    assert_eq!(data, [0xff; 8]);
    ecam.write(0x1000 - 4, &[0xff; 0x20]);
    assert_eq!(read32(&ecam, 0x100c), 0x80_0000, "only the multi-function bit");

    // Also where the last bytes of the first are there, and read as zeros.
    let bus = root_bus().0;
    let mut express = config(2);
    express.express().unwrap();
    bus.insert(Device::new(express, bus.slot(at(0, 0)).unwrap())).unwrap();
    let mut data = [0; 8];
    bus.ecam().read(0xffc, &mut data);
    assert_eq!(data, [0xff; 8]);
    assert_eq!(read32(&bus.ecam(), 0xffc), 0);
}

#[test]
fn the_configuration_ports_reach_the_same_registers() {
    let bus = bus_with(&[(0, 0), (3, 2)]);
    let ports = bus.config_ports();
    let select = |address: u32| ports.write(0, &address.to_le_bytes());
    assert_eq!(read32(&ports, 4), u32::MAX, "not enabled");
    select(0x8000_0000 | 3 << 11 | 2 << 8);
    assert_eq!(read32(&ports, 4), 0x1042_1af4);
    let mut half = [0; 2];
    ports.read(6, &mut half);
    assert_eq!(half, [0x42, 0x10]);
    select(0x8000_0000 | 3 << 11 | 2 << 8 | 0x3c);
    ports.write(4, &[9]);
    let mut line = [0];
    bus.read_config(at(3, 2), 0x3c, &mut line);
    assert_eq!(line, [9]);
    // One that runs out of the ports, and would run into the next register.
    select(0x8000_0000 | 3 << 11 | 2 << 8);
    assert_eq!(read32(&ports, 6), u32::MAX);
    select(0x8000_0000 | 3 << 11 | 2 << 8 | 0x38);
    ports.write(6, &[7; 4]);
    bus.read_config(at(3, 2), 0x3c, &mut line);
    assert_eq!(line, [9]);
    for absent in [0x8001_0000, 0x8000_0000 | 4 << 11, 3 << 11 | 2 << 8] {
        select(absent);
        assert_eq!(read32(&ports, 4), u32::MAX, "{absent:#x}");
    }
}

#[test]
fn config_address_keeps_the_bits_that_exist_and_takes_whole_words_alone() {
    let ports = bus_with(&[(0, 0)]).config_ports();
    ports.write(0, &[0xff; 4]);
    assert_eq!(read32(&ports, 0), 0x80ff_fffc);
    for len in [1, 2, 3, 8] {
        ports.write(0, &vec![0; len]);
        let mut data = vec![0; len];
        ports.read(0, &mut data);
        assert!(data.iter().all(|&byte| byte == 0xff));
    }
    for offset in [1, 5, 8, u64::MAX - 3, u64::MAX] {
        ports.write(offset, &[0; 4]);
        assert_eq!(read32(&ports, offset), u32::MAX, "{offset:#x}");
    }
    assert_eq!(ports.address(), 0x80ff_fffc);
    ports.write(u64::MAX, &[0; 9]);
    ports.set_address(0x7f00_0003);
    assert_eq!(ports.address(), 0);
}

#[test]
fn the_multi_function_bit_says_whether_there_are_others() {
    let bus = bus_with(&[(1, 0), (2, 0), (2, 5)]);
    let header = |device, function| {
        let mut data = [0; 4];
        bus.read_config(at(device, function), 0x0c, &mut data);
        data[2]
    };
    assert_eq!([header(1, 0), header(2, 0), header(2, 5)], [0, 0x80, 0x80]);
    drop(bus.remove(at(2, 5)));
    assert_eq!(header(2, 0), 0);
    let _slot = bus.slot(at(1, 1)).unwrap();
    assert_eq!(header(1, 0), 0, "a slot without a function is nobody");
}

#[test]
fn a_device_pulls_the_wire_that_the_swizzle_gives_it() {
    for device in 0..32 {
        let (bus, _, levels) = root_bus();
        let function = Device::new(config(1), bus.slot(at(device, 0)).unwrap());
        bus.insert(function.clone()).unwrap();
        function.endpoint.intx().update(|_| 1);
        function.endpoint.intx().settle().unwrap();
        let expected: [bool; 4] = std::array::from_fn(|wire| wire == usize::from(device) % 4);
        assert_eq!(*levels.lock().unwrap(), expected, "device {device}");
    }
}

#[test]
fn two_functions_on_one_wire_hold_it_until_both_let_go() {
    let (bus, _, levels) = root_bus();
    // INTA of device 2, and of device 6.
    let functions = [2, 6].map(|device| Device::new(config(1), bus.slot(at(device, 0)).unwrap()));
    let set = |function: &Arc<Device>, causes| {
        function.endpoint.intx().update(|_| causes);
        function.endpoint.intx().settle().unwrap();
    };
    functions.iter().for_each(|function| set(function, 1));
    set(&functions[0], 0);
    assert!(levels.lock().unwrap()[2]);
    drop(functions);
    assert!(!levels.lock().unwrap()[2], "dropping one lets go");
}

#[test]
fn every_function_of_a_full_bus_has_its_wire() {
    let (bus, _, levels) = root_bus();
    let functions: Vec<_> = (0..=255)
        .map(|number| Device::new(config(1), bus.slot(at(number >> 3, number & 7)).unwrap()))
        .collect();
    for function in &functions {
        function.endpoint.intx().update(|_| 1);
        function.endpoint.intx().settle().unwrap();
        let wire = function.endpoint.address().wire(Pin::A);
        assert!(
            std::mem::take(&mut *levels.lock().unwrap())[wire],
            "{:?}",
            function.endpoint.address()
        );
        function.endpoint.intx().update(|_| 0);
        function.endpoint.intx().settle().unwrap();
    }
}

#[test]
fn messages_carry_the_requester_of_their_slot() {
    let (bus, platform, _) = root_bus();
    let function = Device::new(config(1), bus.slot(at(5, 3)).unwrap());
    function.endpoint.write_config(COMMAND, &BUS_MASTER.to_le_bytes());
    function.endpoint.write_config(MSIX_CONTROL, &ENABLE.to_le_bytes());
    function.endpoint.write_bar(MSIX_BAR, 0x0c, &[0; 4]);
    assert_eq!(platform.take()[0], Event::Allocated(at(5, 3).requester()));
}

#[test]
fn a_slot_is_given_once_and_a_foreign_function_is_refused() {
    let (bus, _, _) = root_bus();
    let slot = bus.slot(at(1, 0)).unwrap();
    assert_eq!(bus.slot(at(1, 0)).unwrap_err(), RootBusError::Taken(at(1, 0)));
    let function = Device::new(config(1), slot);
    bus.insert(function.clone()).unwrap();
    assert_eq!(bus.insert(function).unwrap_err(), RootBusError::Taken(at(1, 0)));
    let stranger = Device::new(config(1), silent_slot(at(2, 0)));
    assert_eq!(bus.insert(stranger).unwrap_err(), RootBusError::Foreign(at(2, 0)));
    let (other, _, _) = root_bus();
    let stranger = Device::new(config(1), other.slot(at(2, 0)).unwrap());
    assert_eq!(bus.insert(stranger).unwrap_err(), RootBusError::Foreign(at(2, 0)));
}

#[test]
fn a_bus_that_is_dropped_lets_its_functions_go() {
    let (bus, _, _) = root_bus();
    let function = Device::new(config(1), bus.slot(at(1, 0)).unwrap());
    bus.insert(function.clone()).unwrap();
    drop(bus);
    assert_eq!(Arc::strong_count(&function), 1);
}

#[test]
fn what_else_is_at_the_ports_of_config_address_gets_what_is_not_the_registers() {
    #[derive(Default)]
    struct Other(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Other {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(0xa0 | offset as u8);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    let other = Arc::new(Other::default());
    let ports = bus_with(&[(0, 0)]).config_ports().beside(other.clone());
    ports.write(1, &[6]);
    ports.write(2, &[1, 2]);
    ports.write(0, &0x8000_0000_u32.to_le_bytes());
    // Over the end of those ports, or beyond.
    ports.write(3, &[1, 2]);
    ports.write(4, &[0]);
    ports.write(u64::MAX, &[0]);
    assert_eq!(*other.0.lock().unwrap(), [(1, vec![6]), (2, vec![1, 2])]);
    let mut byte = [0];
    ports.read(1, &mut byte);
    assert_eq!(byte, [0xa1]);
    let mut over = [0; 2];
    ports.read(3, &mut over);
    assert_eq!((ports.address(), over), (0x8000_0000, [0xff; 2]));
    assert_ne!(read32(&ports, 4), u32::MAX, "the function's identity");
}
