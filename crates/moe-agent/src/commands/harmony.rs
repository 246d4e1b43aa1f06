//! `moe-agent harmony`: conversations to tokens and tokens to messages, as JSON.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use model_core::harmony::{
    Conversation, Effort, Harmony, Kind, MAX_JSON_BYTES, MessageJson, Opening, Rendered, Role, Supervise,
    ToolNamespace, parse_json,
};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::stream;

/// The directions.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write a conversation as tokens.
    Render(RenderArguments),
    /// Read messages out of tokens.
    Parse(ParseArguments),
}

/// Arguments of `harmony render`.
#[derive(clap::Args)]
pub(crate) struct RenderArguments {
    /// Conversation as JSON; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the tokens go, as JSON.
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Write for training: an answer at the end has `<|return|>`, analysis is kept, the assistant is supervised.
    #[arg(long, conflicts_with = "completion")]
    training: bool,
    /// Write a prompt: the header of the next message, by the assistant or the role given, is begun.
    #[arg(long, value_name = "ROLE", num_args = 0..=1, default_missing_value = "assistant")]
    completion: Option<String>,
    /// Whether analysis before the first answer is dropped once the conversation ends with an answer.
    #[arg(long, value_name = "BOOL")]
    drop_analysis: Option<bool>,
    /// Reasoning effort, in place of the system message's.
    #[arg(long, value_enum)]
    effort: Option<EffortName>,
    /// Add a built-in tool to the system message; can be given for each.
    #[arg(long, value_name = "NAME", value_parser = ["browser", "python"])]
    builtin: Vec<String>,
    /// Which messages are trained on: `none`, `all` of the assistant, its `last-turn`, or their places, as `3,4`.
    #[arg(long, value_name = "WHICH", value_parser = supervise)]
    supervise: Option<Supervise>,
}

/// Arguments of `harmony parse`.
#[derive(clap::Args)]
pub(crate) struct ParseArguments {
    /// Tokens as JSON; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the messages go, as JSON.
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// The tokens are what this role wrote after its prompt, not a conversation.
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum EffortName {
    Low,
    Medium,
    High,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindName {
    Conversation,
    Completion,
    Training,
}

/// A conversation; a test case with the official tokens and the output of `parse` are read as well.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RenderInput {
    messages: Vec<MessageJson>,
    kind: Option<KindName>,
    auto_drop_analysis: Option<bool>,
    #[serde(default, rename = "name")]
    _name: IgnoredAny,
    #[serde(default, rename = "tokens")]
    _tokens: IgnoredAny,
    #[serde(default, rename = "text")]
    _text: IgnoredAny,
    #[serde(default, rename = "ends")]
    _ends: IgnoredAny,
    #[serde(default, rename = "complete")]
    _complete: IgnoredAny,
}

/// Tokens; a test case with the official messages and the output of `render` are read as well.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParseInput {
    tokens: Vec<u32>,
    role: Option<String>,
    #[serde(default, rename = "name")]
    _name: IgnoredAny,
    #[serde(default, rename = "kind")]
    _kind: IgnoredAny,
    #[serde(default, rename = "auto_drop_analysis")]
    _auto_drop_analysis: IgnoredAny,
    #[serde(default, rename = "messages")]
    _messages: IgnoredAny,
    #[serde(default, rename = "text")]
    _text: IgnoredAny,
    #[serde(default, rename = "spans")]
    _spans: IgnoredAny,
    #[serde(default, rename = "n_supervised")]
    _n_supervised: IgnoredAny,
}

#[derive(Serialize)]
struct SpanJson {
    message: usize,
    role: &'static str,
    tokens: [usize; 2],
    content: [usize; 2],
    supervised: Option<[usize; 2]>,
}

/// Runs the subcommand.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Render(arguments) => render(arguments),
        Command::Parse(arguments) => parse(arguments),
    }
}

