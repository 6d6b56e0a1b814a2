//! The KVM backend under a running guest: every interrupt is taken as often as its line's contract says.
#![cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

#[allow(dead_code, reason = "shared with tests, which need other parts of it")]
#[path = "support/kvm_guest.rs"]
mod kvm_guest;
#[path = "support/skip.rs"]
mod skip;

use std::{
    sync::{Arc, Condvar, Mutex, OnceLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use devisor::{
    backends::kvm::{Gsi, IrqPulse, KvmIrqs, ResampleIrqfd, Resampler},
    bus::{Bus, BusDevice, read_le, write_le},
    interrupt::{Interrupt, LevelInterrupt, LevelOutput, SharedLine},
};
use kvm_guest::{Action, Controller, Guest, Machine, Program, Sensing, Wire, program::local_apic};
use skip::skipped;

/// The wire of most tests. Both controllers have it, and its priority is above that of [`fence_gsi`] on both.
const DEVICE: Gsi = Gsi(5);
/// A wire of the second 8259.
const FAR_DEVICE: Gsi = Gsi(12);
/// The wire in whose handler the guest waits, with its interrupts off, for [`Gate::open`].
const GATE: Gsi = Gsi(4);
/// Where an 8259 sends requests that went away.
const SPURIOUS: Gsi = Gsi(7);

/// The wire of the lowest priority: the 8259 counts the priorities down, the vectors of the local APIC count them up.
fn fence_gsi(controller: Controller) -> Gsi {
    match controller {
        Controller::Pic => Gsi(6),
        Controller::IoApic => Gsi(1),
    }
}

const DEVICE_BASE: u32 = 0xd000_0000;
const OTHER_BASE: u32 = 0xd000_1000;
const GATE_BASE: u32 = 0xd000_2000;
const DEVICE_PORT: u16 = 0x300;

/// A device with a level line: it is up while any cause is.
struct Device {
    output: LevelOutput<Box<dyn LevelInterrupt>>,
}

impl Device {
    /// The causes, to be read.
    const STATUS: u32 = 0;
    /// Those that are written are cleared.
    const ACK: u32 = 4;
    /// Any write clears one cause.
    const ACK_ONE: u32 = 8;

    fn new(line: impl LevelInterrupt + 'static) -> Arc<Self> {
        let output = LevelOutput::new(Box::new(line) as Box<dyn LevelInterrupt>);
        Arc::new(Self { output })
    }

    fn raise(&self, causes: u64) {
        self.output.update(|pending| pending | causes);
        self.output.settle().unwrap();
    }

    fn clear(&self, causes: u64) {
        self.output.update(|pending| pending & !causes);
        self.output.settle().unwrap();
    }

    /// What a driver does: acknowledges all causes that it sees.
    fn serve_all(base: u32) -> Action {
        Action::CopyLong {
            from: base + Self::STATUS,
            to: base + Self::ACK,
        }
    }

    fn serve_one(base: u32) -> Action {
        Action::WriteLong {
            address: base + Self::ACK_ONE,
            value: 0,
        }
    }
}

impl BusDevice for Device {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        write_le(data, self.output.bits());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset as u32 {
            Self::ACK => self.clear(read_le(data)),
            Self::ACK_ONE => self.clear(self.output.bits() & self.output.bits().wrapping_neg()),
            _ => {}
        }
    }
}

/// A device that a guest's write waits for, so that a test can act while the guest is in a handler.
#[derive(Default)]
struct Gate {
    opened: Mutex<u64>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.opened.lock().unwrap() += 1;
        self.changed.notify_all();
    }
}

impl BusDevice for Gate {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        let opened = self.opened.lock().unwrap();
        let patience = Duration::from_secs(20);
        let (mut opened, timeout) = self
            .changed
            .wait_timeout_while(opened, patience, |opened| *opened == 0)
            .unwrap();
        assert!(!timeout.timed_out(), "the gate was never opened");
        *opened -= 1;
    }
}

/// A port that remembers what was written.
#[derive(Default)]
struct Port(Mutex<Vec<u64>>);

impl BusDevice for Port {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push(read_le(data));
    }
}

