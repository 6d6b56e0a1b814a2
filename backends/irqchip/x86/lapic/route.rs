//! Messages on their way: whom they are for (SDM 12.6.2), and how they get there.

use std::{
    cmp::Ordering::{Equal, Greater, Less},
    io,
};

use super::{
    config::ApicId,
    inbox::signal,
    logical,
    message::{Message, Target},
    presence::{Presence, matches_x2apic, x2apic_logical_id},
    registers::{DeliveryMode, FIRST_VECTOR},
    set::Shared,
};

impl Shared {
    /// Delivers `message`, which the CPU `from` sends if any does, and says whether anyone has accepted it. The error is that
    /// of a wake line: the last one.
    pub fn deliver(&self, from: Option<usize>, message: &Message) -> io::Result<bool> {
        match message.target {
            Target::Own => from.map_or(Ok(false), |cpu| self.deliver_to(cpu, self.presence(cpu), message)),
            Target::Physical(id) => match self.cpu_of(id).map(|cpu| (cpu, self.presence(cpu))) {
                Some((cpu, presence)) if presence.is_named(self.cpus[cpu].id, id) && !self.logical.has_moved() => {
                    self.deliver_to(cpu, presence, message)
                }
                _ => self.deliver_to_each(message, self.named(id)),
            },
            Target::All => self.deliver_among(message, || self.present()),
            Target::Others => self.deliver_among(message, || self.present().filter(|(cpu, _)| Some(*cpu) != from)),
            Target::Logical(destination) => self.deliver_among(message, || self.addressed(destination)),
        }
    }

    fn presence(&self, cpu: usize) -> Presence {
        self.cpus[cpu].published.get()
    }

    fn present(&self) -> impl Iterator<Item = (usize, Presence)> {
        let all = (0..self.cpus.len()).map(|cpu| (cpu, self.presence(cpu)));
        all.filter(|(_, presence)| presence.is_present())
    }

    /// Who has an ID: whoever was made with it, and all that the guest has given one.
    fn named(&self, id: ApicId) -> impl Iterator<Item = (usize, Presence)> {
        let own = self.cpu_of(id);
        let moved = self.logical.moved().filter(move |cpu| Some(*cpu) != own);
        let cpus = own.into_iter().chain(moved).map(|cpu| (cpu, self.presence(cpu)));
        cpus.filter(move |(cpu, presence)| presence.is_named(self.cpus[*cpu].id, id))
    }

    /// Whom a logical destination is for: one of 8 bits, whoever the index says it may be for; another is of x2APIC mode and
    /// names IDs.
    fn addressed(&self, destination: u32) -> impl Iterator<Item = (usize, Presence)> {
        let is_long = destination > 0xff;
        let id = move |bit: usize| ApicId(destination >> 16 << 4 | bit as u32);
        let is_named = move |cpu: &usize| matches_x2apic(x2apic_logical_id(self.cpus[*cpu].id), destination);
        let members = logical::ones(if is_long { u64::from(destination & 0xffff) } else { 0 });
        let named = members.filter_map(move |bit| self.cpu_of(id(bit)));
        // A logical ID has 20 bits of an ID.
        let aliased = self.aliased.iter().copied().filter(move |cpu| is_long && is_named(cpu));
        let indexed = self.logical.candidates(destination);
        let cpus = indexed.chain(named).chain(aliased).map(|cpu| (cpu, self.presence(cpu)));
        cpus.filter(move |(_, presence)| presence.matches_logical(destination))
    }

    fn deliver_to_each(
        &self,
        message: &Message,
        candidates: impl Iterator<Item = (usize, Presence)>,
    ) -> io::Result<bool> {
        let mut result = Ok(false);
        for (cpu, presence) in candidates {
            let told = self.deliver_to(cpu, presence, message);
            result = told.and_then(|accepted| Ok(accepted | result?));
        }
        result
    }

    fn deliver_among<I>(&self, message: &Message, candidates: impl Fn() -> I) -> io::Result<bool>
    where
        I: Iterator<Item = (usize, Presence)>,
    {
        if message.mode != DeliveryMode::LowestPriority {
            return self.deliver_to_each(message, candidates());
        }
        // Among those of the lowest priority, each vector has one that is always the same as long as they stay the
        // same: its handler's data is in that CPU's cache.
        let enabled = || candidates().filter(|(_, presence)| presence.enabled);
        let (lowest, count) = enabled().fold((u8::MAX, 0), |(lowest, count), (_, presence)| {
            match presence.class.cmp(&lowest) {
                Less => (presence.class, 1),
                Equal => (lowest, count + 1),
                Greater => (lowest, count),
            }
        });
        let Some(chosen) = usize::from(message.vector.0).checked_rem(count) else {
            return Ok(false);
        };
        // They may have changed since they were counted, hence who is there at all if not that one.
        let mut idlest = enabled().filter(|(_, presence)| presence.class == lowest);
        match idlest.nth(chosen).or_else(|| enabled().next()) {
            Some((cpu, presence)) => self.deliver_to(cpu, presence, message),
            None => Ok(false),
        }
    }

    /// Whether a vector is accepted is decided here, by what the CPU has published: a sender of a level keeps what was not. What
    /// nobody keeps is left with the CPU all the same, which may be about to get another state by a restore.
    fn deliver_to(&self, cpu: usize, presence: Presence, message: &Message) -> io::Result<bool> {
        let accepted = match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                presence.accepts_vectors() && message.vector.0 >= FIRST_VECTOR
            }
            DeliveryMode::ExtInt => presence.accepts_vectors(),
            _ => true,
        };
        let inbox = &self.cpus[cpu].inbox;
        let told = match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if message.vector.0 >= FIRST_VECTOR => {
                if message.level && !accepted {
                    return Ok(false);
                }
                inbox.request(message.vector, message.level)
            }
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                inbox.signal(|signals| signals | signal::ILLEGAL_VECTOR)
            }
            DeliveryMode::Smi => inbox.signal(|signals| signals | signal::SMI),
            DeliveryMode::Nmi => inbox.signal(signal::nmi),
            DeliveryMode::ExtInt => inbox.signal(|signals| signals | signal::EXT_INT),
            // Ends whatever came before; what comes after it, a start-up above all, is kept.
            DeliveryMode::Init => inbox.signal(|signals| {
                let start_up = signal::START_UP | signal::START_UP_VECTOR;
                let before = start_up | signal::NMI | signal::NMI_AGAIN | signal::SMI | signal::EXT_INT;
                signals & !before | signal::INIT
            }),
            // The first one starts the CPU; the second one, which the start-up protocol sends for safety, finds it
            // running.
            DeliveryMode::StartUp => inbox.signal(|signals| match signals & signal::START_UP {
                0 => signals | signal::START_UP | u64::from(message.vector.0) << signal::START_UP_SHIFT,
                _ => signals,
            }),
        };
        told.map(|()| accepted)
    }
}
