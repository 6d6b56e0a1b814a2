//! Virtio over MMIO with a disk behind it, or a device whose requests end late: whatever a guest writes to registers,
//! configuration space and rings, a level line is what InterruptStatus says, an edge comes for what is new in it, no queue is
//! ready and dead, a device at rest changes no memory, and one that was saved goes on.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    interrupt::from_fn,
    virtio::{
        QueueIndex, VirtioMmio, VirtioTransport,
        transport::{
            SavedDevice, SavedTransport,
            mmio::{Line, REGION_SIZE, VirtioMmioState},
        },
    },
};
use devisor_fuzz::{
    Access, Outside,
    virtio::{Device, Kind, LAYOUT, Request, TransportChange, contents, empty_ring, late::Held, memory},
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
    Run,
    /// One of the requests under way ends.
    Complete(u8),
    GiveBack(u8),
    ChangeConfig(u8),
    Refuse(bool),
    Pause {
        /// Requests under way do not end for it.
        stubborn: bool,
    },
    Resume,
    Reset,
    /// Looks at it from outside.
    Look,
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

impl Step {
    /// Whether the driver itself writes memory, or the device may go on.
    fn is_noisy(&self) -> bool {
        let driver = matches!(
            self,
            Self::Memory { .. } | Self::Up(_) | Self::Again { .. } | Self::Request(_)
        );
        driver || matches!(self, Self::Resume | Self::Look | Self::Move | Self::Restore(_))
    }
}

struct Machine {
    memory: Arc<GuestMemoryMmap>,
    kind: Kind,
    device: VirtioMmio<Device>,
    held: Held,
    paused: bool,
    /// Edges that there were when nothing was pending, if that is known.
    handled: Option<u64>,
    level: bool,
    line: Outside,
    /// A refusal leaves its mark until somebody signals again.
    was_refused: bool,
    available: u16,
}

impl Machine {
    fn new(memory: Arc<GuestMemoryMmap>, kind: Kind, level: bool) -> Self {
        let line = Outside::default();
        let end = line.clone();
        let wire = match level {
            true => Line::Level(Arc::new(end)),
            false => Line::Edge(Arc::new(from_fn(move || end.pulse()))),
        };
        let (device, held) = kind.device();
        // A guest that resets the device waits for it.
        held.obey(true);
        Self {
            device: VirtioMmio::new(device, Arc::clone(&memory), wire).unwrap(),
            memory,
            kind,
            held,
            paused: false,
            handled: Some(0),
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

    /// The device at rest, and its state.
    fn at_rest(&mut self) -> SavedDevice {
        self.pause();
        self.held.complete_all();
        assert!(self.device.is_still());
        self.device.save().unwrap()
    }

    fn pause(&mut self) {
        self.device.pause();
        self.paused = true;
    }

    fn resume(&mut self) {
        self.device.resume();
        self.paused = false;
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
                assert_eq!(self.read(INTERRUPT_STATUS), 0, "it has seen it all");
                self.handled = Some(self.line.messages());
            }
            Step::Acknowledge(bits) => {
                let edges = self.line.messages();
                self.write(INTERRUPT_ACK, bits.into());
                // Not always, for a read is one that the driver has not made.
                if bits & 0x80 != 0 && self.read(INTERRUPT_STATUS) != 0 {
                    let comes = !self.level && !self.line.refuses();
                    assert!(!comes || self.line.messages() > edges, "what is left comes again");
                }
            }
            Step::Process(queue) => self.device.process(QueueIndex(queue.into())),
            Step::Run => self.device.run(),
            Step::Complete(which) => _ = self.held.complete(which.into()),
            Step::GiveBack(which) => _ = self.held.give_back(which.into()),
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
            Step::Pause { stubborn } => {
                self.held.obey(!stubborn);
                self.pause();
                self.held.obey(true);
            }
            Step::Resume => self.resume(),
            Step::Reset => {
                self.device.reset();
                assert_eq!((self.read(STATUS), self.read(INTERRUPT_STATUS)), (0, 0));
                self.handled = Some(self.line.messages());
            }
            Step::Look => {
                let was_paused = self.paused;
                self.pause();
                self.check();
                if !was_paused {
                    self.resume();
                }
            }
            Step::Move => self.move_away(),
            Step::Restore(ref changes) => {
                let mut state = self.at_rest();
                changes.iter().for_each(|change| change.make(mmio(&mut state)));
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
    fn restore(&mut self, mut state: SavedDevice) {
        let mut other = self.another();
        let before = other.at_rest();
        other.resume();
        if other.device.restore(&state).is_err() {
            assert_eq!(other.at_rest(), before, "refused, and changed");
            self.resume();
            return;
        }
        // A level is derived again.
        mmio(&mut state).interrupt.owed &= !self.level;
        assert_eq!(other.device.save(), Ok(state));
        assert_eq!(other.line.messages(), 0, "restored, and not gone on yet");
        other.resume();
        *self = other;
        self.check();
        self.move_away();
    }

    /// Takes the device to another host.
    fn move_away(&mut self) {
        let state = self.at_rest();
        let mut other = self.another();
        other.device.restore(&state).unwrap();
        if !self.was_refused {
            assert_eq!(other.device.save(), Ok(state));
        }
        assert_eq!(other.held.count(), 0, "not before it is resumed");
        assert_eq!(other.line.messages(), 0, "an edge that was seen is not repeated");
        other.resume();
        *self = other;
    }

    /// Another host with the same memory, where nothing runs yet.
    fn another(&self) -> Self {
        let mut other = Self::new(Arc::clone(&self.memory), self.kind, self.level);
        other.available = self.available;
        other.handled = None;
        other
    }

    /// Whether the device may not touch memory: at rest, or without a driver.
    fn is_quiet(&self) -> bool {
        self.held.count() == 0 && (self.device.is_still() || self.device.status() & LIVE == 0)
    }

    fn check(&self) {
        // Of a device that was moved, nobody knows why.
        let status = self.device.status();
        assert!(status & NEEDS_RESET != 0 || self.device.fault().is_none());
        assert!(status != 0 || self.held.count() == 0, "reset, and at work");
        let is_still = self.device.is_still();
        assert!(!is_still || self.paused && self.held.count() == 0);
        assert!(
            is_still || !self.paused || self.held.count() != 0,
            "what does it wait for?"
        );
        let saved = self.device.save();
        assert_eq!(saved.is_ok(), is_still);
        let Ok(mut state) = saved else { return };
        let VirtioMmioState {
            transport, interrupt, ..
        } = mmio(&mut state);
        if self.level && !self.line.refuses() {
            assert_eq!(self.line.is_up(), interrupt.status != 0);
        }
        if let Some(edges) = self.handled
            && !self.level
            && !self.was_refused
            && interrupt.status != 0
        {
            assert!(self.line.messages() > edges, "an event without an edge");
        }
        let live = transport.status & (LIVE | NEEDS_RESET) == LIVE;
        for (setup, queue) in transport.setup.iter().zip(&transport.queues) {
            assert_eq!(queue.is_some(), live && setup.ready, "ready and dead");
            assert!(matches!(
                setup.layout.size,
                0 | 1 | 2 | 4 | 8 | 16 | 32 | 64 | 128 | 256
            ));
        }
    }
}

fn mmio(state: &mut SavedDevice) -> &mut VirtioMmioState {
    match &mut state.transport {
        SavedTransport::Mmio(state) => state,
        _ => unreachable!("it is virtio-mmio's"),
    }
}

fuzz_target!(|input: (Kind, bool, Vec<Step>)| {
    let (kind, level, steps) = input;
    let mut machine = Machine::new(memory(), kind, level);
    for step in &steps {
        let quiet = !step.is_noisy() && machine.is_quiet();
        let before = quiet.then(|| contents(&machine.memory));
        machine.step(step);
        machine.check();
        if let Some(before) = before.filter(|_| machine.is_quiet()) {
            assert!(contents(&machine.memory) == before, "memory has changed at rest");
        }
    }
});
