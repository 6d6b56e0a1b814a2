//! The register frame and the command queue.

use super::{Call::*, command::*, *};

const IIDR: u64 = 0x0004;
const RETRY: u64 = 1;
const STALLED: u64 = 1;
const QUIESCENT: u64 = 1 << 31;

#[test]
fn typer_says_what_there_is() {
    let config = ItsConfig {
        device_bits: 20,
        event_bits: 11,
        collection_bits: 9,
        ..CONFIG
    };
    let expected = 1 | 7 << 4 | 10 << 8 | 19 << 13 | 8 << 32 | 1 << 36;
    assert_eq!(World::fresh(config).read(TYPER), expected);
}

#[test]
fn after_a_reset_it_is_disabled_and_quiescent_and_has_two_tables() {
    let world = World::fresh(CONFIG);
    let check = |world: &World| {
        assert_eq!(world.read(CTLR), QUIESCENT);
        assert_eq!(world.read(BASER), 1 << 56 | 7 << 48 | 2 << 8);
        assert_eq!(world.read(BASER + 8), 4 << 56 | 7 << 48 | 2 << 8);
        for offset in [CBASER, CWRITER, CREADR]
            .into_iter()
            .chain((BASER + 16..0x140).step_by(8))
        {
            assert_eq!(world.read(offset), 0, "{offset:#x}");
        }
    };
    check(&world);
    for offset in (0..0x1_0000).step_by(8) {
        world.frame.write(offset, &[0xff; 8]);
    }
    world.write(CTLR, 1);
    world.its.reset();
    check(&world);
}

#[test]
fn the_revision_is_that_of_the_tables() {
    assert_eq!(World::fresh(CONFIG).read(IIDR) >> 12 & 0xf, u64::from(TABLE_FORMAT));
}

#[test]
fn the_identification_says_architecture_version_3() {
    let world = World::fresh(CONFIG);
    let mut data = [0; 4];
    world.frame.read(0xffe8, &mut data);
    assert_eq!(data[0] >> 4, 3);
}

#[test]
fn registers_of_64_bits_can_be_written_and_read_by_halves() {
    let world = World::fresh(CONFIG);
    let value = VALID | 7 << 59 | 7 << 53 | 0x0008_9abc_def0_1000 | 3 << 10 | 0x42;
    world.frame.write(CBASER, &(value as u32).to_le_bytes());
    world.frame.write(CBASER + 4, &((value >> 32) as u32).to_le_bytes());
    assert_eq!(world.read(CBASER), value);
    let mut data = [0; 4];
    world.frame.read(CBASER + 4, &mut data);
    assert_eq!(read_le(&data), value >> 32);
    world.frame.write(BASER + 4, &u32::MAX.to_le_bytes());
    assert_eq!(world.read(BASER) >> 32, 0xf9e7_ffff, "its type and entry size stay");
    assert_eq!(world.read(BASER) as u32, 2 << 8);
}

#[test]
fn other_accesses_read_as_zero_and_write_nothing() {
    let world = World::new();
    let state = world.its.save();
    for offset in (0..0x1_0000).chain([u64::MAX - 7, u64::MAX]) {
        for len in [1, 2, 3, 4, 5, 8, 9, 16] {
            let wide = [TYPER, CBASER, CWRITER, CREADR].contains(&(offset & !7)) || (0x100..0x140).contains(&offset);
            let allowed = match len {
                4 => offset % 4 == 0,
                8 => offset % 8 == 0 && wide,
                _ => false,
            };
            let there = wide || offset < 8 || (0xffd0..0x1_0000).contains(&offset);
            if allowed && there {
                continue;
            }
            let mut data = [0xa5; 16];
            world.frame.read(offset, &mut data[..len]);
            assert_eq!(data[..len], [0; 16][..len], "{len} bytes at {offset:#x}");
            world.frame.write(offset, &[0xff; 16][..len]);
        }
    }
    assert_eq!(world.its.save(), state);
}

#[test]
fn what_says_where_tables_and_queue_are_is_frozen_while_enabled() {
    let world = World::new();
    let state = world.its.save();
    world.write(CBASER, 0);
    world.write(BASER, 0);
    world.write(BASER + 8, u64::MAX);
    assert_eq!(world.its.save(), state);
    assert_eq!(world.read(CTLR), 1);
    world.write(CTLR, 0);
    assert_eq!(world.read(CTLR), QUIESCENT);
    world.write(BASER, 0);
    assert_eq!(world.read(BASER), 1 << 56 | 7 << 48);
}

