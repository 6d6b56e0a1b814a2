//! A disk on a server, as a driver finds it: on the rings of a device, and served by nobody but its rounds.

use std::time::{Duration, Instant};

use devisor::{
    time::Clock,
    virtio::{
        Wait,
        block::{Block, BlockOptions, NbdStorage},
    },
};

use crate::{
    channel::{PATIENCE, clock, pattern},
    machine::{BUSES, Machine},
    ring::{readable, writable},
    servers::{Place, connect, nbdkit, qemu_nbd},
};

const F_MQ: u64 = 1 << 12;
const F_FLUSH: u64 = 1 << 9;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Looks at the queues as an event loop does, until each has used so many.
fn settle(machine: &mut Machine<Block>, clock: &dyn Clock, used: &[u16]) {
    look_until(machine, clock, |machine| {
        let mut rings = used.iter().zip(&machine.rings);
        rings.all(|(used, ring)| ring.used_idx() == *used)
    });
}

/// Looks at the queues as an event loop does, until it is so.
fn look_until(machine: &mut Machine<Block>, clock: &dyn Clock, is_so: impl Fn(&Machine<Block>) -> bool) {
    let begun = Instant::now();
    loop {
        machine.run();
        if is_so(machine) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "requests do not end");
        let mut polled = Vec::new();
        let mut left = Duration::from_millis(50);
        for wait in machine.all_waits().into_iter().flat_map(|(_, waits)| waits) {
            match wait {
                Wait::Readable(fd) => polled.push((fd, libc::POLLIN)),
                Wait::Writable(fd) => polled.push((fd, libc::POLLOUT)),
                Wait::Until(time) => left = left.min(time.saturating_sub(clock.now())),
                _ => {}
            }
        }
        let mut polled: Vec<_> = polled
            .into_iter()
            .map(|(fd, events)| libc::pollfd { fd, events, revents: 0 })
            .collect();
        // SAFETY: a list of that length.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, left.as_millis() as i32) };
        let queues: Vec<_> = machine.all_waits().into_iter().map(|(queue, _)| queue).collect();
        for queue in queues {
            machine.transport().process(queue);
        }
    }
}

/// Asks for something, with room behind it. Where its status will be; the room is before that.
fn ask(machine: &mut Machine<Block>, queue: u16, kind: u32, sector: u64, data: &[u8], room: usize) -> u64 {
    let input = [header(kind, sector), data.to_vec()].concat();
    let at = machine.place(queue, input.len() + room + 1);
    machine.fill(at, &input);
    let output = at + input.len() as u64;
    machine.fill(output, &vec![0xee; room + 1]);
    let buffers = [readable(at, input.len() as u32), writable(output, room as u32 + 1)];
    machine.offer(queue, &buffers);
    output + room as u64
}

fn disk(storage: &NbdStorage, queues: u16) -> Block {
    let options = BlockOptions {
        queues,
        ..BlockOptions::default()
    };
    Block::with_async(storage.clone(), options).unwrap()
}

#[test]
fn a_driver_reads_what_it_has_written_on_several_queues() {
    let place = Place::new();
    let socket = place.path("socket");
    let Some(_server) = nbdkit(&socket, &["memory", "8M"]) else {
        return;
    };
    for bus in BUSES {
        let clock = clock();
        let storage = connect(&socket, "").unwrap();
        let mut machine = Machine::new(bus, disk(&storage, 2), F_MQ | F_FLUSH);
        let writes = [0, 1].map(|queue| {
            ask(
                &mut machine,
                queue,
                1,
                u64::from(queue) * 64,
                &pattern(queue.into(), 16384),
                0,
            )
        });
        settle(&mut machine, &*clock, &[1, 1]);
        let flush = ask(&mut machine, 0, 4, 0, &[], 0);
        let reads = [1, 0].map(|queue| ask(&mut machine, 1 - queue, 0, u64::from(queue) * 64, &[], 16384));
        settle(&mut machine, &*clock, &[3, 2]);
        for status in [writes[0], writes[1], flush, reads[0], reads[1]] {
            assert_eq!(machine.bytes(status, 1), [0]);
        }
        assert!(machine.bytes(reads[0] - 16384, 16384) == pattern(1, 16384));
        assert!(machine.bytes(reads[1] - 16384, 16384) == pattern(0, 16384));
        assert_eq!(machine.with_device(|disk| disk.host_failures().count), 0);
    }
}

