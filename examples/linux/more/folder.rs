//! A folder for the sockets of a run: it goes when the run ends, or before the next one if it was killed.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process,
};

const PREFIX: &str = "devisor-linux-";

/// A folder of this process, removed with all that is in it when this is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// For a device of this name. Folders of processes that are gone are removed first.
    pub fn new(name: &str) -> io::Result<Self> {
        Self::within(&env::temp_dir(), name)
    }

    fn within(parent: &Path, name: &str) -> io::Result<Self> {
        remove_abandoned(parent)?;
        let path = parent.join(format!("{PREFIX}{}-{name}", process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Where something of this name is in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn remove_abandoned(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let process = process.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        let is_gone = |process| !Path::new(&format!("/proc/{process}")).exists();
        if process.is_some_and(is_gone) && entry.file_type()?.is_dir() {
            // Another run may be at it as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_killed_leaves_nothing_once_there_is_another() {
        let parent = env::temp_dir().join(format!("devisor-folder-test-{}", process::id()));
        fs::create_dir(&parent).unwrap();
        let mut gone = process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let (killed, runs) = (
            parent.join(format!("{PREFIX}{}-vsock", gone.id())),
            parent.join(format!("{PREFIX}1-vsock")),
        );
        for path in [&killed, &runs] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("socket"), "").unwrap();
        }
        let folder = Folder::within(&parent, "vsock").unwrap();
        assert!(!killed.exists());
        assert!(runs.join("socket").exists(), "that one still runs");
        let socket = folder.join("socket");
        fs::write(&socket, "").unwrap();
        drop(folder);
        assert!(!socket.parent().unwrap().exists());
        fs::remove_dir_all(&parent).unwrap();
    }
}
