//! What the fuzz targets run: bytes in, claims checked inside. `fuzz/` only calls these.
//!
//! A function here must hold for every input; a breach is a panic. `cargo test` replays the committed corpus and mutates it.

mod coord;
mod netstack;
mod node;
mod tunnel;
mod wire;

pub use coord::{coord_stream, drpc};
pub use netstack::ip_demux;
pub use node::node_steps;
pub use tunnel::{path_steps, wg_datagram};
pub use wire::{derp_frames, disco, events, pty, relay_map, sftp, speedtest, stun};

/// Runs one input; a claim that does not hold is a panic.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus folder.
pub const TARGETS: &[(&str, Target)] = &[
    ("coord_stream", coord_stream),
    ("derp_frames", derp_frames),
    ("disco", disco),
    ("drpc", drpc),
    ("events", events),
    ("ip_demux", ip_demux),
    ("node_steps", node_steps),
    ("path_steps", path_steps),
    ("pty", pty),
    ("relay_map", relay_map),
    ("sftp", sftp),
    ("speedtest", speedtest),
    ("stun", stun),
    ("wg_datagram", wg_datagram),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use std::{fs, path::Path};

    const MAX_FILES: usize = 20;
    const MAX_BYTES: usize = 4_096;

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    #[test]
    fn every_target_has_a_small_corpus_and_a_fuzz_target_and_nothing_else_does() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let names = |folder: &str| {
            let entries = fs::read_dir(fuzz.join(folder)).unwrap();
            let names = entries.map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let targets: std::collections::BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names("corpus"), targets);
        assert_eq!(names("fuzz_targets"), targets);
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        for name in targets {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml lacks {name}");
            let inputs = corpus(&name);
            assert!(inputs.len() <= MAX_FILES, "{name} has {} inputs", inputs.len());
            assert!(inputs.iter().all(|input| input.len() <= MAX_BYTES), "{name} has an input that is too long");
        }
    }

    #[test]
    fn every_target_holds_on_its_corpus() {
        for (name, target) in TARGETS {
            let inputs = corpus(name);
            assert!(!inputs.is_empty(), "{name} has no corpus");
            target(&[]);
            inputs.iter().for_each(|input| target(input));
        }
    }

    #[test]
    fn every_target_holds_on_damaged_inputs_of_its_corpus() {
        let mut rng = Rng::from_u64(5);
        for (name, target) in TARGETS {
            for input in corpus(name) {
                // A run of a whole network takes 50 ms, one of a codec microseconds.
                let tries = if *name == "node_steps" { 20 } else { 200 };
                for _ in 0..tries {
                    let mut damaged = input.clone();
                    for _ in 0..=rng.below(6) {
                        let at = rng.below(damaged.len() as u64) as usize;
                        match rng.below(3) {
                            0 => damaged[at] = rng.u32() as u8,
                            1 => damaged.truncate(at + 1),
                            _ => damaged.insert(at, rng.u32() as u8),
                        }
                    }
                    target(&damaged);
                }
            }
        }
    }
}
