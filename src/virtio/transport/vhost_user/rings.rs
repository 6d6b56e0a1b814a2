//! Rings as the front end describes, starts and stops them.

use std::os::fd::OwnedFd;

use super::{
    VhostUser,
    event::Event,
    found::{Found, Unstarted},
    inflight::Part,
    iotlb::Range,
    requests::{self, Outcome, one, parse},
    ring::{Kick, Ring, base_of},
    session::{Answer, Session},
};
use crate::virtio::{
    QueueIndex, VirtioDevice,
    queue::{QueueLayout, areas},
    vhost_user::{FrontRequest, VringAddress, VringFile, VringState},
};

impl<D: VirtioDevice> VhostUser<D> {
    /// Where a ring is, as far as that is known.
    pub(super) fn layout(&self, session: &Session, index: usize) -> Option<QueueLayout> {
        session.rings.get(index)?.layout(&session.regions, self.translates())
    }

    /// The addresses of all rings of a kind that were described, if they are translated.
    pub(super) fn ring_addresses(&self, session: &Session, kind: impl Fn(&Ring) -> bool) -> Vec<Range> {
        let packed = session.is_packed();
        let rings = (0..session.rings.len()).filter(|&index| kind(&session.rings[index]));
        let layouts = rings.filter_map(|index| self.layout(session, index));
        let addresses = layouts.flat_map(|layout| areas(&layout, packed));
        addresses
            .filter_map(|(address, len, _)| Some(address..=address.checked_add(len.checked_sub(1)?)?))
            .collect()
    }

    /// The rings that run where some of these addresses are.
    pub(super) fn rings_at(&self, session: &Session, range: &Range) -> Vec<usize> {
        let packed = session.is_packed();
        let touches = |layout: &QueueLayout| {
            areas(layout, packed)
                .iter()
                .any(|(address, len, _)| *address <= *range.end() && address.saturating_add(len - 1) >= *range.start())
        };
        let rings = session.rings.iter().enumerate();
        rings
            .filter(|(_, ring)| ring.runs.as_ref().is_some_and(touches))
            .map(|(index, _)| index)
            .collect()
    }

    /// Starts each ring that is to run and does not.
    pub(super) fn start_rings(&self, session: &mut Session) {
        let Some(features) = session.features.filter(|_| self.has_agreed()) else {
            return;
        };
        for index in 0..session.rings.len() {
            let ring = &session.rings[index];
            if ring.runs.is_some() || ring.kick == Kick::None || ring.refused || !ring.enabled || ring.size == 0 {
                continue;
            }
            let Some(layout) = self.layout(session, index) else {
                continue;
            };
            // It is tried again with the next request, which may tell of what is missing.
            if self.translates() && !self.iotlb.has_ring(&layout, session.is_packed()) {
                continue;
            }
            let ring = &session.rings[index];
            let accepted = features & !requests::VHOST;
            let part = session.part(index, layout.size);
            let started = match self.core.max_ring_size(index) {
                // Before its table is read, which may be a lot.
                max if layout.size > max => Err(Unstarted::Wrong(format!(
                    "a ring of {}: up to {max} is accepted",
                    layout.size
                ))),
                _ => self.with_found(|memory| ring.start(layout, accepted, memory, part.as_ref())),
            };
            let started = match started {
                Err(Unstarted::Missing(address)) if self.translates() => {
                    self.iotlb.ask(address);
                    continue;
                }
                Err(Unstarted::Missing(address)) => Err(format!("{address:#x} is in no memory")),
                Err(Unstarted::Wrong(reason)) => Err(reason),
                Ok(state) => Ok(state),
            };
            let started = started.and_then(|state| {
                self.iotlb.refuse_no_more();
                let tracker = part.map(Part::tracker);
                let started = self.core.start_ring(index, &state, tracker);
                started.map_err(|error| error.to_string())
            });
            let ring = &mut session.rings[index];
            match started {
                Ok(()) => {
                    ring.runs = Some(layout);
                    ring.kept = None;
                    self.lines.starts(index);
                }
                Err(reason) => {
                    ring.refused = true;
                    self.core.become_live();
                    self.core.refuse_ring(reason);
                    self.look_for_failure();
                }
            }
        }
    }

