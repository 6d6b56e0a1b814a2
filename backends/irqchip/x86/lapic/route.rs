//! Messages between local APICs and from devices: whom they are for (SDM 12.6.2), and how they are written (12.11).

use std::{
    cmp::Ordering::{Equal, Greater, Less},
    io,
};

use super::{
    Shared, Vector,
    config::ApicId,
    inbox::signal,
    logical,
    presence::{Mode, Presence, matches_x2apic, x2apic_logical_id},
    registers::{DeliveryMode, FIRST_VECTOR, ICR_ASSERT, ICR_LEVEL, ICR_LOGICAL, ICR_SHORTHAND_SHIFT},
};
use crate::interrupt::{Acceptance, MsiMessage, MsiSink, RequesterId};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub mode: DeliveryMode,
    pub vector: Vector,
    pub level: bool,
    pub target: Target,
}

/// Whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Own,
    All,
    Others,
    Physical(ApicId),
    Logical(u32),
}

impl Message {
    /// The message of an Interrupt Command (12.6.1), to a destination of 8 bits or, in x2APIC mode, 32. `None` if the
    /// command sends nothing.
    pub fn command(low: u32, destination: u32, mode: Mode) -> Option<Self> {
        let broadcast = match mode {
            Mode::X2Apic => u32::MAX,
            _ => 0xff,
        };
        let target = match low >> ICR_SHORTHAND_SHIFT & 3 {
            // With a shorthand some delivery modes are invalid; the manual does not say what happens. They are sent.
            1 => Target::Own,
            2 => Target::All,
            3 => Target::Others,
            _ => Target::of(low & ICR_LOGICAL != 0, destination, broadcast),
        };
        // ExtINT is for messages and pins: here its code is reserved.
        let mode = DeliveryMode::of(low).filter(|mode| *mode != DeliveryMode::ExtInt)?;
        // The de-assertion of INIT once synchronised arbitration IDs. Others have none: see below.
        if mode == DeliveryMode::Init && low & ICR_LEVEL != 0 && low & ICR_ASSERT == 0 {
            return None;
        }
        Some(Self {
            mode,
            vector: Vector(low as u8),
            // "The local APIC will override the bit setting and issue the interrupt as an edge" (table 12-3, note 1).
            level: false,
            target,
        })
    }

    /// The message that a device or an IOAPIC writes, in the format of 12.11. `None` if its delivery mode is reserved.
    /// Data bit 14, the level, is not looked at: a device that de-asserts has nothing to say.
    fn written(address: u32, data: u32) -> Option<Self> {
        const REDIRECTION_HINT: u32 = 1 << 3;
        const LOGICAL: u32 = 1 << 2;
        let mode = match DeliveryMode::of(data)? {
            DeliveryMode::Fixed if address & REDIRECTION_HINT != 0 => DeliveryMode::LowestPriority,
            mode => mode,
        };
        Some(Self {
            mode,
            vector: Vector(data as u8),
            level: data & ICR_LEVEL != 0,
            target: Target::of(address & LOGICAL != 0, address >> 12 & 0xff, 0xff),
        })
    }
}

impl Target {
    fn of(logical: bool, destination: u32, broadcast: u32) -> Self {
        match (logical, destination) {
            (_, destination) if destination == broadcast => Self::All,
            (true, destination) => Self::Logical(destination),
            (false, destination) => Self::Physical(ApicId(destination)),
        }
    }
}

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

/// The address that a message was sent to is not one of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message to {address:#x}: local APICs listen at 0xfee00000 to 0xfeefffff")]
pub struct NoSuchDoorbell {
    /// Where it was sent to.
    pub address: u64,
}

/// Takes messages in the format of SDM 12.11: destination in address bits 12 to 19, redirection hint in bit 3, logical
/// destination mode in bit 2; vector in data bits 0 to 7, delivery mode in bits 8 to 10, level-triggered in bit 15. The
/// requester is not looked at.
///
/// A message for an APIC that is not there or not enabled is lost, as on the hardware, and that is `Ok`;
/// [`offer`](MsiSink::offer) tells it, and [`LocalApics::on_accepting`](super::LocalApics::on_accepting) when it is worth another
/// try. `Err` is an address outside of the range ([`NoSuchDoorbell`]), or a wake line's refusal; the interrupt is pending then all the
/// same.
impl MsiSink for super::LocalApics {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.offer(requester, message)?;
        Ok(())
    }

    fn offer(&self, _requester: RequesterId, message: MsiMessage) -> io::Result<Acceptance> {
        let MsiMessage { address, data } = message;
        if address >> 20 != 0xfee {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                NoSuchDoorbell { address },
            ));
        }
        let accepted = match Message::written(address as u32, data) {
            Some(message) => self.shared.deliver(None, &message)?,
            None => false,
        };
        Ok(accepted.into())
    }
}
