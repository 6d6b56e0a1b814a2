//! Tables and queues that no driver makes.

use super::{Call::*, command::*, *};

const OUTSIDE: u64 = 0x000f_ffff_ffff_0000;

#[test]
fn a_table_outside_memory_stalls_commands_and_drops_messages() {
    for (devices, collections) in [
        (OUTSIDE & 0xffff_ffff_f000, COLLECTION_TABLE),
        (DEVICE_TABLE, 0x8000_0000),
    ] {
        let world = World::with(CONFIG, devices, collections);
        let command = if devices == DEVICE_TABLE {
            mapc(0, 0)
        } else {
            mapd(0, ITTS, 5)
        };
        world.stalls(command);
        assert_eq!(world.message(0, 0), []);
    }
}

#[test]
fn a_table_whose_end_is_outside_memory_stalls_there() {
    let world = World::with(CONFIG, (RAM + RAM_SIZE - 0x1000) | 1, COLLECTION_TABLE);
    world.calls(&[mapd(511, ITTS, 5)]);
    world.stalls(mapd(512, ITTS, 5));
}

#[test]
fn a_second_level_outside_memory_stalls() {
    let world = World::with(CONFIG, INDIRECT | DEVICE_TABLE, COLLECTION_TABLE);
    world.poke(DEVICE_TABLE, VALID | OUTSIDE);
    world.stalls(mapd(0, ITTS, 5));
}

#[test]
fn a_table_that_is_its_own_second_level_is_only_odd() {
    let world = World::with(CONFIG, INDIRECT | DEVICE_TABLE, COLLECTION_TABLE);
    world.poke(DEVICE_TABLE, VALID | DEVICE_TABLE);
    // Device 0 has the entry that is the first level's own.
    world.calls(&[mapd(0, itt(1), 5)]);
    assert_eq!(world.peek(DEVICE_TABLE), VALID | itt(1) | 4);
    world.calls(&[mapc(0, 0)]);
    // Now the second level is device 1's table, where nothing is.
    world.refused(mapti(0, 0, 8192, 0));
    assert_eq!(world.message(0, 0), []);
}

#[test]
fn all_tables_and_the_queue_in_the_same_place_end() {
    let world = World::with(CONFIG, QUEUE, QUEUE);
    let mut at = 0;
    for (index, round) in (0..127).zip([0, 1, 2].into_iter().cycle()) {
        at = world.queue(
            at,
            match round {
                0 => mapd(index, QUEUE, 8),
                1 => mapc(index as u16, 0),
                _ => mapti(index - 2, index, 8192 + index, index as u16),
            },
        );
    }
    world.write(CWRITER, at);
    assert_eq!(world.read(CREADR), at, "each command was looked at once");
    for event in 0..256 {
        world.message(1, event);
    }
}

#[test]
fn a_command_that_rewrites_those_behind_it_is_followed_by_what_it_wrote() {
    // The collection table is the queue: MAPC of collection 4 writes the first word of command 1.
    let world = World::with(CONFIG, DEVICE_TABLE, QUEUE);
    world.queue(0, mapc(4, 0));
    world.queue(32, sync(0));
    world.write(CWRITER, 64);
    assert_eq!((world.read(CREADR), world.peek(QUEUE + 32)), (64, VALID));
    assert_eq!(
        world.its.refused_commands(),
        1,
        "what was SYNC has no command's number any more"
    );
}

#[test]
fn entries_that_the_guest_wrote_itself_go_no_further_than_its_redistributors() {
    let world = World::mapped();
    for lpi in [0, 1, 8191, 1 << LPI_BITS, u32::MAX] {
        world.poke(itt(0), VALID | u64::from(lpi));
        assert_eq!(world.message(0, 0), [], "{lpi} is no LPI");
        world.refused(int(0, 0));
    }
    world.poke(itt(0), u64::MAX);
    assert_eq!(world.message(0, 0), []);
    world.poke(itt(0), VALID | 1 << 32 | 8192);
    assert_eq!(world.message(0, 0), [SetPending(1, 8192, true)]);
    world.calls(&[sync(0), mapc(5, 0)]);
    world.poke(COLLECTION_TABLE + 8, u64::MAX);
    assert_eq!(world.message(0, 0), [], "there is no such processor");
    world.poke(COLLECTION_TABLE + 8, VALID | 0x7fff_0003_0000 & !0xffff_0000_0000);
    assert_eq!(world.message(0, 0), [SetPending(3, 8192, true)]);
}

#[test]
fn a_device_entry_of_ones_is_a_table_outside_memory() {
    let world = World::mapped();
    world.poke(DEVICE_TABLE, u64::MAX);
    for event in [0, 1, u32::MAX] {
        assert_eq!(world.message(0, event), []);
    }
    world.stalls(int(0, u32::MAX));
}

