//! The comparison.

mod bare;
mod fio;
mod memory;
mod ours;
mod waiter;

use std::{
    env,
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
    time::Instant,
};

/// Bytes of the file.
const FILE: u64 = 256 << 20;
/// How often `fio` has: it takes a second.
const FIO_TURNS: usize = 3;

/// What is measured.
#[derive(Clone, Copy)]
pub struct Work {
    pub direct: bool,
    pub writes: bool,
    /// Bytes of a request.
    pub len: u32,
    /// One request after the other through the file; otherwise anywhere.
    pub sequential: bool,
    pub depth: u16,
    pub queues: u16,
    /// Requests of each queue in a turn.
    requests: u32,
    /// How often each has its turn: as often as first as it is last.
    turns: usize,
}

impl Work {
    fn name(&self) -> String {
        let Self {
            direct,
            writes,
            len,
            sequential,
            depth,
            queues,
            ..
        } = *self;
        format!(
            "{} {} of {} KiB, {}, depth {depth}, {queues} queue{}",
            if direct { "direct" } else { "tmpfs" },
            if writes { "writes" } else { "reads" },
            len / 1024,
            if sequential { "in order" } else { "anywhere" },
            if queues == 1 { "" } else { "s" },
        )
    }

    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for direct in [false, true] {
            for writes in [false, true] {
                for (depth, queues) in [(1, 1), (32, 1), (128, 1), (32, 4)] {
                    // What one alone costs is told from many short turns: what else the machine does is longer than these.
                    let (requests, rounds) = match (direct, depth) {
                        (true, 1) => (500, 8),
                        (true, _) => (6_000, 2),
                        (false, 1) => (5_000, 8),
                        (false, _) => (60_000, 2),
                    };
                    all.push(Self {
                        direct,
                        writes,
                        len: 4096,
                        sequential: false,
                        depth,
                        queues,
                        requests: requests / u32::from(queues),
                        turns: rounds * Who::ALL.len(),
                    });
                }
            }
            all.push(Self {
                direct,
                writes: false,
                len: 128 * 1024,
                sequential: true,
                depth: 32,
                queues: 1,
                requests: if direct { 1_000 } else { 6_000 },
                turns: 2 * Who::ALL.len(),
            });
        }
        all
    }

    fn path<'a>(&self, files: &'a Files) -> &'a Path {
        if self.direct { &files.direct } else { &files.tmpfs }
    }

    /// A file in memory can be open so that the kernel waits for nothing of it, as ours has it.
    fn open(&self, files: &Files, never_waits: bool) -> File {
        let flags = match (self.direct, never_waits) {
            (true, _) => libc::O_DIRECT,
            (false, true) => libc::O_DIRECT | libc::O_NONBLOCK,
            (false, false) => 0,
        };
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(self.path(files))
            .expect("the file")
    }

    /// Where requests go, without end.
    pub fn offsets(self, seed: u64) -> impl FnMut() -> u64 {
        let places = FILE / u64::from(self.len);
        let mut state = seed * 2 + 0x9e37_79b9_7f4a_7c15;
        move || {
            if self.sequential {
                state = state.wrapping_add(1);
            } else {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
            }
            state % places * u64::from(self.len)
        }
    }
}

struct Files {
    tmpfs: PathBuf,
    direct: PathBuf,
}

impl Files {
    fn new() -> Self {
        let name = format!("devisor-disk-{}", process::id());
        let files = Self {
            tmpfs: PathBuf::from("/dev/shm").join(&name),
            direct: env::temp_dir().join(&name),
        };
        let data = vec![0x5a; FILE as usize];
        for path in [&files.tmpfs, &files.direct] {
            fs::write(path, &data).expect("room for the file");
            File::open(path)
                .and_then(|file| file.sync_all())
                .expect("it is written");
        }
        files
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in [&self.tmpfs, &self.direct] {
            let _ = fs::remove_file(path);
        }
    }
}

/// One of those that are compared, ready to go.
pub trait Side: Send {
    /// Does so many requests.
    fn run(&mut self, requests: u32);
}

