//! How a connection is set up: fixed newstyle negotiation, byte by byte, without a socket.

use super::{
    NbdError,
    wire::{
        FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, NBDMAGIC, OPTION_REPLY, answer, flag, info, option, text,
        u16_at, u32_at, u64_at,
    },
};

/// What a server says of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    pub size: u64,
    pub flags: u16,
    /// Offsets and lengths are multiples of this.
    pub min_block: u32,
    pub preferred: u32,
    /// The most bytes that a read or write may have, a multiple of `min_block`.
    pub max_payload: u32,
    /// Replies are structured.
    pub structured: bool,
}

impl Export {
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Why this cannot stand in for what the guest was told of at `first`.
    pub fn differs(&self, first: &Self) -> Option<&'static str> {
        let needed =
            flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::CAN_MULTI_CONN;
        if first.flags & needed & !self.flags != 0 {
            return Some("it can do less than before");
        }
        if self.has(flag::READ_ONLY) && !first.has(flag::READ_ONLY) {
            return Some("it is read-only now");
        }
        (self.min_block > first.min_block).then_some("its blocks are larger than before")
    }
}

/// What comes of bytes that were fed.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More is needed.
    More,
    /// The server is ready for TLS: from the next byte on.
    StartTls,
    Done(Export),
}

/// Bytes that one reply to an option may have.
const MAX_REPLY: usize = 16 * 1024;
/// Replies to one option.
const MAX_REPLIES: u32 = 256;
/// Names of exports that are told.
const MAX_NAMES: usize = 16;
/// Bytes of a name or message that are told.
const MAX_TEXT: usize = 200;
/// Of payloads where the server sets none (`doc/proto.md`, block size constraints).
const DEFAULT_MAX: u32 = 32 << 20;

#[derive(Debug)]
pub struct Handshake {
    export: String,
    tls: bool,
    stage: Stage,
    /// To be sent.
    output: Vec<u8>,
    replies: u32,
    no_zeroes: bool,
    structured: bool,
    told: Option<(u64, u16)>,
    blocks: Option<(u32, u32, u32)>,
    names: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    StartTls,
    Structured,
    Go,
    ExportName,
    /// The export is not there; which ones are?
    List,
}

fn broken(what: &'static str) -> NbdError {
    NbdError::Protocol(what)
}

impl Handshake {
    pub fn new(export: &str, tls: bool) -> Self {
        Self {
            export: export.into(),
            tls,
            stage: Stage::Greeting,
            output: Vec::new(),
            replies: 0,
            no_zeroes: false,
            structured: false,
            told: None,
            blocks: None,
            names: Vec::new(),
        }
    }

    /// What is to be sent; what was sent is to be drained from it.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// TLS stands.
    pub fn secured(&mut self) {
        self.ask(Stage::Structured, option::STRUCTURED_REPLY, &[]);
    }

