// SPDX-License-Identifier: Apache-2.0
//! Programs that run to their end: what they print, and errors that say what was run and what it answered.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a program and returns what it wrote to its standard output.
///
/// # Errors
/// When it cannot be started or does not exit with 0; the message holds its standard error.
pub fn run<I, S>(program: impl AsRef<OsStr>, args: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    output_of(&mut command)
}

/// Runs the words of `line` as a program and its arguments; for fixed command lines whose words hold no spaces.
pub fn run_line(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("failed to run a command: the line is empty")?;
    run(program, words)
}

/// Runs a prepared command, see [`run`].
pub fn output_of(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start `{shown}`"))?;
    if !output.status.success() {
        bail!("failed to run `{shown}`: {}: {}", output.status, what_it_said(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a prepared command with its output going straight to the terminal, for builds that take their time.
pub fn stream(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("failed to start `{shown}`"))?;
    if !status.success() {
        bail!("failed to run `{shown}`: {status}");
    }
    Ok(())
}

/// The last `lines` lines of a file, indented, for error messages; says so when the file cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let all: Vec<&str> = text.lines().collect();
            let mut shown = String::new();
            for line in &all[all.len().saturating_sub(lines)..] {
                let _ = writeln!(shown, "    {line}");
            }
            shown
        }
        Err(error) => format!("    (failed to read {}: {error})\n", path.display()),
    }
}

fn show(command: &Command) -> String {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        shown.push(' ');
        shown.push_str(&arg.to_string_lossy());
    }
    shown
}

fn what_it_said(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = if stderr.trim().is_empty() {
        String::from_utf8_lossy(&output.stdout)
    } else {
        stderr
    };
    said.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{run, run_line, tail};

    #[test]
    fn an_error_names_the_command_and_what_it_said() {
        let error = run("sh", ["-c", "echo no such thing >&2; exit 3"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("sh -c"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("no such thing"), "{error}");
    }

    #[test]
    fn output_is_returned() {
        assert_eq!(run_line("echo a b").unwrap(), "a b\n");
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(file.path(), 2), "    two\n    three\n");
        assert_eq!(tail(file.path(), 9), "    one\n    two\n    three\n");
    }
}