#[test]
fn a_pause_gives_back_what_the_server_that_is_gone_has_not_answered_and_a_resume_asks_again() {
    let place = Place::new();
    let (socket, image) = (place.path("socket"), place.file("raw", 8 << 20));
    let Some(mut server) = qemu_nbd(&socket, &image, &["-f", "raw"]) else {
        return;
    };
    for bus in BUSES {
        let clock = clock();
        let storage = connect(&socket, "").unwrap();
        let mut machine = Machine::new(bus, disk(&storage, 1), F_FLUSH);
        server.kill();
        let write = ask(&mut machine, 0, 1, 8, &pattern(5, 4096), 0);
        machine.run();
        machine.transport().pause();
        assert!(machine.transport().wait_until_still(Some(Duration::from_secs(10))));
        assert_eq!(machine.bytes(write, 1), [0xee]);
        server = qemu_nbd(&socket, &image, &["-f", "raw"]).expect("it is installed");
        machine.transport().resume();
        settle(&mut machine, &*clock, &[1]);
        let read = ask(&mut machine, 0, 0, 8, &[], 4096);
        settle(&mut machine, &*clock, &[2]);
        assert_eq!((machine.bytes(write, 1), machine.bytes(read, 1)), (vec![0], vec![0]));
        assert!(machine.bytes(read - 4096, 4096) == pattern(5, 4096));
    }
}

#[test]
fn a_disk_moves_with_requests_under_way_and_each_is_answered_once() {
    const BLOCKS: u64 = 8;
    const BLOCK: usize = 4096;
    let place = Place::new();
    let (socket, file) = (place.path("socket"), place.file("disk", 8 << 20));
    let slow = [
        "--filter=delay",
        "file",
        file.to_str().unwrap(),
        "wdelay=3ms",
        "rdelay=3ms",
    ];
    let Some(mut server) = nbdkit(&socket, &slow) else {
        return;
    };
    for bus in BUSES {
        let clock = clock();
        let new_disk = || disk(&connect(&socket, "").unwrap(), 2);
        let mut machine = Machine::new(bus, new_disk(), F_MQ | F_FLUSH);
        let mut carried = 0;
        for round in 1..=12_u64 {
            let block = |queue: u16, at: u64| (u64::from(queue) * BLOCKS + at) * (BLOCK / 512) as u64;
            let seed = |queue: u16, at: u64, round: u64| round << 16 | u64::from(queue) << 8 | at;
            let before: Vec<_> = machine.rings.iter().map(|ring| ring.used_idx()).collect();
            let mut asked = Vec::new();
            for queue in 0..2 {
                for at in 0..BLOCKS {
                    // Each that is read was written in the round before.
                    let status = match (at + round) % 2 {
                        0 => {
                            let bytes = pattern(seed(queue, at, round), BLOCK);
                            ask(&mut machine, queue, 1, block(queue, at), &bytes, 0)
                        }
                        _ => ask(&mut machine, queue, 0, block(queue, at), &[], BLOCK),
                    };
                    asked.push((queue, at, status));
                }
            }
            machine.run();
            if round % 4 == 0 {
                // The replies are lost with it.
                server.kill();
                server = nbdkit(&socket, &slow).expect("it is installed");
            }
            machine.transport().pause();
            look_until(&mut machine, &*clock, |machine| machine.transport().is_still());
            carried += asked
                .iter()
                .filter(|(.., status)| machine.bytes(*status, 1) == [0xee])
                .count();
            let state = machine.transport().save().expect("it is still");
            machine = machine.moved(new_disk(), &state);
            machine.transport().resume();
            let answered: Vec<_> = before.iter().map(|used| used.wrapping_add(BLOCKS as u16)).collect();
            settle(&mut machine, &*clock, &answered);
            for ring in &mut machine.rings {
                let mut heads: Vec<_> = ring.used().into_iter().map(|(head, _)| head).collect();
                heads.sort_unstable();
                heads.dedup();
                assert_eq!(heads.len(), BLOCKS as usize, "each once");
            }
            for (queue, at, status) in asked {
                assert_eq!(machine.bytes(status, 1), [0]);
                if (at + round) % 2 != 0 && round > 1 {
                    let data = machine.bytes(status - BLOCK as u64, BLOCK);
                    assert!(data == pattern(seed(queue, at, round - 1), BLOCK), "round {round}");
                }
            }
        }
        eprintln!("{carried} of {} requests moved", 12 * 2 * BLOCKS);
        assert!(carried > 50, "{carried} were under way");
    }
}
