//! The wiring of a PC, without a hypervisor: what a device's line does at each controller, and what a CPU is told.
#![cfg(feature = "irqchip")]

use std::{
    io,
    sync::{Arc, Mutex},
    thread,
};

use devisor::{
    backends::irqchip::{
        CpuId, Vector,
        ioapic::{IoApicConfig, Pin},
        lapic::{ApicId, CpuEvent, Lint, LocalApic, LocalApicParts, LocalApics, LocalApicsConfig, Request},
        pc::{Gsi, LevelLine, LintOfAll, Pc, PcConfig, PcError, PcState, TIMER_GSI, TIMER_IRQ},
        pic::{Irq, PicError},
    },
    bus::{Bus, BusDevice},
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, NoInterrupt, RequesterId, level_from_fn},
    time::ManualClock,
};

/// The messages that were sent, by their vectors.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Vec<u8>>>);

impl Messages {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MsiSink for Messages {
    fn send(&self, _requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.0.lock().unwrap().push(message.data as u8);
        Ok(())
    }
}

/// A board whose outputs are seen, with a guest that has programmed both controllers: vector 0x20 + IRQ at the 8259s, vector
/// 0x40 + pin at the IOAPIC.
struct Machine {
    pc: Pc,
    clock: Arc<ManualClock>,
    messages: Messages,
    intr: Arc<Mutex<bool>>,
    memory: Bus,
    ports: Bus,
}

fn machine() -> Machine {
    let (messages, clock) = (Messages::default(), Arc::new(ManualClock::default()));
    let intr = Arc::new(Mutex::new(false));
    let seen = Arc::clone(&intr);
    let line = level_from_fn(move |up| {
        *seen.lock().unwrap() = up;
        Ok(())
    });
    let pc = Pc::new(PcConfig::default(), messages.clone(), line, clock.clone(), ()).unwrap();
    let (mut memory, mut ports) = (Bus::new(), Bus::new());
    pc.plug(&mut memory, &mut ports).unwrap();
    let machine = Machine {
        pc,
        clock,
        messages,
        intr,
        memory,
        ports,
    };
    machine.initialize_pics();
    for pin in 0..24 {
        machine.entry(pin, 0x40 + pin);
    }
    machine
}

impl Machine {
    fn out(&self, port: u64, value: u8) {
        self.ports.write(port, &[value]).unwrap();
    }

    fn initialize_pics(&self) {
        for (port, words) in [(0x20, [0x20, 0x04, 0x01]), (0xa0, [0x28, 0x02, 0x01])] {
            self.out(port, 0x11);
            words.into_iter().for_each(|word| self.out(port + 1, word));
        }
    }

    fn entry(&self, pin: u32, low: u32) {
        self.memory.write(0xfec0_0000, &[0x10 + 2 * pin as u8]).unwrap();
        self.memory.write(0xfec0_0010, &low.to_le_bytes()).unwrap();
    }