/// Who does the requests in this process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Bare,
    Ours,
    /// With memory registered.
    BareRegistered,
    OursRegistered,
    /// Waits as who waits for other things as well.
    BareWaiting,
    OursWaiting,
    /// Has a file in memory open so that no thread of the kernel's does what is asked of it.
    BareAtOnce,
}

impl Who {
    const ALL: [Self; 7] = [
        Self::Bare,
        Self::Ours,
        Self::BareRegistered,
        Self::OursRegistered,
        Self::BareWaiting,
        Self::OursWaiting,
        Self::BareAtOnce,
    ];

    fn sides(self, work: Work, files: &Files) -> Vec<Box<dyn Side>> {
        let registered = matches!(self, Self::BareRegistered | Self::OursRegistered);
        match self {
            Self::Bare | Self::BareRegistered | Self::BareWaiting | Self::BareAtOnce => (0..work.queues)
                .map(|queue| {
                    let file = work.open(files, self == Self::BareAtOnce);
                    let waiter = (self == Self::BareWaiting).then(waiter::Waiter::new);
                    Box::new(bare::Bare::new(work, file, queue.into(), registered, waiter)) as Box<dyn Side>
                })
                .collect(),
            Self::Ours | Self::OursRegistered | Self::OursWaiting => {
                ours::new(work, work.open(files, false), registered, self != Self::OursWaiting)
            }
        }
    }
}

/// What a turn has taken of each request, in microseconds.
#[derive(Clone, Copy)]
pub struct Turn {
    pub time: f64,
    pub cpu: f64,
}

fn turn(sides: &mut [Box<dyn Side>], requests: u32) -> Turn {
    let all = f64::from(requests) * sides.len() as f64;
    let (cpu, start) = (cpu_time(), Instant::now());
    match sides {
        [side] => side.run(requests),
        sides => thread::scope(|scope| {
            sides.iter_mut().for_each(|side| _ = scope.spawn(|| side.run(requests)));
        }),
    }
    let micros = |seconds: f64| seconds * 1e6 / all;
    Turn {
        time: micros(start.elapsed().as_secs_f64()),
        cpu: micros(cpu_time() - cpu),
    }
}

/// Of this process, the kernel's threads that work for it included.
fn cpu_time() -> f64 {
    // SAFETY: all of it is numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: fills the structure.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn least(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::INFINITY, f64::min)
}

/// System calls of a request, as `strace` counts them: the difference of two runs.
fn system_calls(run: impl Fn(u32) -> Command) -> Option<f64> {
    let count = |requests: u32| {
        let run = run(requests);
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-c", "-qq"])
            .arg(run.get_program())
            .args(run.get_args());
        let text = strace.output().ok()?.stderr;
        let text = String::from_utf8_lossy(&text).into_owned();
        let line = text.lines().find(|line| line.trim_end().ends_with("total"))?;
        line.split_whitespace().nth(3)?.parse::<f64>().ok()
    };
    let (few, many) = (count(1_000)?, count(5_000)?);
    Some((many - few) / 4_000.0)
}

/// This program, for so many requests of one of them.
fn by_itself(number: usize, who: usize) -> impl Fn(u32) -> Command {
    move |requests| {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--work", &number.to_string(), &who.to_string(), &requests.to_string()]);
        command
    }
}

/// One line: how it compares with `others`, turn by turn.
fn compare(name: &str, turns: &[Turn], others: &[Turn], calls: Option<f64>) {
    let pairs = || turns.iter().zip(others);
    print!(
        "    {name}: {:.2} of its rate, {:.2} by the best turns ({:.0} k/s); CPU {:+.2} us a request, {:+.2} by the least",
        median(pairs().map(|(own, other)| other.time / own.time)),
        least(others.iter().map(|turn| turn.time)) / least(turns.iter().map(|turn| turn.time)),
        1e3 / least(turns.iter().map(|turn| turn.time)),
        median(pairs().map(|(own, other)| own.cpu - other.cpu)),
        least(turns.iter().map(|turn| turn.cpu)) - least(others.iter().map(|turn| turn.cpu)),
    );
    match calls {
        Some(calls) => println!("; {calls:.2} system calls"),
        None => println!(),
    }
}