#[test]
fn a_full_queue_of_the_dearest_commands_is_carried_out_by_many_accesses() {
    let world = World::fresh(CONFIG);
    // 1 MB of queue, over the tables as it happens.
    world.write(CBASER, VALID | QUEUE | 0xff);
    world.write(BASER, VALID | (RAM + 0x20_0000));
    world.write(BASER + 8, VALID | (RAM + 0x30_0000));
    world.write(CTLR, 1);
    world.queue(0, mapc(0, 1));
    for at in (32..0x10_0000).step_by(32) {
        world.queue(at, invall(0));
    }
    world.write(CWRITER, 0xf_ffe0);
    let mut accesses = vec![world.lpis.take().len()];
    while world.read(CREADR) != 0xf_ffe0 {
        accesses.push(world.lpis.take().len());
    }
    accesses.push(world.lpis.take().len());
    assert_eq!(accesses.iter().sum::<usize>(), 0x8000 - 2, "each once");
    assert!(accesses.iter().all(|&calls| calls <= 64), "{accesses:?}");
}

#[test]
fn an_output_that_unwinds_leaves_the_queue_usable() {
    struct Unwinding(std::sync::atomic::AtomicBool);
    impl Lpis for Unwinding {
        fn redistributor(&self, _: u32) -> Option<CpuId> {
            Some(CpuId(0))
        }
        fn set_pending(&self, _: CpuId, _: u32, _: bool) {}
        fn invalidate(&self, _: CpuId, _: u32) {}
        fn invalidate_all(&self, _: CpuId) {
            if !self.0.swap(true, std::sync::atomic::Ordering::SeqCst) {
                std::panic::resume_unwind(Box::new("an embedder's"));
            }
        }
        fn move_pending(&self, _: CpuId, _: CpuId, _: u32) {}
        fn move_all_pending(&self, _: CpuId, _: CpuId) {}
    }
    let World { memory, .. } = World::fresh(CONFIG);
    let its = Its::before(
        CONFIG,
        Arc::new(Unwinding(Default::default())),
        14,
        Arc::new(Arc::clone(&memory)),
    )
    .unwrap();
    let world = World {
        frame: its.control_frame(),
        its,
        memory,
        lpis: Arc::default(),
    };
    world.write(CBASER, VALID | QUEUE);
    world.write(BASER + 8, VALID | COLLECTION_TABLE);
    world.write(CTLR, 1);
    world.queue(world.queue(0, mapc(0, 0)), invall(0));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.write(CWRITER, 64)));
    assert!(caught.is_err());
    assert_eq!(world.read(CREADR), 64);
}

/// Each INT's LPI has an output of the GIC write GITS_CWRITER, as another CPU might: there is always a command to come.
#[test]
fn a_queue_that_is_fed_for_ever_keeps_an_access_for_its_share() {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    const SHARE: u32 = 0x8000;

    #[derive(Default)]
    struct Feeding {
        frame: std::sync::OnceLock<ControlFrame>,
        carried_out: AtomicU32,
    }
    impl Lpis for Feeding {
        fn redistributor(&self, _: u32) -> Option<CpuId> {
            Some(CpuId(0))
        }
        fn set_pending(&self, _: CpuId, _: u32, _: bool) {
            // Not without end, so that the test ends where the access does not.
            if self.carried_out.fetch_add(1, SeqCst) < 3 * SHARE {
                let frame = self.frame.get().unwrap();
                let mut under_way = [0; 8];
                frame.read(CREADR, &mut under_way);
                frame.write(CWRITER, &under_way);
            }
        }
        fn invalidate(&self, _: CpuId, _: u32) {}
        fn invalidate_all(&self, _: CpuId) {}
        fn move_pending(&self, _: CpuId, _: CpuId, _: u32) {}
        fn move_all_pending(&self, _: CpuId, _: CpuId) {}
    }
    let World { memory, .. } = World::fresh(CONFIG);
    let feeding = Arc::new(Feeding::default());
    let its = Its::before(CONFIG, Arc::clone(&feeding) as _, 14, Arc::new(Arc::clone(&memory))).unwrap();
    assert!(feeding.frame.set(its.control_frame()).is_ok());
    let world = World {
        frame: its.control_frame(),
        its,
        memory,
        lpis: Arc::default(),
    };
    for (offset, base) in [(CBASER, QUEUE), (BASER, DEVICE_TABLE), (BASER + 8, COLLECTION_TABLE)] {
        world.write(offset, VALID | base);
    }
    world.write(CTLR, 1);
    world.run(&[mapc(0, 0), mapd(0, ITTS, 5), mapti(0, 0, 8192, 0)]);
    for at in (0..0x1000).step_by(32) {
        world.queue(at, int(0, 0));
    }
    world.write(CWRITER, 0x80);
    assert_eq!(feeding.carried_out.load(SeqCst), SHARE, "the write that let them begin");
    world.read(CREADR);
    assert_eq!(feeding.carried_out.load(SeqCst), 2 * SHARE, "who waits carries on");
}
