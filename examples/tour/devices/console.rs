//! A console whose other end is an object in memory. The guest's thread plays the person who sits there, too.

use std::rc::Rc;

use devisor::virtio::{
    console::{Console, MemoryPeer, Port, Size},
    entropy::SeededRandom,
    queue::QueueCounters,
};
use virtio_drivers::device::console::VirtIOConsole;

use super::{Guest, SEED, Work, ensure, random_bytes};
use crate::{
    guest::GuestError,
    guest_cpu::{CallError, Cpu, barrier_before_sleep},
    guest_drivers::{GuestDma, Sleeping},
    row::{Row, RowError, Setting},
};

const SIZE: Size = Size { cols: 132, rows: 50 };
/// How often the guest writes something and reads the answer, and how long the longest is. The driver has a page for input.
const LINES: usize = 256;
const LONGEST: usize = 1024;

pub fn run(setting: &Setting<'_>) -> Result<Row, RowError> {
    let peer = MemoryPeer::new(LONGEST);
    let port = Port {
        size: Some(SIZE),
        ..Port::console(peer.clone())
    };
    setting.guest("console", |_| Console::single(port), UseConsole(peer))
}

/// Writes lines, each of which the peer must have, and reads its answers.
struct UseConsole(MemoryPeer);

impl Guest for UseConsole {
    const ONCE_A_ROUND: bool = true;

    fn work<T: Sleeping>(
        self,
        transport: T,
        cpu: Rc<dyn Cpu>,
        queues: &dyn Fn() -> QueueCounters,
    ) -> Result<Work, GuestError> {
        let Self(peer) = self;
        let sleeper = transport.sleeper();
        let mut console = VirtIOConsole::<GuestDma, _>::new(transport)?;
        let size = console.size()?.map(|size| (size.columns, size.rows));
        ensure(size == Some((SIZE.cols, SIZE.rows)), || format!("the size is {size:?}"))?;
        let mut random = SeededRandom::new(SEED);
        let mut bytes = 0;
        for number in 1..=LINES {
            let line = random_bytes(&mut random, number * LONGEST / LINES);
            sleeper.sleeping(&cpu, || console.send_bytes(&line))?;
            ensure(peer.output() == line, || format!("line {number} did not get there"))?;

            let answer = random_bytes(&mut random, line.len());
            peer.type_in(&answer);
            let mut heard = Vec::new();
            while heard.len() < answer.len() {
                cpu.take_interrupt().map_err(CallError::NotWoken)?;
                barrier_before_sleep();
                while let Some(byte) = console.recv(true)? {
                    heard.push(byte);
                    barrier_before_sleep();
                }
            }
            ensure(heard == answer, || format!("answer {number} did not get here"))?;
            bytes += line.len() + answer.len();
        }
        Ok(Work {
            // What is typed in at once is one buffer.
            requests: 2 * LINES as u64,
            bytes: bytes as u64,
            queues: queues(),
        })
    }
}
