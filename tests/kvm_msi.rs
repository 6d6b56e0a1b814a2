//! A virtio-pci device on KVM under a running guest: a real vCPU finds it, drives it, masks and reroutes its MSI-X vectors, and
//! takes each interrupt as often as it should.
#![cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

#[allow(dead_code, reason = "shared with tests, which need other parts of it")]
#[path = "support/kvm_guest.rs"]
mod kvm_guest;
#[path = "support/skip.rs"]
mod skip;

use std::{
    fs::File,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use devisor::{
    backends::kvm::{Gsi, IrqPulse, KvmDoorbells, KvmIrqs},
    bus::{Bus, BusDevice, read_le},
    interrupt::{Interrupt, LevelInterrupt, NoInterrupt},
    pci::{DeviceFunction, Ecam, Function, MsiX, RootBus, Signalled},
    virtio::{QueueIndex, VirtioPci, VirtioTransport, entropy::Entropy, transport::status},
};
use kvm_guest::{Action, Controller, Guest, Machine, Program, Sensing, Wire};
use skip::skipped;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// What the guest does on an interrupt of one of these wires. They have a lower priority than messages, so what was sent
/// before such an interrupt was taken before it.
const KICK: Gsi = Gsi(2);
const MASK: Gsi = Gsi(3);
const UNMASK: Gsi = Gsi(4);
const REROUTE: Gsi = Gsi(5);
const MASK_ALL: Gsi = Gsi(6);
const UNMASK_ALL: Gsi = Gsi(7);
const DISABLE: Gsi = Gsi(8);
const LOOK: Gsi = Gsi(9);
const MOVE: Gsi = Gsi(10);
const KICK_MOVED: Gsi = Gsi(11);

/// The messages: of vector 0, of vector 1, and what [`REROUTE`] makes of the latter.
const CONFIG: Gsi = Gsi(16);
const QUEUE: Gsi = Gsi(17);
const OTHER: Gsi = Gsi(18);
/// The vector of the queue.
const VECTOR: u16 = 1;

const ECAM: u32 = 0x3000_0000;
const APERTURE: u32 = 0x4000_0000;
const APERTURE_SIZE: u64 = 0x10_0000;
/// Where the guest places the BARs, and where it moves the first one to.
const BAR0: u32 = APERTURE;
const MOVED_BAR0: u32 = APERTURE + 0x2_0000;
const BAR1: u32 = APERTURE + 0x1_0000;
/// What the guest is to show to the test.
const SHOW: u32 = 0xd000_0000;

/// The function's configuration space, and MSI-X in it.
const FUNCTION: u32 = ECAM + (1 << 15);
const MSIX_CONTROL: u32 = FUNCTION + 0x42;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const TABLE: u32 = BAR1;
const PBA: u32 = BAR1 + 0x1000;
/// The doorbell of queue 0 in BAR 0.
const NOTIFY: u32 = 0x3000;

/// The queue, above the guest program's memory.
const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x1_1000;
const USED: u64 = 0x1_2000;
const BUFFER: u64 = 0x1_3000;
const QUEUE_SIZE: u16 = 8;

fn long(address: u32, value: u32) -> Action {
    Action::WriteLong { address, value }
}

fn word(address: u32, value: u16) -> Action {
    Action::WriteWord { address, value }
}

fn data_of(gsi: Gsi) -> u32 {
    Controller::IoApic.vector(gsi).into()
}

fn control_of(vector: u16) -> u32 {
    TABLE + 16 * u32::from(vector) + 12
}

/// Places the BARs, gives each vector its message, enables MSI-X, and brings the device up with one queue.
fn driver() -> Vec<Action> {
    let at = |register: u32| BAR0 + register;
    let status = |value: u32| Action::WriteByte {
        address: at(0x14),
        value: value as u8,
    };
    let mut actions = vec![
        long(FUNCTION + 0x10, BAR0),
        long(FUNCTION + 0x14, BAR1),
        // Memory space and bus master.
        word(FUNCTION + 0x04, 0x6),
        word(MSIX_CONTROL, ENABLE),
    ];
    for (vector, gsi) in [(0, CONFIG), (VECTOR, QUEUE)] {
        let entry = control_of(vector) - 12;
        let address = 0xfee0_0000;
        actions.extend([long(entry, address), long(entry + 4, 0), long(entry + 8, data_of(gsi))]);
        actions.push(long(entry + 12, 0));
    }
    let addresses = [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)];
    actions.extend([
        status(status::ACKNOWLEDGE),
        status(status::ACKNOWLEDGE | status::DRIVER),
        // VIRTIO_F_VERSION_1, which is bit 32.
        long(at(0x08), 1),
        long(at(0x0c), 1),
        status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK),
        word(at(0x10), 0),
        word(at(0x16), 0),
        word(at(0x18), QUEUE_SIZE),
        word(at(0x1a), VECTOR),
    ]);
    for (register, address) in addresses {
        actions.extend([long(at(register), address as u32), long(at(register + 4), 0)]);
    }
    actions.push(word(at(0x1c), 1));
    actions.push(status(
        status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK,
    ));
    actions
}

