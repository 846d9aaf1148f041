//! Questions with yes or no.

use crate::{
    cli::output,
    driver::{stdio::Stdin, terminal::Terminals},
};
use anyhow::{Context as _, bail};
use std::time::Duration;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

/// How long an answer may take where no person sits before a terminal.
const LIMIT: Duration = Duration::from_secs(5);

/// What a question ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    /// Standard input has ended.
    Nobody,
}

/// Asks on standard output, or on standard error where the former belongs to a result.
pub(super) struct Questions {
    /// Whether everything is answered with yes.
    yes: bool,
    on_stderr: bool,
    /// Made with the first question; lines behind its answer are for the next one.
    input: Option<BufReader<Stdin>>,
}

impl Questions {
    pub(super) const fn new(yes: bool, on_stderr: bool) -> Self {
        Self { yes, on_stderr, input: None }
    }

    /// The answer to a question; an empty line means yes.
    ///
    /// # Errors
    /// When standard input is no terminal and nothing comes from it.
    pub(super) async fn ask(&mut self, question: &str) -> anyhow::Result<Answer> {
        if self.yes {
            return Ok(Answer::Yes);
        }
        let text = format!("> {question} (yes/no) ");
        if self.on_stderr {
            output::note(&text)
        } else {
            output::raw(&text)?
        }
        let mut line = String::new();
        let input = self.input.get_or_insert_with(|| BufReader::new(Stdin::open()));
        let read = input.read_line(&mut line);
        let read = if Terminals::of_process().input {
            read.await
        } else {
            match timeout(LIMIT, read).await {
                Ok(read) => read,
                Err(_) => bail!("no answer came from standard input within {} s: pass --yes", LIMIT.as_secs()),
            }
        };
        let length = read.context("cannot read the answer from standard input")?;
        if !self.on_stderr && (length == 0 || !Terminals::of_process().input) {
            // Nobody's Enter has ended the line.
            output::raw("\n")?;
        }
        Ok(match line.trim().to_ascii_lowercase().as_str() {
            _ if length == 0 => Answer::Nobody,
            "" | "y" | "yes" => Answer::Yes,
            _ => Answer::No,
        })
    }
}
