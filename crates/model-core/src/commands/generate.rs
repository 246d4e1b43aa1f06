//! `model-core generate`: continues a text or answers a message.

use std::path::PathBuf;

use anyhow::Context;
use kernels_cubecl::{Cpu, Device, DeviceChoice, LmBackend};
use model_core::generate::{Continuation, Finish, generate_watched};
use model_core::{Chat, ChatFormat, Decoder, Message, ModelError, Role, Sampling, Tokenizer};
use serde_json::json;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Model folder with its tokenizer.json.
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Most tokens to make.
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// Divides the logits; 0 takes the most likely token each time.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Considers only this many most likely tokens; 0 considers all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Considers only the most likely tokens that hold this probability together.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the choices.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// auto, cpu or cuda:N.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// Prints ids, text and reason of the end as JSON.
    #[arg(long)]
    json: bool,
}

/// What is continued.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// Text to continue.
    #[arg(long)]
    prompt: Option<String>,
    /// Message to answer, in the chat format whose tokens the tokenizer has.
    #[arg(long)]
    chat: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Arguments) -> anyhow::Result<()> {
    match args.device.resolve()? {
        Device::Cpu(device) => run_on::<Cpu>(args, &device),
    }
}

fn run_on<B: LmBackend>(args: &Arguments, device: &B::Device) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::load(&args.model)?;
    let model = Decoder::<B>::load(&args.model, device)?;
    if tokenizer.vocab_size() > model.config.vocab_size {
        let (tokenizer, model) = (tokenizer.vocab_size(), model.config.vocab_size);
        return Err(ModelError::VocabMismatch { tokenizer, model, slack: 0 }.into());
    }
    let (prompt, stop_ids) = prompt(args, &tokenizer, &model.config.eos_ids)?;
    let sampling = Sampling {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        stop_ids,
        seed: args.seed,
    };
    let made = generate_watched(&model, &[(0, &prompt)], &sampling, &mut |_| ())?;
    let made = made.into_iter().next().context("one prompt gives one continuation")?;
    println!("{}", if args.json { describe(&made, prompt.len(), &tokenizer) } else { tokenizer.decode(&made.ids) });
    Ok(())
}

/// The ids to continue and those that end the continuation.
fn prompt(args: &Arguments, tokenizer: &Tokenizer, eos_ids: &[u32]) -> Result<(Vec<u32>, Vec<u32>), ModelError> {
    if let Some(message) = &args.input.chat {
        let format = ChatFormat::detect(tokenizer)?;
        let chat = Chat { messages: vec![Message::new(Role::User, message)] };
        let ids = format.render_prompt(&chat, tokenizer)?.into_iter().map(|token| token.id).collect();
        return Ok((ids, format.stop_ids(tokenizer)));
    }
    let text = args.input.prompt.as_deref().unwrap_or_default();
    let ends = ChatFormat::ALL.iter().filter_map(|format| tokenizer.control_id(format.end_of_document()));
    Ok((tokenizer.encode(text), eos_ids.iter().copied().chain(ends).collect()))
}

fn describe(made: &Continuation, n_prompt: usize, tokenizer: &Tokenizer) -> String {
    let (finish, stop_id) = match made.finish {
        Finish::Stop(id) => ("stop", Some(id)),
        Finish::Length => ("length", None),
        Finish::Context => ("context", None),
    };
    let text = tokenizer.decode(&made.ids);
    let value =
        json!({ "n_prompt_tokens": n_prompt, "ids": made.ids, "text": text, "finish": finish, "stop_id": stop_id });
    format!("{value:#}")
}