    /// The vectors that the 8259s give, each finished.
    fn pic_vectors(&self) -> Vec<u8> {
        let mut vectors = Vec::new();
        while *self.intr.lock().unwrap() {
            vectors.push(self.pc.pic().acknowledge().0);
            self.out(0xa0, 0x20);
            self.out(0x20, 0x20);
        }
        vectors
    }
}

#[test]
fn an_irq_is_at_both_controllers_and_the_timers_is_at_pin_2() {
    let machine = machine();
    for irq in (0..16).filter(|irq| *irq != 2) {
        let line = machine.pc.level_line(Irq(irq)).unwrap();
        line.trigger().unwrap();
        let pin = if irq == 0 { 2 } else { irq };
        assert_eq!(line.gsi(), Gsi(pin.into()));
        assert_eq!(machine.messages.take(), [0x40 + pin], "IRQ {irq}");
        assert_eq!(machine.pic_vectors(), [0x20 + irq], "IRQ {irq}");
        line.clear().unwrap();
        machine.pc.edge_line(Irq(irq)).unwrap().trigger().unwrap();
        assert_eq!(machine.messages.take(), [0x40 + pin], "IRQ {irq}");
        assert_eq!(machine.pic_vectors(), [0x20 + irq], "IRQ {irq}");
    }
}

#[test]
fn a_gsi_is_its_pin_with_what_is_soldered_to_it() {
    let machine = machine();
    for gsi in 0..24 {
        machine.pc.gsi_edge_line(Gsi(gsi)).unwrap().trigger().unwrap();
        assert_eq!(machine.messages.take(), [0x40 + gsi as u8], "GSI {gsi}");
        let expected: &[u8] = match gsi {
            2 => &[0x20],
            1 | 3..16 => &[0x20 + gsi as u8],
            _ => &[],
        };
        assert_eq!(machine.pic_vectors(), expected, "GSI {gsi}");
    }
}

#[test]
fn there_is_no_irq_2_and_no_pin_above_the_last() {
    let pc = machine().pc;
    let refused = PcError::Pic(PicError::NoSuchIrq(Irq(2)));
    assert_eq!(pc.level_line(Irq(2)).unwrap_err(), refused);
    assert_eq!(pc.edge_line(Irq(2)).unwrap_err(), refused);
    assert!(pc.level_line(Irq(16)).is_err());
    assert!(pc.gsi_level_line(Gsi(24)).is_err());
    assert_eq!((Gsi::of_irq(TIMER_IRQ), TIMER_GSI.irq()), (TIMER_GSI, Some(TIMER_IRQ)));
    assert_eq!((Gsi(0).irq(), Gsi(16).irq()), (None, None));
}

#[test]
fn an_ioapic_too_small_for_the_isa_bus_is_refused() {
    let config = |pins| PcConfig {
        ioapic: IoApicConfig {
            pins,
            ..Default::default()
        },
        ..Default::default()
    };
    let pc = |pins| {
        Pc::new(
            config(pins),
            Messages::default(),
            NoInterrupt,
            ManualClock::default(),
            (),
        )
    };
    assert_eq!(pc(15).unwrap_err(), PcError::TooFewPins(15));
    assert!(matches!(pc(241), Err(PcError::IoApic(_))));
    let pc = pc(240).unwrap();
    assert!(pc.gsi_level_line(Gsi(239)).is_ok());
}

#[test]
fn the_timer_interrupts_at_irq_0() {
    let machine = machine();
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        machine.out(port, value); // counter 0, mode 2, 100 times a second
    }
    // OUT has risen with the control word.
    assert_eq!(
        (machine.messages.take(), machine.pic_vectors()),
        (vec![0x42], vec![0x20])
    );
    let deadline = machine.pc.pit().deadline().unwrap();
    assert_eq!(deadline.as_millis(), 10);
    machine.clock.advance_to(deadline);
    machine.pc.pit().expire();
    assert_eq!(
        (machine.messages.take(), machine.pic_vectors()),
        (vec![0x42], vec![0x20])
    );
    let mut port_b = [0xff];
    machine.ports.read(0x61, &mut port_b).unwrap();
    assert_eq!(port_b[0] & 0xc3, 0);
}

#[test]
fn lines_of_one_irq_are_a_wired_or_and_dropping_one_lets_go() {
    let machine = machine();
    machine.entry(5, 1 << 15 | 0x45);
    machine.out(0x4d0, 1 << 5); // ELCR: level
    let lines = [0, 1].map(|_| machine.pc.level_line(Irq(5)).unwrap());
    for line in &lines {
        line.trigger().unwrap();
        line.trigger().unwrap();
    }
    let [first, second] = lines;
    first.clear().unwrap();
    assert!(*machine.intr.lock().unwrap());
    assert_eq!(machine.messages.take(), [0x45]);
    machine.pc.eoi(Vector(0x45));
    assert_eq!(machine.messages.take(), [0x45], "it is still up");
    drop(second);
    assert!(!*machine.intr.lock().unwrap());
    machine.pc.eoi(Vector(0x45));
    assert_eq!(machine.messages.take(), []);
}

