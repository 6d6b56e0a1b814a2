//! What a run costs.

use std::{
    cell::Cell,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

thread_local! {
    /// What others have spent in their turns.
    static OTHERS: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// What this process has used of the CPU, all its threads together; but not in the turns of others than who asks: see [`Turns`].
pub fn cpu_time() -> Duration {
    of_process() - OTHERS.get()
}

fn of_process() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: there is room for what is written, and zeros are a valid value of it too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |of: libc::timeval| Duration::new(of.tv_sec as u64, of.tv_usec as u32 * 1_000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Two that run in turns on one CPU, each on a thread of its own: what makes the machine slower makes it so for both.
pub struct Turns {
    /// The CPU that both are on.
    cpu: usize,
    /// What both have spent.
    spent: fn() -> Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    whose: usize,
    left: [bool; 2],
}

/// The place of one of the two. It is this one's turn from the beginning on, until it says [`next`](Self::next); dropped, it has no more.
pub struct Turn<'a> {
    turns: &'a Turns,
    me: usize,
}

impl Turns {
    pub fn new() -> Self {
        Self::counted_by(of_process)
    }

    fn counted_by(spent: fn() -> Duration) -> Self {
        // SAFETY: it is given nothing.
        let cpu = unsafe { libc::sched_getcpu() };
        Self {
            cpu: cpu.try_into().unwrap_or(0),
            spent,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Waits for the first turn of number 0 or 1.
    pub fn begin(&self, me: usize) -> Turn<'_> {
        stay_on(self.cpu);
        let turn = Turn { turns: self, me };
        turn.wait(|_| ());
        turn
    }
}

/// Has this thread run on this CPU alone. A host that refuses measures less well.
fn stay_on(cpu: usize) {
    // SAFETY: zeros are an empty set, a CPU that is in none is left out, and the set is there for the call.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

impl Turn<'_> {
    /// The other one's turn, then it is this one's again.
    pub fn next(&self) {
        self.wait(|state| state.whose = 1 - self.me);
    }

    fn wait(&self, change: impl FnOnce(&mut State)) {
        let before = (self.turns.spent)();
        let mut state = self.turns.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        self.turns.changed.notify_one();
        let is_others = |state: &mut State| state.whose != self.me && !state.left[1 - self.me];
        let state = self.turns.changed.wait_while(state, is_others);
        drop(state.unwrap_or_else(PoisonError::into_inner));
        OTHERS.set(OTHERS.get() + ((self.turns.spent)() - before));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left[self.me] = true;
        self.turns.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicU64, Ordering::SeqCst},
        thread,
    };

    static SPENT: AtomicU64 = AtomicU64::new(0);

    fn spent_by_both() -> Duration {
        Duration::from_millis(SPENT.load(SeqCst))
    }

    #[test]
    fn each_is_told_what_it_has_spent_itself() {
        let turns = Turns::counted_by(spent_by_both);
        let spent = |me, rounds: u32, each: u64| {
            let turn = turns.begin(me);
            let own = || spent_by_both() - OTHERS.get();
            let begin = own();
            for _ in 0..rounds {
                SPENT.fetch_add(each, SeqCst);
                turn.next();
            }
            own() - begin
        };
        let (few, many) = thread::scope(|scope| {
            let many = scope.spawn(|| spent(1, 20, 5));
            let few = scope.spawn(|| spent(0, 5, 1));
            (few.join().unwrap(), many.join().unwrap())
        });
        assert_eq!([few, many], [5, 100].map(Duration::from_millis));
    }
}