#[test]
fn a_write_to_cbaser_sets_creadr_to_zero_and_leaves_cwriter() {
    let world = World::mapped();
    let at = world.read(CWRITER);
    assert_eq!((world.read(CREADR), at), (at, 0x100));
    world.write(CTLR, 0);
    world.write(CBASER, VALID | QUEUE | 1);
    assert_eq!((world.read(CREADR), world.read(CWRITER)), (0, at));
}

#[test]
fn creadr_cannot_be_written() {
    let world = World::mapped();
    let before = world.read(CREADR);
    world.write(CREADR, 0x40);
    assert_eq!(world.read(CREADR), before);
}

#[test]
fn commands_wait_until_the_its_is_enabled() {
    let world = World::new();
    world.write(CTLR, 0);
    world.write(CWRITER, world.queue(0, mapc(0, 0)));
    assert_eq!((world.read(CREADR), world.peek(COLLECTION_TABLE)), (0, 0));
    world.write(CTLR, 1);
    assert_eq!((world.read(CREADR), world.peek(COLLECTION_TABLE)), (32, VALID));
}

#[test]
fn without_a_valid_queue_nothing_is_carried_out() {
    let world = World::new();
    world.write(CTLR, 0);
    world.write(CBASER, QUEUE);
    world.queue(0, mapc(0, 0));
    world.write(CTLR, 1);
    world.write(CWRITER, 32);
    assert_eq!((world.read(CREADR), world.peek(COLLECTION_TABLE)), (0, 0));
}

#[test]
fn the_queue_wraps() {
    let world = World::mapped();
    let per_queue = world.queue_size() / 32;
    for turn in 0..3 * per_queue + 5 {
        let cpu = (turn % 4) as u32;
        world.calls(&[mapc(0, cpu)]);
        assert_eq!(world.peek(COLLECTION_TABLE), VALID | u64::from(cpu) << 16);
    }
    // All but one, in one go and across the end.
    let mut at = world.read(CWRITER);
    for event in 0..per_queue - 1 {
        at = world.queue(at, mapti(0, (event % 32) as u32, 8192 + event as u32, 0));
    }
    world.write(CWRITER, at);
    assert_eq!((world.read(CREADR), world.its.refused_commands()), (at, 0));
    assert_eq!(world.peek(itt(0)) as u32, 8192 + 96);
}

#[test]
fn a_position_beyond_the_queue_carries_out_nothing() {
    let world = World::mapped();
    let at = world.read(CREADR);
    for beyond in [0x1000, 0xf_ffe0] {
        world.write(CWRITER, beyond);
        assert_eq!((world.read(CWRITER), world.read(CREADR)), (beyond, at));
        assert_eq!(world.its.refused_commands(), 0, "none was looked at");
    }
    world.write(CWRITER, world.queue(at, mapc(0, 2)));
    assert_eq!(world.peek(COLLECTION_TABLE), VALID | 2 << 16);
}

#[test]
fn a_command_that_cannot_be_read_stalls_until_retry() {
    let world = World::fresh(CONFIG);
    // The second page of the queue is beyond memory.
    let base = RAM + RAM_SIZE - 0x1000;
    world.write(CBASER, VALID | base | 1);
    world.write(BASER, VALID | DEVICE_TABLE);
    world.write(BASER + 8, VALID | COLLECTION_TABLE);
    world.write(CTLR, 1);
    world.write(CWRITER, 0x1020);
    assert_eq!(world.read(CREADR), 0x1000 | STALLED);
    assert_eq!(world.its.refused_commands(), 128, "of the first page, which is zero");
    world.write(CWRITER, 0x1040);
    assert_eq!(world.read(CREADR), 0x1000 | STALLED, "without Retry it stays so");
    world.write(CWRITER, 0x1040 | RETRY);
    assert_eq!(world.read(CREADR), 0x1000 | STALLED, "tried again");
    assert_eq!(world.read(CWRITER), 0x1040);
    world.write(CTLR, 0);
    world.write(CBASER, VALID | QUEUE);
    assert_eq!(world.read(CREADR), 0);
}

#[test]
fn a_table_that_is_not_memory_stalls_and_a_retry_with_memory_goes_on() {
    let world = World::mapped();
    let outside = 0x8000_0000;
    world.calls(&[mapd(5, outside, 5)]);
    for command in [mapti(5, 0, 8192, 0), int(5, 0), inv(5, 0), discard(5, 0)] {
        let at = world.read(CREADR);
        world.stalls(command);
        // The guest thinks better of it.
        world.queue(at, sync(0));
        world.write(CWRITER, world.read(CWRITER));
        assert_eq!(world.read(CREADR), at | STALLED, "it waits for Retry");
        world.write(CWRITER, world.read(CWRITER) | RETRY);
        assert_eq!(world.read(CREADR), world.read(CWRITER));
    }
    assert_eq!(
        world.calls(&[mapti(0, 0, 8192, 1), int(0, 0)]),
        [SetPending(1, 8192, true)]
    );
}