/// Two threads move one line; what was wanted last is what both controllers have, whoever was slower.
#[test]
fn both_controllers_have_the_level_that_was_last_wanted() {
    let machine = machine();
    machine.entry(5, 1 << 15 | 0x45);
    machine.out(0x4d0, 1 << 5);
    let line = machine.pc.level_line(Irq(5)).unwrap();
    for round in 0..200 {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        line.trigger().unwrap();
                        line.clear().unwrap();
                    }
                });
            }
        });
        assert!(!*machine.intr.lock().unwrap(), "round {round}");
        machine.pc.eoi(Vector(0x45));
        machine.messages.take();
        machine.pc.eoi(Vector(0x45));
        assert_eq!(machine.messages.take(), [], "round {round}");
    }
}

/// INTR rises while the line is still on its way to the IOAPIC, and whoever hears it lowers the line.
#[test]
fn a_line_that_is_lowered_while_it_rises_is_down_at_both_controllers() {
    let line: Arc<Mutex<Option<Arc<LevelLine>>>> = Arc::default();
    let (messages, clock) = (Messages::default(), Arc::new(ManualClock::default()));
    let held = Arc::clone(&line);
    let intr = level_from_fn(move |up| {
        let line = held.lock().unwrap().clone();
        line.filter(|_| up).map_or(Ok(()), |line| line.clear())
    });
    let pc = Pc::new(PcConfig::default(), messages.clone(), intr, clock, ()).unwrap();
    for (port, word) in [(0, 0x11), (1, 0x20), (1, 0x04), (1, 0x01)] {
        pc.pic().master().write(port, &[word]);
    }
    pc.ioapic().write(0, &[0x10 + 2 * 5]);
    pc.ioapic().write(0x10, &(1_u32 << 15 | 0x45).to_le_bytes());
    let wire = Arc::new(pc.level_line(Irq(5)).unwrap());
    *line.lock().unwrap() = Some(Arc::clone(&wire));
    wire.trigger().unwrap();
    messages.take();
    pc.eoi(Vector(0x45));
    assert_eq!(messages.take(), [], "the pin is down");
    assert_eq!(pc.pic().save().master.lines, 0);
    *line.lock().unwrap() = None;
}

#[test]
fn a_wire_to_all_cpus_reaches_the_others_also_if_one_refuses_to_be_woken() {
    let clock = Arc::new(ManualClock::default());
    let wakes: [Box<dyn LevelInterrupt>; 2] = [
        Box::new(level_from_fn(|_| Err(io::Error::other("refused")))),
        Box::new(NoInterrupt),
    ];
    let parts = (0..).zip(wakes).map(|(id, wake)| LocalApicParts {
        id: ApicId(id),
        wake,
        alarm: Box::new(()),
    });
    let apics = LocalApics::new(LocalApicsConfig::default(), clock, parts.collect()).unwrap();
    let cpus = [0, 1].map(|cpu| apics.cpu(CpuId(cpu)).unwrap());
    start(&apics, &cpus[1]);
    cpus.iter().for_each(|cpu| cpu.write_msr(0x1b, 0).unwrap());
    let intr = LintOfAll::new(&apics, Lint::Zero).unwrap();
    intr.trigger().unwrap_err();
    for cpu in &cpus {
        assert_eq!(cpu.request(), Some(Request::External));
    }
    intr.clear().unwrap_err();
    for cpu in &cpus {
        assert_eq!(cpu.request(), None);
    }
}

#[test]
fn a_reset_masks_the_ioapic_and_ends_the_timer_but_lines_stay() {
    let machine = machine();
    let line = machine.pc.level_line(Irq(4)).unwrap();
    line.trigger().unwrap();
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        machine.out(port, value); // counter 0, mode 2
    }
    assert!(machine.pc.pit().deadline().is_some());
    machine.messages.take();
    machine.pc.reset();
    assert!(!*machine.intr.lock().unwrap());
    machine.entry(4, 1 << 15 | 0x44);
    assert_eq!(machine.messages.take(), [0x44], "the line is still up");
    assert_eq!(machine.pc.pit().deadline(), None);
}

