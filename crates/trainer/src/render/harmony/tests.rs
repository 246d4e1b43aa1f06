//! Harmony records as rows: the official tokens, weights on the model's own, and everything that is refused by its line.

use std::path::PathBuf;

use data_pipeline::TokenRow;
use data_pipeline::tokenizer::{HARMONY_TOKENS, SPECIAL_TOKENS};
use model_core::harmony::{Kind, Supervise, parse_json};
use model_core::{Family, GptOss, ModelConfig, Tokenizer};
use tempfile::TempDir;

use super::*;
use crate::render::{ChatKeys, ChatRenderer, ChatRows, ChatStyle, DefaultChannel};

const SEQ_LEN: usize = 512;

fn tokenizer(specials: &[&str]) -> Tokenizer {
    let trained = data_pipeline::tokenizer::train(std::iter::empty(), 256 + specials.len(), specials).unwrap();
    Tokenizer::from_json(trained.json().to_vec(), Path::new("tokenizer.json")).unwrap()
}

fn llama() -> ModelConfig {
    ModelConfig::from_depth(1, 300)
}

fn gpt_oss() -> ModelConfig {
    ModelConfig { family: Family::GptOss(GptOss::released(1, 4)), ..llama() }
}

fn file(lines: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    std::fs::write(&path, lines).unwrap();
    (dir, path)
}

fn rows(lines: &str, keys: ChatKeys) -> Result<ChatRows, TrainError> {
    let (tokenizer, (_dir, path)) = (tokenizer(&HARMONY_TOKENS), file(lines));
    ChatRenderer::new(&keys, &tokenizer, &gpt_oss())?.conversations(&path, SEQ_LEN)
}

fn pairs(line: &str) -> Result<Vec<[Sequence; 2]>, TrainError> {
    let (tokenizer, (_dir, path)) = (tokenizer(&HARMONY_TOKENS), file(line));
    ChatRenderer::new(&ChatKeys::default(), &tokenizer, &gpt_oss())?.pairs(&path, SEQ_LEN)
}

const USER: &str = r#"{"role":"user","content":"2+2?"}"#;
const THOUGHT: &str = r#"{"role":"assistant","channel":"analysis","content":"Sum."}"#;
const CALL: &str = r#"{"role":"assistant","channel":"commentary","recipient":"functions.add","content_type":"<|constrain|>json","content":"{}"}"#;
const RESULT: &str =
    r#"{"role":"tool","name":"functions.add","channel":"commentary","recipient":"assistant","content":"4"}"#;
const ANSWER: &str = r#"{"role":"assistant","channel":"final","content":"4"}"#;

fn line(messages: &[&str]) -> String {
    format!("{{\"messages\":[{}],\"id\":\"a\",\"licence\":\"MIT\"}}\n", messages.join(","))
}