/// The last 32 bits that were written here.
#[derive(Default)]
struct Show(AtomicU64);

impl BusDevice for Show {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.store(read_le(data), SeqCst);
    }
}

type Device = VirtioPci<Entropy>;

struct World {
    guest: Guest,
    device: Arc<Device>,
    memory: GuestMemoryMmap,
    lines: Vec<(Gsi, IrqPulse)>,
    shown: Arc<Show>,
    requests: u16,
}

impl World {
    /// A guest that has brought its device up, whose kicks are trapped; or none, which is said, where there is no /dev/kvm.
    fn new() -> Option<Self> {
        Self::with(|device, _| device)
    }

    fn with(plug: impl FnOnce(Device, &Machine) -> Device) -> Option<Self> {
        if let Some(why) = kvm_guest::unavailable() {
            skipped(why);
            return None;
        }
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 17)]).unwrap();
        // One buffer of the guest's, to be filled.
        memory.write_obj(BUFFER, GuestAddress(DESCRIPTORS)).unwrap();
        memory.write_obj(32_u32, GuestAddress(DESCRIPTORS + 8)).unwrap();
        memory.write_obj(2_u16, GuestAddress(DESCRIPTORS + 12)).unwrap();

        let machine = Machine::new(memory.clone()).unwrap();
        let irqs = KvmIrqs::new(Arc::clone(machine.vm()), 0..=23).unwrap();
        let silent = [(); 4].map(|()| Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>);
        let root = RootBus::new(silent, Arc::new(irqs.messages()));
        let slot = root.slot(DeviceFunction::new(1, 0).unwrap()).unwrap();
        let device = VirtioPci::new(Entropy::seeded(1), Arc::new(memory.clone()), slot).unwrap();
        let device = Arc::new(plug(device, &machine));
        root.insert(Arc::clone(&device) as _).unwrap();

        let shown = Arc::new(Show::default());
        let mut mmio = Bus::new();
        mmio.insert(ECAM.into(), Ecam::SIZE, Arc::new(root.ecam())).unwrap();
        let window = Arc::new(root.memory_window(APERTURE.into()));
        mmio.insert(APERTURE.into(), APERTURE_SIZE, window).unwrap();
        mmio.insert(SHOW.into(), 4, Arc::clone(&shown) as _).unwrap();

        let (from, to) = (PBA, SHOW);
        let commands = [
            (KICK, vec![word(BAR0 + NOTIFY, 0)]),
            (KICK_MOVED, vec![word(MOVED_BAR0 + NOTIFY, 0)]),
            (MASK, vec![long(control_of(VECTOR), 1)]),
            (UNMASK, vec![long(control_of(VECTOR), 0)]),
            (REROUTE, vec![long(control_of(VECTOR) - 4, data_of(OTHER))]),
            (MASK_ALL, vec![word(MSIX_CONTROL, ENABLE | FUNCTION_MASK)]),
            (UNMASK_ALL, vec![word(MSIX_CONTROL, ENABLE)]),
            (DISABLE, vec![word(MSIX_CONTROL, 0)]),
            (LOOK, vec![Action::CopyLong { from, to }]),
            (MOVE, vec![long(FUNCTION + 0x10, MOVED_BAR0)]),
        ];
        let wire = |sensing| move |(gsi, handler)| Wire { gsi, sensing, handler };
        let messages = [CONFIG, QUEUE, OTHER].map(|gsi| (gsi, vec![]));
        let lines = commands.each_ref().map(|&(gsi, _)| {
            let line = irqs.claim(gsi, "command").unwrap().irq_pulse().unwrap();
            (gsi, line)
        });
        let program = Program {
            controller: Controller::IoApic,
            wires: commands
                .into_iter()
                .map(wire(Sensing::Edge))
                .chain(messages.into_iter().map(wire(Sensing::Message)))
                .collect(),
            boot: driver(),
            mmio,
            ..Default::default()
        };
        Some(Self {
            guest: machine.start(program).unwrap(),
            device,
            memory,
            lines: lines.into(),
            shown,
            requests: 0,
        })
    }

    /// Has the guest do what it does on `command`. Messages that were sent before this are taken before it returns.
    fn command(&self, command: Gsi) {
        let before = self.guest.taken(command).count;
        let (_, line) = self.lines.iter().find(|(gsi, _)| *gsi == command).unwrap();
        line.trigger().unwrap();
        self.guest.wait_done(command, before + 1).unwrap();
    }

    /// Makes one buffer more available. The guest has not kicked for it.
    fn request(&mut self) {
        self.requests += 1;
        self.memory
            .store(self.requests, GuestAddress(AVAILABLE + 2), SeqCst)
            .unwrap();
    }

    /// How many buffers were used.
    fn used(&self) -> u16 {
        self.memory.load(GuestAddress(USED + 2), SeqCst).unwrap()
    }

    fn msix(&self) -> &MsiX {
        self.device.endpoint().msix().unwrap()
    }

    /// The pending bits, as the guest reads them.
    fn pending(&self) -> u64 {
        self.command(LOOK);
        self.shown.0.load(SeqCst)
    }

    fn taken(&self, gsi: Gsi) -> u64 {
        self.guest.taken(gsi).count
    }

    /// Whoever signals the vector of the queue in the device's place.
    fn holder(&self) -> Holder {
        Holder(self.msix().export(VECTOR).unwrap().into())
    }
}

