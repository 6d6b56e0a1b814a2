//! The platform under `virtio-drivers`: DMA memory out of guest memory, and a transport over virtio-mmio registers.
//!
//! The drivers are those of guests without an operating system, and were written by others. Here they run in the process
//! of the devices: [`GuestDma`] hands them memory that the device can reach, and [`MmioTransport`] calls the register face
//! where a guest would load and store.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    marker::PhantomData,
    ops::Range,
    ptr::{self, NonNull},
    sync::{Arc, atomic::Ordering},
};

use devisor::bus::{BusDevice, read_le, write_le};
use virtio_drivers::{
    BufferDirection, Hal, PAGE_SIZE, PhysAddr, Result,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::guest_cpu::Sleeper;

// Memory.

thread_local! {
    /// [`Hal`] has no `self`, so the memory is the thread's; tests that run side by side do not share it.
    static DMA: RefCell<Option<DmaMemory>> = const { RefCell::new(None) };
}

/// Guest memory that the drivers of one thread allocate from.
struct DmaMemory {
    memory: GuestMemoryMmap,
    range: Range<u64>,
    /// Length of each free piece by its address. No two touch.
    free: BTreeMap<u64, u64>,
    /// Pages to which drivers have pointers.
    pages: usize,
}

/// What all allocations are multiples of.
const GRAIN: u64 = 64;

/// Lets the drivers of this thread use `range` of `memory`, which they share with nobody. Page aligned and not at zero.
///
/// # Panics
/// If drivers of this thread still hold some of the memory that it was given before. Buffers that a driver shared with a
/// device and never got back do not count: nobody is left to know them.
pub fn give_dma_memory(memory: &GuestMemoryMmap, range: Range<u64>) {
    let page = PAGE_SIZE as u64;
    assert!(range.start != 0 && range.start.is_multiple_of(page) && range.end.is_multiple_of(page));
    let pages = DMA.with_borrow(|dma| dma.as_ref().map_or(0, |dma| dma.pages));
    assert_eq!(pages, 0, "drivers hold pages that they were given before");
    let free = BTreeMap::from([(range.start, range.end - range.start)]);
    let memory = memory.clone();
    let pages = 0;
    DMA.set(Some(DmaMemory {
        memory,
        range,
        free,
        pages,
    }));
}

/// How many bytes the drivers of this thread hold, or left shared with a device.
pub fn dma_in_use() -> u64 {
    DMA.with_borrow(|dma| dma.as_ref().map_or(0, DmaMemory::in_use))
}

fn with_dma<R>(f: impl FnOnce(&mut DmaMemory) -> R) -> R {
    DMA.with_borrow_mut(|dma| f(dma.as_mut().expect("give_dma_memory was called on this thread")))
}

impl DmaMemory {
    fn in_use(&self) -> u64 {
        self.range.end - self.range.start - self.free.values().sum::<u64>()
    }

    /// The first piece that has room; `None` if none has.
    fn allocate(&mut self, len: u64, align: u64) -> Option<u64> {
        let len = len.next_multiple_of(GRAIN);
        let fits = |(&start, &room): (&u64, &u64)| {
            let at = start.next_multiple_of(align);
            (at + len <= start + room).then_some((start, room, at))
        };
        let (start, room, at) = self.free.iter().find_map(fits)?;
        self.free.remove(&start);
        for (start, end) in [(start, at), (at + len, start + room)] {
            if start != end {
                self.free.insert(start, end - start);
            }
        }
        Some(at)
    }

    fn release(&mut self, at: u64, len: u64) {
        let mut len = len.next_multiple_of(GRAIN);
        let mut start = at;
        if let Some(after) = self.free.remove(&(at + len)) {
            len += after;
        }
        if let Some((&before, &room)) = self.free.range(..at).next_back()
            && before + room == at
        {
            (start, len) = (before, len + room);
        }
        self.free.insert(start, len);
    }

    fn pointer(&self, at: u64, len: u64) -> NonNull<u8> {
        let slice = self.memory.get_slice(GuestAddress(at), len as usize);
        let pointer = slice.expect("DMA memory is guest memory").ptr_guard_mut().as_ptr();
        NonNull::new(pointer).expect("mapped memory is not at zero")
    }
}

/// The [`Hal`] of the guest: allocates from what [`give_dma_memory`] gave to this thread, and bounces all buffers.
pub struct GuestDma;

/// What a buffer for the device to write to is full of before, so that bytes that it does not write are noticed.
const UNWRITTEN: u8 = 0xa5;

// SAFETY: allocations lie in mapped guest memory, apart from each other, and are zeroed and aligned. The mapping lives
// until the thread ends, or gives itself other memory when no allocation is left; drivers cannot leave the thread, for
// `MmioTransport` is not `Send`.
unsafe impl Hal for GuestDma {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        with_dma(|dma| {
            let len = (pages * PAGE_SIZE) as u64;
            let Some(at) = dma.allocate(len, PAGE_SIZE as u64) else {
                // An address of zero is how the drivers are told that there is none.
                return (0, NonNull::dangling());
            };
            dma.pages += pages;
            let pointer = dma.pointer(at, len);
            // SAFETY: `len` bytes from there on are mapped, and nobody else's.
            unsafe { ptr::write_bytes(pointer.as_ptr(), 0, len as usize) };
            (at, pointer)
        })
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        with_dma(|dma| {
            dma.release(paddr, (pages * PAGE_SIZE) as u64);
            dma.pages -= pages;
        });
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("a transport that calls the register face has no mapped registers")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        with_dma(|dma| {
            let at = dma.allocate(buffer.len() as u64, GRAIN).expect("DMA memory is left");
            let bounce = dma.pointer(at, buffer.len() as u64);
            match direction {
                // SAFETY: both are valid for this length and apart; the caller says that nobody changes the buffer.
                BufferDirection::DriverToDevice | BufferDirection::Both => unsafe {
                    ptr::copy_nonoverlapping(buffer.cast().as_ptr(), bounce.as_ptr(), buffer.len());
                },
                // SAFETY: `bounce` is valid for this length, and nobody else's.
                BufferDirection::DeviceToDriver => unsafe {
                    ptr::write_bytes(bounce.as_ptr(), UNWRITTEN, buffer.len());
                },
            }
            at
        })
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        with_dma(|dma| {
            let bounce = dma.pointer(paddr, buffer.len() as u64);
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: as in `share`. The device has used the buffer and touches it no more.
                unsafe { ptr::copy_nonoverlapping(bounce.as_ptr(), buffer.cast().as_ptr(), buffer.len()) };
            }
            dma.release(paddr, buffer.len() as u64);
        });
    }
}

