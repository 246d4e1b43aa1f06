//! Preferences: the share of pairs whose chosen answer is more likely than the rejected one.
//!
//! Plain sums of log-probabilities of answer and end token, given the prompt; no reference model and no division by
//! length, so that the number needs nothing but the model.

use data_pipeline::records::{PreferenceRecord, RecordSet};
use gates::{Direction, Metric, interval};
use kernels_cubecl::LmBackend;
use model_core::{ChatFormat, Tokenizer};
use trainer::render::preference_sequences;

use super::{accuracies, row_of};
use crate::error::EvalError;
use crate::score::{Scorer, TokenScore};

/// Measures `<name>.accuracy`, `<name>.accuracy.<task>`, and `<name>.margin`, the mean difference in nats.
///
/// A tie is no preference and counts as a miss.
///
/// # Errors
/// An answer that does not fit the context (items count chosen and rejected answers), a tokenizer without chat tokens.
pub fn run<B: LmBackend>(
    name: &str,
    records: &RecordSet<PreferenceRecord>,
    tokenizer: &Tokenizer,
    scorer: &Scorer<'_, B>,
) -> Result<Vec<Metric>, EvalError> {
    let format = ChatFormat::detect(tokenizer)?;
    let mut rows = Vec::with_capacity(2 * records.records.len());
    for record in &records.records {
        let (chosen, rejected) = preference_sequences(record, format, tokenizer)?;
        rows.extend([row_of(chosen, 0), row_of(rejected, 0)]);
    }
    let scores = scorer.score(name, &rows)?;
    let sum = |scores: &Vec<TokenScore>| scores.iter().map(|s| s.logprob).sum::<f64>();
    let margins: Vec<f64> = scores.chunks(2).map(|pair| sum(&pair[0]) - sum(&pair[1])).collect();
    let verdict = |(record, margin): (&PreferenceRecord, &f64)| {
        (record.task.clone(), margin.is_finite().then_some(*margin > 0.0))
    };
    let verdicts: Vec<_> = records.records.iter().zip(&margins).map(verdict).collect();
    let mut metrics = accuracies(name, &verdicts, &records.fingerprint);
    let margin = interval::mean(&margins);
    metrics.push(Metric::new(&format!("{name}.margin"), Direction::Higher, margin, &records.fingerprint));
    Ok(metrics)
}

#[cfg(test)]
mod tests {
    use data_pipeline::records::{Message, Role};
    use trainer::render::prompt_ids;

    use super::*;
    use crate::score::ScoredRow;
    use crate::tasks::fixture::{tiny, tokenizer};

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
        let measure = |pairs: Vec<PreferenceRecord>| {
            let records = RecordSet { records: pairs, fingerprint: "d".into() };
            run("preferences", &records, &tokenizer, &scorer).unwrap()
        };
        let there = measure(vec![pair("oak", "ash tree"), pair("left", "right")]);
        let back = measure(vec![pair("ash tree", "oak"), pair("right", "left")]);
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
        let got = measure(vec![pair("oak", "ash tree")])[1].value;
        let want = sum("oak") - sum("ash tree");
        assert!((got - want).abs() < 1e-4, "{got} {want}");
    }
}
