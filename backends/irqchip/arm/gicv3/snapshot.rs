//! The state of a GICv3 as plain data: taken, checked and put back.

use super::{
    super::gic::{
        Group, InterruptState, TriggerMode,
        check::{self, StateError, accept, bits, count},
        ids::SGIS,
        preemption::{Preemption, implemented},
    },
    GicV3, GicV3Config, LpiSupport, Shared,
    cpu::Cpu,
    cpu_interface::CpuInterface,
    distributor::{Distributor, Route, Session, Spi},
    registers::{gicd_ctlr, gicd_irouter, gicr_ctlr, icc_ctlr, pendbaser, propbaser},
};
use crate::backends::irqchip::CpuId;

/// Everything of a [`GicV3`] that a guest can see, but for its tables in guest memory. Made by [`GicV3::save`], taken by
/// [`GicV3::restore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV3State {
    /// What the GIC was made with.
    pub config: GicV3Config,
    /// GICD_CTLR: the enable bits of the groups.
    pub control: u32,
    /// What each CPU has of its own.
    pub cpus: Vec<CpuState>,
    /// The SPIs from INTID 32 on, then those of the extended range.
    pub spis: Vec<SpiState>,
}

/// What is one CPU's own: its redistributor and its CPU interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// INTIDs 0 to 31, SGIs and PPIs, then the PPIs of the extended range.
    pub private: Vec<InterruptState>,
    /// GICR_CTLR: EnableLPIs and the DPG bits.
    pub redistributor_control: u32,
    /// GICR_WAKER.ProcessorSleep.
    pub asleep: bool,
    /// GICR_PROPBASER.
    pub properties_base: u64,
    /// GICR_PENDBASER. PTZ is as it was written, and clear while LPIs are enabled.
    pub pending_base: u64,
    /// ICC_CTLR_EL1: CBPR and EOImode.
    pub control: u32,
    /// ICC_IGRPEN0_EL1 in bit 0, ICC_IGRPEN1_EL1 in bit 1.
    pub enabled_groups: u32,
    /// ICC_PMR_EL1.
    pub priority_mask: u8,
    /// ICC_BPR0_EL1 and ICC_BPR1_EL1, the latter as it is while CBPR is clear.
    pub binary_points: [u8; 2],
    /// ICC_AP0Rn_EL1 and ICC_AP1Rn_EL1.
    pub active_priorities: [[u32; 4]; 2],
}

/// One SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpiState {
    /// Its state.
    pub state: InterruptState,
    /// GICD_IROUTERn.
    pub router: u64,
    /// GICD_SETSPI_NSR holds its line up until GICD_CLRSPI_NSR lets go.
    pub message: bool,
}

/// A [`GicV3State`] cannot be restored. Nothing was changed.
pub type GicV3StateError = StateError<Box<GicV3Config>>;

impl GicV3 {
    /// Takes the state. Stop the vCPUs and the devices first, or it is that of some moment in between.
    ///
    /// Which LPIs are pending is not in it: this call writes that to the guest's pending tables, as clearing
    /// GICR_CTLR.EnableLPIs would. So save guest memory afterwards.
    pub fn save(&self) -> GicV3State {
        self.shared.save()
    }

    /// Puts a state back. The outputs are derived from it at once, so an output may be told during the call. Restore
    /// guest memory before: the tables of LPIs are read from there.
    ///
    /// Restore the devices too, before or after: a line that was up is expected to be driven up again, which is no new
    /// edge for the guest. Until then it counts as down. A line that was down and is up now is a new edge.
    ///
    /// # Errors
    /// [`GicV3StateError`]: the state is refused as a whole.
    pub fn restore(&self, state: &GicV3State) -> Result<(), GicV3StateError> {
        state.check(&self.shared.config)?;
        self.shared.restore(state);
        Ok(())
    }
}

impl Shared {
    fn save(&self) -> GicV3State {
        self.look_at_distributor(|session| {
            // Who takes part in what follows from the CPUs.
            let Distributor { control, spis, .. } = &*session.model;
            GicV3State {
                config: self.config.clone(),
                control: *control,
                cpus: self.cpus.iter().map(|cpu| cpu.look(Cpu::save)).collect(),
                spis: spis.iter().map(save_spi).collect(),
            }
        })
    }

