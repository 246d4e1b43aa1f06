//! Exact answers: the share of conversations whose last answer is what greedy decoding would say, word for word.

use data_pipeline::records::{RecordSet, Role, SftRecord};
use gates::Metric;
use kernels_cubecl::LmBackend;
use model_core::{ChatFormat, Tokenizer};
use trainer::render::{prompt_ids, sft_sequence};

use super::{accuracies, row_of};
use crate::error::EvalError;
use crate::score::{ScoredRow, Scorer, TokenScore};

/// Measures `<name>.accuracy` and `<name>.accuracy.<task>`.
///
/// The prompt is everything up to the last answer; only that answer and its end token are scored, so no word of the
/// prompt can count as an answer.
///
/// # Errors
/// A conversation that does not end with an answer, one that does not fit the context, a tokenizer without chat
/// tokens.
pub fn run<B: LmBackend>(
    name: &str,
    records: &RecordSet<SftRecord>,
    tokenizer: &Tokenizer,
    scorer: &Scorer<'_, B>,
) -> Result<Vec<Metric>, EvalError> {
    let format = ChatFormat::detect(tokenizer)?;
    let mut rows = Vec::with_capacity(records.records.len());
    for (item, record) in records.records.iter().enumerate() {
        let Some(row) = answer_row(record, format, tokenizer)? else {
            let problem = "the last message must be the assistant's answer; remove what follows it";
            return Err(EvalError::BadItem { task: name.into(), item, problem });
        };
        rows.push(row);
    }
    let scores = scorer.score(name, &rows)?;
    let verdict = |(record, scores): (&SftRecord, Vec<TokenScore>)| {
        let finite = scores.iter().all(|s| s.logprob.is_finite());
        (record.task.clone(), finite.then(|| scores.iter().all(|s| s.is_argmax)))
    };
    let verdicts: Vec<_> = records.records.iter().zip(scores).map(verdict).collect();
    Ok(accuracies(name, &verdicts, &records.fingerprint))
}

/// The conversation as one sequence whose last answer, with the token that ends it, is scored; none when something
/// else comes last.
fn answer_row(record: &SftRecord, format: ChatFormat, tokenizer: &Tokenizer) -> Result<Option<ScoredRow>, EvalError> {
    let Some((_, prompt)) = record.messages.split_last().filter(|(last, _)| last.role == Role::Assistant) else {
        return Ok(None);
    };
    let from = prompt_ids(prompt, format, tokenizer)?.len();
    Ok(Some(row_of(sft_sequence(record, format, tokenizer)?, from)))
}

#[cfg(test)]
mod tests {
    use data_pipeline::records::Message;
    use model_core::{Sampling, generate};

    use super::*;
    use crate::tasks::fixture::{tiny, tokenizer};

    fn record(question: &str, answer: &str) -> SftRecord {
        let messages = vec![Message::new(Role::User, question), Message::new(Role::Assistant, answer)];
        let (id, task, source, licence) = (String::new(), "echo".to_owned(), String::new(), String::new());
        SftRecord { messages, id, task, source, licence }
    }

    fn run_on(records: Vec<SftRecord>) -> Result<Vec<Metric>, EvalError> {
        let ((model, device), tokenizer) = (tiny(), tokenizer());
        let records = RecordSet { records, fingerprint: "d".into() };
        run("answers", &records, &tokenizer, &Scorer { model: &model, device: &device, batch_tokens: 256 })
    }

    #[test]
    fn s06_only_the_answer_and_its_end_token_are_scored() {
        let tokenizer = tokenizer();
        let mut record = record("hi", "yes");
        let earlier = [Message::new(Role::User, "and"), Message::new(Role::Assistant, "no")];
        record.messages.splice(0..0, earlier);
        let row = answer_row(&record, ChatFormat::ChatMl, &tokenizer).unwrap().unwrap();
        let scored: Vec<u32> = row.scored.iter().map(|&i| row.ids[i]).collect();
        let mut want = tokenizer.encode("yes");
        want.push(tokenizer.control_id("<|im_end|>").unwrap());
        assert_eq!(scored, want);
        assert_eq!(row.ids.len(), row.scored.last().unwrap() + 1);
    }

    #[test]
    fn teacher_forcing_agrees_with_greedy_generation() {
        let ((model, device), tokenizer) = (tiny(), tokenizer());
        let format = ChatFormat::ChatMl;
        let scorer = Scorer { model: &model, device: &device, batch_tokens: 256 };
        for question in ["ab", "the dry oak", "x"] {
            let prompt = prompt_ids(&record(question, "-").messages[..1], format, &tokenizer).unwrap();
            let greedy = generate(&model, std::slice::from_ref(&prompt), &Sampling::greedy(6)).unwrap().remove(0);
            let hits = |answer: &[u32]| {
                let row = ScoredRow::tail([&prompt[..], answer].concat(), prompt.len());
                scorer.score("t", &[row]).unwrap()[0].iter().map(|s| s.is_argmax).collect::<Vec<_>>()
            };
            assert_eq!(hits(&greedy), [true; 6]);
            let mut wrong = greedy.clone();
            wrong[3] = (wrong[3] + 1) % 250;
            assert!(!hits(&wrong)[3] && hits(&wrong)[..3] == [true; 3]);
        }
    }

    #[test]
    fn a_conversation_must_end_with_an_answer() {
        let mut bad = record("a", "b");
        bad.messages.push(Message::new(Role::User, "c"));
        let message = run_on(vec![record("a", "b"), bad]).unwrap_err().to_string();
        assert!(message.contains("task `answers`, item 1"), "{message}");
    }

    #[test]
    fn an_untrained_model_answers_nothing_and_says_so_with_an_interval() {
        let metrics = run_on((0..20).map(|i| record(&format!("q{i}"), "an answer of many tokens")).collect()).unwrap();
        assert_eq!(
            metrics.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(),
            ["answers.accuracy", "answers.accuracy.echo"]
        );
        assert_eq!((metrics[0].value, metrics[0].n, metrics[0].ci_low), (0.0, 20, 0.0));
        assert!(metrics[0].ci_high > 0.1, "{:?}", metrics[0]);
    }
}
