//! Preferences: the share of pairs whose chosen answer is more likely than the rejected one.
//!
//! Log-probabilities of answer and end token, given the prompt; no reference model, so that the number needs nothing but the
//! model. `accuracy` compares plain sums, `accuracy_per_token` means, which answers of different length leave as they are.

use std::path::Path;

use data_pipeline::Sequence;
use data_pipeline::records::{PreferenceRecord, read_preferences};
use gates::{Direction, Metric, interval};
use kernels_cubecl::LmBackend;
use model_core::{ChatFormat, Tokenizer};
use trainer::render::{ChatKeys, ChatRenderer, preference_sequences};

use super::{accuracies, row_of, share};
use crate::error::EvalError;
use crate::score::{Scorer, TokenScore};

/// Measures `<name>.accuracy`, `<name>.accuracy.<task>`, `<name>.margin`, the mean difference in nats, and
/// `<name>.accuracy_per_token`, in the chat format of the model.
///
/// A tie is no preference and counts as a miss.
///
/// # Errors
/// Records that cannot be read or rendered, an answer that does not fit the context (items count chosen and rejected answers),
/// a tokenizer without chat tokens.
pub fn run<B: LmBackend>(
    name: &str,
    data: &Path,
    tokenizer: &Tokenizer,
    scorer: &Scorer<'_, B>,
) -> Result<Vec<Metric>, EvalError> {
    let config = &scorer.model.config;
    let renderer = ChatRenderer::new(&ChatKeys::default(), tokenizer, config)?;
    if renderer.is_harmony() {
        // Every answer is a row of its own here, whose length the scorer checks.
        let room = 2 * config.max_seq_len;
        let pairs = renderer.pairs(data, room)?.into_iter().map(|pair| (String::new(), pair)).collect();
        return measure(name, pairs, &renderer.fingerprint(data, room)?, scorer);
    }
    let records = read_preferences(data)?;
    measure(name, rendered(&records.records, tokenizer)?, &records.fingerprint, scorer)
}

/// Chosen and rejected answer of every record with the name of its exercise.
fn rendered(records: &[PreferenceRecord], tokenizer: &Tokenizer) -> Result<Vec<(String, [Sequence; 2])>, EvalError> {
    let format = ChatFormat::detect(tokenizer)?;
    let pair = |record: &PreferenceRecord| {
        let (chosen, rejected) = preference_sequences(record, format, tokenizer)?;
        Ok((record.task.clone(), [chosen, rejected]))
    };
    records.iter().map(pair).collect()
}

fn measure<B: LmBackend>(
    name: &str,
    pairs: Vec<(String, [Sequence; 2])>,
    fingerprint: &str,
    scorer: &Scorer<'_, B>,
) -> Result<Vec<Metric>, EvalError> {
    let (tasks, sides): (Vec<String>, Vec<[Sequence; 2]>) = pairs.into_iter().unzip();
    let rows: Vec<_> = sides.into_iter().flatten().map(|side| row_of(side, 0)).collect();
    let scores = scorer.score(name, &rows)?;
    let sum = |scores: &Vec<TokenScore>| scores.iter().map(|s| s.logprob).sum::<f64>();
    let mean = |scores: &Vec<TokenScore>| sum(scores) / scores.len() as f64;
    let margins: Vec<f64> = scores.chunks(2).map(|pair| sum(&pair[0]) - sum(&pair[1])).collect();
    let is_preferred = |margin: f64| margin.is_finite().then_some(margin > 0.0);
    let verdicts: Vec<_> =
        tasks.into_iter().zip(&margins).map(|(task, margin)| (task, is_preferred(*margin))).collect();
    let mut metrics = accuracies(name, &verdicts, fingerprint);
    let margin = interval::mean(&margins);
    metrics.push(Metric::new(&format!("{name}.margin"), Direction::Higher, margin, fingerprint));
    let per_token: Vec<_> = scores.chunks(2).map(|pair| is_preferred(mean(&pair[0]) - mean(&pair[1]))).collect();
    let name = format!("{name}.accuracy_per_token");
    metrics.push(Metric::new(&name, Direction::Higher, share(&per_token), fingerprint));
    Ok(metrics)
}

#[cfg(test)]
mod tests {
    use data_pipeline::records::{Message, Role};
    use trainer::render::prompt_ids;

    use super::*;
    use crate::score::ScoredRow;
    use crate::tasks::fixture::{harmony_tokenizer, tiny, tiny_gpt_oss, tokenizer};

    #[test]
    fn the_more_likely_answer_wins_and_swapping_turns_the_verdict() {
        let ((model, device), tokenizer) = (tiny(), tokenizer());
        let scorer = Scorer { model: &model, device: &device, batch_tokens: 128 };
        let pair = |chosen: &str, rejected: &str| PreferenceRecord {
            prompt: vec![Message::new(Role::User, "which?")],
            chosen: chosen.into(),
            rejected: rejected.into(),
            id: String::new(),
            task: String::new(),
            source: String::new(),
            licence: String::new(),
        };
        let of = |pairs: Vec<PreferenceRecord>| {
            measure("preferences", rendered(&pairs, &tokenizer).unwrap(), "d", &scorer).unwrap()
        };
        let there = of(vec![pair("oak", "ash tree"), pair("left", "right")]);
        let back = of(vec![pair("ash tree", "oak"), pair("right", "left")]);
        assert_eq!((there[0].value + back[0].value, there[0].n), (1.0, 2));
        assert!((there[1].value + back[1].value).abs() < 1e-4, "{there:?} {back:?}");
        // The margin by hand, for one pair.
        let format = ChatFormat::ChatMl;
        let prompt = prompt_ids(&pair("a", "b").prompt, format, &tokenizer).unwrap();
        let end = tokenizer.control_id("<|im_end|>").unwrap();
        let sum = |answer: &str| {
            let ids = [&prompt[..], &tokenizer.encode(answer), &[end]].concat();
            scorer.score("t", &[ScoredRow::tail(ids, prompt.len())]).unwrap()[0].iter().map(|s| s.logprob).sum::<f64>()
        };
        let got = of(vec![pair("oak", "ash tree")])[1].value;
        let want = sum("oak") - sum("ash tree");
        assert!((got - want).abs() < 1e-4, "{got} {want}");
    }

    /// The records of a GPT-OSS are Harmony's, and an answer of many likely tokens beats one of few only in the mean.
    #[test]
    fn answers_in_harmony_are_compared_by_their_sums_and_by_their_means() {
        let (model, device) = tiny_gpt_oss();
        let tokenizer = harmony_tokenizer();
        let scorer = Scorer { model: &model, device: &device, batch_tokens: 256 };
        let dir = tempfile::tempdir().unwrap();
        let of = |chosen: &str, rejected: &str| {
            let path = dir.path().join("pairs.jsonl");
            let line = |prompt: &str| format!(r#"{{"prompt":"{prompt}","chosen":"{chosen}","rejected":"{rejected}"}}"#);
            std::fs::write(&path, [line("which?"), line("and now?")].join("\n")).unwrap();
            let metrics = run("p", &path, &tokenizer, &scorer).unwrap();
            let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
            assert_eq!(names, ["p.accuracy", "p.margin", "p.accuracy_per_token"]);
            assert_eq!(metrics[0].n, 2);
            [metrics[0].value, metrics[2].value]
        };
        let long = "oak ".repeat(9);
        let [there, back] = [of(&long, "ash"), of("ash", &long)];
        assert_eq!((there[0], back[0]), (0.0, 1.0), "a sum over ten times the tokens is lower");
        assert_eq!(there[1] + back[1], 1.0);
    }
}
