//! A: administration commands (virtio 1.3, section 2.13). Ours has no queue for them, and does not offer one; the suite sends them to the
//! first queue of a disk, or to its last, where they are requests of types that mostly do not exist.

use crate::{
    block::{IOERR, OK, UNSUPP},
    both::{ANSWER, REQUEST},
    driver::{
        Row,
        Seen::{self, Holds, Refused, Says, Served},
        plays,
    },
    ring::{Buffer, readable, writable},
    setup::no_administration,
    world::{REGISTERS, World},
};

/// Opcodes (section 2.13.1).
const QUERY: u16 = 0;
const USE: u16 = 1;
const COMMON_WRITE: u16 = 2;
const COMMON_READ: u16 = 3;
const DEVICE_READ: u16 = 5;

/// Bytes of a command's head: as the specification has it, without what is reserved, and without members.
const HEAD: usize = 24;
const PACKED: usize = 12;
const CUT: usize = 8;

const NO: Seen = Says(UNSUPP);
const BAD: Seen = Says(IOERR);

/// Where what follows a head lies.
const DATA: u64 = 0xb_0000;

/// A command: what is done, to which group and member.
fn head(opcode: u16, group: u16, member: u64) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    bytes[..2].copy_from_slice(&opcode.to_le_bytes());
    bytes[2..4].copy_from_slice(&group.to_le_bytes());
    bytes[16..].copy_from_slice(&member.to_le_bytes());
    bytes
}

/// The same with no room between, and `more` after it.
fn packed(opcode: u16, group: u16, member: u64, more: &[u8]) -> Vec<u8> {
    let [opcode, group] = [opcode, group].map(u16::to_le_bytes);
    [&opcode[..], &group, &member.to_le_bytes(), more].concat()
}

/// What the disk says in the last byte of all the room that there is.
fn says(w: &mut World, queue: u16, buffers: &[Buffer]) -> Seen {
    w.guest.put(ANSWER, &[0xee; 256]);
    let last = buffers.last().expect("a buffer");
    match w.offer(queue, buffers) {
        Served => Says(w.guest.get(last.address + u64::from(last.len) - 1, 1)[0].into()),
        other => other,
    }
}

/// Sends a command, with room for what comes of it.
fn sends(w: &mut World, command: &[u8], room: u32) -> Seen {
    no_administration(w);
    w.restart();
    w.guest.put(REQUEST, command);
    says(w, 0, &[readable(REQUEST, command.len() as u32), writable(ANSWER, room)])
}

/// The same, with buffers between.
fn sends_with(w: &mut World, command: &[u8], data: &[Buffer]) -> Seen {
    w.guest.put(REQUEST, command);
    let buffers = [
        &[readable(REQUEST, command.len() as u32)],
        data,
        &[writable(ANSWER, 64)],
    ]
    .concat();
    says(w, 0, &buffers)
}