    /// Calls `f` with memory by the addresses of rings.
    fn with_found<R>(&self, f: impl FnOnce(&Found<'_>) -> R) -> R {
        let translates = self.translates();
        let find = |address| match translates {
            true => self.iotlb.locate(address),
            false => Some((address, u64::MAX)),
        };
        f(&Found {
            pin: self.memory.memory().pin(),
            find: &find,
        })
    }

    pub(super) fn set_vring_addr(&self, session: &mut Session, payload: &[u8]) -> Outcome {
        let address = parse(VringAddress::from_bytes(payload))?;
        let (index, ring) = session.ring(address.index)?;
        ring.address = Some(address);
        let runs = session.rings[index].runs;
        if runs.is_some() && runs != self.layout(session, index) {
            self.end(session, index);
        }
        Ok(Answer::Done)
    }

    pub(super) fn get_vring_base(&self, session: &mut Session, payload: &[u8]) -> Outcome {
        let VringState { index, .. } = parse(VringState::from_bytes(payload))?;
        let (at, _) = session.ring(index)?;
        self.end(session, at);
        let ring = &mut session.rings[at];
        ring.kick = Kick::None;
        let base = ring.base;
        // Its kick and call are for the ring as it was.
        self.lines.forget_kick(at);
        Ok(Answer::Payload(VringState { index, num: base }.to_bytes()))
    }

    pub(super) fn set_vring_file(
        &self,
        session: &mut Session,
        request: FrontRequest,
        payload: &[u8],
        mut descriptors: Vec<OwnedFd>,
    ) -> Outcome {
        let VringFile { index, has_descriptor } = parse(VringFile::from_bytes(payload))?;
        let (index, ring) = session.ring(index)?;
        let event = match has_descriptor {
            true => {
                let descriptor = one(&mut descriptors)?;
                let event = match request {
                    FrontRequest::SetVringKick => Event::heard(descriptor),
                    _ => Event::said(descriptor),
                };
                Some(event.map_err(|error| format!("an event descriptor: {error}"))?)
            }
            false if descriptors.is_empty() => None,
            false => return Err("a descriptor that is said not to be there".into()),
        };
        match request {
            FrontRequest::SetVringKick => {
                if event.is_none() && !self.lines.polls() {
                    return Err("a ring without a kick: one with a kick is accepted".into());
                }
                ring.kick = Kick::Set;
                ring.refused = false;
                self.lines.set_kick(index, event);
                // What the one before has said, and nobody has heard.
                self.look_at(index);
            }
            FrontRequest::SetVringCall => {
                self.lines.set_call(index, event);
                // What the one before has refused, or there was none for.
                self.look_at(index);
            }
            _ => self.lines.set_error(index, event),
        }
        Ok(Answer::Done)
    }

    /// Has a ring looked at: by who serves it, which may take as long as its driver likes; or here if nobody hears of it.
    fn look_at(&self, index: usize) {
        match self.lines.has_doorbell() {
            true => self.core.mark_and_ring(index),
            false => self.core.process(QueueIndex(index as u16)),
        }
    }

    /// The device was reset: all rings are disabled, and the front end describes them again.
    pub(super) fn forget_rings(&self, session: &mut Session) {
        for (index, ring) in session.rings.iter_mut().enumerate() {
            ring.kept = None;
            ring.runs = None;
            ring.kick = Kick::None;
            ring.enabled = false;
            ring.base = 0;
            self.lines.forget_kick(index);
        }
        if let Some(table) = session.inflight.take() {
            // Heads of the rings as they were mean nothing in those that come.
            table.clear(session.rings.len());
        }
        session.features = None;
        session.disagreed = false;
        self.iotlb.forget();
    }

    /// Ends a ring that is at rest, and keeps what is to be kept of it.
    pub(super) fn end(&self, session: &mut Session, index: usize) {
        if session.rings[index].runs.take().is_none() {
            return;
        }
        self.lines.stops(index);
        if let Some(mut state) = self.core.end_ring(index) {
            match session.part(index, state.layout.size) {
                None => self.with_found(|memory| Ring::rewind(&mut state, memory)),
                // The base of a ring that is stopped is not beyond what was used: nothing is under way any more.
                Some(Part::Split(part)) => {
                    let taken = state.in_flight.clone();
                    self.with_found(|memory| Ring::rewind(&mut state, memory));
                    if state.in_flight.is_empty() {
                        part.forget(&taken);
                    }
                }
                // It says how far the ring was used beside what was taken, and the table has what may be in the ring no more.
                Some(Part::Packed(_)) => {}
            }
            let ring = &mut session.rings[index];
            ring.base = base_of(&state);
            ring.kept = Some(state);
        }
    }
}
