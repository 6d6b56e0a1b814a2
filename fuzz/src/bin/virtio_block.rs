//! A disk over a storage whose requests end late, in any order, short, with errors, canceled, behind a limiter or not: whatever a guest
//! writes to its ring and its requests, each request that was made available comes back once, a device at rest changes no memory, and
//! one that was saved goes on elsewhere. The limiter lets no more pass than it may.
#![no_main]

use std::{io, sync::Arc, time::Duration};

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::NoInterrupt,
    rate::Rate,
    time::{Clock, ManualClock},
    virtio::{
        QueueIndex, VirtioMmio, VirtioTransport,
        block::{Allowance, Block, BlockOptions, Limited, RangeLimits},
        transport::mmio::Line,
    },
};
use devisor_fuzz::virtio::{LAYOUT, contents, empty_ring, memory, offer};
use late::Late;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[path = "../../../tests/block/late.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod late;

mod support {
    pub fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|index| (index % 251) as u8 + 1).collect()
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A request, if its descriptors are the driver's.
    Ask {
        slot: bool,
        kind: u8,
        sector: u8,
        len: u16,
        read: bool,
    },
    /// Whatever is in memory is something else.
    Memory {
        address: u16,
        value: u64,
    },
    Kick,
    Run,
    End(u8),
    EndShort {
        which: u8,
        len: u16,
    },
    EndBadly {
        which: u8,
        moved: Option<u64>,
    },
    EndCanceled(u8),
    /// The storage says that something has ended which has not.
    Nobodys {
        tag: u8,
        beside: u8,
    },
    Obey(bool),
    Pause,
    Resume,
    Reset,
    StopQueue,
    Move,
    WriteThrough(bool),
    /// Time passes, in milliseconds.
    Time(u16),
    /// Another allowance, which is a full one.
    Allow,
}

#[derive(Arbitrary, Debug)]
struct Input {
    limited: bool,
    steps: Vec<Step>,
}

/// Of operations; there is one of bytes as well.
const RATE: Rate = Rate {
    per_second: 4,
    burst: 3,
};
const BYTES: Rate = Rate {
    per_second: 2048,
    burst: 1024,
};
const ALLOWANCE: Allowance = Allowance {
    operations: Some(RATE),
    bytes: Some(BYTES),
};

struct Machine {
    memory: Arc<GuestMemoryMmap>,
    late: Late,
    clock: Arc<ManualClock>,
    /// If it is limited, and how many full allowances there have been.
    limited: Option<(Arc<Limited<Late>>, u64)>,
    /// Operations that have passed.
    passed: u64,
    device: VirtioMmio<Block>,
    /// Where the driver is in both rings.
    avail: u16,
    used: u16,
    /// Chains that the device has, by their slot.
    out: [bool; 2],
    /// The ring is no longer what a driver makes of it.
    hostile: bool,
    paused: bool,
}

/// Limited, if there is a clock.
fn device(
    late: &Late,
    clock: Option<&Arc<ManualClock>>,
    memory: &Arc<GuestMemoryMmap>,
) -> (VirtioMmio<Block>, Option<Arc<Limited<Late>>>) {
    let options = BlockOptions {
        queue_size: 8,
        discard: Some(RangeLimits {
            max_sectors: 8,
            max_segments: 4,
        }),
        ..BlockOptions::default()
    };
    let limited = clock.map(|clock| {
        let clock = Arc::clone(clock) as Arc<dyn Clock>;
        Arc::new(Limited::new(late.clone(), ALLOWANCE, clock).unwrap())
    });
    let block = match &limited {
        Some(limited) => Block::with_async(Arc::clone(limited), options),
        None => Block::with_async(late.clone(), options),
    };
    let device = VirtioMmio::new(block.unwrap(), Arc::clone(memory), Line::Edge(Arc::new(NoInterrupt))).unwrap();
    (device.with_doorbell(|_| Ok(())), limited)
}

impl Machine {
    fn new(is_limited: bool) -> Self {
        let (memory, late) = (memory(), Late::new(16));
        let clock = Arc::new(ManualClock::new(Duration::ZERO));
        let (device, limited) = device(&late, is_limited.then_some(&clock), &memory);
        let machine = Self {
            device,
            memory,
            late,
            clock,
            limited: limited.map(|limited| (limited, 1)),
            passed: 0,
            avail: 0,
            used: 0,
            out: [false; 2],
            hostile: false,
            paused: false,
        };
        machine.up();
        machine
    }

    /// No more operations have passed than all full allowances, and the time, allow.
    fn count(&mut self) {
        self.passed += self.late.asked().len() as u64;
        if let Some((_, full)) = &self.limited {
            let in_time = self.clock.now().as_millis() as u64 * RATE.per_second / 1000;
            assert!(
                self.passed <= full * RATE.burst + in_time,
                "{} have passed",
                self.passed
            );
        }
    }

    /// All that is held may pass.
    fn wait(&mut self) {
        self.clock.advance(Duration::from_secs(3600));
        // As who runs the device does when a time has come that a queue waits for.
        self.device.process(QueueIndex(0));
        self.count();
    }

    fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn up(&self) {
        // Without EVENT_IDX.
        devisor_fuzz::virtio::up(&self.device, |sel, offered| offered & [!(1 << 29), 1][sel as usize]);
    }

