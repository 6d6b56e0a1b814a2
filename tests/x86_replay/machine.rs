//! Our parts, each driven by what drove QEMU's: so each is compared alone, and what one has wrong the others do not hide.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use devisor::{
    backends::irqchip::{
        CpuId,
        ioapic::{self, IoApic, IoApicConfig, Pin},
        lapic::{
            ApicId, CpuEvent, Lint, LocalApic, LocalApicHook, LocalApicParts, LocalApics, LocalApicsConfig, Request,
            Vector,
        },
        pc::LintOfAll,
        pic::{self, Irq, Pic},
        pit::Pit,
    },
    bus::{BusDevice, read_le, write_le},
    interrupt::{Acceptance, LevelInterrupt, MsiMessage, MsiSink, NoInterrupt, RequesterId, level_from_fn},
    time::{Clock, ManualClock},
};

use super::{
    counts::Counts,
    time::{LATE, Window},
};

const PINS: u32 = 24;
const IRQS: u8 = 16;
/// Counts of a local APIC's timer in a second, with QEMU.
const TIMER_HZ: u64 = 1_000_000_000;
/// By how many periods the guest can see that the 8254 counted on before QEMU's main loop looked at it.
const AHEAD: usize = 5;

// Registers of a local APIC.
const SVR: u64 = 0xf0;
const ENABLED: u64 = 1 << 8;
const MASKED: u64 = 1 << 16;
const LINT0: u64 = 0x350;
const LVT: [u64; 6] = [LVT_TIMER, 0x330, 0x340, LINT0, 0x360, 0x370];
const ICR: u64 = 0x300;
const LVT_TIMER: u64 = 0x320;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const PORT_B: u64 = 0x61;

pub struct Machine {
    apics: LocalApics,
    cpus: Vec<LocalApic>,
    clock: Arc<ManualClock>,
    _hooks: [LocalApicHook; 2],
    /// The vector of the last start-up message.
    start_up: Vector,
    ioapic: IoApic,
    sent: Arc<Sent>,
    pins: Vec<(ioapic::LevelLine, bool)>,
    pic: Pic,
    /// IRQ 2 is the second 8259.
    irqs: Vec<Option<(pic::LevelLine, bool)>>,
    pit: Pit,
    pit_clock: Arc<ManualClock>,
    out: Arc<Output>,
    history: History,
    /// When the next event happened.
    window: Window,
}

/// What the guest has done by which QEMU and we differ.
#[derive(Clone, Default)]
struct History {
    /// Of each CPU, the entries of the local vector table that it has not written since it disabled its local APIC.
    disabled: BTreeSet<(usize, u64)>,
    /// It has programmed counter 2 of the 8254.
    speaker: bool,
    /// Counter 0 has got a control word, and no count since.
    stopped: bool,
    /// Rises of the 8254's first output that need no other of QEMU's.
    risen: usize,
}

/// What takes our IOAPIC's messages: the local APICs, and whoever compares them.
struct Sent {
    apics: LocalApics,
    messages: Mutex<VecDeque<MsiMessage>>,
}

impl MsiSink for Sent {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.offer(requester, message).map(|_| ())
    }

    fn offer(&self, requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        self.messages.lock().unwrap().push_back(message);
        self.apics.offer(requester, message)
    }
}

/// OUT of counter 0.
#[derive(Default)]
struct Output {
    up: AtomicBool,
    rises: AtomicUsize,
}

impl Output {
    fn line(self: &Arc<Self>) -> impl LevelInterrupt + use<> {
        let out = Arc::clone(self);
        level_from_fn(move |up| {
            if !out.up.swap(up, SeqCst) && up {
                out.rises.fetch_add(1, SeqCst);
            }
            Ok(())
        })
    }
}

fn hex(word: &str) -> u64 {
    u64::from_str_radix(word, 16).unwrap_or_else(|_| panic!("{word:?} is no number"))
}

fn read(device: &dyn BusDevice, offset: u64, size: usize) -> u64 {
    let mut data = [0; 4];
    device.read(offset, &mut data[..size]);
    read_le(&data[..size])
}

