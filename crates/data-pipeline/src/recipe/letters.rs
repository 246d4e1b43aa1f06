//! Exercises about the letters of words: the model must know what its tokens are spelled like.

use super::lexicon::View;
use super::rng::Rng;
use super::task::{Parts, Task, draw, quote, quote_all, quoted};

/// Longest word that is spelled out.
const SPELLED_LETTERS: usize = 6;
/// Longest word that is joined to another.
const JOINED_LETTERS: usize = 5;

/// Makes an exercise of one of this module's tasks.
pub(super) fn make(task: Task, view: &View, rng: &mut Rng) -> Option<Parts> {
    let words = draw(&view.words, rng, 3)?;
    let (a, b) = (words[0], words[1]);
    let asked = vec![("{a}", quote(a))];
    let letter = |at: usize| a[at..=at].to_owned();
    let rest = |except: usize| (0..a.len()).filter(|i| *i != except).map(|i| a[i..=i].to_owned()).collect::<Vec<_>>();
    Some(match task {
        Task::Spell if a.len() <= SPELLED_LETTERS => {
            (asked, spaced(a), misspelled(a).iter().map(|w| spaced(w)).collect())
        }
        Task::FirstLetter => (asked, letter(0), rest(0)),
        Task::LastLetter => (asked, letter(a.len() - 1), rest(a.len() - 1)),
        Task::Vowel => (asked, yes_or_no(is_vowel(a)).into(), vec![yes_or_no(!is_vowel(a)).into()]),
        Task::Begins => return find(&words, rng),
        Task::Alphabet if a[..1] != b[..1] => {
            let (first, second) = if a < b { (a, b) } else { (b, a) };
            (vec![("{a}", quote(a)), ("{b}", quote(b))], first.into(), vec![second.into()])
        }
        Task::Capital => (asked, capital(a), vec![a.into(), capital(b)]),
        Task::Join if a.len().max(b.len()) <= JOINED_LETTERS => {
            (vec![("{a}", quote(a)), ("{b}", quote(b))], format!("{a}{b}"), vec![format!("{b}{a}"), a.into(), b.into()])
        }
        _ => return None,
    })
}

/// One of three words begins with the two letters; the others differ in the first.
fn find(words: &[&str], rng: &mut Rng) -> Option<Parts> {
    let wanted = words[rng.below(words.len())];
    let others: Vec<&str> = words.iter().copied().filter(|w| *w != wanted).collect();
    if others.iter().any(|w| w[..1] == wanted[..1]) {
        return None;
    }
    let slots = vec![("{a}", quote(&wanted[..2])), ("{list}", quote_all(words))];
    Some((slots, wanted.into(), others.into_iter().map(str::to_owned).collect()))
}

fn is_vowel(word: &str) -> bool {
    word.starts_with(['a', 'e', 'i', 'o', 'u'])
}

fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn spaced(word: &str) -> String {
    word.chars().map(String::from).collect::<Vec<_>>().join(" ")
}

fn capital(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

/// The word with two neighbouring letters exchanged, and with one letter left out.
fn misspelled(word: &str) -> Vec<String> {
    let letters: Vec<char> = word.chars().collect();
    let mut found = Vec::new();
    for at in 1..letters.len() {
        let mut exchanged = letters.clone();
        exchanged.swap(at - 1, at);
        let mut shorter = letters.clone();
        shorter.remove(at);
        found.extend([exchanged, shorter].map(|l| l.into_iter().collect::<String>()));
    }
    found.retain(|w| w != word);
    found
}

/// Answers a question of one of this module's tasks.
pub(super) fn solve(task: Task, question: &str) -> Option<String> {
    let words = quoted(question);
    let (asked, list) = words.split_first()?;
    Some(match task {
        Task::Spell => spaced(asked),
        Task::FirstLetter => asked.chars().next()?.to_string(),
        Task::LastLetter => asked.chars().last()?.to_string(),
        Task::Vowel => yes_or_no(is_vowel(asked)).to_owned(),
        Task::Begins => list.iter().find(|w| w.starts_with(asked))?.to_string(),
        Task::Alphabet => words.iter().min()?.to_string(),
        Task::Capital => capital(asked),
        Task::Join => words.concat(),
        _ => return None,
    })
}
