//! How the framework names registers.

use std::fmt;

/// A system register, as `hv_sys_reg_t` and `hv_gic_icc_reg_t` name it: `op0`, `op1`, `CRn`, `CRm` and `op2` of its
/// instruction, from bit 14 down.
///
/// ```
/// use devisor::backends::hvf::SysReg;
///
/// assert_eq!(SysReg::new(3, 0, 0, 0, 5), SysReg::MPIDR_EL1);
/// assert_eq!(SysReg::MPIDR_EL1.0, 0xc005); // HV_SYS_REG_MPIDR_EL1
/// assert_eq!(SysReg::new(3, 0, 4, 6, 0).0, 0xc230); // HV_GIC_ICC_REG_PMR_EL1
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SysReg(pub u16);

impl SysReg {
    /// The register whose instruction has these fields; bits beyond a field's width are dropped.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        let fields = (op0 as u16 & 3) << 14 | (op1 as u16 & 7) << 11;
        Self(fields | (crn as u16 & 15) << 7 | (crm as u16 & 15) << 3 | (op2 as u16 & 7))
    }

    /// `MPIDR_EL1`: which CPU this is.
    pub const MPIDR_EL1: Self = Self::new(3, 0, 0, 0, 5);
    /// `CNTV_CTL_EL0`: the virtual timer's control.
    pub const CNTV_CTL_EL0: Self = Self::new(3, 3, 14, 3, 1);
    /// `CNTV_CVAL_EL0`: when the virtual timer fires.
    pub const CNTV_CVAL_EL0: Self = Self::new(3, 3, 14, 3, 2);
}

impl fmt::Debug for SysReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |shift: u32, mask: u16| self.0 >> shift & mask;
        let (op0, op1) = (field(14, 3), field(11, 7));
        write!(f, "S{op0}_{op1}_C{}_C{}_{}", field(7, 15), field(3, 15), field(0, 7))
    }
}

/// A general register (`hv_reg_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reg {
    /// `HV_REG_X0` to `HV_REG_X30`, which are 0 to 30.
    X(GeneralReg),
    /// `HV_REG_PC`, 31.
    Pc,
}

/// The number of a general register, 0 to 30.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GeneralReg(u8);

impl GeneralReg {
    /// Register `number`; `None` for 31, which an instruction means as the zero register, and beyond.
    pub const fn new(number: u8) -> Option<Self> {
        if number < 31 { Some(Self(number)) } else { None }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl Reg {
    /// The value of `hv_reg_t`.
    pub const fn number(self) -> u32 {
        match self {
            Self::X(GeneralReg(number)) => number as u32,
            Self::Pc => 31,
        }
    }
}

/// A register of the distributor, by its offset (`hv_gic_distributor_reg_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DistributorReg(pub u16);

/// A register of a redistributor, by its offset in the two frames, `RD_base` and `SGI_base`
/// (`hv_gic_redistributor_reg_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RedistributorReg(pub u32);