struct Holder(File);

impl Holder {
    fn signal(&self) {
        (&self.0).write_all(&1_u64.to_ne_bytes()).unwrap();
    }
}

/// Skips the test, loudly, where there is no /dev/kvm.
macro_rules! or_skip {
    ($made:expr) => {
        match $made {
            Some(made) => made,
            None => return,
        }
    };
}

#[test]
fn a_vcpu_drives_the_device_and_takes_an_interrupt_for_each_used_buffer() {
    let mut world = or_skip!(World::new());
    for count in 1..=50 {
        world.request();
        world.command(KICK);
        world.guest.wait_done(QUEUE, count).unwrap();
        assert_eq!(u64::from(world.used()), count);
        assert_eq!(world.taken(QUEUE), count);
    }
    assert_ne!(world.memory.read_obj::<u64>(GuestAddress(BUFFER)).unwrap(), 0);
    world.device.change_config(|_| ());
    world.guest.wait_done(CONFIG, 1).unwrap();
    assert_eq!([QUEUE, CONFIG, OTHER].map(|gsi| world.taken(gsi)), [50, 1, 0]);
    assert_eq!(world.msix().failures(), 0);
}

#[test]
fn a_masked_vector_interrupts_once_when_the_vcpu_unmasks_it() {
    for (mask, unmask) in [(MASK, UNMASK), (MASK_ALL, UNMASK_ALL)] {
        let mut world = or_skip!(World::new());
        world.command(mask);
        for _ in 0..3 {
            world.request();
            world.command(KICK);
        }
        assert_eq!(world.used(), 3);
        assert_eq!(world.pending(), 1 << VECTOR);
        assert_eq!(world.taken(QUEUE), 0);
        world.command(unmask);
        world.guest.wait_done(QUEUE, 1).unwrap();
        assert_eq!(world.pending(), 0);
        world.command(mask);
        world.command(unmask);
        world.command(LOOK);
        assert_eq!(world.taken(QUEUE), 1, "once");
        world.request();
        world.command(KICK);
        world.guest.wait_done(QUEUE, 2).unwrap();
    }
}

#[test]
fn with_both_masks_the_second_unmask_interrupts() {
    for (first, second) in [(UNMASK, UNMASK_ALL), (UNMASK_ALL, UNMASK)] {
        let world = or_skip!(World::new());
        world.command(MASK);
        world.command(MASK_ALL);
        assert_eq!(world.msix().trigger(VECTOR).unwrap(), Signalled::Pending);
        world.command(first);
        assert_eq!((world.pending(), world.taken(QUEUE)), (1 << VECTOR, 0));
        world.command(second);
        world.guest.wait_done(QUEUE, 1).unwrap();
        assert_eq!(world.pending(), 0);
    }
}

#[test]
fn a_rerouted_vector_interrupts_where_it_leads_now_live_or_masked() {
    let mut world = or_skip!(World::new());
    world.request();
    world.command(KICK);
    world.guest.wait_done(QUEUE, 1).unwrap();
    world.command(REROUTE);
    world.request();
    world.command(KICK);
    world.guest.wait_done(OTHER, 1).unwrap();
    assert_eq!(world.taken(QUEUE), 1);

    let mut world = or_skip!(World::new());
    world.command(MASK);
    world.request();
    world.command(KICK);
    world.command(REROUTE);
    assert_eq!(world.taken(OTHER), 0);
    world.command(UNMASK);
    world.guest.wait_done(OTHER, 1).unwrap();
    assert_eq!(world.taken(QUEUE), 0);
}