#[test]
fn a_saved_board_goes_on_in_another() {
    let machine = machine();
    machine.entry(4, 1 << 15 | 0x44);
    let line = machine.pc.level_line(Irq(4)).unwrap();
    line.trigger().unwrap();
    assert_eq!(machine.messages.take(), [0x44]);
    let state = machine.pc.save();

    let other = self::machine();
    other.pc.restore(&state).unwrap();
    assert_eq!(other.pc.save(), state);
    assert_eq!(other.messages.take(), [], "it is in service");
    assert!(*other.intr.lock().unwrap());
    let line = other.pc.level_line(Irq(4)).unwrap();
    line.trigger().unwrap();
    other.pc.eoi(Vector(0x44));
    assert_eq!(other.messages.take(), [0x44]);

    let mut broken = state.clone();
    broken.ioapic.pins.pop();
    assert!(other.pc.restore(&broken).is_err());
}

#[test]
fn registers_are_where_a_pc_has_them_and_nothing_else_may_be_there() {
    let machine = machine();
    for port in [0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x4d0, 0x4d1] {
        assert!(machine.ports.read(port, &mut [0]).is_ok(), "{port:#x}");
    }
    let (mut memory, mut ports) = (Bus::new(), machine.ports.clone());
    assert!(machine.pc.plug(&mut memory, &mut ports).is_err());
    assert_eq!(machine.pc.ioapic().message(Pin(3)).unwrap().unwrap().data, 0x43);
    assert!(machine.pc.ioapic().message(Pin(24)).is_err());
}

/// The start-up message that CPU 1 waits for.
fn start(apics: &LocalApics, cpu: &LocalApic) {
    let (address, data) = (0xfee0_1000, 0x4608);
    apics.send(RequesterId(0), MsiMessage { address, data }).unwrap();
    assert_eq!(cpu.next_event(), Some(CpuEvent::StartUp(Vector(8))));
}

/// A board with local APICs, of which two are enabled.
fn with_local_apics() -> (Pc, [LocalApic; 2], Bus) {
    let clock = Arc::new(ManualClock::default());
    let parts = [0, 1].map(|id| LocalApicParts {
        id: ApicId(id),
        wake: Box::new(NoInterrupt),
        alarm: Box::new(()),
    });
    let apics = LocalApics::new(LocalApicsConfig::default(), clock.clone(), parts.into()).unwrap();
    let pc = Pc::with_local_apics(PcConfig::default(), &apics, clock, ()).unwrap();
    let (mut memory, mut ports) = (Bus::new(), Bus::new());
    pc.plug(&mut memory, &mut ports).unwrap();
    for (port, words) in [(0x20, [0x20, 0x04, 0x01]), (0xa0, [0x28, 0x02, 0x01])] {
        ports.write(port, &[0x11]).unwrap();
        words
            .into_iter()
            .for_each(|word| ports.write(port + 1, &[word]).unwrap());
    }
    let cpus = [0, 1].map(|cpu| apics.cpu(CpuId(cpu)).unwrap());
    start(&apics, &cpus[1]);
    for cpu in &cpus {
        cpu.write(0x0f0, &0x1ff_u32.to_le_bytes());
        cpu.write(0x350, &0x700_u32.to_le_bytes()); // LINT0: ExtINT
    }
    (pc, cpus, memory)
}

#[test]
fn intr_is_lint0_of_every_cpu() {
    let (pc, [first, second], _) = with_local_apics();
    let line = pc.edge_line(Irq(9)).unwrap();
    line.trigger().unwrap();
    assert_eq!(first.request(), Some(Request::External));
    assert_eq!(second.request(), Some(Request::External));
    assert_eq!(first.acknowledge(), Some(Request::External));
    assert_eq!(pc.pic().acknowledge(), Vector(0x29));
    assert_eq!((first.request(), second.request()), (None, None), "INTR is down");
}

