//! Who waits for which queue.

use super::*;

#[test]
fn a_waiter_is_run_by_one_thread_at_a_time() {
    for (_guest, waiter, _kept) in disks(1) {
        let mut refused = None;
        let run = waiter.run(|| {
            refused = waiter.run(|| ControlFlow::Break(())).err();
            ControlFlow::Break(())
        });
        run.expect("it waits");
        assert_eq!(refused.expect("it is run").kind(), io::ErrorKind::ResourceBusy);
        waiter.run(|| ControlFlow::Break(())).expect("nobody runs it any more");
    }
}

#[test]
fn a_queue_has_one_waiter_and_another_once_that_has_gone() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let Some((storage, waiter)) = waited_for(file, UringOptions::default()) else {
            return;
        };
        let storage = Arc::new(storage);
        let block = Block::with_async(Arc::clone(&storage), BlockOptions::default()).expect("valid options");
        let mut guest = Guest::new(block, 1, u64::MAX >> 16);
        let read = |waiter: &UringWaiter, guest: &mut Guest| {
            let mut asked = None;
            let run = waiter.run(|| {
                while guest.device.serve(QueueIndex(0)) {}
                let asked = *asked.get_or_insert_with(|| begin(guest, 0, 8));
                match guest.answer(asked).0 {
                    0xee => ControlFlow::Continue(None),
                    _ => ControlFlow::Break(()),
                }
            });
            run.expect("it waits");
            assert!(has_it(guest.answer(asked.expect("it was asked")), 8));
        };
        read(&waiter, &mut guest);
        let second = || UringWaiter::new(&storage, QueueIndex(0));
        assert_eq!(second().expect_err("there is one").kind(), io::ErrorKind::ResourceBusy);
        drop(waiter);
        read(&second().expect("there is none"), &mut guest);
    }
}

#[test]
fn a_waiter_that_is_dropped_lets_go_of_its_bell() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let storage = UringStorage::new(FileStorage::new(file).expect("a storage"), UringOptions::default());
        let (bell, mut other) = UnixStream::pair().expect("sockets");
        // What it is does not matter here: that it is closed shows at its other end.
        let made = storage.and_then(|storage| {
            let waiter = UringWaiter::with_bell(&storage, QueueIndex(0), bell.into())?;
            Ok((storage, waiter))
        });
        let Ok((_storage, waiter)) = made.inspect_err(|error| skipped(format_args!("no io_uring: {error}"))) else {
            return;
        };
        other.set_nonblocking(true).expect("a socket");
        let mut byte = [0];
        let open = other.read(&mut byte).expect_err("it is open");
        assert_eq!(open.kind(), io::ErrorKind::WouldBlock);
        drop(waiter);
        // The kernel lets go of what it has listened to when it comes to that.
        other.set_nonblocking(false).expect("a socket");
        other.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        assert_eq!(other.read_to_end(&mut Vec::new()).expect("it is closed"), 0);
    }
}

#[test]
fn a_device_whose_queue_was_not_waited_for_hears_of_it_when_that_of_another_goes() {
    for (_, file, _kept) in uring::files(SECTORS) {
        let Some((storage, waiter)) = waited_for(file, UringOptions::default()) else {
            return;
        };
        let storage = Arc::new(storage);
        let [mut first, mut second] = [(); 2].map(|()| {
            let block = Block::with_async(Arc::clone(&storage), BlockOptions::default()).expect("valid options");
            let guest = Guest::new(block, 1, u64::MAX >> 16);
            guest.device.process(QueueIndex(0));
            guest
        });
        let asked = begin(&mut first, 0, 8);
        assert!(has_it(uring::answer(&first, 1, asked), 8));
        let asked = begin(&mut second, 0, 8);
        second.run_if_rung();
        drop(first);
        assert!(second.run_if_rung(), "nobody else would have it sit there");
        let run = waiter.run(|| {
            while second.device.serve(QueueIndex(0)) {}
            assert_eq!(second.waits(0), []);
            match second.answer(asked).0 {
                0xee => ControlFlow::Continue(None),
                _ => ControlFlow::Break(()),
            }
        });
        run.expect("it waits");
        assert!(has_it(second.answer(asked), 8));
    }
}
