//! What a test run printed, as names and texts.

use super::normalise::cap;

/// A test that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedTest {
    /// Its name.
    pub name: String,
    /// What it printed, its panic included.
    pub output: String,
}

impl FailedTest {
    /// Where it panicked first: file and line.
    pub fn panicked_at(&self) -> Option<(&str, usize)> {
        let line = self.output.lines().find_map(|line| line.strip_prefix("panicked at "))?;
        let mut parts = line.trim_end_matches(':').rsplitn(3, ':');
        let (_, line, file) = (parts.next()?, parts.next()?, parts.next()?);
        Some((file, line.parse().ok()?))
    }

    /// What the panic said.
    pub fn message(&self) -> Option<&str> {
        let mut lines = self.output.lines().skip_while(|line| !line.starts_with("panicked at ")).skip(1);
        lines.find(|line| !line.trim().is_empty())
    }
}

/// The tests of one run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TestReport {
    /// How many passed.
    pub passed: usize,
    /// How many were left out.
    pub ignored: usize,
    /// Those that failed, in the order in which they ran.
    pub failed: Vec<FailedTest>,
    /// Whether a program of tests ended before it had said how its tests went.
    pub cut_short: bool,
}

impl TestReport {
    /// Reads the normalised output of test programs.
    pub(super) fn read(stdout: &str) -> Self {
        let mut report = Self::default();
        let mut running = false;
        let mut names: Vec<&str> = Vec::new();
        let mut block: Option<FailedTest> = None;
        for line in stdout.lines() {
            if let Some(rest) = line.strip_prefix("test ")
                && let Some((name, how)) = rest.rsplit_once(" ... ")
                && running
                && block.is_none()
            {
                match how {
                    "ok" => report.passed += 1,
                    "FAILED" => names.push(name),
                    how if how.starts_with("ignored") => report.ignored += 1,
                    _ => {}
                }
                continue;
            }
            let title = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
            let ends = title.is_some() || line == "failures:" || line.starts_with("test result: ");
            if ends {
                report.failed.extend(block.take().map(FailedTest::trimmed));
            }
            if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
                report.cut_short |= running;
                running = true;
            }
            if line.starts_with("test result: ") {
                running = false;
                let quiet = names.drain(..).filter(|name| !report.failed.iter().any(|one| one.name == **name));
                let quiet: Vec<&str> = quiet.collect();
                report
                    .failed
                    .extend(quiet.iter().map(|name| FailedTest { name: (*name).into(), output: String::new() }));
            } else if let Some(title) = title {
                block = Some(FailedTest { name: title.into(), output: String::new() });
            } else if let Some(block) = &mut block
                && !ends
            {
                block.output += line_of(line, &block.name);
                block.output.push('\n');
            }
        }
        report.cut_short |= running;
        report
    }

    /// In words, with as much of the failures as fits `limit` bytes.
    pub(super) fn describe(&self, limit: usize) -> String {
        let ignored = if self.ignored > 0 { format!(", {} ignored", self.ignored) } else { String::new() };
        if self.failed.is_empty() {
            return format!("ok: {} passed{ignored}\n", self.passed);
        }
        let mut text = format!("FAILED: {} passed, {} failed{ignored}\n", self.passed, self.failed.len());
        let each = (limit / 2).max(200);
        let mut shown = 0;
        for test in &self.failed {
            let indented: String = cap(&test.output, each).lines().map(|line| format!("  {line}\n")).collect();
            let block = format!("{}\n{indented}", test.name);
            if shown > 0 && text.len() + block.len() > limit {
                break;
            }
            text += &block;
            shown += 1;
        }
        let rest: Vec<&str> = self.failed[shown..].iter().map(|test| test.name.as_str()).collect();
        if !rest.is_empty() {
            let names = rest.join(", ");
            let room = limit.saturating_sub(text.len()).max(60);
            let names = if names.len() > room { String::new() } else { format!(": {names}") };
            text += &format!("and {} more{names}\n", rest.len());
        }
        text
    }
}

impl FailedTest {
    fn trimmed(mut self) -> Self {
        self.output = self.output.trim_matches('\n').to_owned();
        self
    }
}

/// A line without the name of the test's own thread, which is the test's.
fn line_of<'l>(line: &'l str, name: &str) -> &'l str {
    let own = line.strip_prefix("thread '").and_then(|rest| rest.strip_prefix(name));
    own.and_then(|rest| rest.strip_prefix("' ")).filter(|rest| rest.starts_with("panicked at ")).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\nrunning 3 tests\ntest a::one ... ok\ntest a::two ... FAILED\ntest b ... ignored\n\nfailures:\n\n\
        ---- a::two stdout ----\nsays test x ... ok\n\nthread 'a::two' panicked at src/lib.rs:9:5:\nassertion failed\n  left: 1\n\n\n\
        failures:\n    a::two\n\ntest result: FAILED. 1 passed; 1 failed; 1 ignored\n\n\
        running 1 test\ntest c ... ok\n\ntest result: ok. 1 passed; 0 failed\n";

    #[test]
    fn failures_have_their_names_and_places() {
        let report = TestReport::read(OUTPUT);
        assert_eq!((report.passed, report.ignored, report.failed.len(), report.cut_short), (2, 1, 1, false));
        let failed = &report.failed[0];
        assert_eq!(failed.name, "a::two");
        assert_eq!(failed.panicked_at(), Some(("src/lib.rs", 9)));
        assert_eq!(failed.message(), Some("assertion failed"));
        assert_eq!(
            report.describe(500),
            "FAILED: 2 passed, 1 failed, 1 ignored\na::two\n  says test x ... ok\n  \n  panicked at src/lib.rs:9:5:\n  \
             assertion failed\n    left: 1\n"
        );
        let many = TestReport { failed: vec![failed.clone(); 30], ..report };
        assert!(many.describe(300).len() < 450 && many.describe(300).contains("and 28 more"), "{}", many.describe(300));
    }

    #[test]
    fn a_run_that_stops_in_the_middle_is_no_pass() {
        let cut = &OUTPUT[..OUTPUT.find("\n\nfailures").unwrap()];
        assert!(TestReport::read(cut).cut_short);
        assert_eq!(TestReport::read("").passed, 0);
    }
}
