//! A client of the Network Block Device protocol (feature `nbd`, Unix): a disk on another host, or of another program.
//!
//! | file | what is in it |
//! |---|---|
//! | `uri`, `options` | what an embedder says |
//! | `wire`, `handshake`, `reply` | the protocol, without a socket |
//! | `socket`, `tls`, `opening` | sockets that never wait, and connections that are being made |
//! | `job` | a request, and the commands that it takes |
//! | `journal` | what was written and is not known to be stable |
//! | `link` | a connection that comes back, and what is under way on it |
//! | `channel` | a queue of a device |

mod channel;
mod handshake;
mod job;
mod journal;
mod link;
mod opening;
mod options;
mod reply;
mod socket;
#[cfg(feature = "nbd-tls")]
mod tls;
mod uri;
mod vectors;
mod wire;

use std::{
    fmt, io,
    net::ToSocketAddrs,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::{Duration, Instant},
};

use super::{Abilities, AsyncStorage, Channel, Limits};
use crate::{
    sync::lock,
    time::Clock,
    virtio::{FailureLog, HostFailures, QueueIndex},
};
use handshake::Export;
use journal::Agreed;
use link::{Link, Ready};
use opening::{Opening, Target, Wanted};
use wire::flag;

pub use options::{NbdError, NbdOptions, NbdStatus};
#[cfg(feature = "nbd-tls")]
pub use tls::NbdTls;
pub use uri::{NbdServer, NbdUri};

/// The export of an NBD server: of `nbdkit`, `qemu-nbd`, `nbd-server`, and whatever they reach.
///
/// | the data is | served by | URI |
/// |---|---|---|
/// | an image of QEMU's, with or without backing files | `qemu-nbd -k /run/nbd -e 16 -t -f qcow2 disk.qcow2` | `nbd+unix:///?socket=/run/nbd` |
/// | an image of VMware's in a file | `qemu-nbd -k /run/nbd -e 16 -t -f vmdk disk.vmdk` | the same |
/// | an image of VMware's on its server | `nbdkit -U /run/nbd vddk server=HOST user=USER password=+FILE thumbprint=XX:.. vm=moref=ID file="[store] vm/vm.vmdk"` | the same |
/// | in Ceph, an RBD image | `qemu-nbd -k /run/nbd -e 16 -t -f raw rbd:POOL/IMAGE` | the same |
/// | in S3, or in Ceph's, split into objects | `nbdkit -U /run/nbd S3 bucket=BUCKET key=KEY size=10G object-size=1M` | the same |
/// | in S3, one object, to be read | `nbdkit -U /run/nbd S3 bucket=BUCKET key=KEY` | the same |
/// | behind a URL, to be read | `nbdkit -U /run/nbd curl https://HOST/disk.img` | the same |
/// | behind SSH | `nbdkit -U /run/nbd ssh host=HOST path=disk.img` | the same |
/// | on another host | `nbdkit --tls=require --tls-certificates=DIR file /dev/vg/disk` there | `nbds://HOST/` |
///
/// `S3` is among nbdkit's plugins in Python, and takes other services than Amazon's by `endpoint-url=URL`. QEMU has RBD in a package of its
/// own on some systems (Debian: `qemu-block-extra`). An RBD image may also be a block device of the host, `rbd-nbd map POOL/IMAGE` or
/// `rbd map POOL/IMAGE`, and needs no client then: it is a [`FileStorage`](super::FileStorage). A server that says how to be reached is
/// tried with `nbdinfo URI`.
///
/// *Connections*: one for each queue of a device, if the server says that a flush on one covers the others (`CAN_MULTI_CONN`), up to
/// [an option](NbdOptions::connections); else all queues share one. There is no thread: sockets are served in the rounds of the queues,
/// which say what they wait for. Time is that of a clock that is given. Only [`connect`](Self::connect) and
/// [`refresh`](Self::refresh) wait, on the thread that calls them, and no longer than an option says.
///
/// *When a connection is lost*, because the server has died, does not answer in time or breaks the protocol, another is made, at once or
/// after a time that doubles, and **no request is lost**: what was not replied to is sent again. All that is sent may be: to read, to
/// write the same data to the same place, to write zeros and to trim do the same a second time; no other requests are sent. A server
/// that has only lost the connection may still be busy with the first copy: one that executes it after it has replied to the
/// second, and to a later write of the same place, has that write undone, which a client cannot prevent.
///
/// *A flush* is more than itself: after it all that was written before has to be stable, and a server that dies may lose what it has
/// replied to. So this is remembered, up to [an option](NbdOptions::remember), until a flush has succeeded, and **written again on a new
/// connection before that is used for anything else**; the flush is sent behind it, and can vouch for all. When half of that memory is
/// full a flush is sent that nobody has asked for; when all is, writes wait for it. If nothing is to be remembered, or if it cannot
/// be written again, the next flush fails, once. A server that cannot flush is taken at its word: what it has replied to is stable.
///
/// *Sizes*: a server with blocks of more than 512 bytes is read and written in these; a part of one is read, changed and written back
/// while nothing else is written. The size of the export is that of the last connection: after [`refresh`](Self::refresh) a device
/// finds it with [`refresh_capacity`](super::super::Block::refresh_capacity), and connections that do not know it yet are made anew.
///
/// *What a server cannot do*, whatever it sends: write to memory that it was not asked to fill, have more memory used than a few kilobytes
/// for each request, keep a thread busy, or keep a request for longer than [an option](NbdOptions::give_up) says. Replies that nobody
/// waits for, data twice, outside of what was asked, or not at all, and lengths that are none cost it its connection.
///
/// ```no_run
/// use devisor::{time::HostClock, virtio::block::{Block, BlockOptions, NbdOptions, NbdStorage}};
/// use std::{sync::Arc, time::Duration};
///
/// let clock = Arc::new(HostClock::starting_at(Duration::ZERO));
/// let storage = NbdStorage::connect(&"nbd://storage.example/root".parse()?, NbdOptions::default(), clock)?;
/// let disk = Block::with_async(storage, BlockOptions { queues: 4, ..BlockOptions::default() })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A clone is the same storage: one is given to a device, the other kept to look at.
#[derive(Clone)]
pub struct NbdStorage(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    links: Mutex<Vec<Arc<Mutex<Link>>>>,
}

