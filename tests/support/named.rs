//! Whether a test that a table names is there.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::{fs, path::Path};

/// Whether `source` has a test of that name.
pub fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<_> = source.lines().map(str::trim_start).collect();
    let heading = format!("fn {name}(");
    lines.iter().enumerate().any(|(number, line)| {
        let above = lines[..number].iter().rev();
        line.starts_with(&heading)
            && above
                .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
                .any(|line| *line == "#[test]")
    })
}

/// Whether the file, from the root of the package, has it.
pub fn is_there(file: &str, name: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(path).is_ok_and(|source| has_test(&source, name))
}