/// Whether an interrupt of the local APIC is in service until the guest ends it, as the manual has it. Asked of the
/// host once: some run a guest's kernel code on an instruction emulator, and end its interrupts when they deliver them.
fn in_service_until_eoi() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let (machine, irqs) = machine();
        let line = irqs.claim(DEVICE, "probe").unwrap().irq_pulse().unwrap();
        let controller = Controller::IoApic;
        let vector = u32::from(controller.vector(DEVICE));
        let port = Arc::new(Port::default());
        let mut mmio = Bus::new();
        mmio.insert(DEVICE_BASE.into(), 4, Arc::clone(&port) as _).unwrap();
        let show = Action::CopyLong {
            from: local_apic::IN_SERVICE + vector / 32 * 16,
            to: DEVICE_BASE,
        };
        let running = start(controller, machine, &irqs, &[edge(DEVICE, vec![show])], mmio);
        line.trigger().unwrap();
        running.guest.wait_done(DEVICE, 1).unwrap();
        let shown = port.0.lock().unwrap()[0];
        let as_it_should_be = shown & 1 << (vector % 32) != 0;
        if !as_it_should_be {
            skipped("exact counts of levels at the IOAPIC: this host ends interrupts when it delivers them");
        }
        as_it_should_be
    })
}

/// Checks how often a level of `times` causes was taken. Where the host ends interrupts early, the level is seen again
/// while its handler still runs: each time may count twice.
fn assert_taken(controller: Controller, taken: u64, times: u64) {
    if controller == Controller::Pic || in_service_until_eoi() {
        assert_eq!(taken, times);
    } else {
        assert!((times..=2 * times).contains(&taken), "{taken} instead of {times}");
    }
}

/// Runs a test on both interrupt controllers, or says why on none.
fn on_both(test: fn(Controller)) {
    if let Some(why) = kvm_guest::unavailable() {
        skipped(why);
        return;
    }
    test(Controller::Pic);
    test(Controller::IoApic);
}

fn machine() -> (Machine, KvmIrqs) {
    let machine = Machine::new(Machine::small_memory().unwrap()).unwrap();
    let irqs = KvmIrqs::new(Arc::clone(machine.vm()), 0..=23).unwrap();
    (machine, irqs)
}

fn edge(gsi: Gsi, handler: Vec<Action>) -> Wire {
    let sensing = Sensing::Edge;
    Wire { gsi, sensing, handler }
}

fn level(gsi: Gsi, handler: Vec<Action>) -> Wire {
    let sensing = Sensing::Level;
    Wire { gsi, sensing, handler }
}

/// The guest, with the wires that tell where it is.
struct Running {
    guest: Guest,
    controller: Controller,
    fence: IrqPulse,
    gate: Arc<Gate>,
    gate_line: IrqPulse,
}

fn start(controller: Controller, machine: Machine, irqs: &KvmIrqs, wires: &[Wire], mut mmio: Bus) -> Running {
    let gate = Arc::new(Gate::default());
    mmio.insert(GATE_BASE.into(), 4, Arc::clone(&gate) as _).unwrap();
    let wait = Action::WriteLong {
        address: GATE_BASE,
        value: 0,
    };
    let mut wires = wires.to_vec();
    wires.extend([edge(fence_gsi(controller), vec![]), edge(GATE, vec![wait])]);
    let pulse = |gsi, owner| irqs.claim(gsi, owner).unwrap().irq_pulse().unwrap();
    Running {
        fence: pulse(fence_gsi(controller), "fence"),
        gate,
        gate_line: pulse(GATE, "gate"),
        guest: machine
            .start(Program {
                controller,
                wires,
                mmio,
                ..Default::default()
            })
            .unwrap(),
        controller,
    }
}

impl Running {
    /// How often the guest has taken `gsi`, once it has nothing left to take: an interrupt of the lowest priority comes
    /// after all that are pending. What an irqfd has not delivered yet is not pending.
    fn settled(&self, gsi: Gsi) -> u64 {
        let fence = fence_gsi(self.controller);
        let before = self.guest.taken(fence).count;
        self.fence.trigger().unwrap();
        self.guest.wait_done(fence, before + 1).unwrap();
        self.guest.taken(gsi).count
    }

    /// Lets `act` happen while the guest is in a handler and takes nothing.
    fn while_busy(&self, act: impl FnOnce()) {
        let before = self.guest.taken(GATE).count;
        self.gate_line.trigger().unwrap();
        self.guest.wait_taken(GATE, before + 1).unwrap();
        act();
        self.gate.open();
        self.guest.wait_done(GATE, before + 1).unwrap();
    }
}

/// A [`Resampler`] on a thread of this test.
struct Resampling {
    resampler: Arc<Resampler>,
    thread: Option<JoinHandle<()>>,
}

