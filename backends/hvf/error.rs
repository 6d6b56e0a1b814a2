//! What the framework's calls answer (`hv_error.h`).

use std::io;

/// What a call of the framework returned, as it is (`hv_return_t`): zero, or `0xFAE9_4000 + n`.
///
/// ```
/// use devisor::backends::hvf::{HvError, HvReturn};
///
/// assert_eq!(HvReturn(0).check(), Ok(()));
/// assert_eq!(HvReturn(0xFAE9_4003_u32 as i32).check(), Err(HvError::BadArgument));
/// assert_eq!(HvReturn(0xFAE9_4042_u32 as i32).check(), Err(HvError::Other(0xFAE9_4042)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HvReturn(pub i32);

impl HvReturn {
    /// Success, or the error that it says.
    ///
    /// # Errors
    /// Whatever is not zero.
    pub fn check(self) -> Result<(), HvError> {
        match self.0 as u32 {
            0 => Ok(()),
            code => Err(HvError::from_code(code)),
        }
    }
}

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $offset:literal, $symbol:literal;)*) => {
        /// Why the framework refused a call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum HvError {
            $($(#[$doc])* #[error($symbol)] $name,)*
            /// A code that the headers do not name.
            #[error("hypervisor error {0:#x}")]
            Other(u32),
        }

        impl HvError {
            /// The code as the framework returns it.
            pub fn code(self) -> u32 {
                match self {
                    $(Self::$name => BASE + $offset,)*
                    Self::Other(code) => code,
                }
            }

            fn from_code(code: u32) -> Self {
                match code.wrapping_sub(BASE) {
                    $($offset => Self::$name,)*
                    _ => Self::Other(code),
                }
            }
        }
    };
}

/// `err_common_hypervisor`.
const BASE: u32 = 0xFAE9_4000;

errors! {
    /// The call failed for a reason that no other code names.
    Error = 1, "HV_ERROR";
    /// The resource is in use: a second VM of the process, a vCPU that runs.
    Busy = 2, "HV_BUSY";
    /// An argument is out of its range.
    BadArgument = 3, "HV_BAD_ARGUMENT";
    /// The state of the guest is not one that the processor can run.
    IllegalGuestState = 4, "HV_ILLEGAL_GUEST_STATE";
    /// The host has too little left.
    NoResources = 5, "HV_NO_RESOURCES";
    /// What the call is about does not exist.
    NoDevice = 6, "HV_NO_DEVICE";
    /// The program lacks the entitlement `com.apple.security.hypervisor`, or the call is not allowed now.
    Denied = 7, "HV_DENIED";
    /// This host or this version of the system cannot do it.
    Unsupported = 0xF, "HV_UNSUPPORTED";
}

impl From<HvError> for io::Error {
    fn from(error: HvError) -> Self {
        let kind = match error {
            HvError::Busy => io::ErrorKind::ResourceBusy,
            HvError::BadArgument => io::ErrorKind::InvalidInput,
            HvError::NoResources => io::ErrorKind::OutOfMemory,
            HvError::NoDevice => io::ErrorKind::NotFound,
            HvError::Denied => io::ErrorKind::PermissionDenied,
            HvError::Unsupported => io::ErrorKind::Unsupported,
            HvError::Error | HvError::IllegalGuestState | HvError::Other(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
