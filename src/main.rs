//! The `coder` binary: parse, run, map errors to exit codes.

use std::process::ExitCode;

fn main() -> ExitCode {
    tailnet::cli::main()
}
