//! SIGTERM and SIGINT as a wish: the loop saves and stops at the next step.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

/// A wish to stop, shared by the signal handlers, the live view and the loop.
#[derive(Clone, Debug, Default)]
pub struct StopSignal {
    flag: Arc<AtomicBool>,
}

impl StopSignal {
    /// A wish that only [`StopSignal::request`] can raise, for tests and library use.
    pub fn manual() -> Self {
        Self::default()
    }

    /// Raised by the first SIGTERM or SIGINT; the second one ends the process as if nobody listened.
    ///
    /// # Errors
    /// When the operating system refuses the handlers.
    pub fn install() -> io::Result<Self> {
        let stop = Self::default();
        for signal in [SIGTERM, SIGINT] {
            // The order matters: the first signal must find the flag down, and only then raise it.
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop.flag))?;
            signal_hook::flag::register(signal, Arc::clone(&stop.flag))?;
        }
        Ok(stop)
    }

    /// The flag itself, for the loop.
    pub fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    /// Raises the wish.
    pub fn request(&self) {
        self.flag.store(true, Ordering::Release);
    }

    /// Whether somebody wants the run to stop.
    pub fn requested(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_signal_raises_the_wish_and_leaves_the_process_alive() {
        let stop = StopSignal::install().unwrap();
        assert!(!stop.requested());
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(stop.requested());
    }

    #[test]
    fn clones_share_one_wish() {
        let stop = StopSignal::manual();
        let seen_by_the_loop = stop.clone();
        assert!(!seen_by_the_loop.requested());
        stop.request();
        assert!(seen_by_the_loop.requested());
    }
}
