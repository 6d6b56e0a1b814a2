//! BARs: sizing, and where they decode, at the endpoint and through a bus.

use std::sync::Arc;

use devisor::{bus::BusDevice, pci::*};

use crate::world::*;

#[test]
fn a_bar_is_sized_by_writing_ones_and_keeps_its_kind() {
    let world = World::new(3);
    for (register, sized) in [
        (0x10, 0xffff_c004),
        (0x14, 0xffff_ffff),
        (0x18, 0xffff_ffe1),
        (0x1c, 0xffff_e000),
        (0x20, 0xffff_f000),
        (0x24, 0),
        (0x30, 0),
    ] {
        world.write32(register, u32::MAX);
        assert_eq!(world.read(register, 4), sized, "at {register:#x}");
    }
}

#[test]
fn nothing_decodes_until_the_command_register_lets_it() {
    let world = World::new(3);
    world.write32(0x10, 0x8000_0000);
    world.write32(0x14, 0x2);
    world.write32(0x18, 0xc000);
    let decoded = || [BarIndex::Bar0, BarIndex::Bar1, BarIndex::Bar2].map(|bar| world.endpoint.decoded(bar));
    assert_eq!(decoded(), [None, None, None]);
    assert!(world.write(COMMAND, MEMORY_SPACE));
    assert_eq!(decoded(), [Some(0x2_8000_0000), None, None]);
    assert!(world.write(COMMAND, IO_SPACE));
    assert_eq!(decoded(), [None, None, Some(0xc000)]);
    assert!(!world.write(COMMAND, IO_SPACE | BUS_MASTER), "nothing moved");
    assert!(world.write(COMMAND, 0));
    assert_eq!(decoded(), [None, None, None]);
}

struct Placed {
    bus: RootBus,
    device: Arc<Device>,
    memory: Window,
    ports: Window,
}

impl Placed {
    fn new() -> Self {
        let (bus, _, _) = root_bus();
        let device = Device::new(config(3), bus.slot(at(3, 0)).unwrap());
        bus.insert(device.clone()).unwrap();
        let (memory, ports) = (bus.memory_window(0x1000_0000), bus.port_window(0));
        Self {
            bus,
            device,
            memory,
            ports,
        }
    }

    fn config(&self, offset: u64, value: u32) {
        self.bus.write_config(at(3, 0), offset, &value.to_le_bytes());
    }

    fn byte(&self, address: u64) -> u8 {
        let mut data = [0];
        self.memory.read(address - 0x1000_0000, &mut data);
        data[0]
    }
}

#[test]
fn a_bar_that_moves_while_it_is_enabled_answers_at_its_new_place_alone() {
    let placed = Placed::new();
    placed.config(0x10, 0x2000_0000);
    placed.config(0x20, 0x3000_0000);
    placed.config(COMMAND, MEMORY_SPACE.into());
    assert_eq!([placed.byte(0x2000_0000), placed.byte(0x2000_3fff)], [0, 0]);
    assert_eq!([placed.byte(0x1fff_ffff), placed.byte(0x2000_4000)], [0xff, 0xff]);
    placed.config(0x10, 0x4000_0000);
    assert_eq!([placed.byte(0x2000_0000), placed.byte(0x4000_0000)], [0xff, 0]);
    // The upper half too.
    placed.config(0x14, 1);
    assert_eq!([placed.byte(0x4000_0000), placed.byte(0x1_4000_0000)], [0xff, 0]);
    assert_eq!(placed.byte(0x3000_0000), 4, "its neighbour did not move");
    placed.config(COMMAND, 0);
    assert_eq!([placed.byte(0x1_4000_0000), placed.byte(0x3000_0000)], [0xff, 0xff]);
}

#[test]
fn an_access_reaches_the_device_with_its_bar_and_offset() {
    let placed = Placed::new();
    placed.config(0x10, 0x2000_0000);
    placed.config(0x18, 0xc001);
    placed.config(COMMAND, (MEMORY_SPACE | IO_SPACE).into());
    placed.memory.write(0x1000_1234, &[1, 2, 3]);
    let written = placed.device.written.lock().unwrap().take();
    assert_eq!(written, Some((BarIndex::Bar0, 0x1234, vec![1, 2, 3])));
    placed.ports.write(0xc01f, &[7]);
    let written = placed.device.written.lock().unwrap().take();
    assert_eq!(written, Some((BarIndex::Bar2, 0x1f, vec![7])));
}