    /// What the server has sent and was not consumed yet. Returns how much of it is consumed now.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Progress), NbdError> {
        match self.stage {
            Stage::Greeting => self.greeting(input),
            Stage::ExportName => self.export_name(input),
            _ => self.reply(input),
        }
    }

    fn ask(&mut self, stage: Stage, option: u32, data: &[u8]) {
        self.stage = stage;
        self.replies = 0;
        self.output.extend(IHAVEOPT.to_be_bytes());
        self.output.extend(option.to_be_bytes());
        self.output.extend((data.len() as u32).to_be_bytes());
        self.output.extend(data);
    }

    fn greeting(&mut self, input: &[u8]) -> Result<(usize, Progress), NbdError> {
        if input.len() >= 8 && u64_at(input, 0) != NBDMAGIC {
            return Err(broken("it does not begin as NBD does"));
        }
        if input.len() < 18 {
            return Ok((0, Progress::More));
        }
        let flags = u16_at(input, 16);
        if u64_at(input, 8) != IHAVEOPT || flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(broken(
                "it negotiates in an old style, and only fixed newstyle is spoken here",
            ));
        }
        self.no_zeroes = flags & FLAG_NO_ZEROES != 0;
        let ours = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        self.output.extend(ours.to_be_bytes());
        match self.tls {
            true => self.ask(Stage::StartTls, option::STARTTLS, &[]),
            false => self.secured(),
        }
        Ok((18, Progress::More))
    }

    fn export_name(&mut self, input: &[u8]) -> Result<(usize, Progress), NbdError> {
        let len = if self.no_zeroes { 10 } else { 134 };
        if input.len() < len {
            return Ok((0, Progress::More));
        }
        self.told = Some((u64_at(input, 0), u16_at(input, 8)));
        Ok((len, Progress::Done(self.finished()?)))
    }

    fn reply(&mut self, input: &[u8]) -> Result<(usize, Progress), NbdError> {
        if input.len() < 20 {
            return Ok((0, Progress::More));
        }
        let (asked, kind, len) = (u32_at(input, 8), u32_at(input, 12), u32_at(input, 16) as usize);
        if u64_at(input, 0) != OPTION_REPLY {
            return Err(broken("a reply to an option does not begin as one"));
        }
        let expected = match self.stage {
            Stage::StartTls => option::STARTTLS,
            Stage::Structured => option::STRUCTURED_REPLY,
            Stage::List => option::LIST,
            _ => option::GO,
        };
        if asked != expected {
            return Err(broken("it replies to an option that it was not asked for"));
        }
        if len > MAX_REPLY {
            return Err(broken("a reply to an option is longer than any has to be"));
        }
        let Some(data) = input.get(20..20 + len) else {
            return Ok((0, Progress::More));
        };
        self.replies += 1;
        if self.replies > MAX_REPLIES {
            return Err(broken("it does not stop to reply to an option"));
        }
        if kind == answer::ERR_TLS_REQD {
            return Err(NbdError::TlsRequired);
        }
        let progress = match self.stage {
            Stage::StartTls if kind == answer::ACK => Progress::StartTls,
            Stage::StartTls if kind & answer::ERROR != 0 => return Err(NbdError::NoTls),
            Stage::Structured if kind == answer::ACK || kind & answer::ERROR != 0 => {
                self.structured = kind == answer::ACK;
                self.go();
                Progress::More
            }
            Stage::Go => self.go_replied(kind, data)?,
            Stage::List => self.listed(kind, data)?,
            _ => return Err(broken("it replies with something that no option has")),
        };
        Ok((20 + len, progress))
    }

    fn go(&mut self) {
        let mut data = Vec::new();
        data.extend((self.export.len() as u32).to_be_bytes());
        data.extend(self.export.as_bytes());
        data.extend(1_u16.to_be_bytes());
        data.extend(info::BLOCK_SIZE.to_be_bytes());
        self.ask(Stage::Go, option::GO, &data);
    }

    fn go_replied(&mut self, kind: u32, data: &[u8]) -> Result<Progress, NbdError> {
        match kind {
            answer::ACK => return Ok(Progress::Done(self.finished()?)),
            answer::INFO if data.len() >= 2 => match (u16_at(data, 0), data.len()) {
                (info::EXPORT, 12) => self.told = Some((u64_at(data, 2), u16_at(data, 10))),
                (info::BLOCK_SIZE, 14) => self.blocks = Some((u32_at(data, 2), u32_at(data, 6), u32_at(data, 10))),
                (info::EXPORT | info::BLOCK_SIZE, _) => {
                    return Err(broken("what it tells of an export has a wrong length"));
                }
                // A name, a description: not asked for, and allowed.
                _ => {}
            },
            answer::ERR_UNSUP => {
                let export = self.export.clone();
                self.ask(Stage::ExportName, option::EXPORT_NAME, export.as_bytes());
            }
            answer::ERR_UNKNOWN => self.ask(Stage::List, option::LIST, &[]),
            _ if kind & answer::ERROR != 0 => {
                let message = match text(data, MAX_TEXT) {
                    message if message.is_empty() => format!("error {}", kind & !answer::ERROR),
                    message => message,
                };
                return Err(NbdError::Refused {
                    export: self.export.clone(),
                    message,
                });
            }
            _ => return Err(broken("it replies with something that NBD_OPT_GO has not")),
        }
        Ok(Progress::More)
    }

    fn listed(&mut self, kind: u32, data: &[u8]) -> Result<Progress, NbdError> {
        if kind == answer::SERVER && data.len() >= 4 {
            let len = u32_at(data, 0) as usize;
            let name = data[4..].get(..len).ok_or(broken("a name is longer than its reply"))?;
            if self.names.len() < MAX_NAMES {
                self.names.push(text(name, MAX_TEXT));
            }
            return Ok(Progress::More);
        }
        // The end of the list, or a server that does not tell.
        Err(NbdError::NoExport {
            export: self.export.clone(),
            available: self.names.join(", "),
        })
    }

    fn finished(&self) -> Result<Export, NbdError> {
        let (size, flags) = self.told.ok_or(broken("it does not tell the size of its export"))?;
        if size > i64::MAX as u64 {
            return Err(broken("its export is larger than a file can be"));
        }
        let (min_block, preferred, max) = self.blocks.unwrap_or((1, 4096, DEFAULT_MAX));
        if !min_block.is_power_of_two() || min_block > 64 * 1024 || max < min_block {
            return Err(broken("its block sizes contradict each other"));
        }
        let preferred = match preferred.is_power_of_two() {
            true => preferred.max(min_block),
            false => min_block.max(4096),
        };
        Ok(Export {
            size,
            flags,
            min_block,
            preferred,
            max_payload: max.min(DEFAULT_MAX) / min_block * min_block,
            structured: self.structured,
        })
    }
}
