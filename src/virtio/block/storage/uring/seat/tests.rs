//! Who takes completions, beside who sleeps.

use super::*;

#[test]
fn who_sleeps_is_rung_for_if_a_bell_is_taken_before_it_was_seen_and_who_is_away_if_anything_is() {
    // SAFETY: no memory is involved.
    let bell = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
    // SAFETY: it is new, and nobody else's.
    let seat = Seat::new(unsafe { std::os::fd::FromRawFd::from_raw_fd(bell) });
    let cases = [
        (AWAKE, false, false),
        (AWAKE, true, false),
        (ASLEEP, false, false),
        (ASLEEP, true, true),
        (AWAY, false, true),
        (AWAY, true, true),
    ];
    for (state, bell, rings) in cases {
        seat.state.store(state, Ordering::SeqCst);
        seat.took(bell);
        assert_eq!(
            poll(seat.bell.as_raw_fd(), 0).expect("a bell"),
            rings,
            "{state}, {bell}"
        );
        assert_eq!(seat.take_bell(), bell, "it is heard of either way");
        seat.silence();
    }
}
