//! Playing episodes: all that still run say their next message together.

use std::sync::{Mutex, PoisonError};

use gates::artifact::hash_bytes;
use kernels_cubecl::LmBackend;
use model_core::generate::{Finish, Scored, generate_scored};
use model_core::harmony::{Channel, Conversation, End, Harmony, Kind, Message, Opening, Role, Supervise};
use model_core::{Decoder, Sampling};

use super::{Ending, Environment, Episode, Files, RolloutError, Step, Stopwatch, Tasks};

/// Messages of the model for each of its turns, thoughts included, before an episode is over.
const MESSAGES_PER_TURN: u64 = 2;

/// One episode that is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ask {
    /// Place of the task among the tasks.
    pub task: usize,
    /// Number of the sample within the task.
    pub sample: u64,
    /// Decides the choices together with the seed; see [`episode_number`].
    pub number: u64,
    /// Temperature of the choices.
    pub temperature: f32,
}

/// A number for the choices of an episode, the same whenever the same step asks for the same sample of the same task.
pub fn episode_number(step: u64, task: &str, sample: u64) -> u64 {
    let hash = hash_bytes(format!("episode {step} {sample} {task}").as_bytes());
    u64::from_str_radix(&hash[..16], 16).expect("a hash is hexadecimal")
}

/// How episodes are played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Play {
    /// Seed of the choices.
    pub seed: u64,
    /// Only the most likely tokens that hold this probability together are chosen among.
    pub top_p: f32,
    /// Only this many most likely tokens are chosen among; 0 is all.
    pub top_k: usize,
    /// Most tokens of one message.
    pub max_new_tokens: usize,
    /// Most calls and answers of the model.
    pub max_turns: u64,
    /// Most tokens of an episode, the prompt included.
    pub max_len: usize,
    /// Environments that act at a time.
    pub jobs: usize,
}

/// Plays episodes in one format.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// The format over the model's tokenizer.
    pub harmony: Harmony<'a>,
    /// The tasks.
    pub tasks: &'a dyn Tasks,
    /// How.
    pub play: Play,
}

/// An episode that still runs.
pub(super) struct Running<'a> {
    ask: Ask,
    environment: Box<dyn Environment + 'a>,
    episode: Episode,
    messages_left: u64,
    /// The last trouble, and how often it came again.
    trouble: Option<(String, u64)>,
    /// A message that waits for the environment.
    said: Option<Message>,
    pub(super) over: bool,
}

impl<'a> Engine<'a> {
    /// Plays the episodes that are asked for, in their order.
    ///
    /// # Errors
    /// A prompt without room, a fault of an environment, logits that are not finite.
    ///
    /// # Numerics
    /// An episode is what it would be alone as long as products of one row and of many round alike; see
    /// [`model_core::generate()`].
    pub fn play<B: LmBackend>(&self, model: &Decoder<B>, asks: &[Ask]) -> Result<Vec<Episode>, RolloutError> {
        let clock = Stopwatch::start();
        let max_len = self.play.max_len.min(model.config.max_seq_len);
        let mut running: Vec<Running<'a>> =
            asks.iter().map(|ask| self.begin(*ask, max_len)).collect::<Result<_, _>>()?;
        while running.iter().any(|it| !it.over) {
            self.speak(model, &mut running, max_len)?;
            self.act(&mut running, max_len)?;
            for it in running.iter_mut().filter(|it| it.over && it.episode.seconds == 0.0) {
                it.episode.seconds = clock.seconds();
            }
        }
        Ok(running.into_iter().map(Running::finish).collect())
    }

