//! Whatever a driver asks: not the cases that somebody thought of, but every one of a grid of them. The device answers or refuses each,
//! nothing else changes, and the next good request is answered. Cases of the suite whose text is not known to us lie in these grids
//! as far as requests can ask for them.

use crate::{
    block::{self, *},
    both::{BOTH, REQUEST},
    driver::Seen,
    net::{COALESCING, RX, TX},
    ring::{Buffer, Descriptor, readable, writable},
    world::{Driver, Kind, NOWHERE, SECTORS, TOP, Way, World},
    zones::{APPEND, REPORT},
};

fn each_way(kinds: &[Kind], sweep: impl Fn(&mut World)) {
    for &kind in kinds {
        for transport in BOTH {
            for driver in [Driver::Bare, Driver::Modern, Driver::Full] {
                let mut world = World::new(kind, Way { transport, driver });
                sweep(&mut world);
                world.lives_on();
            }
        }
    }
}

/// One of these, by turns that fall together with no other's.
fn turn<T: Copy>(values: &[T], at: usize) -> T {
    values[at % values.len()]
}

/// What holds a request's header, its data and its status, of any form.
fn forms() -> Vec<(Vec<Buffer>, Vec<Buffer>, Vec<Buffer>)> {
    let headers = [
        vec![],
        vec![readable(REQUEST, 8)],
        vec![readable(REQUEST, 16)],
        vec![readable(REQUEST, 17)],
        vec![readable(REQUEST, 3), readable(REQUEST + 3, 13)],
        vec![writable(REQUEST, 16)],
        vec![readable(NOWHERE, 16)],
    ];
    let data = [
        vec![],
        vec![readable(DATA, 512)],
        vec![writable(DATA, 512)],
        vec![readable(DATA, 16)],
        vec![writable(DATA, 20)],
        vec![readable(DATA, 513)],
        vec![writable(DATA, 1)],
        vec![readable(DATA, 24), writable(DATA + 512, 8)],
        vec![readable(DATA, 512), writable(DATA + 512, 8)],
        vec![writable(DATA, 7), writable(DATA + 7, 4089)],
        vec![readable(NOWHERE, 512)],
        vec![writable(TOP - 8, 512)],
        vec![writable(DATA, u32::MAX)],
    ];
    let statuses = [
        vec![],
        vec![writable(STATUS, 1)],
        vec![writable(STATUS, 2)],
        vec![readable(STATUS, 1)],
        vec![writable(NOWHERE, 1)],
    ];
    let mut forms = Vec::new();
    for header in &headers {
        for data in &data {
            for status in &statuses {
                forms.push((header.clone(), data.clone(), status.clone()));
            }
        }
    }
    forms
}

