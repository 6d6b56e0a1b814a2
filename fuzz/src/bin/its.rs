//! ITS on a GICv3: commands, tables that the guest writes to behind its back, and messages. Nothing panics or goes on for
//! ever, the queue's position is one in the queue, and an ITS that is put in the place of another has its state.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::{
        CpuId,
        gicv3::{CpuOutputs, GicV3, GicV3Config, LpiSupport},
        its::{ControlFrame, DeviceId, EventId, Its, ItsConfig, ItsState},
    },
    bus::{BusDevice, read_le},
};
use devisor_fuzz::{Access, Outside};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CPUS: u32 = 2;
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 0x10_0000;
/// Queue, tables, second levels and interrupt translation tables are pages of the first 256 KB.
const PAGES: u64 = 64;
const PROPERTIES: u64 = RAM + 0x8_0000;
const PENDING: u64 = RAM + 0xc_0000;

const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;
const VALID: u64 = 1 << 63;

const CONFIG: ItsConfig = ItsConfig {
    base: 0x0808_0000,
    device_bits: 17,
    event_bits: 16,
    collection_bits: 12,
};

#[derive(Arbitrary, Debug)]
enum Step {
    Access(Access),
    /// Where queue and tables are, of which sizes, and whether they have two levels.
    Layout {
        pages: [u8; 3],
        sizes: [u8; 3],
        indirect: [bool; 2],
    },
    Command {
        opcode: u8,
        device: u8,
        event: u8,
        lpi: u8,
        collection: u8,
        page: u8,
        bits: u8,
        valid: bool,
    },
    AnyCommand([u64; 4]),
    /// A word of memory, mostly a valid entry of some table.
    Poke {
        at: u16,
        value: u64,
        page: u8,
        kind: u8,
    },
    Message {
        device: u8,
        event: u8,
    },
    AnyMessage(u32, u32),
    Enable(bool),
    Retry,
    Reset,
    Move,
    Restore {
        state: State,
        /// Over what is there, and not into another.
        over: bool,
    },
}

/// How a state from outside differs from one that there is: little enough for most to be taken.
#[derive(Arbitrary, Debug)]
struct State {
    enabled: bool,
    /// Page, size, and whether it is valid.
    queue: Option<(u8, u8, bool)>,
    write: Option<u16>,
    read: Option<u16>,
    stalled: bool,
    /// Page, size, whether it has two levels and whether it is valid.
    tables: [Option<(u8, u16, bool, bool)>; 2],
    /// Any bits of any register.
    flips: Option<(u8, u64)>,
}

impl State {
    fn make(&self, state: &mut ItsState) {
        const OFFSET: u64 = 0xf_ffe0;
        const STALLED: u64 = 1;
        state.enabled = self.enabled;
        if let Some((at, size, valid)) = self.queue {
            state.command_base = u64::from(valid) << 63 | page(at) | u64::from(size % 4);
        }
        if let Some(write) = self.write {
            state.command_write = u64::from(write) << 5 & OFFSET;
        }
        if let Some(read) = self.read {
            // Most of them in the queue.
            let size = ((state.command_base & 0xff) + 1) * 0x1000;
            state.command_read = u64::from(read) << 5 & OFFSET;
            if read < 0xf000 {
                state.command_read %= size;
            }
        }
        state.command_read = state.command_read & !STALLED | u64::from(self.stalled);
        for (register, table) in state.tables.iter_mut().zip(self.tables) {
            if let Some((at, size, indirect, valid)) = table {
                let fixed = *register & 0x071f_0000_0000_0000;
                let levels = u64::from(indirect) << 62;
                *register = fixed | u64::from(valid) << 63 | levels | page(at) | u64::from(size & 0x303);
            }
        }
        if let Some((register, bits)) = self.flips {
            match usize::from(register) % (3 + state.tables.len()) {
                0 => state.command_base ^= bits,
                1 => state.command_write ^= bits,
                2 => state.command_read ^= bits,
                table => state.tables[table - 3] ^= bits,
            }
        }
    }
}

struct Machine {
    gic: GicV3,
    its: Its,
    frame: ControlFrame,
    memory: Arc<GuestMemoryMmap>,
}

