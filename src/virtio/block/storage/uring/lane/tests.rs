//! Lanes from which the kernel takes nothing for now.

use std::{env, fs::File, process, thread};

use super::*;

/// One whose ring is not enabled yet, and where a thread may wait. `None` where this cannot be tried.
fn refused(name: &str) -> Option<(Lane, Arc<Seat>)> {
    let path = env::temp_dir().join(format!("devisor-refused-{name}-{}", process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|file| std::fs::remove_file(&path).map(|()| file));
    let file = file.expect("a file");
    file.set_len(4096).expect("room");
    let file = FileStorage::new(file).expect("a storage");
    let made = Lane::new(&file, &UringOptions::default(), Kind::Plain).and_then(|lane| {
        let ring = Arc::new(IoUring::builder().setup_r_disabled().build(4)?);
        // SAFETY: no memory is involved.
        let bell = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
        // SAFETY: it is new, and nobody else's.
        let seat = Seat::new(unsafe { std::os::fd::FromRawFd::from_raw_fd(bell) });
        Ok((Lane { ring, ..lane }, Arc::new(seat)))
    });
    made.inspect_err(|error| println!("skipped: no io_uring: {error}")).ok()
}

fn nop() -> squeue::Entry {
    opcode::Nop::new().build().user_data(NOBODY)
}

fn is_readable(fd: impl AsRawFd) -> bool {
    let mut polled = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure.
    unsafe { libc::poll(&raw mut polled, 1, 0) == 1 }
}

#[test]
fn who_waits_in_the_ring_hears_of_what_the_kernel_has_refused_another_thread() {
    // What there is room for in the submission queue, and more.
    for entries in [1, 10] {
        let Some((mut lane, seat)) = refused("another") else {
            return;
        };
        let _here = seat::Here::new(Arc::clone(&seat)).expect("nobody is there");
        lane.sit_at(|| Some(Arc::clone(&seat)), Waker::noop());
        assert!(!is_readable(seat.bell()));
        thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: they point to nothing.
                (0..entries).for_each(|_| unsafe { lane.push(nop()) });
                lane.commit();
            });
        });
        assert!(lane.has_pushed() && is_readable(seat.bell()));
    }
}

#[test]
fn who_waits_in_the_ring_comes_back_for_what_there_was_no_room_for() {
    for (entries, is_left) in [(1, true), (10, false)] {
        let Some((mut lane, seat)) = refused("room") else {
            return;
        };
        let _here = seat::Here::new(Arc::clone(&seat)).expect("nobody is there");
        lane.sit_at(|| Some(Arc::clone(&seat)), Waker::noop());
        // SAFETY: they point to nothing.
        (0..entries).for_each(|_| unsafe { lane.push(nop()) });
        lane.commit();
        assert_eq!(is_readable(seat.bell()), !is_left, "{entries}");
    }
}

#[test]
fn a_ring_keeps_nobody_though_the_kernel_refuses_for_a_while() {
    let Some((mut lane, _)) = refused("keeps") else { return };
    let ring = Arc::clone(&lane.ring);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            ring.submitter().register_enable_rings().expect("it is ready");
        });
        lane.keep_nobody();
    });
    assert!(is_readable(lane.descriptor()));
}
