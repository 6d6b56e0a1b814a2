//! What a server answers to a command.

use super::{
    NbdError,
    wire::{
        Command, SIMPLE_LEN, SIMPLE_REPLY, STRUCTURED_LEN, STRUCTURED_REPLY, chunk, kind, text, u16_at, u32_at, u64_at,
    },
};

/// What has come of the reply to a command.
#[derive(Debug, Default)]
pub struct Reply {
    /// Data has come for the bytes before this.
    prefix: u32,
    /// And for these ranges beyond it, in order.
    others: Vec<(u32, u32)>,
    pub error: Option<(u32, String)>,
    errors: u32,
}

/// Ranges beyond the first that are kept: a server that sends data in a stranger order is none.
const MAX_RANGES: usize = 64;
/// Chunks with an error in one reply.
const MAX_ERRORS: u32 = 16;
/// Bytes of an error's chunk: `NBD_MAX_STRING`, and what is around it.
const MAX_ERROR: usize = 4096 + 16;
/// Bytes of a message that are told.
const MAX_TEXT: usize = 200;

impl Reply {
    /// Data comes for these bytes.
    fn cover(&mut self, start: u32, len: u32) -> Result<(), NbdError> {
        let end = start + len;
        let overlaps = |&(from, to): &(u32, u32)| start < to && from < end;
        if start < self.prefix || self.others.iter().any(overlaps) {
            return Err(NbdError::Protocol("it sends the same data twice"));
        }
        if start == self.prefix {
            self.prefix = end;
            while let Some(index) = self.others.iter().position(|range| range.0 == self.prefix) {
                self.prefix = self.others.remove(index).1;
            }
            return Ok(());
        }
        if let Some(range) = self.others.iter_mut().find(|range| range.1 == start) {
            range.1 = end;
        } else if let Some(range) = self.others.iter_mut().find(|range| range.0 == end) {
            range.0 = start;
        } else if self.others.len() < MAX_RANGES {
            self.others.push((start, end));
        } else {
            return Err(NbdError::Protocol("it sends data in too many pieces"));
        }
        Ok(())
    }

    /// Whether nothing is missing.
    pub fn is_whole(&self, command: &Command) -> bool {
        command.kind != kind::READ || self.prefix == command.len
    }

    pub fn cover_all(&mut self, command: &Command) -> Result<(), NbdError> {
        self.cover(0, command.len)
    }
}

/// The beginning of a reply, or of one of its chunks.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub cookie: u64,
    pub content: Content,
    /// Bytes that it has taken.
    pub len: usize,
    /// Nothing follows, once its data has come.
    pub done: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// A simple reply, whose data follows if there is no error.
    Simple {
        error: u32,
    },
    Nothing,
    /// So many bytes follow, for this offset.
    Data {
        offset: u64,
        len: u32,
    },
    Hole {
        offset: u64,
        len: u32,
    },
    Error {
        code: u32,
        message: String,
    },
}

/// Reads the beginning of a reply. `None` if there is too little of it.
pub fn head(bytes: &[u8], structured: bool) -> Result<Option<Head>, NbdError> {
    if bytes.len() < SIMPLE_LEN {
        return Ok(None);
    }
    match u32_at(bytes, 0) {
        SIMPLE_REPLY => {
            let content = Content::Simple {
                error: u32_at(bytes, 4),
            };
            Ok(Some(Head {
                cookie: u64_at(bytes, 8),
                content,
                len: SIMPLE_LEN,
                done: true,
            }))
        }
        STRUCTURED_REPLY if structured => chunk(bytes),
        _ => Err(NbdError::Protocol("a reply does not begin as one")),
    }
}

fn chunk(bytes: &[u8]) -> Result<Option<Head>, NbdError> {
    if bytes.len() < STRUCTURED_LEN {
        return Ok(None);
    }
    let (flags, kind, len) = (u16_at(bytes, 4), u16_at(bytes, 6), u32_at(bytes, 16));
    let rest = &bytes[STRUCTURED_LEN..];
    let done = flags & chunk::DONE != 0;
    let needs = match kind {
        chunk::NONE if len == 0 && done => 0,
        chunk::OFFSET_DATA if len > 8 => 8,
        chunk::OFFSET_HOLE if len == 12 => 12,
        _ if kind & chunk::ERROR != 0 && (6..=MAX_ERROR).contains(&(len as usize)) => len as usize,
        _ => {
            return Err(NbdError::Protocol(
                "a chunk is none that a reply has, or its length is wrong",
            ));
        }
    };
    if rest.len() < needs {
        return Ok(None);
    }
    let content = match kind {
        chunk::NONE => Content::Nothing,
        chunk::OFFSET_DATA => Content::Data {
            offset: u64_at(rest, 0),
            len: len - 8,
        },
        chunk::OFFSET_HOLE => Content::Hole {
            offset: u64_at(rest, 0),
            len: u32_at(rest, 8),
        },
        _ => {
            let message = rest[6..needs].get(..usize::from(u16_at(rest, 4)));
            let message = message.ok_or(NbdError::Protocol("a message is longer than its chunk"))?;
            Content::Error {
                code: u32_at(rest, 0),
                message: text(message, MAX_TEXT),
            }
        }
    };
    Ok(Some(Head {
        cookie: u64_at(bytes, 8),
        content,
        len: STRUCTURED_LEN + needs,
        done,
    }))
}