fn write(device: &dyn BusDevice, offset: u64, size: usize, value: u64) {
    let mut data = [0; 4];
    write_le(&mut data[..size], value);
    device.write(offset, &data[..size]);
}

fn set(line: &impl LevelInterrupt, level: bool) {
    match level {
        true => line.trigger(),
        false => line.clear(),
    }
    .unwrap();
}

impl Machine {
    pub fn new(cpus: u32) -> Self {
        Self::at(cpus, Duration::ZERO, Duration::ZERO, Arc::default())
    }

    fn at(cpus: u32, now: Duration, pit_now: Duration, out: Arc<Output>) -> Self {
        let clock = Arc::new(ManualClock::new(now));
        let parts = (0..cpus).map(|id| LocalApicParts {
            id: ApicId(id),
            wake: Box::new(NoInterrupt),
            alarm: Box::new(()),
        });
        let config = LocalApicsConfig {
            timer_hz: TIMER_HZ,
            // QEMU: neither is there.
            x2apic: false,
            eoi_broadcast_suppression: false,
            ..LocalApicsConfig::default()
        };
        let apics = LocalApics::new(config, Arc::clone(&clock) as Arc<dyn Clock>, parts.collect()).unwrap();
        let sent = Arc::new(Sent {
            apics: apics.clone(),
            messages: Mutex::default(),
        });
        let ioapic = IoApic::new(IoApicConfig::default(), Arc::clone(&sent)).unwrap();
        let [eoi, retry] = [(); 2].map(|()| ioapic.clone());
        let hooks = [
            apics.on_eoi(move |vector| eoi.eoi(vector)),
            apics.on_accepting(move || retry.retry()),
        ];
        let pic = Pic::new(LintOfAll::new(&apics, Lint::Zero).unwrap());
        let pit_clock = Arc::new(ManualClock::new(pit_now));
        Self {
            cpus: (0..cpus).map(|cpu| apics.cpu(CpuId(cpu)).unwrap()).collect(),
            clock,
            _hooks: hooks,
            start_up: Vector(0),
            pins: (0..PINS)
                .map(|pin| (ioapic.level_line(Pin(pin)).unwrap(), false))
                .collect(),
            irqs: (0..IRQS)
                .map(|irq| pic.level_line(Irq(irq)).ok().map(|line| (line, false)))
                .collect(),
            pit: Pit::new(out.line(), Arc::clone(&pit_clock), ()),
            apics,
            ioapic,
            sent,
            pic,
            pit_clock,
            out,
            history: History::default(),
            window: Window::default(),
        }
    }

    /// Whether no message of our IOAPIC waits to be compared.
    pub fn has_said_all(&self) -> bool {
        self.sent.messages.lock().unwrap().is_empty()
    }

    /// The same state, in other parts.
    pub fn migrated(self) -> Self {
        let (pit, pic, ioapic) = (self.pit.save(), self.pic.save(), self.ioapic.save());
        let cpus: Vec<_> = self.cpus.iter().map(LocalApic::save).collect();
        // Its line has risen already.
        let out = Arc::clone(&self.out);
        let mut new = Self::at(cpus.len() as u32, self.clock.now(), self.pit_clock.now(), out);
        for (apic, state) in new.cpus.iter().zip(&cpus) {
            apic.restore(state).unwrap();
        }
        new.pic.restore(&pic).unwrap();
        new.ioapic.restore(&ioapic).unwrap();
        new.pit.restore(&pit).unwrap();
        for (new, old) in new.pins.iter_mut().zip(&self.pins).filter(|(_, old)| old.1) {
            set(&new.0, old.1);
            new.1 = true;
        }
        for (new, old) in new.irqs.iter_mut().flatten().zip(self.irqs.iter().flatten()) {
            set(&new.0, old.1);
            new.1 = old.1;
        }
        assert!(new.has_said_all(), "what was said is said again");
        assert_eq!((new.pit.save(), new.pic.save(), new.ioapic.save()), (pit, pic, ioapic));
        assert!(new.cpus.iter().map(LocalApic::save).eq(cpus));
        new.start_up = self.start_up;
        new.history = self.history.clone();
        new.window = self.window;
        new
    }