impl Resampling {
    fn of(line: &Arc<ResampleIrqfd>) -> Self {
        let resampler = Arc::new(Resampler::new().unwrap());
        resampler.add(line).unwrap();
        let thread = thread::spawn({
            let resampler = Arc::clone(&resampler);
            move || resampler.run().unwrap()
        });
        let thread = Some(thread);
        Self { resampler, thread }
    }
}

impl Drop for Resampling {
    fn drop(&mut self) {
        self.resampler.stop().unwrap();
        self.thread.take().unwrap().join().unwrap();
        assert_eq!(self.resampler.failures(), 0);
    }
}

/// Makes a level line on a GSI, with what keeps it going.
type MakeLevelLine = fn(&KvmIrqs, Gsi) -> (Box<dyn LevelInterrupt>, Option<Resampling>);

/// Both kinds of level lines.
const LEVEL_LINES: [MakeLevelLine; 2] = [
    |irqs, gsi| {
        let line = irqs.claim(gsi, "device").unwrap().irq_line().unwrap();
        (Box::new(line), None)
    },
    |irqs, gsi| {
        let line = Arc::new(irqs.claim(gsi, "device").unwrap().resample_irqfd().unwrap());
        let resampling = Resampling::of(&line);
        (Box::new(line), Some(resampling))
    },
];

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within twenty seconds: {what}");
        thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn each_edge_that_follows_the_end_of_the_last_is_taken_once() {
    on_both(|controller| {
        let (machine, irqs) = machine();
        let irqfd = irqs.claim(DEVICE, "disk").unwrap().irqfd().unwrap();
        let pulse = irqs.claim(FAR_DEVICE, "net").unwrap().irq_pulse().unwrap();
        let wires = [edge(DEVICE, vec![]), edge(FAR_DEVICE, vec![])];
        let running = start(controller, machine, &irqs, &wires, Bus::new());
        for count in 1..=100 {
            irqfd.trigger().unwrap();
            assert_eq!(running.guest.wait_done(DEVICE, count).unwrap().count, count);
            pulse.trigger().unwrap();
            assert_eq!(running.guest.wait_done(FAR_DEVICE, count).unwrap().count, count);
        }
        // Dropping it waits for what is under way, so nothing can come after the fence.
        drop(irqfd);
        assert_eq!(running.settled(DEVICE), 100);
        assert_eq!(running.settled(FAR_DEVICE), 100);
        assert_eq!(running.guest.taken(SPURIOUS).count, 0);
    });
}

#[test]
fn edges_while_the_guest_is_busy_are_one_interrupt_afterwards() {
    on_both(|controller| {
        let (machine, irqs) = machine();
        let irqfd = irqs.claim(DEVICE, "disk").unwrap().irqfd().unwrap();
        let pulse = irqs.claim(FAR_DEVICE, "net").unwrap().irq_pulse().unwrap();
        let wires = [edge(DEVICE, vec![]), edge(FAR_DEVICE, vec![])];
        let running = start(controller, machine, &irqs, &wires, Bus::new());
        running.while_busy(|| {
            for _ in 0..10 {
                irqfd.trigger().unwrap();
                pulse.trigger().unwrap();
            }
            drop(irqfd);
        });
        assert_eq!(running.settled(DEVICE), 1);
        assert_eq!(running.settled(FAR_DEVICE), 1);
    });
}

#[test]
fn the_handler_serves_the_device_by_a_port_write_for_each_edge() {
    if let Some(why) = kvm_guest::unavailable() {
        skipped(why);
        return;
    }
    let (machine, irqs) = machine();
    let line = irqs.claim(DEVICE, "disk").unwrap().irqfd().unwrap();
    let port = Arc::new(Port::default());
    let mut ports = Bus::new();
    ports.insert(DEVICE_PORT.into(), 1, Arc::clone(&port) as _).unwrap();
    let ack = Action::OutByte {
        port: DEVICE_PORT,
        value: 0xa5,
    };
    let guest = machine
        .start(Program {
            wires: vec![edge(DEVICE, vec![ack])],
            ports,
            ..Default::default()
        })
        .unwrap();
    for count in 1..=3 {
        let raised = Instant::now();
        line.trigger().unwrap();
        let taken = guest.wait_done(DEVICE, count).unwrap();
        assert!(taken.last.unwrap() > raised);
    }
    assert_eq!(*port.0.lock().unwrap(), [0xa5; 3]);
}

