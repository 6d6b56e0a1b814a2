//! `devisord`: the conventions for back-end programs, and one that is killed in the middle of its work.

use std::{
    os::{
        fd::AsRawFd,
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::skip::skipped;

/// A program that ends with its test.
pub struct Running(pub Child);

impl Running {
    /// Holds it up; it has stopped when this returns.
    pub fn stop(&self) {
        let id = self.0.id();
        // Its end is left for who drops it.
        let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
        // SAFETY: a child that has not been waited for; zeros are a `siginfo_t`, which outlives the call.
        let stopped = unsafe {
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            libc::kill(id as i32, libc::SIGSTOP);
            libc::waitid(libc::P_PID, id, &raw mut info, options) == 0 && info.si_code == libc::CLD_STOPPED
        };
        assert!(stopped, "it has ended by itself");
    }

    pub fn go_on(&self) {
        // SAFETY: a child that has not been waited for.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGCONT) };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The example, if it was built: `cargo test` builds it with the features that it needs.
pub fn devisord() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let path = test.parent()?.parent()?.join("examples/devisord");
    if !path.is_file() {
        skipped("the example devisord is not built");
        return None;
    }
    Some(path)
}

pub fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("devisor-vhost-user-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder for sockets");
    path
}

/// Whether a socket listens there: it has its name before. One of another network namespace is not listed.
fn listens(path: &std::path::Path) -> bool {
    if !path.exists() {
        return false;
    }
    let all = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let same = all.lines().filter(|line| line.ends_with(&path.display().to_string()));
    let flags: Vec<_> = same.filter_map(|line| line.split_whitespace().nth(3)).collect();
    flags.is_empty() || flags.contains(&"00010000")
}

pub fn wait_for(path: &std::path::Path) {
    let begun = Instant::now();
    while !listens(path) {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "no socket at {}",
            path.display()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_prints_its_capabilities_and_refuses_what_it_does_not_know() {
    let Some(program) = devisord() else { return };
    let printed = Command::new(&program)
        .args(["blk", "--print-capabilities"])
        .output()
        .unwrap();
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("\"type\": \"block\""), "{printed}");
    for wrong in [
        &["blk"][..],
        &["rng", "--socket-path", "/nowhere/s"],
        &["rng", "--fd", "77"],
        &["toaster", "--fd=0"],
        &["--what"],
    ] {
        let refused = Command::new(&program)
            .args(wrong)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!refused.status.success(), "{wrong:?}");
        assert!(refused.stderr.starts_with(b"devisord: "), "{wrong:?}");
    }
}

#[test]
fn it_ends_cleanly_on_sigterm_and_takes_its_socket_with_it() {
    let Some(program) = devisord() else { return };
    let folder = folder("sigterm");
    let socket = folder.join("s");
    let mut running = Running(
        Command::new(program)
            .arg("rng")
            .arg("--socket-path")
            .arg(&socket)
            .spawn()
            .unwrap(),
    );
    wait_for(&socket);
    let connection = UnixStream::connect(&socket).unwrap();
    // SAFETY: it is this test's child, which has not been waited for.
    unsafe { libc::kill(running.0.id() as i32, libc::SIGTERM) };
    assert!(running.0.wait().unwrap().success());
    assert!(!socket.exists());
    drop(connection);
}

/// Entropy, with a descriptor of ours as its own.
fn with_descriptor(program: PathBuf, descriptor: &impl AsRawFd) -> Running {
    let descriptor = descriptor.as_raw_fd();
    let mut command = Command::new(program);
    command.args(["rng", "--fd=20"]);
    // SAFETY: a system call that may be made there.
    unsafe {
        command.pre_exec(move || match libc::dup2(descriptor, 20) {
            ..0 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    Running(command.spawn().unwrap())
}

/// Whether it answers a front end.
fn assert_answers(socket: &UnixStream) {
    super::front::send(socket, &super::front::message(1, 1, &[]), &[]).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut answer = [0; 20];
    std::io::Read::read_exact(&mut &*socket, &mut answer).unwrap();
}

#[test]
fn it_takes_a_connection_by_its_descriptor_and_ends_with_it() {
    let Some(program) = devisord() else { return };
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut running = with_descriptor(program, &theirs);
    drop(theirs);
    assert_answers(&ours);
    drop(ours);
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn it_takes_a_socket_that_listens_by_its_descriptor_and_one_front_end_after_another() {
    let Some(program) = devisord() else { return };
    let folder = folder("listens");
    let path = folder.join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut running = with_descriptor(program, &listener);
    drop(listener);
    for _ in 0..3 {
        assert_answers(&UnixStream::connect(&path).unwrap());
    }
    assert!(running.0.try_wait().unwrap().is_none(), "it goes on");
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn it_connects_to_a_front_end_that_listens_and_ends_with_it() {
    let Some(program) = devisord() else { return };
    let folder = folder("connects");
    let path = folder.join("s");
    let connect = || Command::new(&program).arg("rng").arg("--connect").arg(&path).spawn();
    assert!(!connect().unwrap().wait().unwrap().success(), "nobody listens");
    let listener = UnixListener::bind(&path).unwrap();
    let mut running = Running(connect().unwrap());
    let (socket, _) = listener.accept().unwrap();
    assert_answers(&socket);
    drop(socket);
    assert!(running.0.wait().unwrap().success());
    assert!(path.exists(), "the socket is the front end's");
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn a_front_end_of_several_that_does_wrong_costs_the_others_nothing() {
    let Some(program) = devisord() else { return };
    let folder = folder("several");
    let paths = [folder.join("a"), folder.join("b")];
    let listeners = paths.each_ref().map(|path| UnixListener::bind(path).unwrap());
    let mut command = Command::new(program);
    command.args(["net", "--switch"]);
    for path in &paths {
        command.arg("--connect").arg(path);
    }
    let mut running = Running(command.spawn().unwrap());
    let [wrong, right] = listeners.map(|listener| listener.accept().unwrap().0);
    // Of no version that there is.
    super::front::send(&wrong, &super::front::message(1, 3, &[]), &[]).unwrap();
    wrong.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = std::io::Read::read(&mut &wrong, &mut [0]);
    for _ in 0..3 {
        assert_answers(&right);
    }
    drop(right);
    assert!(running.0.wait().unwrap().success(), "the last one has ended in order");
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn front_ends_that_do_wrong_again_and_again_flood_no_log() {
    let Some(program) = devisord() else { return };
    let folder = folder("floods");
    let path = folder.join("s");
    let mut command = Command::new(program);
    command.arg("rng").arg("--socket-path").arg(&path);
    let mut running = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    wait_for(&path);
    for _ in 0..300 {
        let wrong = UnixStream::connect(&path).unwrap();
        super::front::send(&wrong, &super::front::message(1, 3, &[]), &[]).unwrap();
        wrong.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = std::io::Read::read(&mut &wrong, &mut [0]);
    }
    // SAFETY: it is this test's child, which has not been waited for.
    unsafe { libc::kill(running.0.id() as i32, libc::SIGTERM) };
    assert!(running.0.wait().unwrap().success());
    let mut said = String::new();
    std::io::Read::read_to_string(running.0.stderr.as_mut().unwrap(), &mut said).unwrap();
    let lines = said.lines().count();
    assert!((1..60).contains(&lines), "{lines} lines");
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn a_daemon_whose_stderr_nobody_reads_any_more_goes_on() {
    let Some(program) = devisord() else { return };
    let folder = folder("unheard");
    let path = folder.join("s");
    let mut command = Command::new(program);
    command.arg("rng").arg("--socket-path").arg(&path);
    let mut running = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    drop(running.0.stderr.take());
    wait_for(&path);
    for _ in 0..3 {
        let wrong = UnixStream::connect(&path).unwrap();
        super::front::send(&wrong, &super::front::message(1, 3, &[]), &[]).unwrap();
        wrong.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = std::io::Read::read(&mut &wrong, &mut [0]);
        assert_answers(&UnixStream::connect(&path).unwrap());
    }
    assert!(running.0.try_wait().unwrap().is_none(), "it goes on");
    let _ = std::fs::remove_dir_all(&folder);
}
