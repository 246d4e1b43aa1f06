//! Repetition: the share of 4-grams in greedy continuations that were said before in the same continuation.

use std::collections::HashSet;

use data_pipeline::RowSet;
use gates::{Direction, Metric, interval};
use kernels_cubecl::LmBackend;
use model_core::{Decoder, Sampling, Tokenizer, generate};

use crate::error::EvalError;
use crate::suite::{Repetition, Settings};

/// Tokens of an n-gram.
const N: usize = 4;

/// Measures `<name>.repeated_4grams` on continuations of the first documents; n counts continuations.
///
/// The prompt is not searched, only what the model added.
///
/// # Errors
/// Rows of another tokenizer, too few documents that are long enough, prompt and continuation beyond the context.
pub fn run<B: LmBackend>(
    name: &str,
    rows: &RowSet,
    tokenizer: &Tokenizer,
    model: &Decoder<B>,
    how: &Repetition,
    settings: &Settings,
) -> Result<Vec<Metric>, EvalError> {
    rows.require_tokenizer(tokenizer.hash())?;
    let (len, max) = (how.prompt_tokens + how.new_tokens, model.config.max_seq_len);
    if len > max {
        return Err(EvalError::TooLong { task: name.into(), item: 0, len, max });
    }
    let prompts: Vec<Vec<u32>> = rows
        .rows()
        .iter()
        .flat_map(|row| row.segment_ranges().into_iter().map(|range| &row.ids[range]))
        .filter(|ids| ids.len() >= how.prompt_tokens)
        .take(how.samples)
        .map(|ids| ids[..how.prompt_tokens].to_vec())
        .collect();
    if prompts.len() < how.samples {
        let problem = "fewer documents than `samples` have `prompt_tokens` tokens; lower one of the two";
        return Err(EvalError::BadItem { task: name.into(), item: prompts.len(), problem });
    }
    let continuations = generate(model, &prompts, &Sampling::greedy(how.new_tokens))?;
    let shares: Vec<(f64, f64)> = continuations.iter().map(|ids| repeated(ids)).collect();
    let estimate = interval::ratio(&shares, settings.resamples, settings.seed);
    let metric = Metric::new(&format!("{name}.repeated_4grams"), Direction::Lower, estimate, rows.fingerprint());
    Ok(vec![metric])
}

/// Repeated and all n-grams.
fn repeated(ids: &[u32]) -> (f64, f64) {
    let (mut seen, all) = (HashSet::new(), ids.windows(N).len());
    let distinct = ids.windows(N).filter(|gram| seen.insert(*gram)).count();
    ((all - distinct) as f64, all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::fixture::{tiny, tokenizer, write_rows_of};

    #[test]
    fn repeats_are_counted_once_each_time_they_come_back() {
        assert_eq!(repeated(&[1, 2, 3, 4, 5, 6]), (0.0, 3.0));
        assert_eq!(repeated(&[7; 10]), (6.0, 7.0));
        // 1234 2341 3412 4123 1234: one comes back.
        assert_eq!(repeated(&[1, 2, 3, 4, 1, 2, 3, 4]), (1.0, 5.0));
        assert_eq!(repeated(&[1, 2]), (0.0, 0.0));
    }

    #[test]
    fn continuations_come_from_documents_that_are_long_enough() {
        let ((model, _), tokenizer) = (tiny(), tokenizer());
        let dir = tempfile::tempdir().unwrap();
        let rows = write_rows_of(
            &dir.path().join("rows"),
            &["the dry oak burns", "no", "fire clay and brick"],
            48,
            &tokenizer,
        );
        let settings = Settings { seed: 1, resamples: 20, batch_tokens: 64 };
        let how = Repetition { samples: 2, prompt_tokens: 8, new_tokens: 12 };
        let metric = run("loops", &rows, &tokenizer, &model, &how, &settings).unwrap().remove(0);
        assert_eq!((metric.name.as_str(), metric.n), ("loops.repeated_4grams", 2));
        assert!((0.0..=1.0).contains(&metric.value));
        let three = Repetition { samples: 3, ..how };
        assert!(run("loops", &rows, &tokenizer, &model, &three, &settings).is_err());
        let long = Repetition { new_tokens: 10_000, ..how };
        assert!(matches!(run("loops", &rows, &tokenizer, &model, &long, &settings), Err(EvalError::TooLong { .. })));
    }
}
