//! What an IOAPIC is behind its registers: pins, redirection entries, and which of them has a message to send.

use super::{IoApicConfig, registers::*};
use crate::interrupt::MsiMessage;

/// A set of pins. Its size does not depend on how many there are, so neither does the way from a pin to its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PinSet([u64; 4]);

impl PinSet {
    pub(super) fn contains(&self, pin: u32) -> bool {
        self.0[pin as usize / 64] >> (pin % 64) & 1 != 0
    }

    pub(super) fn insert(&mut self, pin: u32) {
        self.0[pin as usize / 64] |= 1 << (pin % 64);
    }

    pub(super) fn remove(&mut self, pin: u32) {
        self.0[pin as usize / 64] &= !(1 << (pin % 64));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        let word = self.0.iter().position(|word| *word != 0)?;
        let bit = self.0[word].trailing_zeros();
        self.0[word] &= self.0[word] - 1;
        Some(word as u32 * 64 + bit)
    }
}

#[derive(Debug)]
pub(super) struct Pin {
    /// It idles high, and low is what up is elsewhere.
    pub(super) pulled_up: bool,
    /// How many lines hold it up.
    pub(super) holders: u32,
    /// It was up when the state was saved, and its device has not driven it since the restore.
    pub(super) restored_up: bool,
    /// An edge or a pulse has come whose message was not accepted yet.
    pub(super) latched: bool,
    /// Counts the messages of this pin, so that the answer to an old one is known for what it is.
    pub(super) attempt: u32,
    /// The redirection entry without what the guest cannot write.
    pub(super) entry: u64,
}

impl Pin {
    pub(super) fn new() -> Self {
        Self {
            pulled_up: false,
            holders: 0,
            restored_up: false,
            latched: false,
            attempt: 0,
            entry: ENTRY_RESET,
        }
    }

    /// Whether a line holds it up.
    pub(super) fn is_up(&self) -> bool {
        self.holders != 0 || self.restored_up
    }

    /// Whether the pin is at the level that the entry's polarity calls active.
    fn is_active(&self) -> bool {
        let is_high = self.is_up() != self.pulled_up;
        is_high != (self.entry & POLARITY != 0)
    }

    fn is_masked(&self) -> bool {
        self.entry & MASK != 0
    }
}

fn delivery_mode(entry: u64) -> u64 {
    (entry & DELIVERY_MODE) >> DELIVERY_MODE_SHIFT
}

/// Whether an entry is level-sensitive. SMI, NMI, INIT and ExtINT are edges, also where the guest says otherwise: nobody
/// sends an EOI for them (section 3.2.4, on the delivery modes).
pub(super) fn is_level(entry: u64) -> bool {
    let mode = delivery_mode(entry);
    entry & TRIGGER_MODE != 0 && (mode == delivery::FIXED || mode == delivery::LOWEST_PRIORITY)
}

/// The message of an entry, `None` for a reserved delivery mode.
fn message(entry: u64) -> Option<MsiMessage> {
    let mode = delivery_mode(entry);
    if delivery::RESERVED.contains(&mode) {
        return None;
    }
    let mut address = message::ADDRESS | (entry & DESTINATION) >> DESTINATION_SHIFT << message::DESTINATION_SHIFT;
    if entry & DESTINATION_MODE != 0 {
        address |= message::DESTINATION_MODE;
    }
    // In remappable format this bit means something else, and the delivery mode is the remapper's.
    if mode == delivery::LOWEST_PRIORITY && entry & REMAPPABLE == 0 {
        address |= message::REDIRECTION_HINT;
    }
    let mut data = (entry & (VECTOR | DELIVERY_MODE)) as u32;
    if is_level(entry) {
        data |= message::TRIGGER_LEVEL | message::LEVEL_ASSERT;
    }
    Some(MsiMessage { address, data })
}

/// Says which message was sent, for when it is refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) pin: u32,
    attempt: u32,
    /// How many retries there had been.
    retries: u32,
    /// It was sent for an edge, or a pulse, and not for the level of the pin: the pin alone will not bring it back.
    latched: bool,
}

#[derive(Debug)]
pub(super) struct Model {
    // What is plugged in, and what the guest can change of it.
    pub(super) pins: Vec<Pin>,

