//! The comparison.

mod bare;
mod ours;

use std::{
    env,
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::{self, Command},
    thread,
    time::Instant,
};

/// Bytes of the file.
const FILE: u64 = 256 << 20;
/// How often each of the two has its turn.
const TURNS: usize = 9;

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
                    let requests = match (direct, depth) {
                        (true, 1) => 1_500,
                        (true, _) => 6_000,
                        (false, 1) => 20_000,
                        (false, _) => 60_000,
                    };
                    all.push(Self {
                        direct,
                        writes,
                        len: 4096,
                        sequential: false,
                        depth,
                        queues,
                        requests: requests / u32::from(queues),
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
            });
        }
        all
    }

    fn open(&self, file: &Files) -> File {
        let (path, flags) = match self.direct {
            true => (&file.direct, libc::O_DIRECT),
            false => (&file.tmpfs, 0),
        };
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
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

/// One of the two, ready to go.
pub trait Side: Send {
    /// Does so many requests.
    fn run(&mut self, requests: u32);
}

/// What a turn has taken, in seconds.
#[derive(Clone, Copy)]
struct Turn {
    time: f64,
    cpu: f64,
}

fn turn(sides: &mut [Box<dyn Side>], requests: u32) -> Turn {
    let (cpu, start) = (cpu_time(), Instant::now());
    match sides {
        [side] => side.run(requests),
        sides => thread::scope(|scope| {
            sides.iter_mut().for_each(|side| _ = scope.spawn(|| side.run(requests)));
        }),
    }
    Turn {
        time: start.elapsed().as_secs_f64(),
        cpu: cpu_time() - cpu,
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn sides(work: Work, files: &Files, bare: bool) -> Vec<Box<dyn Side>> {
    match bare {
        true => (0..work.queues)
            .map(|queue| Box::new(bare::Bare::new(work, work.open(files), queue.into())) as Box<dyn Side>)
            .collect(),
        false => ours::new(work, work.open(files)),
    }
}

/// System calls of a request, as `strace` counts them: the difference of two runs of this program.
fn system_calls(number: usize, bare: bool) -> Option<f64> {
    let count = |requests: u32| {
        let program = env::current_exe().ok()?;
        let output = Command::new("strace")
            .args(["-f", "-c", "-qq"])
            .arg(program)
            .args(["--work", &number.to_string(), &bare.to_string(), &requests.to_string()])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().find(|line| line.trim_end().ends_with("total"))?;
        line.split_whitespace().nth(3)?.parse::<f64>().ok()
    };
    let (few, many) = (count(1_000)?, count(5_000)?);
    Some((many - few) / 4_000.0)
}

pub fn main() {
    let args: Vec<_> = env::args().collect();
    let all = Work::all();
    if let Some(at) = args.iter().position(|arg| arg == "--work") {
        let files = Files::new();
        let work = all[args[at + 1].parse::<usize>().expect("a number")];
        let requests: u32 = args[at + 3].parse().expect("a number");
        let mut sides = sides(work, &files, args[at + 2] == "true");
        turn(&mut sides, requests / u32::from(work.queues));
        return;
    }
    let wanted = args.iter().skip(1).find(|arg| !arg.starts_with("--"));
    let files = Files::new();
    for (number, &work) in all.iter().enumerate() {
        let name = work.name();
        if wanted.is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let (mut bare, mut ours) = (sides(work, &files, true), sides(work, &files, false));
        // Warm.
        turn(&mut bare, work.requests / 4);
        turn(&mut ours, work.requests / 4);
        let turns: Vec<_> = (0..TURNS)
            .map(|_| (turn(&mut bare, work.requests), turn(&mut ours, work.requests)))
            .collect();
        let count = f64::from(work.requests) * f64::from(work.queues);
        let rate = median(turns.iter().map(|(bare, ours)| bare.time / ours.time).collect());
        let best = |pick: fn(&(Turn, Turn)) -> f64| turns.iter().map(pick).fold(f64::INFINITY, f64::min);
        let micros = |seconds: f64| seconds / count * 1e6;
        let more = median(turns.iter().map(|(bare, ours)| micros(ours.cpu - bare.cpu)).collect());
        println!(
            "{name}: {rate:.2} of the bare loop's rate ({:.0} k/s, bare {:.0} k/s); CPU {more:+.2} us a request (bare {:.2} us)",
            count / best(|turn| turn.1.time) / 1e3,
            count / best(|turn| turn.0.time) / 1e3,
            micros(median(turns.iter().map(|turn| turn.0.cpu).collect())),
        );
        drop((bare, ours));
        if let (Some(bare), Some(ours)) = (system_calls(number, true), system_calls(number, false)) {
            println!("    system calls a request: {ours:.3}, bare {bare:.3}");
        }
    }
}
