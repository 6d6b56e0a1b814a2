//! MSI-X: masks, pending bits, routes, and what a guest must not be able to break.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use devisor::{
    interrupt::{MsiMessage, MsiSink, MsiVector, MsiVectors, NoInterrupt, RequesterId, SinkVectors},
    pci::*,
};

use crate::world::*;

/// The function of `World`.
const REQUESTER: RequesterId = RequesterId(3 << 3 | 1);

#[test]
fn a_vector_is_asked_of_the_platform_when_the_guest_first_lets_it_through() {
    let world = World::enabled(4);
    world.set_table(0x10, 8, message(1).address);
    world.set_table(0x18, 4, message(1).data.into());
    assert_eq!(world.platform.take(), [], "every vector is masked");
    world.mask(1, false);
    assert_eq!(
        world.platform.take(),
        [Event::Allocated(REQUESTER), Event::Programmed(Some(message(1)))]
    );
    assert_eq!(world.msix().trigger(1).unwrap(), Signalled::Sent);
    assert_eq!(world.platform.take(), [Event::Sent(message(1))]);
}

#[test]
fn a_masked_vector_sets_its_pending_bit_and_is_delivered_once_on_its_very_first_unmask() {
    let world = World::enabled(4);
    for _ in 0..3 {
        assert_eq!(world.msix().trigger(2).unwrap(), Signalled::Pending);
    }
    assert_eq!(world.table(PBA, 8), 1 << 2);
    assert_eq!(world.platform.take(), []);
    world.open(2);
    assert_eq!(world.platform.sent(), [message(2)]);
    assert_eq!(world.table(PBA, 8), 0);
    world.mask(2, true);
    world.mask(2, false);
    assert_eq!(world.platform.sent(), [], "delivered once");
}

#[test]
fn a_function_mask_holds_every_vector_and_its_unmask_delivers_once() {
    let world = World::enabled(4);
    world.open(0);
    world.open(3);
    world.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
    assert_eq!(world.platform.live.load(SeqCst), 0, "no message is left at the backend");
    world.msix().trigger(0).unwrap();
    world.msix().trigger(3).unwrap();
    assert_eq!(world.table(PBA, 1), 0b1001);
    assert_eq!(world.platform.sent(), []);
    world.write(MSIX_CONTROL, ENABLE);
    assert_eq!(world.platform.sent(), [message(0), message(3)]);
    assert_eq!(world.table(PBA, 1), 0);
}

#[test]
fn with_both_masks_set_the_unmask_of_either_alone_delivers_nothing_and_the_second_does() {
    for vector_first in [true, false] {
        let world = World::enabled(4);
        world.open(1);
        world.mask(1, true);
        world.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
        world.msix().trigger(1).unwrap();
        let unmask = |vector: bool| match vector {
            true => world.mask(1, false),
            false => _ = world.write(MSIX_CONTROL, ENABLE),
        };
        unmask(vector_first);
        assert_eq!((world.platform.sent(), world.table(PBA, 1)), (vec![], 0b10));
        unmask(!vector_first);
        assert_eq!((world.platform.sent(), world.table(PBA, 1)), (vec![message(1)], 0));
    }
}

#[test]
fn a_masked_vector_keeps_its_place_at_the_backend_without_a_message() {
    let world = World::enabled(4);
    world.open(0);
    world.platform.take();
    world.mask(0, true);
    assert_eq!(world.platform.take(), [Event::Programmed(None)]);
    world.mask(0, true);
    assert_eq!(world.platform.take(), [], "it hears changes only");
    world.mask(0, false);
    assert_eq!(world.platform.take(), [Event::Programmed(Some(message(0)))]);
}