fn first_word(w: &World, buffers: &[Buffer]) -> Option<u32> {
    let readable = buffers
        .iter()
        .take_while(|buffer| !buffer.writable && buffer.address < TOP);
    let bytes: Vec<u8> = readable
        .flat_map(|buffer| w.guest.get(buffer.address, buffer.len.min(4) as usize))
        .collect();
    Some(u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn every_request(w: &mut World) {
    let changes = [OUT, DISCARD, WRITE_ZEROES, SECURE_ERASE];
    let sectors = [0, 1, SECTORS - 1, SECTORS, 1 << 55, u64::MAX];
    let lengths = [0, 1, 2, u32::MAX];
    let mut at = 0;
    for kind in (0..=30).chain([0x8000_0000, u32::MAX]) {
        for (header, data, status) in forms() {
            at += 1;
            let buffers = [header, data, status].concat();
            if buffers.is_empty() {
                continue;
            }
            let sector = turn(&sectors, at);
            w.guest.put(REQUEST, &block::header(kind, sector));
            w.guest.put(
                DATA,
                &segment(sector, turn(&lengths, at / 6), turn(&[0, 1, 2], at / 24)),
            );
            let before = w.host.disk.as_ref().map(|disk| disk.contents().to_vec());
            // The header is what the device reads first, wherever the driver meant it to be.
            let kind = first_word(w, &buffers).unwrap_or(kind);
            let seen = w.disk_says(turn(&[0, 1], at / 7), &buffers);
            assert!(!w.needs_reset(), "{kind} {buffers:?}");
            assert!(
                matches!(seen, Seen::Says(_) | Seen::Refused),
                "{kind} at {sector}: {buffers:?}: {seen:?}"
            );
            // The status is the last byte that the device can write, wherever the driver meant it to be.
            let status = buffers.last().filter(|last| last.writable && seen != Seen::Refused);
            let done = status.is_some_and(|last| w.guest.get(last.address + u64::from(last.len) - 1, 1) == [0]);
            if let Some(before) = before
                && (!changes.contains(&kind) || !done || w.kind == Kind::BlockReadOnly)
            {
                assert!(
                    w.disk().contents()[..] == before[..],
                    "{kind} at {sector} has changed the disk: {buffers:?}"
                );
            }
            let knows_zones = w.kind == Kind::Zoned || !(APPEND..=26).contains(&kind) && kind != REPORT;
            assert!(
                !done || knows_zones,
                "{kind} is of zones, and there are none: {buffers:?}"
            );
        }
    }
}

#[test]
fn whatever_a_disk_is_asked_it_answers_and_changes_nothing_else() {
    each_way(&[Kind::Block, Kind::BlockReadOnly, Kind::BlockWorn], every_request);
}

#[test]
fn whatever_a_disk_of_zones_is_asked_it_answers() {
    each_way(&[Kind::Zoned], every_request);
}

/// Frames with headers that say anything.
fn every_header(w: &mut World) {
    let mut at = 0;
    for flags in (0..=7).chain([0xff]) {
        for gso in [0, 1, 3, 4, 5, 6, 0x81, 0x84, 0xff] {
            for len in [0, 1, 13, 14, 54, 60, 1514, 4000] {
                for _ in 0..24 {
                    at += 1;
                    let header = devisor::virtio::net::Header {
                        flags,
                        gso_type: gso,
                        hdr_len: turn(&[0, 14, 54, 0xffff], at),
                        gso_size: turn(&[0, 1, 1000, 0xffff], at / 3),
                        csum_start: turn(&[0, 14, 34, 0xffff], at / 5),
                        csum_offset: turn(&[0, 6, 16, 0xffff], at / 7),
                        num_buffers: turn(&[0, 1, 0xffff], at / 11),
                    };
                    let packet = w.packet(&header.to_bytes(), len);
                    let cut = turn(&[0, 0, 0, 1], at).min(packet.len());
                    let seen = w.transmit_on(TX, &packet[..packet.len() - cut]);
                    let taken = w.taken();
                    match seen {
                        Seen::Served => assert!(taken.len() <= 1, "{header:?}: {} frames of one", taken.len()),
                        Seen::Refused => assert!(taken.is_empty(), "{header:?}: a frame of what was refused"),
                        other => panic!("{header:?}, {len}: {other:?}"),
                    }
                }
            }
        }
    }
}

/// Commands of any class and length, with any room for the answer.
fn every_command(w: &mut World) {
    let control = w.control();
    let rooms = [
        vec![],
        vec![writable(STATUS, 1)],
        vec![writable(STATUS, 600)],
        vec![readable(STATUS, 1)],
    ];
    let mut at = 0_usize;
    for class in (0..=COALESCING + 3).chain([0xff]) {
        for command in (0..=6).chain([0xff]) {
            for len in (0..=16).chain([20, 40, 57, 4096]) {
                for room in &rooms {
                    at += 1;
                    let fill = turn(&[0, 1, 2, 0x28, 0xff], at);
                    w.guest.put(REQUEST, &[class, command]);
                    w.guest.put(REQUEST + 2, &vec![fill; len as usize]);
                    w.guest.put(STATUS, &[0xee]);
                    let mut buffers = vec![readable(REQUEST, 2 + len)];
                    buffers.extend(room);
                    match w.offer(control, &buffers) {
                        Seen::Served if room.first().is_some_and(|room| room.writable) => {
                            let ack = w.guest.get(STATUS, 1)[0];
                            assert!(ack <= 1, "{class}.{command} of {len}: an answer of {ack}");
                        }
                        Seen::Served | Seen::Refused => (),
                        other => panic!("{class}.{command} of {len}: {other:?}"),
                    }
                    assert!(!w.needs_reset(), "{class}.{command} of {len}");
                }
            }
        }
    }
    w.taken();
}

/// Room of any form for a frame that comes then.
fn every_room(w: &mut World) {
    let header = w.header_len() as u32;
    for first in [0, 1, header - 1, header, header + 1, header + 60, 2048] {
        for second in [
            None,
            Some(writable(DATA, 1)),
            Some(writable(DATA, 2048)),
            Some(readable(DATA, 16)),
            Some(writable(NOWHERE, 64)),
        ] {
            let mut buffers = vec![writable(REQUEST, first)];
            buffers.extend(second);
            w.offer(RX, &buffers);
            w.comes(60);
            assert!(!w.needs_reset(), "{buffers:?}");
            // What was not used is taken away, and so is a frame that found no room.
            w.restart();
        }
    }
}

#[test]
fn whatever_a_network_is_sent_asked_or_lent_it_lives_on() {
    each_way(&[Kind::Net], |w| {
        every_header(w);
        every_command(w);
        every_room(w);
    });
}

/// Numbers that look like chance, and are the same each time.
struct Chance(u64);

impl Chance {
    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        turn(values, (self.0 >> 16) as usize)
    }
}

/// Three descriptors that say anything, and an index that points at anything.
fn any_ring(w: &mut World, chance: &mut Chance) {
    for at in 0..3 {
        let descriptor = Descriptor {
            address: chance.of(&[REQUEST, REQUEST, DATA, STATUS, 0, TOP - 8, TOP, NOWHERE, u64::MAX - 3]),
            len: chance.of(&[16, 16, 512, 1, 0, 32, 48, 15, u32::MAX, 1 << 31]),
            flags: chance.of(&[0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 0xffff]),
            next: chance.of(&[0, 1, 1, 2, 2, 3, 0x7fff, 0xffff]),
        };
        let ring = w.guest.ring(0);
        ring.write_descriptor(ring.layout.descriptor_area, at, descriptor);
        // So that a table at the request has descriptors, too.
        if at < 2 {
            w.guest.put(
                REQUEST + 16 * u64::from(at),
                &block::header(chance.of(&[0, 1, 4, 8]), 0),
            );
        }
    }
    let head = chance.of(&[0, 0, 0, 0, 1, 2, 0x7fff, 0xffff]);
    w.guest.ring(0).offer(head);
    w.kick(0);
}

#[test]
fn whatever_a_ring_says_it_costs_a_request_or_a_reset() {
    each_way(&[Kind::Block], |w| {
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        for _ in 0..4000 {
            any_ring(w, &mut chance);
            if w.needs_reset() {
                w.restart();
            }
        }
        w.restart();
        assert_eq!(w.reads(0, 512), Seen::Says(OK));
    });
}
