//! `tests/guest/fetch.sh` on a machine that lacks what it needs.
#![cfg(unix)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
};

/// What it says, and its status, where there are `tools` alone.
fn fetch(name: &str, tools: &[&str]) -> (String, Option<i32>) {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    let none = path.join("none");
    fs::write(&none, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&none, fs::Permissions::from_mode(0o755)).unwrap();
    for tool in tools {
        symlink(&none, path.join(tool)).unwrap();
    }
    let output = Command::new("/bin/sh")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/fetch.sh"))
        .env("PATH", &path)
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"");
    (String::from_utf8(output.stderr).unwrap(), output.status.code())
}

#[test]
fn what_is_missing_is_said_at_once_with_the_line_that_installs_it() {
    let (said, status) = fetch("fetch-debian", &["apt-get", "apt-cache", "dpkg", "mkfs.ext4"]);
    assert_eq!(
        said,
        "fetch.sh: missing: cpio xz. As root: apt-get update && apt-get install --yes cpio xz-utils\n"
    );
    assert_eq!(status, Some(1));
}

#[test]
fn a_machine_without_apt_is_told_no_line_that_it_cannot_run() {
    let (said, status) = fetch("fetch-elsewhere", &["cpio", "xz", "mkfs.ext4"]);
    assert_eq!(
        said,
        "fetch.sh: missing: apt-get apt-cache dpkg. This takes Debian's packages, with Debian's tools\n"
    );
    assert_eq!(status, Some(1));
}
