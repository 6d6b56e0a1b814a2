//! A host that has no file descriptors left.

use std::os::fd::OwnedFd;

/// Runs `test` on a thread that has a table of descriptors of its own, so that others do not run out with it. Nothing of theirs is in it: a
/// copy would keep open what they close.
pub fn on_own_table(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: parts the table of this thread from the others' first, and closes what is in this one alone.
            let parted = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
            assert_eq!(parted, 0, "{}", std::io::Error::last_os_error());
            test();
        });
        thread.join().expect("the test passes");
    });
}

/// All descriptors that there are, until it is dropped.
pub struct Hoard(Vec<OwnedFd>);

impl Hoard {
    pub fn all() -> Self {
        // So that it does not take long. Nobody here has as many.
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the structure is there for both calls.
        unsafe {
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
            limit.rlim_cur = limit.rlim_cur.min(4096);
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
        }
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let one = OwnedFd::from(one);
        let mut all = Vec::new();
        while let Ok(more) = one.try_clone() {
            all.push(more);
        }
        drop((one, _other));
        // In their place.
        while let Some(more) = all.first().and_then(|first| first.try_clone().ok()) {
            all.push(more);
        }
        assert!(!all.is_empty());
        Self(all)
    }
}

impl Drop for Hoard {
    fn drop(&mut self) {
        self.0.clear();
    }
}