fn render(arguments: &RenderArguments) -> Result<()> {
    let shown = || format!("{}", arguments.input.display());
    let input: RenderInput =
        parse_json("the conversation", &stream::read(&arguments.input, MAX_JSON_BYTES as u64)?).with_context(shown)?;
    let kind = match (&arguments.completion, arguments.training, input.kind) {
        (Some(role), _, _) => Kind::Completion(role.parse()?),
        (None, true, _) | (None, false, Some(KindName::Training)) => Kind::Training,
        (None, false, Some(KindName::Completion)) => Kind::Completion(Role::Assistant),
        (None, false, Some(KindName::Conversation) | None) => Kind::Conversation,
    };
    let is_training = kind == Kind::Training;
    let drop_analysis = arguments.drop_analysis.or(input.auto_drop_analysis).unwrap_or(!is_training);
    let default = if is_training { Supervise::All } else { Supervise::Nothing };
    let supervise = arguments.supervise.clone().unwrap_or(default);
    let mut conversation = Conversation::try_from(input.messages).with_context(shown)?;
    set_system(&mut conversation, arguments).with_context(shown)?;
    let harmony = Harmony::o200k()?;
    let rendered = harmony.render(&conversation, kind, drop_analysis, &supervise).with_context(shown)?;
    let spans = spans(&rendered, &conversation);
    let n_supervised = rendered.mask().into_iter().filter(|on| *on).count();
    let output = json!({
        "tokens": rendered.ids,
        "text": harmony.decode(&rendered.ids),
        "spans": spans,
        "n_supervised": n_supervised,
        "auto_drop_analysis": drop_analysis,
    });
    write(arguments.output.as_path(), &output)
}

fn parse(arguments: &ParseArguments) -> Result<()> {
    let shown = || format!("{}", arguments.input.display());
    let bytes = stream::read(&arguments.input, MAX_JSON_BYTES as u64)?;
    let is_list = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let (tokens, role) = if is_list {
        (parse_json("the tokens", &bytes).with_context(shown)?, None)
    } else {
        let input: ParseInput = parse_json("the tokens", &bytes).with_context(shown)?;
        (input.tokens, input.role)
    };
    let tokens: Vec<u32> = tokens;
    let opening = match arguments.role.as_ref().or(role.as_ref()) {
        Some(role) => Opening::Completion(role.parse()?),
        None => Opening::Conversation,
    };
    let parsed = Harmony::o200k()?.parse(&tokens, opening).with_context(shown)?;
    let output = json!({
        "messages": parsed.messages.iter().map(MessageJson::from).collect::<Vec<_>>(),
        "ends": parsed.ends.iter().map(|end| end.name()).collect::<Vec<_>>(),
        "complete": parsed.is_complete(),
    });
    write(arguments.output.as_path(), &output)
}

fn set_system(conversation: &mut Conversation, arguments: &RenderArguments) -> Result<()> {
    if let Some(effort) = arguments.effort {
        conversation.system_mut()?.reasoning_effort = Some(match effort {
            EffortName::Low => Effort::Low,
            EffortName::Medium => Effort::Medium,
            EffortName::High => Effort::High,
        });
    }
    for namespace in ToolNamespace::builtins().iter().filter(|tool| arguments.builtin.contains(&tool.name)) {
        let tools = conversation.system_mut()?.tools.get_or_insert_default();
        tools.insert(namespace.name.clone(), namespace.clone());
    }
    Ok(())
}

fn spans(rendered: &Rendered, conversation: &Conversation) -> Vec<SpanJson> {
    let span = |span: &model_core::harmony::Span| SpanJson {
        message: span.message,
        role: conversation.messages[span.message].role.name(),
        tokens: [span.tokens.start, span.tokens.end],
        content: [span.content.start, span.content.end],
        supervised: span.supervised.as_ref().map(|range| [range.start, range.end]),
    };
    rendered.spans.iter().map(span).collect()
}

fn supervise(text: &str) -> Result<Supervise, String> {
    match text {
        "none" => Ok(Supervise::Nothing),
        "all" => Ok(Supervise::All),
        "last-turn" => Ok(Supervise::LastTurn),
        places => {
            let parsed: Result<Vec<usize>, _> = places.split(',').map(|place| place.trim().parse()).collect();
            parsed
                .map(Supervise::Messages)
                .map_err(|_| "expected none, all, last-turn, or places from 0 with commas between them".into())
        }
    }
}

fn write(path: &std::path::Path, output: &Value) -> Result<()> {
    stream::write(path, format!("{output}\n").as_bytes())
}
