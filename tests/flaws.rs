//! The page `flaws` of the documentation: each test that it names is there, and each report that it names has a link.

#[path = "support/named.rs"]
mod named;

use std::collections::BTreeSet;

use named::{has_test, is_there};

const PAGE: &str = include_str!("../src/flaws.md");

/// The cells of each row, without headings.
fn rows() -> Vec<Vec<&'static str>> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let rows = PAGE.lines().filter(|line| line.starts_with('|')).map(cells);
    rows.filter(|row| row[0] != "report" && !row[0].starts_with("---"))
        .collect()
}

/// What stands between `open` and `close`.
fn between(text: &str, open: char, close: char) -> Vec<&str> {
    text.split(open)
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(close)?.0))
        .collect()
}

/// The tests that `cell` names, each with its file: `` `tests/x.rs`: `one`, `another`; `tests/y.rs`: `third` ``.
fn tests(cell: &str) -> Vec<(&str, &str)> {
    let mut tests = Vec::new();
    for place in cell.split("; ") {
        let (file, names) = place
            .split_once(": ")
            .unwrap_or_else(|| panic!("{place} is no `file`: `test`"));
        let file = file.trim_matches('`');
        let names = names.split(", ").map(|name| {
            let name = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'));
            (file, name.unwrap_or_else(|| panic!("{place} is no `file`: `test`")))
        });
        tests.extend(names);
    }
    tests
}

#[test]
fn every_test_that_the_page_names_is_in_the_file_that_it_names() {
    let rows = rows();
    assert!(rows.len() > 30, "{} rows", rows.len());
    let mut missing = Vec::new();
    for row in rows {
        let [report, _, _, shown] = row[..] else {
            panic!("{row:?} is no row of four cells")
        };
        for (file, name) in tests(shown) {
            if !is_there(file, name) {
                missing.push(format!("{report}: {file} has no test {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
}

#[test]
fn every_report_has_a_link_and_every_link_its_report() {
    let named: BTreeSet<_> = rows().iter().flat_map(|row| between(row[0], '[', ']')).collect();
    let linked = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix('[')?.split_once("]: http"));
    let linked: BTreeSet<_> = linked.map(|(name, _)| name).collect();
    assert_eq!(named, linked);
}

#[test]
fn a_test_that_is_missing_or_none_is_noticed() {
    let source =
        "#[test]\n#[ignore]\n// why\nfn one() {}\n\nfn helper() {}\n    #[test]\n    fn inner(a in any()) {}\n";
    assert!(has_test(source, "one") && has_test(source, "inner"));
    assert!(!has_test(source, "helper") && !has_test(source, "other") && !has_test(source, "on"));
    assert_eq!(
        tests("`tests/x.rs`: `one`, `two`; `tests/y.rs`: `three`"),
        [("tests/x.rs", "one"), ("tests/x.rs", "two"), ("tests/y.rs", "three")]
    );
}
