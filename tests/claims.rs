//! `tests/README.md` names tests that exist and run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{fs, path::Path};

#[test]
fn every_test_that_the_table_names_exists_and_is_not_ignored() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("tests/README.md")).unwrap();
    let named: Vec<(&str, &str)> = table.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs::")).collect();
    assert!(named.len() > 20, "the table holds too little: {named:?}");
    for (file, name) in named {
        let source = fs::read_to_string(root.join(file).with_extension("rs")).unwrap_or_else(|e| panic!("{file}.rs: {e}"));
        let function = format!("fn {name}()");
        let at = source.find(&function).unwrap_or_else(|| panic!("{file}.rs has no {name}"));
        let line = source[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let attributes: Vec<&str> = source[..line].lines().rev().take_while(|l| l.trim().starts_with("#[")).collect();
        let is_test = attributes.iter().any(|a| a.contains("#[test]") || a.contains("#[tokio::test"));
        assert!(is_test && !attributes.iter().any(|a| a.contains("ignore")), "{name} does not run: {attributes:?}");
    }
}
