//! Virtio over PCI with a disk behind it, or a device whose requests end late: whatever a guest writes to configuration space,
//! BARs, table and rings, the wire and the pending bits follow from the state, a mask is not passed, a device at rest changes no
//! memory, and one that was saved goes on.
#![no_main]

use std::{sync::Arc, time::Duration};

use arbitrary::Arbitrary;
use devisor::{
    bus::{BusDevice, read_le},
    interrupt::{LevelInterrupt, NoInterrupt, SinkVectors},
    pci::{BarIndex, DeviceFunction, Function, MsiX, MsiXEntry, RootBus, Signalled},
    virtio::{
        QueueIndex, VirtioPci, VirtioTransport,
        transport::{
            SavedDevice, SavedTransport,
            pci::{VirtioPciOptions, VirtioPciState},
        },
    },
};
use devisor_fuzz::{
    Access, Outside,
    virtio::{self, Kind, LAYOUT, Request, TransportChange, contents, empty_ring, late::Held, memory},
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const COMMAND: u64 = 0x04;
const BUS_MASTER: u64 = 4;
const INTX_DISABLE: u64 = 1 << 10;
const MSIX_CONTROL: u64 = 0x42;
const ENABLE: u64 = 1 << 15;
const FUNCTION_MASK: u64 = 1 << 14;
const VECTORS: u16 = 2;
/// DRIVER_OK.
const LIVE: u32 = 4;
const PBA: u64 = 0x1000;

/// Registers that do something, in configuration space and in the common configuration.
const CONTROLS: [u64; 9] = [COMMAND, 0x10, 0x14, MSIX_CONTROL, 0x3c, 0x94, 0x98, 0x9c, 0xa0];
const COMMON: [(u64, usize); 14] = [
    (0x00, 4),
    (0x08, 4),
    (0x0c, 4),
    (0x10, 2),
    (0x14, 1),
    (0x16, 2),
    (0x18, 2),
    (0x1a, 2),
    (0x1c, 2),
    (0x20, 4),
    (0x24, 4),
    (0x28, 4),
    (0x30, 4),
    (0x3a, 2),
];

/// Registers of configuration space, and what of them can be written.
const CONFIG: [(usize, u32); 9] = [
    (0x04, 0x0546),
    (0x0c, 0xff),
    (0x10, 0xffff_c000),
    (0x14, 0xffff_e000),
    (0x3c, 0xff),
    (0x40, 0xc000_0000),
    (0x94, 0xff),
    (0x98, 0xffff_ffff),
    (0x9c, 0xffff_ffff),
];

#[derive(Arbitrary, Debug)]
enum Step {
    Ecam(Access),
    Control {
        register: u8,
        value: u32,
    },
    Structures(Access),
    Common {
        register: u8,
        value: u32,
    },
    Table(Access),
    Mask {
        vector: bool,
        masked: bool,
    },
    /// Where the BARs decode.
    Window(Access),
    Memory {
        address: u16,
        value: u64,
    },
    /// What a driver does, up to DRIVER_OK.
    Up {
        messages: bool,
        features: u64,
    },
    Request(Request),
    Kick(u8),
    Trigger(u8),
    Export(u8),
    Process(u8),
    Run,
    /// One of the requests under way ends.
    Complete(u8),
    GiveBack(u8),
    /// Whether requests under way end when the device is asked for that.
    Obey(bool),
    ChangeConfig,
    Refuse(bool),
    Release,
    Pause,
    Resume,
    Reset,
    Move,
    Restore(Vec<Change>),
}

/// How a state from outside differs from one that there is: little enough for most to be taken.
#[derive(Arbitrary, Debug)]
enum Change {
    Config {
        register: u8,
        bits: u32,
    },
    ConfigByte {
        at: u8,
        bits: u8,
    },
    Causes(u8),
    Pending(u8),
    Vector {
        vector: bool,
        address: u64,
        data: u32,
        masked: bool,
    },
    /// Which vector is whose.
    Map {
        queue: bool,
        vector: u8,
    },
    Transport(TransportChange),
}

impl Change {
    fn make(&self, state: &mut VirtioPciState) {
        match *self {
            Self::Config { register, bits } => {
                let (at, mask) = CONFIG[usize::from(register) % CONFIG.len()];
                let bytes = (bits & mask).to_le_bytes();
                state.endpoint.config[at..]
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(byte, bits)| *byte ^= bits);
            }
            Self::ConfigByte { at, bits } => state.endpoint.config[usize::from(at)] ^= bits,
            Self::Causes(causes) => state.endpoint.causes = causes & 0x83,
            Self::Pending(pending) => {
                let msix = state.endpoint.msix.as_mut().unwrap();
                msix.pending[0] = u64::from(pending & 0x83);
                if pending & 0x40 != 0 {
                    state.endpoint.config[0x43] |= 0x80;
                }
            }
            Self::Vector {
                vector,
                address,
                data,
                masked,
            } => {
                let entry = &mut state.endpoint.msix.as_mut().unwrap().entries[usize::from(vector)];
                let address = if data == 0 { address } else { address & !3 };
                *entry = MsiXEntry { address, data, masked };
            }
            Self::Map { queue, vector } => {
                let vector = match vector {
                    0..4 => vector.into(),
                    _ => 0xffff,
                };
                match queue {
                    true => state.queue_vectors[0] = vector,
                    false => state.config_vector = vector,
                }
            }
            Self::Transport(ref change) => change.make(&mut state.transport),
        }
    }
}

