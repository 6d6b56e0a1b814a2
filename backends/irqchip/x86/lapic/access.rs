//! The guest's accesses: the xAPIC page, the x2APIC MSRs, IA32_APIC_BASE and IA32_TSC_DEADLINE.

use super::{
    config::{GeneralProtection, LocalApicsConfig},
    message::{Message, Target},
    model::Model,
    presence::Mode,
    registers::*,
    vectors::Vector,
};

impl Model {
    /// A read of the xAPIC page, aligned and of 32 bits.
    pub fn read_page(&mut self, index: u32) -> u32 {
        match Register::at(index) {
            None | Some(Register::SelfIpi | Register::Obsolete) => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
            Some(register) => self.read(register),
        }
    }

    /// A write to the xAPIC page, aligned and of 32 bits.
    pub fn write_page(&mut self, index: u32, value: u32) {
        match Register::at(index) {
            None | Some(Register::SelfIpi | Register::Obsolete) => self.error(ESR_ILLEGAL_REGISTER),
            Some(Register::Id) => self.xapic_id = (value >> 24) as u8,
            Some(Register::Ldr) => self.ldr = (value >> 24) as u8,
            Some(Register::Dfr) => self.dfr = (value >> DFR_MODEL_SHIFT) as u8,
            Some(Register::IcrHigh) => {
                self.icr = self.icr & u64::from(u32::MAX) | u64::from(value & 0xff00_0000) << 32;
            }
            Some(Register::IcrLow) => {
                let low = value & ICR_WRITABLE;
                self.icr = self.icr >> 32 << 32 | u64::from(low);
                self.command(low, (self.icr >> 56) as u32);
            }
            Some(register) => self.write(register, value & self.writable(register)),
        }
    }

    /// RDMSR of an MSR from 0x800 on (12.12.1.2).
    pub fn read_x2apic(&mut self, index: u32) -> Result<u64, GeneralProtection> {
        if self.mode() != Mode::X2Apic {
            return Err(GeneralProtection);
        }
        match Register::at(index).ok_or(GeneralProtection)? {
            Register::Obsolete | Register::Eoi | Register::Dfr | Register::IcrHigh | Register::SelfIpi => {
                Err(GeneralProtection)
            }
            Register::IcrLow => Ok(self.icr),
            register => Ok(self.read(register).into()),
        }
    }

    /// WRMSR to an MSR from 0x800 on: a reserved bit that is set is refused, and so is a register that is read-only.
    pub fn write_x2apic(&mut self, index: u32, value: u64) -> Result<(), GeneralProtection> {
        if self.mode() != Mode::X2Apic {
            return Err(GeneralProtection);
        }
        let register = Register::at(index).ok_or(GeneralProtection)?;
        let low = value as u32;
        let reserved = match register {
            Register::IcrLow => low & !(ICR_WRITABLE | ICR_DELIVERY_STATUS) != 0,
            Register::Dfr | Register::Ldr | Register::IcrHigh => true,
            Register::SelfIpi => value >> 8 != 0,
            Register::Lvt(lvt) => value & !u64::from(lvt.writable() | lvt.read_only()) != 0,
            Register::Eoi | Register::Esr => value != 0,
            register => self.writable(register) == 0 || value & !u64::from(self.writable(register)) != 0,
        };
        if reserved {
            return Err(GeneralProtection);
        }
        match register {
            Register::IcrLow => {
                self.icr = value & !u64::from(ICR_DELIVERY_STATUS);
                self.command(low, (value >> 32) as u32);
            }
            Register::SelfIpi => self.command(low | 1 << ICR_SHORTHAND_SHIFT, 0),
            register => self.write(register, low & self.writable(register)),
        }
        Ok(())
    }

    /// The bits of a register that a write changes; zero if it is read-only.
    fn writable(&self, register: Register) -> u32 {
        match register {
            Register::Tpr => 0xff,
            Register::Eoi | Register::Esr | Register::InitialCount => u32::MAX,
            Register::Svr if self.config.eoi_broadcast_suppression => SVR_WRITABLE | SVR_SUPPRESS_EOI,
            Register::Svr => SVR_WRITABLE,
            Register::Lvt(lvt) => lvt.writable(),
            Register::Divide => DIVIDE_WRITABLE,
            _ => 0,
        }
    }

