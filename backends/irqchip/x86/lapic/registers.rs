//! The registers of a local APIC: indices, fields and reset values. Sections are those of the *Intel 64 and IA-32
//! Architectures Software Developer's Manual*, volume 3, chapter "Advanced Programmable Interrupt Controller" (12).

/// Size of the xAPIC register page in bytes (12.4.1).
pub(super) const PAGE_SIZE: u64 = 0x1000;
/// The first of the x2APIC MSRs (12.12.1.2).
pub(super) const X2APIC_MSR_BASE: u32 = 0x800;
/// The last MSR that is set aside for the x2APIC.
pub(super) const X2APIC_MSR_LAST: u32 = 0x8ff;
/// IA32_APIC_BASE (12.4.4).
pub(super) const IA32_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE (12.5.4.1).
pub(super) const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// IA32_APIC_BASE: the bootstrap processor.
pub(super) const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub(super) const BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is there at all.
pub(super) const BASE_EN: u64 = 1 << 11;
/// IA32_APIC_BASE: where the xAPIC page is, up to the 52 bits that the architecture can have.
pub(super) const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where the page is after a reset.
pub(super) const RESET_BASE_ADDRESS: u64 = 0xfee0_0000;

/// A register, table 12-1 and table 12-6. The number is that of the register within its array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// Local APIC ID, 12.4.6.
    Id,
    /// Local APIC Version, 12.4.8.
    Version,
    /// Task Priority, 12.8.3.1.
    Tpr,
    /// Arbitration Priority and Remote Read: not there since the Pentium 4.
    Obsolete,
    /// Processor Priority, 12.8.3.1.
    Ppr,
    /// End Of Interrupt, 12.8.5.
    Eoi,
    /// Logical Destination, 12.6.2.2.
    Ldr,
    /// Destination Format, 12.6.2.2.
    Dfr,
    /// Spurious Interrupt Vector, 12.9.
    Svr,
    /// In-Service, 12.8.4.
    Isr(usize),
    /// Trigger Mode, 12.8.4.
    Tmr(usize),
    /// Interrupt Request, 12.8.4.
    Irr(usize),
    /// Error Status, 12.5.3.
    Esr,
    /// Interrupt Command, bits 0 to 31, 12.6.1.
    IcrLow,
    /// Interrupt Command, bits 32 to 63, 12.6.1.
    IcrHigh,
    /// An entry of the local vector table, 12.5.1.
    Lvt(Lvt),
    /// Initial Count of the timer, 12.5.4.
    InitialCount,
    /// Current Count of the timer, 12.5.4.
    CurrentCount,
    /// Divide Configuration of the timer, 12.5.4.
    Divide,
    /// SELF IPI, in x2APIC mode alone, 12.12.11.
    SelfIpi,
}

impl Register {
    /// The register of this index: the offset in the xAPIC page divided by 16, or the MSR less 0x800.
    pub fn at(index: u32) -> Option<Self> {
        let word = |base: u32| (index - base) as usize;
        Some(match index {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::Tpr,
            0x09 | 0x0c => Self::Obsolete,
            0x0a => Self::Ppr,
            0x0b => Self::Eoi,
            0x0d => Self::Ldr,
            0x0e => Self::Dfr,
            0x0f => Self::Svr,
            0x10..0x18 => Self::Isr(word(0x10)),
            0x18..0x20 => Self::Tmr(word(0x18)),
            0x20..0x28 => Self::Irr(word(0x20)),
            0x28 => Self::Esr,
            0x30 => Self::IcrLow,
            0x31 => Self::IcrHigh,
            0x32..0x38 => Self::Lvt(Lvt::ALL[word(0x32)]),
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::Divide,
            0x3f => Self::SelfIpi,
            _ => return None,
        })
    }
}

/// An entry of the local vector table, in the order of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lvt {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    pub const ALL: [Self; 6] = [
        Self::Timer,
        Self::Thermal,
        Self::Performance,
        Self::Lint0,
        Self::Lint1,
        Self::Error,
    ];

    /// As the manual names the register.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timer => "LVT Timer",
            Self::Thermal => "LVT Thermal Sensor",
            Self::Performance => "LVT Performance Monitoring Counters",
            Self::Lint0 => "LVT LINT0",
            Self::Lint1 => "LVT LINT1",
            Self::Error => "LVT Error",
        }
    }

    /// The fields that software can write (figure 12-8).
    pub fn writable(self) -> u32 {
        match self {
            Self::Timer => LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE,
            Self::Thermal | Self::Performance => LVT_VECTOR | LVT_MODE | LVT_MASKED,
            Self::Lint0 | Self::Lint1 => LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
            Self::Error => LVT_VECTOR | LVT_MASKED,
        }
    }

    /// The fields that software reads and that a write does not change.
    pub fn read_only(self) -> u32 {
        match self {
            Self::Lint0 | Self::Lint1 => LVT_DELIVERY_STATUS | LVT_REMOTE_IRR,
            _ => LVT_DELIVERY_STATUS,
        }
    }
}