#[test]
fn a_level_that_outlives_the_handler_interrupts_again_until_it_is_served() {
    on_both(|controller| {
        for (line, gsi) in LEVEL_LINES.into_iter().zip([DEVICE, FAR_DEVICE]) {
            let (machine, irqs) = machine();
            let (line, _resampling) = line(&irqs, gsi);
            let device = Device::new(line);
            let mut mmio = Bus::new();
            mmio.insert(DEVICE_BASE.into(), 12, Arc::clone(&device) as _).unwrap();
            let wires = [level(gsi, vec![Device::serve_one(DEVICE_BASE)])];
            let running = start(controller, machine, &irqs, &wires, mmio);

            // While it is busy: a guest that takes an interrupt before `raise` has returned sees the level for as long as
            // that thread is not done with telling it.
            running.while_busy(|| device.raise(0b1_0110_1001));
            running.guest.wait_done(gsi, 5).unwrap();
            assert_eq!(device.output.bits(), 0);
            let taken = running.settled(gsi);
            assert_taken(controller, taken, 5);

            running.while_busy(|| device.raise(1));
            running.guest.wait_done(gsi, taken + 1).unwrap();
            assert_taken(controller, running.settled(gsi) - taken, 1);
        }
    });
}

#[test]
fn a_level_that_nobody_serves_interrupts_on_and_on_and_clearing_it_stops_that() {
    on_both(|controller| {
        for line in LEVEL_LINES {
            let (machine, irqs) = machine();
            let (line, resampling) = line(&irqs, DEVICE);
            let running = start(controller, machine, &irqs, &[level(DEVICE, vec![])], Bus::new());
            line.trigger().unwrap();
            running.guest.wait_taken(DEVICE, 10).unwrap();

            line.clear().unwrap();
            // One may be under way still: a thread that was about to signal, an irqfd that is to be lowered by an EOI.
            drop(resampling);
            drop(line);
            let after = running.settled(DEVICE);
            assert_eq!(running.settled(DEVICE), after);
        }
    });
}

#[test]
fn a_resampled_level_waits_for_the_end_of_the_interrupt_and_for_the_hook() {
    on_both(|controller| {
        let (machine, irqs) = machine();
        let line = irqs.claim(DEVICE, "uart").unwrap().resample_irqfd().unwrap();
        let running = start(controller, machine, &irqs, &[level(DEVICE, vec![])], Bus::new());

        line.trigger().unwrap();
        running.guest.wait_done(DEVICE, 1).unwrap();
        assert_eq!(running.settled(DEVICE), 1, "KVM has lowered the wire");
        line.trigger().unwrap();
        assert_eq!(running.settled(DEVICE), 1, "the level did not rise: it was up");

        // The guest has ended it, and the level is still up.
        assert_eq!(line.resample_fd().read().unwrap(), 1);
        line.guest_done().unwrap();
        running.guest.wait_done(DEVICE, 2).unwrap();

        line.clear().unwrap();
        assert_eq!(line.resample_fd().read().unwrap(), 1);
        line.guest_done().unwrap();
        drop(line);
        assert_eq!(running.settled(DEVICE), 2);
    });
}

#[test]
fn a_level_that_goes_before_the_guest_looks_interrupts_nobody() {
    if let Some(why) = kvm_guest::unavailable() {
        skipped(why);
        return;
    }
    // On the 8259, which follows its wires until the interrupt is acknowledged. The local APIC keeps what it was sent.
    let (machine, irqs) = machine();
    let prompt = irqs.claim(DEVICE, "uart").unwrap().irq_line().unwrap();
    let resampled = irqs.claim(FAR_DEVICE, "rtc").unwrap().resample_irqfd().unwrap();
    let wires = [level(DEVICE, vec![]), level(FAR_DEVICE, vec![])];
    let running = start(Controller::Pic, machine, &irqs, &wires, Bus::new());

    running.while_busy(|| {
        prompt.trigger().unwrap();
        prompt.clear().unwrap();
    });
    assert_eq!(running.settled(DEVICE), 0);
    assert_eq!(running.guest.taken(SPURIOUS).count, 0);

    // An irqfd cannot take back what it signalled, as its documentation says: one without a cause, and no more.
    running.while_busy(|| {
        resampled.trigger().unwrap();
        resampled.clear().unwrap();
    });
    running.guest.wait_done(FAR_DEVICE, 1).unwrap();
    resampled.guest_done().unwrap();
    drop(resampled);
    assert_eq!(running.settled(FAR_DEVICE), 1);
}