    pub(super) fn begin(&self, ask: Ask, max_len: usize) -> Result<Running<'a>, RolloutError> {
        let environment = self.tasks.environment(ask.task)?;
        let ids = self.tokens(&environment.prompt())?;
        if ids.len() >= max_len {
            let task = self.tasks.ids()[ask.task].clone();
            return Err(RolloutError::PromptTooLong { task, n_tokens: ids.len(), max: max_len });
        }
        let episode = Episode {
            task: ask.task,
            sample: ask.sample,
            sampled: vec![false; ids.len()],
            ids,
            scores: Vec::new(),
            temperature: ask.temperature,
            top_p: self.play.top_p,
            messages: Vec::new(),
            ending: Ending::Turns,
            turns: 0,
            calls: 0,
            calls_well_formed: 0,
            retries: 0,
            candidate: Files::new(),
            seconds: 0.0,
        };
        let messages_left = self.play.max_turns * MESSAGES_PER_TURN;
        Ok(Running { ask, environment, episode, messages_left, trouble: None, said: None, over: false })
    }

    /// The tokens of messages and of the beginning of the model's next one.
    fn tokens(&self, conversation: &Conversation) -> Result<Vec<u32>, RolloutError> {
        let kind = Kind::Completion(Role::Assistant);
        Ok(self.harmony.render(conversation, kind, false, &Supervise::Nothing)?.ids)
    }

    /// Every running episode gets its next message.
    fn speak<B: LmBackend>(
        &self,
        model: &Decoder<B>,
        running: &mut [Running<'a>],
        max_len: usize,
    ) -> Result<(), RolloutError> {
        let mut temperatures: Vec<f32> = running.iter().filter(|it| !it.over).map(|it| it.ask.temperature).collect();
        temperatures.sort_by(f32::total_cmp);
        temperatures.dedup();
        for temperature in temperatures {
            let mut group: Vec<&mut Running<'a>> =
                running.iter_mut().filter(|it| !it.over && it.ask.temperature == temperature).collect();
            let sampling = Sampling {
                max_new_tokens: self.play.max_new_tokens,
                temperature,
                top_k: self.play.top_k,
                top_p: self.play.top_p,
                stop_ids: self.stop_ids(),
                seed: self.play.seed,
            };
            let prompts: Vec<(u64, &[u32])> =
                group.iter().map(|it| (it.ask.number, it.episode.ids.as_slice())).collect();
            let made = generate_scored(model, &prompts, &sampling, max_len)?;
            for (it, made) in group.iter_mut().zip(made) {
                it.take(made, &self.harmony);
            }
        }
        Ok(())
    }

    /// What the environments say, in the order of those that wait; whoever is free takes the next.
    fn answers(&self, waiting: &mut [&mut Running<'a>]) -> Vec<Result<Step, RolloutError>> {
        let (n, next) = (waiting.len(), Mutex::new(waiting.iter_mut().enumerate()));
        let work = || {
            let mut done = Vec::new();
            loop {
                let taken = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((i, it)) = taken else { return done };
                let message = it.said.take().expect("only those who were spoken to are here");
                done.push((i, it.environment.act(&message)));
            }
        };
        let mut answers: Vec<(usize, Result<Step, RolloutError>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.play.jobs.clamp(1, n.max(1))).map(|_| scope.spawn(work)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().flat_map(join).collect()
        });
        answers.sort_by_key(|(i, _)| *i);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// The tokens after which somebody else has the word.
    pub(super) fn stop_ids(&self) -> Vec<u32> {
        let end = self.harmony.end_id();
        self.harmony.stop_ids().into_iter().chain([end]).collect()
    }

    /// Every environment that was spoken to answers, some at a time.
    pub(super) fn act(&self, running: &mut [Running<'a>], max_len: usize) -> Result<(), RolloutError> {
        let mut waiting: Vec<&mut Running<'a>> = running.iter_mut().filter(|it| it.said.is_some()).collect();
        let answers = self.answers(&mut waiting);
        for (it, step) in waiting.into_iter().zip(answers) {
            match step? {
                Step::Done => it.end(Ending::Answered),
                Step::Malformed(problem) => it.malformed(problem),
                Step::Reply { messages, trouble } => {
                    it.episode.calls_well_formed += 1;
                    it.note(trouble);
                    let ids = self.tokens(&Conversation { messages: messages.clone() })?;
                    it.episode.messages.extend(messages);
                    it.append(&ids);
                }
            }
        }
        // Thoughts and replies go on only while there are turns and room.
        let max_turns = self.play.max_turns;
        let begin = self.tokens(&Conversation::default())?;
        for it in running.iter_mut().filter(|it| !it.over) {
            if it.thought() {
                it.append(&begin);
            }
            it.messages_left = it.messages_left.saturating_sub(1);
            if it.episode.turns >= max_turns || it.messages_left == 0 {
                it.end(Ending::Turns);
            } else if it.episode.ids.len() >= max_len {
                it.end(Ending::Length);
            }
        }
        Ok(())
    }
}

impl Running<'_> {
    /// Takes in what the model sampled.
    pub(super) fn take(&mut self, made: Scored, harmony: &Harmony<'_>) {
        let Scored { continuation, scores } = made;
        let mut ids = continuation.ids;
        if let Finish::Stop(id) = continuation.finish {
            ids.push(id);
        }
        self.episode.ids.extend_from_slice(&ids);
        self.episode.sampled.extend(std::iter::repeat_n(true, ids.len()));
        self.episode.scores.extend(scores);
        let parsed = match harmony.parse(&ids, Opening::Completion(Role::Assistant)) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.episode.turns += 1;
                self.episode.calls += u64::from(harmony.decode(&ids).contains(" to="));
                return self.malformed(error.to_string());
            }
        };
        let (Some(message), Some(end)) = (parsed.messages.first(), parsed.ends.first()) else {
            self.episode.turns += 1;
            return self.end(Ending::Length);
        };
        let is_thought = is_thought(message);
        self.episode.turns += u64::from(!is_thought || *end == End::Cut);
        self.episode.calls += u64::from(message.is_call());
        self.episode.messages.push(message.clone());
        let wrong = match (end, message.is_call(), message.channel) {
            (End::Cut, true, _) => Some("a call that is cut off"),
            (End::Cut, ..) => return self.end(Ending::Length),
            (_, _, None) => Some("a message without a channel"),
            (End::Call, false, _) => Some("<|call|> behind a message that is no call"),
            (End::End | End::Return, true, _) => Some("a call that does not end with <|call|>"),
            _ => None,
        };
        match wrong {
            Some(problem) => self.malformed(problem.to_owned()),
            None if !is_thought => self.said = Some(message.clone()),
            None if *end == End::Return => self.end(Ending::Answered),
            None => {}
        }
    }

    /// Whether the last word was a thought, after which the model goes on.
    fn thought(&self) -> bool {
        self.episode.messages.last().is_some_and(|message| message.role == Role::Assistant && is_thought(message))
    }

    fn append(&mut self, ids: &[u32]) {
        self.episode.ids.extend_from_slice(ids);
        self.episode.sampled.extend(std::iter::repeat_n(false, ids.len()));
    }

    fn note(&mut self, trouble: Option<String>) {
        self.trouble = match (self.trouble.take(), trouble) {
            (Some((before, n)), Some(now)) if before == now => Some((before, n + 1)),
            (_, now) => now.map(|now| (now, 0)),
        };
        let again = self.trouble.as_ref().map_or(0, |(_, n)| *n);
        self.episode.retries = self.episode.retries.max(again);
    }

    fn malformed(&mut self, problem: String) {
        self.end(Ending::Malformed(problem));
    }

    fn end(&mut self, ending: Ending) {
        self.episode.ending = ending;
        self.over = true;
    }

    pub(super) fn finish(self) -> Episode {
        let mut episode = self.episode;
        episode.turns = episode.turns.max(1);
        // What is behind the last sampled token answers nothing and is no part of the episode.
        let used = episode.sampled.iter().rposition(|sampled| *sampled).map_or(0, |last| last + 1);
        episode.ids.truncate(used);
        episode.sampled.truncate(used);
        episode.candidate = self.environment.candidate();
        episode
    }
}

/// A message of the model to itself.
fn is_thought(message: &Message) -> bool {
    !message.is_call() && message.channel != Some(Channel::Final)
}
