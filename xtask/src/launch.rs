//! Starts a program and watches it: live output, a log, wall time, peak memory, exit code.
//!
//! No shell is involved and nothing can ask a question: the standard input is empty. Success is the exit code, never a
//! word in the output.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often the child's memory is read.
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

/// Runs `program` in `dir`, copies what it says to the terminal and to `log`, and waits for its end.
///
/// # Errors
/// When it cannot be started or the log cannot be written; a program that fails is no error but an outcome.
pub(crate) fn run(program: &Path, args: &[String], dir: &Path, log: &Path) -> Result<Outcome> {
    let file = File::create(log).with_context(|| format!("cannot create the log {}", log.display()))?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let log = Arc::new(Mutex::new(file));
    let out = child.stdout.take().map(|pipe| copy(pipe, std::io::stdout(), Arc::clone(&log)));
    let err = child.stderr.take().map(|pipe| copy(pipe, std::io::stderr(), Arc::clone(&log)));
    let (status, peak_rss_bytes) = watch(&mut child)?;
    for reader in [out, err].into_iter().flatten() {
        // A reader only ends early when the terminal and the log are both gone.
        let _ = reader.join();
    }
    Ok(Outcome { code: exit_code(status), seconds: start.elapsed().as_secs_f64(), peak_rss_bytes })
}

fn copy(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    log: Arc<Mutex<File>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            // A closed terminal must not stop the child, whose output still goes to the log.
            let _ = to.write_all(&buffer[..n]).and_then(|()| to.flush());
            if let Ok(mut log) = log.lock() {
                let _ = log.write_all(&buffer[..n]);
            }
        }
    })
}

fn watch(child: &mut Child) -> Result<(ExitStatus, u64)> {
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Some(found) = std::fs::read_to_string(&status_file).ok().as_deref().and_then(peak_rss) {
            peak = peak.max(found);
        }
        if let Some(status) = child.try_wait().context("cannot wait for the program")? {
            return Ok((status, peak));
        }
        thread::sleep(POLL);
    }
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
        let outcome = run(Path::new("/bin/sh"), &["-c".into(), script.into()], dir.path(), &log).unwrap();
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
        let error = run(Path::new("/no/such/program"), &[], dir.path(), &dir.path().join("log")).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"));
    }
}
