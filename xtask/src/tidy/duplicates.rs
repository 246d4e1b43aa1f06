//! Stages do not copy from each other: what two need belongs to the trainer.

use std::collections::HashMap;

use super::Finding;
use super::source::Source;

/// Equal lines in a row from which on it is a copy.
const MAX_EQUAL: usize = 15;

/// Checks the stage crates against each other; blank lines and tests do not count.
pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut first_seen: HashMap<Vec<&str>, (&Source, &str, usize)> = HashMap::new();
    let mut findings: Vec<Finding> = Vec::new();
    for source in sources {
        let Some(stage) = stage_of(source) else { continue };
        let lines: Vec<(usize, &str)> = source
            .text
            .lines()
            .zip(source.production.lines())
            .enumerate()
            .filter(|(_, (_, code))| !code.trim().is_empty())
            .map(|(i, (text, _))| (i + 1, text.trim()))
            .collect();
        let mut reported_until = 0;
        for window in lines.windows(MAX_EQUAL) {
            let key: Vec<&str> = window.iter().map(|(_, text)| *text).collect();
            let (line, end) = (window[0].0, window[MAX_EQUAL - 1].0);
            match first_seen.get(&key) {
                Some((other, other_stage, other_line)) if *other_stage != stage => {
                    if line > reported_until {
                        let place = format!("{}:{other_line}", other.path.display());
                        let message = format!("{MAX_EQUAL} or more lines as at {place}; move them to the trainer");
                        findings.push(Finding::new(&source.path, line, message));
                    }
                    reported_until = end;
                }
                Some(_) => {}
                None => {
                    first_seen.insert(key, (source, stage, line));
                }
            }
        }
    }
    findings
}

/// Name of the stage crate that a file belongs to.
fn stage_of(source: &Source) -> Option<&str> {
    let mut parts = source.path.iter().filter_map(|part| part.to_str());
    let name = parts.next().filter(|first| *first == "crates").and(parts.next())?;
    name.starts_with("stage-").then_some(name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn source(path: &str, lines: std::ops::Range<usize>) -> Source {
        let text = lines.map(|i| format!("    let x{i} = {i};\n\n")).collect();
        Source::new(Path::new(path), text)
    }

    #[test]
    fn a_copy_between_stages_is_found_once() {
        let original = source("crates/stage-sft/src/run.rs", 0..40);
        let copy = source("crates/stage-dpo/src/run.rs", 10..35);
        let findings = check(&[original, copy]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].to_string().contains("stage-dpo/src/run.rs:1: 15 or more lines as at crates/stage-sft"));
    }

    #[test]
    fn fewer_lines_the_same_stage_and_other_crates_are_fine() {
        let sft = || source("crates/stage-sft/src/run.rs", 0..40);
        assert_eq!(check(&[sft(), source("crates/stage-dpo/src/run.rs", 0..14)]), []);
        assert_eq!(check(&[sft(), source("crates/stage-sft/src/data.rs", 0..40)]), []);
        assert_eq!(check(&[sft(), source("crates/trainer/src/run.rs", 0..40)]), []);
    }
}
