//! The command line.

use std::path::PathBuf;

use devisor::virtio::transport::TransportOptions;

/// Where the front end is met.
#[derive(Debug)]
pub enum Meeting {
    Listen(PathBuf),
    Connect(PathBuf),
    Inherited(i32),
}

/// What was asked for.
#[derive(Debug)]
pub struct Arguments {
    pub kind: String,
    /// One; or several, each of which is a network interface on one switch.
    pub meetings: Vec<Meeting>,
    pub print_capabilities: bool,
    pub image: Option<PathBuf>,
    pub read_only: bool,
    pub queues: u16,
    pub packed: bool,
    pub in_order: bool,
    /// Queues are served again and again, and what that costs is said in the end.
    pub poll: bool,
    /// The front end may have an IOMMU.
    pub iommu: bool,
    /// What is behind a network interface, a console or a socket device: options by their names.
    pub others: Vec<(String, String)>,
}

const USAGE: &str = "usage: devisord blk|net|console|vsock|rng|balloon \
    (--socket-path PATH | --connect PATH | --fd N) [--print-capabilities] [--packed] [--in-order] [--iommu] [--queues N] [--poll]\n\
    blk: --image FILE [--read-only] [--direct] [--map | --uring [--register-memory]]; \
    net: --tap NAME | --stream PATH | --switch (with --socket-path for each of its ports) [--mac MAC]; \
    console: [--stream PATH]; vsock: --cid N --uds-path PATH; balloon: [--pages N]";

impl Arguments {
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self {
            kind: String::new(),
            meetings: Vec::new(),
            print_capabilities: false,
            image: None,
            read_only: false,
            queues: 1,
            packed: false,
            in_order: false,
            poll: false,
            iommu: false,
            others: Vec::new(),
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let (name, attached) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (argument.clone(), None),
            };
            let mut value = || {
                attached
                    .clone()
                    .or_else(|| arguments.next())
                    .ok_or_else(|| format!("{name} needs a value"))
            };
            let number = |text: String| text.parse().map_err(|_| format!("{name}: {text} is no number"));
            match name.as_str() {
                "--socket-path" | "--socket" => parsed.meetings.push(Meeting::Listen(value()?.into())),
                "--connect" => parsed.meetings.push(Meeting::Connect(value()?.into())),
                "--fd" => parsed.meetings.push(Meeting::Inherited(number(value()?)?)),
                "--print-capabilities" => parsed.print_capabilities = true,
                "--image" | "--blk-file" => parsed.image = Some(value()?.into()),
                "--read-only" => parsed.read_only = true,
                "--packed" => parsed.packed = true,
                "--in-order" => parsed.in_order = true,
                "--poll" => parsed.poll = true,
                "--iommu" => parsed.iommu = true,
                "--queues" => parsed.queues = number(value()?)? as u16,
                "--map" | "--uring" | "--direct" | "--register-memory" | "--switch" => {
                    parsed.others.push((name, String::new()))
                }
                "--tap" | "--stream" | "--mac" | "--cid" | "--uds-path" | "--pages" => {
                    let value = value()?;
                    parsed.others.push((name, value));
                }
                kind if !kind.starts_with('-') && parsed.kind.is_empty() => parsed.kind = kind.to_owned(),
                _ => return Err(format!("{argument} is not known\n{USAGE}")),
            }
        }
        match parsed.meetings.len() {
            _ if parsed.print_capabilities => Ok(parsed),
            1 => Ok(parsed),
            2.. if parsed.kind == "net" && parsed.has("--switch") => Ok(parsed),
            _ => Err(format!("one of --socket-path, --connect and --fd is needed\n{USAGE}")),
        }
    }

    /// The value of an option of the device's.
    pub fn other(&self, name: &str) -> Option<&str> {
        let mut found = self.others.iter().filter(|(other, _)| other == name);
        found.next_back().map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.other(name).is_some()
    }

    pub fn transport(&self) -> TransportOptions {
        TransportOptions {
            packed: self.packed,
            in_order: self.in_order,
            polled: self.poll,
            ..TransportOptions::default()
        }
    }

    /// As the schema of back ends has it (`VHostUserBackendCapabilities`).
    pub fn capabilities(&self) -> String {
        let (kind, features) = match self.kind.as_str() {
            "blk" | "" => ("block", "\"read-only\", \"blk-file\""),
            other => (other, ""),
        };
        format!("{{\n  \"type\": \"{kind}\",\n  \"features\": [{features}]\n}}")
    }
}
