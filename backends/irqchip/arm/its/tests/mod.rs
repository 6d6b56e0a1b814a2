//! An ITS between a guest's memory and redistributors that note what is asked of them.

mod any_sequence;
mod commands;
mod hostile;
mod messages;
mod registers;
mod tables;

#[path = "../../../../../tests/support/its.rs"]
mod command;

use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, Mutex},
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use self::command::Command;
use super::{super::gic::lpis::Lpis, *};
use crate::{
    backends::irqchip::CpuId,
    bus::{BusDevice, read_le},
};

const CPUS: u32 = 4;
const LPI_BITS: u32 = 14;

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 0x0100_0000;
const QUEUE: u64 = RAM;
const DEVICE_TABLE: u64 = RAM + 0x10_0000;
const COLLECTION_TABLE: u64 = RAM + 0x20_0000;
const LEVEL_2: u64 = RAM + 0x30_0000;
const ITTS: u64 = RAM + 0x40_0000;

const CTLR: u64 = 0x0000;
const TYPER: u64 = 0x0008;
const CBASER: u64 = 0x0080;
const CWRITER: u64 = 0x0088;
const CREADR: u64 = 0x0090;
const BASER: u64 = 0x0100;
const INDIRECT: u64 = 1 << 62;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    SetPending(u32, u32, bool),
    Invalidate(u32, u32),
    InvalidateAll(u32),
    Move(u32, u32, u32),
    MoveAll(u32, u32),
}

/// Redistributors whose LPIs are enabled, with processor numbers from 0 on.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<Call>>,
    pending: Mutex<BTreeSet<(u32, u32)>>,
}

impl Fake {
    fn note(&self, call: Call) {
        lock(&self.calls).push(call);
    }

    fn take(&self) -> Vec<Call> {
        mem::take(&mut lock(&self.calls))
    }
}

impl Lpis for Fake {
    fn redistributor(&self, processor_number: u32) -> Option<CpuId> {
        (processor_number < CPUS).then_some(CpuId(processor_number))
    }

    fn set_pending(&self, cpu: CpuId, lpi: u32, pending: bool) {
        self.note(Call::SetPending(cpu.0, lpi, pending));
        let mut all = lock(&self.pending);
        match pending {
            true => all.insert((cpu.0, lpi)),
            false => all.remove(&(cpu.0, lpi)),
        };
    }

    fn invalidate(&self, cpu: CpuId, lpi: u32) {
        self.note(Call::Invalidate(cpu.0, lpi));
    }

    fn invalidate_all(&self, cpu: CpuId) {
        self.note(Call::InvalidateAll(cpu.0));
    }

    fn move_pending(&self, from: CpuId, to: CpuId, lpi: u32) {
        self.note(Call::Move(from.0, to.0, lpi));
        let mut all = lock(&self.pending);
        if all.remove(&(from.0, lpi)) {
            all.insert((to.0, lpi));
        }
    }

    fn move_all_pending(&self, from: CpuId, to: CpuId) {
        self.note(Call::MoveAll(from.0, to.0));
        let mut all = lock(&self.pending);
        let moved = all
            .iter()
            .map(|&(cpu, lpi)| if cpu == from.0 { (to.0, lpi) } else { (cpu, lpi) });
        *all = moved.collect();
    }
}

struct World {
    its: Its,
    frame: ControlFrame,
    memory: Arc<GuestMemoryMmap>,
    lpis: Arc<Fake>,
}

