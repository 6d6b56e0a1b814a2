//! `virtio-drivers` over PCI: its `PciRoot` finds the function, sizes its BARs and walks its capabilities, by our configuration
//! space; a transport of ours speaks to the BARs, for the one of the drivers dereferences pointers.

use std::{collections::BTreeMap, marker::PhantomData, ops::Range, sync::Arc};

use devisor::{
    bus::{Bus, read_le, write_le},
    interrupt::MsiMessage,
    pci::{Ecam, RootBus},
};
use virtio_drivers::{
    PhysAddr, Result,
    transport::{
        DeviceStatus, DeviceType, InterruptStatus, Transport,
        pci::{
            bus::{BarInfo, Command, ConfigurationAccess, DeviceFunction, PciRoot},
            virtio_device_type,
        },
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    guest_cpu::Sleeper,
    guest_drivers::{Rings, Sleeping},
};

/// Where the guest finds configuration space, and where it may place BARs.
pub const ECAM: u64 = 0x3000_0000;
pub const APERTURE: Range<u64> = 0x4000_0000..0x5000_0000;

/// The guest's physical addresses: those of a PCI host bridge alone.
pub fn guest_bus(root: &RootBus) -> Arc<Bus> {
    let mut bus = Bus::new();
    let window = root.memory_window(APERTURE.start);
    bus.insert(ECAM, Ecam::SIZE, Arc::new(root.ecam())).expect("apart");
    bus.insert(APERTURE.start, APERTURE.end - APERTURE.start, Arc::new(window))
        .expect("apart");
    Arc::new(bus)
}

fn load(bus: &Bus, address: u64, len: usize) -> u64 {
    let mut data = [0; 8];
    // What nobody claims reads as ones.
    let _ = bus.read(address, &mut data[..len]);
    read_le(&data[..len])
}

fn store(bus: &Bus, address: u64, len: usize, value: u64) {
    let mut data = [0; 8];
    write_le(&mut data[..len], value);
    bus.write(address, &data[..len]).expect("somebody is at this address");
}

/// Configuration space by ECAM.
struct Access(Arc<Bus>);

fn register(function: DeviceFunction, register: u8) -> u64 {
    let DeviceFunction { bus, device, function } = function;
    ECAM + (u64::from(bus) << 20 | u64::from(device) << 15 | u64::from(function) << 12 | u64::from(register))
}

impl ConfigurationAccess for Access {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        load(&self.0, register(function, offset), 4) as u32
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        store(&self.0, register(function, offset), 4, data.into());
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// How the driver wants to be interrupted.
#[derive(Clone, Debug)]
pub enum Messages {
    /// By MSI-X: configuration changes by the first message, each queue by one of the others in turn.
    MsiX(Vec<MsiMessage>),
    /// By INTx.
    Intx,
}

/// The ISR status of a function, for the handler of its INTx.
#[derive(Clone)]
pub struct IsrStatus {
    pub bus: Arc<Bus>,
    pub address: u64,
}

impl IsrStatus {
    /// Reads it, which clears it.
    pub fn read(&self) -> InterruptStatus {
        InterruptStatus::from_bits_truncate(load(&self.bus, self.address, 1) as u32)
    }
}

// Not the device's own constants: a wrong one would go unseen.
const VENDOR_SPECIFIC: u8 = 0x09;
const MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;

// The common configuration (virtio 1.2, section 4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// What a driver finds behind the BARs of a function.
pub struct PciTransport {
    bus: Arc<Bus>,
    device_type: DeviceType,
    /// Where the structures are.
    common: u64,
    isr: u64,
    config: u64,
    notify: u64,
    notify_off_multiplier: u64,
    /// Features that the driver is shown.
    offer: u64,
    /// Vectors for queues; vector 0 is for configuration changes.
    queue_vectors: u16,
    /// Where each queue is kicked.
    doorbells: BTreeMap<u16, u64>,
    sleeper: Sleeper,
    /// See [`GuestDma`](crate::guest_drivers::GuestDma).
    stays_on_its_thread: PhantomData<*const ()>,
}

impl PciTransport {
    /// The transport to the first virtio device on `bus`: places its BARs, and has it interrupt by `messages`.
    ///
    /// # Errors
    /// There is none, or something that the drivers need is missing.
    pub fn new(bus: &Arc<Bus>, messages: &Messages) -> std::result::Result<Self, String> {
        let mut root = PciRoot::new(Access(Arc::clone(bus)));
        let found = root
            .enumerate_bus(0)
            .find_map(|(at, info)| Some((at, virtio_device_type(&info)?)));
        let (function, device_type) = found.ok_or("no virtio device on bus 0")?;
        let bars = place_bars(&mut root, function)?;
        let interrupt_disable = match messages {
            Messages::MsiX(_) => Command::INTERRUPT_DISABLE,
            Messages::Intx => Command::empty(),
        };
        root.set_command(
            function,
            Command::MEMORY_SPACE | Command::BUS_MASTER | interrupt_disable,
        );

        let [mut common, mut isr, mut config, mut notify] = [None; 4];
        let mut multiplier = 0;
        let mut msix = None;
        let access = Access(Arc::clone(bus));
        for capability in root.capabilities(function) {
            let word = |at: u8| access.read_word(function, capability.offset + at);
            match capability.id {
                MSIX => msix = Some(capability.offset),
                VENDOR_SPECIFIC => {
                    let structure = || Some(bars.get(word(4) as u8 as usize)? + u64::from(word(8)));
                    match (capability.private_header >> 8) as u8 {
                        1 => common = common.or_else(structure),
                        2 => {
                            notify = notify.or_else(structure);
                            multiplier = word(16).into();
                        }
                        3 => isr = isr.or_else(structure),
                        4 => config = config.or_else(structure),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        let queue_vectors = match messages {
            Messages::Intx => 0,
            Messages::MsiX(messages) => {
                program_msix(access, function, msix.ok_or("no MSI-X")?, &bars, messages)?;
                messages.len() as u16 - 1
            }
        };
        let needed = |address: Option<u64>, name| address.ok_or(format!("no {name} structure"));
        Ok(Self {
            bus: Arc::clone(bus),
            device_type,
            common: needed(common, "common configuration")?,
            isr: needed(isr, "ISR status")?,
            config: needed(config, "device configuration")?,
            notify: needed(notify, "notification")?,
            notify_off_multiplier: multiplier,
            offer: u64::MAX,
            queue_vectors,
            doorbells: BTreeMap::new(),
            sleeper: Sleeper::default(),
            stays_on_its_thread: PhantomData,
        })
    }

    /// Hides features from the driver.
    #[allow(dead_code, reason = "not every guest is choosy")]
    pub fn without(mut self, features: u64) -> Self {
        self.offer &= !features;
        self
    }

    /// The ISR status.
    pub fn isr_status(&self) -> IsrStatus {
        IsrStatus {
            bus: Arc::clone(&self.bus),
            address: self.isr,
        }
    }

    fn read(&self, register: u64, len: usize) -> u64 {
        load(&self.bus, self.common + register, len)
    }

    fn write(&self, register: u64, len: usize, value: u64) {
        store(&self.bus, self.common + register, len, value);
    }

    fn write_address(&self, register: u64, address: PhysAddr) {
        self.write(register, 4, address & 0xffff_ffff);
        self.write(register + 4, 4, address >> 32);
    }

    fn map_vector(&self, register: u64, vector: u16) {
        self.write(register, 2, vector.into());
        assert_eq!(self.read(register, 2), u64::from(vector), "the vector was not mapped");
    }
}

/// Places all BARs in the aperture, one after the other. Returns their addresses.
fn place_bars(root: &mut PciRoot<Access>, function: DeviceFunction) -> std::result::Result<[u64; 6], String> {
    let bars = root.bars(function).map_err(|error| error.to_string())?;
    let mut addresses = [0; 6];
    let mut free = APERTURE.start;
    for (index, bar) in (0u8..).zip(bars) {
        let Some(BarInfo::Memory { size, .. }) = bar else {
            continue;
        };
        let address = free.next_multiple_of(size);
        free = address + size;
        if free > APERTURE.end {
            return Err(format!("BAR {index} of {size:#x} bytes does not fit"));
        }
        match bar {
            Some(bar) if bar.takes_two_entries() => root.set_bar_64(function, index, address),
            _ => root.set_bar_32(function, index, address as u32),
        }
        addresses[usize::from(index)] = address;
    }
    Ok(addresses)
}

/// Writes the table, unmasks its vectors and enables MSI-X (PCI Local Bus 3.0, section 6.8.2).
fn program_msix(
    mut access: Access,
    function: DeviceFunction,
    at: u8,
    bars: &[u64; 6],
    messages: &[MsiMessage],
) -> std::result::Result<(), String> {
    let control = access.read_word(function, at);
    let vectors = (control >> 16 & 0x7ff) as usize + 1;
    if messages.len() > vectors {
        return Err(format!("{vectors} vectors for {} messages", messages.len()));
    }
    let table = access.read_word(function, at + 4);
    let table = bars[(table & 7) as usize] + u64::from(table & !7);
    for (entry, message) in (table..).step_by(16).zip(messages) {
        store(&access.0, entry, 4, message.address & 0xffff_ffff);
        store(&access.0, entry + 4, 4, message.address >> 32);
        store(&access.0, entry + 8, 4, message.data.into());
        store(&access.0, entry + 12, 4, 0);
    }
    access.write_word(function, at, control | MSIX_ENABLE);
    Ok(())
}

impl Sleeping for PciTransport {
    fn sleeper(&self) -> Sleeper {
        self.sleeper.clone()
    }
}

impl Transport for PciTransport {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn read_device_features(&mut self) -> u64 {
        let word = |select| {
            self.write(DEVICE_FEATURE_SELECT, 4, select);
            self.read(DEVICE_FEATURE, 4)
        };
        (word(0) | word(1) << 32) & self.offer
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        for (select, word) in [(0, driver_features & 0xffff_ffff), (1, driver_features >> 32)] {
            self.write(DRIVER_FEATURE_SELECT, 4, select);
            self.write(DRIVER_FEATURE, 4, word);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(QUEUE_SELECT, 2, queue.into());
        self.read(QUEUE_SIZE, 2) as u32
    }

    fn notify(&mut self, queue: u16) {
        store(&self.bus, self.doorbells[&queue], 2, queue.into());
        self.sleeper.kicked(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read(DEVICE_STATUS, 1) as u32)
    }

    /// # Panics
    /// If the device does not take the status. The drivers do not look, not even at FEATURES_OK.
    fn set_status(&mut self, status: DeviceStatus) {
        self.write(DEVICE_STATUS, 1, status.bits().into());
        assert_eq!(
            self.get_status(),
            status,
            "device_status does not read as it was written"
        );
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.write(QUEUE_SELECT, 2, queue.into());
        self.write(QUEUE_SIZE, 2, size.into());
        self.write_address(QUEUE_DESC, descriptors);
        self.write_address(QUEUE_DRIVER, driver_area);
        self.write_address(QUEUE_DEVICE, device_area);
        if self.queue_vectors != 0 {
            // A reset has unmapped both.
            self.map_vector(CONFIG_MSIX_VECTOR, 0);
            self.map_vector(QUEUE_MSIX_VECTOR, 1 + queue % self.queue_vectors);
        }
        self.write(QUEUE_ENABLE, 2, 1);
        let doorbell = self.notify + self.read(QUEUE_NOTIFY_OFF, 2) * self.notify_off_multiplier;
        self.doorbells.insert(queue, doorbell);
        self.sleeper
            .queue_set(queue, Rings::new(size, driver_area, device_area));
    }

    /// There is no way back but a reset.
    fn queue_unset(&mut self, queue: u16) {
        self.sleeper.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(QUEUE_SELECT, 2, queue.into());
        self.read(QUEUE_ENABLE, 2) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.isr_status().read()
    }

    fn read_config_generation(&self) -> u32 {
        self.read(CONFIG_GENERATION, 1) as u32
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        // Fields are read with their own width (section 4.1.3.1).
        let width = align_of::<T>();
        for (at, data) in (self.config + offset as u64..)
            .step_by(width)
            .zip(value.as_mut_bytes().chunks_mut(width))
        {
            let _ = self.bus.read(at, data);
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        let width = align_of::<T>();
        for (at, data) in (self.config + offset as u64..)
            .step_by(width)
            .zip(value.as_bytes().chunks(width))
        {
            self.bus.write(at, data).expect("the function is there");
        }
        Ok(())
    }
}

/// A driver that is gone leaves a device that is reset, before its memory goes to the next.
impl Drop for PciTransport {
    fn drop(&mut self) {
        self.write(DEVICE_STATUS, 1, 0);
    }
}