#[test]
fn an_eoi_of_a_cpu_reaches_the_ioapic_as_long_as_the_board_is_there() {
    let (pc, [first, second], memory) = with_local_apics();
    second.write(0x350, &0x1_0000_u32.to_le_bytes());
    first.write(0x350, &0x1_0000_u32.to_le_bytes());
    for (index, value) in [(0x10 + 2 * 20 + 1, 1_u32 << 24), (0x10 + 2 * 20, 1 << 15 | 0x51)] {
        memory.write(0xfec0_0000, &[index]).unwrap();
        memory.write(0xfec0_0010, &value.to_le_bytes()).unwrap();
    }
    let line = pc.gsi_level_line(Gsi(20)).unwrap();
    line.trigger().unwrap();
    for _ in 0..2 {
        assert_eq!(second.acknowledge(), Some(Request::Vector(Vector(0x51))));
        assert_eq!((second.acknowledge(), first.acknowledge()), (None, None));
        second.write(0x0b0, &[0; 4]); // EOI: the line is still up
    }
    assert_eq!(second.acknowledge(), Some(Request::Vector(Vector(0x51))));
    let ioapic = pc.ioapic().clone();
    drop(pc);
    second.write(0x0b0, &[0; 4]);
    assert_eq!(second.acknowledge(), None, "nobody tells the IOAPIC");
    ioapic.eoi(Vector(0x51));
    assert_eq!(second.acknowledge(), Some(Request::Vector(Vector(0x51))));
}

#[test]
fn lint1_of_all_is_an_nmi_for_all() {
    let clock = Arc::new(ManualClock::default());
    let parts = [0, 1].map(|id| LocalApicParts {
        id: ApicId(id),
        wake: Box::new(NoInterrupt),
        alarm: Box::new(()),
    });
    let apics = LocalApics::new(LocalApicsConfig::default(), clock, parts.into()).unwrap();
    let cpus = [0, 1].map(|cpu| apics.cpu(CpuId(cpu)).unwrap());
    start(&apics, &cpus[1]);
    for cpu in &cpus {
        cpu.write(0x0f0, &0x1ff_u32.to_le_bytes());
        cpu.write(0x360, &0x400_u32.to_le_bytes()); // LINT1: NMI
    }
    let nmi = LintOfAll::new(&apics, Lint::One).unwrap();
    nmi.trigger().unwrap();
    for cpu in &cpus {
        assert_eq!(cpu.next_event(), Some(CpuEvent::Nmi));
        assert_eq!(cpu.next_event(), None);
    }
    nmi.clear().unwrap();
}

/// The timer's IRQ waits at the 8259s after a move that began when the timer's time had come.
fn a_tick_that_comes_with_the_save_is_there_after_a_move(control: u8) {
    let board = || {
        let clock = Arc::new(ManualClock::default());
        (
            Pc::new(PcConfig::default(), Messages::default(), NoInterrupt, clock.clone(), ()).unwrap(),
            clock,
        )
    };
    let (pc, clock) = board();
    let (mut memory, mut ports) = (Bus::new(), Bus::new());
    pc.plug(&mut memory, &mut ports).unwrap();
    for (port, word) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] {
        ports.write(port, &[word]).unwrap();
    }
    ports.write(0x43, &[control]).unwrap();
    for byte in 11932_u16.to_le_bytes() {
        ports.write(0x40, &[byte]).unwrap();
    }
    // OUT was low before the control word: that is a tick, too.
    assert_eq!(pc.pic().acknowledge(), Vector(0x20));
    ports.write(0x20, &[0x20]).unwrap();
    assert!(!pc.pic().intr());
    clock.advance(pc.pit().deadline().unwrap());
    let state = pc.save();
    assert!(pc.pic().intr());
    let (other, _) = board();
    other.restore(&state).unwrap();
    assert!(other.pic().intr());
    assert_eq!(other.save(), state);
}

#[test]
fn no_tick_of_the_timer_is_lost_by_a_save() {
    a_tick_that_comes_with_the_save_is_there_after_a_move(0x34);
    a_tick_that_comes_with_the_save_is_there_after_a_move(0x38);
}