    /// The recording has ended: ours has nothing to say that QEMU's has not said.
    pub fn end(&self) {
        assert!(self.has_said_all());
        assert!(self.ahead() <= AHEAD);
        for cpu in &self.cpus {
            assert!(cpu.deadline().is_none_or(|deadline| deadline + LATE > self.window.to));
        }
    }

    pub fn event(&mut self, line: &str, counts: &mut Counts) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| hex(words[index]);
        let kind = words[0];
        if !["g", "t"].contains(&kind)
            && let Some(message) = self.sent.messages.lock().unwrap().front()
        {
            return Err(format!("ours has sent {message:x?} before"));
        }
        match kind {
            "t" => self.window = Window::new(number(1), number(2)),
            "lr" => self.read_local_apic(number(1) as usize, number(2), number(3), counts)?,
            "lw" => self.write_local_apic(number(1) as usize, number(2), number(3), counts)?,
            "ir" => {
                // IOAPICID. QEMU: the arbitration ID in the same bits, and nobody's.
                let ours = read(&self.ioapic, number(1), 4);
                counts.compare(ours, number(2), !0)?;
            }
            "iw" => write(&self.ioapic, number(1), 4, number(2)),
            "pr" => self.read_port(number(1), number(2), counts)?,
            "pw" => self.write_port(number(1), number(2)),
            "p" => self.irq(number(1) as usize, number(2) != 0, counts)?,
            "l" => self.pin(number(1) as usize, number(2) != 0),
            "g" => {
                let ours = self.sent.messages.lock().unwrap().pop_front();
                let ours = ours.ok_or("ours has sent nothing")?;
                // QEMU: neither the redirection hint of lowest priority, nor the level of a level.
                let theirs = (number(1), number(2) as u32);
                if (ours.address & !(1 << 3), ours.data & !(1 << 14)) != theirs {
                    return Err(format!("ours has sent {ours:x?}"));
                }
                counts.messages += 1;
            }
            "m" => {
                let (address, data) = (number(1), number(2) as u32);
                self.apics.send(RequesterId(8), MsiMessage { address, data }).unwrap();
            }
            "x" => self.expire(counts)?,
            "i" => self.interrupt(number(1) as usize, Vector(number(2) as u8), counts)?,
            "c" => match self.cpus[number(1) as usize].next_event() {
                Some(CpuEvent::Init) => counts.started += 1,
                other => return Err(format!("ours has heard {other:?}")),
            },
            _ => panic!("{line:?} is no event"),
        }
        Ok(())
    }

    /// What a CPU hears before it does something.
    fn hear(&self, cpu: usize, counts: &mut Counts) -> Result<(), String> {
        while let Some(event) = self.cpus[cpu].next_event() {
            if event != CpuEvent::StartUp(self.start_up) {
                return Err(format!("ours has heard {event:?}"));
            }
            counts.started += 1;
        }
        Ok(())
    }

    /// The time of the local APICs, but not past a timer that QEMU has not told of.
    fn advance(&self, to: Duration) {
        let next = self.cpus.iter().filter_map(LocalApic::deadline).min();
        let to = next.map_or(to, |next| to.min(next.saturating_sub(Duration::from_nanos(1))));
        self.clock.advance_to(to.max(self.clock.now()));
    }

    fn read_local_apic(&self, cpu: usize, offset: u64, theirs: u64, counts: &mut Counts) -> Result<(), String> {
        self.hear(cpu, counts)?;
        let apic = &self.cpus[cpu];
        if offset != CURRENT_COUNT {
            let ours = read(apic, offset, 4);
            // SDM, volume 3, section 11.4.7.2. QEMU: entries are not masked when the local APIC is disabled.
            let determined = match self.history.disabled.contains(&(cpu, offset)) {
                true => !MASKED,
                false => !0,
            };
            return counts.compare(ours, theirs, determined);
        }
        let (from, to) = self.window.moments(self.clock.now());
        self.advance(from);
        let (divide, now) = (read(apic, DIVIDE, 4), read(apic, offset, 4));
        let divide = 2_u64 << ((divide & 3 | divide >> 1 & 4) as u32) & 0xff;
        let steps = now.checked_sub(theirs).ok_or(format!("ours is {now:x} already"))?;
        self.advance(self.clock.now() + Duration::from_nanos(steps * divide.max(1)));
        if self.clock.now() > to {
            return Err(format!("ours is so at {:?}, which is after {to:?}", self.clock.now()));
        }
        counts.counters += 1;
        counts.compare(read(apic, offset, 4), theirs, !0)
    }

    fn write_local_apic(&mut self, cpu: usize, offset: u64, value: u64, counts: &mut Counts) -> Result<(), String> {
        self.hear(cpu, counts)?;
        if [LVT_TIMER, INITIAL_COUNT, DIVIDE].contains(&offset) {
            self.advance(self.window.from);
        }
        if offset == ICR && value >> 8 & 7 == 6 {
            self.start_up = Vector(value as u8);
        }
        if offset == SVR && value & ENABLED == 0 {
            self.history.disabled.extend(LVT.map(|entry| (cpu, entry)));
        }
        self.history.disabled.remove(&(cpu, offset));
        write(&self.cpus[cpu], offset, 4, value);
        Ok(())
    }

    /// The timer of the CPU whose turn it is. QEMU does not say which.
    fn expire(&self, counts: &mut Counts) -> Result<(), String> {
        let running = self.cpus.iter().filter(|cpu| cpu.deadline().is_some());
        let cpu = running
            .min_by_key(|cpu| cpu.deadline())
            .ok_or("no timer of ours runs")?;
        let deadline = cpu.deadline().unwrap();
        counts.goes_off(self.window.lateness(deadline)?);
        counts.expired += 1;
        self.clock.advance_to(deadline.max(self.clock.now()));
        cpu.expire();
        let _ = cpu.pending();
        Ok(())
    }

    fn interrupt(&self, cpu: usize, theirs: Vector, counts: &mut Counts) -> Result<(), String> {
        self.hear(cpu, counts)?;
        let request = self.cpus[cpu].pending().request;
        let acknowledged = match self.cpus[cpu].acknowledge() {
            // QEMU: LINT0 of a local APIC that is disabled is not masked.
            None if self.history.disabled.contains(&(cpu, LINT0)) && self.pic.intr() => Some(Request::External),
            acknowledged if request => acknowledged,
            _ => return Err("ours has nothing".into()),
        };
        let ours = match acknowledged {
            Some(Request::Vector(vector)) => {
                counts.taken += 1;
                vector
            }
            Some(Request::External) => {
                counts.external += 1;
                self.pic.acknowledge()
            }
            None => return Err("ours had something".into()),
        };
        match ours == theirs {
            true => Ok(()),
            false => Err(format!("ours is {ours:x?}")),
        }
    }

    fn pin(&mut self, pin: usize, level: bool) {
        let (line, up) = &mut self.pins[pin];
        if level && *up {
            // QEMU: a level that is told twice is two edges.
            set(line, false);
        }
        set(line, level);
        *up = level;
    }

    fn irq(&mut self, irq: usize, level: bool, counts: &mut Counts) -> Result<(), String> {
        let (_, up) = self.irqs[irq].as_ref().expect("an IRQ");
        if irq == 0 && level && !up {
            self.timer_rises(counts)?;
        }
        let (line, up) = self.irqs[irq].as_mut().unwrap();
        set(line, level);
        *up = level;
        Ok(())
    }

    /// QEMU's 8254 drives its line: ours does, too. It may have done so already, since the guest has read a counter later than
    /// QEMU's timer was to go off, and before it did.
    fn timer_rises(&mut self, counts: &mut Counts) -> Result<(), String> {
        if self.ahead() == 0 {
            let Some(deadline) = self.pit.deadline() else {
                // QEMU: it counts from power-up on, without a control word, and goes on when one comes without a count.
                return match counts.rises == 0 || self.history.stopped {
                    true => Ok(()),
                    false => Err("our 8254 does not run".into()),
                };
            };
            counts.goes_off(self.window.lateness(deadline)?);
            self.advance_pit(deadline);
        }
        counts.rises += 1;
        self.history.risen += 1;
        match self.ahead() {
            0..=AHEAD => Ok(()),
            more => Err(format!("ours has risen {more} times more")),
        }
    }

    /// How often our 8254's output has risen that QEMU has not told of.
    fn ahead(&self) -> usize {
        self.out.rises.load(SeqCst) - self.history.risen
    }

    /// The 8254's time. A period is not missed.
    fn advance_pit(&self, to: Duration) {
        while let Some(deadline) = self.pit.deadline().filter(|deadline| *deadline <= to) {
            self.pit_clock.advance_to(deadline.max(self.pit_clock.now()));
            self.pit.expire();
        }
        self.pit_clock.advance_to(to.max(self.pit_clock.now()));
    }

    fn port<'a>(&self, pit: &Pit, port: u64) -> (Box<dyn BusDevice + 'a>, u64) {
        match port {
            0x20..0x22 => (Box::new(self.pic.master()), port - 0x20),
            0xa0..0xa2 => (Box::new(self.pic.slave()), port - 0xa0),
            0x4d0..0x4d2 => (Box::new(self.pic.elcr()), port - 0x4d0),
            0x40..0x44 => (Box::new(pit.counters()), port - 0x40),
            PORT_B => (Box::new(pit.port_b()), 0),
            _ => panic!("no port {port:#x}"),
        }
    }

    fn write_port(&mut self, port: u64, value: u64) {
        if [0x40..0x44, PORT_B..PORT_B + 1]
            .iter()
            .any(|ports| ports.contains(&port))
        {
            self.advance_pit(self.window.from);
        }
        let rises = self.out.rises.load(SeqCst);
        self.history.speaker |= port == 0x43 && value >> 6 == 2;
        self.history.stopped |= port == 0x43 && value >> 6 == 0 && value >> 4 & 3 != 0;
        self.history.stopped &= port != 0x40;
        let (device, offset) = self.port(&self.pit, port);
        write(&*device, offset, 1, value);
        // 231164, "mode definitions": OUT is high from the control word of most modes on. QEMU: it is low.
        self.history.risen += self.out.rises.load(SeqCst) - rises;
    }

    fn read_port(&self, port: u64, theirs: u64, counts: &mut Counts) -> Result<(), String> {
        let determined = match port {
            // QEMU: the refresh of memory moves with each read, and counter 2 has counted since power-up.
            PORT_B if !self.history.speaker => !(1 << 4 | 1 << 5),
            PORT_B => !(1 << 4),
            _ => !0,
        };
        if [0x40..0x44, PORT_B..PORT_B + 1]
            .iter()
            .any(|ports| ports.contains(&port))
        {
            let (from, to) = self.window.moments(self.pit_clock.now());
            let found = self.moment(from, to, |pit| {
                let (device, offset) = self.port(pit, port);
                (read(&*device, offset, 1) ^ theirs) & determined == 0
            });
            let found = found.ok_or(format!("ours says so at no time from {from:?} to {to:?}"))?;
            self.advance_pit(found);
            counts.counters += 1;
        }
        let (device, offset) = self.port(&self.pit, port);
        counts.compare(read(&*device, offset, 1), theirs, determined)
    }

    /// The first moment at which our 8254 says what is wanted. It is asked of a copy.
    fn moment(&self, from: Duration, to: Duration, says: impl Fn(&Pit) -> bool) -> Option<Duration> {
        /// Half a tick, or less.
        const STEP: Duration = Duration::from_nanos(400);
        let (state, now) = (self.pit.save(), self.pit_clock.now());
        let mut moment = from;
        while moment <= to {
            let clock = Arc::new(ManualClock::new(now));
            let copy = Pit::new(NoInterrupt, Arc::clone(&clock), ());
            copy.restore(&state).unwrap();
            clock.advance_to(moment);
            if says(&copy) {
                return Some(moment);
            }
            moment += STEP;
        }
        None
    }
}