impl Machine {
    fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        let config = GicV3Config {
            lpis: LpiSupport::Its,
            ..GicV3Config::new(CPUS)
        };
        let outputs = (0..CPUS).map(|_| CpuOutputs {
            irq: Box::new(Outside::default()),
            fiq: Box::new(Outside::default()),
        });
        let gic = GicV3::with_lpis(config, outputs.collect(), Arc::clone(&memory)).unwrap();
        let its = Its::new(CONFIG, &gic, Arc::clone(&memory)).unwrap();
        Self {
            frame: its.control_frame(),
            gic,
            its,
            memory,
        }
    }

    fn fresh() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE as usize)]).unwrap();
        let machine = Self::new(Arc::new(memory));
        for cpu in 0..CPUS {
            let redistributor = machine.gic.redistributor(CpuId(cpu)).unwrap();
            redistributor.write(0x70, &(PROPERTIES | 13).to_le_bytes());
            redistributor.write(0x78, &(PENDING + u64::from(cpu) * 0x1_0000).to_le_bytes());
            redistributor.write(0x00, &1_u32.to_le_bytes());
        }
        machine.lay_out([0, 16, 32], [0, 0, 0], [false, true]);
        machine
    }

    fn read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.frame.read(offset, &mut data);
        read_le(&data)
    }

    fn write(&self, offset: u64, value: u64) {
        self.frame.write(offset, &value.to_le_bytes());
    }

    fn enable(&self, enabled: bool) {
        self.frame.write(0, &u32::from(enabled).to_le_bytes());
    }

    fn lay_out(&self, pages: [u8; 3], sizes: [u8; 3], indirect: [bool; 2]) {
        self.enable(false);
        self.write(CBASER, VALID | page(pages[0]) | u64::from(sizes[0] % 4));
        self.write(CWRITER, 0);
        for table in 0..2 {
            let levels = u64::from(indirect[table]) << 62;
            let size = u64::from(sizes[table + 1]);
            self.write(
                BASER + table as u64 * 8,
                VALID | levels | page(pages[table + 1]) | (size & 0x303),
            );
        }
        self.enable(true);
    }

    fn command(&self, command: [u64; 4]) {
        let (base, at) = (self.read(CBASER), self.read(CWRITER));
        let size = ((base & 0xff) + 1) * 0x1000;
        for (word, index) in command.iter().zip(0..) {
            let address = (base & 0x000f_ffff_ffff_f000) + at % size + index * 8;
            // The queue may be anywhere.
            let _ = self.memory.write_obj(word.to_le(), GuestAddress(address));
        }
        self.write(CWRITER, (at + 32) % size);
    }

    fn move_away(&mut self) {
        let (gic, its) = (self.gic.save(), self.its.save());
        *self = Self::new(Arc::clone(&self.memory));
        self.gic.restore(&gic).unwrap();
        self.its.restore(&its).unwrap();
        assert_eq!(self.its.save(), its);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Access(access) => access.run(&self.frame, ControlFrame::SIZE, 8),
            Step::Layout { pages, sizes, indirect } => self.lay_out(pages, sizes, indirect),
            Step::Command {
                opcode,
                device,
                event,
                lpi,
                collection,
                page: at,
                bits,
                valid,
            } => {
                let valid = u64::from(valid) << 63;
                let first = u64::from(device) << 32 | u64::from(opcode % 16);
                let second = match opcode % 16 {
                    0x08 => u64::from(bits % 32),
                    _ => (8190 + u64::from(lpi)) << 32 | u64::from(event),
                };
                let third = match opcode % 16 {
                    0x08 => valid | page(at),
                    _ => valid | u64::from(bits % 4) << 16 | u64::from(collection),
                };
                self.command([first, second, third, u64::from(at % 4) << 16]);
            }
            Step::AnyCommand(command) => self.command(command),
            Step::Poke {
                at,
                value,
                page: to,
                kind,
            } => {
                let entry = match kind % 4 {
                    0 => value,
                    1 => VALID | page(to) | value & 0x1f,
                    2 => VALID | value & 0x0003_0000,
                    _ => VALID | (value & 0xff) << 32 | (8192 + (value >> 8 & 0xff)),
                };
                let address = RAM + u64::from(at) % (PAGES * 512) * 8;
                self.memory.write_obj(entry.to_le(), GuestAddress(address)).unwrap();
            }
            Step::Message { device, event } => self.its.signal(DeviceId(device.into()), EventId(event.into())),
            Step::AnyMessage(device, event) => self.its.signal(DeviceId(device), EventId(event)),
            Step::Enable(enabled) => self.enable(enabled),
            Step::Retry => self.write(CWRITER, self.read(CWRITER) | 1),
            Step::Reset => self.its.reset(),
            Step::Move => self.move_away(),
            Step::Restore { state: change, over } => {
                let before = self.its.save();
                let mut state = before.clone();
                change.make(&mut state);
                if !over {
                    self.move_away();
                }
                let saved = match self.its.restore(&state) {
                    Ok(()) => state,
                    Err(_) => before,
                };
                assert_eq!(self.its.save(), saved);
                self.move_away();
            }
        }
        let size = ((self.read(CBASER) & 0xff) + 1) * 0x1000;
        let read = self.read(CREADR);
        assert!(read & !1 < size, "GITS_CREADR is {read:#x} in a queue of {size:#x}");
    }
}

fn page(number: u8) -> u64 {
    RAM + u64::from(number) % PAGES * 0x1000
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Machine::fresh();
    for step in steps {
        machine.step(step);
    }
});
