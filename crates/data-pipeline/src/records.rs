//! Records for fine-tuning: conversations for SFT, prompt/chosen/rejected for preference training.
//!
//! Both are read from JSONL or Parquet and checked record by record; the first bad one stops the reading and is named
//! by file and line (by row in Parquet, both from 1). Both can be written as Parquet folders with a manifest.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{DataError, LineProblem, Result};
use crate::licence::LicencePolicy;
use crate::source::jsonl::JsonLines;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sets the scene; only the first message may have it.
    System,
    /// Asks.
    User,
    /// Answers; the only role whose tokens are trained.
    Assistant,
    /// Gives back what a tool returned.
    Tool,
}

impl Role {
    /// The name in files and chat templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::System, Self::User, Self::Assistant, Self::Tool].into_iter().find(|role| role.as_str() == name)
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// A conversation whose assistant messages are to be learnt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftRecord {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Name of the record, for reports.
    #[serde(default)]
    pub id: String,
    /// What kind of exercise this is, for scores per task.
    #[serde(default)]
    pub task: String,
    /// Name of the source.
    #[serde(default)]
    pub source: String,
    /// Licence of the source.
    #[serde(default)]
    pub licence: String,
}

/// Two answers to one prompt, the better one named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreferenceRecord {
    /// The conversation so far; a user's or a tool's message is last. In a file also a plain string, which is one user message.
    #[serde(deserialize_with = "prompt")]
    pub prompt: Vec<Message>,
    /// The better answer.
    pub chosen: String,
    /// The worse answer.
    pub rejected: String,
    /// Name of the record, for reports.
    #[serde(default)]
    pub id: String,
    /// What kind of exercise this is, for scores per task.
    #[serde(default)]
    pub task: String,
    /// Name of the source.
    #[serde(default)]
    pub source: String,
    /// Licence of the source.
    #[serde(default)]
    pub licence: String,
}

/// A kind of record: its rules and its columns.
pub trait Record: DeserializeOwned + Serialize + Clone + Send + 'static {
    /// Name of the kind: `sft` or `preference`.
    const KIND: &'static str;

    /// Checks what the type alone cannot say.
    ///
    /// # Errors
    /// The first rule that is broken.
    fn check(&self) -> Result<(), LineProblem>;

    /// Name and licence of the source.
    fn source(&self) -> (&str, &str);

    /// The columns: conversation, texts in the order of [`Record::TEXT_COLUMNS`].
    fn to_parts(&self) -> (&[Message], Vec<&str>);

    /// The inverse of [`Record::to_parts`].
    fn from_parts(messages: Vec<Message>, texts: Vec<String>) -> Self;

    /// Name of the column with the conversation.
    const MESSAGE_COLUMN: &'static str;

    /// Names of the text columns; those before `id` must be there, the others may be missing.
    const TEXT_COLUMNS: &'static [&'static str];
}

fn check_messages(messages: &[Message]) -> Result<(), LineProblem> {
    for (i, message) in messages.iter().enumerate() {
        if message.content.trim().is_empty() {
            return Err(LineProblem::EmptyField("content"));
        }
        if message.role == Role::System && i > 0 {
            return Err(LineProblem::LateSystem(i));
        }
    }
    Ok(())
}

impl Record for SftRecord {
    const KIND: &'static str = "sft";
    const MESSAGE_COLUMN: &'static str = "messages";
    const TEXT_COLUMNS: &'static [&'static str] = &["id", "task", "source", "licence"];

    fn check(&self) -> Result<(), LineProblem> {
        if self.messages.is_empty() {
            return Err(LineProblem::EmptyField("messages"));
        }
        check_messages(&self.messages)?;
        if self.messages.iter().all(|m| m.role != Role::Assistant) {
            return Err(LineProblem::NoAssistant);
        }
        Ok(())
    }

    fn source(&self) -> (&str, &str) {
        (&self.source, &self.licence)
    }

    fn to_parts(&self) -> (&[Message], Vec<&str>) {
        (&self.messages, vec![&self.id, &self.task, &self.source, &self.licence])
    }

    fn from_parts(messages: Vec<Message>, texts: Vec<String>) -> Self {
        let [id, task, source, licence] = texts.try_into().expect("one text per column");
        Self { messages, id, task, source, licence }
    }
}

impl Record for PreferenceRecord {
    const KIND: &'static str = "preference";
    const MESSAGE_COLUMN: &'static str = "prompt";
    const TEXT_COLUMNS: &'static [&'static str] = &["chosen", "rejected", "id", "task", "source", "licence"];

    fn check(&self) -> Result<(), LineProblem> {
        match self.prompt.last().map(|m| m.role) {
            None => return Err(LineProblem::EmptyField("prompt")),
            Some(Role::User | Role::Tool) => {}
            Some(role) => return Err(LineProblem::PromptEnd(role.as_str())),
        }
        check_messages(&self.prompt)?;
        for (name, answer) in [("chosen", &self.chosen), ("rejected", &self.rejected)] {
            if answer.trim().is_empty() {
                return Err(LineProblem::EmptyField(name));
            }
        }
        if self.chosen == self.rejected {
            return Err(LineProblem::ChosenIsRejected);
        }
        Ok(())
    }

    fn source(&self) -> (&str, &str) {
        (&self.source, &self.licence)
    }

    fn to_parts(&self) -> (&[Message], Vec<&str>) {
        (&self.prompt, vec![&self.chosen, &self.rejected, &self.id, &self.task, &self.source, &self.licence])
    }

    fn from_parts(prompt: Vec<Message>, texts: Vec<String>) -> Self {
        let [chosen, rejected, id, task, source, licence] = texts.try_into().expect("one text per column");
        Self { prompt, chosen, rejected, id, task, source, licence }
    }
}

