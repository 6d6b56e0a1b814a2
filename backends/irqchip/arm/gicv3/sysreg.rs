//! The system registers of a CPU interface and how hypervisors name them (IHI 0069, 12.2).

use std::fmt;

/// A system register of AArch64, by the fields of `MRS` and `MSR` that name it.
///
/// ```
/// use devisor::backends::irqchip::gicv3::SysReg;
///
/// let iar = SysReg::new(3, 0, 12, 12, 0);
/// assert_eq!(iar, SysReg::ICC_IAR1_EL1);
/// // As KVM and Hypervisor.framework number them.
/// assert_eq!(u16::from(iar), 0xc660); // and HV_SYS_REG_MPIDR_EL1 is 0xc005:
/// assert_eq!(u16::from(SysReg::MPIDR_EL1), 0xc005);
/// // As a trapped access leaves it in ESR_EL2.ISS, of whatever direction and general register.
/// assert_eq!(SysReg::from_iss(0x30_3018 | 5 << 5 | 1), iar);
/// assert_eq!(iar.to_string(), "S3_0_C12_C12_0");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SysReg {
    // One number, so that decoding is one `match`.
    encoding: u16,
}

impl SysReg {
    /// ICC_PMR_EL1.
    pub const ICC_PMR_EL1: Self = Self::new(3, 0, 4, 6, 0);
    /// ICC_IAR0_EL1.
    pub const ICC_IAR0_EL1: Self = Self::new(3, 0, 12, 8, 0);
    /// ICC_EOIR0_EL1.
    pub const ICC_EOIR0_EL1: Self = Self::new(3, 0, 12, 8, 1);
    /// ICC_HPPIR0_EL1.
    pub const ICC_HPPIR0_EL1: Self = Self::new(3, 0, 12, 8, 2);
    /// ICC_BPR0_EL1.
    pub const ICC_BPR0_EL1: Self = Self::new(3, 0, 12, 8, 3);
    /// ICC_AP0R0_EL1 to ICC_AP0R3_EL1.
    pub const ICC_AP0R_EL1: [Self; 4] = [
        Self::new(3, 0, 12, 8, 4),
        Self::new(3, 0, 12, 8, 5),
        Self::new(3, 0, 12, 8, 6),
        Self::new(3, 0, 12, 8, 7),
    ];
    /// ICC_AP1R0_EL1 to ICC_AP1R3_EL1.
    pub const ICC_AP1R_EL1: [Self; 4] = [
        Self::new(3, 0, 12, 9, 0),
        Self::new(3, 0, 12, 9, 1),
        Self::new(3, 0, 12, 9, 2),
        Self::new(3, 0, 12, 9, 3),
    ];
    /// ICC_DIR_EL1.
    pub const ICC_DIR_EL1: Self = Self::new(3, 0, 12, 11, 1);
    /// ICC_RPR_EL1.
    pub const ICC_RPR_EL1: Self = Self::new(3, 0, 12, 11, 3);
    /// ICC_SGI1R_EL1.
    pub const ICC_SGI1R_EL1: Self = Self::new(3, 0, 12, 11, 5);
    /// ICC_ASGI1R_EL1.
    pub const ICC_ASGI1R_EL1: Self = Self::new(3, 0, 12, 11, 6);
    /// ICC_SGI0R_EL1.
    pub const ICC_SGI0R_EL1: Self = Self::new(3, 0, 12, 11, 7);
    /// ICC_IAR1_EL1.
    pub const ICC_IAR1_EL1: Self = Self::new(3, 0, 12, 12, 0);
    /// ICC_EOIR1_EL1.
    pub const ICC_EOIR1_EL1: Self = Self::new(3, 0, 12, 12, 1);
    /// ICC_HPPIR1_EL1.
    pub const ICC_HPPIR1_EL1: Self = Self::new(3, 0, 12, 12, 2);
    /// ICC_BPR1_EL1.
    pub const ICC_BPR1_EL1: Self = Self::new(3, 0, 12, 12, 3);
    /// ICC_CTLR_EL1.
    pub const ICC_CTLR_EL1: Self = Self::new(3, 0, 12, 12, 4);
    /// ICC_SRE_EL1.
    pub const ICC_SRE_EL1: Self = Self::new(3, 0, 12, 12, 5);
    /// ICC_IGRPEN0_EL1.
    pub const ICC_IGRPEN0_EL1: Self = Self::new(3, 0, 12, 12, 6);
    /// ICC_IGRPEN1_EL1.
    pub const ICC_IGRPEN1_EL1: Self = Self::new(3, 0, 12, 12, 7);

    /// MPIDR_EL1: which CPU this is.
    pub const MPIDR_EL1: Self = Self::new(3, 0, 0, 0, 5);
    /// CNTV_CTL_EL0: the virtual timer's control.
    pub const CNTV_CTL_EL0: Self = Self::new(3, 3, 14, 3, 1);
    /// CNTV_CVAL_EL0: when the virtual timer fires.
    pub const CNTV_CVAL_EL0: Self = Self::new(3, 3, 14, 3, 2);

    /// By its fields. Bits beyond those that a field has are left out.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        let (op0, op1, crn) = (op0 as u16 & 0b11, op1 as u16 & 0b111, crn as u16 & 0xf);
        let (crm, op2) = (crm as u16 & 0xf, op2 as u16 & 0b111);
        Self {
            encoding: op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2,
        }
    }

    /// By the syndrome of an `MSR` or `MRS` that was trapped: ESR_EL2.ISS where ESR_EL2.EC is 0x18. The direction is
    /// bit 0 of it, 1 for a read, and the general register is bits 9:5: 31 stands for zero.
    pub const fn from_iss(iss: u64) -> Self {
        Self::new(
            (iss >> 20) as u8,
            (iss >> 14) as u8,
            (iss >> 10) as u8,
            (iss >> 1) as u8,
            (iss >> 17) as u8,
        )
    }
}

/// By the number that `KVM_REG_ARM64_SYSREG` and `hv_sys_reg_t` give it: op0, op1, CRn, CRm and op2, from bit 14 down.
impl From<u16> for SysReg {
    fn from(encoding: u16) -> Self {
        Self { encoding }
    }
}

impl From<SysReg> for u16 {
    fn from(register: SysReg) -> Self {
        register.encoding
    }
}

impl fmt::Display for SysReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |shift: u32, mask: u16| self.encoding >> shift & mask;
        let (op0, op1, crn) = (field(14, 0b11), field(11, 0b111), field(7, 0xf));
        write!(f, "S{op0}_{op1}_C{crn}_C{}_{}", field(3, 0xf), field(0, 0b111))
    }
}