#[test]
fn nothing_is_sent_while_msix_is_disabled_and_nothing_stale_when_it_is_enabled_again() {
    let world = World::enabled(4);
    world.open(0);
    world.mask(1, true);
    world.msix().trigger(1).unwrap();
    world.write(MSIX_CONTROL, 0);
    assert_eq!(world.platform.alive.load(SeqCst), 0, "the vectors are given back");
    assert_eq!(world.table(PBA, 8), 0);
    world.platform.take();
    for vector in 0..4 {
        assert_eq!(world.msix().trigger(vector).unwrap(), Signalled::Disabled);
    }
    world.mask(1, false);
    assert_eq!(world.table(PBA, 8), 0);
    world.write(MSIX_CONTROL, ENABLE);
    assert_eq!(world.platform.sent(), []);
    world.msix().trigger(0).unwrap();
    assert_eq!(world.platform.sent(), [message(0)], "the table is as it was");
}

#[test]
fn the_backend_follows_a_rewritten_message_masked_or_not() {
    let world = World::enabled(4);
    world.open(0);
    world.set_table(0x08, 4, 0x77);
    world.msix().trigger(0).unwrap();
    let data = |data| MsiMessage { data, ..message(0) };
    assert_eq!(world.platform.sent(), [data(0x77)]);
    world.mask(0, true);
    world.set_table(0x08, 4, 0x78);
    world.mask(0, false);
    world.msix().trigger(0).unwrap();
    assert_eq!(world.platform.sent(), [data(0x78)]);
    world.set_table(0x00, 4, 0x1000);
    world.set_table(0x04, 4, 0);
    world.platform.take();
    world.set_table(0x04, 4, 0);
    assert_eq!(world.platform.take(), [], "nothing was rewritten");
    world.msix().trigger(0).unwrap();
    let moved = MsiMessage {
        address: 0x1000,
        data: 0x78,
    };
    assert_eq!(world.platform.sent(), [moved]);
}

#[test]
fn the_pending_bits_are_read_only() {
    let world = World::enabled(65);
    world.msix().trigger(64).unwrap();
    for (offset, len) in [(PBA, 4), (PBA, 8), (PBA + 8, 8), (PBA + 8, 4)] {
        world.set_table(offset, len, u64::MAX);
        world.set_table(offset, len, 0);
    }
    assert_eq!([world.table(PBA, 8), world.table(PBA + 8, 8)], [0, 1]);
}

