//! Starts a program and watches it: live output, a log, wall time, peak memory, exit code.
//!
//! No shell is involved and nothing can ask a question: the standard input is empty. Success is the exit code, never a
//! word in the output. The program writes straight into its log, which this side reads along: if this side dies, the
//! program meets no closed pipe and can save what it has.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often output and memory are looked at.
const POLL: Duration = Duration::from_millis(20);

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// Its exit code; 128 + number for a signal.
    pub(crate) code: u8,
    /// Wall time in seconds.
    pub(crate) seconds: f64,
    /// The most memory it had at once, as far as the system tells.
    pub(crate) peak_rss_bytes: u64,
}

/// What happens to a log that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// It starts anew.
    New,
    /// It goes on, as the program does.
    Continued,
}

/// Runs `program` in `dir`, shows what it writes to the log `path`, and waits for its end.
///
/// # Errors
/// When it cannot be started or the log cannot be written; a program that fails is no error but an outcome.
pub(crate) fn run(program: &Path, args: &[String], dir: &Path, path: &Path, log: Log) -> Result<Outcome> {
    let log_error = || format!("cannot open the log {}", path.display());
    if log == Log::New {
        drop(File::create(path).with_context(log_error)?);
    }
    // Appending, so that the two streams do not overwrite each other.
    let open = || File::options().append(true).create(true).open(path).with_context(log_error);
    let (stdout, stderr) = (open()?, open()?);
    let mut output = File::open(path).with_context(log_error)?;
    output.seek(SeekFrom::End(0)).with_context(log_error)?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let (status, peak_rss_bytes) = watch(&mut child, &mut output)?;
    Ok(Outcome { code: exit_code(status), seconds: start.elapsed().as_secs_f64(), peak_rss_bytes })
}

fn watch(child: &mut Child, output: &mut File) -> Result<(ExitStatus, u64)> {
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Some(found) = std::fs::read_to_string(&status_file).ok().as_deref().and_then(peak_rss) {
            peak = peak.max(found);
        }
        let status = child.try_wait().context("cannot wait for the program")?;
        show(output);
        if let Some(status) = status {
            return Ok((status, peak));
        }
        thread::sleep(POLL);
    }
}

/// Copies what is new in the log to the terminal.
fn show(output: &mut File) {
    let mut new = Vec::new();
    // What cannot be shown is still in the log; a closed terminal must not stop the pipeline.
    let _ = output.read_to_end(&mut new);
    let mut terminal = std::io::stdout().lock();
    let _ = terminal.write_all(&new).and_then(|()| terminal.flush());
}

/// The high-water mark of the resident memory in bytes.
fn peak_rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|number| 128 + number)).unwrap_or(i32::from(u8::MAX));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> (Outcome, String) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let outcome = run(Path::new("/bin/sh"), &["-c".into(), script.into()], dir.path(), &log, Log::New).unwrap();
        (outcome, std::fs::read_to_string(&log).unwrap())
    }

    #[test]
    fn s29_success_is_the_exit_code_and_not_a_word_in_the_output() {
        let (outcome, log) = sh("echo error: 0 errors; echo FAILED panicked >&2; exit 0");
        assert_eq!(outcome.code, 0);
        assert!(log.contains("error: 0 errors") && log.contains("FAILED"), "{log}");
        let (outcome, log) = sh("exit 3");
        assert_eq!((outcome.code, log.as_str()), (3, ""));
        assert_eq!(sh("kill -9 $$").0.code, 137);
    }

    #[test]
    fn s29_a_program_that_asks_gets_an_end_of_file() {
        let (outcome, log) = sh("if read -r answer; then echo got; else echo nobody; fi");
        assert_eq!((outcome.code, log.as_str()), (0, "nobody\n"));
    }

    #[test]
    fn a_continued_log_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let say = |word: &str, kind| {
            run(Path::new("/bin/echo"), &[word.into()], dir.path(), &log, kind).unwrap();
            std::fs::read_to_string(&log).unwrap()
        };
        assert_eq!(say("a", Log::Continued), "a\n");
        assert_eq!(say("b", Log::Continued), "a\nb\n");
        assert_eq!(say("c", Log::New), "c\n");
    }

    #[test]
    fn time_and_memory_are_measured() {
        let (outcome, _) = sh("sleep 0.1");
        assert!(outcome.seconds >= 0.1, "{outcome:?}");
        if Path::new("/proc/self/status").exists() {
            assert!((1 << 16..1 << 30).contains(&outcome.peak_rss_bytes), "{outcome:?}");
        }
        assert_eq!(peak_rss("Name:\tx\nVmHWM:\t    1024 kB\n"), Some(1 << 20));
        assert_eq!(peak_rss("VmRSS: 3 kB"), None);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = run(Path::new("/no/such/program"), &[], dir.path(), &dir.path().join("log"), Log::New).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"));
    }
}