#[test]
fn an_exported_descriptor_interrupts_and_cannot_pass_a_mask() {
    for (mask, unmask) in [(MASK, UNMASK), (MASK_ALL, UNMASK_ALL)] {
        let world = or_skip!(World::new());
        let holder = world.holder();
        for count in 1..=10 {
            holder.signal();
            world.guest.wait_done(QUEUE, count).unwrap();
        }
        world.command(mask);
        assert_eq!(world.pending(), 0);
        holder.signal();
        holder.signal();
        assert_eq!(world.pending(), 1 << VECTOR, "the guest sees it");
        assert_eq!(world.taken(QUEUE), 10);
        // The device itself has something to tell too: that is one interrupt still.
        assert_eq!(world.msix().trigger(VECTOR).unwrap(), Signalled::Pending);
        world.command(unmask);
        world.guest.wait_done(QUEUE, 11).unwrap();
        assert_eq!(world.pending(), 0);
        world.command(mask);
        assert_eq!(world.pending(), 0);
        world.command(unmask);
        world.command(LOOK);
        assert_eq!(world.taken(QUEUE), 11, "once");
        holder.signal();
        world.guest.wait_done(QUEUE, 12).unwrap();
    }
}

#[test]
fn an_exported_descriptor_follows_a_rewritten_message() {
    let world = or_skip!(World::new());
    let holder = world.holder();
    world.command(REROUTE);
    holder.signal();
    world.guest.wait_done(OTHER, 1).unwrap();

    let world = or_skip!(World::new());
    let holder = world.holder();
    world.command(MASK);
    holder.signal();
    world.command(REROUTE);
    assert_eq!(world.taken(OTHER), 0);
    world.command(UNMASK);
    world.guest.wait_done(OTHER, 1).unwrap();
    assert_eq!(world.taken(QUEUE), 0);
}

#[test]
fn a_descriptor_is_dead_once_the_guest_has_disabled_msix_and_nothing_stale_is_sent() {
    let world = or_skip!(World::new());
    let holder = world.holder();
    world.command(MASK);
    holder.signal();
    world.command(DISABLE);
    holder.signal();
    assert_eq!(world.msix().trigger(VECTOR).unwrap(), Signalled::Disabled);
    assert_eq!(
        world.msix().export(VECTOR).unwrap_err().kind(),
        std::io::ErrorKind::NotConnected
    );
    world.command(UNMASK);
    world.command(UNMASK_ALL);
    holder.signal();
    assert_eq!(world.pending(), 0);
    assert_eq!(world.taken(QUEUE), 0);
    // Another one works.
    let holder = world.holder();
    holder.signal();
    world.guest.wait_done(QUEUE, 1).unwrap();
}

#[test]
fn signals_from_outside_that_race_with_masks_are_all_told() {
    let world = or_skip!(World::new());
    let holder = world.holder();
    for round in 0..200 {
        thread::scope(|scope| {
            let before = world.taken(QUEUE);
            scope.spawn(|| holder.signal());
            world.command(MASK);
            world.command(UNMASK);
            world.guest.wait_done(QUEUE, before + 1).unwrap();
            assert_eq!(world.taken(QUEUE), before + 1, "in round {round}");
        });
    }
}

#[test]
fn a_doorbell_of_the_vcpu_rings_an_eventfd_and_does_not_exit() {
    let mut eventfd = None;
    let mut world = or_skip!(World::with(|device, machine| {
        let doorbells = KvmDoorbells::new(Arc::clone(machine.vm()));
        eventfd = Some(doorbells.eventfd(0).unwrap());
        device.with_caught_doorbells(doorbells)
    }));
    let eventfd = eventfd.unwrap();
    world.request();
    world.command(KICK);
    assert_eq!(world.used(), 0, "the device was not told");
    assert_eq!(eventfd.read().unwrap(), 1);
    world.device.process(QueueIndex(0));
    world.guest.wait_done(QUEUE, 1).unwrap();
    assert_eq!(world.used(), 1);

    // The doorbell moves with its BAR.
    world.command(MOVE);
    world.command(KICK);
    assert!(eventfd.read().is_err(), "nothing is there any more");
    world.request();
    world.command(KICK_MOVED);
    assert_eq!(world.used(), 1);
    assert_eq!(eventfd.read().unwrap(), 1);
    world.device.process(QueueIndex(0));
    world.guest.wait_done(QUEUE, 2).unwrap();
}
