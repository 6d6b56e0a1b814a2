//! What a set of local APICs is made of, and what it tells a CPU.

use std::{fmt, time::Duration};

use super::vectors::Vector;
use crate::{backends::irqchip::CpuId, interrupt::LevelInterrupt, time::Alarm};

/// The ID that names a local APIC in messages: of its low 4 and high 28 bits, x2APIC's logical ID is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApicId(pub u32);

impl fmt::Display for ApicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "APIC ID {:#x}", self.0)
    }
}

/// What the local APICs of a machine have in common.
///
/// Counts are 64 bits wide and begin at the clock's origin: at 10^10 a second they last 58 years, and stand still then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalApicsConfig {
    /// Counts of the timer in a second, before it divides: 1 to 10^10. The guest calibrates it, or reads it from
    /// CPUID.15H.
    pub timer_hz: u64,
    /// The rate of the guest's time-stamp counter: 1 to 10^10 a second.
    pub tsc_hz: u64,
    /// Whether x2APIC mode can be entered. The guest reads it from CPUID.01H:ECX.
    pub x2apic: bool,
    /// Whether the guest may do without EOI broadcasts, as it can if its IOAPICs have an EOI register.
    pub eoi_broadcast_suppression: bool,
    /// Bits of a physical address, 32 to 52: IA32_APIC_BASE takes no more.
    pub physical_address_bits: u32,
    /// The alarm of a periodic timer is not set more often, so that a guest cannot keep the host busy. Periods below
    /// are coalesced, as on a CPU that does not get around to them.
    pub min_timer_period: Duration,
}

impl Default for LocalApicsConfig {
    /// A timer and a time-stamp counter of 1 GHz, all features, 46 bits of address, 200 µs.
    fn default() -> Self {
        Self {
            timer_hz: 1_000_000_000,
            tsc_hz: 1_000_000_000,
            x2apic: true,
            eoi_broadcast_suppression: true,
            physical_address_bits: 46,
            min_timer_period: Duration::from_micros(200),
        }
    }
}

impl LocalApicsConfig {
    /// The highest rate of a counter.
    pub const MAX_HZ: u64 = 10_000_000_000;

    pub(super) fn check(&self) -> Result<(), LocalApicError> {
        for (counter, hz) in [("timer_hz", self.timer_hz), ("tsc_hz", self.tsc_hz)] {
            if !(1..=Self::MAX_HZ).contains(&hz) {
                return Err(LocalApicError::Rate { counter, hz });
            }
        }
        if !(32..=52).contains(&self.physical_address_bits) {
            return Err(LocalApicError::PhysicalAddressBits(self.physical_address_bits));
        }
        Ok(())
    }
}

/// What one local APIC is made of.
pub struct LocalApicParts {
    /// Its ID. An APIC whose ID is above 254 can be named only in x2APIC mode. In xAPIC mode the guest can give it another,
    /// by which messages find it until it is disabled, enters x2APIC mode or is [reset](super::LocalApic::reset).
    pub id: ApicId,
    /// Up while there is something that the vCPU has not looked at: kick it out of the guest, or wake it if it is
    /// halted. It hears transitions only, in order, and never while a lock is held. If it refuses, the next message
    /// tries again.
    pub wake: Box<dyn LevelInterrupt>,
    /// Hears when [`LocalApic::expire`](super::LocalApic::expire) is to be called.
    pub alarm: Box<dyn Alarm>,
}

impl fmt::Debug for LocalApicParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalApicParts")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The access raises a general-protection exception: inject #GP(0) into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest's access raises #GP(0)")]
pub struct GeneralProtection;

/// What a CPU does before it looks at interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuEvent {
    /// Reset the registers of the CPU as INIT does. Then the bootstrap processor runs from the reset vector, and any
    /// other waits for [`StartUp`](Self::StartUp).
    Init,
    /// Run from CS = vector << 8, IP = 0, in real mode.
    StartUp(Vector),
    /// Inject a system management interrupt, or ignore it.
    Smi,
    /// Inject a non-maskable interrupt. There may be two in a row: a CPU takes one, and latches one more until the first is
    /// handled. A third is lost.
    Nmi,
}

/// A pin of a local APIC. On a PC the 8259's output is wired to LINT0 of every CPU, and NMI sources to LINT1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lint {
    /// LINT0: INTR while the APIC is disabled.
    Zero,
    /// LINT1: NMI while the APIC is disabled.
    One,
}

/// An interrupt source within a CPU that the embedder models. The timer and the error interrupt are devisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalSource {
    /// The thermal sensor.
    Thermal,
    /// Performance counter overflow. Its vector table entry masks itself when it is delivered.
    Performance,
}

/// What a CPU takes when its interrupts are enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Inject this vector.
    Vector(Vector),
    /// Inject the vector that the 8259 gives in its acknowledge cycle.
    External,
}

/// A set of local APICs cannot be made, or has no such part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocalApicError {
    /// [`LocalApicsConfig::timer_hz`] or [`LocalApicsConfig::tsc_hz`].
    #[error("{counter} is {hz}: 1 to {max} is accepted", max = LocalApicsConfig::MAX_HZ)]
    Rate {
        /// The field.
        counter: &'static str,
        /// Its value.
        hz: u64,
    },
    /// [`LocalApicsConfig::physical_address_bits`].
    #[error("{0} bits of physical address: there are 32 to 52")]
    PhysicalAddressBits(u32),
    /// A set has at least one CPU.
    #[error("no CPU: at least one is needed")]
    NoCpu,
    /// Two CPUs have the same ID, or one has the ID that stands for all of them.
    #[error("{0} is taken: each CPU needs one of its own, from 0 to 0xfffffffe but for 0xff")]
    Id(ApicId),
    /// There is no such CPU.
    #[error("{cpu}: there are CPUs 0 to {}", cpus - 1)]
    NoSuchCpu {
        /// The CPU that was asked for.
        cpu: CpuId,
        /// How many there are.
        cpus: usize,
    },
}
