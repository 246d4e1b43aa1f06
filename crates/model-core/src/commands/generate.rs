//! `model-core generate`: continues a text or answers a message.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;

use anyhow::Context;
use kernels_cubecl::{DeviceChoice, LmBackend, Precision, on_device};
use model_core::generate::{Continuation, Finish, generate_watched};
use model_core::hf::{LoadOptions, PackedExperts};
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
    /// Keep the weights of experts packed: in MXFP4, as the folder must have them, or with =fp8 rounded to FP8.
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_value = "no", default_missing_value = "mxfp4")]
    packed_experts: PackedExperts,
    /// auto, cpu or cuda:N.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// Element type of weights and activations: f32, or bf16 on CUDA.
    #[arg(long, default_value_t)]
    precision: Precision,
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
    let device = args.device.resolve()?.with(args.precision)?;
    let answer = on_device!(device, B, device => answer::<B>(args, &device))??;
    println!("{}", if stdout().is_terminal() { visible(&answer) } else { answer });
    Ok(())
}

/// What is printed.
fn answer<B: LmBackend>(args: &Arguments, device: &B::Device) -> anyhow::Result<String> {
    let tokenizer = Tokenizer::load(&args.model)?;
    let options = LoadOptions { packed_experts: args.packed_experts, ..LoadOptions::default() };
    let model = Decoder::<B>::load_with(&args.model, options, device)?;
    tokenizer.check_vocab(model.config.vocab_size)?;
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
    Ok(if args.json { describe(&made, prompt.len(), &tokenizer) } else { tokenizer.decode(&made.ids) })
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

/// Generated text as a terminal may show it: control characters and bidirectional overrides written out.
fn visible(text: &str) -> String {
    let hidden = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let show = |c: char| if hidden(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(show).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;
    use kernels_cubecl::Cpu;
    use model_core::ModelConfig;
    use serde_json::Value;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Program::try_parse_from(line.split(' ')).map(|program| program.arguments)
    }

    /// A model folder whose tokenizer knows bytes and the tokens of ChatML.
    fn folder(dir: &Path, vocab_size: usize) {
        let byte = |b: u8| match b {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(b),
            0x00..=0x20 => char::from_u32(0x100 + u32::from(b)).unwrap(),
            0x7f..=0xa0 => char::from_u32(0x121 + u32::from(b) - 0x7f).unwrap(),
            0xad => '\u{143}',
        };
        let vocab: serde_json::Map<_, _> = (0..=255u8).map(|b| (byte(b).to_string(), json!(b))).collect();
        let special = |id: usize, content: &str| {
            json!({ "id": id, "content": content, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false })
        };
        let tokenizer = json!({ "version": "1.0",
            "added_tokens": [special(256, "<|endoftext|>"), special(257, "<|im_start|>"), special(258, "<|im_end|>")],
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
        std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let config = ModelConfig { init_std: 0.3, ..ModelConfig::from_depth(1, vocab_size) };
        Decoder::<Cpu>::init(&config, 1, &Default::default()).save(dir, u64::MAX).unwrap();
    }

    fn answer_to(dir: &Path, rest: &str) -> anyhow::Result<String> {
        answer::<Cpu>(&parse(&format!("generate --model {} {rest}", dir.display())).unwrap(), &Default::default())
    }

    #[test]
    fn prompts_and_messages_are_continued() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path(), 259);
        let text = answer_to(dir.path(), "--prompt oak --max-new-tokens 7").unwrap();
        assert_eq!(answer_to(dir.path(), "--prompt oak --max-new-tokens 7").unwrap(), text);
        let json = |rest: &str| -> Value { serde_json::from_str(&answer_to(dir.path(), rest).unwrap()).unwrap() };
        let told = json("--prompt oak --max-new-tokens 7 --json");
        assert_eq!(told["text"], text);
        assert_eq!(told["n_prompt_tokens"], 3);
        let hot = "--prompt oak --max-new-tokens 7 --temperature 2 --top-k 50 --top-p 0.9 --json --seed";
        assert_eq!(json(&format!("{hot} 1")), json(&format!("{hot} 1")));
        assert_ne!(json(&format!("{hot} 1")), json(&format!("{hot} 2")));
        // One token for each byte of `user⏎oak⏎assistant⏎⏎`, two starts and an end.
        assert_eq!(json("--chat oak --max-new-tokens 1 --json")["n_prompt_tokens"], 5 + 3 + 1 + 10 + 3);
    }

    #[test]
    fn bad_requests_are_errors() {
        assert!(parse("generate --model m").is_err(), "something to continue");
        assert!(parse("generate --model m --prompt a --chat b").is_err(), "one thing to continue");
        assert!(parse("generate --model m --prompt a --device gpu").is_err());
        assert!(parse("generate --model m --prompt a --precision fp8").is_err());
        let in_bf16 = parse("generate --model m --prompt a --device cpu --precision bf16").unwrap();
        assert_eq!(crate::commands::exit_code(&run(&in_bf16).unwrap_err()), 4, "the CPU has no bf16");
        for vocab_size in [258, 5000] {
            let dir = tempfile::tempdir().unwrap();
            folder(dir.path(), vocab_size);
            let error = answer_to(dir.path(), "--prompt oak").unwrap_err();
            assert!(error.to_string().contains("vocabulary mismatch"), "{error}");
        }
    }

    #[test]
    fn terminals_get_no_control_characters() {
        assert_eq!(visible("a\tb\n\u{1b}[2J\0\u{202e}é"), "a\tb\n\\u{1b}[2J\\u{0}\\u{202e}é");
    }
}
