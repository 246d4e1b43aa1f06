//! Exercises about inflection, parts of speech and definitions: regularities of English that carry over to new words.

use super::inflection::Form;
use super::lexicon::{Lexicon, Speech, View};
use super::rng::Rng;
use super::task::{Parts, Task, quote, quote_all, quoted};
use super::words::family;

/// Longest definition that is asked about, in bytes.
const MAX_GLOSS_BYTES: usize = 70;

/// Makes an exercise of one of this module's tasks.
pub(super) fn make(task: Task, view: &View, rng: &mut Rng) -> Option<Parts> {
    match task {
        Task::Speech => {
            let (word, speech) = rng.pick(&view.tagged)?;
            let wrong = Speech::ALL.into_iter().filter(|s| s != speech).map(|s| s.name().to_owned()).collect();
            Some((vec![("{a}", quote(word))], speech.name().into(), wrong))
        }
        Task::Definition => definition(view, rng),
        Task::Number => which(view, rng, Form::Plural, NUMBERS),
        Task::Tense => which(view, rng, Form::Past, TENSES),
        _ => {
            let (form, backwards) = form_of(task)?;
            let (base, used) = rng.pick(view.forms.get(&form)?)?;
            let mut careless = form.candidates(base);
            careless.retain(|c| c != used);
            Some(if backwards {
                (vec![("{a}", quote(used))], base.clone(), careless_bases(base, used))
            } else {
                careless.push(base.clone());
                (vec![("{a}", quote(base))], used.clone(), careless)
            })
        }
    }
}

/// The form that a task is about, and whether it asks for the base word.
fn form_of(task: Task) -> Option<(Form, bool)> {
    Some(match task {
        Task::Plural => (Form::Plural, false),
        Task::Singular => (Form::Plural, true),
        Task::Past => (Form::Past, false),
        Task::Base => (Form::Past, true),
        Task::Gerund => (Form::Gerund, false),
        Task::Adverb => (Form::Adverb, false),
        _ => return None,
    })
}

/// Answers about a base word and about its form.
const NUMBERS: [&str; 2] = ["singular", "plural"];
const TENSES: [&str; 2] = ["present", "past"];

/// Asks whether a word is the base or the form. A word that is both is thrown away later, because [`base_or_form`] has no
/// answer to it.
fn which(view: &View, rng: &mut Rng, form: Form, names: [&str; 2]) -> Option<Parts> {
    let (base, used) = rng.pick(view.forms.get(&form)?)?;
    let at = rng.below(2);
    let asked = [base, used][at];
    Some((vec![("{a}", quote(asked))], names[at].into(), vec![names[1 - at].into()]))
}

/// The inverse of [`which`]; `None` where the word is both.
fn base_or_form(word: &str, lexicon: &Lexicon, form: Form, names: [&str; 2]) -> Option<String> {
    let forms = lexicon.forms.get(&form)?;
    let (is_base, is_form) = (forms.contains_key(word), forms.values().any(|used| used == word));
    (is_base != is_form).then(|| names[usize::from(is_form)].to_owned())
}

/// What cutting off too much or too little gives.
fn careless_bases(base: &str, used: &str) -> Vec<String> {
    let cut = |n: usize| used[..used.len() - n].to_owned();
    let mut found = vec![used.to_owned(), cut(1), cut(2)];
    found.push(base.strip_suffix('e').map_or_else(|| format!("{base}e"), str::to_owned));
    found
}

/// A definition that holds a relative of the right word and none of the wrong one.
fn definition(view: &View, rng: &mut Rng) -> Option<Parts> {
    let (word, gloss) = rng.pick(&view.defined)?;
    let (other, _) = rng.pick(&view.defined)?;
    if word[..1] == other[..1] || is_related(other, gloss) {
        return None;
    }
    let mut list = [word.as_str(), other.as_str()];
    rng.shuffle(&mut list);
    Some((vec![("{x}", gloss.clone()), ("{list}", quote_all(&list))], word.clone(), vec![other.clone()]))
}

/// Whether a definition has a word of the same family.
fn is_related(word: &str, gloss: &str) -> bool {
    gloss.split(|c: char| !c.is_ascii_alphabetic()).any(|other| family(other) == family(word))
}

/// Whether an exercise can be made of a word and its definition: short, with a relative of the word but not itself.
pub(super) fn is_telling(word: &str, gloss: &str) -> bool {
    let names = gloss.split(|c: char| !c.is_ascii_alphabetic()).any(|other| other == word);
    gloss.len() <= MAX_GLOSS_BYTES && !names && is_related(word, gloss)
}

/// Answers a question of one of this module's tasks, with the dictionary at hand.
pub(super) fn solve(task: Task, question: &str, lexicon: &Lexicon) -> Option<String> {
    let words = quoted(question);
    let asked = *words.first()?;
    match task {
        Task::Speech => match lexicon.senses.get(asked)?.as_slice() {
            [only] => Some(only.speech.name().into()),
            _ => None,
        },
        Task::Definition => {
            let defines = |w: &str| {
                let senses = lexicon.senses.get(w).into_iter().flatten();
                senses.into_iter().any(|sense| question.contains(&format!(" {}", sense.gloss)))
            };
            let mut fitting = words.iter().filter(|w| defines(w));
            let found = fitting.next()?;
            fitting.next().is_none().then(|| (*found).to_owned())
        }
        Task::Number => base_or_form(asked, lexicon, Form::Plural, NUMBERS),
        Task::Tense => base_or_form(asked, lexicon, Form::Past, TENSES),
        _ => {
            let (form, backwards) = form_of(task)?;
            let used = lexicon.forms.get(&form)?;
            if !backwards {
                return used.get(asked).cloned();
            }
            let mut bases = used.iter().filter(|(_, spelling)| *spelling == asked).map(|(base, _)| base);
            let found = bases.next()?;
            bases.next().is_none().then(|| found.clone())
        }
    }
}
