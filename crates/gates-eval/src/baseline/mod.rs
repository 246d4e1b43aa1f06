//! What a language model must beat: counting n-grams, and a compressor that has read the training text.
//!
//! Both are scored on the very tokens that [`crate::tasks::text`] scores, or on the text of those rows, so that their
//! bits per byte can stand beside the model's.

pub mod ngram;
pub mod xz;

use data_pipeline::{RowSet, TokenRow};
use gates::interval::Estimate;
use gates::{Direction, Metric};
use model_core::Tokenizer;

use crate::error::EvalError;

/// Measures both baselines; the metrics are `<name>.bits_per_byte.ngram<order>` and `<name>.bits_per_byte.xz`.
///
/// They are sums over all held-out rows, which are their n, and have no interval: a policy compares their points.
///
/// # Errors
/// Rows of two tokenizers, an impossible order, rows without text.
pub fn measure(
    name: &str,
    train: &RowSet,
    heldout: &RowSet,
    tokenizer: &Tokenizer,
    order: usize,
) -> Result<Vec<Metric>, EvalError> {
    for rows in [train, heldout] {
        rows.require_tokenizer(tokenizer.hash())?;
    }
    let (ngram, xz) = rayon::join(
        || ngram::score(train.rows(), heldout.rows(), heldout.meta().vocab_size, order),
        || xz::score(&text_of(train.rows(), tokenizer), &text_of(heldout.rows(), tokenizer)),
    );
    let n = heldout.rows().len() as u64;
    let metric = |kind: &str, bits_per_byte: f64| {
        let name = format!("{name}.bits_per_byte.{kind}");
        let estimate = Estimate::without_interval(bits_per_byte, n);
        Metric::new(&name, Direction::Lower, estimate, heldout.fingerprint())
    };
    let ngram = ngram?.bits_per_byte(heldout.meta().text_bytes);
    Ok(vec![metric(&format!("ngram{order}"), ngram), metric("xz", xz?.bits_per_byte())])
}

/// The text that rows were made of, without padding; a control token becomes a line end, as documents in a text file.
pub fn text_of(rows: &[TokenRow], tokenizer: &Tokenizer) -> Vec<u8> {
    let mut text = Vec::new();
    for row in rows {
        for &id in &row.ids[..row.n_used()] {
            match tokenizer.token_bytes(id) {
                Some(bytes) if !tokenizer.is_control(id) => text.extend_from_slice(bytes),
                _ => text.push(b'\n'),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::fixture::{other_tokenizer, tokenizer, write_rows_of};

    #[test]
    fn both_baselines_are_measured_on_the_held_out_rows() {
        let tokenizer = tokenizer();
        let dir = tempfile::tempdir().unwrap();
        let texts: Vec<String> = (0..40).map(|i| format!("the {i}th brick of the wall is dry and red")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let train = write_rows_of(&dir.path().join("train"), &texts[..30], 96, &tokenizer);
        let heldout = write_rows_of(&dir.path().join("heldout"), &texts[30..], 96, &tokenizer);
        let metrics = measure("heldout", &train, &heldout, &tokenizer, 4).unwrap();
        let names: Vec<&str> = metrics.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["heldout.bits_per_byte.ngram4", "heldout.bits_per_byte.xz"]);
        for metric in &metrics {
            assert_eq!((metric.n, metric.dataset_hash.as_str()), (heldout.rows().len() as u64, heldout.fingerprint()));
            assert!(metric.value > 0.0 && metric.value < 3.0, "repeating text is cheap: {metric:?}");
        }
        assert!(measure("heldout", &train, &heldout, &other_tokenizer(), 4).is_err());
    }

    #[test]
    fn text_is_what_the_rows_were_made_of() {
        let tokenizer = tokenizer();
        let dir = tempfile::tempdir().unwrap();
        let rows = write_rows_of(&dir.path().join("rows"), &["dry oak", "brick"], 16, &tokenizer);
        assert_eq!(text_of(rows.rows(), &tokenizer), b"dry oakbrick");
        let mut with_end = rows.rows().to_vec();
        with_end[0].ids[6] = 256;
        assert_eq!(text_of(&with_end, &tokenizer), b"dry oa\nbrick");
    }
}
