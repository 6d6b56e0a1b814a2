use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixDatagram},
    },
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use super::*;

/// As full as an eventfd gets.
const FULL: u64 = u64::MAX - 1;

fn eventfd() -> File {
    // SAFETY: a new descriptor, which is nobody else's.
    unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) }
}

/// Its two ends, to read and to write.
fn pipe() -> (File, File) {
    let (reader, writer) = io::pipe().unwrap();
    (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
}

fn said(descriptor: impl Into<OwnedFd>) -> Event {
    Event::said(descriptor.into()).unwrap()
}

/// Has who shares a descriptor's flags want to wait.
fn make_waiting(file: &File) {
    // SAFETY: takes a descriptor and numbers.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) }, 0);
}

/// Runs `work` on a thread of its own, which ends within a minute.
fn ends(work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    assert!(
        is_done.recv_timeout(Duration::from_secs(60)).is_ok(),
        "it is waited for"
    );
}

/// What there is to be read, if anything, whatever the flags say.
fn read_at_once(file: &File) -> Option<u64> {
    let mut count = 0_u64;
    let iov = libc::iovec {
        iov_base: (&raw mut count).cast(),
        iov_len: 8,
    };
    // SAFETY: one buffer of that length, which outlives the call.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
    (read == 8).then_some(count)
}

/// Fills an eventfd that it finds empty, again and again, until `event` is not triggered any more, or it is stuck itself.
fn fill(file: &File, triggers: &AtomicU64) {
    let (mut before, mut same) = (0, 0);
    while same < 1000 {
        read_at_once(file);
        let _ = (&*file).write(&FULL.to_ne_bytes());
        let now = triggers.load(Ordering::SeqCst);
        same = if now == before { same + 1 } else { 0 };
        before = now;
    }
}

#[test]
fn no_call_is_waited_for_whenever_its_eventfd_is_filled() {
    // Whoever looks first and writes then is caught between both in some of these.
    for _ in 0..100 {
        let (file, triggers) = (eventfd(), Arc::new(AtomicU64::new(0)));
        let event = said(file.try_clone().unwrap());
        make_waiting(&file);
        let filler = thread::spawn({
            let (file, triggers) = (file.try_clone().unwrap(), Arc::clone(&triggers));
            move || fill(&file, &triggers)
        });
        ends(move || {
            for _ in 0..2000 {
                event.trigger().unwrap();
                triggers.fetch_add(1, Ordering::SeqCst);
            }
        });
        while !filler.is_finished() {
            read_at_once(&file);
            thread::yield_now();
        }
    }
}

#[test]
fn what_is_said_is_heard_whatever_it_goes_through() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let (reader, writer) = pipe();
    let counter = eventfd();
    let pairs: [(OwnedFd, OwnedFd); 3] = [
        (counter.try_clone().unwrap().into(), counter.into()),
        (writer.into(), reader.into()),
        (ours.into(), theirs.into()),
    ];
    for (to, from) in pairs {
        let shared = [File::from(to.try_clone().unwrap()), from.try_clone().unwrap().into()];
        let (says, hears) = (said(to), Event::heard(from).unwrap());
        shared.iter().for_each(make_waiting);
        ends(move || {
            for _ in 0..300 {
                assert!(!hears.take().unwrap());
                says.trigger().unwrap();
                assert!(hears.take().unwrap());
            }
            // Nobody hears, until there is no room.
            (0..100_000).for_each(|_| says.trigger().unwrap());
            assert!(hears.take().unwrap());
        });
    }
}

#[test]
fn a_full_eventfd_stays_so_and_wakes() {
    let file = eventfd();
    let event = said(file.try_clone().unwrap());
    (&file).write_all(&FULL.to_ne_bytes()).unwrap();
    make_waiting(&file);
    ends(move || (0..1000).for_each(|_| event.trigger().unwrap()));
    assert!(read_at_once(&file) >= Some(FULL));
    assert_eq!(read_at_once(&file), None);
}

#[test]
fn each_trigger_of_many_threads_counts() {
    let file = eventfd();
    let events = [(); 3].map(|()| said(file.try_clone().unwrap()));
    thread::scope(|scope| {
        for event in &events {
            scope.spawn(|| (0..5000).for_each(|_| event.trigger().unwrap()));
        }
    });
    assert_eq!(read_at_once(&file), Some(15_000));
}

#[test]
fn a_call_that_cannot_be_made_is_an_error() {
    let (reader, writer) = pipe();
    let event = said(writer);
    drop(reader);
    assert_eq!(event.trigger().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    for path in ["/dev/null", "/"] {
        assert!(Event::heard(File::open(path).unwrap().into()).is_err(), "{path}");
    }
}

#[test]
fn what_the_other_end_may_not_do_is_not_done_for_it() {
    let (mut reader, writer) = pipe();
    assert!(Event::heard(writer.try_clone().unwrap().into()).is_err());
    assert!(Event::said(reader.try_clone().unwrap().into()).is_err());
    // Nor what it can name alone.
    let named = |file: &File| {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_PATH).open(path).unwrap()
    };
    assert!(Event::heard(named(&reader).into()).is_err());
    assert!(Event::said(named(&writer).into()).is_err());
    drop(writer);
    assert_eq!(io::Read::read(&mut reader, &mut [0; 8]).unwrap(), 0);
}