    // What the guest can change.
    pub(super) id: u8,
    pub(super) select: u32,
    /// Level-sensitive pins whose message was accepted and has had no EOI since.
    pub(super) remote_irr: PinSet,

    /// Pins to look at: something about them has changed, or their message was refused or dropped.
    pub(super) due: PinSet,
    /// Counts the calls of `retry`: one that comes while a message is under way is for that message too.
    pub(super) retries: u32,
}

impl Model {
    pub(super) fn new(config: IoApicConfig) -> Self {
        Self {
            pins: (0..config.pins).map(|_| Pin::new()).collect(),
            id: 0,
            select: 0,
            remote_irr: PinSet::default(),
            due: PinSet::default(),
            retries: 0,
        }
    }

    /// Puts every register to its reset value. Lines stay as their devices hold them, and no edge comes of it.
    pub(super) fn reset(&mut self) {
        let Self {
            pins,
            id,
            select,
            remote_irr,
            due,
            retries: _,
        } = self;
        for pin in pins {
            (pin.entry, pin.latched) = (ENTRY_RESET, false);
        }
        (*id, *select) = (0, 0);
        (*remote_irr, *due) = Default::default();
    }

    /// From now on the pin idles high. That is no edge.
    pub(super) fn pull_up(&mut self, index: u32) {
        self.pins[index as usize].pulled_up = true;
        self.due.insert(index);
    }

    /// One line more, or one less, holds the pin up.
    pub(super) fn hold(&mut self, index: u32, up: bool) {
        let pin = &mut self.pins[index as usize];
        let before = pin.is_up();
        if up {
            pin.holders = pin.holders.saturating_add(1);
            pin.restored_up = false;
        } else {
            pin.holders = pin.holders.saturating_sub(1);
        }
        if pin.is_up() == before {
            return;
        }
        if is_level(pin.entry) {
            self.due.insert(index);
        } else if pin.is_active() {
            self.edge(index);
        }
    }

    /// The pin becomes active and inactive again, whatever level the lines hold.
    pub(super) fn pulse(&mut self, index: u32) {
        // A level that is in service already has an EOI to wait for, and is gone by then.
        if !is_level(self.pins[index as usize].entry) || !self.remote_irr.contains(index) {
            self.edge(index);
        }
    }

    /// Section 3.2.4, on the mask: an edge on a masked pin is neither delivered nor held pending.
    fn edge(&mut self, index: u32) {
        let pin = &mut self.pins[index as usize];
        if !pin.is_masked() {
            pin.latched = true;
            self.due.insert(index);
        }
    }

    pub(super) fn eoi(&mut self, vector: u8) {
        let mut in_service = self.remote_irr;
        while let Some(index) = in_service.pop() {
            if self.pins[index as usize].entry & VECTOR == u64::from(vector) {
                self.remote_irr.remove(index);
                self.due.insert(index);
            }
        }
    }

    /// The level-sensitive pins that have a vector.
    pub(super) fn levels_with(&self, vector: u8) -> PinSet {
        let mut pins = PinSet::default();
        for (index, pin) in (0..).zip(&self.pins) {
            if is_level(pin.entry) && pin.entry & VECTOR == u64::from(vector) {
                pins.insert(index);
            }
        }
        pins
    }

    /// Where every output is derived: takes the first of the `candidates`, of those that are due, that has a message to
    /// send, which then counts as accepted unless [`refused`](Self::refused) says otherwise.
    pub(super) fn next_message(&mut self, candidates: &mut PinSet) -> Option<(Ticket, MsiMessage)> {
        while let Some(index) = candidates.pop() {
            self.due.remove(index);
            let pin = &mut self.pins[index as usize];
            let level = is_level(pin.entry);
            // What the guest does about either makes the pin due again.
            if pin.is_masked() || level && self.remote_irr.contains(index) {
                continue;
            }
            let latched = std::mem::take(&mut pin.latched);
            let is_wanted = latched || (level && pin.is_active());
            if !is_wanted {
                continue;
            }
            let Some(message) = message(pin.entry) else {
                continue;
            };
            if level {
                self.remote_irr.insert(index);
            }
            pin.attempt = pin.attempt.wrapping_add(1);
            let ticket = Ticket {
                pin: index,
                attempt: pin.attempt,
                retries: self.retries,
                latched,
            };
            return Some((ticket, message));
        }
        None
    }