impl Step {
    /// Whether the driver itself writes memory, or the device may go on.
    fn is_noisy(&self) -> bool {
        let driver = matches!(self, Self::Memory { .. } | Self::Up { .. } | Self::Request(_));
        driver || matches!(self, Self::Resume | Self::Move | Self::Restore(_))
    }
}

type Device = VirtioPci<virtio::Device>;

/// One of the places where a guest reaches the function.
enum Face<'a> {
    Ecam(&'a RootBus),
    Bar(&'a Device, BarIndex),
}

impl BusDevice for Face<'_> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match *self {
            Self::Ecam(root) => root.ecam().read(offset.wrapping_add(1 << 15), data),
            Self::Bar(device, bar) if device.endpoint().read_bar(bar, offset, data) => {}
            Self::Bar(device, bar) => device.read_bar(bar, offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match *self {
            Self::Ecam(root) => root.ecam().write(offset.wrapping_add(1 << 15), data),
            Self::Bar(device, bar) if device.endpoint().write_bar(bar, offset, data) => {}
            Self::Bar(device, bar) => device.write_bar(bar, offset, data),
        }
    }
}

struct Machine {
    memory: Arc<GuestMemoryMmap>,
    kind: Kind,
    held: Held,
    paused: bool,
    root: RootBus,
    device: Arc<Device>,
    line: Outside,
    sink: Outside,
    /// A refusal leaves its mark until somebody signals again.
    was_refused: bool,
    available: u16,
}

impl Machine {
    fn new(memory: Arc<GuestMemoryMmap>, kind: Kind) -> Self {
        let (line, sink) = (Outside::default(), Outside::default());
        // Device 1 pulls the second wire.
        let wires = [0, 1, 2, 3].map(|wire| match wire {
            1 => Arc::new(line.clone()) as Arc<dyn LevelInterrupt>,
            _ => Arc::new(NoInterrupt),
        });
        let root = RootBus::new(wires, Arc::new(SinkVectors::new(Arc::new(sink.clone()))));
        let slot = root.slot(DeviceFunction::new(1, 0).unwrap()).unwrap();
        let options = VirtioPciOptions {
            reset_patience: Duration::ZERO,
            ..VirtioPciOptions::default()
        };
        let (device, held) = kind.device();
        let device = Arc::new(VirtioPci::with_options(device, Arc::clone(&memory), slot, &options).unwrap());
        root.insert(Arc::clone(&device) as _).unwrap();
        Self {
            memory,
            kind,
            held,
            paused: false,
            root,
            device,
            line,
            sink,
            was_refused: false,
            available: 0,
        }
    }

    fn write(&self, face: Face<'_>, offset: u64, len: usize, value: u64) {
        face.write(offset, &value.to_le_bytes()[..len]);
    }

    fn config(&self, offset: u64, len: usize, value: u64) {
        self.write(Face::Ecam(&self.root), offset, len, value);
    }

    fn common(&self, offset: u64, len: usize, value: u64) {
        self.write(self.structures(), offset, len, value);
    }

