//! Progress bars on standard error; invisible when that is not a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over bytes.
pub(crate) fn bytes(message: &'static str, total: u64) -> ProgressBar {
    bar(message, total, "{msg:>16} {bar:32} {bytes:>10} / {total_bytes:10} {eta:>4}")
}

/// A bar over countable things.
pub(crate) fn items(message: &'static str, total: u64) -> ProgressBar {
    bar(message, total, "{msg:>16} {bar:32} {human_pos:>10} / {human_len:10} {eta:>4}")
}

/// A sign of life while something runs whose length is unknown.
pub(crate) fn spinner(message: &'static str) -> ProgressBar {
    bar(message, 1, "{msg:>16} {spinner} {elapsed}")
}

fn bar(message: &'static str, total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a constant template parses");
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style).with_message(message)
}