#[test]
fn an_access_that_runs_out_of_its_bar_reaches_nobody() {
    let placed = Placed::new();
    placed.config(0x10, 0x2000_0000);
    placed.config(COMMAND, MEMORY_SPACE.into());
    let mut data = [0; 8];
    placed.memory.read(0x1000_3ffc, &mut data);
    assert_eq!(data, [0xff; 8]);
    placed.memory.write(0x1000_3ffc, &data);
    assert_eq!(*placed.device.written.lock().unwrap(), None);
    placed.memory.read(u64::MAX, &mut data);
    assert_eq!(data, [0xff; 8]);
}

#[test]
fn the_msix_bar_is_answered_by_the_endpoint_through_the_bus() {
    let placed = Placed::new();
    placed.config(0x1c, 0x5000_0000);
    placed.config(COMMAND, MEMORY_SPACE.into());
    placed.memory.write(0x4000_0008, &0x1234u32.to_le_bytes());
    let mut data = [0; 8];
    placed.memory.read(0x4000_0008, &mut data);
    assert_eq!(
        data,
        [0x34, 0x12, 0, 0, 1, 0, 0, 0],
        "data, and the mask as reset leaves it"
    );
    assert_eq!(*placed.device.written.lock().unwrap(), None);
}

#[test]
fn of_two_bars_in_one_place_the_first_function_has_it_and_the_other_returns_when_they_part() {
    let (bus, _, _) = root_bus();
    for function in [0, 1] {
        let device = Device::new(config(3), bus.slot(at(4, function)).unwrap());
        bus.insert(device).unwrap();
    }
    let set = |function, offset, value: u32| bus.write_config(at(4, function), offset, &value.to_le_bytes());
    let memory = bus.memory_window(0);
    let byte = |address| {
        let mut data = [0];
        memory.read(address, &mut data);
        data[0]
    };
    for function in [1, 0] {
        set(function, 0x10, 0x2000_0000);
        set(function, 0x1c, 0x3000_0000 + function as u32 * 0x10_0000);
        set(function, 0x20, 0x4000_0000 + function as u32 * 0x10_0000);
        set(function, COMMAND, MEMORY_SPACE.into());
    }
    assert_eq!(byte(0x2000_0000), 0x00);
    set(0, 0x10, 0x6000_0000);
    assert_eq!([byte(0x2000_0000), byte(0x6000_0000)], [0x10, 0x00]);
    set(1, COMMAND, 0);
    assert_eq!([byte(0x2000_0000), byte(0x4010_0000)], [0xff, 0xff]);
}

#[test]
fn a_reset_and_a_restore_move_what_decodes() {
    let placed = Placed::new();
    placed.config(0x10, 0x2000_0000);
    placed.config(COMMAND, MEMORY_SPACE.into());
    let state = placed.device.endpoint.save();
    placed.device.endpoint.reset();
    assert_eq!(placed.byte(0x2000_0000), 0xff);
    let nowhere = placed.device.endpoint.save();
    placed.device.endpoint.restore(&state).unwrap();
    assert_eq!(placed.byte(0x2000_0000), 0);
    placed.device.endpoint.restore(&nowhere).unwrap();
    assert_eq!(placed.byte(0x2000_0000), 0xff);
}

#[test]
fn a_function_that_is_removed_or_dropped_decodes_nothing() {
    let placed = Placed::new();
    placed.config(0x10, 0x2000_0000);
    placed.config(COMMAND, MEMORY_SPACE.into());
    let device = placed.bus.remove(at(3, 0)).unwrap();
    assert_eq!(placed.byte(0x2000_0000), 0xff);
    assert_eq!(placed.bus.slot(at(3, 0)).unwrap_err(), RootBusError::Taken(at(3, 0)));
    drop((device, placed.device));
    placed.bus.slot(at(3, 0)).unwrap();
}
