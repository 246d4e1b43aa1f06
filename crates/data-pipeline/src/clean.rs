//! Cleans text without changing what it says: line ends, control characters, spaces, and personal data on request.

use std::borrow::Cow;
use std::sync::OnceLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// What is cleaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CleanConfig {
    /// Runs of spaces and tabs inside a line become one space; indentation is kept.
    pub collapse_spaces: bool,
    /// Most blank lines in a row.
    pub max_blank_lines: usize,
    /// Replace e-mail addresses by `<email>`.
    pub mask_email: bool,
    /// Replace US social security numbers by `<ssn>`.
    pub mask_ssn: bool,
    /// Replace phone numbers by `<phone>`.
    pub mask_phone: bool,
    /// Replace web addresses by `<url>`.
    pub mask_url: bool,
}

impl Default for CleanConfig {
    fn default() -> Self {
        Self {
            collapse_spaces: true,
            max_blank_lines: 1,
            mask_email: false,
            mask_ssn: false,
            mask_phone: false,
            mask_url: false,
        }
    }
}

/// Cleaned text, and how much personal data was masked in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaned {
    /// The text, without blank lines at either end.
    pub text: String,
    /// E-mail addresses, social security numbers, phone numbers and web addresses replaced.
    pub masked: usize,
}

/// Cleans one text. Idempotent: cleaning the result again changes nothing.
pub fn clean(text: &str, config: &CleanConfig) -> Cleaned {
    let plain = strip_control(text);
    let (masked_text, masked) = mask(plain, config);
    let mut out = String::with_capacity(masked_text.len());
    let mut blank = 0;
    for line in masked_text.split('\n') {
        let line = line.trim_end();
        if line.is_empty() {
            blank += 1;
            continue;
        }
        if !out.is_empty() {
            let ends = 1 + blank.min(config.max_blank_lines);
            out.extend(std::iter::repeat_n('\n', ends));
        }
        blank = 0;
        push_line(&mut out, line, config.collapse_spaces);
    }
    Cleaned { text: out, masked }
}

/// Line ends become `\n`; control characters, byte-order marks and unpaired directional marks go.
fn strip_control(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                if chars.peek() != Some(&'\n') {
                    out.push('\n');
                }
            }
            '\u{2028}' | '\u{2029}' | '\u{0085}' | '\u{000c}' | '\u{000b}' => out.push('\n'),
            '\n' | '\t' => out.push(c),
            '\u{feff}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

fn push_line(out: &mut String, line: &str, collapse: bool) {
    if !collapse {
        out.push_str(line);
        return;
    }
    let body = line.trim_start_matches([' ', '\t']);
    out.push_str(&line[..line.len() - body.len()]);
    let mut space = false;
    for c in body.chars() {
        if c == ' ' || c == '\t' || c == '\u{00a0}' {
            space = true;
            continue;
        }
        if std::mem::take(&mut space) {
            out.push(' ');
        }
        out.push(c);
    }
}

/// The patterns, in the order in which they are applied: web addresses may contain what looks like the others.
fn patterns() -> &'static [(Regex, &'static str); 4] {
    static PATTERNS: OnceLock<[(Regex, &'static str); 4]> = OnceLock::new();
    PATTERNS.get_or_init(|| {
        let regex = |pattern| Regex::new(pattern).expect("a constant pattern compiles");
        [
            (regex(r#"(?i)\b(?:https?://|ftp://|www\.)[^\s<>"'\])}]*[^\s<>"'\])}.,;:!?]"#), "<url>"),
            (regex(r"(?i)\b[a-z0-9][a-z0-9._%+-]*@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b"), "<email>"),
            (regex(r"\b[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}\b"), "<ssn>"),
            (regex(r"(?:\+[0-9]{1,3}[ .-]?)?(?:\([0-9]{3}\) ?|\b[0-9]{3}[ .-])[0-9]{3}[ .-][0-9]{4}\b"), "<phone>"),
        ]
    })
}

fn mask(text: String, config: &CleanConfig) -> (String, usize) {
    let wanted = [config.mask_url, config.mask_email, config.mask_ssn, config.mask_phone];
    let (mut text, mut masked) = (text, 0);
    for ((pattern, replacement), _) in patterns().iter().zip(wanted).filter(|(_, wanted)| *wanted) {
        let replaced = pattern.replace_all(&text, |_: &regex::Captures<'_>| {
            masked += 1;
            *replacement
        });
        if let Cow::Owned(replaced) = replaced {
            text = replaced;
        }
    }
    (text, masked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: CleanConfig = CleanConfig {
        collapse_spaces: true,
        max_blank_lines: 1,
        mask_email: true,
        mask_ssn: true,
        mask_phone: true,
        mask_url: true,
    };

    fn check(input: &str, want: &str) {
        assert_eq!(clean(input, &ALL).text, want, "{input:?}");
    }

    #[test]
    fn lines_spaces_and_control_characters() {
        check("\u{feff}a  b\t\tc  \r\nd\re\0\u{7}\n", "a b c\nd\ne");
        check("\n\n  indented  text\n\n\n\nnext\n\n", "  indented text\n\nnext");
        check("non\u{a0}\u{a0}breaking", "non breaking");
        check("left\u{202e}right", "leftright");
        check("   \n \t\n", "");
    }

    #[test]
    fn personal_data_is_masked_and_counted() {
        check("write to jane.doe+x@mail.example.org.", "write to <email>.");
        check("see https://a.example/x?mail=b@c.de, or www.example.com!", "see <url>, or <url>!");
        check("SSN 123-45-6789, not 123-456-789", "SSN <ssn>, not 123-456-789");
        check("call (555) 123-4567 or +1 555-123-4567", "call <phone> or <phone>");
        check("in 1945 there were 1000 men; pages 100-200", "in 1945 there were 1000 men; pages 100-200");
        assert_eq!(clean("a@b.de c@d.fr", &ALL).masked, 2);
        let text = "a@b.de www.x.org 123-45-6789";
        assert_eq!(clean(text, &CleanConfig::default()), Cleaned { text: text.into(), masked: 0 });
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

        #[test]
        fn cleaning_twice_is_cleaning_once(text in "[a-z0-9@. \t\r\n\u{a0}()+-]{0,80}|\\PC{0,40}") {
            for config in [ALL, CleanConfig::default(), CleanConfig { collapse_spaces: false, ..CleanConfig::default() }] {
                let once = clean(&text, &config).text;
                prop_assert_eq!(&clean(&once, &config).text, &once);
            }
        }
    }
}
