//! A zoned disk, served at once, later, or behind a limiter: whatever a guest asks of its zones, they stay within their limits and do not
//! contradict themselves, what lies behind a write pointer reads as zeros, and each request comes back.
#![no_main]

use std::{sync::Arc, time::Duration};

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    rate::Rate,
    time::{Clock, ManualClock},
    virtio::{
        VirtioMmio, VirtioTransport,
        block::{Allowance, Block, BlockOptions, Limited, MemoryStorage, Synchronous, ZoneLimits, ZonedStorage},
        transport::mmio::Line,
    },
};
use devisor_fuzz::virtio::{LAYOUT, memory, offer};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Five zones of 8 sectors and one of 3.
const LIMITS: ZoneLimits = ZoneLimits {
    zone_size: 8 * 512,
    max_open: 2,
    max_active: 3,
    max_append: 4 * 512,
    write_granularity: 512,
};
const LEN: usize = 43 * 512;
const BUFFERS: u64 = 0x4000;
const STATUS: u64 = BUFFERS + 0x40;
const DATA: u64 = BUFFERS + 0x100;

#[derive(Arbitrary, Debug)]
enum Step {
    /// A request of a header, data and what is written to it: the kinds that there are, and some others.
    Ask {
        kind: u8,
        sector: u16,
        data: u16,
        room: u16,
    },
    /// The sector is one at which a write may be right.
    Write {
        zone: u8,
        sectors: u8,
    },
    /// The zones as they are, a part of them changed.
    Restore {
        zone: u8,
        written: u16,
        state: u8,
    },
    Reset,
}

#[derive(Arbitrary, Debug)]
struct Input {
    how: u8,
    steps: Vec<Step>,
}

struct Machine {
    memory: Arc<GuestMemoryMmap>,
    storage: Arc<MemoryStorage>,
    zoned: Arc<ZonedStorage<Arc<MemoryStorage>>>,
    clock: Arc<ManualClock>,
    device: VirtioMmio<Block>,
    avail: u16,
}

impl Machine {
    fn new(how: u8) -> Self {
        let (memory, storage) = (memory(), Arc::new(MemoryStorage::new(LEN)));
        let zoned = Arc::new(ZonedStorage::new(Arc::clone(&storage), LIMITS).expect("zones"));
        let clock = Arc::new(ManualClock::new(Duration::ZERO));
        let options = BlockOptions {
            queue_size: 8,
            ..BlockOptions::default()
        };
        let block = match how % 3 {
            0 => Block::new(Arc::clone(&zoned), options),
            1 => Block::with_async(Synchronous::from(Arc::clone(&zoned)), options),
            _ => {
                let allowance = Allowance {
                    operations: Some(Rate {
                        per_second: 1,
                        burst: 1,
                    }),
                    ..Allowance::default()
                };
                let clock = Arc::clone(&clock) as Arc<dyn Clock>;
                let limited = Limited::new(Synchronous::from(Arc::clone(&zoned)), allowance, clock);
                Block::with_async(limited.expect("a rate"), options)
            }
        };
        let line = Line::Edge(Arc::new(NoInterrupt));
        let device = VirtioMmio::new(block.expect("valid options"), Arc::clone(&memory), line).expect("a device");
        let mut machine = Self {
            device: device.with_doorbell(|_| Ok(())),
            memory,
            storage,
            zoned,
            clock,
            avail: 0,
        };
        machine.up();
        machine
    }

    fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    fn up(&mut self) {
        devisor_fuzz::virtio::empty_ring(&self.memory);
        self.avail = 0;
        // VIRTIO_BLK_F_ZONED and FLUSH, and the version.
        devisor_fuzz::virtio::up(&self.device, |sel, _| [1 << 17 | 1 << 9, 1][sel as usize]);
    }

    fn put(&self, address: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// Asks, and has it answered.
    fn ask(&mut self, kind: u32, sector: u64, data: u32, room: u32) {
        self.put(BUFFERS, kind.into());
        self.put(BUFFERS + 8, sector);
        let mut at = LAYOUT.descriptor_area;
        let mut index = 0;
        // Room for what is appended or reported, then the status.
        let chain = [
            (BUFFERS, 16, 1),
            (DATA, data, 1),
            (DATA + 0x1800, room, 3),
            (STATUS, 1, 2),
        ];
        for (address, len, flags) in chain.into_iter().filter(|(_, len, _)| *len != 0) {
            index += 1;
            self.put(at, address);
            self.put(at + 8, u64::from(len) | flags << 32 | index << 48);
            at += 16;
        }
        offer(&self.memory, 0, &mut self.avail);
        self.write(0x50, 0);
        for _ in 0..8 {
            self.device.run();
            self.clock.advance(Duration::from_secs(10));
        }
        let used: u16 = self.memory.read_obj(GuestAddress(LAYOUT.device_area + 2)).unwrap();
        assert_eq!(used, self.avail, "it has not come back");
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask {
                kind,
                sector,
                data,
                room,
            } => {
                let kinds = [0, 1, 4, 8, 11, 13, 14, 15, 16, 18, 20, 22, 24, 26];
                let kind = kinds.get(usize::from(kind % 16)).copied().unwrap_or(kind.into());
                // Most at the beginning of a zone.
                let sector = if sector % 4 == 0 {
                    sector / 4 % 64
                } else {
                    sector % 7 * 8
                };
                self.ask(kind, sector.into(), u32::from(data % 0x1400), u32::from(room % 0x1400));
            }
            Step::Write { zone, sectors } => {
                let zones = self.zoned.save();
                let zone = &zones[usize::from(zone) % zones.len()];
                self.ask(1, zone.write_pointer / 512, u32::from(sectors % 10) * 512, 0);
            }
            Step::Restore { zone, written, state } => {
                let mut zones = self.zoned.save();
                let before = zones.clone();
                let index = usize::from(zone) % zones.len();
                let states = before.iter().map(|zone| zone.state);
                zones[index].state = states.cycle().nth(state.into()).expect("there are some");
                zones[index].write_pointer = zones[index].start + u64::from(written % 9) * 512;
                // Data behind it would be as if it were written.
                if zones[index].write_pointer >= before[index].write_pointer && self.zoned.restore(zones).is_err() {
                    assert_eq!(self.zoned.save(), before);
                }
            }
            Step::Reset => self.up(),
        }
    }

    fn check(&self) {
        // What others would refuse is not what there is.
        let zones = self.zoned.save();
        let other = ZonedStorage::new(MemoryStorage::new(LEN), LIMITS).expect("zones");
        other.restore(zones.clone()).expect("zones within their limits");
        let data = self.storage.contents();
        for zone in zones {
            let behind = zone.write_pointer as usize..(zone.start + zone.capacity) as usize;
            assert!(data[behind].iter().all(|&byte| byte == 0), "written behind {zone:?}");
        }
    }
}

fuzz_target!(|input: Input| {
    let mut machine = Machine::new(input.how);
    // Not zeros.
    machine.memory.write_slice(&[0x5a; 0x1400], GuestAddress(DATA)).unwrap();
    for step in &input.steps {
        machine.step(step);
        machine.check();
    }
});