impl World {
    /// An ITS as it is after a reset.
    fn fresh(config: ItsConfig) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE as usize)]).unwrap();
        Self::over(config, Arc::new(memory), Arc::default())
    }

    fn over(config: ItsConfig, memory: Arc<GuestMemoryMmap>, lpis: Arc<Fake>) -> Self {
        let its = Its::before(config, Arc::clone(&lpis) as _, LPI_BITS, Arc::new(Arc::clone(&memory))).unwrap();
        let frame = its.control_frame();
        Self {
            its,
            frame,
            memory,
            lpis,
        }
    }

    /// Enabled, with a queue of 128 commands and flat tables of 64 KB.
    fn new() -> Self {
        Self::with(CONFIG, DEVICE_TABLE | 2 << 8, COLLECTION_TABLE | 2 << 8)
    }

    /// With what the guest writes to GITS_BASER0 and GITS_BASER1.
    fn with(config: ItsConfig, devices: u64, collections: u64) -> Self {
        let world = Self::fresh(config);
        world.write(CBASER, command::VALID | QUEUE);
        world.write(BASER, command::VALID | devices);
        world.write(BASER + 8, command::VALID | collections);
        world.write(CTLR, 1);
        world
    }

    /// The same with collection n at CPU n, and device n with 2^5 events at [`itt`] for n below 4.
    fn mapped() -> Self {
        let world = Self::new();
        world.run(&(0..CPUS).map(|cpu| command::mapc(cpu as u16, cpu)).collect::<Vec<_>>());
        world.run(
            &(0..4)
                .map(|device| command::mapd(device, itt(device), 5))
                .collect::<Vec<_>>(),
        );
        assert_eq!(world.its.refused_commands(), 0);
        world
    }

    fn read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        let len = if offset < 8 { 4 } else { 8 };
        self.frame.read(offset, &mut data[..len]);
        read_le(&data)
    }

    fn write(&self, offset: u64, value: u64) {
        let len = if offset < 8 { 4 } else { 8 };
        self.frame.write(offset, &value.to_le_bytes()[..len]);
    }

    /// Puts a command where GITS_CWRITER is, and moves that on: not the register.
    fn queue(&self, at: u64, command: Command) -> u64 {
        for (word, index) in command.iter().zip(0..) {
            self.poke(QUEUE + at + index * 8, *word);
        }
        (at + 32) % self.queue_size()
    }

    fn queue_size(&self) -> u64 {
        ((self.read(CBASER) & 0xff) + 1) * 0x1000
    }

    /// Runs commands, and answers how many were refused.
    fn run(&self, commands: &[Command]) -> u64 {
        let before = self.its.refused_commands();
        for command in commands {
            let at = self.queue(self.read(CWRITER), *command);
            self.write(CWRITER, at);
            assert_eq!(self.read(CREADR), at, "{command:x?} is complete");
        }
        self.its.refused_commands() - before
    }

    /// What the commands, none of which is refused, asked of the redistributors.
    fn calls(&self, commands: &[Command]) -> Vec<Call> {
        self.lpis.take();
        assert_eq!(self.run(commands), 0, "{commands:x?}");
        self.lpis.take()
    }

    /// A command that is refused asks nothing of anybody, changes no memory, and the queue goes on.
    fn refused(&self, command: Command) {
        self.lpis.take();
        let tables = self.tables();
        assert_eq!(self.run(&[command]), 1, "{command:x?} is refused");
        assert_eq!(self.lpis.take(), [], "{command:x?} did something");
        assert!(tables == self.tables(), "{command:x?} changed a table");
    }

    /// A command that needs memory where there is none stalls the queue.
    fn stalls(&self, command: Command) {
        self.lpis.take();
        let at = self.read(CWRITER);
        self.write(CWRITER, self.queue(at, command));
        assert_eq!(self.read(CREADR), at | 1, "{command:x?} stalls");
        assert_eq!(self.lpis.take(), [], "{command:x?} did something");
    }

    /// A message, and what it asked of the redistributors.
    fn message(&self, device: u16, event: u32) -> Vec<Call> {
        self.lpis.take();
        let message = self.its.message(EventId(event));
        crate::interrupt::MsiSink::send(&self.its, crate::interrupt::RequesterId(device), message).unwrap();
        self.lpis.take()
    }

    fn peek(&self, address: u64) -> u64 {
        u64::from_le(self.memory.read_obj(GuestAddress(address)).unwrap())
    }

    fn poke(&self, address: u64, value: u64) {
        self.memory.write_obj(value.to_le(), GuestAddress(address)).unwrap();
    }

    /// All of memory but the queue.
    fn tables(&self) -> Vec<u8> {
        let mut bytes = vec![0; (RAM_SIZE - 0x10_0000) as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(DEVICE_TABLE)).unwrap();
        bytes
    }
}

const CONFIG: ItsConfig = ItsConfig {
    base: 0x0808_0000,
    device_bits: 16,
    event_bits: 8,
    collection_bits: 8,
};

/// The interrupt translation table of a device.
fn itt(device: u32) -> u64 {
    ITTS + u64::from(device) * 0x1000
}
