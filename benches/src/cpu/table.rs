//! The table of figures: printed row by row while they come, and as JSON at the end.

use anyhow::{Context, Result};
use serde::Serialize;

use super::measure::Spread;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Group that it belongs to.
    pub(super) part: &'static str,
    /// What was measured.
    pub(super) name: String,
    /// Unit of the value.
    pub(super) unit: &'static str,
    /// Value.
    pub(super) value: Spread,
    /// Share of the measured peak, where that means something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) share: Option<f64>,
}

/// Where the figures come from.
#[derive(Clone, Debug, Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    threads: usize,
    profile: &'static str,
}

impl Machine {
    fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu: model.map_or_else(|| "unknown CPU".into(), |(_, name)| name.trim().into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" },
        }
    }
}

/// Clock ticks of the whole machine: doing something, all, and this process's own.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    busy: u64,
    all: u64,
    own: u64,
}

impl Ticks {
    /// Now; `None` where the system does not say.
    fn now() -> Option<Self> {
        let read = |path| std::fs::read_to_string(path).ok();
        let numbers = |text: &str| text.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<u64>>();
        let machine = numbers(read("/proc/stat")?.lines().next()?.strip_prefix("cpu ")?);
        // User, nice, system, idle, waiting, two kinds of interrupts, stolen; what follows is counted in these.
        let all: u64 = machine.iter().take(8).sum();
        let idle: u64 = machine.get(3..5)?.iter().sum();
        // Behind the name, which ends with the last bracket, user and system time are the 12th and 13th field.
        let process = read("/proc/self/stat")?;
        let fields: Vec<&str> = process.rsplit_once(')')?.1.split_whitespace().collect();
        let own = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Self { busy: all - idle, all, own })
    }

    /// Share of the machine's time since `self` that went to other processes.
    fn others(self) -> Option<f64> {
        let now = Self::now()?;
        let (busy, own) = (now.busy.saturating_sub(self.busy), now.own.saturating_sub(self.own));
        let all = now.all.saturating_sub(self.all);
        (all > 0).then(|| busy.saturating_sub(own) as f64 / all as f64)
    }
}

/// All figures of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Table {
    machine: Machine,
    /// Share of the machine that other processes took meanwhile.
    others: Option<f64>,
    rows: Vec<Row>,
    #[serde(skip)]
    began: Option<Ticks>,
}

impl Table {
    /// Prints the heading.
    pub(super) fn begin() -> Self {
        let machine = Machine::here();
        println!(
            "{}, {} cores, {} threads, {} profile; median, quartile distance",
            machine.cpu, machine.cores, machine.threads, machine.profile
        );
        println!("{:<11}{:<52}{:>12} {:<9}{:>7}{:>9}", "part", "measured", "median", "unit", "spread", "of peak");
        Self { machine, others: None, rows: Vec::new(), began: Ticks::now() }
    }

    /// Prints and keeps a figure.
    pub(super) fn add(&mut self, row: Row) {
        let Row { part, name, unit, value, share } = &row;
        let share = share.map(|share| format!("{:.1} %", 100.0 * share)).unwrap_or_default();
        let spread = format!("{:.1} %", 100.0 * value.relative());
        println!("{part:<11}{name:<52}{:>12} {unit:<9}{spread:>7}{share:>9}", digits(value.median));
        self.rows.push(row);
    }

    /// Says how much of the machine others took; figures of a run with more than a few percent should not be quoted.
    pub(super) fn end(&mut self) {
        self.others = self.began.and_then(Ticks::others);
        match self.others {
            Some(share) => self.note(&format!("other processes took {:.1} % of the machine meanwhile", 100.0 * share)),
            None => self.note("this system does not say what other processes took meanwhile"),
        }
    }

    /// A note between the rows.
    pub(super) fn note(&self, text: &str) {
        println!("{:<11}{text}", "");
    }

    /// The figures so far.
    #[cfg(test)]
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Everything as JSON.
    ///
    /// # Errors
    /// A figure that is not finite has no JSON.
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).context("cannot write the figures as JSON")
    }
}

/// Four significant digits where that is not too long.
fn digits(value: f64) -> String {
    match value.abs() {
        x if x >= 1000.0 => format!("{value:.0}"),
        x if x >= 100.0 => format!("{value:.1}"),
        x if x >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_show_about_four_digits() {
        let shown = [12_345.6, 123.45, 12.345, 1.2345].map(digits);
        assert_eq!(shown, ["12346", "123.5", "12.35", "1.234"]);
    }
}