#[test]
fn a_command_that_calls_back_into_the_registers_leaves_the_queue_to_who_is_at_it() {
    // An output of the GIC that queues a command: the INT's LPI is pending before CREADR has passed it.
    struct Calling(std::sync::OnceLock<(ControlFrame, Mutex<Vec<u64>>)>);
    impl Lpis for Calling {
        fn redistributor(&self, _: u32) -> Option<CpuId> {
            Some(CpuId(0))
        }
        fn set_pending(&self, _: CpuId, _: u32, _: bool) {
            let (frame, seen) = self.0.get().unwrap();
            let mut data = [0; 8];
            frame.read(CREADR, &mut data);
            let mut control = [0; 4];
            frame.read(CTLR, &mut control);
            assert_eq!(read_le(&control) & QUIESCENT, 0);
            lock(seen).push(read_le(&data));
            if lock(seen).len() == 1 {
                frame.write(CWRITER, &0xa0_u64.to_le_bytes());
            }
        }
        fn invalidate(&self, _: CpuId, _: u32) {}
        fn invalidate_all(&self, _: CpuId) {}
        fn move_pending(&self, _: CpuId, _: CpuId, _: u32) {}
        fn move_all_pending(&self, _: CpuId, _: CpuId) {}
    }
    let world = World::fresh(CONFIG);
    let calling = Arc::new(Calling(Default::default()));
    let its = Its::before(
        CONFIG,
        Arc::clone(&calling) as _,
        14,
        Arc::new(Arc::clone(&world.memory)),
    )
    .unwrap();
    calling.0.set((its.control_frame(), Mutex::default())).ok().unwrap();
    let frame = its.control_frame();
    for (offset, value) in [(CBASER, QUEUE), (BASER, DEVICE_TABLE), (BASER + 8, COLLECTION_TABLE)] {
        frame.write(offset, &(VALID | value).to_le_bytes());
    }
    frame.write(CTLR, &1_u32.to_le_bytes());
    let mut at = 0;
    for command in [mapc(0, 0), mapd(0, ITTS, 5), mapti(0, 0, 8192, 0), int(0, 0), int(0, 0)] {
        at = world.queue(at, command);
    }
    frame.write(CWRITER, &0x80_u64.to_le_bytes());
    let seen = lock(&calling.0.get().unwrap().1).clone();
    assert_eq!(
        seen,
        [0x60, 0x80],
        "the second was carried out by the outer one, in order"
    );
    let mut data = [0; 8];
    frame.read(CREADR, &mut data);
    assert_eq!(read_le(&data), 0xa0);
}

/// What is done to an ITS while the effect of its INT is under way, and the ITS afterwards.
fn while_a_command_is_under_way(then: fn(&Its, &ControlFrame)) -> World {
    struct Within(std::sync::OnceLock<Its>, fn(&Its, &ControlFrame));
    impl Lpis for Within {
        fn redistributor(&self, _: u32) -> Option<CpuId> {
            Some(CpuId(0))
        }
        fn set_pending(&self, _: CpuId, _: u32, _: bool) {
            let its = self.0.get().unwrap();
            self.1(its, &its.control_frame());
        }
        fn invalidate(&self, _: CpuId, _: u32) {}
        fn invalidate_all(&self, _: CpuId) {}
        fn move_pending(&self, _: CpuId, _: CpuId, _: u32) {}
        fn move_all_pending(&self, _: CpuId, _: CpuId) {}
    }
    let world = World::fresh(CONFIG);
    let within = Arc::new(Within(Default::default(), then));
    let memory = Arc::new(Arc::clone(&world.memory));
    let its = Its::before(CONFIG, Arc::clone(&within) as _, 14, memory).unwrap();
    assert!(within.0.set(its.clone()).is_ok());
    let world = World {
        frame: its.control_frame(),
        its,
        ..world
    };
    for (offset, value) in [(CBASER, QUEUE), (BASER, DEVICE_TABLE), (BASER + 8, COLLECTION_TABLE)] {
        world.write(offset, VALID | value);
    }
    world.write(CTLR, 1);
    let mut at = 0;
    for command in [mapc(0, 0), mapd(0, ITTS, 5), mapti(0, 0, 8192, 0), int(0, 0), sync(0)] {
        at = world.queue(at, command);
    }
    world.write(CWRITER, at);
    world
}

