//! A local APIC as its CPU sees it: what is pending, what comes first, and what leaves it.

use std::time::Duration;

use super::{
    Lint, Vector,
    config::{ApicId, CpuEvent, LocalApicsConfig, Request},
    inbox::{Mail, signal},
    presence::{Mode, Presence, x2apic_logical_id},
    registers::*,
    route::Message,
    timer::{Timer, ticks},
    vectors::Vectors,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Model {
    // What is configured.
    pub config: LocalApicsConfig,
    pub id: ApicId,
    /// The bootstrap processor at power-up. The guest can rewrite the flag in IA32_APIC_BASE, and INIT goes by that.
    pub bootstrap: bool,

    // What is plugged in.
    /// LINT0 and LINT1.
    pub lines: [bool; 2],
    /// The time up to which the timer has been looked at.
    pub now: Duration,

    // What the guest can change.
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The ID register of xAPIC mode, which messages go by there.
    pub xapic_id: u8,
    pub tpr: u8,
    pub ldr: u8,
    pub dfr: u8,
    pub svr: u32,
    /// ESR as it was last written, and what has been found since.
    pub esr: u32,
    pub errors: u32,
    pub icr: u64,
    pub lvt: [u32; 6],
    pub irr: Vectors,
    pub isr: Vectors,
    pub tmr: Vectors,
    pub timer: Timer,
    pub init: bool,
    pub start_up: Option<u8>,
    /// NMIs that the CPU has not taken, up to [`MAX_NMIS`].
    pub nmis: u8,
    pub smi: bool,
    /// A message asked for the 8259's vector.
    pub ext_int: bool,
    pub waits_for_start_up: bool,

    /// What is to be done when the lock is released.
    pub news: News,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub message: Option<Message>,
    pub eoi: Option<Vector>,
    /// There may be messages that are accepted now and were not before.
    pub accepts_more: bool,
}

impl Model {
    /// As after power-up.
    pub fn new(config: LocalApicsConfig, id: ApicId, bootstrap: bool) -> Self {
        let min_period = ticks(config.min_timer_period, config.timer_hz);
        Self {
            config,
            id,
            bootstrap,
            lines: [false; 2],
            now: Duration::ZERO,
            base: RESET_BASE_ADDRESS | BASE_EN | (u64::from(bootstrap) * BASE_BSP),
            xapic_id: id.0 as u8,
            tpr: 0,
            ldr: 0,
            dfr: DFR_FLAT,
            svr: RESET_SVR,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            timer: Timer {
                hz: config.timer_hz,
                tsc_hz: config.tsc_hz,
                min_period,
                tsc_base: 0,
                initial: 0,
                divide: 0,
                end: None,
                tsc_deadline: 0,
                tsc_end: None,
            },
            init: false,
            start_up: None,
            nmis: 0,
            smi: false,
            ext_int: false,
            waits_for_start_up: !bootstrap,
            news: News::default(),
        }
    }

    /// The registers go to their reset values, as INIT and IA32_APIC_BASE.EN = 0 leave them. ID and IA32_APIC_BASE
    /// stay.
    pub fn reset_registers(&mut self) {
        let mut timer = self.timer;
        timer.reset();
        let fresh = Self::new(self.config, self.id, self.bootstrap);
        *self = Self {
            lines: self.lines,
            now: self.now,
            base: self.base,
            xapic_id: self.xapic_id,
            timer,
            init: self.init,
            start_up: self.start_up,
            nmis: self.nmis,
            smi: self.smi,
            waits_for_start_up: self.waits_for_start_up,
            news: self.news,
            ..fresh
        };
    }

    /// As after power-up, with pins, time and time-stamp counter as they are.
    pub fn power_up(&mut self) {
        self.base = RESET_BASE_ADDRESS | BASE_EN | (u64::from(self.bootstrap) * BASE_BSP);
        (self.init, self.start_up, self.nmis, self.smi) = (false, None, 0, false);
        self.waits_for_start_up = !self.bootstrap;
        self.xapic_id = self.id.0 as u8;
        self.reset_registers();
    }

    pub fn mode(&self) -> Mode {
        match (self.base & BASE_EN != 0, self.base & BASE_EXTD != 0) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
        }
    }

    pub fn is_bootstrap(&self) -> bool {
        self.base & BASE_BSP != 0
    }

    pub fn is_enabled(&self) -> bool {
        self.svr & SVR_ENABLED != 0
    }

    pub fn lvt(&self, entry: Lvt) -> u32 {
        self.lvt[entry as usize]
    }

    /// The ID that the guest has given it, if it is not its own.
    fn moved(&self) -> Option<u8> {
        let moved = self.mode() == Mode::XApic && self.xapic_id != self.id.0 as u8;
        moved.then_some(self.xapic_id)
    }

    pub fn logical_id(&self) -> u32 {
        match self.mode() {
            Mode::X2Apic => x2apic_logical_id(self.id),
            _ => self.ldr.into(),
        }
    }

    /// Takes what others have asked for. `now` is needed only if the timer is to be looked at.
    pub fn absorb(&mut self, mail: Option<&Mail>, now: Option<Duration>) {
        if let Some(now) = now {
            self.advance(now);
        }
        let Some(mail) = mail else { return };
        if self.mode() != Mode::Disabled {
            for (word, mut vectors) in mail.vectors.0.into_iter().enumerate() {
                // A level was accepted when it was sent, and nobody brings it again.
                if !self.is_enabled() {
                    vectors &= mail.level.0[word];
                }
                self.irr.0[word] |= vectors;
                self.tmr.0[word] = self.tmr.0[word] & !vectors | mail.level.0[word] & vectors;
            }
        }
        if let Some(signals) = mail.signals {
            self.signals(signals);
            self.update_pins();
        }
    }

    /// Lets the time up to `now` happen. A `now` that has passed already is no time.
    pub fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
        if self.timer.advance(TimerMode::of(self.lvt(Lvt::Timer)), self.now) {
            self.local(Lvt::Timer);
        }
    }

    fn signals(&mut self, signals: u64) {
        let has = |bit| signals & bit != 0;
        self.lines = signal::UP.map(has);
        for (pin, lvt) in [Lvt::Lint0, Lvt::Lint1].into_iter().enumerate() {
            for _ in [signal::ROSE[pin], signal::ROSE_AGAIN[pin]]
                .into_iter()
                .filter(|bit| has(*bit))
            {
                self.pin_rose(lvt);
            }
        }
        if self.mode() == Mode::Disabled {
            return;
        }
        if has(signal::INIT) {
            self.init();
        }
        if has(signal::START_UP) {
            let vector = (signals & signal::START_UP_VECTOR) >> signal::START_UP_SHIFT;
            self.start_up.get_or_insert(vector as u8);
        }
        for _ in [signal::NMI, signal::NMI_AGAIN].into_iter().filter(|bit| has(*bit)) {
            self.nmi();
        }
        self.smi |= has(signal::SMI);
        self.ext_int |= has(signal::EXT_INT) && self.is_enabled();
        if has(signal::ILLEGAL_VECTOR) && self.is_enabled() {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
        }
        for (bit, lvt) in [(signal::THERMAL, Lvt::Thermal), (signal::PERFORMANCE, Lvt::Performance)] {
            if has(bit) {
                self.local(lvt);
            }
        }
    }

    /// INIT, by a message or by a pin, ends whatever came before. What comes after it is kept, though the CPU has yet to see INIT.
    fn init(&mut self) {
        (self.init, self.start_up, self.nmis, self.smi) = (true, None, 0, false);
        self.ext_int = false;
    }

    fn nmi(&mut self) {
        self.nmis = MAX_NMIS.min(self.nmis + 1);
    }

    fn pin_rose(&mut self, lvt: Lvt) {
        if self.mode() == Mode::Disabled {
            // The pins are the CPU's INTR, which is a level, and NMI (12.4.3).
            if lvt == Lvt::Lint1 {
                self.nmi();
            }
        } else if self.lvt(lvt) & (LVT_LEVEL | LVT_MODE) != LVT_LEVEL {
            self.local(lvt);
        }
    }

    /// A level-sensitive pin that is up is accepted, and again only after its EOI (12.5.1, Remote IRR).
    fn update_pins(&mut self) {
        for (pin, lvt) in [Lvt::Lint0, Lvt::Lint1].into_iter().enumerate() {
            let entry = self.lvt(lvt);
            let level = entry & (LVT_LEVEL | LVT_MODE) == LVT_LEVEL;
            let open = self.mode() != Mode::Disabled && entry & (LVT_MASKED | LVT_REMOTE_IRR) == 0;
            if self.lines[pin] && level && open {
                self.lvt[lvt as usize] |= LVT_REMOTE_IRR;
                self.accept(Vector(entry as u8), true);
            }
        }
    }

    /// A local interrupt happens once.
    fn local(&mut self, lvt: Lvt) {
        let entry = self.lvt(lvt);
        // After INIT all entries are masked, also before the CPU has seen it.
        if self.mode() == Mode::Disabled || entry & LVT_MASKED != 0 || self.init {
            return;
        }
        if lvt == Lvt::Performance {
            self.lvt[lvt as usize] |= LVT_MASKED;
        }
        let pin = matches!(lvt, Lvt::Lint0 | Lvt::Lint1);
        match DeliveryMode::of(entry) {
            Some(DeliveryMode::Fixed) => self.accept(Vector(entry as u8), false),
            Some(DeliveryMode::Nmi) => self.nmi(),
            Some(DeliveryMode::Smi) => self.smi = true,
            Some(DeliveryMode::Init) if pin => self.init(),
            // ExtINT is a level: see `external`. The others are not for a local interrupt.
            _ => (),
        }
    }

    fn accept(&mut self, vector: Vector, level: bool) {
        if vector.0 < FIRST_VECTOR {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
        } else {
            self.irr.set(vector, true);
            self.tmr.set(vector, level);
        }
    }

    /// Whether the vector is requested or in service: whether its EOI is to come.
    pub fn holds(&self, vector: Vector) -> bool {
        self.irr.contains(vector) || self.isr.contains(vector)
    }

    /// An error interrupts if it is the first since ESR was written (12.5.3).
    pub fn error(&mut self, error: u32) {
        let armed = self.errors == 0;
        self.errors |= error;
        if armed {
            self.local(Lvt::Error);
        }
    }

    /// The processor priority (12.8.3.1).
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().map_or(0, Vector::class);
        let task = self.tpr >> 4;
        if task >= in_service { self.tpr } else { in_service << 4 }
    }

    /// Whether the CPU is to ask the 8259 for a vector.
    fn external(&self) -> bool {
        let lint0 = self.lvt(Lvt::Lint0);
        let virtual_wire = lint0 & LVT_MASKED == 0 && DeliveryMode::of(lint0) == Some(DeliveryMode::ExtInt);
        self.ext_int || self.lines[Lint::Zero as usize] && (self.mode() == Mode::Disabled || virtual_wire)
    }

    /// What the CPU is to take next, if its interrupts are enabled.
    pub fn request(&self) -> Option<Request> {
        if self.waits_for_start_up || self.init {
            return None;
        }
        if self.external() {
            return Some(Request::External);
        }
        let highest = self.irr.highest()?;
        (highest.class() > self.ppr() >> 4 && self.mode() != Mode::Disabled).then_some(Request::Vector(highest))
    }

    /// The CPU takes it.
    pub fn acknowledge(&mut self) -> Option<Request> {
        let request = self.request()?;
        match request {
            Request::External => self.ext_int = false,
            Request::Vector(vector) => {
                self.irr.set(vector, false);
                self.isr.set(vector, true);
            }
        }
        Some(request)
    }

    pub fn eoi(&mut self) {
        let Some(vector) = self.isr.highest() else { return };
        self.isr.set(vector, false);
        for lvt in [Lvt::Lint0, Lvt::Lint1] {
            if self.lvt(lvt) as u8 == vector.0 {
                self.lvt[lvt as usize] &= !LVT_REMOTE_IRR;
            }
        }
        if self.tmr.contains(vector) && self.svr & SVR_SUPPRESS_EOI == 0 {
            self.news.eoi = Some(vector);
        }
    }

    pub fn has_event(&self) -> bool {
        let started = !self.waits_for_start_up;
        self.init || self.start_up.is_some() && !started || (self.nmis != 0 || self.smi) && started
    }

    /// The next of the events that come before interrupts.
    pub fn next_event(&mut self) -> Option<CpuEvent> {
        if std::mem::take(&mut self.init) {
            self.waits_for_start_up = !self.is_bootstrap();
            self.reset_registers();
            return Some(CpuEvent::Init);
        }
        // One that finds the CPU running is ignored.
        let start_up = self.start_up.take();
        if self.waits_for_start_up {
            let vector = start_up?;
            self.waits_for_start_up = false;
            return Some(CpuEvent::StartUp(Vector(vector)));
        }
        if std::mem::take(&mut self.smi) {
            return Some(CpuEvent::Smi);
        }
        self.nmis = self.nmis.checked_sub(1)?;
        Some(CpuEvent::Nmi)
    }

    /// Derives what others see, after every change.
    pub fn update(&mut self) -> Presence {
        self.update_pins();
        Presence {
            mode: self.mode(),
            enabled: self.is_enabled(),
            moved: self.moved(),
            ldr: self.logical_id(),
            dfr: self.dfr,
            class: self.ppr() >> 4,
        }
    }

    /// When the timer will interrupt. It changes only with the timer and its entry, not with the time.
    pub fn deadline(&self) -> Option<Duration> {
        let timer = self.lvt(Lvt::Timer);
        let delivers = timer & LVT_MASKED == 0;
        delivers.then(|| self.timer.deadline(TimerMode::of(timer)))?
    }
}
