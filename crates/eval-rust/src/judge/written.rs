//! What of a candidate is taken over where it is asked for tests: only those, over the crate as the task has it.

use super::collect::Files;
use super::diff::changed_lines;
use super::policy::{Admitted, Counts, INCLUDES, is_source, refuse_files, refuse_tokens, text};
use super::rewrite;
use super::task::Task;
use super::tokens::flatten;

/// The task with the candidate's tests as those that must pass, and what is compiled. A file without tests is no file.
///
/// # Errors
/// The reason for which the candidate is refused.
pub(crate) fn admit(task: &Task, candidate: &Files) -> Result<(Task, Admitted), String> {
    refuse_files(task, candidate)?;
    let sources = task.start.keys().chain(candidate.keys()).filter(|path| is_source(path));
    if let Some(path) = sources.into_iter().find(|path| task.start.get(*path) != candidate.get(*path)) {
        return Err(format!("{path} was changed; only tests are asked for"));
    }
    let mut task = task.clone();
    let mut admitted = Admitted { files: task.start.clone(), ..Admitted::default() };
    let (mut before, mut after) = (Counts::default(), Counts::default());
    let names = task.file.write_tests.iter().flat_map(|asked| asked.tests.clone()).collect::<Vec<_>>();
    for stem in names {
        let path = format!("tests/{stem}.rs");
        let old = task.start.get(&path).map_or(Ok(String::new()), |bytes| text(&path, bytes))?;
        let new = candidate.get(&path).map_or(Ok(String::new()), |bytes| text(&path, bytes))?;
        let changed = changed_lines(&old, &new);
        admitted.diff_lines += changed;
        admitted.files_changed += u64::from(changed > 0);
        admitted.files.remove(&path);
        before.add(&flatten(&old).ok_or_else(|| format!("start: {path} is not Rust"))?);
        let tokens = flatten(&new).ok_or_else(|| format!("{path} does not fall into tokens, or nests too deeply"))?;
        after.add(&tokens);
        refuse_tokens(&task, &path, &tokens)?;
        let word = |name: &str| tokens.iter().any(|token| token.is(name) || token.is(&format!("r#{name}")));
        if let Some(name) = INCLUDES.into_iter().find(|name| word(name)) {
            return Err(format!("{path}: `{name}`; a test is about what the crate does, not about its text"));
        }
        if word("unsafe") {
            return Err(format!("{path}: `unsafe` in tests"));
        }
        if !tokens.iter().any(|token| token.in_attribute && token.is("test")) {
            continue;
        }
        // The crate is the task's own, so a glob import of it can bring nothing that it should not.
        let file = rewrite::test_file(&new, "").map_err(|what| format!("{path}: {what}"))?;
        task.file.fail_to_pass.extend(file.tests.iter().map(|test| format!("{stem}::{}", test.name)));
        task.tests.insert(stem, file);
        admitted.files.insert(path, new.into_bytes());
    }
    admitted.lint_attributes_added = after.lints.saturating_sub(before.lints);
    admitted.format_attributes_added = after.formats.saturating_sub(before.formats);
    Ok((task, admitted))
}