#[test]
fn s20_rows_are_the_harmony_tokens_of_the_records() {
    assert_eq!(HARMONY_TOKENS[1..], Harmony::CONTROL_TOKENS);
    let tokenizer = tokenizer(&HARMONY_TOKENS);
    let harmony = Harmony::new(&tokenizer).unwrap();
    let turn = [USER, THOUGHT, CALL, RESULT, ANSWER];
    let messages: Vec<MessageJson> = parse_json("messages", format!("[{}]", turn.join(",")).as_bytes()).unwrap();
    let conversation = Conversation::try_from(messages).unwrap();
    let want = harmony.render(&conversation, Kind::Training, false, &Supervise::All).unwrap();
    let tokens = format!("{{\"tokens\":{:?}}}\n", want.ids);
    let rows = rows(&format!("{}\n{tokens}", line(&turn)), ChatKeys::default()).unwrap().rows;
    let n = want.ids.len();
    assert_eq!((rows.len(), rows[0].n_used()), (1, 2 * n));
    let spelled = harmony.decode(&rows[0].ids[..n]);
    assert_eq!(
        spelled,
        "<|start|>user<|message|>2+2?<|end|><|start|>assistant<|channel|>analysis<|message|>Sum.<|end|>\
         <|start|>assistant to=functions.add<|channel|>commentary <|constrain|>json<|message|>{}<|call|>\
         <|start|>functions.add to=assistant<|channel|>commentary<|message|>4<|end|>\
         <|start|>assistant<|channel|>final<|message|>4<|return|>"
    );
    for (segment, at) in [0..n, n..2 * n].into_iter().enumerate() {
        assert_eq!(rows[0].ids[at.clone()], want.ids);
        assert!(rows[0].segments[at.clone()].iter().all(|s| *s == segment as u32));
        let weights: Vec<f32> = want.mask().into_iter().map(|on| f32::from(u8::from(on))).collect();
        assert_eq!(rows[0].weights[at], weights);
    }
    let trained: Vec<u32> =
        rows[0].ids[..n].iter().zip(&rows[0].weights).filter(|(_, w)| **w > 0.0).map(|(id, _)| *id).collect();
    assert_eq!(
        harmony.decode(&trained),
        "<|channel|>analysis<|message|>Sum.<|end|><|start|>assistant to=functions.add<|channel|>commentary \
         <|constrain|>json<|message|>{}<|call|><|channel|>final<|message|>4<|return|>"
    );
    let pad = tokenizer.control_id("<|endoftext|>").unwrap();
    assert!(rows[0].ids[2 * n..].iter().all(|id| *id == pad));
    assert!(rows[0].ids[..2 * n].iter().all(|id| *id != pad));
}

#[test]
fn every_turn_is_a_segment_and_old_thoughts_stay_only_when_asked() {
    let two = line(&[USER, THOUGHT, ANSWER, USER, THOUGHT, ANSWER]);
    let [dropped, kept] =
        [false, true].map(|keep_analysis| rows(&two, ChatKeys { keep_analysis, ..ChatKeys::default() }).unwrap());
    let segments = |rows: &ChatRows| rows.rows[0].segment_ranges().len();
    assert_eq!((segments(&dropped), segments(&kept)), (2, 2));
    let thought = "<|start|>assistant<|channel|>analysis<|message|>Sum.<|end|>";
    // A byte-level vocabulary without merges: control tokens and bytes are one id each.
    let length = thought.len()
        - Harmony::CONTROL_TOKENS.iter().map(|t| thought.matches(t).count() * (t.len() - 1)).sum::<usize>();
    assert_eq!(kept.rows[0].n_used() - dropped.rows[0].n_used(), length);
    assert_eq!(kept.rows[0].weight_sum(), dropped.rows[0].weight_sum());
    assert_ne!(kept.fingerprint, dropped.fingerprint);
}

