//! The state of a GICv2 as plain data: taken, checked and put back.

use super::{
    super::gic::{
        Group, InterruptState, TriggerMode,
        check::{self, StateError, accept, bits, count},
        ids::{PRIVATE, SGIS},
        preemption::{Preemption, implemented},
    },
    GicV2, GicV2Config,
    cpu_interface::CpuInterface,
    model::{Model, Source},
    registers::{ENABLE_GROUPS, gicc_ctlr},
};
use crate::{backends::irqchip::CpuId, sync::lock};

/// Everything of a [`GicV2`] that a guest can see. Made by [`GicV2::save`], taken by [`GicV2::restore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV2State {
    /// What the GIC was made with.
    pub config: GicV2Config,
    /// GICD_CTLR.
    pub control: u32,
    /// What each CPU has of its own.
    pub cpus: Vec<CpuState>,
    /// The SPIs, from SPI 0 on.
    pub spis: Vec<SpiState>,
}

/// What is one CPU's own: its private interrupts and its CPU interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// INTIDs 0 to 31: SGIs, then PPIs.
    pub private: [InterruptState; PRIVATE as usize],
    /// For each SGI, a bit for each CPU that has sent it: GICD_SPENDSGIRn.
    pub sgi_senders: [u8; SGIS as usize],
    /// GICC_CTLR.
    pub control: u32,
    /// GICC_PMR.
    pub priority_mask: u8,
    /// GICC_BPR.
    pub binary_point: u8,
    /// GICC_ABPR.
    pub aliased_binary_point: u8,
    /// GICC_APRn: the active priorities of Group 0.
    pub active_priorities: [u32; 4],
    /// GICC_NSAPRn: the active priorities of Group 1.
    pub non_secure_active_priorities: [u32; 4],
}

/// One SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpiState {
    /// Its state.
    pub state: InterruptState,
    /// A bit for each CPU it is for: GICD_ITARGETSRn.
    pub targets: u8,
}

/// A [`GicV2State`] cannot be restored. Nothing was changed.
pub type GicV2StateError = StateError<GicV2Config>;

impl GicV2 {
    /// Takes the state. Stop the vCPUs and the devices first, or it is that of some moment in between.
    pub fn save(&self) -> GicV2State {
        lock(&self.shared.model).save()
    }

    /// Puts a state back. The outputs are derived from it at once, so an output may be told during the call.
    ///
    /// Restore the devices too, before or after: a line that was up is expected to be driven up again, which is no new
    /// edge for the guest. Until then it counts as down. A line that was down and is up now is a new edge.
    ///
    /// # Errors
    /// [`GicV2StateError`]: the state is refused as a whole.
    pub fn restore(&self, state: &GicV2State) -> Result<(), GicV2StateError> {
        state.check(self.shared.config)?;
        self.shared.with(|model| model.restore(state));
        Ok(())
    }
}

impl Model {
    fn save(&self) -> GicV2State {
        // `competing` follows from the rest, and `news` is empty between two calls.
        let Self {
            config,
            control,
            private,
            shared,
            sgi_senders,
            interfaces,
            competing: _,
            news: _,
        } = self;
        let cpus = private.iter().zip(sgi_senders).zip(interfaces);
        GicV2State {
            config: *config,
            control: *control,
            cpus: cpus
                .map(|((private, sgi_senders), interface)| {
                    let CpuInterface { control, preemption } = interface;
                    let active = &preemption.active;
                    CpuState {
                        private: private.each_ref().map(Source::saved),
                        sgi_senders: *sgi_senders,
                        control: *control,
                        priority_mask: preemption.priority_mask(),
                        binary_point: preemption.binary_point(),
                        aliased_binary_point: preemption.aliased_binary_point(),
                        active_priorities: [0, 1, 2, 3].map(|index| active.register(Group::Zero, index)),
                        non_secure_active_priorities: [0, 1, 2, 3].map(|index| active.register(Group::One, index)),
                    }
                })
                .collect(),
            spis: shared
                .iter()
                .map(|source| SpiState {
                    state: source.saved(),
                    targets: source.route.targets,
                })
                .collect(),
        }
    }

    /// Puts everything back to what it was at the start, but for the lines.
    pub(super) fn reset(&mut self) {
        self.restore(&Self::new(self.config).save());
    }

