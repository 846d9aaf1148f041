//! The house stands: no layer names a higher one, siblings never name each other, and each library stays in its room.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folder below `src` and the crate paths that it must not name.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("base", &["crate::wire", "crate::proto", "crate::driver", "crate::net", "crate::sim"]),
    ("wire", &["crate::proto", "crate::driver", "crate::net", "crate::sim"]),
    ("proto", &["crate::driver", "crate::net", "crate::sim"]),
    ("sim", &["crate::driver", "crate::net"]),
    ("driver", &["crate::net"]),
    ("client", &["crate::agent", "crate::server"]),
    ("agent", &["crate::client", "crate::server"]),
    ("server", &["crate::client", "crate::agent"]),
    ("ffi", &["crate::client", "crate::agent", "crate::server"]),
];
/// What everything below L7 must not name.
const PRODUCTS: &[&str] = &["crate::client", "crate::agent", "crate::server", "crate::ffi", "crate::cli"];
/// The sans-IO layers and what they must not know.
const SANS_IO: &[&str] = &["base", "wire", "proto", "sim"];
const IO: &[&str] = &[
    "tokio",
    "futures::",
    "async fn",
    ".await",
    "std::net::UdpSocket",
    "std::net::Tcp",
    "std::fs",
    "std::env",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "Mutex",
    "RwLock",
    "Waker",
    "rand::rng()",
    "std::process",
];
/// Engines of L2: none names another.
const ENGINES: &[&str] = &["wg", "path", "relay", "netcheck", "netstack", "coord"];
/// A library and the only folders that may name it.
const ROOMS: &[(&str, &[&str])] = &[
    ("smoltcp", &["proto/netstack"]),
    ("boringtun", &["proto/wg"]),
    ("quinn_udp", &["driver/sockets"]),
    ("reqwest", &["driver"]),
    ("rustls", &["driver", "server"]),
    ("tokio_rustls", &["server"]),
    ("argon2", &["server"]),
    ("tokio_websockets", &["driver"]),
    ("hyper", &["driver", "server", "agent/api"]),
    ("russh", &["agent/ssh", "cli/ssh"]),
    ("axum", &["server"]),
    ("sqlx", &["server"]),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The code of a file at `relative`: no comments, nothing from its first unit-test module on, and behind it every path that
/// a `use` tree names, written out and seen from the crate's root.
fn code(path: &Path, relative: &str) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut text = text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let paths: Vec<String> =
        text.split("use ").skip(1).filter_map(|u| u.split_once(';')).flat_map(|(tree, _)| written_out(tree)).collect();
    let mut module: Vec<&str> = relative.trim_end_matches(".rs").split('/').collect();
    module.pop_if(|last| *last == "mod");
    for path in paths {
        text.push_str("\nuse ");
        text.push_str(&from_root(&path, &module));
        text.push(';');
    }
    text
}

/// The paths of a `use` tree: `a::{b, c::{d}}` names `a::b` and `a::c::d`.
fn written_out(tree: &str) -> Vec<String> {
    let tree: String = tree.chars().filter(|c| !c.is_whitespace()).collect();
    let Some((head, rest)) = tree.split_once('{') else { return vec![tree] };
    let mut depth = 0;
    let parts = rest.trim_end_matches('}').len();
    let inner = &rest[..parts + rest[parts..].len().saturating_sub(1)];
    inner
        .split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        })
        .filter(|part| !part.is_empty())
        .flat_map(written_out)
        .map(|path| format!("{head}{path}"))
        .collect()
}

/// A path with its `self` and `super` resolved in `module`.
fn from_root(path: &str, module: &[&str]) -> String {
    let mut at = module.to_vec();
    let mut rest = path;
    loop {
        if let Some(after) = rest.strip_prefix("super::") {
            at.pop();
            rest = after;
        } else if let Some(after) = rest.strip_prefix("self::") {
            rest = after;
        } else if rest == path {
            return path.to_owned();
        } else {
            return format!("crate::{}::{rest}", at.join("::"));
        }
    }
}

/// Whether `text` names the crate or path `name` as a whole word.
fn names(text: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let open = !name.ends_with(word);
    let bare = !name.starts_with(word);
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back().is_none_or(|c| !word(c) && c != '"');
        let after = text[at + name.len()..].chars().next().is_none_or(|c| !word(c) && c != '"');
        (before || bare) && (after || open)
    })
}

fn breaches() -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 20, "the sources were not found");
    let mut found = Vec::new();
    for path in files {
        let relative = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        let text = code(&path, &relative);
        let mut forbid = |name: &str, why: &str| {
            if names(&text, name) {
                found.push(format!("{relative} names {name}: {why}"));
            }
        };
        let layer = relative.split('/').next().unwrap();
        for (folder, list) in FORBIDDEN.iter().filter(|(folder, _)| *folder == layer) {
            list.iter().for_each(|name| forbid(name, &format!("{folder} lies below or beside it")));
        }
        if ["base", "wire", "proto", "sim", "driver", "net"].contains(&layer) {
            PRODUCTS.iter().for_each(|name| forbid(name, "products lie above"));
        }
        if layer != "cli" && layer != "main.rs" && layer != "lib.rs" {
            forbid("crate::cli", "only main names the command line");
        }
        if SANS_IO.contains(&layer) {
            IO.iter().for_each(|name| forbid(name, "L0 to L3 are sans-IO"));
        }
        if let Some(engine) = ENGINES.iter().find(|e| relative.starts_with(&format!("proto/{e}"))) {
            for other in ENGINES.iter().filter(|e| *e != engine).chain(&["node"]) {
                forbid(&format!("proto::{other}"), "engines meet only in proto::node");
            }
        }
        for (library, rooms) in ROOMS {
            if !rooms.iter().any(|room| relative.starts_with(room)) {
                forbid(library, &format!("it lives only in {rooms:?}"));
            }
        }
    }
    found
}

#[test]
fn no_file_breaches_the_layers() {
    let found = breaches();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_check_sees_through_use_trees() {
    assert_eq!(
        written_out("crate::{base::X, driver::{clock, dns::resolve}}"),
        ["crate::base::X", "crate::driver::clock", "crate::driver::dns::resolve"]
    );
    assert_eq!(written_out("std::{fs, io::{self, Read}}"), ["std::fs", "std::io::self", "std::io::Read"]);
    assert_eq!(from_root("super::super::path::Paths", &["proto", "wg", "peer"]), "crate::proto::path::Paths");
    assert_eq!(from_root("super::peer::Peer", &["proto", "wg", "peer"]), "crate::proto::wg::peer::Peer");
}

#[test]
fn the_check_sees_whole_words_only() {
    assert!(names("use smoltcp::wire;", "smoltcp"));
    assert!(!names("use smoltcps::wire;", "smoltcp"));
    assert!(!names("// \"smoltcp\"", "hyper"));
    assert!(names("x.await", ".await"));
    assert!(names("pub async fn x()", "async fn"));
    assert!(!names("use hyper_util::rt;", "hyper"));
}

#[test]
fn the_top_level_holds_what_the_design_lists() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "examples",
        "fuzz",
        "tests",
        "benches",
        "README.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "target",
    ];
    for entry in fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || allowed.contains(&name.as_str()), "the top level holds {name}");
    }
}