#[test]
fn a_vector_that_does_not_exist_is_an_error_and_disturbs_nobody() {
    let world = World::enabled(4);
    for vector in [4, 0xffff] {
        let error = world.msix().trigger(vector).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
    assert_eq!(world.table(PBA, 8), 0);
    assert_eq!(world.platform.take(), []);
}

#[test]
fn entries_answer_four_and_eight_bytes() {
    let world = World::enabled(2);
    world.set_table(0x10, 8, 0x1122_3344_5566_7788);
    assert_eq!(world.table(0x10, 4), 0x5566_7788);
    assert_eq!(world.table(0x14, 4), 0x1122_3344);
    // Message data and vector control at once.
    world.set_table(0x18, 8, 0xffff_fffe_0000_0041);
    assert_eq!(world.table(0x18, 8), 0x41, "of vector control only the mask bit exists");
    world.set_table(0x10, 4, 0xffff_ffff);
    assert_eq!(
        world.table(0x10, 8),
        0x1122_3344_ffff_fffc,
        "addresses are of whole words"
    );
    assert_eq!(
        world.platform.take(),
        [
            Event::Allocated(REQUESTER),
            Event::Programmed(Some(MsiMessage {
                address: 0x1122_3344_5566_7788,
                data: 0x41
            })),
            Event::Programmed(Some(MsiMessage {
                address: 0x1122_3344_ffff_fffc,
                data: 0x41
            })),
        ]
    );
}

#[test]
fn accesses_that_straddle_or_are_of_another_width_corrupt_nothing() {
    let world = World::enabled(2);
    world.open(0);
    world.open(1);
    world.platform.take();
    let before = world.endpoint.save();
    let widths = |offset: u64| {
        (0..=16).filter(move |&len| !matches!((len, offset % 4), (4, 0)) && (len != 8 || !offset.is_multiple_of(8)))
    };
    let addresses = (0..0x40).chain(0xff0..0x1020).chain([0x1fff, u64::MAX - 3, u64::MAX]);
    for (offset, len) in addresses.flat_map(|offset| widths(offset).map(move |len| (offset, len))) {
        world.endpoint.write_bar(MSIX_BAR, offset, &vec![0xa5; len]);
        let mut data = vec![0x5a; len];
        world.endpoint.read_bar(MSIX_BAR, offset, &mut data);
        assert!(
            offset < 0x20 || !data.contains(&0x5a),
            "{len} bytes at {offset:#x} are not filled"
        );
    }
    assert_eq!(world.endpoint.save(), before);
    assert_eq!(world.platform.take(), []);
    let bytes: Vec<u64> = (0..0x20).map(|offset| world.table(offset, 1)).collect();
    assert_eq!(
        world.table(0x0e, 4),
        bytes[0x0e] | bytes[0x0f] << 8 | bytes[0x10] << 16 | bytes[0x11] << 24
    );
}

#[test]
fn as_many_vectors_as_the_specification_has_work() {
    let world = World::enabled(2048);
    assert_eq!(world.read(MSIX_CONTROL, 2), 0x87ff);
    let pba = 0x8000;
    assert_eq!(world.read(MSIX + 8, 4), pba | 3);
    world.msix().trigger(2047).unwrap();
    assert_eq!(world.table(pba + 0xf8, 8), 1 << 63);
    assert_eq!(world.table(pba + 0x100, 8), 0);
    world.open(2047);
    assert_eq!(world.platform.sent(), [message(2047)]);
    world.set_table(2048 * 16, 8, u64::MAX);
    assert_eq!(world.table(2047 * 16 + 8, 8), u64::from(message(2047).data));
}

#[test]
fn a_failing_trigger_leaves_the_pending_bit_and_the_next_signal_carries_it() {
    let world = World::enabled(4);
    world.open(0);
    world.platform.refuse.store(true, SeqCst);
    assert!(world.msix().trigger(0).is_err());
    assert_eq!((world.table(PBA, 1), world.msix().failures()), (1, 1));
    world.platform.refuse.store(false, SeqCst);
    world.platform.take();
    world.msix().trigger(0).unwrap();
    assert_eq!((world.platform.sent(), world.table(PBA, 1)), (vec![message(0)], 0));
}

#[test]
fn a_failing_trigger_is_also_carried_by_the_next_unmask() {
    let world = World::enabled(4);
    world.open(0);
    world.platform.refuse.store(true, SeqCst);
    assert!(world.msix().trigger(0).is_err());
    world.platform.refuse.store(false, SeqCst);
    world.mask(0, true);
    world.platform.take();
    world.mask(0, false);
    assert_eq!(world.platform.sent(), [message(0)]);
}

#[test]
fn a_platform_without_a_vector_left_is_asked_again_by_the_next_signal() {
    let world = World::enabled(4);
    world.platform.refuse.store(true, SeqCst);
    world.open(0);
    assert!(world.msix().trigger(0).is_err());
    assert_eq!(world.table(PBA, 1), 1);
    world.platform.refuse.store(false, SeqCst);
    world.platform.take();
    assert_eq!(world.msix().trigger(0).unwrap(), Signalled::Sent);
    assert_eq!(
        world.platform.take(),
        [
            Event::Allocated(REQUESTER),
            Event::Programmed(Some(message(0))),
            Event::Sent(message(0))
        ],
        "two signals, one message"
    );
}

#[test]
fn a_refused_mask_is_tried_again_and_sends_nothing_meanwhile() {
    let world = World::enabled(4);
    world.open(0);
    world.platform.refuse.store(true, SeqCst);
    world.mask(0, true);
    assert_eq!(world.msix().trigger(0).unwrap(), Signalled::Pending);
    world.platform.refuse.store(false, SeqCst);
    world.platform.take();
    world.mask(0, true);
    assert_eq!(world.platform.take(), [Event::Programmed(None)]);
}

#[test]
fn an_unmask_after_a_refused_mask_programs_the_message_anew() {
    let world = World::enabled(4);
    world.open(0);
    world.platform.refuse.store(true, SeqCst);
    world.mask(0, true);
    world.platform.refuse.store(false, SeqCst);
    world.platform.take();
    world.mask(0, false);
    assert_eq!(world.platform.take(), [Event::Programmed(Some(message(0)))]);
}

#[test]
fn a_vector_whose_new_message_was_refused_does_not_go_out_along_the_old_one() {
    let world = World::enabled(2);
    world.open(0);
    world.platform.refuse.store(true, SeqCst);
    world.set_table(8, 4, 0x99);
    world.platform.refuse.store(false, SeqCst);
    world.platform.take();
    let rewritten = MsiMessage {
        data: 0x99,
        ..message(0)
    };
    assert_eq!(world.msix().trigger(0).unwrap(), Signalled::Sent);
    assert_eq!(
        world.platform.take(),
        [Event::Programmed(Some(rewritten)), Event::Sent(rewritten)]
    );
}

#[test]
fn without_bus_master_a_vector_is_as_if_masked() {
    let world = World::enabled(4);
    world.open(0);
    world.write(COMMAND, MEMORY_SPACE);
    assert_eq!(world.platform.live.load(SeqCst), 0);
    assert_eq!(world.msix().trigger(0).unwrap(), Signalled::Pending);
    world.platform.take();
    world.write(COMMAND, MEMORY_SPACE | BUS_MASTER);
    assert_eq!(world.platform.sent(), [message(0)]);
}

#[test]
fn a_reset_gives_every_route_back_and_forgets_what_was_pending() {
    let world = World::enabled(4);
    (0..3).for_each(|vector| world.open(vector));
    world.msix().trigger(3).unwrap();
    assert_eq!(world.platform.alive.load(SeqCst), 3);
    world.endpoint.reset();
    assert_eq!(world.platform.alive.load(SeqCst), 0);
    assert_eq!(world.table(PBA, 8), 0);
    assert_eq!(world.table(0x08, 8), 1 << 32, "the table is masked and empty");
    world.platform.take();
    assert_eq!(world.msix().trigger(0).unwrap(), Signalled::Disabled);
    world.write(COMMAND, BUS_MASTER);
    world.write(MSIX_CONTROL, ENABLE);
    assert_eq!(world.platform.take(), []);
}

#[test]
fn a_route_has_no_message_any_more_when_it_is_given_back() {
    let world = World::enabled(4);
    world.open(0);
    world.platform.take();
    world.endpoint.reset();
    assert_eq!(world.platform.take(), [Event::Programmed(None), Event::Dropped]);
}

#[test]
fn a_dropped_endpoint_gives_its_routes_back() {
    let world = World::enabled(4);
    world.open(0);
    let platform = world.platform.clone();
    drop(world);
    assert_eq!([platform.alive.load(SeqCst), platform.live.load(SeqCst)], [0, 0]);
}

/// An endpoint whose messages are handed to `handler`, with vector 0 open.
fn handled_by(handler: impl Fn(&Endpoint, MsiMessage) -> io::Result<()> + Send + Sync + 'static) -> Arc<Endpoint> {
    struct Sink<F>(F, OnceLock<Weak<Endpoint>>);

    impl<F: Fn(&Endpoint, MsiMessage) -> io::Result<()> + Send + Sync> MsiSink for Sink<F> {
        fn send(&self, _: RequesterId, message: MsiMessage) -> io::Result<()> {
            (self.0)(&self.1.get().unwrap().upgrade().unwrap(), message)
        }
    }

    let sink = Arc::new(Sink(handler, OnceLock::new()));
    let vectors = Arc::new(SinkVectors::new(Arc::clone(&sink)));
    let slot = Slot::new(at(1, 0), Box::new(NoInterrupt), vectors);
    let endpoint = Arc::new(Endpoint::new(config(4), slot));
    assert!(sink.1.set(Arc::downgrade(&endpoint)).is_ok());
    endpoint.write_config(COMMAND, &BUS_MASTER.to_le_bytes());
    endpoint.write_config(MSIX_CONTROL, &ENABLE.to_le_bytes());
    endpoint.write_bar(MSIX_BAR, 0x08, &7u64.to_le_bytes());
    endpoint
}

#[test]
fn a_guest_that_masks_and_triggers_from_within_the_signal_does_not_deadlock() {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let endpoint = handled_by(move |endpoint, _| {
        counter.fetch_add(1, SeqCst);
        endpoint.write_bar(MSIX_BAR, 0x0c, &1u32.to_le_bytes());
        assert_eq!(endpoint.msix().unwrap().trigger(0).unwrap(), Signalled::Pending);
        endpoint.write_config(MSIX_CONTROL, &(ENABLE | FUNCTION_MASK).to_le_bytes());
        Ok(())
    });
    endpoint.msix().unwrap().trigger(0).unwrap();
    assert_eq!(taken.load(SeqCst), 1);
    assert!(endpoint.msix().unwrap().is_pending(0));
}

#[test]
fn a_refusal_does_not_bring_back_what_was_disabled_meanwhile() {
    let endpoint = handled_by(|endpoint, _| {
        endpoint.write_config(MSIX_CONTROL, &[0; 2]);
        endpoint.write_config(MSIX_CONTROL, &(ENABLE | FUNCTION_MASK).to_le_bytes());
        Err(io::Error::other("too late"))
    });
    assert!(endpoint.msix().unwrap().trigger(0).is_err());
    assert!(
        !endpoint.msix().unwrap().is_pending(0),
        "stale, of before it was enabled again"
    );
}

#[test]
fn a_reset_from_within_the_signal_leaves_nothing_of_the_message_at_the_platform() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&sent);
    let endpoint = handled_by(move |endpoint, message| {
        log.lock().unwrap().push(message.data);
        // Enabled again at once, with the message that the table has after a reset: none is written.
        endpoint.reset();
        endpoint.write_config(COMMAND, &BUS_MASTER.to_le_bytes());
        endpoint.write_config(MSIX_CONTROL, &ENABLE.to_le_bytes());
        endpoint.write_bar(MSIX_BAR, 0x0c, &[0; 4]);
        Ok(())
    });
    endpoint.msix().unwrap().trigger(0).unwrap();
    endpoint.msix().unwrap().trigger(0).unwrap();
    assert_eq!(*sent.lock().unwrap(), [7, 0]);
}

