//! Exercises about lists and short scenes: attention, not knowledge, answers them, so they carry over to unseen words.

use super::lexicon::View;
use super::rng::Rng;
use super::task::{Parts, Task, draw, quote, quote_all, quoted};

const NUMBERS: [&str; 7] = ["zero", "one", "two", "three", "four", "five", "six"];
const COLOURS: [&str; 6] = ["red", "blue", "green", "white", "black", "brown"];

/// Makes an exercise of one of this module's tasks.
pub(super) fn make(task: Task, view: &View, rng: &mut Rng) -> Option<Parts> {
    match task {
        Task::Count => return count(view, rng),
        Task::ColourOf | Task::ThingOf => return scene(task, view, rng),
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
        Task::Missing => {
            let mut left = words.clone();
            left.remove(at);
            rng.shuffle(&mut left);
            (vec![list, ("{more}", quote_all(&left))], words[at].into(), others(words[at]))
        }
        Task::Member => {
            let inside = rng.below(2) == 0;
            let asked_word = if inside { words[at] } else { draw(&view.words, rng, 1)?[0] };
            if inside != words.contains(&asked_word) {
                return None;
            }
            let (yes, no) = ("yes".to_owned(), "no".to_owned());
            let (answer, wrong) = if inside { (yes, no) } else { (no, yes) };
            (vec![asked(asked_word), list], answer, vec![wrong])
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

/// Things with colours; one is asked for.
fn scene(task: Task, view: &View, rng: &mut Rng) -> Option<Parts> {
    let n = 2 + rng.below(2);
    let things = draw(&view.words, rng, n)?;
    let mut colours = COLOURS;
    rng.shuffle(&mut colours);
    let text: String = things.iter().zip(colours).map(|(t, c)| format!("The {} is {c}. ", quote(t))).collect();
    let at = rng.below(n);
    let scene = ("{x}", text.trim_end().to_owned());
    let others = |list: &[&str]| (0..n).filter(|i| *i != at).map(|i| list[i].to_owned()).collect();
    Some(match task {
        Task::ColourOf => (vec![scene, ("{a}", quote(things[at]))], colours[at].into(), others(&colours)),
        _ => (vec![scene, ("{b}", colours[at].into())], things[at].into(), others(&things)),
    })
}

/// Answers a question of one of this module's tasks.
pub(super) fn solve(task: Task, question: &str) -> Option<String> {
    let words = quoted(question);
    let (asked, list) = words.split_first()?;
    let place = || list.iter().position(|w| w == asked);
    let text = match task {
        Task::Repeat | Task::First => asked,
        Task::Last => words.last()?,
        Task::After => list.get(place()? + 1)?,
        Task::Before => list.get(place()?.checked_sub(1)?)?,
        Task::Twice => words.iter().find(|w| words.iter().filter(|v| v == w).count() == 2)?,
        Task::Missing => words.iter().find(|w| words.iter().filter(|v| v == w).count() == 1)?,
        Task::Count => NUMBERS.get(words.len())?,
        Task::Member if place().is_some() => "yes",
        Task::Member => "no",
        Task::ColourOf => {
            let asked = quote(words.last()?);
            let after = question.split_once(&format!("{asked} is "))?.1;
            after.split_once('.')?.0
        }
        Task::ThingOf => {
            let colour = question.trim_end_matches('?').rsplit(' ').next()?;
            let before = question.split_once(&format!("\" is {colour}."))?.0;
            before.rsplit('"').next()?
        }
        _ => return None,
    };
    Some(text.to_owned())
}
