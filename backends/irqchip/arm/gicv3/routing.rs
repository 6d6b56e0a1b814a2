//! Where interrupts go: CPUs by affinity, sets of CPUs, and SGIs (IHI 0069, chapters 3 and 4).

use super::{Shared, config::Affinity, registers::sgir};

/// The CPUs by affinity.
#[derive(Debug)]
pub(super) struct Routing {
    /// Sorted.
    cpus: Vec<(Affinity, usize)>,
}

impl Routing {
    pub(super) fn new(affinities: &[Affinity]) -> Self {
        let mut cpus: Vec<_> = affinities.iter().copied().zip(0..).collect();
        cpus.sort_unstable();
        Self { cpus }
    }

    /// The CPU in this place, if there is one.
    pub(super) fn cpu(&self, affinity: Affinity) -> Option<usize> {
        let at = self.cpus.binary_search_by_key(&affinity, |&(affinity, _)| affinity);
        at.ok().map(|at| self.cpus[at].1)
    }

    /// The CPUs of a target list: its bits stand for 16 places from `first` on.
    fn list(&self, first: Affinity, list: u16) -> impl Iterator<Item = usize> {
        let from = self.cpus.partition_point(|&(affinity, _)| affinity < first);
        self.cpus[from..]
            .iter()
            .map(move |&(affinity, cpu)| (affinity.0 - first.0, cpu))
            .take_while(|&(place, _)| place < 16)
            .filter(move |&(place, _)| list >> place & 1 != 0)
            .map(|(_, cpu)| cpu)
    }
}

/// A set of CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuSet([u64; 8]);

impl CpuSet {
    pub(super) fn set(&mut self, cpu: usize, member: bool) {
        let bit = 1 << (cpu % 64);
        match member {
            true => self.0[cpu / 64] |= bit,
            false => self.0[cpu / 64] &= !bit,
        }
    }

    pub(super) fn contains(&self, cpu: usize) -> bool {
        self.0[cpu / 64] >> (cpu % 64) & 1 != 0
    }

    /// The first member from `cpu` on, or else the first of all.
    pub(super) fn next(&self, cpu: usize) -> Option<usize> {
        let at = cpu / 64;
        let from_cpu = u64::MAX << (cpu % 64);
        let first_word = (at, self.0[at] & from_cpu);
        let others = (1..=8).map(|step| ((at + step) % 8, self.0[(at + step) % 8]));
        std::iter::once(first_word)
            .chain(others)
            .find(|&(_, bits)| bits != 0)
            .map(|(word, bits)| word * 64 + bits.trailing_zeros() as usize)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(word, bits)| {
            let mut left = bits;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(word * 64 + bit)
            })
        })
    }
}

impl Shared {
    /// ICC_SGI0R_EL1, ICC_SGI1R_EL1 and ICC_ASGI1R_EL1. Each target is locked on its own.
    pub(super) fn generate_sgi(&self, cpu: usize, value: u64, group_0_only: bool) {
        let intid = sgir::intid(value);
        let send = |target: usize| {
            self.with_cpu(target, |target| target.send_sgi(intid, group_0_only));
        };
        if value & sgir::TO_OTHERS != 0 {
            (0..self.cpus.len()).filter(|&other| other != cpu).for_each(send);
        } else {
            let first = Affinity(sgir::first(value));
            self.routing.list(first, sgir::list(value)).for_each(send);
        }
    }
}