/// What a content means for a command.
pub enum Meaning {
    Nothing,
    /// So many bytes follow, for those from here on of the command's memory.
    Data {
        at: u32,
        len: u32,
    },
    /// These bytes are zero.
    Hole {
        at: u32,
        len: u32,
    },
}

/// Takes in what has come for a command.
pub fn take(content: Content, command: &Command, structured: bool, reply: &mut Reply) -> Result<Meaning, NbdError> {
    let mut within = |offset: u64, len: u32| {
        let at = offset
            .checked_sub(command.offset)
            .filter(|_| command.kind == kind::READ);
        let end = at.and_then(|at| at.checked_add(len.into()));
        match (at, end) {
            (Some(at), Some(end)) if len != 0 && end <= u64::from(command.len) => {
                reply.cover(at as u32, len)?;
                Ok(at as u32)
            }
            _ => Err(NbdError::Protocol("it sends data that it was not asked for")),
        }
    };
    match content {
        Content::Nothing => Ok(Meaning::Nothing),
        Content::Data { offset, len } => Ok(Meaning::Data {
            at: within(offset, len)?,
            len,
        }),
        Content::Hole { offset, len } => Ok(Meaning::Hole {
            at: within(offset, len)?,
            len,
        }),
        Content::Simple { error: 0 } if command.kind != kind::READ => Ok(Meaning::Nothing),
        Content::Simple { error: 0 } if structured => Err(NbdError::Protocol(
            "it does not structure its reply to a read, as was agreed",
        )),
        Content::Simple { error: 0 } => {
            reply.cover_all(command)?;
            let (at, len) = (0, command.len);
            Ok(Meaning::Data { at, len })
        }
        Content::Simple { error } => fail(reply, error, String::new()),
        Content::Error { code, message } => fail(reply, code, message),
    }
}

fn fail(reply: &mut Reply, code: u32, message: String) -> Result<Meaning, NbdError> {
    reply.errors += 1;
    if code == 0 || reply.errors > MAX_ERRORS {
        return Err(NbdError::Protocol("it fails without an error, or without an end"));
    }
    reply.error.get_or_insert((code, message));
    Ok(Meaning::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(len: u32) -> Command {
        Command {
            kind: kind::READ,
            flags: 0,
            offset: 1 << 40,
            len,
        }
    }

    fn data(at: u32, len: u32) -> Content {
        let offset = (1 << 40) + u64::from(at);
        Content::Data { offset, len }
    }

    #[test]
    fn pieces_may_come_in_any_order_and_each_once() {
        let (command, mut reply) = (read(100), Reply::default());
        for (at, len) in [(50, 10), (70, 30), (60, 10), (0, 20), (40, 10)] {
            assert!(!reply.is_whole(&command));
            take(data(at, len), &command, true, &mut reply).unwrap();
        }
        for (at, len) in [(0, 1), (45, 1), (35, 10), (99, 1), (10, 50)] {
            assert!(take(data(at, len), &command, true, &mut reply).is_err(), "{at} {len}");
        }
        take(data(20, 20), &command, true, &mut reply).unwrap();
        assert!(reply.is_whole(&command));
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let command = read(100);
        let wrong = [
            data(100, 1),
            data(99, 2),
            data(0, 101),
            data(0, 0),
            Content::Data { offset: 0, len: 1 },
            Content::Hole {
                offset: u64::MAX,
                len: 2,
            },
            Content::Error {
                code: 0,
                message: String::new(),
            },
            Content::Simple { error: 0 },
        ];
        for content in wrong {
            let name = format!("{content:?}");
            assert!(take(content, &command, true, &mut Reply::default()).is_err(), "{name}");
        }
    }

    #[test]
    fn pieces_that_are_kept_apart_are_few() {
        let (command, mut reply) = (read(1 << 20), Reply::default());
        let taken = (1..).take_while(|n| take(data(n * 2, 1), &command, true, &mut reply).is_ok());
        assert_eq!(taken.count(), MAX_RANGES);
    }

    #[test]
    fn errors_without_an_end_are_refused() {
        let mut reply = Reply::default();
        let error = || Content::Error {
            code: 5,
            message: "again".into(),
        };
        let taken = (0..100).take_while(|_| take(error(), &read(10), true, &mut reply).is_ok());
        assert_eq!(taken.count(), MAX_ERRORS as usize);
        assert_eq!(reply.error, Some((5, "again".into())));
    }
}
