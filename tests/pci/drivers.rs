//! A driver that we did not write finds the functions, sizes their BARs and walks their capabilities.

use std::sync::Arc;

use devisor::{
    bus::BusDevice,
    pci::{DeviceFunction as Address, Ecam, HostBridge, RootBus},
};
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, HeaderType, MemoryBarType, PciRoot, Status,
};

use crate::world::*;

struct Access(Arc<Ecam>);

fn offset(function: DeviceFunction, register: u8) -> u64 {
    let DeviceFunction { bus, device, function } = function;
    u64::from(bus) << 20 | u64::from(device) << 15 | u64::from(function) << 12 | u64::from(register)
}

impl ConfigurationAccess for Access {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        let mut data = [0; 4];
        self.0.read(offset(function, register), &mut data);
        u32::from_le_bytes(data)
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        self.0.write(offset(function, register), &data.to_le_bytes());
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

fn machine() -> (RootBus, PciRoot<Access>) {
    let (bus, _, _) = root_bus();
    let bridge = HostBridge::new(bus.slot(Address::new(0, 0).unwrap()).unwrap());
    bus.insert(Arc::new(bridge)).unwrap();
    for (device, function) in [(2, 0), (2, 1)] {
        let slot = bus.slot(at(device, function)).unwrap();
        bus.insert(Device::new(config(5), slot)).unwrap();
    }
    let root = PciRoot::new(Access(Arc::new(bus.ecam())));
    (bus, root)
}

const DISK: DeviceFunction = DeviceFunction {
    bus: 0,
    device: 2,
    function: 1,
};

#[test]
fn virtio_drivers_enumerates_the_bus() {
    let (_bus, root) = machine();
    let found: Vec<_> = root
        .enumerate_bus(0)
        .map(|(at, info)| (at.device, at.function, info.vendor_id, info.device_id, info.class))
        .collect();
    assert_eq!(
        found,
        [
            (0, 0, 0x1b36, 0x0008, 0x06),
            (2, 0, 0x1af4, 0x1042, 0x01),
            (2, 1, 0x1af4, 0x1042, 0x01)
        ]
    );
    assert!(
        root.enumerate_bus(0)
            .all(|(_, info)| info.header_type == HeaderType::Standard)
    );
    assert_eq!(root.enumerate_bus(1).count(), 0);
}

#[test]
fn virtio_drivers_sizes_and_places_every_bar() {
    let (bus, mut root) = machine();
    let bars = root.bars(DISK).unwrap();
    let memory = |address_type, size| BarInfo::Memory {
        address_type,
        prefetchable: false,
        address: 0,
        size,
    };
    let expected = [
        Some(memory(MemoryBarType::Width64, 0x4000)),
        None,
        Some(BarInfo::IO { address: 0, size: 0x20 }),
        Some(memory(MemoryBarType::Width32, 0x2000)),
        Some(memory(MemoryBarType::Width32, 0x1000)),
        None,
    ];
    assert_eq!(bars, expected);

    root.set_bar_64(DISK, 0, 0x80_0000_0000);
    root.set_bar_32(DISK, 4, 0x4000_0000);
    root.set_command(DISK, Command::MEMORY_SPACE);
    let byte = |address: u64| {
        let mut data = [0];
        bus.memory_window(0).read(address, &mut data);
        data[0]
    };
    assert_eq!([byte(0x80_0000_3fff), byte(0x4000_0000)], [0x10, 0x14]);
    // Sizing again, while it decodes, leaves all as it was.
    root.bars(DISK).unwrap();
    assert_eq!([byte(0x80_0000_3fff), byte(0x4000_0000)], [0x10, 0x14]);
}

#[test]
fn virtio_drivers_walks_the_capabilities() {
    let (_bus, root) = machine();
    let (status, _) = root.get_status_command(DISK);
    assert!(status.contains(Status::CAPABILITIES_LIST));
    let found: Vec<_> = root
        .capabilities(DISK)
        .map(|capability| (u64::from(capability.offset), capability.id))
        .collect();
    assert_eq!(found, [(MSIX, 0x11), (MSI, 0x05), (VENDOR_SPECIFIC, 0x09)]);
}