    fn structures(&self) -> Face<'_> {
        Face::Bar(&self.device, BarIndex::Bar0)
    }

    fn table(&self) -> Face<'_> {
        Face::Bar(&self.device, BarIndex::Bar1)
    }

    fn msix(&self) -> &MsiX {
        self.device.endpoint().msix().unwrap()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ecam(access) => access.run(&Face::Ecam(&self.root), 0x1000, 4),
            Step::Control { register, value } => {
                let register = CONTROLS[usize::from(register) % CONTROLS.len()];
                self.config(register, 4 - (register % 4) as usize, value.into());
            }
            Step::Structures(access) => access.run(&self.structures(), 0x4000, 4),
            Step::Common { register, value } => {
                let (register, len) = COMMON[usize::from(register) % COMMON.len()];
                self.common(register, len, value.into());
            }
            Step::Table(access) => access.run(&self.table(), 0x2000, 4),
            Step::Mask { vector, masked } => {
                self.write(self.table(), 16 * u64::from(vector) + 12, 4, masked.into());
            }
            Step::Window(access) => {
                let bar = self.device.endpoint().decoded(BarIndex::Bar0).unwrap_or(0);
                access.run(&self.root.memory_window(bar), 0x4000, 4);
            }
            Step::Memory { address, value } => {
                let _ = self.memory.write_obj(value, GuestAddress(address.into()));
            }
            Step::Up { messages, features } => self.up(messages, features),
            Step::Request(request) => {
                request.offer(&self.memory, &mut self.available);
                self.common(0x3000, 2, 0);
            }
            Step::Kick(queue) => self.common(0x3000 + 4 * u64::from(queue), 2, queue.into()),
            Step::Trigger(vector) => {
                let signalled = self.msix().trigger(vector.into());
                assert!(signalled.is_ok() || self.sink.refuses() || u16::from(vector) >= VECTORS);
                if matches!(signalled, Ok(Signalled::Pending)) {
                    assert!(self.msix().is_pending(vector.into()));
                }
            }
            // The platform has no descriptors; but the vector is there from now on.
            Step::Export(vector) => assert!(self.msix().export(vector.into()).is_err()),
            Step::Process(queue) => self.device.process(QueueIndex(queue.into())),
            Step::Run => self.device.run(),
            Step::Complete(which) => _ = self.held.complete(which.into()),
            Step::GiveBack(which) => _ = self.held.give_back(which.into()),
            Step::Obey(obey) => self.held.obey(obey),
            Step::ChangeConfig => self.device.change_config(|_| ()),
            Step::Refuse(refuses) => {
                self.sink.refuse(refuses);
                self.line.refuse(refuses);
                self.was_refused |= refuses;
                let _ = self.device.endpoint().intx().settle();
            }
            Step::Release => self.msix().release(),
            Step::Pause => self.pause(),
            Step::Resume => self.resume(),
            Step::Reset => {
                Function::reset(&*self.device);
                let ended = self.device.status() == 0;
                assert_eq!(
                    ended,
                    self.held.count() == 0,
                    "it waits for requests, and for nothing else"
                );
            }
            Step::Move => self.move_away(),
            Step::Restore(ref changes) => {
                let mut state = self.at_rest();
                changes.iter().for_each(|change| change.make(pci(&mut state)));
                self.restore(state);
            }
        }
    }

    fn pause(&mut self) {
        self.device.pause();
        self.paused = true;
    }

    fn resume(&mut self) {
        self.device.resume();
        self.paused = false;
    }

    /// The device at rest, and its state.
    fn at_rest(&mut self) -> SavedDevice {
        self.pause();
        self.held.complete_all();
        assert!(self.device.is_still());
        self.device.save().unwrap()
    }

    /// A device in a state from outside comes into the place of this one.
    fn restore(&mut self, mut saved: SavedDevice) {
        let mut other = Self::new(Arc::clone(&self.memory), self.kind);
        let before = other.at_rest();
        other.resume();
        if other.device.restore(&saved).is_err() {
            assert_eq!(other.at_rest(), before, "refused, and changed");
            self.resume();
            return;
        }
        // What is pending and masked by nothing is sent, and nothing else.
        let state = pci(&mut saved);
        let config = |at: usize| {
            u64::from(u16::from_le_bytes([
                state.endpoint.config[at],
                state.endpoint.config[at + 1],
            ]))
        };
        let open = config(COMMAND as usize) & BUS_MASTER != 0
            && config(MSIX_CONTROL as usize) & (ENABLE | FUNCTION_MASK) == ENABLE;
        let msix = state.endpoint.msix.as_mut().unwrap();
        let masked = msix
            .entries
            .iter()
            .rev()
            .fold(0, |all, entry| all << 1 | u64::from(entry.masked || !open));
        assert_eq!(
            other.sink.messages(),
            u64::from((msix.pending[0] & !masked).count_ones())
        );
        msix.pending[0] &= masked;
        assert_eq!(other.device.save(), Ok(saved));
        other.available = self.available;
        other.resume();
        *self = other;
        self.check();
        self.move_away();
    }

    fn up(&mut self, messages: bool, features: u64) {
        self.held.obey(true);
        Function::reset(&*self.device);
        self.config(COMMAND, 2, 6);
        if messages {
            self.config(MSIX_CONTROL, 2, ENABLE);
            (0..u64::from(VECTORS)).for_each(|vector| self.write(self.table(), 16 * vector + 8, 8, 0x40 + vector));
        }
        self.common(0x14, 1, 1);
        self.common(0x14, 1, 3);
        // VERSION_1 in any case, and of the others what is offered.
        for (select, wanted) in [features as u32, (features >> 32) as u32 | 1].into_iter().enumerate() {
            self.common(0x00, 4, select as u64);
            let mut offered = [0; 4];
            self.structures().read(0x04, &mut offered);
            self.common(0x08, 4, select as u64);
            self.common(0x0c, 4, u64::from(wanted) & read_le(&offered));
        }
        self.common(0x14, 1, 0xb);
        self.common(0x10, 2, 0);
        self.common(0x16, 2, 0);
        self.common(0x18, 2, LAYOUT.size.into());
        self.common(0x1a, 2, 1);
        for (register, address) in [
            (0x20, LAYOUT.descriptor_area),
            (0x28, LAYOUT.driver_area),
            (0x30, LAYOUT.device_area),
        ] {
            self.common(register, 4, address);
            self.common(register + 4, 4, 0);
        }
        empty_ring(&self.memory);
        self.available = 0;
        self.common(0x1c, 2, 1);
        self.common(0x14, 1, 0xf);
    }

    /// Takes the device to another host.
    fn move_away(&mut self) {
        let state = self.at_rest();
        let mut other = Self::new(Arc::clone(&self.memory), self.kind);
        other.device.restore(&state).unwrap();
        if !self.was_refused {
            assert_eq!(other.device.save(), Ok(state));
            assert_eq!(other.sink.messages(), 0, "nothing was owed");
        }
        assert_eq!(other.held.count(), 0, "not before it is resumed");
        other.available = self.available;
        other.resume();
        *self = other;
    }

    fn read(&self, face: Face<'_>, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        face.read(offset, &mut data[..len]);
        read_le(&data[..len])
    }

    /// Whether the device may not touch memory: at rest, or without a driver.
    fn is_quiet(&self) -> bool {
        self.held.count() == 0 && (self.device.is_still() || self.device.status() & LIVE == 0)
    }

    fn check(&self) {
        let is_still = self.device.is_still();
        assert!(!is_still || self.paused && self.held.count() == 0);
        assert!(
            is_still || !self.paused || self.held.count() != 0,
            "what does it wait for?"
        );
        assert_eq!(self.device.save().is_ok(), is_still);
        assert!(
            self.device.status() != 0 || self.held.count() == 0,
            "reset, and at work"
        );
        let config = |offset, len| self.read(Face::Ecam(&self.root), offset, len);
        let (command, control) = (config(COMMAND, 2), config(MSIX_CONTROL, 2));
        let endpoint = self.device.endpoint();
        for (bar, size) in [(BarIndex::Bar0, 0x4000), (BarIndex::Bar1, 0x2000)] {
            let decoded = endpoint.decoded(bar);
            assert_eq!(decoded.is_some(), command & 2 != 0);
            assert_eq!(decoded.unwrap_or(0) % size, 0);
        }
        // INTx follows its causes, and is silent behind messages.
        let enabled = control & ENABLE != 0;
        let causes = endpoint.intx().causes() != 0;
        assert_eq!(config(0x06, 1) >> 3 & 1 != 0, causes);
        if !self.line.refuses() {
            assert_eq!(self.line.is_up(), causes && !enabled && command & INTX_DISABLE == 0);
        }
        let masked = command & BUS_MASTER == 0 || control & FUNCTION_MASK != 0;
        let pending = self.read(self.table(), PBA, 8);
        for vector in 0..u64::from(VECTORS) {
            let open = enabled && !masked && self.read(self.table(), 16 * vector + 12, 4) == 0;
            if pending >> vector & 1 != 0 {
                assert!(
                    enabled && (!open || self.was_refused),
                    "vector {vector} is pending: open is {open}"
                );
            }
        }
        assert_eq!(pending >> VECTORS, 0);
        // Of a device that was moved, nobody knows why.
        let status = self.read(self.structures(), 0x14, 1);
        assert!(status & 0x40 != 0 || self.device.fault().is_none());
        let _ = self.device.queue_counters(QueueIndex(0));
    }
}

fn pci(state: &mut SavedDevice) -> &mut VirtioPciState {
    match &mut state.transport {
        SavedTransport::Pci(state) => state,
        _ => unreachable!("it is virtio-pci's"),
    }
}

fuzz_target!(|input: (Kind, Vec<Step>)| {
    let (kind, steps) = input;
    let mut machine = Machine::new(memory(), kind);
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
