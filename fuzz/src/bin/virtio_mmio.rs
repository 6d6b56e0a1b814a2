//! Virtio over MMIO with a disk behind it: whatever a guest writes to registers, configuration space and rings, a level line
//! is what InterruptStatus says, an edge comes for what is new in it, no queue is ready and dead, and a saved device goes on.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::from_fn,
    virtio::{
        QueueIndex, VirtioMmio,
        block::{Block, BlockState},
        transport::mmio::{Line, REGION_SIZE, VirtioMmioState},
    },
};
use devisor_fuzz::{
    Access, Outside,
    virtio::{LAYOUT, Request, TransportChange, disk, empty_ring, memory},
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_RESET: u64 = 0x0c0;
const CONFIG_GENERATION: u64 = 0x0fc;
/// `writeback` of a disk.
const WRITEBACK: u64 = 0x120;

/// Registers that do something.
const CONTROLS: [u64; 15] = [
    DEVICE_FEATURES_SEL,
    DRIVER_FEATURES_SEL,
    DRIVER_FEATURES,
    QUEUE_SEL,
    QUEUE_SIZE,
    QUEUE_READY,
    QUEUE_NOTIFY,
    INTERRUPT_STATUS,
    INTERRUPT_ACK,
    STATUS,
    QUEUE_DESC_LOW,
    QUEUE_DRIVER_LOW,
    QUEUE_DEVICE_LOW,
    QUEUE_RESET,
    WRITEBACK,
];

const LIVE: u32 = 4;
const NEEDS_RESET: u32 = 0x40;

#[derive(Arbitrary, Debug)]
enum Step {
    Registers(Access),
    Control {
        register: u8,
        value: u32,
    },
    /// A bit of the status more.
    Status(u8),
    Memory {
        address: u16,
        value: u64,
    },
    /// What a driver does, up to DRIVER_OK.
    Up(u64),
    /// It stops its queue, and enables it again.
    Again {
        empty: bool,
    },
    Request(Request),
    Kick(u8),
    /// The handler of the interrupt.
    Handle,
    Acknowledge(u8),
    Process(u8),
    ChangeConfig(u8),
    Refuse(bool),
    Pause,
    Resume,
    Reset,
    Move,
    Restore(Vec<Change>),
}

/// How a state from outside differs from one that there is.
#[derive(Arbitrary, Debug)]
enum Change {
    Transport(TransportChange),
    Interrupt {
        status: u8,
        seen: u8,
        again: u8,
        owed: bool,
    },
    Select(u32),
}

impl Change {
    fn make(&self, state: &mut VirtioMmioState) {
        match *self {
            Self::Transport(ref change) => change.make(&mut state.transport),
            Self::Interrupt {
                status,
                seen,
                again,
                owed,
            } => {
                let interrupt = &mut state.interrupt;
                interrupt.status = (status % 8).into();
                // Mostly what can be.
                interrupt.seen = u32::from(seen) & (interrupt.status | u32::from(seen >> 7));
                interrupt.again = u32::from(again) & (interrupt.seen | u32::from(again >> 7));
                interrupt.owed = owed;
            }
            Self::Select(region) => state.shm_sel = region,
        }
    }
}

struct Machine {
    memory: Arc<GuestMemoryMmap>,
    device: VirtioMmio<Arc<GuestMemoryMmap>, Block>,
    level: bool,
    line: Outside,
    /// A refusal leaves its mark until somebody signals again.
    was_refused: bool,
    available: u16,
}

impl Machine {
    fn new(memory: Arc<GuestMemoryMmap>, level: bool, state: Option<&BlockState>) -> Self {
        let line = Outside::default();
        let end = line.clone();
        let wire = match level {
            true => Line::Level(Arc::new(end)),
            false => Line::Edge(Arc::new(from_fn(move || end.pulse()))),
        };
        Self {
            device: VirtioMmio::new(disk(state), Arc::clone(&memory), wire).unwrap(),
            memory,
            level,
            line,
            was_refused: false,
            available: 0,
        }
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    /// InterruptStatus, without a trace.
    fn pending(&self) -> u32 {
        self.device.save().interrupt.status
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Registers(access) => access.run(&self.device, REGION_SIZE, 4),
            Step::Control { register, value } => self.write(CONTROLS[usize::from(register) % CONTROLS.len()], value),
            Step::Status(bit) => self.write(STATUS, self.read(STATUS) | 1 << (bit % 8)),
            Step::Memory { address, value } => {
                let _ = self.memory.write_obj(value, GuestAddress(address.into()));
            }
            Step::Up(features) => self.up(features),
            Step::Again { empty } => {
                self.write(QUEUE_SEL, 0);
                let was_ready = self.read(QUEUE_READY) != 0;
                self.write(QUEUE_READY, 0);
                assert_eq!(self.read(QUEUE_READY), 0);
                if empty {
                    empty_ring(&self.memory);
                    self.available = 0;
                }
                self.write(QUEUE_READY, 1);
                assert!(!was_ready || self.read(QUEUE_READY) == 1);
            }
            Step::Request(request) => {
                request.offer(&self.memory, &mut self.available);
                self.write(QUEUE_NOTIFY, 0);
            }
            Step::Kick(queue) => self.write(QUEUE_NOTIFY, queue.into()),
            Step::Handle => {
                let pending = self.read(INTERRUPT_STATUS);
                self.write(INTERRUPT_ACK, pending);
                assert_eq!(self.pending(), 0, "it has seen it all");
            }
            Step::Acknowledge(bits) => {
                let edges = self.line.messages();
                self.write(INTERRUPT_ACK, bits.into());
                let left = self.pending() != 0 && !self.level && !self.line.refuses();
                assert!(!left || self.line.messages() > edges, "what is left comes again");
            }
            Step::Process(queue) => self.device.process(QueueIndex(queue.into())),
            Step::ChangeConfig(times) => {
                let before = self.read(CONFIG_GENERATION);
                (0..=times).for_each(|_| self.device.change_config(|_| ()));
                let after = self.read(CONFIG_GENERATION);
                assert_ne!(after, before);
                assert_eq!(self.read(CONFIG_GENERATION), after);
            }
            Step::Refuse(refuses) => {
                self.line.refuse(refuses);
                self.was_refused |= refuses;
                // No queue is kicked, but the line is told again.
                self.write(QUEUE_NOTIFY, u32::MAX);
            }
            Step::Pause => self.device.pause(),
            Step::Resume => self.device.resume(),
            Step::Reset => {
                self.device.reset();
                assert_eq!((self.read(STATUS), self.pending()), (0, 0));
            }
            Step::Move => self.move_away(),
            Step::Restore(ref changes) => {
                self.device.pause();
                let mut state = self.device.save();
                changes.iter().for_each(|change| change.make(&mut state));
                self.restore(state);
            }
        }
    }

    fn up(&mut self, features: u64) {
        self.write(STATUS, 0);
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        // VERSION_1 in any case, and of the others what is offered.
        for (select, wanted) in (0..).zip([features as u32, (features >> 32) as u32 | 1]) {
            self.write(DEVICE_FEATURES_SEL, select);
            self.write(DRIVER_FEATURES_SEL, select);
            self.write(DRIVER_FEATURES, wanted & self.read(DEVICE_FEATURES));
        }
        self.write(STATUS, 0xb);
        self.write(QUEUE_SEL, 0);
        self.write(QUEUE_SIZE, LAYOUT.size.into());
        for (register, address) in [
            (QUEUE_DESC_LOW, LAYOUT.descriptor_area),
            (QUEUE_DRIVER_LOW, LAYOUT.driver_area),
            (QUEUE_DEVICE_LOW, LAYOUT.device_area),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        empty_ring(&self.memory);
        self.available = 0;
        self.write(QUEUE_READY, 1);
        self.write(STATUS, 0xf);
        assert_eq!(self.read(STATUS), 0xf);
    }

    /// A device in a state from outside comes into the place of this one.
    fn restore(&mut self, mut state: VirtioMmioState) {
        let other = self.another();
        let before = other.device.save();
        if other.device.restore(&state).is_err() {
            assert_eq!(other.device.save(), before, "refused, and changed");
            self.device.resume();
            return;
        }
        // A level is derived again.
        state.interrupt.owed &= !self.level;
        assert_eq!(other.device.save(), state);
        assert_eq!(other.line.messages(), 0, "restored, and not gone on yet");
        other.device.resume();
        *self = other;
        self.check();
        self.move_away();
    }

    /// Takes the device to another host.
    fn move_away(&mut self) {
        self.device.pause();
        let state = self.device.save();
        let other = self.another();
        other.device.restore(&state).unwrap();
        if !self.was_refused {
            assert_eq!(other.device.save(), state);
        }
        assert_eq!(other.line.messages(), 0, "an edge that was seen is not repeated");
        other.device.resume();
        *self = other;
    }

    /// Another host with the same memory and disk, where nothing runs yet.
    fn another(&self) -> Self {
        let disk = self.device.with_device(|disk| disk.save());
        let mut other = Self::new(Arc::clone(&self.memory), self.level, Some(&disk));
        other.available = self.available;
        other
    }

    fn check(&self) {
        let VirtioMmioState {
            transport, interrupt, ..
        } = self.device.save();
        if self.level && !self.line.refuses() {
            assert_eq!(self.line.is_up(), interrupt.status != 0);
        }
        let live = transport.status & (LIVE | NEEDS_RESET) == LIVE;
        for (setup, queue) in transport.setup.iter().zip(&transport.queues) {
            assert_eq!(queue.is_some(), live && setup.ready, "ready and dead");
            assert!(matches!(
                setup.layout.size,
                0 | 1 | 2 | 4 | 8 | 16 | 32 | 64 | 128 | 256
            ));
        }
        // Of a device that was moved, nobody knows why.
        assert!(transport.status & NEEDS_RESET != 0 || self.device.fault().is_none());
    }
}

fuzz_target!(|input: (bool, Vec<Step>)| {
    let (level, steps) = input;
    let mut machine = Machine::new(memory(), level, None);
    for step in &steps {
        let (before, edges) = (machine.pending(), machine.line.messages());
        machine.step(step);
        machine.check();
        let moved = matches!(step, Step::Move | Step::Restore(_));
        if !level && !moved && !machine.line.refuses() && machine.pending() & !before != 0 {
            assert!(machine.line.messages() > edges, "an event without an edge");
        }
    }
});
