//! How the state of a local APIC is taken, and taken back.

use std::time::Duration;

use super::{
    cpu::LocalApic,
    hooks::HookEvent,
    model::{Model, News},
    presence::Mode,
    registers::*,
    set::Shared,
    state::{LocalApicState, LocalApicStateError},
    timer::{Timer, ticks},
    vectors::{Vector, Vectors},
};

impl LocalApic {
    /// The state now, with all messages that were sent to it.
    pub fn save(&self) -> LocalApicState {
        let (apics, cpu) = self.shared();
        apics.with(cpu, true, |model| {
            let Model {
                config: _,
                id,
                bootstrap: _,
                lines,
                now,
                base,
                xapic_id,
                tpr,
                ldr,
                dfr,
                svr,
                esr,
                errors,
                icr,
                lvt,
                irr,
                isr,
                tmr,
                timer,
                init,
                start_up,
                nmis,
                smi,
                ext_int,
                waits_for_start_up,
                news: _,
            } = model.clone();
            let Timer {
                hz: _,
                tsc_hz: _,
                min_period: _,
                tsc_base: _,
                initial,
                divide,
                end: _,
                tsc_deadline,
                tsc_end: _,
            } = timer;
            LocalApicState {
                id,
                xapic_id,
                apic_base: base,
                tpr,
                logical_id: ldr,
                destination_model: dfr,
                svr,
                esr,
                errors,
                icr,
                lvt,
                irr: irr.0,
                isr: isr.0,
                tmr: tmr.0,
                initial_count: initial,
                divide,
                timer_left: timer.left(now),
                tsc_deadline,
                tsc: timer.tsc(now),
                init,
                start_up: start_up.map(Vector),
                nmis,
                smi,
                ext_int,
                waits_for_start_up,
                lint: lines,
            }
        })
    }

    /// Puts the local APIC into `state`. The timer goes on with what is left of it, from the clock's time now, and the
    /// time-stamp counter with what it read. Messages that came before and that no vCPU has looked at are not lost:
    /// they are taken under the new state. The vCPU is woken, once.
    ///
    /// Restore what drives the pins too, before or after: a pin that was up is expected to be driven up again, which is no
    /// new edge for the guest. Until then it counts as up. A pin that was down and is up now is a new edge.
    ///
    /// # Errors
    /// [`LocalApicStateError`] if a local APIC like this cannot be in such a state; nothing has changed then.
    pub fn restore(&self, state: &LocalApicState) -> Result<(), LocalApicStateError> {
        let (apics, cpu) = self.shared();
        let now = apics.clock.now();
        apics.restore(cpu, now, |model| {
            *model = model.restored(state, now)?;
            Ok(state.lint)
        })
    }
}

impl Shared {
    /// As `with`, but what others have asked for stays with them until the change is made.
    fn restore<E>(
        &self,
        cpu: usize,
        now: Duration,
        change: impl FnOnce(&mut Model) -> Result<[bool; 2], E>,
    ) -> Result<(), E> {
        let this = &self.cpus[cpu];
        let news = {
            let mut own = crate::sync::lock(&this.own);
            let lint = change(&mut own.model)?;
            this.inbox.restore_levels(lint);
            own.update(self, cpu);
            this.inbox.look(own.deadline.is_some_and(|deadline| deadline <= now));
            std::mem::take(&mut own.model.news)
        };
        let _ = this.inbox.settle();
        if news.accepts_more {
            self.hooks.call(HookEvent::AcceptsMore);
        }
        this.settle_alarm();
        Ok(())
    }
}

fn check(register: &'static str, value: u64, allowed: u64) -> Result<(), LocalApicStateError> {
    match value & !allowed {
        0 => Ok(()),
        _ => Err(LocalApicStateError::Reserved {
            register,
            value,
            allowed,
        }),
    }
}

