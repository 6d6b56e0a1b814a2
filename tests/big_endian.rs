//! A driver that writes and reads every field byte by byte, so that it is the same whatever order the host's processor has: rings of
//! both formats, tables, event indices, requests, registers and configuration. `tests/cross.sh` runs it on a big-endian processor too.
#![cfg(test)]

use std::sync::Arc;

use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    virtio::{
        VirtioMmio,
        block::{Block, BlockOptions, MemoryStorage},
        features::{EVENT_IDX, INDIRECT_DESC, RING_PACKED, VERSION_1},
        transport::{TransportOptions, mmio::Line},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u64 = 16;
const DESCRIPTORS: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const HEADER: u64 = 0x5000;
const DATA: u64 = 0x6000;
const STATUS: u64 = 0x7000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Of what is available in a packed ring, and of what was used, in its first lap.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

struct Guest {
    memory: Arc<GuestMemoryMmap>,
    device: VirtioMmio<Block>,
    packed: bool,
    events: bool,
    /// Requests so far.
    made: u16,
}

impl Guest {
    fn new(features: u64) -> Self {
        let ranges = [(GuestAddress(0), 1 << 16)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
        let storage = MemoryStorage::new(64 * 512);
        let block = Block::new(storage, BlockOptions::default()).expect("a disk");
        let options = TransportOptions {
            packed: true,
            ..TransportOptions::default()
        };
        let line = Line::Edge(Arc::new(NoInterrupt));
        let device = VirtioMmio::with_options(block, Arc::clone(&memory), line, &options).expect("a device");
        let (packed, events) = (features & RING_PACKED != 0, features & EVENT_IDX != 0);
        let made = 0;
        let guest = Self {
            memory,
            device,
            packed,
            events,
            made,
        };
        for status in [1, 3] {
            guest.set(0x70, status);
        }
        for word in 0..2 {
            guest.set(0x24, word);
            guest.set(0x20, ((features | VERSION_1) >> (32 * word)) as u32);
        }
        guest.set(0x70, 0xb);
        guest.set(0x30, 0);
        guest.set(0x38, SIZE as u32);
        for (register, area) in [(0x80, DESCRIPTORS), (0x90, DRIVER), (0xa0, DEVICE)] {
            guest.set(register, area as u32);
            guest.set(register + 4, 0);
        }
        guest.set(0x44, 1);
        guest.set(0x70, 0xf);
        assert_eq!(guest.get(0x70), 0xf);
        guest
    }

    fn set(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    fn get(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("in memory");
    }

    fn bytes<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("in memory");
        bytes
    }

    fn u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.bytes(address))
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address))
    }

    /// The last two fields are flags and next, or in a packed ring ID and flags.
    fn descriptor(&self, at: u64, address: u64, len: u32, third: u16, fourth: u16) {
        let fields = [third.to_le_bytes(), fourth.to_le_bytes()].concat();
        self.put(at, &[&address.to_le_bytes()[..], &len.to_le_bytes(), &fields].concat());
    }

    /// Runs a request in a table if `tables`, or as a chain: how many bytes were written.
    fn run(&mut self, kind: u32, sector: u64, tables: bool) -> u32 {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.put(HEADER, &header);
        self.put(STATUS, &[0xee]);
        let direction = if kind == 0 { WRITE } else { 0 };
        let parts = [(HEADER, 16, 0), (DATA, 512, direction), (STATUS, 1, WRITE)];
        // A lap is not gone through: each request is put where the ring begins.
        match (self.packed, tables) {
            (false, true) => {
                self.link(TABLE, &parts);
                self.descriptor(DESCRIPTORS, TABLE, 48, INDIRECT, 0);
            }
            (false, false) => self.link(DESCRIPTORS, &parts),
            (true, true) => {
                for (index, &(address, len, flags)) in (0..).zip(&parts) {
                    self.descriptor(TABLE + 16 * index, address, len, 0, flags);
                }
                let at = DESCRIPTORS + 16 * u64::from(self.made);
                self.descriptor(at, TABLE, 48, 7, INDIRECT | AVAIL);
            }
            (true, false) => {
                for (index, &(address, len, flags)) in (0..3_u16).zip(&parts).rev() {
                    let next = if index < 2 { NEXT } else { 0 };
                    let at = DESCRIPTORS + 16 * u64::from(self.made + index);
                    self.descriptor(at, address, len, 7, flags | next | AVAIL);
                }
            }
        }
        match self.packed {
            false => self.run_split(),
            true => self.run_packed(if tables { 1 } else { 3 }),
        }
    }

    fn link(&self, table: u64, parts: &[(u64, u32, u16)]) {
        for (index, &(address, len, flags)) in (0_u16..).zip(parts) {
            let next = if index < 2 { NEXT } else { 0 };
            self.descriptor(table + 16 * u64::from(index), address, len, flags | next, index + 1);
        }
    }

    fn run_split(&mut self) -> u32 {
        let slot = u64::from(self.made) % SIZE;
        self.put(DRIVER + 4 + 2 * slot, &0_u16.to_le_bytes());
        self.made += 1;
        self.put(DRIVER + 2, &self.made.to_le_bytes());
        // Told of the next one.
        self.put(DRIVER + 4 + 2 * SIZE, &(self.made - 1).to_le_bytes());
        self.set(0x50, 0);
        assert_eq!(self.u16(DEVICE + 2), self.made);
        if self.events {
            assert_eq!(
                self.u16(DEVICE + 4 + 8 * SIZE),
                self.made,
                "the next kick that is wanted"
            );
        }
        assert_eq!(self.u32(DEVICE + 4 + 8 * slot), 0, "the head");
        self.u32(DEVICE + 8 + 8 * slot)
    }

    fn run_packed(&mut self, descriptors: u16) -> u32 {
        let at = DESCRIPTORS + 16 * u64::from(self.made);
        if self.events {
            // Told when what is here is used.
            self.put(DRIVER, &(self.made | 1 << 15).to_le_bytes());
            self.put(DRIVER + 2, &2_u16.to_le_bytes());
        }
        self.set(0x50, 0);
        assert_eq!(self.u16(at + 12), 7, "the buffer ID");
        assert_eq!(self.u16(at + 14) & (AVAIL | USED), AVAIL | USED);
        self.made += descriptors;
        // Nobody looks at it but for kicks: they are wanted, flags 0 say.
        assert_eq!(self.u16(DEVICE + 2), 0);
        self.u32(at + 8)
    }

    /// Whether the driver was told of what was used.
    fn was_told(&self) -> bool {
        let status = self.get(0x60);
        self.set(0x64, status);
        status & 1 != 0
    }
}

#[test]
fn what_is_written_is_read_whatever_order_the_host_has() {
    for format in [0, RING_PACKED] {
        for more in [0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC] {
            let mut guest = Guest::new(format | more);
            let mut capacity = [0; 8];
            guest.device.read(0x100, &mut capacity);
            assert_eq!(u64::from_le_bytes(capacity), 64);
            let tables = more & INDIRECT_DESC != 0;
            let pattern: Vec<u8> = (0..512_u32).map(|at| (at * 7 + at / 256) as u8).collect();
            guest.put(DATA, &pattern);
            assert_eq!(guest.run(1, 0x21, tables), 1);
            assert_eq!((guest.bytes(STATUS), guest.was_told()), ([0], true));
            guest.put(DATA, &[0; 512]);
            assert_eq!(guest.run(0, 0x21, tables), 513);
            assert_eq!((guest.bytes(STATUS), guest.was_told()), ([0], true));
            assert_eq!(guest.bytes::<512>(DATA), pattern[..]);
            // Beyond the end, by the low byte of its sector alone if it were read the wrong way around.
            guest.run(0, 0x40, tables);
            assert_eq!(guest.bytes(STATUS), [1]);
        }
    }
}