    /// What the entry of `pin` says now.
    pub(super) fn message(&self, pin: u32) -> Option<MsiMessage> {
        message(self.pins[pin as usize].entry)
    }

    /// The sink did not take a message: it is owed, unless a later one of this pin has gone out meanwhile.
    pub(super) fn refused(&mut self, ticket: Ticket, candidates: &mut PinSet) {
        if self.is_last(ticket) {
            self.pins[ticket.pin as usize].latched |= ticket.latched;
            self.not_in_service(ticket, candidates);
        }
    }

    /// Nobody has accepted a message. Then Remote IRR is not set (section 3.2.4), and a level is still up; an edge is gone.
    pub(super) fn dropped(&mut self, ticket: Ticket, candidates: &mut PinSet) {
        if self.is_last(ticket) && is_level(self.pins[ticket.pin as usize].entry) {
            self.not_in_service(ticket, candidates);
        }
    }

    fn is_last(&self, ticket: Ticket) -> bool {
        self.pins[ticket.pin as usize].attempt == ticket.attempt
    }

    /// The pin of a message that did not arrive is looked at with the next event, or at once if somebody has asked for that
    /// while it was under way.
    fn not_in_service(&mut self, ticket: Ticket, candidates: &mut PinSet) {
        self.remote_irr.remove(ticket.pin);
        self.due.insert(ticket.pin);
        if self.retries != ticket.retries {
            candidates.insert(ticket.pin);
        }
    }

    /// The redirection entry with its read-only bits.
    pub(super) fn entry(&self, index: u32) -> u64 {
        let Pin { mut entry, latched, .. } = self.pins[index as usize];
        if self.remote_irr.contains(index) {
            entry |= REMOTE_IRR;
        }
        if latched || self.due.contains(index) {
            entry |= DELIVERY_STATUS;
        }
        entry
    }

    /// The bits that IOREGSEL has. Eight reach the registers of 120 pins; an IOAPIC of more has a ninth.
    pub(super) fn select_mask(pins: usize) -> u32 {
        if pins <= 120 { 0xff } else { 0x1ff }
    }

    /// The entry that the selected register belongs to, and by how much the half in question is shifted.
    fn selected_entry(&self) -> Option<(u32, u32)> {
        let register = self.select.checked_sub(IOREDTBL)?;
        let index = register / 2;
        ((index as usize) < self.pins.len()).then_some((index, register % 2 * 32))
    }

    /// The 32-bit register at an offset.
    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            IOREGSEL => self.select,
            IOWIN => self.read_selected(),
            _ => 0,
        }
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            IOAPICID | IOAPICARB => u32::from(self.id) << ID_SHIFT,
            IOAPICVER => VERSION | (self.pins.len() as u32 - 1) << MAXIMUM_REDIRECTION_ENTRY_SHIFT,
            _ => match self.selected_entry() {
                Some((index, shift)) => (self.entry(index) >> shift) as u32,
                None => 0,
            },
        }
    }

    /// Writes the bytes in `lanes` (0xff for each that the access has) of the 32-bit register at an offset.
    pub(super) fn write(&mut self, offset: u64, value: u32, lanes: u32) {
        let merged = self.read(offset) & !lanes | value & lanes;
        match offset {
            IOREGSEL => self.select = merged & Self::select_mask(self.pins.len()),
            IOWIN => self.write_selected(merged),
            _ => (),
        }
    }

    fn write_selected(&mut self, value: u32) {
        if self.select == IOAPICID {
            self.id = (value >> ID_SHIFT) as u8 & ID_MAX;
        } else if let Some((index, shift)) = self.selected_entry() {
            let pin = &mut self.pins[index as usize];
            let half = u64::from(u32::MAX) << shift;
            pin.entry = (pin.entry & !half | u64::from(value) << shift) & WRITABLE;
            if !is_level(pin.entry) {
                self.remote_irr.remove(index);
            }
            self.due.insert(index);
        }
    }
}