/// Several at once, each with room of its own. They all come to the same.
fn at_once(w: &mut World, commands: &[&[u8]]) -> Seen {
    w.guest.put(ANSWER, &[0xee; 256]);
    for (at, command) in (0..).map(|number| REQUEST + 0x100 * number).zip(commands) {
        w.guest.put(at, command);
    }
    let seen = w.watch(0, |ring| {
        for (number, command) in (0..).zip(commands) {
            let room = writable(ANSWER + 64 * number, 64);
            ring.request(&[readable(REQUEST + 0x100 * number, command.len() as u32), room]);
        }
    });
    let status = |number: usize| w.guest.get(ANSWER + 64 * number as u64 + 63, 1)[0];
    match seen {
        Served => {
            assert!((1..commands.len()).all(|number| status(number) == status(0)));
            Says(status(0).into())
        }
        other => other,
    }
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row("A0001", "a command before it was said which are used", plays(Refused, |w| sends(w, &packed(5, 1, 0, &[]), 64))),
    Row("A0002", "a group that is named before the list is used", plays(Refused, |w| sends(w, &packed(0x10, 2, 0, &[]), 64))),
    Row("A0003", "an opcode that is reserved", plays(Refused, |w| sends(w, &packed(u16::MAX, 0, 0, &[]), 64))),
    Row("A0004", "a command that is cut short", plays(Refused, |w| sends(w, &[1, 0], 64))),
    Row("A0005", "a list for a group that there is not", plays(Refused, |w| sends(w, &packed(USE, u16::MAX, 0, &[]), 64))),
    Row("A0006", "a status of hardly any bytes", plays(BAD, |w| sends(w, &head(USE, 0, 0), 1))),
    Row("A0007", "the last opcode that can be said", plays(NO, |w| sends(w, &head(u16::MAX, 0, 0), 64))),
    Row("A0008", "a member that there is not", plays(NO, |w| sends(w, &head(USE, 1, 0xdead_beef_cafe), 64))),
    Row("A0009", "two commands at once", plays(BAD, |w| at_once(w, &[&head(USE, 0, 0)[..]; 2]))),
    Row("A0010", "a command without data", plays(Says(OK), |w| sends(w, &head(QUERY, 0, 0), 1))),
    Row("A0011", "a list of no commands", plays(BAD, |w| sends(w, &head(QUERY, 0, 0), 128))),
    Row("A0012", "a command after a reset", plays(BAD, |w| {
        w.restart();
        sends(w, &head(QUERY, 0, 0), 64)
    })),
    Row("A0013", "a response longer than its room", plays(Says(OK), |w| sends(w, &head(QUERY, 0, 0), 1))),
    Row("A0014", "a list for the last group that can be said", plays(NO, |w| sends_with(w, &head(USE, 0x7fff, 0), &[readable(DATA, 64)]))),
    Row("A0015", "a type of group of wrong bytes", plays(NO, |w| sends(w, &head(QUERY, u16::MAX, u64::MAX), 64))),
    Row("A0016", "reserved bytes that are not zero", plays(BAD, |w| {
        let mut command = head(QUERY, 0, 0);
        command[4..16].fill(0xff);
        sends(w, &command, 64)
    })),
    Row("A0017", "a command of no length", plays(Refused, |w| sends(w, &[], 64))),
    Row("A0018", "more data than a command has", plays(Refused, |w| {
        let mut command = head(QUERY, 0, 0);
        command[6..8].copy_from_slice(&4096_u16.to_le_bytes());
        sends(w, &command[..CUT], 64)
    })),
    Row("A0019", "a list and a command at once", plays(Refused, |w| at_once(w, &[&head(QUERY, 1, 0)[..CUT], &head(USE, 1, 0)[..CUT]]))),
    Row("A0020", "a question, a use and a question", plays(Refused, |w| {
        let [query, used] = [QUERY, USE].map(|opcode| packed(opcode, 0, 0, &[]));
        assert_eq!(query.len(), PACKED);
        at_once(w, &[&query[..], &used, &query])
    })),
    Row("A0021", "more data than can be", plays(BAD, |w| sends_with(w, &head(USE, 0, 0), &[readable(DATA, 8 << 12)]))),
    Row("A0022", "two kicks without an answer", plays(BAD, |w| {
        let seen = sends(w, &head(USE, 0, 0), 64);
        w.kick(0);
        assert!(w.guest.used(0).is_empty(), "once");
        seen
    })),
    Row("A0023", "an older driver's fields are read", plays(NO, |w| sends(w, &packed(COMMON_READ, 1, 0, &[0; 4]), 64))),
    Row("A0024", "an older driver's fields are written", plays(NO, |w| sends(w, &packed(COMMON_WRITE, 1, 0, &[0, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa]), 64))),
    Row("A0025", "an older driver's fields of a member that there is not", plays(NO, |w| sends(w, &packed(COMMON_READ, 1, u64::MAX, &[0; 4]), 64))),
    Row("A0026", "an older driver's device configuration is read", plays(NO, |w| sends(w, &packed(DEVICE_READ, 1, 0, &[0; 4]), 64))),
    Row("A0027", "an older driver's fields of another group", plays(NO, |w| sends(w, &packed(COMMON_READ, 0, 0, &[0; 4]), 64))),
    Row("A0028", "as much data as can be, in the last queue", plays(BAD, |w| {
        w.guest.put(REQUEST, &[&[1][..], &[0; 15], &[0xff; 8], &[0; 16]].concat());
        let last = w.guest.queues() - 1;
        says(w, last, &[readable(REQUEST, 40), writable(ANSWER, 8)])
    })),
    Row("A0029", "three lists at once", plays(NO, |w| at_once(w, &[&head(USE, 1, 0)[..]; 3]))),
    Row("A0030", "a chain of many pieces", plays(NO, |w| {
        let pieces: Vec<_> = (0..14).map(|at| readable(DATA + 16 * at, 16)).collect();
        sends_with(w, &head(USE, 1, 0), &pieces)
    })),
    Row("A0031", "the last member that can be said", plays(NO, |w| sends_with(w, &head(USE, 1, u64::MAX), &[readable(DATA, 64)]))),
    Row("A0032", "a header in pieces", plays(NO, |w| {
        w.guest.put(REQUEST, &head(USE, 1, 0));
        says(w, 0, &[readable(REQUEST, 8), readable(REQUEST + 8, 16), readable(DATA, 64), writable(ANSWER, 64)])
    })),
    Row("A0033", "data in the registers of a device", plays(Refused, |w| sends_with(w, &head(USE, 1, 0), &[readable(REGISTERS, 64)]))),
    Row("A0034", "a status before the data", plays(Refused, |w| {
        w.guest.put(REQUEST, &head(USE, 1, 0));
        w.offer(0, &[readable(REQUEST, 24), writable(ANSWER, 64), readable(DATA, 64), writable(ANSWER + 64, 16)])
    })),
    Row("A0035", "room for a response that passes the last address", plays(Refused, |w| {
        w.guest.put(REQUEST, &head(QUERY, 0, 0));
        w.offer(0, &[readable(REQUEST, 24), writable(!0xfff, 0x2000)])
    })),
    Row("A0200", "a state is saved with a command under way", plays(Holds, |w| {
        no_administration(w);
        w.restart();
        w.moved();
        assert_eq!(w.guest.status(), crate::setup::WORKING);
        Holds
    })),
];
