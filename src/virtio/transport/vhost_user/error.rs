//! Why a connection ends.

use std::io;

/// A connection has ended: in order, or because the front end sent what cannot be right. The device is as if it had just been made,
/// and takes another connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The front end has closed it between two messages, as it should.
    #[error("the front end has closed the connection")]
    Closed,
    /// The socket failed, ended in the middle of a message, or carries what is no message.
    #[error("the socket: {0}")]
    Socket(#[from] io::Error),
    /// A request that there is not, or not without the protocol feature that it belongs to.
    #[error("request {0}: only those of the specification are accepted, with their protocol feature negotiated")]
    Request(u32),
    /// A payload that is too short for its request, or says what cannot be.
    #[error("request {request}: {reason}")]
    Payload {
        /// Its number.
        request: u32,
        /// What is wrong, and what would be accepted.
        reason: String,
    },
}

/// A device has a connection already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device has a front end already: one at a time is served")]
pub struct AlreadyConnected;
