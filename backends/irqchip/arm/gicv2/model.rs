//! The state of a GICv2 and the one place from which its outputs are derived. Nothing here calls out.

use super::{
    super::gic::{
        Group, InterruptState, TriggerMode,
        arbiter::{Candidate, Competitors},
        ids::{PRIVATE, SGIS},
        outputs::Signals,
    },
    GicV2Config,
    cpu_interface::CpuInterface,
    registers::ENABLE_GROUPS,
};
use crate::backends::irqchip::finished::Finished;

/// Everything behind the lock of a GIC.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) config: GicV2Config,
    /// GICD_CTLR.
    pub(super) control: u32,
    /// SGIs and PPIs, for each CPU.
    pub(super) private: Vec<[Source; PRIVATE as usize]>,
    pub(super) shared: Vec<Source>,
    /// For each CPU and SGI, the CPUs that have sent it and wait for it to be acknowledged (GICD_SPENDSGIRn).
    pub(super) sgi_senders: Vec<[u8; SGIS as usize]>,
    pub(super) interfaces: Vec<CpuInterface>,
    /// For each CPU, what competes for it in each group: derived from the above by [`file`](Self::file).
    pub(super) competing: Vec<Competitors>,
    /// What the outside is to be told once the lock is released.
    pub(super) news: News,
}

/// One interrupt.
pub(super) type Source = super::super::gic::state::Source<Route>;

/// The CPUs that an interrupt is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// GICD_ITARGETSRn of an SPI, the owner of a private interrupt.
    pub(super) targets: u8,
    /// Where it competes now.
    filed: Filed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filed {
    cpus: u8,
    group: Group,
    priority: u8,
}

/// What has happened under the lock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    /// CPUs whose outputs may have changed.
    pub(super) cpus: u8,
    /// SPIs that are not active any more.
    pub(super) finished: Finished,
}

/// An interrupt as it is after a reset.
fn source(targets: u8, state: InterruptState) -> Source {
    let filed = Filed::default();
    Source::new(state, Route { targets, filed })
}

impl Model {
    /// A GIC as it is after a reset.
    pub(super) fn new(config: GicV2Config) -> Self {
        let all = config.all_cpus();
        let private = |cpu: u32| {
            std::array::from_fn(|intid| {
                let sgi = (intid as u32) < SGIS;
                let state = InterruptState {
                    enabled: sgi,
                    trigger: if sgi { TriggerMode::Edge } else { TriggerMode::Level },
                    ..InterruptState::default()
                };
                source(1 << cpu, state)
            })
        };
        // With one CPU every SPI is for it, and GICD_ITARGETSRn is RAZ/WI (4.3.12).
        let targets = if config.cpus == 1 { all } else { 0 };
        Self {
            config,
            control: 0,
            private: (0..config.cpus).map(private).collect(),
            shared: vec![source(targets, InterruptState::default()); config.spis as usize],
            sgi_senders: vec![[0; SGIS as usize]; config.cpus as usize],
            interfaces: (0..config.cpus)
                .map(|_| CpuInterface::new(config.priority_bits))
                .collect(),
            competing: (0..config.cpus)
                .map(|_| Competitors::new(config.priority_bits))
                .collect(),
            news: News::default(),
        }
    }

    /// The interrupt `intid` as `cpu` sees it, if it exists.
    pub(super) fn source(&self, cpu: usize, intid: u32) -> Option<&Source> {
        match intid.checked_sub(PRIVATE) {
            None => self.private[cpu].get(intid as usize),
            Some(spi) => self.shared.get(spi as usize),
        }
    }

    /// Changes the interrupt `intid` as `cpu` sees it, if it exists, and takes note if that deactivates an SPI.
    pub(super) fn change(&mut self, cpu: usize, intid: u32, change: impl FnOnce(&mut Source)) {
        if self.replace(cpu, intid, change) && intid >= PRIVATE {
            self.news.finished.note(intid);
        }
    }

    /// Changes the interrupt `intid` as `cpu` sees it, if it exists, and files it where it now belongs. Whether it was
    /// active and is not any more.
    pub(super) fn replace(&mut self, cpu: usize, intid: u32, change: impl FnOnce(&mut Source)) -> bool {
        let source = match intid.checked_sub(PRIVATE) {
            None => self.private[cpu].get_mut(intid as usize),
            Some(spi) => self.shared.get_mut(spi as usize),
        };
        let Some(source) = source else { return false };
        let was_active = source.state.active;
        change(source);
        Self::file(source, intid, &mut self.competing, &mut self.news);
        was_active && !source.state.active
    }

    /// Files an interrupt with the CPUs it competes for: to be called after every change of one.
    fn file(source: &mut Source, intid: u32, competing: &mut [Competitors], news: &mut News) {
        let state = &source.state;
        let filed = Filed {
            cpus: if state.competes() { source.route.targets } else { 0 },
            group: state.group,
            priority: state.priority,
        };
        let old = source.route.filed;
        if filed == old {
            return;
        }
        for cpu in cpus_of(old.cpus) {
            let candidate = Candidate {
                priority: old.priority,
                intid,
            };
            competing[cpu].remove(old.group, candidate);
        }
        for cpu in cpus_of(filed.cpus) {
            let candidate = Candidate {
                priority: filed.priority,
                intid,
            };
            competing[cpu].insert(filed.group, candidate);
        }
        source.route.filed = filed;
        news.cpus |= old.cpus | filed.cpus;
    }

    /// A line handle takes hold of an input, or lets go of it.
    pub(super) fn hold(&mut self, cpu: usize, intid: u32, up: bool) {
        self.change(cpu, intid, |source| source.hold(up));
    }

    /// A pulse on an input, or a message: pending whatever the level of the line.
    pub(super) fn pulse(&mut self, cpu: usize, intid: u32) {
        self.change(cpu, intid, |source| source.pulse());
    }

    /// CPUs whose outputs depend on this interrupt.
    pub(super) fn concern(&mut self, cpu: usize, intid: u32) {
        self.news.cpus |= self.source(cpu, intid).map_or(0, |source| source.route.targets);
    }

    /// What the distributor forwards to a CPU: the most urgent interrupt of the groups that GICD_CTLR enables.
    pub(super) fn forwarded(&self, cpu: usize) -> Option<(Candidate, Group)> {
        self.competing[cpu].best(self.control)
    }

    /// The outputs of a CPU interface: the only place that derives them.
    pub(super) fn signals(&self, cpu: usize) -> Signals {
        match self.forwarded(cpu) {
            Some((candidate, group)) => self.interfaces[cpu].signals(candidate.priority, group),
            None => Signals::default(),
        }
    }

    /// Sets GICD_CTLR.
    pub(super) fn set_control(&mut self, value: u32) {
        self.control = value & ENABLE_GROUPS;
        self.news.cpus = self.config.all_cpus();
    }
}

/// The CPUs of a mask.
pub(super) fn cpus_of(mask: u8) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let cpu = (left != 0).then(|| left.trailing_zeros() as usize)?;
        left &= left - 1;
        Some(cpu)
    })
}
