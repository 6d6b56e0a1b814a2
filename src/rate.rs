//! A token bucket: how much of something may pass in a time, and how much of it at once.

use std::time::Duration;

/// So much a second on the average, and so much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come each second.
    pub per_second: u64,
    /// Tokens that there is room for: how much may pass at once after a pause.
    pub burst: u64,
}

/// A rate by which nothing would ever pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} a second, {} at once: at least one of each is needed", .0.per_second, .0.burst)]
pub struct NoRate(pub Rate);

/// Tokens by a [`Rate`]. Time is given to it, and may not run backwards; it begins full.
///
/// ```
/// use devisor::rate::{Rate, TokenBucket};
/// use std::time::Duration;
///
/// let mut bucket = TokenBucket::new(Rate { per_second: 1000, burst: 100 })?;
/// let start = Duration::from_secs(5);
/// assert_eq!(bucket.take(start, 100), Ok(()));
/// // In a tenth of a second it is full again, and half of that is enough for half as many.
/// let when = bucket.take(start, 50).unwrap_err();
/// assert_eq!(when, start + Duration::from_millis(50));
/// assert_eq!(bucket.take(when, 50), Ok(()));
/// # Ok::<(), devisor::rate::NoRate>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    rate: Rate,
    /// When it is full if nothing is taken: in nanoseconds, times the rate, so that a token is a whole number.
    full_at: u128,
}

/// A token, on the scale of [`TokenBucket::full_at`].
const TOKEN: u128 = 1_000_000_000;

impl TokenBucket {
    /// A full one.
    ///
    /// # Errors
    /// The rate or the burst is zero.
    pub fn new(rate: Rate) -> Result<Self, NoRate> {
        match rate.per_second == 0 || rate.burst == 0 {
            true => Err(NoRate(rate)),
            false => Ok(Self { rate, full_at: 0 }),
        }
    }

    /// Its rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes `tokens`. Of more than it ever holds, all that it holds is enough: the rest is owed.
    ///
    /// # Errors
    /// There are not so many. When there will be, if no others are taken.
    pub fn take(&mut self, now: Duration, tokens: u64) -> Result<(), Duration> {
        self.ready(now, tokens)?;
        self.owe(now, tokens);
        Ok(())
    }

    /// Whether there are so many, of which none is taken.
    ///
    /// # Errors
    /// When there will be.
    pub fn ready(&self, now: Duration, tokens: u64) -> Result<(), Duration> {
        let room = u128::from(self.rate.burst - tokens.min(self.rate.burst)) * TOKEN;
        let now = self.scaled(now);
        match self.full_at.saturating_sub(room) {
            when if when <= now => Ok(()),
            when => {
                let nanoseconds = when.div_ceil(u128::from(self.rate.per_second));
                Err(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
            }
        }
    }

    /// Takes `tokens`, whether they are there or not: what is missing is owed.
    pub fn owe(&mut self, now: Duration, tokens: u64) {
        let owed = u128::from(tokens) * TOKEN;
        self.full_at = self.full_at.max(self.scaled(now)).saturating_add(owed);
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&mut self, tokens: u64) {
        self.full_at = self.full_at.saturating_sub(u128::from(tokens) * TOKEN);
    }

    fn scaled(&self, time: Duration) -> u128 {
        // Of 64 bits each, but for times beyond 584 years.
        time.as_nanos().min(u128::from(u64::MAX)) * u128::from(self.rate.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(per_second: u64, burst: u64) -> TokenBucket {
        TokenBucket::new(Rate { per_second, burst }).expect("a rate")
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        for (per_second, burst) in [(0, 1), (1, 0)] {
            assert!(TokenBucket::new(Rate { per_second, burst }).is_err());
        }
    }

    #[test]
    fn over_a_long_time_exactly_the_rate_passes() {
        for (per_second, burst, each) in [
            (3, 1, 1),
            (1_000_000_007, 9000, 1514),
            (7, 100, 3),
            (u64::MAX, u64::MAX, 1 << 60),
        ] {
            let mut bucket = bucket(per_second, burst);
            let start = Duration::from_secs(1000);
            bucket.owe(start, burst);
            let (mut now, mut passed) = (start, 0u128);
            for _ in 0..1000 {
                match bucket.take(now, each) {
                    Ok(()) => passed += u128::from(each),
                    Err(when) => {
                        assert!(when > now);
                        now = when;
                    }
                }
            }
            let allowed = (now - start).as_nanos() * u128::from(per_second) / TOKEN;
            assert!(passed <= allowed && allowed - passed <= u128::from(each) + u128::from(per_second) / TOKEN + 1);
        }
    }

    #[test]
    fn what_is_larger_than_the_bucket_waits_until_it_is_full_and_is_paid_for() {
        let mut bucket = bucket(10, 10);
        let second = Duration::from_secs(1);
        assert_eq!(bucket.take(second, 30), Ok(()));
        assert_eq!(bucket.take(second, 1), Err(second * 3 + second / 10));
        assert_eq!(bucket.take(second, 30), Err(second * 4));
    }

    #[test]
    fn it_holds_no_more_than_a_burst_however_long_it_waits() {
        let mut bucket = bucket(10, 10);
        let later = Duration::from_secs(1_000_000);
        assert_eq!(bucket.take(later, 10), Ok(()));
        assert!(bucket.take(later, 1).is_err());
    }

    #[test]
    fn the_largest_rate_at_the_end_of_time_is_owed_as_much_as_there_can_be() {
        let mut bucket = bucket(u64::MAX, u64::MAX);
        let end = Duration::from_nanos(u64::MAX);
        for _ in 0..4 {
            bucket.owe(end, u64::MAX);
        }
        assert_eq!(bucket.take(end, u64::MAX), Err(end));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut bucket = bucket(10, 10);
        let now = Duration::from_secs(1);
        bucket.take(now, 10).unwrap();
        bucket.give_back(4);
        assert_eq!(bucket.take(now, 4), Ok(()));
        assert!(bucket.take(now, 1).is_err());
    }
}
