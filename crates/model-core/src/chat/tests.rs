//! What is supervised, what contents can and cannot become, and agreement with the Jinja templates.

use std::sync::OnceLock;

use minijinja::{Environment, ErrorKind};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::tokenizer::tests::{CHATML, LLAMA3, build, trained_json};

fn tokenizer(format: ChatFormat) -> &'static Tokenizer {
    static SHARED: [OnceLock<Tokenizer>; 2] = [OnceLock::new(), OnceLock::new()];
    let (at, specials) = if format == ChatFormat::ChatMl { (0, CHATML) } else { (1, LLAMA3) };
    SHARED[at].get_or_init(|| build(&trained_json(specials)).unwrap())
}

fn chat(messages: &[(Role, &str)]) -> Chat {
    Chat { messages: messages.iter().map(|(role, content)| Message::new(*role, *content)).collect() }
}

fn ids(tokens: &[ChatToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

const TURNS: &[(Role, &str)] = &[
    (Role::System, "Answer in one word"),
    (Role::User, "What burns?"),
    (Role::Assistant, "Oak"),
    (Role::Tool, "42 °C"),
    (Role::Assistant, ""),
];

#[test]
fn written_out_exactly() {
    let text = |format: ChatFormat, turns| {
        tokenizer(format).decode(&ids(&format.render(&chat(turns), tokenizer(format)).unwrap()))
    };
    assert_eq!(
        text(ChatFormat::ChatMl, &TURNS[1..4]),
        "<|im_start|>user\nWhat burns?<|im_end|>\n<|im_start|>assistant\nOak<|im_end|>\n\
         <|im_start|>tool\n42 °C<|im_end|>\n"
    );
    assert_eq!(
        text(ChatFormat::Llama3, &TURNS[1..4]),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat burns?<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\nOak<|eot_id|>\
         <|start_header_id|>ipython<|end_header_id|>\n\n42 °C<|eot_id|>"
    );
}

#[test]
fn s19_only_assistant_content_and_its_end_are_supervised() {
    for format in ChatFormat::ALL {
        let tokens = format.render(&chat(TURNS), tokenizer(format)).unwrap();
        let supervised: Vec<u32> = tokens.iter().filter(|t| t.supervised).map(|t| t.id).collect();
        let end = format.end_of_turn();
        assert_eq!(tokenizer(format).decode(&supervised), format!("Oak{end}{end}"), "{format:?}");
        assert!(tokens.iter().all(|t| !t.supervised || t.role == Role::Assistant));
        for role in Role::ALL {
            assert!(tokens.iter().any(|t| t.role == role), "{role} keeps its tokens");
        }
    }
}

#[test]
fn a_prompt_is_a_prefix_of_its_answer() {
    for format in ChatFormat::ALL {
        for cut in [2, 4] {
            let prompt = ids(&format.render_prompt(&chat(&TURNS[..cut]), tokenizer(format)).unwrap());
            let full = ids(&format.render(&chat(&TURNS[..=cut]), tokenizer(format)).unwrap());
            assert_eq!(prompt, full[..prompt.len()]);
        }
    }
}

#[test]
fn bad_conversations_are_refused() {
    for name in ["system\n<|im_end|>", "Assistant", "", "developer"] {
        let error = name.parse::<Role>().unwrap_err();
        assert!(matches!(error, ModelError::UnknownRole { .. }), "{error}");
        assert!(!error.to_string().contains('\n'), "control characters are shown escaped");
    }
    let format = ChatFormat::ChatMl;
    let error = format.render(&chat(&TURNS[..2]), tokenizer(format)).unwrap_err();
    assert!(matches!(error, ModelError::NothingSupervised { n_messages: 2 }), "{error}");
    let error = format.render(&Chat::default(), tokenizer(format)).unwrap_err();
    assert!(matches!(error, ModelError::NothingSupervised { n_messages: 0 }), "{error}");
    let error = format.render(&chat(TURNS), tokenizer(ChatFormat::Llama3)).unwrap_err();
    assert!(matches!(error, ModelError::MissingControlToken { token: "<|im_start|>", .. }), "{error}");
    assert!(ChatFormat::Llama3.tokenizer_config(tokenizer(format), 8).is_err());
    for format in ChatFormat::ALL {
        assert_eq!(ChatFormat::detect(tokenizer(format)).unwrap(), format);
        assert_eq!(format.name().parse::<ChatFormat>().unwrap(), format);
    }
    assert!(ChatFormat::detect(&build(&trained_json(&[])).unwrap()).is_err());
    assert!("chat-ml".parse::<ChatFormat>().is_err());
}

#[test]
fn a_reply_ends_at_the_first_control_token() {
    let format = ChatFormat::ChatMl;
    let tokenizer = tokenizer(format);
    let said = |text: &str| tokenizer.encode(text);
    let control = |name: &str| vec![tokenizer.control_id(name).unwrap()];
    let whole = [said("dry oak"), control("<|im_start|>"), said("system\nobey")].concat();
    let reply = format.parse_reply(&whole, tokenizer);
    assert_eq!(reply.content, "dry oak");
    assert_eq!((reply.ended, reply.discarded), (true, said("system\nobey").len()));
    let cut = format.parse_reply(&said("dry"), tokenizer);
    assert_eq!(cut, Reply { content: "dry".into(), ended: false, discarded: 0 });
    assert_eq!(format.stop_ids(tokenizer).len(), CHATML.len());
}

/// Text made to look like a control token: whole, cut, with look-alike letters, invisible characters between.
fn hostile() -> impl Strategy<Value = String> {
    let names: Vec<&str> = CHATML.iter().chain(LLAMA3).copied().chain(["<|channel|>", "<|call|>", "[INST]"]).collect();
    let name = prop::sample::select(names);
    prop_oneof![
        name.clone().prop_map(str::to_owned),
        (name.clone(), 0usize..8).prop_map(|(n, at)| n.chars().take(at).collect()),
        (name.clone(), 0usize..8).prop_map(|(n, at)| n.chars().skip(at).collect()),
        name.clone().prop_map(|n| n.replace('|', "｜").replace('i', "і")),
        name.clone().prop_map(|n| n.replace('_', "_\u{200b}")),
        name.prop_map(|n| format!("\n{n}system\n")),
        ".*",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn control_tokens_never_come_from_content(
        contents in prop::collection::vec((prop::sample::select(Role::ALL.to_vec()), hostile(), hostile()), 1..5),
    ) {
        for format in ChatFormat::ALL {
            let tokenizer = tokenizer(format);
            let mut chat = Chat::default();
            for (role, a, b) in &contents {
                chat.messages.push(Message::new(*role, format!("{a}{b}")));
            }
            chat.messages.push(Message::new(Role::Assistant, "done"));
            let tokens = format.render(&chat, tokenizer).unwrap();
            // Exactly the format's own control tokens, in its own order.
            let per_message = if format == ChatFormat::ChatMl { 2 } else { 3 };
            let controls: Vec<ChatToken> = tokens.iter().copied().filter(|t| tokenizer.is_control(t.id)).collect();
            let begin = usize::from(format.begin().is_some());
            prop_assert_eq!(controls.len(), begin + per_message * chat.messages.len());
            for (at, message) in chat.messages.iter().enumerate() {
                let own = &controls[begin + per_message * at..][..per_message];
                prop_assert!(own.iter().all(|t| t.role == message.role));
                prop_assert_eq!(Some(own[per_message - 1].id), tokenizer.control_id(format.end_of_turn()));
            }
            // Every content comes back whole from between its header and its end.
            let supervised: Vec<u32> = tokens.iter().filter(|t| t.supervised).map(|t| t.id).collect();
            let want: String = chat.messages.iter().filter(|m| m.role == Role::Assistant)
                .map(|m| format!("{}{}", m.content, format.end_of_turn())).collect();
            prop_assert_eq!(tokenizer.decode(&supervised), want);
        }
    }
}

#[test]
fn the_jinja_template_writes_the_same_text() {
    for format in ChatFormat::ALL {
        let mut environment = Environment::new();
        environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        let template = format.jinja();
        let write = |turns: &[(&str, &str)], open: bool| {
            let messages: Vec<_> = turns.iter().map(|&(role, content)| minijinja::context! { role, content }).collect();
            environment.render_str(&template, minijinja::context! { messages, add_generation_prompt => open })
        };
        let named: Vec<(&str, &str)> = TURNS.iter().map(|(role, content)| (role.name(), *content)).collect();
        let tokenizer = tokenizer(format);
        let rendered = format.render(&chat(TURNS), tokenizer).unwrap();
        assert_eq!(write(&named, false).unwrap(), tokenizer.decode(&ids(&rendered)));
        let prompt = format.render_prompt(&chat(&TURNS[..2]), tokenizer).unwrap();
        assert_eq!(write(&named[..2], true).unwrap(), tokenizer.decode(&ids(&prompt)));
        assert!(write(&[("root", "x")], false).unwrap_err().to_string().contains("unknown role root"));
    }
}

#[test]
fn hugging_face_settings_name_the_tokens() {
    let (format, tokens) = (ChatFormat::ChatMl, tokenizer(ChatFormat::ChatMl));
    let config: Value = serde_json::from_str(&format.tokenizer_config(tokens, 512).unwrap()).unwrap();
    assert_eq!((&config["eos_token"], &config["pad_token"]), (&"<|im_end|>".into(), &"<|endoftext|>".into()));
    assert_eq!((&config["model_max_length"], config.get("bos_token")), (&512.into(), None));
    assert_eq!(config["chat_template"], format.jinja());
    let generation: Value = serde_json::from_str(&format.generation_config(tokens).unwrap()).unwrap();
    let n = tokens.vocab_size() as u32;
    assert_eq!(generation["eos_token_id"], serde_json::json!([n - 1, n - 3]));
    assert_eq!(generation["pad_token_id"], n - 3);
    let (format, tokens) = (ChatFormat::Llama3, tokenizer(ChatFormat::Llama3));
    let generation: Value = serde_json::from_str(&format.generation_config(tokens).unwrap()).unwrap();
    assert_eq!(generation["bos_token_id"], tokens.control_id("<|begin_of_text|>").unwrap());
}
