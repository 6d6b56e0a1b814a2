//! The state of a vCPU's CPU interface, which the framework's own state of its GIC leaves out.

use super::{HvError, HvGic, SysReg, VcpuHandle};

/// `ICC_CTLR_EL1.CBPR`: `ICC_BPR1_EL1` shows the other binary point.
const CBPR: u64 = 1 << 0;

/// The registers that `hv_gic_icc_reg_t` names, those of EL2 aside.
pub(super) const ICC_REGISTERS: [SysReg; 10] = [
    SysReg::ICC_PMR_EL1,
    SysReg::ICC_BPR0_EL1,
    SysReg::ICC_AP0R_EL1[0],
    SysReg::ICC_AP1R_EL1[0],
    SysReg::ICC_RPR_EL1,
    SysReg::ICC_BPR1_EL1,
    SysReg::ICC_CTLR_EL1,
    SysReg::ICC_SRE_EL1,
    SysReg::ICC_IGRPEN0_EL1,
    SysReg::ICC_IGRPEN1_EL1,
];

/// The `ICC_*` registers of one vCPU, as plain data: for a snapshot, beside
/// [`hv_gic_state_create`](HvGic::hv_gic_state_create).
///
/// ```
/// use devisor::backends::hvf::{GicConfig, HvGic, HvVcpus, IccState, SysReg, mock::Process};
///
/// let framework = Process::new();
/// framework.hv_vm_create()?;
/// framework.hv_gic_create(&GicConfig::default())?;
/// let vcpu = framework.hv_vcpu_create()?;
/// framework.hv_vcpu_set_sys_reg(vcpu, SysReg::MPIDR_EL1, 0)?;
/// framework.hv_gic_set_icc_reg(vcpu, SysReg::ICC_PMR_EL1, 0xf0)?;
///
/// let state = IccState::save(&framework, vcpu)?;
/// assert_eq!(state.priority_mask, 0xf0);
/// state.restore(&framework, vcpu)?;
/// # Ok::<(), devisor::backends::hvf::HvError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IccState {
    /// `ICC_CTLR_EL1`.
    pub control: u64,
    /// `ICC_PMR_EL1`.
    pub priority_mask: u64,
    /// `ICC_BPR0_EL1`, and `ICC_BPR1_EL1` as it is while `CBPR` is clear.
    pub binary_points: [u64; 2],
    /// `ICC_AP0R0_EL1` and `ICC_AP1R0_EL1`: the framework has 32 priorities, and so no more of them.
    pub active_priorities: [u64; 2],
    /// `ICC_IGRPEN0_EL1` and `ICC_IGRPEN1_EL1`.
    pub enabled_groups: [u64; 2],
}

impl IccState {
    /// Takes the state of `vcpu`, on the thread that owns it.
    ///
    /// # Errors
    /// What the framework answered.
    pub fn save(framework: &impl HvGic, vcpu: VcpuHandle) -> Result<Self, HvError> {
        let get = |register| framework.hv_gic_get_icc_reg(vcpu, register);
        let control = get(SysReg::ICC_CTLR_EL1)?;
        // What ICC_BPR1_EL1 has behind a set CBPR.
        if control & CBPR != 0 {
            framework.hv_gic_set_icc_reg(vcpu, SysReg::ICC_CTLR_EL1, control & !CBPR)?;
        }
        let binary_points = [get(SysReg::ICC_BPR0_EL1), get(SysReg::ICC_BPR1_EL1)];
        if control & CBPR != 0 {
            framework.hv_gic_set_icc_reg(vcpu, SysReg::ICC_CTLR_EL1, control)?;
        }
        let [zero, one] = binary_points;
        Ok(Self {
            control,
            priority_mask: get(SysReg::ICC_PMR_EL1)?,
            binary_points: [zero?, one?],
            active_priorities: [get(SysReg::ICC_AP0R_EL1[0])?, get(SysReg::ICC_AP1R_EL1[0])?],
            enabled_groups: [get(SysReg::ICC_IGRPEN0_EL1)?, get(SysReg::ICC_IGRPEN1_EL1)?],
        })
    }

    /// Puts it back into `vcpu`, on the thread that owns it and before it runs.
    ///
    /// # Errors
    /// What the framework answered.
    pub fn restore(&self, framework: &impl HvGic, vcpu: VcpuHandle) -> Result<(), HvError> {
        let Self {
            control,
            priority_mask,
            binary_points,
            active_priorities,
            enabled_groups,
        } = *self;
        let registers = [
            (SysReg::ICC_CTLR_EL1, control & !CBPR),
            (SysReg::ICC_PMR_EL1, priority_mask),
            (SysReg::ICC_BPR0_EL1, binary_points[0]),
            (SysReg::ICC_BPR1_EL1, binary_points[1]),
            (SysReg::ICC_CTLR_EL1, control),
            (SysReg::ICC_AP0R_EL1[0], active_priorities[0]),
            (SysReg::ICC_AP1R_EL1[0], active_priorities[1]),
            (SysReg::ICC_IGRPEN0_EL1, enabled_groups[0]),
            (SysReg::ICC_IGRPEN1_EL1, enabled_groups[1]),
        ];
        let mut registers = registers.into_iter();
        registers.try_for_each(|(register, value)| framework.hv_gic_set_icc_reg(vcpu, register, value))
    }
}
