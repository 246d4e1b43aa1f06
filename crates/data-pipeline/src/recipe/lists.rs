//! Exercises about lists of words: attention, not knowledge, answers them, so they carry over to unseen words.

use super::lexicon::View;
use super::rng::Rng;
use super::task::{Parts, Task, draw, quote, quote_all, quoted};

const NUMBERS: [&str; 7] = ["zero", "one", "two", "three", "four", "five", "six"];

/// Makes an exercise of one of this module's tasks.
pub(super) fn make(task: Task, view: &View, rng: &mut Rng) -> Option<Parts> {
    match task {
        Task::Count => return count(view, rng),
        Task::Repeat => {
            let words = draw(&view.words, rng, 2)?;
            return Some((vec![("{a}", quote(words[0]))], words[0].into(), vec![words[1].into()]));
        }
        _ => {}
    }
    let n = 3 + rng.below(2);
    let words = draw(&view.words, rng, n)?;
    let list = ("{list}", quote_all(&words));
    let at = rng.below(n);
    let others = |not: &str| words.iter().filter(|w| **w != not).map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let asked = |word: &str| ("{a}", quote(word));
    Some(match task {
        Task::First => (vec![list], words[0].into(), others(words[0])),
        Task::Last => (vec![list], words[n - 1].into(), others(words[n - 1])),
        Task::After if at > 0 => (vec![asked(words[at - 1]), list], words[at].into(), others(words[at])),
        Task::Before if at + 1 < n => (vec![asked(words[at + 1]), list], words[at].into(), others(words[at])),
        Task::Twice => {
            let mut twice = words.clone();
            twice.push(words[at]);
            rng.shuffle(&mut twice);
            (vec![("{list}", quote_all(&twice))], words[at].into(), others(words[at]))
        }
        _ => return None,
    })
}

fn count(view: &View, rng: &mut Rng) -> Option<Parts> {
    let n = 2 + rng.below(NUMBERS.len() - 2);
    let words = draw(&view.words, rng, n)?;
    let near = [NUMBERS.get(n + 1), NUMBERS.get(n - 1).filter(|_| n > 2)];
    let wrong = near.into_iter().flatten().map(|w| (*w).to_owned()).collect();
    Some((vec![("{list}", quote_all(&words))], NUMBERS[n].into(), wrong))
}

/// Answers a question of one of this module's tasks.
pub(super) fn solve(task: Task, question: &str) -> Option<String> {
    let words = quoted(question);
    let (asked, list) = words.split_first()?;
    let place = || list.iter().position(|w| w == asked);
    let text: &str = match task {
        Task::Repeat | Task::First => asked,
        Task::Last => words.last()?,
        Task::After => list.get(place()? + 1)?,
        Task::Before => list.get(place()?.checked_sub(1)?)?,
        Task::Twice => words.iter().find(|w| words.iter().filter(|v| v == w).count() == 2)?,
        Task::Count => NUMBERS.get(words.len())?,
        _ => return None,
    };
    Some(text.to_owned())
}