#[test]
fn a_state_of_which_one_part_is_refused_changes_nothing() {
    let (pc, _, _) = with_local_apics();
    let good = pc.save();
    type Change = fn(&mut PcState);
    let changes: [Change; 3] = [
        |state| state.pic.master.elcr = 1,
        |state| _ = state.ioapic.pins.pop(),
        |state| state.pit.port_b = 0xff,
    ];
    for change in changes {
        let mut state = good.clone();
        (state.pic.slave.imr, state.ioapic.id, state.pit.port_b) = (0x55, 7, 3);
        change(&mut state);
        pc.restore(&state).unwrap_err();
        assert_eq!(pc.save(), good);
    }
}

#[test]
fn pci_wires_are_active_low_and_a_wired_or_and_stay_so_over_a_reset_and_a_move() {
    let machine = machine();
    let wires = machine.pc.pci_wires(Gsi(16)).unwrap();
    let entries = || (16..20).for_each(|pin| machine.entry(pin, 0xa040 + pin));
    entries();
    assert_eq!(machine.messages.take(), [], "idle");
    // A second device of another bus on the same wires.
    let others = machine.pc.pci_wires(Gsi(16)).unwrap();
    for (pin, (wire, other)) in (0x50..).zip(wires.iter().zip(&others)) {
        wire.trigger().unwrap();
        other.trigger().unwrap();
        assert_eq!(machine.messages.take(), [pin]);
        wire.clear().unwrap();
        machine.pc.eoi(Vector(pin));
        assert_eq!(machine.messages.take(), [pin], "the other device");
        other.clear().unwrap();
        machine.pc.eoi(Vector(pin));
        assert_eq!(machine.messages.take(), []);
    }
    wires[1].trigger().unwrap();
    assert_eq!(machine.messages.take(), [0x51]);
    let state = machine.pc.save();
    wires[1].clear().unwrap();
    machine.pc.reset();
    entries();
    assert_eq!(machine.messages.take(), [], "idle after a reset");

    // The devices may come after the state.
    let other = self::machine();
    (16..20).for_each(|pin| other.entry(pin, 0x1_0000));
    other.messages.take();
    let wires = other.pc.pci_wires(Gsi(16)).unwrap();
    other.pc.restore(&state).unwrap();
    wires[1].trigger().unwrap();
    other.pc.eoi(Vector(0x51));
    assert_eq!(other.messages.take(), [0x51], "it is still up");
    wires[1].clear().unwrap();
    other.pc.eoi(Vector(0x51));
    assert_eq!(other.messages.take(), []);
    // What is no wire of PCI is as it was.
    let isa = other.pc.level_line(Irq(9)).unwrap();
    other.entry(9, 0x8049);
    assert_eq!(other.messages.take(), []);
    isa.trigger().unwrap();
    assert_eq!(other.messages.take(), [0x49]);
}

#[test]
fn four_wires_that_are_not_all_there_change_no_pin() {
    let machine = machine();
    assert!(machine.pc.pci_wires(Gsi(21)).is_err());
    machine.entry(23, 0x8057);
    assert_eq!(machine.messages.take(), [], "active high, and idle");
}

fn irr(apic: &LocalApic) -> [u64; 4] {
    apic.save().irr
}

/// Vector 0x81.
const IRR_81: [u64; 4] = [0, 0, 2, 0];

