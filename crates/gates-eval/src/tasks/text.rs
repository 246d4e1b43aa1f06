//! Perplexity and bits per byte of held-out token rows.
//!
//! `perplexity = exp(Σ nll / tokens)` depends on the tokenizer; `bits_per_byte = Σ nll / ln 2 / bytes` does not, since
//! it divides by the bytes of text that the scored tokens stand for. The tokens and bytes are those of
//! `data_pipeline::ShardMeta::text_bytes`: every token with a weight above 0.

use data_pipeline::{PADDING_SEGMENT, RowSet, TokenRow};
use gates::{Direction, Metric, interval};
use kernels_cubecl::LmBackend;
use model_core::Tokenizer;
use model_core::rows::PADDING;

use crate::error::EvalError;
use crate::score::{ScoredRow, Scorer, TokenScore};
use crate::suite::Settings;

/// Nats, tokens and bytes of one document, or of the part of it that a row holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Document {
    nats: f64,
    tokens: f64,
    bytes: f64,
}

/// Measures `<name>.perplexity` and `<name>.bits_per_byte`; n counts documents, which the bootstrap draws whole.
///
/// # Errors
/// Rows of another tokenizer, rows longer than the model's context, rows whose text size is not what they record.
pub fn run<B: LmBackend>(
    name: &str,
    rows: &RowSet,
    tokenizer: &Tokenizer,
    scorer: &Scorer<'_, B>,
    settings: &Settings,
) -> Result<Vec<Metric>, EvalError> {
    rows.require_tokenizer(tokenizer.hash())?;
    let scored: Vec<ScoredRow> = rows.rows().iter().map(to_scored).collect();
    let scores = scorer.score(name, &scored)?;
    let documents: Vec<Document> =
        rows.rows().iter().zip(&scored).zip(&scores).flat_map(|((r, s), t)| documents(r, s, t, tokenizer)).collect();
    let (recorded, counted) = (rows.meta().text_bytes, documents.iter().map(|d| d.bytes).sum::<f64>() as u64);
    if recorded != counted {
        return Err(EvalError::TextBytes { task: name.into(), recorded, counted });
    }
    let per_token: Vec<(f64, f64)> = documents.iter().map(|d| (d.nats, d.tokens)).collect();
    let per_byte: Vec<(f64, f64)> = documents.iter().map(|d| (d.nats / std::f64::consts::LN_2, d.bytes)).collect();
    let ratio = |items: &[(f64, f64)]| interval::ratio(items, settings.resamples, settings.seed);
    let metric =
        |part: &str, estimate| Metric::new(&format!("{name}.{part}"), Direction::Lower, estimate, rows.fingerprint());
    Ok(vec![metric("perplexity", ratio(&per_token).map(f64::exp)), metric("bits_per_byte", ratio(&per_byte))])
}

fn to_scored(row: &TokenRow) -> ScoredRow {
    let segment = |&segment: &u32| if segment == PADDING_SEGMENT { PADDING } else { segment as i32 };
    ScoredRow {
        ids: row.ids.clone(),
        segments: row.segments.iter().map(segment).collect(),
        scored: (0..row.ids.len()).filter(|&i| row.weights[i] > 0.0).collect(),
    }
}

/// The documents of one row that have a scored token, in order.
fn documents(row: &TokenRow, scored: &ScoredRow, scores: &[TokenScore], tokenizer: &Tokenizer) -> Vec<Document> {
    let mut found: Vec<(u32, Document)> = Vec::new();
    for (&i, score) in scored.scored.iter().zip(scores) {
        if found.last().is_none_or(|(segment, _)| *segment != row.segments[i]) {
            found.push((row.segments[i], Document::default()));
        }
        let (_, document) = found.last_mut().expect("pushed above");
        document.nats -= score.logprob;
        document.tokens += 1.0;
        if !tokenizer.is_control(row.ids[i]) {
            document.bytes += tokenizer.token_bytes(row.ids[i]).map_or(0, <[u8]>::len) as f64;
        }
    }
    found.into_iter().map(|(_, document)| document).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::fixture::{tiny, tokenizer, write_rows_of};

    const SETTINGS: Settings = Settings { seed: 1, resamples: 50, batch_tokens: 64 };

    #[test]
    fn bits_per_byte_is_the_summed_loss_over_the_text() {
        let ((model, device), tokenizer) = (tiny(), tokenizer());
        let dir = tempfile::tempdir().unwrap();
        let texts = ["the oak burns", "a dry day", "firebrick, fire clay"];
        let rows = write_rows_of(&dir.path().join("rows"), &texts, 48, &tokenizer);
        let scorer = Scorer { model: &model, device: &device, batch_tokens: 64 };
        let metrics = run("heldout", &rows, &tokenizer, &scorer, &SETTINGS).unwrap();
        // Each text alone, as single sequences without packing.
        let alone: Vec<ScoredRow> = texts.iter().map(|t| ScoredRow::tail(tokenizer.encode(t), 1)).collect();
        let scores = scorer.score("alone", &alone).unwrap();
        let nats: f64 = scores.iter().flatten().map(|s| -s.logprob).sum();
        // Byte tokens: the first of each text is not predicted.
        let bytes: f64 = texts.iter().map(|t| t.len() as f64 - 1.0).sum();
        let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-5, "got {got}, want {want}");
        near(metrics[1].value, nats / bytes / 2f64.ln());
        near(metrics[0].value, (nats / bytes).exp());
        assert_eq!(
            (metrics[0].name.as_str(), metrics[1].name.as_str()),
            ("heldout.perplexity", "heldout.bits_per_byte")
        );
        for metric in &metrics {
            assert_eq!((metric.n, metric.dataset_hash.as_str()), (3, rows.fingerprint()));
            assert!(metric.ci_low <= metric.value && metric.value <= metric.ci_high, "{metric:?}");
        }
    }

    #[test]
    fn rows_of_another_tokenizer_are_refused() {
        let ((model, device), tokenizer) = (tiny(), tokenizer());
        let dir = tempfile::tempdir().unwrap();
        let other = crate::tasks::fixture::other_tokenizer();
        let rows = write_rows_of(&dir.path().join("rows"), &["the oak"], 16, &other);
        let scorer = Scorer { model: &model, device: &device, batch_tokens: 64 };
        assert!(matches!(run("t", &rows, &tokenizer, &scorer, &SETTINGS), Err(EvalError::Data(_))));
    }
}
