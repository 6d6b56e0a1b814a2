//! What an embedder decides about a connection to an NBD server, and what is told of it.

use std::{io, num::NonZeroUsize, time::Duration};

/// How a [`NbdStorage`](super::NbdStorage) deals with its server.
///
/// ```
/// use devisor::virtio::block::NbdOptions;
/// use std::time::Duration;
///
/// // A guest that is to see errors soon.
/// let options = NbdOptions { give_up: Some(Duration::from_secs(10)), ..NbdOptions::default() };
/// # drop(options);
/// ```
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// How many connections there are at most, if the server allows for several: queues beyond it share them.
    pub connections: NonZeroUsize,
    /// How long it may take until a connection stands.
    pub connect_timeout: Duration,
    /// How long a server may take for a request, from when it is sent. One that takes longer has lost its connection.
    pub request_timeout: Duration,
    /// How long a request waits for a server that is not there; then it fails. `None`: as long as it takes.
    pub give_up: Option<Duration>,
    /// How long after a connection could not be made the next attempt is. Doubled each time.
    pub back_off: Duration,
    /// Up to this.
    pub back_off_limit: Duration,
    /// Bytes of what was written and not flushed that are kept to be written again, should the server die; what they cost besides is
    /// counted. Zero: none, and a flush fails after a connection was lost to which something was written.
    pub remember: usize,
    /// Whom to trust, and who one is, for `nbds` URIs.
    #[cfg(feature = "nbd-tls")]
    pub tls: Option<super::NbdTls>,
}

impl NbdOptions {
    pub(super) fn is_secured(&self) -> bool {
        #[cfg(feature = "nbd-tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "nbd-tls"))]
        false
    }
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            connections: NonZeroUsize::new(8).unwrap_or(NonZeroUsize::MIN),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            give_up: Some(Duration::from_secs(300)),
            back_off: Duration::from_millis(50),
            back_off_limit: Duration::from_secs(5),
            remember: 64 << 20,
            #[cfg(feature = "nbd-tls")]
            tls: None,
        }
    }
}

/// How it is with an NBD server, and how it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NbdStatus {
    /// Connections that stand, as far as is known: one that has broken is found when it is used.
    pub connected: usize,
    /// Connections that were made.
    pub established: u64,
    /// Connections that were lost.
    pub lost: u64,
    /// Those of them that were given up because a request took too long.
    pub timed_out: u64,
    /// Requests that were sent again.
    pub resent: u64,
    /// Pieces of what had been written that were written again.
    pub rewritten: u64,
}

/// Why there is no connection to an NBD server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// It is none that says where an export is.
    #[error("{uri:?} is no URI of an NBD export: {why}")]
    Uri {
        /// What was given.
        uri: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It cannot be reached, or has gone.
    #[error("there is no connection to the NBD server: {0}")]
    Connect(#[source] io::Error),
    /// It takes too long.
    #[error("the NBD server does not answer in time")]
    TimedOut,
    /// What it sends is not what the protocol has.
    #[error("the NBD server breaks the protocol: {0}")]
    Protocol(&'static str),
    /// It has no export of the name.
    #[error("the NBD server has no export {export:?}; it tells of: {available}")]
    NoExport {
        /// The name.
        export: String,
        /// Names of some that there are.
        available: String,
    },
    /// It refuses.
    #[error("the NBD server refuses export {export:?}: {message}")]
    Refused {
        /// The name.
        export: String,
        /// What it says.
        message: String,
    },
    /// It speaks only over TLS.
    #[error("the NBD server demands TLS: take a URI of the scheme nbds, and certificates")]
    TlsRequired,
    /// It does not speak TLS.
    #[error("the NBD server has no TLS, and the URI demands it")]
    NoTls,
    /// There is nothing to make TLS with.
    #[error("a URI of the scheme nbds needs the feature nbd-tls, and certificates in the options")]
    NoCertificates,
    /// TLS has failed, or what it was to be made with.
    #[error("TLS to the NBD server: {0}")]
    Tls(String),
    /// The export that it has now cannot stand in for the one that the guest knows.
    #[error("the NBD server has another export than before: {0}")]
    Changed(&'static str),
    /// It is about to end.
    #[error("the NBD server is shutting down")]
    ShuttingDown,
    /// The queue that used the connection was stopped.
    #[error("the queue that used the connection to the NBD server was stopped")]
    Stopped,
}