/// An IOAPIC's Remote IRR says that a local APIC has *accepted* (82093AA, 3.2.4).
#[test]
fn a_level_that_came_while_its_cpu_was_disabled_by_software_is_delivered_once_it_is_enabled() {
    let (pc, [first, _], memory) = with_local_apics();
    first.write(0x0f0, &0xff_u32.to_le_bytes());
    let write = |index: u8, value: u32| {
        memory.write(0xfec0_0000, &[index]).unwrap();
        memory.write(0xfec0_0010, &value.to_le_bytes()).unwrap();
    };
    write(0x10 + 2 * 19, 0x8081);
    let remote_irr = || pc.ioapic().save().pins[19].entry & 1 << 14 != 0;
    let line = pc.gsi_level_line(Gsi(19)).unwrap();
    line.trigger().unwrap();
    assert!(!remote_irr() && irr(&first) == [0; 4]);
    first.write(0x0f0, &0x1ff_u32.to_le_bytes());
    assert!(remote_irr() && irr(&first) == IRR_81, "it is still up");
    line.clear().unwrap();
    line.trigger().unwrap();
    assert!(remote_irr() && irr(&first) == IRR_81);
    assert_eq!(first.acknowledge(), Some(Request::Vector(Vector(0x81))));
    line.clear().unwrap();
    first.write(0x0b0, &[0; 4]);
    assert!(!remote_irr() && first.acknowledge().is_none(), "once");
}

#[test]
fn a_level_for_nobody_is_delivered_to_whoever_is_addressed_by_it_then() {
    // A CPU that is there again, that gets the ID or the logical ID, that is restored.
    type Appear = fn(&LocalApic);
    let appear: [(u32, u32, Appear); 4] = [
        (0x5a00_0000, 0x8081, |cpu| {
            cpu.write(0x020, &0x5a00_0000_u32.to_le_bytes())
        }),
        (0x0800_0000, 0x8881, |cpu| {
            cpu.write(0x0d0, &0x0800_0000_u32.to_le_bytes())
        }),
        (0x0800_0000, 0x8981, |cpu| {
            cpu.write(0x0d0, &0x0800_0000_u32.to_le_bytes())
        }),
        (0x0100_0000, 0x8081, |_| ()),
    ];
    for (high, low, appear) in appear {
        let (pc, [_, second], memory) = with_local_apics();
        let state = second.save();
        let restored = high == 0x0100_0000;
        if restored {
            second.write_msr(0x1b, 0xfee0_0000).unwrap();
        }
        for (index, value) in [(0x11 + 2 * 19, high), (0x10 + 2 * 19, low)] {
            memory.write(0xfec0_0000, &[index]).unwrap();
            memory.write(0xfec0_0010, &value.to_le_bytes()).unwrap();
        }
        let line = pc.gsi_level_line(Gsi(19)).unwrap();
        line.trigger().unwrap();
        assert_eq!(pc.ioapic().save().pins[19].entry & 1 << 14, 0);
        match restored {
            true => second.restore(&state).unwrap(),
            false => appear(&second),
        }
        assert_eq!(irr(&second), IRR_81, "{low:#x} to {high:#x}");
        assert_ne!(pc.ioapic().save().pins[19].entry & 1 << 14, 0);
    }
}

/// In whichever order the message finds the local APIC disabled, is told so, and the local APIC is enabled.
#[test]
fn a_level_that_comes_while_its_cpu_is_being_enabled_is_not_left_behind() {
    let (pc, [first, _], memory) = with_local_apics();
    for (index, value) in [(0x11 + 2 * 19, 0), (0x10 + 2 * 19, 0x8081_u32)] {
        memory.write(0xfec0_0000, &[index]).unwrap();
        memory.write(0xfec0_0010, &value.to_le_bytes()).unwrap();
    }
    let line = pc.gsi_level_line(Gsi(19)).unwrap();
    let svr = |value: u32| first.write(0x0f0, &value.to_le_bytes());
    for round in 0..2000 {
        svr(0xff);
        thread::scope(|scope| {
            scope.spawn(|| line.trigger().unwrap());
            // It is disabled and enabled again meanwhile, too.
            (0..round % 3).for_each(|_| {
                svr(0x1ff);
                svr(0xff);
            });
            svr(0x1ff);
        });
        let taken = first.acknowledge();
        assert_eq!(taken, Some(Request::Vector(Vector(0x81))), "round {round}");
        line.clear().unwrap();
        first.write(0x0b0, &[0; 4]);
        assert_eq!(first.acknowledge(), None, "round {round}");
    }
}