#[test]
fn it_is_quiescent_when_it_is_disabled_and_the_command_under_way_is_complete() {
    let world = while_a_command_is_under_way(|_, frame| {
        frame.write(CTLR, &[0; 4]);
        let mut control = [0; 4];
        frame.read(CTLR, &mut control);
        assert_eq!(read_le(&control), 0, "neither enabled nor quiescent");
    });
    assert_eq!(world.read(CTLR), QUIESCENT);
    assert_eq!(world.read(CREADR), 0x80, "that one, and none after it");
}

#[test]
fn a_command_that_a_reset_or_a_restore_overtakes_moves_no_register_of_after_it() {
    let reset = while_a_command_is_under_way(|its, _| its.reset());
    assert_eq!(reset.its.save(), World::fresh(CONFIG).its.save());
    let restored = while_a_command_is_under_way(|its, _| {
        let state = ItsState {
            enabled: false,
            command_read: 0xfe0,
            ..its.save()
        };
        its.restore(&state).unwrap();
    });
    assert_eq!(restored.read(CREADR), 0xfe0);
}

#[test]
fn the_state_is_put_back_with_the_tables_where_they_are() {
    let world = World::mapped();
    world.calls(&[mapti(0, 3, 8195, 1)]);
    let state = world.its.save();
    let new = World::over(CONFIG, Arc::clone(&world.memory), Arc::default());
    new.its.restore(&state).unwrap();
    assert_eq!(new.its.save(), state);
    assert_eq!(new.message(0, 3), [SetPending(1, 8195, true)]);
    assert_eq!(new.calls(&[int(0, 3)]), [SetPending(1, 8195, true)]);
}

#[test]
fn a_restore_forgets_what_was_remembered_and_keeps_what_waits() {
    let world = World::mapped();
    world.calls(&[mapti(0, 3, 8195, 1)]);
    let state = world.its.save();
    world.message(0, 3);
    world.poke(itt(0) + 24, VALID | 8196);
    assert_eq!(world.message(0, 3), [SetPending(1, 8195, true)], "remembered");
    let at = world.queue(state.command_write, int(0, 3));
    let waiting = ItsState {
        command_write: at,
        ..state
    };
    world.its.restore(&waiting).unwrap();
    assert_eq!(world.lpis.take(), [], "not by the restore");
    assert_eq!(world.message(0, 3), [SetPending(0, 8196, true)]);
    assert_eq!(world.read(CREADR), at);
    assert_eq!(world.lpis.take(), [SetPending(0, 8196, true)]);
}

#[test]
fn a_state_that_no_guest_could_have_made_is_refused() {
    let world = World::mapped();
    let good = world.its.save();
    let mut refused = Vec::new();
    let mut refuse = |change: &dyn Fn(&mut ItsState)| {
        let mut state = good.clone();
        change(&mut state);
        refused.push(world.its.restore(&state).unwrap_err().to_string());
    };
    refuse(&|state| state.config.event_bits += 1);
    refuse(&|state| state.table_format += 1);
    refuse(&|state| state.command_base |= 1 << 62);
    refuse(&|state| state.command_write |= 1);
    refuse(&|state| state.command_read = 0x1000);
    refuse(&|state| state.command_read |= 2);
    refuse(&|state| state.tables[0] ^= 1 << 56);
    refuse(&|state| state.tables[2] = VALID);
    println!("{refused:#?}");
    assert_eq!(world.its.save(), good);
    for stalled in [true, false] {
        let mut state = good.clone();
        state.command_read |= u64::from(stalled);
        world.its.restore(&state).unwrap();
        assert_eq!(world.its.save(), state);
    }
}

#[test]
fn what_no_its_has_is_refused() {
    let make = |config| {
        Its::before(
            config,
            Arc::new(Fake::default()),
            LPI_BITS,
            Arc::new(World::fresh(CONFIG).memory),
        )
    };
    for (config, error) in [
        (ItsConfig { base: 0x1000, ..CONFIG }, ItsError::Base(0x1000)),
        (
            ItsConfig {
                base: u64::MAX << 16,
                ..CONFIG
            },
            ItsError::Base(u64::MAX << 16),
        ),
        (
            ItsConfig {
                device_bits: 33,
                ..CONFIG
            },
            ItsError::DeviceBits(33),
        ),
        (
            ItsConfig {
                event_bits: 0,
                ..CONFIG
            },
            ItsError::EventBits(0),
        ),
        (
            ItsConfig {
                collection_bits: 17,
                ..CONFIG
            },
            ItsError::CollectionBits(17),
        ),
    ] {
        assert_eq!(make(config).unwrap_err(), error);
    }
    let most = ItsConfig {
        base: u64::MAX << 17,
        device_bits: 32,
        event_bits: 32,
        collection_bits: 16,
    };
    make(most).unwrap();
}
