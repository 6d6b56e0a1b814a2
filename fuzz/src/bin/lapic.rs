//! Local APICs: a vCPU whose wake line is down has missed nothing, and what it takes was there and comes first.
#![no_main]

use std::{sync::Arc, time::Duration};

use arbitrary::Arbitrary;
use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{
            ApicId, Lint, LintLine, LocalApic, LocalApicParts, LocalApicState, LocalApics, LocalApicsConfig,
            LocalSource, Request, Vector,
        },
    },
    bus::BusDevice,
    interrupt::{Interrupt, MsiMessage, MsiSink, RequesterId},
    time::{Clock, ManualClock},
};
use devisor_fuzz::{Access, Outside, drive, step_of_time};
use libfuzzer_sys::fuzz_target;

const CPUS: usize = 3;

#[derive(Arbitrary, Debug)]
struct Step {
    cpu: u8,
    what: What,
}

#[derive(Arbitrary, Debug)]
enum What {
    Page(Access),
    /// A write of a whole register.
    Register {
        index: u8,
        value: u32,
    },
    ReadMsr(u32),
    /// To one of the x2APIC registers, with few bits.
    X2Apic {
        index: u8,
        low: u32,
        destination: u8,
    },
    WriteMsr {
        msr: u32,
        value: u64,
    },
    /// IA32_APIC_BASE: disabled, xAPIC, x2APIC.
    Mode(u8),
    TscDeadline(u64),
    Cr8(u8),
    Message {
        address: u32,
        data: u32,
    },
    Vector(u8),
    Pin {
        one: bool,
        up: bool,
    },
    Source(bool),
    Pass(u64),
    Event,
    Acknowledge,
    Look,
    Reset,
    SetTsc(u64),
    Move,
    Restore(Box<State>),
}

/// What a state from outside may be, close enough to one that there is for most to be taken.
#[derive(Arbitrary, Debug)]
struct State {
    apic_base: u8,
    tpr: u8,
    logical_id: u8,
    destination_model: u8,
    svr: u16,
    errors: [u8; 2],
    icr: u32,
    lvt: [u16; 6],
    vectors: [[u64; 4]; 3],
    initial_count: u32,
    divide: u8,
    timer_left: Option<u32>,
    tsc_deadline: u64,
    tsc: u64,
    start_up: Option<u8>,
    flags: u8,
}

impl State {
    fn state(&self, id: ApicId) -> LocalApicState {
        let flag = |bit: u32| self.flags >> bit & 1 != 0;
        let error = |error: u8| u32::from(error) & 0xe0;
        // Bit 16 is the mask, which is set while the APIC is disabled.
        let masked = if self.svr & 0x100 == 0 { 1 << 16 } else { 0 };
        // The timer has two bits of mode above it.
        let mut lvt = self
            .lvt
            .map(|entry| u32::from(entry & 0xff) | u32::from(entry & 0x100) << 8 | masked);
        let mode = u32::from(self.lvt[0] >> 9 & 3);
        lvt[0] |= mode << 17;
        let initial_count = if mode < 2 { self.initial_count } else { 0 };
        let [irr, isr, tmr] = self.vectors.map(|[low, rest @ ..]| {
            let [a, b, c] = rest;
            [low & !0xffff, a, b, c]
        });
        // The pins have a trigger mode, and Remote IRR as long as the vector is not finished.
        for entry in [3, 4] {
            let [level, accepted] = [9, 10].map(|bit| self.lvt[entry] >> bit & 1 != 0);
            let vector = lvt[entry] as usize & 0xff;
            let held = (irr[vector / 64] | isr[vector / 64]) >> (vector % 64) & 1 != 0;
            lvt[entry] |= u32::from(level) << 15 | u32::from(level && accepted && held) << 14;
        }
        let apic_base = 0xfee0_0000 | u64::from(self.apic_base & 1) << 8 | u64::from(self.apic_base & 6) << 9;
        if apic_base & 1 << 11 == 0 {
            return self.disabled(id, apic_base);
        }
        LocalApicState {
            id,
            xapic_id: id.0 as u8,
            apic_base,
            tpr: self.tpr,
            logical_id: self.logical_id,
            destination_model: self.destination_model & 0xf,
            svr: u32::from(self.svr & 0x13ff),
            esr: error(self.errors[0]),
            errors: error(self.errors[1]),
            icr: u64::from(self.icr >> 24) << 56 | u64::from(self.icr & 0xcfff),
            lvt,
            irr,
            isr,
            tmr,
            initial_count,
            divide: u32::from(self.divide & 0xb),
            timer_left: self
                .timer_left
                .filter(|_| initial_count != 0)
                .map(|left| u64::from(left.min(initial_count))),
            tsc_deadline: if mode == 2 { self.tsc_deadline } else { 0 },
            tsc: self.tsc,
            init: flag(0),
            start_up: self.start_up.map(Vector),
            nmis: 2 * u8::from(flag(1)),
            smi: flag(2),
            ext_int: flag(3),
            waits_for_start_up: flag(4),
            lint: [flag(5), flag(6)],
        }
    }