/// What another CPU does at just that moment: the table is emptied after the platform was asked for a vector, and before the
/// vector has a message.
#[test]
fn a_reset_while_the_platform_gives_a_vector_gives_it_no_message_of_the_emptied_table() {
    struct Slow {
        endpoint: OnceLock<Weak<Endpoint>>,
        platform: Arc<Platform>,
    }
    impl MsiVectors for Slow {
        fn vector(&self, requester: RequesterId) -> io::Result<Box<dyn MsiVector>> {
            let vector = Vectors(Arc::clone(&self.platform)).vector(requester)?;
            self.endpoint.get().unwrap().upgrade().unwrap().reset();
            Ok(vector)
        }
    }
    let platform = Arc::new(Platform::default());
    let slow = Arc::new(Slow {
        endpoint: OnceLock::new(),
        platform: Arc::clone(&platform),
    });
    let slot = Slot::new(at(3, 1), Box::new(NoInterrupt), Arc::clone(&slow) as _);
    let endpoint = Arc::new(Endpoint::new(config(2), slot));
    assert!(slow.endpoint.set(Arc::downgrade(&endpoint)).is_ok());
    endpoint.write_config(COMMAND, &BUS_MASTER.to_le_bytes());
    endpoint.write_config(MSIX_CONTROL, &ENABLE.to_le_bytes());
    endpoint.write_bar(MSIX_BAR, 0x00, &0xfee0_0000u64.to_le_bytes());
    endpoint.write_bar(MSIX_BAR, 0x08, &7u64.to_le_bytes());
    assert_eq!(
        platform.take(),
        [Event::Allocated(REQUESTER), Event::Dropped],
        "it is given back as it came"
    );
}

