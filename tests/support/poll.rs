//! Looks at the queues of a device as an event loop does.

use std::time::Duration;

use devisor::virtio::{VirtioDevice, Wait};

use crate::machine::Machine;

/// Looks at each queue that waits for a descriptor that is ready, or for a time that has come, until none does.
pub fn poll<D: VirtioDevice + 'static>(machine: &Machine<D>, now: Duration) {
    for _ in 0..1000 {
        machine.run();
        let all = machine.all_waits();
        let due: Vec<_> = all
            .into_iter()
            .filter(|(_, waits)| waits.iter().any(|wait| is_over(*wait, now)))
            .collect();
        if due.is_empty() {
            return;
        }
        for (queue, _) in due {
            machine.transport().process(queue);
        }
    }
    panic!("it never comes to rest");
}

fn is_over(wait: Wait, now: Duration) -> bool {
    let poll = |fd, events| {
        let mut polled = libc::pollfd { fd, events, revents: 0 };
        // SAFETY: one structure, which is there for the call; it does not wait.
        unsafe { libc::poll(&mut polled, 1, 0) == 1 }
    };
    match wait {
        Wait::Readable(fd) => poll(fd, libc::POLLIN),
        Wait::Writable(fd) => poll(fd, libc::POLLOUT),
        Wait::Until(time) => time <= now,
        _ => false,
    }
}
