//! Results of calls, which only the executor can make.

use eval_rust::sandbox::End;
use model_core::harmony::{Channel, Message};
use serde::{Deserialize, Serialize};

use super::error::Refusal;
use super::{Tool, ToolCall};

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Done without a program.
    Done,
    /// A program ended with this code.
    Exit(i32),
    /// A signal or a limit ended the program.
    Stopped(End),
    /// Not done, for what the call asks.
    Refused(Refusal),
}

impl Status {
    pub(super) fn of(end: End) -> Self {
        match end {
            End::Exit(code) => Self::Exit(code),
            other => Self::Stopped(other),
        }
    }

    /// Whether it did what was asked and, of a program, without complaint.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Done | Self::Exit(0))
    }
}

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    call: ToolCall,
    tool: Option<Tool>,
    call_hash: String,
    status: Status,
    output: String,
    hash: String,
}

impl ToolResult {
    /// The result of `call` on a workspace with the hash `workspace`; `canonical` is the spelling of readable arguments.
    pub(super) fn new(
        call: &ToolCall,
        tool: Option<Tool>,
        canonical: Option<String>,
        workspace: &str,
        (status, output): (Status, String),
    ) -> Self {
        let arguments = canonical.as_ref().unwrap_or(&call.arguments);
        let call_hash = hash(&[&call.recipient, arguments, workspace]);
        let said = serde_json::to_string(&status).expect("a status becomes JSON");
        let hash = hash(&[&call_hash, &said, &output]);
        Self { call: call.clone(), tool, call_hash, status, output, hash }
    }

    /// The call.
    pub fn call(&self) -> &ToolCall {
        &self.call
    }

    /// The tool; `None` where no tool has that name.
    pub fn tool(&self) -> Option<Tool> {
        self.tool
    }

    /// How it ended.
    pub fn status(&self) -> Status {
        self.status
    }

    /// What the model gets to read.
    pub fn output(&self) -> &str {
        &self.output
    }

    /// BLAKE3 of the tool's name, the canonical arguments and the workspace before the call.
    pub fn call_hash(&self) -> &str {
        &self.call_hash
    }

    /// BLAKE3 of the call's hash, the status and the output.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether the model wrote no proper call, which counts against its format.
    pub fn is_bad_call(&self) -> bool {
        matches!(self.status, Status::Refused(refusal) if refusal.is_bad_call())
    }

    /// Of a result without success, what tells the same trouble again whatever the workspace became; `None` of a success.
    pub fn trouble(&self) -> Option<String> {
        let said = serde_json::to_string(&self.status).expect("a status becomes JSON");
        (!self.status.is_success()).then(|| hash(&[&said, &self.output]))
    }

    /// The message that tells the model.
    pub fn message(&self) -> Message {
        Message::tool_result(tool_name(&self.call.recipient), Channel::Commentary, &self.output)
    }
}

/// The recipient where it can stand in a header as a tool's name.
fn tool_name(recipient: &str) -> &str {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let fits = recipient.len() <= 80 && recipient.contains('.') && recipient.chars().all(plain);
    if fits { recipient } else { "functions.unknown" }
}

/// BLAKE3 over texts and their lengths, so that no two lists are the same bytes.
fn hash(parts: &[&str]) -> String {
    let mut text = String::new();
    for part in parts {
        text += &format!("{}:{part}\n", part.len());
    }
    gates::artifact::hash_bytes(text.as_bytes())
}