    /// With registers that are as after a reset.
    fn disabled(&self, id: ApicId, apic_base: u64) -> LocalApicState {
        let flag = |bit: u32| self.flags >> bit & 1 != 0;
        LocalApicState {
            id,
            xapic_id: id.0 as u8,
            apic_base,
            tpr: self.tpr,
            logical_id: 0,
            destination_model: 0xf,
            svr: 0xff,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [1 << 16; 6],
            irr: [0; 4],
            isr: [0; 4],
            tmr: [0; 4],
            initial_count: 0,
            divide: 0,
            timer_left: None,
            tsc_deadline: 0,
            tsc: self.tsc,
            init: false,
            start_up: None,
            nmis: 2 * u8::from(flag(1)),
            smi: flag(2),
            ext_int: false,
            waits_for_start_up: flag(4),
            lint: [flag(5), flag(6)],
        }
    }
}

struct Cpu {
    apic: LocalApic,
    wake: Outside,
    pins: [LintLine; 2],
    /// What the vCPU saw when it last looked.
    seen: LocalApicState,
}

struct Machine {
    clock: Arc<ManualClock>,
    apics: LocalApics,
    cpus: Vec<Cpu>,
}

/// What is the same until somebody asks for something: the time passes by itself.
fn standing(state: LocalApicState) -> LocalApicState {
    let masked = state.lvt[0] & 1 << 16 != 0;
    LocalApicState {
        tsc: 0,
        timer_left: None,
        // Behind the mask it comes and goes unheard.
        tsc_deadline: if masked { 0 } else { state.tsc_deadline },
        ..state
    }
}

fn highest(vectors: [u64; 4]) -> Option<u8> {
    let word = (0..4).rev().find(|word| vectors[*word] != 0)?;
    Some((word as u32 * 64 + vectors[word].ilog2()) as u8)
}

impl Machine {
    fn new(clock: Arc<ManualClock>) -> Self {
        let wakes: [Outside; CPUS] = Default::default();
        let parts = wakes.iter().zip(0..).map(|(wake, id)| LocalApicParts {
            id: ApicId(id),
            wake: Box::new(wake.clone()),
            alarm: Box::new(()),
        });
        let config = LocalApicsConfig {
            // So that time which passes up to a deadline changes nothing.
            min_timer_period: Duration::ZERO,
            ..LocalApicsConfig::default()
        };
        let apics = LocalApics::new(config, Arc::clone(&clock) as Arc<dyn Clock>, parts.collect()).unwrap();
        let cpus = wakes.into_iter().zip(0..).map(|(wake, id)| {
            let apic = apics.cpu(CpuId(id)).unwrap();
            apic.write(0x0f0, &0x1ff_u32.to_le_bytes());
            Cpu {
                pins: [Lint::Zero, Lint::One].map(|pin| apics.lint_line(CpuId(id), pin).unwrap()),
                seen: standing(apic.save()),
                apic,
                wake,
            }
        });
        Self {
            cpus: cpus.collect(),
            clock,
            apics,
        }
    }

    fn send(&self, address: u32, data: u32) {
        let address = 0xfee0_0000 | u64::from(address & 0xf_ffff);
        self.apics.send(RequesterId(0), MsiMessage { address, data }).unwrap();
    }