#[test]
fn a_platform_that_panics_counts_as_one_that_refused() {
    let calls = AtomicUsize::new(0);
    let endpoint = handled_by(move |_, _| match calls.fetch_add(1, SeqCst) {
        0 => panic!("as told"),
        _ => Ok(()),
    });
    let msix = endpoint.msix().unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| msix.trigger(0))).is_err());
    assert!(msix.is_pending(0));
    assert_eq!(msix.trigger(0).unwrap(), Signalled::Sent);
    assert!(!msix.is_pending(0));
}

#[test]
fn threads_that_signal_and_a_guest_that_masks_leave_an_open_vector_with_nothing_owed() {
    const SIGNALS: usize = 2_000;
    let world = World::enabled(4);
    world.open(0);
    thread::scope(|scope| {
        let senders = [(), ()].map(|()| {
            scope.spawn(|| {
                for _ in 0..SIGNALS {
                    world.msix().trigger(0).unwrap();
                }
            })
        });
        while !senders.iter().all(|sender| sender.is_finished()) {
            world.mask(0, true);
            world.mask(0, false);
        }
    });
    assert!(!world.msix().is_pending(0));
    assert_eq!(world.platform.live.load(SeqCst), 1);
    // Still alive, and without anything left over.
    world.platform.take();
    world.msix().trigger(0).unwrap();
    assert_eq!(world.platform.sent(), [message(0)]);
}