/// What all connections share.
pub(super) struct Shared {
    wanted: Wanted,
    options: NbdOptions,
    clock: Arc<dyn Clock>,
    /// What the guest was told of.
    first: Export,
    size: AtomicU64,
    agreed: Mutex<Agreed>,
    counts: Counts,
    failures: FailureLog,
    numbers: AtomicU64,
}

#[derive(Default)]
struct Counts {
    established: AtomicU64,
    lost: AtomicU64,
    timed_out: AtomicU64,
    resent: AtomicU64,
    rewritten: AtomicU64,
}

impl Shared {
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Relaxed)
    }

    /// Whether the server may lose what it has replied to.
    fn is_volatile(&self) -> bool {
        self.first.has(flag::SEND_FLUSH)
    }

    /// Bytes that may be remembered.
    fn remembered(&self) -> usize {
        match self.is_volatile() {
            true => self.options.remember,
            false => 0,
        }
    }
}

impl NbdStorage {
    /// Connects, and finds out what the export is like. Waits for that, up to [`connect_timeout`](NbdOptions::connect_timeout) for each
    /// address that the host has. The address is looked up here, and never again.
    ///
    /// # Errors
    /// There is no server, no such export, or none that can be talked to.
    pub fn connect(uri: &NbdUri, options: NbdOptions, clock: Arc<dyn Clock>) -> Result<Self, NbdError> {
        let target = match &uri.server {
            NbdServer::Unix(path) => Target::Unix(path.clone()),
            NbdServer::Tcp { host, port } => {
                let addresses: Vec<_> = (host.as_str(), *port)
                    .to_socket_addrs()
                    .map_err(NbdError::Connect)?
                    .collect();
                match addresses.is_empty() {
                    true => return Err(NbdError::Connect(io::ErrorKind::AddrNotAvailable.into())),
                    false => Target::Tcp(addresses),
                }
            }
        };
        let host = match &uri.server {
            NbdServer::Tcp { host, .. } => host,
            NbdServer::Unix(_) => "localhost",
        };
        Self::over(target, &uri.export, host, uri.tls, options, clock)
    }

    /// The same over sockets that somebody else connects: through a proxy, to a virtual machine, from a process that may. `connect` is
    /// called for each connection, and must not wait long. If the options have TLS, it is used, and the server's name is the one that
    /// they have, or `localhost`.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn with_sockets(
        connect: impl Fn() -> io::Result<OwnedFd> + Send + Sync + 'static,
        export: &str,
        options: NbdOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, NbdError> {
        let tls = options.is_secured();
        Self::over(
            Target::Given(Arc::new(connect)),
            export,
            "localhost",
            tls,
            options,
            clock,
        )
    }