    fn put(&self, address: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn ask(&mut self, slot: usize, kind: u8, sector: u8, len: u16, read: bool) {
        if self.out[slot] || self.hostile {
            return;
        }
        let base = 0x4000 + 0x2000 * slot as u64;
        self.put(base, u64::from(kind % 16));
        self.put(base + 8, u64::from(sector % 20));
        // Of a discard: its sector, and a count.
        self.put(base + 0x100, u64::from(sector % 20));
        self.put(base + 0x108, u64::from(len % 10));
        let len = u64::from(len % 0x1000);
        let head = 3 * slot as u64;
        let direction = if read { 2 } else { 0 };
        for (index, (address, len, flags)) in
            (head..).zip([(base, 16, 1), (base + 0x100, len, 1 | direction), (base + 16, 1, 2)])
        {
            self.put(LAYOUT.descriptor_area + 16 * index, address);
            self.put(
                LAYOUT.descriptor_area + 16 * index + 8,
                len | flags << 32 | (index + 1) << 48,
            );
        }
        offer(&self.memory, head as u16, &mut self.avail);
        self.out[slot] = true;
    }

    /// What has come back: each of it was out.
    fn see(&mut self) {
        if self.hostile {
            return;
        }
        let idx: u16 = self.memory.read_obj(GuestAddress(LAYOUT.device_area + 2)).unwrap();
        while self.used != idx {
            let entry = LAYOUT.device_area + 4 + 8 * u64::from(self.used % LAYOUT.size);
            let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
            let slot = head as usize / 3;
            assert!(
                head.is_multiple_of(3) && self.out[slot],
                "it came back twice, or was never out"
            );
            self.out[slot] = false;
            self.used = self.used.wrapping_add(1);
        }
    }

    fn which(&self, which: u8) -> Option<usize> {
        let count = self.late.under_way().len();
        (count != 0).then(|| usize::from(which) % count)
    }

    /// Brings it to rest.
    fn rest(&mut self) {
        self.device.pause();
        self.paused = true;
        while !self.device.is_still() {
            match self.which(0) {
                Some(which) => self.late.end(which),
                None => assert!(!self.device.is_still() || self.late.under_way().is_empty()),
            }
            self.device.run();
        }
    }

    fn reset(&mut self) {
        self.late.obey(true);
        // What was canceled before it obeyed has to end by itself, before a write that waits for it.
        while let Some(which) = self.which(0) {
            self.late.end(which);
        }
        self.device.run();
        self.write(0x70, 0);
        if self.paused {
            self.device.resume();
            self.paused = false;
        }
        assert_eq!(self.read(0x70), 0);
        empty_ring(&self.memory);
        (self.avail, self.used, self.out, self.hostile) = (0, 0, [false; 2], false);
        self.up();
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask {
                slot,
                kind,
                sector,
                len,
                read,
            } => self.ask(slot.into(), kind, sector, len, read),
            Step::Memory { address, value } => {
                self.put(u64::from(address % 0x7ff8), value);
                self.hostile |= address % 0x7ff8 < 0x4000;
            }
            Step::Kick => self.write(0x50, 0),
            Step::Run => self.device.run(),
            Step::End(which) => self.which(which).into_iter().for_each(|which| self.late.end(which)),
            Step::EndShort { which, len } => {
                let which = self.which(which);
                which
                    .into_iter()
                    .for_each(|which| self.late.end_short(which, len.into()));
            }
            Step::EndBadly { which, moved } => {
                let result = moved.ok_or_else(|| io::Error::other("rigged"));
                if let Some(which) = self.which(which) {
                    self.late.end_as(which, result);
                }
            }
            Step::EndCanceled(which) => {
                self.which(which)
                    .into_iter()
                    .for_each(|which| self.late.end_canceled(which));
            }
            Step::Nobodys { tag, beside } => {
                // A tag that is under way is a lie that cannot be told apart: its own then comes for nobody.
                if let Some(beside) = self.which(beside) {
                    self.late.end_nobodys(u64::from(tag) + 8, beside);
                }
            }
            Step::Obey(obey) => self.late.obey(obey),
            Step::Pause => {
                self.device.pause();
                self.paused = true;
            }
            Step::Resume => {
                self.device.resume();
                self.paused = false;
            }
            Step::Reset => self.reset(),
            Step::StopQueue => {
                self.late.obey(true);
                self.reset();
            }
            Step::Move => {
                self.rest();
                let state = self.device.save().expect("it is still");
                let before = contents(&self.memory);
                self.count();
                self.late = Late::new(16);
                let (next, limited) = device(&self.late, self.limited.is_some().then_some(&self.clock), &self.memory);
                // It is a full one.
                self.limited = limited.zip(self.limited.as_ref().map(|(_, full)| full + 1));
                next.restore(&state).expect("its own state");
                self.device = next;
                assert!(contents(&self.memory) == before, "a device at rest has changed memory");
                assert_eq!(self.device.save().expect("it is still"), state);
                self.device.resume();
                self.paused = false;
            }
            Step::Time(milliseconds) => self.clock.advance(Duration::from_millis(milliseconds.into())),
            Step::Allow => {
                self.count();
                if let Some((limited, full)) = &mut self.limited {
                    limited.allow(ALLOWANCE).expect("a rate");
                    *full += 1;
                }
            }
            Step::WriteThrough(through) => self.device.write(0x120, &[u8::from(!through)]),
        }
    }
}

fuzz_target!(|input: Input| {
    let mut machine = Machine::new(input.limited);
    for step in &input.steps {
        machine.step(step);
        machine.see();
        machine.count();
    }
    // In the end everything comes back, unless the ring is broken.
    machine.device.resume();
    machine.device.run();
    // Pieces of a request that wait to pass come one by one.
    for _ in 0..64 {
        while let Some(which) = machine.which(0) {
            machine.late.end(which);
            machine.device.run();
        }
        machine.device.run();
        machine.see();
        if machine.limited.is_none() || machine.out == [false; 2] {
            break;
        }
        machine.wait();
    }
    assert!(
        machine.hostile || machine.read(0x70) & 0x40 != 0 || machine.out == [false; 2],
        "{:?}",
        machine.out
    );
});