pub fn main() {
    let args: Vec<_> = env::args().collect();
    let all = Work::all();
    if let Some(at) = args.iter().position(|arg| arg == "--work") {
        let files = Files::new();
        let number = |at: usize| args[at].parse::<usize>().expect("a number");
        let work = all[number(at + 1)];
        let mut sides = Who::ALL[number(at + 2)].sides(work, &files);
        turn(&mut sides, number(at + 3) as u32 / u32::from(work.queues));
        return;
    }
    let test = args.iter().any(|arg| arg == "--test");
    let wanted = args.iter().skip(1).find(|arg| !arg.starts_with("--"));
    let files = Files::new();
    for (number, work) in all.into_iter().enumerate() {
        let name = work.name();
        if wanted.is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let (turns, requests) = if test { (1, 500) } else { (work.turns, work.requests) };
        let mut sides = Who::ALL.map(|who| who.sides(work, &files));
        // Warm.
        sides.iter_mut().for_each(|sides| _ = turn(sides, requests / 4));
        let mut taken = Who::ALL.map(|_| Vec::new());
        // Who comes after whom may matter: the disk of a virtual machine, say, is slower after it was busy.
        for first in 0..turns {
            for who in (0..Who::ALL.len()).map(|who| (first + who) % Who::ALL.len()) {
                taken[who].push(turn(&mut sides[who], requests));
            }
        }
        let mut by_fio = Vec::new();
        let mut beside_fio = Vec::new();
        for _ in 0..if test { 1 } else { FIO_TURNS } {
            by_fio.extend(fio::turn(&work, work.path(&files)));
            beside_fio.push(turn(&mut sides[1], requests));
        }
        let [
            bare,
            ours,
            bare_registered,
            ours_registered,
            bare_waiting,
            ours_waiting,
            bare_at_once,
        ] = taken;
        let calls = |who| {
            if test {
                None
            } else {
                system_calls(by_itself(number, who))
            }
        };
        let least_of = |turns: &[Turn]| {
            (
                1e3 / least(turns.iter().map(|turn| turn.time)),
                least(turns.iter().map(|turn| turn.cpu)),
            )
        };
        let ((rate, cpu), calls_of_bare) = (least_of(&bare), calls(0));
        println!(
            "{name}\n    bare loop: {rate:.0} k/s; CPU {cpu:.2} us a request{}",
            calls_of_bare.map_or(String::new(), |calls| format!("; {calls:.2} system calls"))
        );
        compare("ours, which waits in its ring, beside it", &ours, &bare, calls(1));
        compare(
            "a bare loop that waits for descriptors, beside it",
            &bare_waiting,
            &bare,
            calls(4),
        );
        compare("ours, which waits so, beside the first", &ours_waiting, &bare, calls(5));
        compare("the same beside the second", &ours_waiting, &bare_waiting, None);
        compare("ours, memory registered, beside it", &ours_registered, &bare, calls(3));
        compare(
            "the same beside a bare loop that has it registered",
            &ours_registered,
            &bare_registered,
            None,
        );
        if !work.direct {
            compare(
                "a bare loop whose file never waits, beside it",
                &bare_at_once,
                &bare,
                calls(6),
            );
            compare(
                "ours, which waits in its ring, beside that one",
                &ours,
                &bare_at_once,
                None,
            );
        }
        if by_fio.len() == beside_fio.len() {
            compare("ours beside fio", &beside_fio, &by_fio, None);
            let calls = if test {
                None
            } else {
                system_calls(|requests| fio::command(&work, work.path(&files), Some(requests)))
            };
            let ((rate, cpu), calls) = (
                least_of(&by_fio),
                calls.map_or(String::new(), |calls| format!("; {calls:.2} system calls")),
            );
            println!("    fio: {rate:.0} k/s; CPU {cpu:.2} us a request{calls}");
        } else {
            println!("    fio is not installed, or cannot do it");
        }
    }
}
