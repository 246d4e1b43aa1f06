//! Signs of life on standard error: one line that changes on a terminal, a line for each crate elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

/// Counts what is done; shared by all jobs.
pub(crate) struct Progress {
    terminal: bool,
    what: &'static str,
    counts: Mutex<(usize, usize, usize)>,
}

impl Progress {
    /// Of `total` things.
    pub(crate) fn new(what: &'static str, total: usize) -> Self {
        Self { terminal: std::io::stderr().is_terminal(), what, counts: Mutex::new((0, 0, total)) }
    }

    /// More is to be done than was known.
    pub(crate) fn more(&self, n: usize) {
        self.change(|counts| counts.2 += n);
    }

    /// One is done, well or not.
    pub(crate) fn one(&self, good: bool) {
        self.change(|(done, kept, _)| {
            *done += 1;
            *kept += usize::from(good);
        });
    }

    /// Says a line of its own.
    pub(crate) fn line(&self, text: &str) {
        let clear = if self.terminal { "\r\u{1b}[K" } else { "" };
        let _ = writeln!(std::io::stderr(), "{clear}{text}");
    }

    fn change(&self, change: impl FnOnce(&mut (usize, usize, usize))) {
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut counts);
        if self.terminal {
            let (done, kept, total) = *counts;
            let _ = write!(std::io::stderr(), "\r\u{1b}[K{}: {done} of {total}, {kept} kept", self.what);
        }
    }
}
