//! How the framework names registers.

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

impl DistributorReg {
    /// Whether it has 64 bits: `GICD_IROUTERn`.
    pub fn is_wide(self) -> bool {
        matches!(self.0, 0x6000..0x8000)
    }
}

impl RedistributorReg {
    /// Whether it has 64 bits: `GICR_TYPER`, and those of LPIs.
    pub fn is_wide(self) -> bool {
        matches!(self.0, 0x0008..0x0010 | 0x0040..0x0080 | 0x00a0..0x00b8)
    }
}