/// Records of one kind with the hash of the files they came from.
#[derive(Clone, Debug)]
pub struct RecordSet<R> {
    /// The records, in the order of the files.
    pub records: Vec<R>,
    /// BLAKE3 (hex) over the names and contents of the files: another data set has another fingerprint.
    pub fingerprint: String,
}

impl<R: Record> RecordSet<R> {
    /// Checks the licence of every source.
    ///
    /// # Errors
    /// [`DataError::Licence`] names the first source that is not allowed; a record without a licence is not allowed.
    pub fn require_licences(&self, policy: &LicencePolicy) -> Result<()> {
        let sources: BTreeSet<_> = self.records.iter().map(Record::source).collect();
        sources.into_iter().try_for_each(|(name, licence)| policy.check(name, licence))
    }
}

/// Reads SFT records from a `.jsonl` or `.parquet` file, or from all such files of a folder in the order of names.
///
/// # Errors
/// [`DataError::BadLine`] names file, line and problem; [`DataError::Empty`] when there is no record.
pub fn read_sft(path: &Path) -> Result<RecordSet<SftRecord>> {
    read_records(path)
}

/// Reads preference records, see [`read_sft`].
///
/// # Errors
/// As [`read_sft`].
pub fn read_preferences(path: &Path) -> Result<RecordSet<PreferenceRecord>> {
    read_records(path)
}

/// Reads records of either kind, see [`read_sft`].
///
/// # Errors
/// As [`read_sft`].
pub fn read_records<R: Record>(path: &Path) -> Result<RecordSet<R>> {
    let files = record_files(path)?;
    let mut records = Vec::new();
    let mut fingerprint = blake3::Hasher::new();
    for file in &files {
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let hash = gates::artifact::hash_file(file)?;
        fingerprint.update(format!("{name}\n{hash}\n").as_bytes());
        let is_parquet = file.extension().is_some_and(|e| e == "parquet");
        let mut push = |line: usize, record: R| {
            record.check().map_err(|problem| DataError::line(file, line, problem))?;
            records.push(record);
            Ok(())
        };
        if is_parquet {
            crate::record_columns::read(file, &mut push)?;
        } else {
            for line in JsonLines::open(file)? {
                let (number, record) = line?;
                push(number, record)?;
            }
        }
    }
    if records.is_empty() {
        return Err(DataError::Empty { path: path.to_path_buf() });
    }
    Ok(RecordSet { records, fingerprint: fingerprint.finalize().to_hex().to_string() })
}

/// Calls `push` with file, line and record of every line of a `.jsonl` file, or of all such files of a folder in the order
/// of names, for records whose rules are somebody else's.
///
/// # Errors
/// [`DataError::BadLine`] names file, line and problem; [`DataError::Empty`] when there is no record; whatever `push` returns.
pub fn read_json_lines<R: DeserializeOwned, E: From<DataError>>(
    path: &Path,
    push: &mut dyn FnMut(&Path, usize, R) -> Result<(), E>,
) -> Result<(), E> {
    let mut empty = true;
    for file in files_of(path, &["jsonl"], "a .jsonl file, or a folder of them")? {
        for line in JsonLines::open(&file)? {
            let (number, record) = line?;
            push(&file, number, record)?;
            empty = false;
        }
    }
    if empty { Err(DataError::Empty { path: path.to_path_buf() }.into()) } else { Ok(()) }
}

fn record_files(path: &Path) -> Result<Vec<PathBuf>> {
    files_of(path, &["jsonl", "parquet"], "a .jsonl or .parquet file, or a folder of them")
}

fn files_of(path: &Path, extensions: &[&str], expected: &'static str) -> Result<Vec<PathBuf>> {
    let known = |p: &Path| p.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e));
    if path.is_file() {
        return if known(path) {
            Ok(vec![path.into()])
        } else {
            Err(DataError::NoInput { path: path.into(), expected })
        };
    }
    if crate::folder::has_manifest(path) {
        crate::record_columns::verify(path)?;
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(DataError::io("list", path))? {
        files.push(entry.map_err(DataError::io("list", path))?.path());
    }
    files.retain(|p| p.is_file() && known(p));
    files.sort();
    if files.is_empty() {
        return Err(DataError::NoInput { path: path.into(), expected });
    }
    Ok(files)
}

/// Accepts a list of messages or one string.
fn prompt<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Message>, D::Error> {
    struct Prompt;

    impl<'de> Visitor<'de> for Prompt {
        type Value = Vec<Message>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a list of messages")
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![Message::new(Role::User, text)])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut messages = Vec::new();
            while let Some(message) = list.next_element()? {
                messages.push(message);
            }
            Ok(messages)
        }
    }

    deserializer.deserialize_any(Prompt)
}

#[cfg(test)]
mod tests;
