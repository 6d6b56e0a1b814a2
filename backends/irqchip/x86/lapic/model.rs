//! A local APIC as its CPU sees it: what is pending, what comes first, and what leaves it.

use std::time::Duration;

use super::{
    config::{ApicId, CpuEvent, Lint, LocalApicsConfig, Request},
    message::Message,
    presence::{Mode, Presence, x2apic_logical_id},
    registers::*,
    timer::{Timer, ticks},
    vectors::{Vector, Vectors},
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

    /// Whether the vector is requested or in service: whether its EOI is to come.
    pub fn holds(&self, vector: Vector) -> bool {
        self.irr.contains(vector) || self.isr.contains(vector)
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