// Registers (virtio 1.2, section 4.2.2). Not the device's own constants: a wrong one would go unseen.

const MAGIC_VALUE: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
pub const INTERRUPT_STATUS: u64 = 0x060;
pub const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

fn read_register(device: &dyn BusDevice, register: u64) -> u32 {
    let mut data = [0; 4];
    device.read(register, &mut data);
    read_le(&data) as u32
}

fn write_register(device: &dyn BusDevice, register: u64, value: u32) {
    let mut data = [0; 4];
    write_le(&mut data, value.into());
    device.write(register, &data);
}

/// What the guest's interrupt handler does for a virtio-mmio device: reads InterruptStatus and acknowledges what it read.
pub fn acknowledge(device: &dyn BusDevice) -> InterruptStatus {
    let status = read_register(device, INTERRUPT_STATUS);
    if status != 0 {
        write_register(device, INTERRUPT_ACK, status);
    }
    InterruptStatus::from_bits_truncate(status)
}

/// A transport whose kicks can sleep.
pub trait Sleeping: Transport {
    /// The means to sleep in the calls of a driver that would spin.
    fn sleeper(&self) -> Sleeper;
}

/// The two rings of a queue.
#[derive(Clone, Copy)]
pub struct Rings {
    /// Guest physical addresses of the driver area and the device area.
    available: PhysAddr,
    used: PhysAddr,
    size: u16,
}

impl Rings {
    /// Those of a queue of this size, with its driver area and its device area.
    pub fn new(size: u32, available: PhysAddr, used: PhysAddr) -> Self {
        let size = size.try_into().expect("a split ring's size has 16 bits");
        Self { available, used, size }
    }

    fn load(address: PhysAddr) -> u16 {
        let word = with_dma(|dma| dma.memory.load(GuestAddress(address), Ordering::Acquire));
        word.expect("rings are in guest memory")
    }

    /// `idx` of the available ring (virtio 1.2, section 2.7.6).
    pub fn made_available(self) -> u16 {
        Self::load(self.available + 2)
    }

