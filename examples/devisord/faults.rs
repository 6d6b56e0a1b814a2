//! Memory that a front end takes away under us: a file that it makes shorter raises SIGBUS where it is used. What is missing becomes
//! zeros, for this process alone, until the connection is ended for it: from there on to the end, which is missing too, for there are
//! only so many mappings, and each page that is another's would be one.

use std::{
    io, mem,
    ops::Range,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

static FAULTED: AtomicBool = AtomicBool::new(false);

/// Where the disk is mapped: its data is nothing that zeros could stand for.
static DISK: OnceLock<Range<usize>> = OnceLock::new();

/// Sizes of pages that a front end's file may have.
const PAGES: [usize; 3] = [4096, 2 << 20, 1 << 30];

/// Has SIGBUS handled so, for the whole process.
pub fn handle() -> io::Result<()> {
    // SAFETY: all zeros are a valid `sigaction`; the handler calls what a handler may, and nothing else.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        match libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Has a fault within these end the process, as it would without a handler.
pub fn not_within(disk: Range<*mut u8>) -> io::Result<()> {
    let set = DISK.set(disk.start as usize..disk.end as usize);
    set.map_err(|_| io::Error::other("there is a disk that is mapped already"))
}

/// Whether there was a fault since this was asked last.
pub fn take() -> bool {
    FAULTED.swap(false, Ordering::SeqCst)
}

extern "C" fn handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    FAULTED.store(true, Ordering::SeqCst);
    // SAFETY: the kernel has filled it in. The page at this address is one of a mapping that cannot be accessed: nothing is lost by
    // putting another in its place. What it is a part of is unmapped as before.
    unsafe {
        let address = (*info).si_addr() as usize;
        let is_disk = DISK.get().is_some_and(|disk| disk.contains(&address));
        let end = end_of_mapping(address);
        let put = |page: &usize| {
            let start = address & !(page - 1);
            let len = end.map_or(*page, |end| end - start);
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            match libc::mmap(start as *mut libc::c_void, len, prot, flags, -1, 0) {
                libc::MAP_FAILED => *libc::__errno_location(),
                _ => 0,
            }
        };
        // A part of a huge page is invalid. What fails otherwise is of this size, and around it is what is nobody's to replace.
        let replaced = (*info).si_code == libc::BUS_ADRERR
            && !is_disk
            && PAGES.iter().map(put).find(|error| *error != libc::EINVAL) == Some(0);
        if !replaced {
            // It comes again, and ends the process.
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        }
    }
}

/// Where the mapping ends in which an address is. It calls what a handler may.
fn end_of_mapping(address: usize) -> Option<usize> {
    // SAFETY: the name is a string.
    let maps = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if maps < 0 {
        return None;
    }
    let mut found = None;
    // A line begins with two numbers: "7f0000000000-7f0000100000 rw-s".
    let (mut numbers, mut number) = ([0; 2], 0);
    let mut piece = [0; 4096];
    while found.is_none() {
        // SAFETY: there is room for as many bytes as are asked for.
        let read = unsafe { libc::read(maps, piece.as_mut_ptr().cast(), piece.len()) };
        let Some(bytes @ [_, ..]) = usize::try_from(read).ok().and_then(|read| piece.get(..read)) else {
            break;
        };
        for &byte in bytes {
            match (byte, number) {
                (b'\n', _) => (numbers, number) = ([0; 2], 0),
                (b'-', 0) => number = 1,
                (b' ', 1) => {
                    number = 2;
                    found = found.or((numbers[0]..numbers[1]).contains(&address).then_some(numbers[1]));
                }
                (digit, 0 | 1) => {
                    let digit = char::from(digit).to_digit(16).unwrap_or(0);
                    numbers[number] = numbers[number] << 4 | digit as usize;
                }
                _ => {}
            }
        }
    }
    // SAFETY: it is open, and this function's own.
    unsafe { libc::close(maps) };
    found
}