#[test]
fn a_reserved_vector_is_the_platforms_before_it_is_let_through_and_a_refusal_is_told() {
    let world = World::new(3);
    world.msix().reserve(1).unwrap();
    assert_eq!(world.platform.take(), [], "not while MSI-X is disabled");
    world.write(COMMAND, BUS_MASTER);
    world.write(MSIX_CONTROL, ENABLE);
    world.msix().reserve(1).unwrap();
    world.msix().reserve(1).unwrap();
    assert_eq!(world.platform.take(), [Event::Allocated(RequesterId(0x19))]);
    world.open(1);
    assert_eq!(world.platform.take(), [Event::Programmed(Some(message(1)))]);

    world.platform.refuse.store(true, SeqCst);
    assert!(world.msix().reserve(2).is_err());
    assert!(world.msix().reserve(3).is_err(), "there is none");
    world.platform.refuse.store(false, SeqCst);
    world.platform.take();
    assert_eq!(world.msix().trigger(2).unwrap(), Signalled::Pending);
    world.mask(2, true);
    assert_eq!(
        world.platform.take(),
        [],
        "it is not asked again before it is let through"
    );
    world.open(2);
    assert_eq!(world.platform.sent(), [message(2)]);
}

#[test]
fn released_vectors_are_the_platforms_again_with_nothing_pending_and_work_when_signalled_next() {
    let world = World::enabled(3);
    world.open(0);
    world.msix().trigger(1).unwrap();
    world.platform.take();
    world.msix().release();
    assert_eq!(
        (world.platform.alive.load(SeqCst), world.platform.live.load(SeqCst)),
        (0, 0)
    );
    assert!(!world.msix().is_pending(1));
    assert!(world.msix().is_enabled());
    assert_eq!(world.table(0x0c, 4), 0, "the guest's mask is the guest's");
    world.platform.take();
    assert_eq!(world.msix().trigger(0).unwrap(), Signalled::Sent);
    assert_eq!(world.platform.sent(), [message(0)]);
    world.open(1);
    assert_eq!(world.platform.sent(), [], "what was pending is forgotten");
}
