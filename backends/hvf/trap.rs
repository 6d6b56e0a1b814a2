//! What the guest tried when it trapped: the syndromes of Arm's exceptions to EL2 (DDI 0487, `ESR_EL2`).

use super::{GeneralReg, SysReg};

/// An instruction of the guest's that trapped, out of [`VcpuExit::Exception`](super::VcpuExit::Exception).
///
/// ```
/// use devisor::backends::hvf::{GeneralReg, SysReg, Trap};
///
/// // MSR ICC_PMR_EL1, x3
/// let trap = Trap::decode(0x6230_106c, 0);
/// let register = SysReg::new(3, 0, 4, 6, 0);
/// assert_eq!(trap, Trap::SysReg { register, operand: GeneralReg::new(3), is_read: false });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// `MRS` or `MSR` (class 0x18).
    SysReg {
        /// The register that it accesses.
        register: SysReg,
        /// Where the value goes or comes from; `None` is the zero register.
        operand: Option<GeneralReg>,
        /// `MRS`.
        is_read: bool,
    },
    /// A load or store where no memory is (class 0x24), of an instruction that the syndrome describes.
    Mmio {
        /// Guest physical address.
        address: u64,
        /// Bytes: 1, 2, 4 or 8.
        len: u8,
        /// Where the value goes or comes from; `None` is the zero register.
        operand: Option<GeneralReg>,
        /// What the instruction does.
        access: MmioAccess,
    },
    /// `WFI` or `WFE` (class 0x01).
    Wait {
        /// `WFE`, which may end for no reason.
        for_event: bool,
    },
    /// `HVC` (class 0x16) with its immediate. The program counter is past it already.
    Hvc(u16),
    /// `SMC` (class 0x17) with its immediate. The program counter is *at* it.
    Smc(u16),
    /// Anything else, among it loads and stores that the syndrome does not describe.
    Other {
        /// `ESR_EL2`, whole.
        syndrome: u64,
    },
}

/// A load, and what becomes of the bits above those that it loads; or a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioAccess {
    /// It loads and extends with zeros.
    Load,
    /// It loads and extends the sign.
    LoadSigned {
        /// To 64 bits, and else to 32.
        to_64_bits: bool,
    },
    /// It stores.
    Store,
}

const WAIT: u64 = 0x01;
const HVC: u64 = 0x16;
const SMC: u64 = 0x17;
const SYSTEM: u64 = 0x18;
const DATA_ABORT: u64 = 0x24;
/// All instructions of AArch64 are of 32 bits.
const IL: u64 = 1 << 25;
/// The fields that describe the access of a data abort are valid.
const ISV: u64 = 1 << 24;
/// On a walk of the guest's own tables: there is no such instruction.
const S1PTW: u64 = 1 << 7;
const WNR: u64 = 1 << 6;

impl Trap {
    /// What an exception says.
    pub fn decode(syndrome: u64, physical_address: u64) -> Self {
        let field = |shift: u32, mask: u64| (syndrome >> shift & mask) as u8;
        let immediate = syndrome as u16;
        match syndrome >> 26 & 0x3f {
            WAIT => Self::Wait {
                for_event: syndrome & 1 != 0,
            },
            HVC => Self::Hvc(immediate),
            SMC => Self::Smc(immediate),
            SYSTEM => Self::SysReg {
                register: SysReg::from_iss(syndrome & 0x1ff_ffff),
                operand: GeneralReg::new(field(5, 31)),
                is_read: syndrome & 1 != 0,
            },
            DATA_ABORT if syndrome & (ISV | S1PTW) == ISV => Self::Mmio {
                address: physical_address,
                len: 1 << field(22, 3),
                operand: GeneralReg::new(field(16, 31)),
                access: match (syndrome & WNR != 0, field(21, 1) != 0) {
                    (true, _) => MmioAccess::Store,
                    (false, false) => MmioAccess::Load,
                    (false, true) => MmioAccess::LoadSigned {
                        to_64_bits: field(15, 1) != 0,
                    },
                },
            },
            _ => Self::Other { syndrome },
        }
    }

    /// The syndrome that says it, as a processor would: what [`decode`](Self::decode) turns back. For those that play a
    /// guest. `None` if `len` is no length of an access.
    pub fn syndrome(self) -> Option<u64> {
        let operand_of = |operand: Option<GeneralReg>| u64::from(operand.map_or(31, GeneralReg::number));
        Some(match self {
            Self::Other { syndrome } => syndrome,
            Self::Wait { for_event } => WAIT << 26 | IL | u64::from(for_event),
            Self::Hvc(immediate) => HVC << 26 | IL | u64::from(immediate),
            Self::Smc(immediate) => SMC << 26 | IL | u64::from(immediate),
            Self::SysReg {
                register,
                operand,
                is_read,
            } => {
                let encoding = u16::from(register);
                let field = |shift: u32, mask: u16| u64::from(encoding >> shift & mask);
                let fields = field(14, 3) << 20 | field(0, 7) << 17 | field(11, 7) << 14 | field(7, 15) << 10;
                SYSTEM << 26 | IL | fields | operand_of(operand) << 5 | field(3, 15) << 1 | u64::from(is_read)
            }
            Self::Mmio {
                address: _,
                len,
                operand,
                access,
            } => {
                if !matches!(len, 1 | 2 | 4 | 8) {
                    return None;
                }
                let size = u64::from(len.trailing_zeros()) << 22;
                let access = match access {
                    MmioAccess::Store => WNR,
                    MmioAccess::Load => 0,
                    MmioAccess::LoadSigned { to_64_bits } => 1 << 21 | u64::from(to_64_bits) << 15,
                };
                // A translation fault at level 1.
                DATA_ABORT << 26 | IL | ISV | size | operand_of(operand) << 16 | access | 0b101
            }
        })
    }
}

impl MmioAccess {
    /// What the register holds after a load of `len` bytes that read `value`, which has no bits beyond them.
    pub(super) fn extend(self, value: u64, len: u8) -> u64 {
        match self {
            Self::Load | Self::Store => value,
            Self::LoadSigned { to_64_bits } => {
                let unused = 64 - 8 * u32::from(len);
                let extended = ((value << unused).cast_signed() >> unused).cast_unsigned();
                if to_64_bits { extended } else { extended & 0xffff_ffff }
            }
        }
    }
}