#[test]
fn s20_what_is_not_harmony_is_refused_by_file_and_line() {
    let good = line(&[USER, ANSWER]);
    let unknown = |from: &str, to: &str| line(&[&USER.replace(from, to), ANSWER]);
    let table: [(String, &str); 13] = [
        (unknown("user", "human"), "unknown role `human`"),
        (line(&[USER, &ANSWER.replace("final", "answer")]), "unknown channel `answer`"),
        (line(&[USER, r#"{"role":"assistant","content":"4"}"#]), "channel: expected analysis, commentary or final"),
        (line(&[USER, THOUGHT]), "expected every turn to end with the model's answer"),
        (line(&[USER, ANSWER, USER]), "a last message from user"),
        (unknown("2+2?", "<|start|>assistant"), "got `<|start|>`"),
        (line(&[USER, &ANSWER.replace("\"4\"", "\"4<|return|>\"")]), "got `<|return|>`"),
        (line(&[USER, &CALL.replace("{}", "{")]), "expected JSON"),
        ("{\"tokens\":[257,117]}\n".into(), "got the end of the 2 tokens"),
        ("{\"tokens\":[1,2,3]}\n".into(), "token 0"),
        ("{\"id\":\"a\"}\n".into(), "`messages` is missing"),
        (format!("{{\"messages\":[{USER},{ANSWER}],\"tokens\":[]}}\n"), "`messages` and `tokens` are both there"),
        (line(&[USER, ANSWER]).replace("\"id\"", "\"idea\""), "unknown field `idea`"),
    ];
    for (bad, what) in table {
        let error = rows(&format!("{good}\n{bad}"), ChatKeys::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("records.jsonl:3: ") && text.contains(what), "{text}, expected {what}");
    }
    let long = line(&[&USER.replace("2+2?", &"9".repeat(600)), ANSWER]);
    let text = rows(&format!("{good}{long}"), ChatKeys::default()).unwrap_err().to_string();
    assert!(text.contains("record 2 has") && text.contains("a row holds 512"), "{text}");
    assert!(rows("", ChatKeys::default()).is_err());
}

#[test]
fn plain_answers_stand_on_final_only_when_the_configuration_says_so() {
    let plain = line(&[USER, r#"{"role":"assistant","content":"4"}"#]);
    let keys = ChatKeys { channel: Some(DefaultChannel::Final), ..ChatKeys::default() };
    assert_eq!(rows(&plain, keys).unwrap().rows, rows(&line(&[USER, ANSWER]), ChatKeys::default()).unwrap().rows);
    assert!(rows(&plain, ChatKeys::default()).is_err());
    let table: ChatKeys = toml::from_str("format = 'harmony'\nkeep_analysis = true\nchannel = 'final'").unwrap();
    assert_eq!(table, ChatKeys { format: Some(ChatStyle::Harmony), keep_analysis: true, ..keys });
    assert!(toml::from_str::<ChatKeys>("channel = 'analysis'").is_err());
    assert_eq!(serde_json::to_string(&ChatKeys::default()).unwrap(), "{}");
}

#[test]
fn s20_a_gpt_oss_is_never_taught_another_format() {
    let (harmony, chatml) = (tokenizer(&HARMONY_TOKENS), tokenizer(&SPECIAL_TOKENS));
    let new = |format, tokenizer: &Tokenizer, model: &ModelConfig| {
        let keys = ChatKeys { format, ..ChatKeys::default() };
        ChatRenderer::new(&keys, tokenizer, model).map(|renderer| format!("{renderer:?}")).map_err(|e| e.to_string())
    };
    assert!(new(None, &harmony, &gpt_oss()).unwrap().contains("Harmony"));
    assert!(new(None, &harmony, &llama()).unwrap().contains("Harmony"));
    assert!(new(None, &chatml, &llama()).unwrap().contains("ChatMl"));
    assert!(new(None, &chatml, &gpt_oss()).unwrap_err().contains("<|start|>"));
    assert!(new(Some(ChatStyle::Harmony), &chatml, &llama()).unwrap_err().contains("<|start|>"));
    let refused = new(Some(ChatStyle::ChatMl), &chatml, &gpt_oss()).unwrap_err();
    assert!(refused.contains("chat.format") && refused.contains("GPT-OSS"), "{refused}");
    let keys = ChatKeys { keep_analysis: true, ..ChatKeys::default() };
    let refused = ChatRenderer::new(&keys, &chatml, &llama()).unwrap_err().to_string();
    assert!(refused.contains("keep_analysis"), "{refused}");
}

#[test]
fn both_answers_of_a_pair_share_their_prompt_and_nothing_else_counts() {
    let tokenizer = tokenizer(&HARMONY_TOKENS);
    let harmony = Harmony::new(&tokenizer).unwrap();
    let text = pairs("{\"prompt\":\"2+2?\",\"chosen\":\"4\",\"rejected\":\"5\",\"task\":\"sum\"}").unwrap();
    let messages = format!("{{\"prompt\":[{USER}],\"chosen\":[{ANSWER}],\"rejected\":[{THOUGHT},{ANSWER}]}}");
    let [from_text, from_messages] = [&text[0][0], &pairs(&messages).unwrap()[0][0]];
    assert_eq!(from_text, from_messages, "a text is a message on final");
    let open = format!("{{\"prompt\":[{USER},{THOUGHT},{CALL},{RESULT}],\"chosen\":[{ANSWER}],\"rejected\":[{CALL}]}}");
    for pair in [&text[0], &pairs(&messages).unwrap()[0], &pairs(&open).unwrap()[0]] {
        let first = pair.each_ref().map(|side| side.weights.iter().position(|w| *w > 0.0).unwrap());
        assert_eq!(pair[0].ids[..first[0]], pair[1].ids[..first[1]]);
        for side in pair {
            let counted: Vec<u32> =
                side.ids.iter().zip(&side.weights).filter(|(_, w)| **w > 0.0).map(|(id, _)| *id).collect();
            let counted = harmony.decode(&counted);
            assert!(!counted.contains("2+2?") && !counted.contains("functions.add to=assistant"), "{counted}");
            assert!(counted.ends_with("<|return|>") || counted.ends_with("<|call|>"), "{counted}");
        }
    }
}

#[test]
fn pairs_that_teach_nothing_or_no_format_are_refused_by_their_line() {
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        format!("{{\"prompt\":{prompt},\"chosen\":{chosen},\"rejected\":{rejected}}}\n")
    };
    let good = pair("\"?\"", "\"4\"", "\"5\"");
    let answer = format!("[{ANSWER}]");
    for (bad, what) in [
        (pair("\"?\"", "\"4\"", "\"4\""), "`chosen` equals `rejected`"),
        (pair("\"?\"", "\"4\"", &answer), "`chosen` equals `rejected`"),
        (pair(&answer, "\"4\"", "\"5\""), "a prompt that ends with assistant"),
        (pair("[]", "\"4\"", "\"5\""), "no message"),
        (pair("\"?\"", &format!("[{THOUGHT}]"), "\"5\""), "assistant on analysis"),
        (pair("\"?\"", &format!("[{USER},{ANSWER}]"), "\"5\""), "an answer with a message from user"),
        (pair("\"?\"", "\"4<|end|>\"", "\"5\""), "got `<|end|>`"),
        (pair("3", "\"4\"", "\"5\""), "a text or a list of messages"),
    ] {
        let text = pairs(&format!("{good}{bad}")).unwrap_err().to_string();
        assert!(text.contains("records.jsonl:2: ") && text.contains(what), "{text}, expected {what}");
    }
}

#[test]
fn an_attempt_that_is_left_out_is_read_but_not_learnt() {
    let turn = [USER, THOUGHT, CALL, RESULT, THOUGHT, CALL, RESULT, ANSWER];
    let whole = rows(&line(&turn), ChatKeys::default()).unwrap().rows;
    let part = line(&turn).replace("\"id\"", "\"untrained\":[1,2],\"id\"");
    let part = rows(&part, ChatKeys::default()).unwrap().rows;
    assert_eq!((part.len(), &part[0].ids), (1, &whole[0].ids));
    let tokenizer = tokenizer(&HARMONY_TOKENS);
    let harmony = Harmony::new(&tokenizer).unwrap();
    let learnt = |row: &TokenRow| {
        let ids: Vec<u32> = row.ids.iter().zip(&row.weights).filter(|(_, w)| **w > 0.0).map(|(id, _)| *id).collect();
        harmony.decode(&ids)
    };
    let attempt = "<|channel|>analysis<|message|>Sum.<|end|><|start|>assistant to=functions.add<|channel|>commentary \
                   <|constrain|>json<|message|>{}<|call|>";
    assert_eq!(learnt(&whole[0]), format!("{attempt}{attempt}<|channel|>final<|message|>4<|return|>"));
    assert_eq!(learnt(&part[0]), format!("{attempt}<|channel|>final<|message|>4<|return|>"));
    for places in ["[0]", "[3]", "[8]"] {
        let wrong = line(&turn).replace("\"id\"", &format!("\"untrained\":{places},\"id\""));
        let error = rows(&wrong, ChatKeys::default()).unwrap_err().to_string();
        assert!(error.contains("records.jsonl") && error.contains("untrained"), "{error}");
    }
}