    /// Puts everything back to what it was at the start, but for the lines.
    pub(super) fn reset(&self) {
        let layout = self.layout;
        let fresh = Cpu::new(layout, None).save();
        let route = Route::to(&self.routing, 0);
        let spis = Distributor::new(layout, route).spis;
        self.restore(&GicV3State {
            config: self.config.clone(),
            control: 0,
            cpus: vec![fresh; self.cpus.len()],
            spis: spis.iter().map(save_spi).collect(),
        });
    }

    /// Puts a checked state back. No interrupt is finished by it: that is another guest's past.
    fn restore(&self, state: &GicV3State) {
        let GicV3State {
            config: _,
            control,
            cpus,
            spis,
        } = state;
        self.with_distributor(|session: &mut Session<'_>| {
            let intids: Vec<_> = (0..spis.len() as u32)
                .map(|place| self.layout.shared_intid(place))
                .collect();
            for &intid in &intids {
                session.replace(intid, |spi| spi.state.enabled = false);
            }
            for (cpu, saved) in cpus.iter().enumerate() {
                session.change_participation(cpu, |cpu| cpu.restore(saved));
            }
            for (&intid, saved) in intids.iter().zip(spis) {
                session.replace(intid, |spi| restore_spi(spi, saved, self));
            }
            session.set_control(*control);
        });
    }
}

fn save_spi(spi: &Spi) -> SpiState {
    SpiState {
        state: spi.saved(),
        router: spi.route.router,
        message: spi.route.message,
    }
}

fn restore_spi(spi: &mut Spi, saved: &SpiState, shared: &Shared) {
    let SpiState { state, router, message } = saved;
    if spi.route.message {
        spi.hold(false);
    }
    spi.restore(state);
    spi.route.message = *message;
    if *message {
        // Like a device that drives its line up again.
        spi.hold(true);
    }
    spi.route.set(&shared.routing, *router);
}

impl Cpu {
    fn save(&self) -> CpuState {
        let Self {
            layout: _,
            private,
            lpis,
            control: dpg,
            asleep,
            interface:
                CpuInterface {
                    control,
                    enabled_groups,
                    preemption,
                },
            competing: _,
            forwarded_groups: _,
        } = self;
        lpis.write_pending();
        let enabled = if lpis.enabled() { gicr_ctlr::ENABLE_LPIS } else { 0 };
        let active_priorities =
            [Group::Zero, Group::One].map(|group| [0, 1, 2, 3].map(|index| preemption.active.register(group, index)));
        CpuState {
            private: private.iter().map(|source| source.saved()).collect(),
            redistributor_control: dpg | enabled,
            asleep: *asleep,
            properties_base: lpis.properties_base,
            pending_base: lpis.pending_base,
            control: *control,
            enabled_groups: *enabled_groups,
            priority_mask: preemption.priority_mask(),
            binary_points: [preemption.binary_point(), preemption.aliased_binary_point()],
            active_priorities,
        }
    }

    fn restore(&mut self, state: &CpuState) {
        let CpuState {
            private,
            redistributor_control,
            asleep,
            properties_base,
            pending_base,
            control,
            enabled_groups,
            priority_mask,
            binary_points,
            active_priorities,
        } = state;
        for (place, saved) in (0..).zip(private) {
            let intid = self.layout.private_intid(place);
            self.change(intid, |source| source.restore(saved));
        }
        self.lpis.forget(&mut self.competing);
        self.lpis.properties_base = *properties_base;
        self.lpis.pending_base = *pending_base;
        if redistributor_control & gicr_ctlr::ENABLE_LPIS != 0 {
            self.lpis.enable(&mut self.competing);
        }
        self.control = redistributor_control & !gicr_ctlr::ENABLE_LPIS;
        self.asleep = *asleep;
        let CpuInterface {
            control: this_control,
            enabled_groups: this_enabled_groups,
            preemption,
        } = &mut self.interface;
        *this_control = *control;
        *this_enabled_groups = *enabled_groups;
        preemption.set_priority_mask(*priority_mask);
        preemption.set_binary_point(binary_points[0]);
        preemption.set_aliased_binary_point(binary_points[1]);
        for (group, registers) in [Group::Zero, Group::One].into_iter().zip(active_priorities) {
            for (index, value) in registers.iter().enumerate() {
                preemption.active.set_register(group, index, *value);
            }
        }
    }
}

