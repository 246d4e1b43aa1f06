//! Unified diffs of two versions of one file, made and applied here, so that what a record says was applied was.

/// Lines around a change.
const CONTEXT: usize = 3;

/// The diff that makes `new` of `old`: one hunk from the first line that differs to the last; empty when none does.
#[must_use]
pub fn unified(path: &str, old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (lines(old), lines(new));
    if a == b {
        return String::new();
    }
    let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let most = a.len().min(b.len()) - same;
    let same_end = a.iter().rev().zip(b.iter().rev()).take(most).take_while(|(x, y)| x == y).count();
    let (a_end, b_end) = (a.len() - same_end, b.len() - same_end);
    let from = same.saturating_sub(CONTEXT);
    let after = CONTEXT.min(same_end);
    let mut body = String::new();
    let mut put = |mark: char, lines: &[&str]| {
        for line in lines {
            body.push(mark);
            body += line;
            if !line.ends_with('\n') {
                body += "\n\\ No newline at end of file\n";
            }
        }
    };
    put(' ', &a[from..same]);
    put('-', &a[same..a_end]);
    put('+', &b[same..b_end]);
    put(' ', &a[a_end..a_end + after]);
    let range = |end: usize| {
        let count = end + after - from;
        format!("{},{count}", if count == 0 { from } else { from + 1 })
    };
    format!("--- a/{path}\n+++ b/{path}\n@@ -{} +{} @@\n{body}", range(a_end), range(b_end))
}

/// Applies a diff of one file; `None` when it does not fit exactly.
#[must_use]
pub fn apply(old: &str, diff: &str) -> Option<String> {
    let a = lines(old);
    let mut out = String::new();
    let mut at = 0;
    let mut hunks = lines(diff).into_iter().skip_while(|line| !line.starts_with("@@ ")).peekable();
    hunks.peek()?;
    while let Some(line) = hunks.next() {
        if let Some(header) = line.strip_prefix("@@ -") {
            let (start, rest) = header.split_once(',')?;
            let empty = rest.starts_with("0 ");
            let start: usize = start.parse().ok()?;
            let start = if empty { start } else { start.checked_sub(1)? };
            out.extend(a.get(at..start)?.iter().copied());
            at = start;
            continue;
        }
        let mut text = line.get(1..)?.to_owned();
        if hunks.peek().is_some_and(|next| next.starts_with('\\')) {
            hunks.next();
            text.pop();
        }
        match line.as_bytes().first()? {
            b'+' => out += &text,
            mark @ (b' ' | b'-') => {
                if *a.get(at)? != text {
                    return None;
                }
                at += 1;
                if *mark == b' ' {
                    out += &text;
                }
            }
            _ => return None,
        }
    }
    out.extend(a.get(at..)?.iter().copied());
    Some(out)
}

/// The lines with their ends.
fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_diff_says_is_what_applying_it_does() {
        let base = "a\nb\nc\nd\ne\nf\ng\nh\n";
        for new in [
            "a\nb\nc\nd\nX\nf\ng\nh\n",
            "a\nb\nc\nd\nf\ng\nh\n",
            "X\na\nb\nc\nd\ne\nf\ng\nh\n",
            "a\nb\nc\nd\ne\nf\ng\nh",
            "a\nb\nX\nc\nd\ne\nf\nY\ng\nh\nZ\n",
            "",
        ] {
            for (old, new) in [(base, new), (new, base)] {
                let diff = unified("src/lib.rs", old, new);
                assert_eq!(apply(old, &diff).as_deref(), Some(new), "{diff}");
            }
        }
        let diff = unified("x.rs", base, &base.replace('e', "E"));
        assert_eq!(diff, "--- a/x.rs\n+++ b/x.rs\n@@ -2,7 +2,7 @@\n b\n c\n d\n-e\n+E\n f\n g\n h\n");
        assert_eq!(apply(&base.replace('e', "q"), &diff), None, "a diff that does not fit is not applied");
        assert_eq!((unified("x", base, base), apply(base, "")), (String::new(), None));
    }
}
