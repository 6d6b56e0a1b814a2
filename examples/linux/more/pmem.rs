//! Persistent memory: a file system in a file, which the guest mounts and writes.

use std::{
    error::Error,
    fs::{File, OpenOptions},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use devisor::virtio::{
    QueueIndex, VirtioTransport,
    pmem::{Pmem, PmemOptions},
};

use super::{Around, Measured, More};
use crate::verdict::{Check, e2fsprogs, line};

/// A new file next to that one, with an empty ext4 in it.
pub fn persistent_file(beside: &Path, len: u64) -> Result<File, Box<dyn Error>> {
    let path = beside.with_extension("pmem");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).open(&path)?;
    file.set_len(len)?;
    let made = e2fsprogs("mkfs.ext4", &["-q", "-F"], &path).map_err(|error| format!("mkfs.ext4: {error}"))?;
    if !made.status.success() {
        return Err(format!("mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr)).into());
    }
    Ok(file)
}

pub fn plug(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let file = around.persistent.ok_or("there is no persistent memory")?;
    // Kept, to look at what is in it.
    let kept = file.try_clone()?;
    let window = around.room.persistent?;
    let region = window.base..window.base + window.len;
    let pmem = around.plug(Pmem::new(file.try_clone()?, PmemOptions::new(region))?)?;
    let (device, measured) = (pmem.transport(), Measured::default());

    let (heard, notes) = (Arc::clone(&device), measured.clone());
    let hear = move |line: &str| {
        if line.starts_with("pmem has ") {
            // When the guest powers off it resets the device.
            let counters = heard.queue_counters(QueueIndex(0));
            notes.note("flushes", counters.map_or(0, |counters| counters.requests));
        }
        Ok(())
    };
    let mounts = move |console: &str| -> Check {
        let mounted = line(console, "pmem is ")?;
        let word = line(console, "pmem has ")?;
        let flushes = measured.get("flushes")?;
        let failures = pmem.with(|pmem| pmem.host_failures().count);
        let image = PathBuf::from(format!("/proc/{}/fd/{}", process::id(), kept.as_raw_fd()));
        let read = e2fsprogs("debugfs", &["-R", "cat /word"], &image).map_err(|error| format!("debugfs: {error}"))?;
        let found = String::from_utf8_lossy(&read.stdout);
        let how = format!("{mounted}; the file has {:?}, after {flushes} flushes", found.trim());
        let right = found.trim() == word && word.len() == 16 && flushes != 0 && failures == 0;
        right.then(|| how.clone()).ok_or(how)
    };
    let more = More {
        hear: Box::new(hear),
        checks: vec![(
            "the file has what the guest wrote to persistent memory",
            Box::new(mounts),
        )],
    };
    Ok((device, more))
}
