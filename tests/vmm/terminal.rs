//! The terminal is put back to what it was, however the VMM ends.

use std::{
    fs::File,
    io::{self, Read, Write},
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    process::{Child, Stdio},
    ptr, thread,
    time::{Duration, Instant},
};

use crate::{FAILED, guests, has_kvm, status, vmm};

const PATIENCE: Duration = Duration::from_secs(20);

/// A pseudo terminal: the end of the user and that of the program.
fn terminal() -> (File, OwnedFd) {
    let (mut user, mut program) = (-1, -1);
    // SAFETY: two descriptors are written to where there is room for them; the rest may be null.
    let opened = unsafe { libc::openpty(&mut user, &mut program, ptr::null_mut(), ptr::null(), ptr::null()) };
    assert_eq!(opened, 0);
    // SAFETY: both were just opened, and are nobody else's.
    unsafe { (File::from_raw_fd(user), OwnedFd::from_raw_fd(program)) }
}

/// Input, output, control and local modes.
fn modes(terminal: &impl AsRawFd) -> [libc::tcflag_t; 4] {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: there is room for the settings.
    let got = unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) };
    assert_eq!(got, 0);
    // SAFETY: the call has written them.
    let settings = unsafe { settings.assume_init() };
    [settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag]
}

fn wait_until(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !look() {
        assert!(Instant::now() < deadline, "waited until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Runs `kernel` on a terminal until that is raw, does `act`, and expects the terminal as it was.
fn check(kernel: &Path, act: impl FnOnce(&mut File, &Child), expected: Option<i32>) {
    let (mut user, program) = terminal();
    let before = modes(&program);
    let mut vmm = vmm();
    vmm.arg(kernel).stdin(Stdio::from(program.try_clone().unwrap()));
    let mut child = vmm.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut ended = None;
    wait_until("the terminal is raw", || {
        ended = child.try_wait().unwrap();
        ended.is_some() || modes(&program)[3] & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    });
    act(&mut user, &child);
    let status = ended.unwrap_or_else(|| child.wait().unwrap());
    assert_eq!(status.code(), expected);
    assert_eq!(modes(&program), before);
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: the process is this one's child, and not waited for yet.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

#[test]
fn the_terminal_is_restored_when_the_guest_ends_itself() {
    if has_kvm() {
        let echo = guests::echo();
        check(&echo, |user, _| user.write_all(b"hello\x03q").unwrap(), Some(status(0)));
    }
}

#[test]
fn the_terminal_is_restored_when_the_guest_fails() {
    if has_kvm() {
        check(&guests::triple_fault(), |_, _| (), Some(FAILED));
    }
}

#[test]
fn the_terminal_is_restored_when_the_user_quits() {
    if has_kvm() {
        check(&guests::halt(), |user, _| user.write_all(b"\x01x").unwrap(), Some(0));
    }
}

#[test]
fn the_user_can_quit_also_when_the_guest_does_not_take_what_is_typed() {
    if has_kvm() {
        let typed = [&[b'.'; 600][..], b"\x01x"].concat();
        check(&guests::halt(), |user, _| user.write_all(&typed).unwrap(), Some(0));
    }
}

#[test]
fn the_user_can_quit_also_when_nobody_takes_what_the_guest_prints() {
    if !has_kvm() {
        return;
    }
    let (mut reader, stdout) = io::pipe().unwrap();
    let (mut user, program) = terminal();
    let mut vmm = vmm();
    vmm.arg(guests::flood()).stdin(Stdio::from(program));
    let mut child = vmm.stdout(stdout).spawn().unwrap();
    drop(vmm);
    reader.read_exact(&mut [0]).unwrap();
    wait_until("the pipe is full", || {
        let mut waiting = [0; 2];
        for bytes in &mut waiting {
            // SAFETY: it writes one number, to where there is one.
            let asked = unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, bytes as *mut i32) };
            assert_eq!(asked, 0);
            thread::sleep(Duration::from_millis(100));
        }
        waiting[0] == waiting[1] && waiting[0] > 0x8000
    });
    user.write_all(b"\x01x").unwrap();
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        match child.try_wait().unwrap() {
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            None => child.kill().unwrap(),
            Some(ended) => break ended,
        }
    };
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn the_terminal_is_restored_when_a_signal_ends_it() {
    if has_kvm() {
        for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            check(&guests::halt(), |_, child| signal(child, number), None);
        }
    }
}

#[test]
fn what_the_guest_prints_is_there_before_it_ends() {
    if !has_kvm() {
        return;
    }
    let (mut user, program) = terminal();
    let mut vmm = vmm();
    vmm.arg(guests::hello());
    vmm.stdin(Stdio::from(program.try_clone().unwrap()))
        .stdout(Stdio::from(program));
    let ended = vmm.spawn().unwrap().wait().unwrap();
    assert_eq!(ended.code(), Some(status(3)));
    let mut shown = [0; 64];
    let len = user.read(&mut shown).unwrap();
    assert_eq!(shown[..len], *b"real mode\r\n");
}
