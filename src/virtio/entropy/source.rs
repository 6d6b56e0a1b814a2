//! Where random bytes come from.

use std::{fmt, io};

/// A source of random bytes, as the entropy device asks it.
///
/// *For who implements it*: return `Ok` only if every byte of `bytes` is random and is handed out this once. Be quick:
/// the device waits, and on a transport without a worker a vCPU waits with it. An `Err` is counted and tried again later;
/// what is in `bytes` then is thrown away.
///
/// ```
/// use devisor::virtio::entropy::{Entropy, Source};
/// use std::{fs::File, io::{self, Read}};
///
/// /// Bytes that a hardware generator has put into a file.
/// struct Recorded(File);
///
/// impl Source for Recorded {
///     fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
///         self.0.read_exact(bytes)
///     }
/// }
///
/// let rng = |file| Entropy::new(Recorded(file));
/// # let _ = rng;
/// ```
pub trait Source: Send {
    /// Fills all of `bytes`.
    ///
    /// # Errors
    /// There is nothing to be had now.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()>;
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        (**self).fill(bytes)
    }
}

/// The operating system's generator: `getrandom(2)`, or `getentropy(2)` where there is no such call, or Windows' `ProcessPrng`. No file
/// descriptor is held. It waits only in a host that has just booted and has not collected enough randomness yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OsRandom;

impl Source for OsRandom {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        // Calls of up to 256 bytes are neither cut short nor interrupted.
        bytes.chunks_mut(256).try_for_each(fill_from_os)
    }
}

#[cfg(target_os = "linux")]
fn fill_from_os(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: `bytes` is valid for writes of its length.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(filled) {
        Ok(filled) if filled == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(windows)]
fn fill_from_os(bytes: &mut [u8]) -> io::Result<()> {
    #[link(name = "bcryptprimitives", kind = "raw-dylib")]
    unsafe extern "system" {
        fn ProcessPrng(data: *mut u8, len: usize) -> i32;
    }
    // SAFETY: `bytes` is valid for writes of its length.
    match unsafe { ProcessPrng(bytes.as_mut_ptr(), bytes.len()) } {
        // It is documented to return TRUE always.
        0 => Err(io::Error::other("ProcessPrng has failed")),
        _ => Ok(()),
    }
}

#[cfg(not(any(target_os = "linux", windows)))]
fn fill_from_os(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: `bytes` is valid for writes of its length, which is at most 256.
    match unsafe { libc::getentropy(bytes.as_mut_ptr().cast(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A sequence of bytes that follows from its seed: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
/// number generators", 2014), each number in little-endian order.
///
/// **Not for production**: a few bytes of output tell the state, and with it all the others.
///
/// ```
/// use devisor::virtio::entropy::{SeededRandom, Source};
///
/// let (mut a, mut b) = ([0; 16], [0; 16]);
/// SeededRandom::new(1).fill(&mut a)?;
/// SeededRandom::new(1).fill(&mut b)?;
/// assert_eq!(a, b);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SeededRandom(u64);

impl SeededRandom {
    /// The sequence that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed of the rest of the sequence.
    pub fn state(&self) -> u64 {
        self.0
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

impl Source for SeededRandom {
    /// Never fails. The rest of a number that does not fit is dropped.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
        Ok(())
    }
}

impl fmt::Debug for SeededRandom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeededRandom").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeded_sequence_is_splitmix64() {
        let mut random = SeededRandom::new(1234567);
        let numbers: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(numbers, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn the_operating_system_fills_a_buffer_longer_than_one_call() {
        let mut bytes = [0; 4096];
        OsRandom.fill(&mut bytes).unwrap();
        for call in bytes.chunks(256) {
            // Sixteen zeros at either end of a call's bytes: once in 2^128.
            assert_ne!(call[..16], [0; 16]);
            assert_ne!(call[call.len() - 16..], [0; 16]);
        }
    }
}
