//! Over a storage that answers at once.

type Disk = crate::support::Driven<crate::support::AtOnce>;

#[path = "any_request.rs"]
mod any_request;
#[path = "requests.rs"]
mod requests;
#[path = "stability.rs"]
mod stability;