impl Model {
    fn restored(&self, state: &LocalApicState, now: Duration) -> Result<Self, LocalApicStateError> {
        let LocalApicState {
            id,
            xapic_id,
            apic_base,
            tpr,
            logical_id,
            destination_model,
            svr,
            esr,
            errors,
            icr,
            lvt,
            irr,
            isr,
            tmr,
            initial_count,
            divide,
            timer_left,
            tsc_deadline,
            tsc,
            init,
            start_up,
            nmis,
            smi,
            ext_int,
            waits_for_start_up,
            lint,
        } = state.clone();
        if id != self.id {
            return Err(LocalApicStateError::Id {
                state: id,
                own: self.id,
            });
        }
        let mut timer = self.timer;
        timer.reset();
        let mut model = Self {
            config: self.config,
            id,
            bootstrap: self.bootstrap,
            lines: lint,
            now: self.now.max(now),
            base: self.base,
            xapic_id,
            tpr,
            ldr: logical_id,
            dfr: destination_model,
            svr,
            esr,
            errors,
            icr,
            lvt,
            irr: Vectors(irr),
            isr: Vectors(isr),
            tmr: Vectors(tmr),
            timer,
            init,
            start_up: start_up.map(|vector| vector.0),
            nmis,
            smi,
            ext_int,
            waits_for_start_up,
            news: News::default(),
        };
        model.restore_base(apic_base)?;
        if model.mode() == Mode::X2Apic && xapic_id != id.0 as u8 {
            return Err(LocalApicStateError::XApicId { xapic_id, id });
        }
        if nmis > MAX_NMIS {
            return Err(LocalApicStateError::Nmis(nmis));
        }
        model.check_registers()?;
        model.timer.initial = initial_count;
        model.timer.divide = divide;
        check("divide configuration", divide.into(), DIVIDE_WRITABLE.into())?;
        let mode = TimerMode::of(model.lvt(Lvt::Timer));
        if let Some(left) = timer_left {
            let runs = mode.counts() && initial_count != 0;
            let most = u64::from(runs) * model.timer.most_left();
            if left > most || !runs {
                return Err(LocalApicStateError::TimerLeft { left, most });
            }
            model.timer.end = ticks(model.now, model.timer.hz).checked_add(left);
        }
        if initial_count != 0 && !mode.counts() {
            return Err(LocalApicStateError::InitialCount(initial_count));
        }
        if tsc_deadline != 0 && mode != TimerMode::TscDeadline {
            return Err(LocalApicStateError::TscDeadline(tsc_deadline));
        }
        model.timer.set_tsc(tsc, model.now);
        model.timer.arm(tsc_deadline, model.now);
        if model.mode() == Mode::Disabled && !model.is_reset() {
            return Err(LocalApicStateError::Disabled(apic_base));
        }
        Ok(model)
    }

    /// Whether it is as IA32_APIC_BASE.EN = 0 has left it. TPR can be written as CR8 then.
    fn is_reset(&self) -> bool {
        let mut reset = self.clone();
        reset.reset_registers();
        (reset.init, reset.start_up, reset.tpr) = (false, None, self.tpr);
        reset.xapic_id = self.id.0 as u8;
        reset == *self
    }

    /// Any mode that there is can be restored, whatever the mode now.
    fn restore_base(&mut self, base: u64) -> Result<(), LocalApicStateError> {
        if !self.config.has_base(base) {
            return Err(LocalApicStateError::ApicBase(base));
        }
        self.base = base;
        Ok(())
    }

    fn check_registers(&self) -> Result<(), LocalApicStateError> {
        check("DFR model", self.dfr.into(), 0xf)?;
        let suppression = u32::from(self.config.eoi_broadcast_suppression) * SVR_SUPPRESS_EOI;
        check("SVR", self.svr.into(), (SVR_WRITABLE | suppression).into())?;
        check("ESR", self.esr.into(), ESR_ERRORS.into())?;
        check("errors", self.errors.into(), ESR_ERRORS.into())?;
        let destination: u64 = if self.mode() == Mode::X2Apic {
            0xffff_ffff
        } else {
            0xff00_0000
        };
        check("ICR", self.icr, destination << 32 | u64::from(ICR_WRITABLE))?;
        for (entry, lvt) in self.lvt.into_iter().zip(Lvt::ALL) {
            let allowed = lvt.writable() | lvt.read_only() & !LVT_DELIVERY_STATUS;
            check(lvt.name(), entry.into(), allowed.into())?;
            if !self.is_enabled() && entry & LVT_MASKED == 0 {
                return Err(LocalApicStateError::Unmasked(entry));
            }
            // A vector that is refused is in neither, and has Remote IRR as long as the pin is up.
            let vector = Vector(entry as u8);
            let level = entry & (LVT_LEVEL | LVT_MODE) == LVT_LEVEL;
            let accepted = level && (vector.0 < FIRST_VECTOR || self.holds(vector));
            if entry & LVT_REMOTE_IRR != 0 && !accepted {
                return Err(LocalApicStateError::RemoteIrr(entry));
            }
        }
        let illegal = (1 << FIRST_VECTOR) - 1;
        for (register, vectors) in [("IRR", self.irr), ("ISR", self.isr), ("TMR", self.tmr)] {
            check(register, vectors.0[0], !illegal)?;
        }
        Ok(())
    }
}
