//! The state of a local APIC as plain data, and what of it is refused.

use super::{config::ApicId, vectors::Vector};

/// Everything about a [`LocalApic`](super::LocalApic) that its guest can see, as [`save`](super::LocalApic::save) gives it. Registers are as the guest
/// reads them in xAPIC mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalApicState {
    /// The ID that it was made with: a state is taken back only by a local APIC of the same.
    pub id: ApicId,
    /// The ID register of xAPIC mode, which the guest can write there: bits 24 to 31. Otherwise it is as after a reset.
    pub xapic_id: u8,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// TPR.
    pub tpr: u8,
    /// The logical ID of xAPIC mode: bits 24 to 31 of LDR.
    pub logical_id: u8,
    /// The model: bits 28 to 31 of DFR.
    pub destination_model: u8,
    /// SVR.
    pub svr: u32,
    /// ESR as it reads.
    pub esr: u32,
    /// The errors that the next write to ESR will show.
    pub errors: u32,
    /// ICR: the low half in bits 0 to 31.
    pub icr: u64,
    /// The local vector table: timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    /// IRR: vector 64 n + m is bit m of word n. So with ISR and TMR.
    pub irr: [u64; 4],
    /// ISR.
    pub isr: [u64; 4],
    /// TMR.
    pub tmr: [u64; 4],
    /// Initial Count.
    pub initial_count: u32,
    /// Divide Configuration.
    pub divide: u32,
    /// Counts of the undivided timer until it reaches zero; `None` if it does not run.
    pub timer_left: Option<u64>,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
    /// The time-stamp counter at the time of saving.
    pub tsc: u64,
    /// An INIT has come that the CPU has not seen.
    pub init: bool,
    /// The vector of a start-up message that the CPU has not seen.
    pub start_up: Option<Vector>,
    /// NMIs that have come that the CPU has not seen: 2 at most.
    pub nmis: u8,
    /// An SMI has come that the CPU has not seen.
    pub smi: bool,
    /// A message with delivery mode ExtINT has come that the CPU has not seen.
    pub ext_int: bool,
    /// The CPU waits for a start-up message.
    pub waits_for_start_up: bool,
    /// The levels of LINT0 and LINT1.
    pub lint: [bool; 2],
}

/// A state is not one that this local APIC can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocalApicStateError {
    /// The state of another local APIC.
    #[error("state of {state}: this is {own}")]
    Id {
        /// The ID in the state.
        state: ApicId,
        /// The ID here.
        own: ApicId,
    },
    /// Another ID in x2APIC mode, where none can be written.
    #[error("xAPIC ID {xapic_id:#x} in x2APIC mode: there it is the lowest 8 bits of {id}")]
    XApicId {
        /// What the state has.
        xapic_id: u8,
        /// The ID that the local APIC was made with.
        id: ApicId,
    },
    /// More than a CPU keeps.
    #[error("{0} NMIs: a CPU takes one and latches one more")]
    Nmis(u8),
    /// A mode that is not there, or reserved bits.
    #[error("IA32_APIC_BASE {0:#x}: it has an address, BSP, EN and, with EN and where there is x2APIC, EXTD")]
    ApicBase(u64),
    /// Reserved bits are set.
    #[error("{register} {value:#x}: it has bits {allowed:#x}")]
    Reserved {
        /// The register's name in the manual.
        register: &'static str,
        /// What the state has.
        value: u64,
        /// What it can have.
        allowed: u64,
    },
    /// An unmasked entry, with the APIC disabled by software.
    #[error("LVT entry {0:#x} is not masked: it is, while SVR is disabled")]
    Unmasked(u32),
    /// Remote IRR in an entry that cannot have it, or that no EOI would ever reset.
    #[error("LVT entry {0:#x}: it has Remote IRR if it is level-triggered and fixed, and its vector is in IRR or ISR")]
    RemoteIrr(u32),
    /// A register that differs, with the APIC disabled by IA32_APIC_BASE.
    #[error("IA32_APIC_BASE {0:#x}: without EN all registers but TPR are as after a reset")]
    Disabled(u64),
    /// An initial count in a mode that has none.
    #[error("Initial Count {0:#x}: it is zero if the timer is in neither one-shot nor periodic mode")]
    InitialCount(u32),
    /// More than the timer counts, or a timer that runs without an initial count or in a mode that does not count.
    #[error("{left} counts left: there are at most {most} with this LVT, Initial Count and Divide Configuration")]
    TimerLeft {
        /// What the state has.
        left: u64,
        /// The most that there can be.
        most: u64,
    },
    /// A deadline in a mode that has none.
    #[error("IA32_TSC_DEADLINE {0:#x}: it is zero if the timer is not in TSC-deadline mode")]
    TscDeadline(u64),
}