    /// Whether the vCPU has looked.
    fn step(&mut self, cpu: usize, what: &What) -> bool {
        let Cpu { apic, pins, .. } = &self.cpus[cpu];
        match *what {
            What::Page(access) => access.run(apic, LocalApic::SIZE, 4),
            What::Register { index, value } => apic.write(u64::from(index % 0x40) * 16, &value.to_le_bytes()),
            What::ReadMsr(msr) => _ = (apic.read_msr(msr), apic.read_msr(0x800 + msr % 0x100)),
            What::X2Apic {
                index,
                low,
                destination,
            } => {
                _ = apic.write_msr(
                    0x800 + u32::from(index % 0x40),
                    u64::from(destination) << 32 | u64::from(low),
                );
            }
            What::WriteMsr { msr, value } => _ = apic.write_msr(msr, value),
            What::Mode(mode) => _ = apic.write_msr(0x1b, 0xfee0_0000 | u64::from(mode & 7) << 9),
            What::TscDeadline(ahead) => _ = apic.write_msr(0x6e0, apic.tsc().wrapping_add(ahead >> (ahead >> 58))),
            What::Cr8(value) => _ = apic.set_cr8(value.into()),
            What::Reset => apic.reset(),
            What::SetTsc(tsc) => apic.set_tsc(tsc),
            What::Event => _ = apic.next_event(),
            What::Acknowledge => self.acknowledge(cpu),
            What::Look => _ = apic.needs_attention(),
            What::Move => self.move_away(),
            What::Restore(ref state) => {
                if apic.restore(&state.state(apic.id())).is_ok() {
                    // What it has become by then is a state that there can be, too.
                    self.move_away();
                }
            }
            What::Message { address, data } => {
                self.send(address, data);
                return false;
            }
            What::Vector(vector) => {
                self.send((cpu as u32) << 12, vector.into());
                return false;
            }
            What::Pin { one, up } => {
                drive(&pins[usize::from(one)], up);
                return false;
            }
            What::Source(thermal) => {
                let source = match thermal {
                    true => LocalSource::Thermal,
                    false => LocalSource::Performance,
                };
                self.apics
                    .local_line(CpuId(cpu as u32), source)
                    .unwrap()
                    .trigger()
                    .unwrap();
                return false;
            }
            What::Pass(time) => {
                self.clock.advance(step_of_time(time));
                for cpu in &self.cpus {
                    if cpu.apic.deadline().is_some_and(|deadline| deadline <= self.clock.now()) {
                        cpu.apic.expire();
                    }
                }
                return false;
            }
        }
        true
    }

    fn acknowledge(&self, cpu: usize) {
        let apic = &self.cpus[cpu].apic;
        let (before, offered) = (apic.save(), apic.request());
        assert_eq!(apic.acknowledge(), offered);
        let after = apic.save();
        let Some(Request::Vector(Vector(vector))) = offered else {
            return;
        };
        assert_eq!(highest(before.irr), Some(vector), "the highest comes first");
        assert_eq!(highest(after.isr), Some(vector), "and is in service");
        let class = highest(before.isr).unwrap_or(0).max(before.tpr) >> 4;
        assert!(vector >> 4 > class, "{vector:#x} over class {class}");
    }

    /// All of them to another machine, whose clock and lines are its own.
    fn move_away(&mut self) {
        let mut other = Self::new(Arc::clone(&self.clock));
        for (old, new) in self.cpus.iter().zip(&mut other.cpus) {
            let state = old.apic.save();
            for (pin, up) in new.pins.iter().zip(state.lint) {
                drive(pin, up);
            }
            new.apic.restore(&state).unwrap();
            assert_eq!(new.apic.save(), state);
            new.seen = standing(state);
        }
        *self = other;
    }

    fn check(&mut self, looked: Option<usize>) {
        for (index, cpu) in self.cpus.iter_mut().enumerate() {
            if looked != Some(index) && cpu.wake.is_up() {
                continue;
            }
            let state = cpu.apic.save();
            assert!(!cpu.wake.is_up(), "CPU {index} has looked, and is woken");
            if let Some(deadline) = cpu.apic.deadline() {
                assert!(
                    deadline > self.clock.now(),
                    "CPU {index}: a deadline that has passed: {state:x?}"
                );
            }
            assert_eq!(
                state.irr[0] & 0xffff | state.isr[0] & 0xffff,
                0,
                "CPU {index}: a vector below 16"
            );
            let state = standing(state);
            if looked != Some(index) {
                assert_eq!(state, cpu.seen, "CPU {index} was not woken");
            }
            cpu.seen = state;
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Machine::new(Arc::new(ManualClock::default()));
    for Step { cpu, what } in steps.iter().take(400) {
        let cpu = usize::from(*cpu) % CPUS;
        let looked = machine.step(cpu, what);
        machine.check(looked.then_some(cpu));
    }
});