    fn over(
        target: Target,
        export: &str,
        host: &str,
        tls: bool,
        options: NbdOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, NbdError> {
        let wanted = Wanted {
            target,
            export: export.into(),
            #[cfg(feature = "nbd-tls")]
            tls: match (&options.tls, tls) {
                (Some(tls), true) => Some(tls.client(host)?),
                (None, true) => return Err(NbdError::NoCertificates),
                (_, false) => None,
            },
        };
        #[cfg(not(feature = "nbd-tls"))]
        {
            let _ = host;
            if tls {
                return Err(NbdError::NoCertificates);
            }
        }
        let (opening, first) = ask(&wanted, &options)?;
        let shared = Arc::new(Shared {
            wanted,
            options,
            clock,
            first,
            size: AtomicU64::new(first.size),
            agreed: Mutex::default(),
            counts: Counts::default(),
            failures: FailureLog::default(),
            numbers: AtomicU64::new(0),
        });
        shared.counts.established.fetch_add(1, Relaxed);
        let ready = Ready::new(opening.into_stream(), first);
        let link = Link::new(Arc::clone(&shared), Some(ready));
        Ok(Self(Arc::new(Inner {
            shared,
            links: Mutex::new(vec![Arc::new(Mutex::new(link))]),
        })))
    }

    /// Asks the server for the size of its export, over a connection of its own. Waits for the answer, up to
    /// [`connect_timeout`](NbdOptions::connect_timeout). Returns the size in bytes.
    ///
    /// # Errors
    /// The server cannot be reached, serves no second connection at the time, or has another export now.
    pub fn refresh(&self) -> Result<u64, NbdError> {
        let shared = &self.0.shared;
        let (_, export) = ask(&shared.wanted, &shared.options)?;
        if let Some(why) = export.differs(&shared.first) {
            return Err(NbdError::Changed(why));
        }
        shared.size.store(export.size, Relaxed);
        Ok(export.size)
    }

    /// How it is with the server.
    pub fn status(&self) -> NbdStatus {
        let counts = &self.0.shared.counts;
        let links = lock(&self.0.links).clone();
        NbdStatus {
            connected: links.iter().filter(|link| lock(link).is_connected()).count(),
            established: counts.established.load(Relaxed),
            lost: counts.lost.load(Relaxed),
            timed_out: counts.timed_out.load(Relaxed),
            resent: counts.resent.load(Relaxed),
            rewritten: counts.rewritten.load(Relaxed),
        }
    }

    /// Why connections were lost or not made, and what was not heard by any request. What a request was refused is counted by its
    /// device.
    pub fn host_failures(&self) -> HostFailures {
        self.0.shared.failures.get()
    }
}

/// Makes a connection, and waits for it.
fn ask(wanted: &Wanted, options: &NbdOptions) -> Result<(Opening, Export), NbdError> {
    let mut last = NbdError::TimedOut;
    for attempt in 0..wanted.target.ways() {
        match ask_once(wanted, options, attempt) {
            Ok(asked) => return Ok(asked),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask_once(wanted: &Wanted, options: &NbdOptions, attempt: usize) -> Result<(Opening, Export), NbdError> {
    let begun = Instant::now();
    let mut opening = Opening::begin(wanted, attempt)?;
    loop {
        if let Some(export) = opening.step(wanted)? {
            return Ok((opening, export));
        }
        let left = options.connect_timeout.saturating_sub(begun.elapsed());
        if left == Duration::ZERO {
            return Err(NbdError::TimedOut);
        }
        let waits: Vec<_> = opening.waits().into_iter().flatten().collect();
        socket::wait_for(&waits, left.as_millis().clamp(1, 60_000) as i32);
    }
}

impl AsyncStorage for NbdStorage {
    fn capacity(&self) -> io::Result<u64> {
        let Shared { first, size, .. } = &*self.0.shared;
        let block = u64::from(first.min_block);
        Ok(size.load(Relaxed) / block * block)
    }

    fn abilities(&self) -> Abilities {
        let first = &self.0.shared.first;
        Abilities {
            read_only: first.has(flag::READ_ONLY),
            discard: first.has(flag::SEND_TRIM),
            unmap: first.has(flag::SEND_WRITE_ZEROES),
            fua: first.has(flag::SEND_FUA),
            ..Abilities::default()
        }
    }

    fn limits(&self) -> Limits {
        let first = &self.0.shared.first;
        let block = first.min_block.clamp(512, 64 * 1024);
        let preferred = match first.preferred > block {
            true => first.preferred,
            false => 0,
        };
        Limits {
            minimum_io: preferred,
            discard_granularity: preferred.max(block),
            ..Limits::of_blocks(block)
        }
    }

    fn open(&self, _: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
        let shared = &self.0.shared;
        let most = match shared.first.has(flag::CAN_MULTI_CONN) {
            true => shared.options.connections.get(),
            false => 1,
        };
        let mut links = lock(&self.0.links);
        let lanes = |link: &Arc<Mutex<Link>>| lock(link).lanes();
        let least = links.iter().min_by_key(|link| lanes(link)).cloned();
        let link = match least {
            Some(link) if lanes(&link) == 0 || links.len() >= most => link,
            _ => {
                let link = Arc::new(Mutex::new(Link::new(Arc::clone(shared), None)));
                links.push(Arc::clone(&link));
                link
            }
        };
        Ok(Box::new(channel::Queue::new(Arc::clone(shared), link, waker)))
    }
}

impl fmt::Debug for NbdStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdStorage")
            .field("export", &self.0.shared.first)
            .field("status", &self.status())
            .field("failures", &self.0.shared.failures)
            .finish_non_exhaustive()
    }
}
