//! The same by way of channels, as over a storage whose requests end later.

type Disk = crate::support::Driven<crate::support::Later>;

#[path = "any_request.rs"]
mod any_request;
#[path = "requests.rs"]
mod requests;
#[path = "stability.rs"]
mod stability;