    /// Puts a checked state back. No interrupt is finished by it: that is another guest's past.
    fn restore(&mut self, state: &GicV2State) {
        let GicV2State {
            config: _,
            control,
            cpus,
            spis,
        } = state;
        for (cpu, saved) in cpus.iter().enumerate() {
            let CpuState {
                private,
                sgi_senders,
                control,
                priority_mask,
                binary_point,
                aliased_binary_point,
                active_priorities,
                non_secure_active_priorities,
            } = saved;
            for (intid, state) in (0..).zip(private) {
                self.replace(cpu, intid, |source| source.restore(state));
            }
            self.sgi_senders[cpu] = *sgi_senders;
            let CpuInterface {
                control: this_control,
                preemption,
            } = &mut self.interfaces[cpu];
            *this_control = *control;
            preemption.set_priority_mask(*priority_mask);
            preemption.set_binary_point(*binary_point);
            preemption.set_aliased_binary_point(*aliased_binary_point);
            for index in 0..4 {
                preemption
                    .active
                    .set_register(Group::Zero, index, active_priorities[index]);
                preemption
                    .active
                    .set_register(Group::One, index, non_secure_active_priorities[index]);
            }
        }
        for (intid, SpiState { state, targets }) in (PRIVATE..).zip(spis) {
            self.replace(0, intid, |source| {
                source.restore(state);
                source.route.targets = *targets;
            });
        }
        self.set_control(*control);
    }
}

impl GicV2State {
    fn check(&self, this: GicV2Config) -> Result<(), GicV2StateError> {
        let Self {
            config: saved,
            control,
            cpus,
            spis,
        } = self;
        if *saved != this {
            return Err(GicV2StateError::Config { saved: *saved, this });
        }
        count("CPUs", cpus.len(), this.cpus)?;
        count("SPIs", spis.len(), this.spis)?;
        bits(|| "GICD_CTLR".into(), (*control).into(), ENABLE_GROUPS.into())?;
        for (cpu, state) in (0..).map(CpuId).zip(cpus) {
            state.check(cpu, this)?;
        }
        for (intid, SpiState { state, targets }) in (PRIVATE..).zip(spis) {
            check::priority(|| format!("priority of INTID {intid}"), state, this.priority_bits)?;
            let what = || format!("targets of INTID {intid}");
            match this.cpus {
                1 => accept(what, (*targets).into(), *targets == 1, || "1".into())?,
                _ => bits(what, (*targets).into(), this.all_cpus().into())?,
            }
        }
        Ok(())
    }
}

impl CpuState {
    fn check(&self, cpu: CpuId, this: GicV2Config) -> Result<(), GicV2StateError> {
        let Self {
            private,
            sgi_senders,
            control,
            priority_mask,
            binary_point,
            aliased_binary_point,
            active_priorities,
            non_secure_active_priorities,
        } = self;
        for (intid, state) in (0..).zip(private) {
            check::priority(
                || format!("priority of INTID {intid} of {cpu}"),
                state,
                this.priority_bits,
            )?;
            if let Some(&senders) = sgi_senders.get(intid as usize) {
                bits(
                    || format!("senders of SGI {intid} of {cpu}"),
                    senders.into(),
                    this.all_cpus().into(),
                )?;
                let consistent =
                    state.enabled && state.trigger == TriggerMode::Edge && !state.line && state.latch == (senders != 0);
                accept(
                    || format!("SGI {intid} of {cpu}, sent"),
                    senders.into(),
                    consistent,
                    || "enabled, edge-triggered, line down, latched if and only if sent".into(),
                )?;
            }
        }
        bits(
            || format!("GICC_CTLR of {cpu}"),
            (*control).into(),
            gicc_ctlr::WRITABLE.into(),
        )?;
        let mask = (*priority_mask).into();
        bits(
            || format!("GICC_PMR of {cpu}"),
            mask,
            implemented(this.priority_bits).into(),
        )?;
        let fresh = Preemption::new(this.priority_bits);
        for (register, value, min) in [
            ("GICC_BPR", *binary_point, fresh.binary_point()),
            ("GICC_ABPR", *aliased_binary_point, fresh.aliased_binary_point()),
        ] {
            let accepted = (min..=7).contains(&value);
            accept(
                || format!("{register} of {cpu}"),
                value.into(),
                accepted,
                || format!("{min} to 7"),
            )?;
        }
        for index in 0..4 {
            let mask = fresh.active.register_mask(index).into();
            bits(
                || format!("GICC_APR{index} of {cpu}"),
                active_priorities[index].into(),
                mask,
            )?;
            bits(
                || format!("GICC_NSAPR{index} of {cpu}"),
                non_secure_active_priorities[index].into(),
                mask,
            )?;
        }
        Ok(())
    }
}
