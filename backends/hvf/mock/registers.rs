//! The registers of a vCPU, as far as interrupts and traps need them.

use std::collections::BTreeMap;

use crate::backends::hvf::{GeneralReg, Reg, SysReg};

/// `CNTV_CTL_EL0`.
const ENABLE: u64 = 1 << 0;
const IMASK: u64 = 1 << 1;
const ISTATUS: u64 = 1 << 2;

#[derive(Default)]
pub(super) struct Registers {
    x: [u64; 31],
    pc: u64,
    /// Those that were set.
    system: BTreeMap<SysReg, u64>,
    /// The condition of the virtual timer.
    timer: bool,
}

impl Registers {
    pub(super) fn x(&self, register: GeneralReg) -> u64 {
        self.x[usize::from(register.number())]
    }

    pub(super) fn set_x(&mut self, register: GeneralReg, value: u64) {
        self.x[usize::from(register.number())] = value;
    }

    pub(super) fn get(&self, register: Reg) -> u64 {
        match register {
            Reg::X(register) => self.x(register),
            Reg::Pc => self.pc,
        }
    }

    pub(super) fn set(&mut self, register: Reg, value: u64) {
        match register {
            Reg::X(register) => self.set_x(register, value),
            Reg::Pc => self.pc = value,
        }
    }

    pub(super) fn mpidr(&self) -> Option<u64> {
        self.system.get(&SysReg::MPIDR_EL1).copied()
    }

    pub(super) fn system(&self, register: SysReg) -> u64 {
        let value = self.system.get(&register).copied().unwrap_or(0);
        match register {
            SysReg::CNTV_CTL_EL0 if self.timer => value | ENABLE | ISTATUS,
            _ => value,
        }
    }

    pub(super) fn set_system(&mut self, register: SysReg, value: u64) {
        let value = match register {
            SysReg::CNTV_CTL_EL0 => value & !ISTATUS,
            _ => value,
        };
        self.system.insert(register, value);
    }

    pub(super) fn set_timer(&mut self, met: bool) {
        self.timer = met;
    }

    pub(super) fn timer_fires(&self) -> bool {
        self.timer && self.system(SysReg::CNTV_CTL_EL0) & IMASK == 0
    }
}