impl GicV3State {
    fn check(&self, this: &GicV3Config) -> Result<(), GicV3StateError> {
        let Self {
            config: saved,
            control,
            cpus,
            spis,
        } = self;
        if saved != this {
            let (saved, this) = (Box::new(saved.clone()), Box::new(this.clone()));
            return Err(StateError::Config { saved, this });
        }
        count("CPUs", cpus.len(), this.cpus())?;
        count("SPIs", spis.len(), this.spis + this.extended_spis)?;
        bits(
            || "GICD_CTLR".into(),
            (*control).into(),
            gicd_ctlr::ENABLE_GROUPS.into(),
        )?;
        for (cpu, state) in (0..).map(CpuId).zip(cpus) {
            state.check(cpu, this)?;
        }
        let one_of_n = if this.one_of_n { gicd_irouter::ONE_OF_N } else { 0 };
        for (place, SpiState { state, router, message }) in (0..).zip(spis) {
            let intid = this.layout().shared_intid(place);
            check::priority(|| format!("priority of INTID {intid}"), state, this.priority_bits)?;
            bits(
                || format!("GICD_IROUTER of INTID {intid}"),
                *router,
                gicd_irouter::AFFINITY | one_of_n,
            )?;
            accept(
                || format!("message of INTID {intid}"),
                (*message).into(),
                !message || (state.line && this.message_based_spis),
                || "false, or true with the line up, where there are message-based SPIs".into(),
            )?;
        }
        Ok(())
    }
}

impl CpuState {
    fn check(&self, cpu: CpuId, this: &GicV3Config) -> Result<(), GicV3StateError> {
        let Self {
            private,
            redistributor_control,
            asleep: _,
            properties_base,
            pending_base,
            control,
            enabled_groups,
            priority_mask,
            binary_points,
            active_priorities,
        } = self;
        let layout = this.layout();
        count("private interrupts", private.len(), layout.privates())?;
        for (place, state) in (0..).zip(private) {
            let intid = layout.private_intid(place);
            check::priority(
                || format!("priority of INTID {intid} of {cpu}"),
                state,
                this.priority_bits,
            )?;
            accept(
                || format!("SGI {intid} of {cpu}, its line"),
                state.line.into(),
                intid >= SGIS || (state.trigger == TriggerMode::Edge && !state.line),
                || "0, and edge-triggered".into(),
            )?;
        }
        let dpg = if this.one_of_n {
            gicr_ctlr::DPG[0] | gicr_ctlr::DPG[1]
        } else {
            0
        };
        let (enable, properties, pending) = match this.lpis {
            LpiSupport::None => (0, 0, 0),
            _ => (gicr_ctlr::ENABLE_LPIS, propbaser::WRITABLE, pendbaser::WRITABLE),
        };
        // Of a table that is in use, PTZ would say that nothing is pending in it.
        let in_use = redistributor_control & enable != 0;
        let zero = if enable == 0 || in_use { 0 } else { pendbaser::PTZ };
        let named = |name: &'static str| move || format!("{name} of {cpu}");
        bits(
            named("GICR_CTLR"),
            (*redistributor_control).into(),
            (dpg | enable).into(),
        )?;
        bits(named("GICR_PROPBASER"), *properties_base, properties)?;
        bits(named("GICR_PENDBASER"), *pending_base, pending | zero)?;
        bits(named("ICC_CTLR_EL1"), (*control).into(), icc_ctlr::WRITABLE.into())?;
        bits(named("ICC_IGRPEN"), (*enabled_groups).into(), 0b11)?;
        bits(
            named("ICC_PMR_EL1"),
            (*priority_mask).into(),
            implemented(this.priority_bits).into(),
        )?;
        let fresh = Preemption::new(this.priority_bits);
        let mins = [fresh.binary_point(), fresh.aliased_binary_point()];
        for (group, (&value, min)) in binary_points.iter().zip(mins).enumerate() {
            accept(
                || format!("ICC_BPR{group}_EL1 of {cpu}"),
                value.into(),
                (min..=7).contains(&value),
                || format!("{min} to 7"),
            )?;
        }
        for (group, registers) in active_priorities.iter().enumerate() {
            for (index, &value) in registers.iter().enumerate() {
                let mask = fresh.active.register_mask(index);
                bits(
                    || format!("ICC_AP{group}R{index}_EL1 of {cpu}"),
                    value.into(),
                    mask.into(),
                )?;
            }
        }
        Ok(())
    }
}
