//! What comes to a local APIC: messages that others have left, its pins, its timer and its errors.

use std::time::Duration;

use super::{
    inbox::{Mail, signal},
    model::Model,
    presence::Mode,
    registers::*,
    vectors::Vector,
};

impl Model {
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
    pub fn update_pins(&mut self) {
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

    /// An error interrupts if it is the first since ESR was written (12.5.3).
    pub fn error(&mut self, error: u32) {
        let armed = self.errors == 0;
        self.errors |= error;
        if armed {
            self.local(Lvt::Error);
        }
    }
}