    /// `avail_event`: which entry of the available ring the device wants to be kicked for (section 2.7.8). All of the drivers
    /// accept VIRTIO_F_EVENT_IDX.
    pub fn kick_wanted_for(self) -> u16 {
        Self::load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// Whether the device has used all that was made available: `idx` of both rings.
    pub fn are_even(self) -> bool {
        self.made_available() == Self::load(self.used + 2)
    }
}

/// What a driver finds at the address of a device.
pub struct MmioTransport {
    device: Arc<dyn BusDevice>,
    device_type: DeviceType,
    sleeper: Sleeper,
    /// See [`GuestDma`].
    stays_on_its_thread: PhantomData<*const ()>,
}

impl MmioTransport {
    /// The transport to `device`.
    ///
    /// # Errors
    /// What is there is no virtio device of version 2, or of a type that the drivers do not know.
    pub fn new(device: Arc<dyn BusDevice>) -> std::result::Result<Self, String> {
        let magic = read_register(&*device, MAGIC_VALUE);
        if magic != u32::from_le_bytes(*b"virt") {
            return Err(format!("MagicValue is {magic:#x}"));
        }
        let version = read_register(&*device, VERSION);
        if version != 2 {
            return Err(format!("Version is {version}"));
        }
        let device_type =
            DeviceType::try_from(read_register(&*device, DEVICE_ID)).map_err(|error| error.to_string())?;
        Ok(Self {
            device,
            device_type,
            sleeper: Sleeper::default(),
            stays_on_its_thread: PhantomData,
        })
    }

    fn read(&self, register: u64) -> u32 {
        read_register(&*self.device, register)
    }

    fn write(&self, register: u64, value: u32) {
        write_register(&*self.device, register, value);
    }

    fn write_address(&self, register: u64, address: PhysAddr) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }
}

impl Sleeping for MmioTransport {
    fn sleeper(&self) -> Sleeper {
        self.sleeper.clone()
    }
}

impl Transport for MmioTransport {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn read_device_features(&mut self) -> u64 {
        let word = |sel| {
            self.write(DEVICE_FEATURES_SEL, sel);
            u64::from(self.read(DEVICE_FEATURES))
        };
        word(0) | word(1) << 32
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        for (sel, word) in [(0, driver_features as u32), (1, (driver_features >> 32) as u32)] {
            self.write(DRIVER_FEATURES_SEL, sel);
            self.write(DRIVER_FEATURES, word);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(QUEUE_SEL, queue.into());
        self.read(QUEUE_SIZE_MAX)
    }

    fn notify(&mut self, queue: u16) {
        self.write(QUEUE_NOTIFY, queue.into());
        self.sleeper.kicked(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read(STATUS))
    }

    /// # Panics
    /// If the device does not take the status. The drivers do not look, not even at FEATURES_OK.
    fn set_status(&mut self, status: DeviceStatus) {
        self.write(STATUS, status.bits());
        assert_eq!(self.get_status(), status, "Status does not read as it was written");
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
        self.write(QUEUE_SEL, queue.into());
        self.write(QUEUE_SIZE, size);
        self.write_address(QUEUE_DESC, descriptors);
        self.write_address(QUEUE_DRIVER, driver_area);
        self.write_address(QUEUE_DEVICE, device_area);
        self.write(QUEUE_READY, 1);
        self.sleeper
            .queue_set(queue, Rings::new(size, driver_area, device_area));
    }

    fn queue_unset(&mut self, queue: u16) {
        self.write(QUEUE_SEL, queue.into());
        self.write(QUEUE_READY, 0);
        assert_eq!(self.read(QUEUE_READY), 0, "QueueReady reads as written");
        self.sleeper.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(QUEUE_SEL, queue.into());
        self.read(QUEUE_READY) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        acknowledge(&*self.device)
    }

    fn read_config_generation(&self) -> u32 {
        self.read(CONFIG_GENERATION)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        // Fields are read with their own width, and a MAC address byte by byte (section 4.2.2.2).
        let width = align_of::<T>();
        for (at, data) in (CONFIG + offset as u64..)
            .step_by(width)
            .zip(value.as_mut_bytes().chunks_mut(width))
        {
            self.device.read(at, data);
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        let width = align_of::<T>();
        for (at, data) in (CONFIG + offset as u64..)
            .step_by(width)
            .zip(value.as_bytes().chunks(width))
        {
            self.device.write(at, data);
        }
        Ok(())
    }
}

/// A driver that is gone leaves a device that is reset, before its memory goes to the next.
impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.write(STATUS, 0);
    }
}
