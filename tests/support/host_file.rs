//! Files and block devices of the host that go away with the test.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

/// A file that is gone when this is dropped.
pub struct Temporary(PathBuf);

impl Temporary {
    pub fn new(contents: &[u8]) -> Self {
        Self::within(&std::env::temp_dir(), contents).expect("a temporary file")
    }

    pub fn within(folder: &Path, contents: &[u8]) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("devisor-block-{}-{count}", process::id()));
        fs::write(&path, contents)?;
        Ok(Self(path))
    }

    pub fn contents(&self) -> Vec<u8> {
        fs::read(&self.0).expect("the temporary file")
    }
}

impl AsRef<Path> for Temporary {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A block device over a file, which goes away when this is dropped.
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// With logical blocks of `block_size` bytes.
    ///
    /// # Errors
    /// Why there is none here.
    pub fn new(file: &Temporary, block_size: u32) -> Result<Self, String> {
        Self::set_up(file, &["--sector-size", &block_size.to_string()])
    }

    /// One that refuses writes, though it can be opened for writing.
    ///
    /// # Errors
    /// Why there is none here.
    pub fn read_only(file: &Temporary) -> Result<Self, String> {
        Self::set_up(file, &["--read-only"])
    }

    fn set_up(file: &Temporary, options: &[&str]) -> Result<Self, String> {
        let mut losetup = Command::new("losetup");
        let output = losetup.args(["--find", "--show"]).args(options).arg(&file.0).output();
        let output = output.map_err(|error| format!("losetup: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(Self(text(&output.stdout).into())),
            false => Err(text(&output.stderr)),
        }
    }
}

impl AsRef<Path> for LoopDevice {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}