    fn read(&mut self, register: Register) -> u32 {
        match register {
            Register::Id if self.mode() == Mode::X2Apic => self.id.0,
            Register::Id => u32::from(self.xapic_id) << 24,
            Register::Version => VERSION | (u32::from(self.config.eoi_broadcast_suppression) * VERSION_SUPPRESS_EOI),
            Register::Tpr => self.tpr.into(),
            Register::Ppr => self.ppr().into(),
            Register::Ldr if self.mode() == Mode::X2Apic => self.logical_id(),
            Register::Ldr => u32::from(self.ldr) << 24,
            Register::Dfr => u32::from(self.dfr) << DFR_MODEL_SHIFT | DFR_RESERVED,
            Register::Svr => self.svr,
            Register::Isr(n) => self.isr.register(n),
            Register::Tmr(n) => self.tmr.register(n),
            Register::Irr(n) => self.irr.register(n),
            Register::Esr => self.esr,
            Register::IcrLow => self.icr as u32,
            Register::IcrHigh => (self.icr >> 32) as u32,
            Register::Lvt(lvt) => self.lvt(lvt),
            Register::InitialCount => self.timer.initial,
            Register::CurrentCount if TimerMode::of(self.lvt(Lvt::Timer)).counts() => self.timer.current(self.now),
            Register::Divide => self.timer.divide,
            Register::CurrentCount | Register::Obsolete | Register::Eoi | Register::SelfIpi => 0,
        }
    }

    /// Writes a register that is the same in both modes. `value` has writable bits alone.
    fn write(&mut self, register: Register, value: u32) {
        match register {
            Register::Tpr => self.tpr = value as u8,
            Register::Eoi => self.eoi(),
            Register::Svr => {
                self.svr = value;
                if !self.is_enabled() {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            Register::Esr => self.esr = std::mem::take(&mut self.errors),
            Register::Lvt(lvt) => self.write_lvt(lvt, value),
            Register::InitialCount if TimerMode::of(self.lvt(Lvt::Timer)).counts() => {
                self.timer.start(value, self.now);
            }
            Register::Divide => self.timer.set_divide(value, self.now),
            _ => (),
        }
    }

    fn write_lvt(&mut self, lvt: Lvt, value: u32) {
        let old = self.lvt(lvt);
        let mut new = value | old & lvt.read_only();
        if !self.is_enabled() {
            new |= LVT_MASKED;
        }
        // Nor does it stay with a vector of which no EOI is to come: the pin would be dead.
        if new & (LVT_LEVEL | LVT_MODE) != LVT_LEVEL || !self.holds(Vector(new as u8)) {
            new &= !LVT_REMOTE_IRR;
        }
        self.lvt[lvt as usize] = new;
        // To and from TSC-deadline the timer is disarmed; between one-shot and periodic the count goes on (12.5.4.1).
        let (old, new) = (TimerMode::of(old), TimerMode::of(new));
        if lvt == Lvt::Timer && old != new && !(old.counts() && new.counts()) {
            self.timer.disarm();
        }
    }

    fn command(&mut self, low: u32, destination: u32) {
        let Some(message) = Message::command(low, destination, self.mode()) else {
            return;
        };
        let fixed = matches!(message.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if fixed && message.vector.0 < FIRST_VECTOR {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
        } else if fixed && message.target == Target::Own {
            // The guest that sends it is the one that is interrupted: nobody has to be woken.
            self.accept_own(message.vector);
        } else {
            self.news.message = Some(message);
        }
    }

    fn accept_own(&mut self, vector: Vector) {
        if self.is_enabled() {
            self.irr.set(vector, true);
            self.tmr.set(vector, false);
        }
    }

    /// Writes IA32_APIC_BASE (12.4.3, 12.4.4, figure 12-27): reserved bits and transitions that are not there are
    /// refused.
    pub fn write_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if !self.config.has_base(value) {
            return Err(GeneralProtection);
        }
        let is = |word: u64| (word & BASE_EN != 0, word & BASE_EXTD != 0);
        match (is(self.base), is(value)) {
            // x2APIC mode is left through disabled, and entered through xAPIC mode.
            ((true, true), (true, false)) | ((false, false), (true, true)) => return Err(GeneralProtection),
            ((true, _), (false, false)) => {
                self.reset_registers();
                (self.init, self.start_up) = (false, None);
                self.xapic_id = self.id.0 as u8;
            }
            ((true, false), (true, true)) => {
                self.icr &= u64::from(u32::MAX);
                self.xapic_id = self.id.0 as u8;
            }
            _ => (),
        }
        self.base = value;
        Ok(())
    }

    pub fn read_tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline
    }

    /// Arms the timer, if it is in TSC-deadline mode; zero disarms it.
    pub fn write_tsc_deadline(&mut self, value: u64) {
        if self.mode() != Mode::Disabled && TimerMode::of(self.lvt(Lvt::Timer)) == TimerMode::TscDeadline {
            self.timer.arm(value, self.now);
            // One that has passed is due at once.
            self.advance(self.now);
        }
    }
}

impl LocalApicsConfig {
    /// Whether this is a value that IA32_APIC_BASE can have.
    pub(super) fn has_base(&self, value: u64) -> bool {
        let extended = u64::from(self.x2apic) * BASE_EXTD;
        let address = BASE_ADDRESS & ((1 << self.physical_address_bits) - 1);
        let reserved = !(BASE_BSP | BASE_EN | extended | address);
        value & reserved == 0 && (value & BASE_EXTD == 0 || value & BASE_EN != 0)
    }
}