#[test]
fn two_devices_on_one_wire_are_both_served() {
    on_both(|controller| {
        for line in LEVEL_LINES {
            let (machine, irqs) = machine();
            let (line, _resampling) = line(&irqs, DEVICE);
            let wire = SharedLine::new(line);
            let (first, second) = (Device::new(wire.source().unwrap()), Device::new(wire.source().unwrap()));
            let mut mmio = Bus::new();
            mmio.insert(DEVICE_BASE.into(), 12, Arc::clone(&first) as _).unwrap();
            mmio.insert(OTHER_BASE.into(), 12, Arc::clone(&second) as _).unwrap();
            let both = vec![Device::serve_all(DEVICE_BASE), Device::serve_one(OTHER_BASE)];
            let running = start(controller, machine, &irqs, &[level(DEVICE, both)], mmio);

            running.while_busy(|| {
                first.raise(0b11);
                second.raise(0b11);
            });
            running.guest.wait_done(DEVICE, 2).unwrap();
            assert_eq!((first.output.bits(), second.output.bits()), (0, 0));
            // The second time for the second device alone.
            let taken = running.settled(DEVICE);
            assert_taken(controller, taken, 2);

            // The first withdraws, and the wire goes on to say what the second does.
            running.while_busy(|| {
                first.raise(1);
                assert!(wire.output().is_up());
                first.clear(1);
                assert!(!wire.output().is_up());
                second.raise(1);
            });
            running.guest.wait_done(DEVICE, taken + 1).unwrap();
            assert_taken(controller, running.settled(DEVICE) - taken, 1);
            assert!(!wire.output().is_up());
        }
    });
}

#[test]
fn no_cause_is_stranded_when_devices_and_guest_race() {
    on_both(|controller| {
        for line in LEVEL_LINES {
            let (machine, irqs) = machine();
            let (line, _resampling) = line(&irqs, DEVICE);
            let wire = SharedLine::new(line);
            let devices = [(); 2].map(|()| Device::new(wire.source().unwrap()));
            let mut mmio = Bus::new();
            for (device, base) in devices.iter().zip([DEVICE_BASE, OTHER_BASE]) {
                mmio.insert(base.into(), 12, Arc::clone(device) as _).unwrap();
            }
            let handler = [DEVICE_BASE, OTHER_BASE].map(Device::serve_all).to_vec();
            let running = start(controller, machine, &irqs, &[level(DEVICE, handler)], mmio);
            thread::scope(|scope| {
                for device in &devices {
                    scope.spawn(|| {
                        for cause in (0..20).cycle().take(1000) {
                            device.raise(1 << cause);
                            if cause == 0 {
                                thread::yield_now();
                            }
                        }
                    });
                }
            });
            for device in &devices {
                eventually("every cause is served", || device.output.bits() == 0);
            }
            let (taken, raised) = (running.settled(DEVICE), 2000);
            assert!((1..=raised).contains(&taken), "{taken}");
        }
    });
}

#[test]
fn a_dropped_line_does_not_interrupt_the_running_guest() {
    on_both(|controller| {
        let (machine, irqs) = machine();
        let line = irqs.claim(DEVICE, "disk").unwrap().irqfd().unwrap();
        let wires = [edge(DEVICE, vec![]), level(FAR_DEVICE, vec![])];
        let running = start(controller, machine, &irqs, &wires, Bus::new());
        line.trigger().unwrap();
        running.guest.wait_done(DEVICE, 1).unwrap();
        let duplicate = line.eventfd().try_clone().unwrap();
        drop(line);
        duplicate.write(1).unwrap();
        assert_eq!(duplicate.read().unwrap(), 1, "nobody took the signal");
        assert_eq!(running.settled(DEVICE), 1);

        // A level that is up when its line goes: no storm, and the GSI is good for another.
        for count in 1..=3 {
            let before = running.guest.taken(FAR_DEVICE).count;
            let line = irqs.claim(FAR_DEVICE, "uart").unwrap().irq_line().unwrap();
            line.trigger().unwrap();
            running.guest.wait_taken(FAR_DEVICE, before + count).unwrap();
            drop(line);
            let after = running.settled(FAR_DEVICE);
            assert_eq!(running.settled(FAR_DEVICE), after);
        }
    });
}