pub(super) const LVT_VECTOR: u32 = 0xff;
/// The delivery mode, as in the ICR.
pub(super) const LVT_MODE: u32 = 7 << 8;
/// Always idle here: a local interrupt is accepted at once.
pub(super) const LVT_DELIVERY_STATUS: u32 = 1 << 12;
/// Active low. A line of ours has no voltage: up is asserted, whatever this says.
pub(super) const LVT_POLARITY: u32 = 1 << 13;
pub(super) const LVT_REMOTE_IRR: u32 = 1 << 14;
pub(super) const LVT_LEVEL: u32 = 1 << 15;
pub(super) const LVT_MASKED: u32 = 1 << 16;
pub(super) const LVT_TIMER_MODE: u32 = 3 << 17;

/// SVR: the APIC is enabled by software.
pub(super) const SVR_ENABLED: u32 = 1 << 8;
/// SVR: no EOI broadcast, where the version register says that it can be had.
pub(super) const SVR_SUPPRESS_EOI: u32 = 1 << 12;
/// SVR: vector, enable, and focus processor checking, which is kept and means nothing since the Pentium 4.
pub(super) const SVR_WRITABLE: u32 = 0x3ff;
pub(super) const RESET_SVR: u32 = 0xff;

/// The version: an integrated APIC with six entries in its local vector table.
pub(super) const VERSION: u32 = 0x14 | 5 << 16;
/// Version: [`SVR_SUPPRESS_EOI`] is there.
pub(super) const VERSION_SUPPRESS_EOI: u32 = 1 << 24;

/// DFR: the model, above bits that read as one.
pub(super) const DFR_MODEL_SHIFT: u32 = 28;
pub(super) const DFR_FLAT: u8 = 0xf;
pub(super) const DFR_CLUSTER: u8 = 0;
pub(super) const DFR_RESERVED: u32 = 0x0fff_ffff;

/// ESR: an IPI of a vector below 16 was to be sent.
pub(super) const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// ESR: a message or a local interrupt has a vector below 16.
pub(super) const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// ESR: a register that is not there.
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;
pub(super) const ESR_ERRORS: u32 = ESR_SEND_ILLEGAL_VECTOR | ESR_RECEIVE_ILLEGAL_VECTOR | ESR_ILLEGAL_REGISTER;

/// A CPU takes one NMI, and latches one more (6.7.1).
pub(super) const MAX_NMIS: u8 = 2;

/// Vectors below are the exceptions' and refused (12.5.2).
pub(super) const FIRST_VECTOR: u8 = 16;

pub(super) const ICR_LOGICAL: u32 = 1 << 11;
/// Delivery status in xAPIC mode. x2APIC mode has none, and lets the bit be written.
pub(super) const ICR_DELIVERY_STATUS: u32 = 1 << 12;
pub(super) const ICR_ASSERT: u32 = 1 << 14;
pub(super) const ICR_LEVEL: u32 = 1 << 15;
pub(super) const ICR_SHORTHAND_SHIFT: u32 = 18;
/// Vector, delivery mode, destination mode, level, trigger mode, shorthand (figure 12-12).
pub(super) const ICR_WRITABLE: u32 = 0xff | LVT_MODE | ICR_LOGICAL | ICR_ASSERT | ICR_LEVEL | 3 << ICR_SHORTHAND_SHIFT;

/// Divide configuration: bits 0, 1 and 3 (figure 12-10).
pub(super) const DIVIDE_WRITABLE: u32 = 0b1011;

/// How a message is to be taken (12.6.1, table 12-3; the encoding is that of ICR, LVT, IOAPIC and MSI alike).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliveryMode {
    Fixed,
    LowestPriority,
    Smi,
    Nmi,
    Init,
    StartUp,
    ExtInt,
}

impl DeliveryMode {
    /// The mode in bits 8 to 10; `None` for the reserved one.
    pub fn of(word: u32) -> Option<Self> {
        Some(match (word & LVT_MODE) >> 8 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// How the timer counts (table 12-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl TimerMode {
    pub fn of(lvt: u32) -> Self {
        match (lvt & LVT_TIMER_MODE) >> 17 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    /// Whether Initial Count and Current Count are in use.
    pub fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}
