//! The distributor: SPIs, where they go, and the registers of both (IHI 0069, 12.8).

use super::{
    super::gic::{Group, InterruptState, TriggerMode, arbiter::Arbiter, ids::PRIVATE, state},
    Shared,
    config::{Affinity, GicV3Config, INTIDS, Layout, LpiSupport},
    cpu::{Cpu, Filed},
    handling::Acknowledged,
    mutex::MutexGuard,
    registers::{self, Distributor as Register, SPURIOUS, gicd_ctlr, gicd_irouter, gicd_typer},
    routing::{CpuSet, Routing},
};
use crate::backends::irqchip::finished::Finished;

const _: () = assert!(INTIDS <= Arbiter::MAX_INTIDS);

/// Everything behind the lock of the distributor.
pub(super) struct Distributor {
    /// GICD_CTLR, the bits that can be written.
    pub(super) control: u32,
    /// The SPIs, then those of the extended range.
    pub(super) spis: Vec<Spi>,
    /// For each group, the CPUs that take interrupts which can go to any one of them.
    participants: [CpuSet; 2],
}

/// An SPI.
pub(super) type Spi = state::Source<Route>;

/// Where an SPI goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Route {
    /// GICD_IROUTERn.
    pub(super) router: u64,
    /// The CPU that it names, if there is one.
    cpu: Option<usize>,
    /// A message holds the input up, as a line does, until another lets go of it.
    pub(super) message: bool,
    /// The CPU that it competes for now, and how.
    filed: Option<(usize, Filed)>,
}

impl Distributor {
    /// As it is after a reset. GICD_IROUTERn resets to an unknown value: here to affinity 0.0.0.0.
    pub(super) fn new(layout: Layout, route: Route) -> Self {
        let spis = layout.spis + layout.extended_spis;
        Self {
            control: 0,
            spis: vec![Spi::new(InterruptState::default(), route); spis as usize],
            participants: [CpuSet::default(); 2],
        }
    }
}

impl Route {
    pub(super) fn to(routing: &Routing, router: u64) -> Self {
        let mut route = Self::default();
        route.set(routing, router);
        route
    }

    pub(super) fn set(&mut self, routing: &Routing, router: u64) {
        self.router = router;
        self.cpu = routing.cpu(Affinity::from_mpidr(router));
    }
}

/// What has happened under the lock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    /// CPUs whose outputs may have changed.
    pub(super) cpus: CpuSet,
    /// SPIs that are not active any more.
    pub(super) finished: Finished,
}

/// The distributor while it is locked. It locks one CPU after the other as it files interrupts with them; who has locked
/// a CPU never locks the distributor.
pub(super) struct Session<'a> {
    pub(super) shared: &'a Shared,
    pub(super) model: MutexGuard<'a, Distributor>,
    pub(super) news: News,
}

