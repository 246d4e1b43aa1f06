//! Mutation pairs as conversations: the file with its fault and what was said about it, then the repair as a diff.

use model_core::ModelError;
use model_core::harmony::{Channel, Conversation, Harmony, Kind, Message, MessageJson, Role, Supervise};
use serde::Serialize;

use super::diff::unified;
use crate::MutationRecord;
use crate::tools::PromptStyle;

/// Codes of the borrow checker: moves, borrows, lifetimes, mutability.
const BORROW_CHECKER: [&str; 18] = [
    "E0381", "E0382", "E0384", "E0499", "E0502", "E0503", "E0505", "E0506", "E0507", "E0509", "E0515", "E0521",
    "E0594", "E0596", "E0597", "E0621", "E0713", "E0716",
];
/// Most bytes of what the tests or the compiler said, compact and full, but for one line.
const MAX_MESSAGE: [usize; 2] = [300, 2000];

/// A conversation of one pair, as the training stages read it.
#[derive(Debug, Clone, Serialize)]
pub struct PairConversation {
    id: String,
    source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    licence: String,
    messages: Vec<MessageJson>,
    #[serde(skip)]
    conversation: Conversation,
}

impl PairConversation {
    /// Tokens of the conversation as it is trained on.
    ///
    /// # Errors
    /// As [`Harmony::render`].
    pub fn n_tokens(&self, harmony: &Harmony<'_>) -> Result<usize, ModelError> {
        Ok(harmony.render(&self.conversation, Kind::Training, false, &Supervise::All)?.ids.len())
    }
}

/// Whether the borrow checker refuses the faulty file.
pub fn is_borrow_checker(record: &MutationRecord) -> bool {
    record.error_codes.iter().any(|code| BORROW_CHECKER.contains(&code.as_str()))
}

/// The pair as a request and its answer. `number` tells pairs of one crate apart.
pub fn conversation(record: &MutationRecord, number: usize, style: PromptStyle) -> PairConversation {
    let repo = record.repo.as_deref().unwrap_or("crate");
    let version = record.version.as_deref().unwrap_or("0.0.0");
    let file = record.file.as_deref().unwrap_or("src/lib.rs");
    let compiles = record.error_codes.is_empty();
    let (request, limit) = match (style, compiles) {
        (PromptStyle::Compact, _) => ("Repair it.".to_owned(), MAX_MESSAGE[0]),
        (PromptStyle::Full, true) => {
            (format!("Tests of `{repo}` {version} fail. Give the repair of `{file}` as a diff."), MAX_MESSAGE[1])
        }
        (PromptStyle::Full, false) => {
            (format!("`{repo}` {version} does not compile. Give the repair of `{file}` as a diff."), MAX_MESSAGE[1])
        }
    };
    let said = beginning(&record.error_message, limit);
    let text = format!("{request}\n\n{file}\n```rust\n{}```\n\n```\n{said}\n```", record.buggy_code);
    let diff = record.diff.clone().unwrap_or_else(|| unified(file, &record.buggy_code, &record.fixed_code));
    let answer = Message::assistant(Channel::Final, format!("```diff\n{diff}```"));
    let conversation = Conversation { messages: vec![Message::new(Role::User, text), answer] };
    PairConversation {
        id: format!("{repo}-{number}"),
        source: format!("{repo} {version}"),
        licence: record.licence.clone().unwrap_or_default(),
        messages: conversation.messages.iter().map(MessageJson::from).collect(),
        conversation,
    }
}

/// The first lines of a message, whole ones while they fit.
fn beginning(message: &str, limit: usize) -> String {
    let mut out = String::new();
    for line in message.trim().lines() {
        if !out.is_empty() && out.len() + line.len() >= limit {
            break;
        }
        out += line;
        out.push('\n');
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(codes: &[&str]) -> MutationRecord {
        MutationRecord {
            buggy_code: "fn f() {\n    a;\n}\n".into(),
            fixed_code: "fn f() {\n    b;\n}\n".into(),
            error_message: format!("first\n{}\nlast", "x".repeat(400)),
            repo: Some("one".into()),
            version: Some("1.2.3".into()),
            file: Some("src/lib.rs".into()),
            licence: Some("MIT".into()),
            error_codes: codes.iter().map(|code| (*code).to_owned()).collect(),
            ..MutationRecord::default()
        }
    }

    #[test]
    fn the_fault_and_its_message_are_asked_and_the_diff_is_the_answer() {
        for (style, asks) in [(PromptStyle::Compact, "Repair it."), (PromptStyle::Full, "Tests of `one` 1.2.3 fail.")] {
            let made = conversation(&record(&[]), 4, style);
            let line = serde_json::to_value(&made).unwrap();
            assert_eq!((line["id"].as_str(), line["source"].as_str()), (Some("one-4"), Some("one 1.2.3")));
            let text = |at: usize| line["messages"][at]["content"][0]["text"].as_str().unwrap().to_owned();
            assert!(text(0).starts_with(asks) && text(0).contains("src/lib.rs\n```rust\nfn f() {\n    a;\n}\n```"));
            assert_eq!(text(0).contains("last"), style == PromptStyle::Full, "{}", text(0));
            assert!(text(1).starts_with("```diff\n--- a/src/lib.rs") && text(1).contains("-    a;\n+    b;\n"));
        }
        let broken = serde_json::to_string(&conversation(&record(&["E0308"]), 0, PromptStyle::Full)).unwrap();
        assert!(broken.contains("does not compile"));
    }

    #[test]
    fn moves_and_borrows_are_told_from_types() {
        assert!(is_borrow_checker(&record(&["E0308", "E0502"])));
        assert!(!is_borrow_checker(&record(&["E0308"])) && !is_borrow_checker(&record(&[])));
    }
}