impl Session<'_> {
    /// Changes what a CPU has of its own.
    pub(super) fn cpu<T>(&mut self, cpu: usize, change: impl FnOnce(&mut Cpu) -> T) -> T {
        self.news.cpus.set(cpu, true);
        self.shared.cpus[cpu].change(change)
    }

    /// Changes an SPI, if it exists, and takes note if that deactivates it.
    pub(super) fn change(&mut self, intid: u32, change: impl FnOnce(&mut Spi)) {
        if self.replace(intid, change) {
            self.news.finished.note(intid);
        }
    }

    /// Changes an SPI, if it exists, and files it where it now belongs. Whether it was active and is not any more.
    pub(super) fn replace(&mut self, intid: u32, change: impl FnOnce(&mut Spi)) -> bool {
        let Some(place) = self.shared.layout.shared(intid) else {
            return false;
        };
        let spi = &mut self.model.spis[place];
        let was_active = spi.state.active;
        change(spi);
        let finished = was_active && !spi.state.active;
        self.file(place, intid);
        finished
    }

    /// Files an SPI with the CPU it competes for: to be called after every change of one.
    fn file(&mut self, place: usize, intid: u32) {
        let spi = &self.model.spis[place];
        let old = spi.route.filed;
        let new = Filed::of(&spi.state).and_then(|filed| {
            let cpu = self.target(&spi.route, intid, filed.group)?;
            Some((cpu, filed))
        });
        if old == new {
            return;
        }
        self.model.spis[place].route.filed = new;
        match (old, new) {
            (Some((from, old)), Some((to, new))) if from == to => {
                self.cpu(to, |cpu| cpu.refile(intid, Some(old), Some(new)));
            }
            (old, new) => {
                if let Some((from, old)) = old {
                    self.cpu(from, |cpu| cpu.refile(intid, Some(old), None));
                }
                if let Some((to, new)) = new {
                    self.cpu(to, |cpu| cpu.refile(intid, None, Some(new)));
                }
            }
        }
    }

    /// The CPU that an SPI goes to. If that can be any one, it stays where it is as long as that CPU takes part; otherwise
    /// its number says from which CPU on one is looked for, so that several spread.
    fn target(&self, route: &Route, intid: u32, group: Group) -> Option<usize> {
        if route.router & gicd_irouter::ONE_OF_N == 0 {
            return route.cpu;
        }
        let participants = &self.model.participants[group as usize];
        let stays = route.filed.map(|(cpu, _)| cpu);
        stays
            .filter(|&cpu| participants.contains(cpu))
            .or_else(|| participants.next(intid as usize % self.shared.cpus.len()))
    }

    /// Changes something that decides whether a CPU takes interrupts which can go to any one, and files those again.
    pub(super) fn change_participation(&mut self, cpu: usize, change: impl FnOnce(&mut Cpu)) {
        let now = self.cpu(cpu, |cpu| {
            change(cpu);
            [Group::Zero, Group::One].map(|group| cpu.participates(group))
        });
        let mut changed = false;
        for (participants, now) in self.model.participants.iter_mut().zip(now) {
            changed |= participants.contains(cpu) != now;
            participants.set(cpu, now);
        }
        if !changed || !self.shared.layout.one_of_n {
            return;
        }
        for place in 0..self.model.spis.len() {
            if self.model.spis[place].route.router & gicd_irouter::ONE_OF_N != 0 {
                let intid = self.shared.layout.shared_intid(place as u32);
                self.file(place, intid);
            }
        }
    }

    /// A CPU acknowledges what is the most urgent for it. If that is an SPI, it becomes active, and competes no more.
    pub(super) fn acknowledge(&mut self, cpu: usize, group: Group) -> u32 {
        self.news.cpus.set(cpu, true);
        let shared = self.shared;
        let spis = &mut self.model.spis;
        shared.cpus[cpu].change(|cpu| {
            let Acknowledged::Done(intid) = cpu.acknowledge(group, true) else {
                return SPURIOUS;
            };
            // Of anything else but an SPI there is none by this number.
            if let Some(place) = shared.layout.shared(intid) {
                let Spi { state, route, .. } = &mut spis[place];
                state.active = true;
                state.latch = false;
                cpu.refile(intid, route.filed.take().map(|(_, filed)| filed), None);
            }
            intid
        })
    }

    /// The CPU whose outputs depend on this SPI.
    pub(super) fn concern(&mut self, intid: u32) {
        let spi = self.shared.layout.shared(intid).map(|place| &self.model.spis[place]);
        let cpu = spi.and_then(|spi| spi.route.filed.map(|(cpu, _)| cpu).or(spi.route.cpu));
        if let Some(cpu) = cpu {
            self.news.cpus.set(cpu, true);
        }
    }

    /// Sets GICD_CTLR.
    pub(super) fn set_control(&mut self, value: u32) {
        let groups = value & gicd_ctlr::ENABLE_GROUPS;
        self.model.control = groups;
        for cpu in 0..self.shared.cpus.len() {
            self.cpu(cpu, |cpu| cpu.forwarded_groups = groups);
        }
    }

    /// A read of a distributor register.
    pub(super) fn read(&self, register: Register) -> u64 {
        let value = match register {
            // RWP is clear: nothing is left to do when a write returns.
            Register::Control => self.model.control | gicd_ctlr::ARE | gicd_ctlr::DS,
            Register::Type => type_register(&self.shared.config),
            Register::ImplementerId => registers::IIDR,
            Register::SetSpi | Register::ClearSpi => 0,
            Register::Array(array, first) => array.read(|index| Some(&self.spi(first + index)?.state)),
            Register::Router(intid) => return self.spi(intid).map_or(0, |spi| spi.route.router),
            Register::Identification(index) => registers::GICD_IDENTIFICATION[index as usize],
        };
        value.into()
    }

    fn spi(&self, intid: u32) -> Option<&Spi> {
        self.model.spis.get(self.shared.layout.shared(intid)?)
    }

    /// A write of a distributor register, where only the bits of `written` are.
    pub(super) fn write(&mut self, register: Register, value: u64, written: u64) {
        match register {
            Register::Control => self.set_control(value as u32),
            Register::SetSpi => self.message(value as u32, true),
            Register::ClearSpi => self.message(value as u32, false),
            Register::Array(array, first) => {
                let priority_bits = self.shared.layout.priority_bits;
                for (index, change) in array.changes(value as u32, written as u32, priority_bits) {
                    self.change(first + index, |spi| change.make(&mut spi.state));
                }
            }
            Register::Router(intid) => {
                let shared = self.shared;
                let one_of_n = if shared.layout.one_of_n {
                    gicd_irouter::ONE_OF_N
                } else {
                    0
                };
                self.change(intid, |spi| {
                    let router = spi.route.router & !written | value & written;
                    spi.route
                        .set(&shared.routing, router & (gicd_irouter::AFFINITY | one_of_n));
                });
            }
            Register::Type | Register::ImplementerId | Register::Identification(_) => {}
        }
    }

    /// GICD_SETSPI_NSR and GICD_CLRSPI_NSR: what is edge-triggered becomes pending or is pending no more, what is
    /// level-sensitive has its input held up from the one to the other (chapter 4).
    pub(super) fn message(&mut self, value: u32, set: bool) {
        let intid = value & registers::SPI_INTID;
        if !self.shared.config.message_based_spis {
            return;
        }
        self.change(intid, |spi| {
            let level = spi.state.trigger == TriggerMode::Level;
            if !level {
                spi.state.latch = set;
            }
            if spi.route.message != set && (level || !set) {
                spi.route.message = set;
                spi.hold(set);
            }
        });
    }
}

/// GICD_TYPER (12.9): a single security state, and INTIDs of 16 bits.
fn type_register(config: &GicV3Config) -> u32 {
    let lines = (PRIVATE + config.spis).div_ceil(32) - 1;
    let extended = match config.extended_spis {
        0 => 0,
        spis => gicd_typer::ESPI | (spis / 32 - 1) << gicd_typer::ESPI_RANGE_SHIFT,
    };
    let flags = [
        (config.message_based_spis, gicd_typer::MBIS),
        (config.lpis != LpiSupport::None, gicd_typer::LPIS),
        (!config.one_of_n, gicd_typer::NO_1_OF_N),
        (config.range_selector(), gicd_typer::RSS),
    ];
    let flags = flags
        .iter()
        .filter(|(there, _)| *there)
        .fold(0, |all, (_, flag)| all | flag);
    let id_bits = INTIDS.trailing_zeros() - 1;
    lines | extended | flags | gicd_typer::A3V | id_bits << gicd_typer::ID_BITS_SHIFT
}
