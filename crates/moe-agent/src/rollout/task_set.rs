//! Rust tasks on disk, and what environments of them begin with.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eval_rust::judge::{Task, TaskKind};
use eval_rust::sandbox::Run;
use gates::artifact;
use model_core::harmony::Conversation;

use super::task::{has_lock, with_lock};
use super::{Environment, Files, PromptKeys, RolloutError, TaskEnvironment, Tasks};
use crate::tools::{Executor, Setup, load_crate};

/// The task folders below a folder, or the folder itself where it is one, by name.
///
/// # Errors
/// When there is none, or the folder cannot be read.
pub fn find_tasks(folder: &Path) -> Result<Vec<PathBuf>, RolloutError> {
    let is_task = |path: &Path| path.join("task.toml").is_file();
    if is_task(folder) {
        return Ok(vec![folder.to_path_buf()]);
    }
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(RolloutError::io("list", folder))?;
    let mut found: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|path| is_task(path)).collect();
    found.sort();
    if found.is_empty() { Err(RolloutError::NoTasks { path: folder.to_path_buf() }) } else { Ok(found) }
}

/// Writes a candidate as a new folder in the place of an old one.
///
/// # Errors
/// When it cannot be written.
pub fn write_candidate(dest: &Path, files: &Files) -> Result<(), RolloutError> {
    remove(dest)?;
    for (name, bytes) in files {
        let path = dest.join(name);
        let parent = path.parent().unwrap_or(dest);
        fs::create_dir_all(parent).map_err(RolloutError::io("create", parent))?;
        let written = fs::File::create_new(&path).and_then(|mut file| file.write_all(bytes));
        written.map_err(RolloutError::io("write", &path))?;
    }
    Ok(())
}

/// Removes a folder, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), RolloutError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(RolloutError::io("remove", path)(source)),
        _ => Ok(()),
    }
}

/// One task with what an environment begins with.
#[derive(Debug)]
struct Known {
    folder: PathBuf,
    prompt: Arc<Conversation>,
    /// The start.
    files: Files,
    /// The start with a lock file.
    locked: Files,
    /// What its tools have, with the task's own limits.
    setup: Arc<Setup>,
}

/// Rust tasks, and what executes calls on them.
pub struct TaskSet<'a> {
    runner: &'a (dyn Run + Sync),
    known: Vec<Known>,
    ids: Vec<String>,
    fingerprint: String,
}

impl<'a> TaskSet<'a> {
    /// The tasks of these folders; `keys` say what a model is told of them and may do, `setup` has the rest of what tools need.
    ///
    /// # Errors
    /// A task that cannot be judged or worked on, an id that is there twice, files that cannot be read.
    pub fn load(
        folders: &[PathBuf],
        keys: &PromptKeys,
        runner: &'a (dyn Run + Sync),
        setup: Setup,
    ) -> Result<Self, RolloutError> {
        let PromptKeys { tools, output_bytes, brief, .. } = keys.clone();
        let setup = Arc::new(Setup { tools, output_bytes, brief, ..setup });
        let (mut known, mut ids, mut text) = (Vec::new(), Vec::<String>::new(), format!("{keys:?}"));
        let lock =
            |files: Files| -> Result<Files, RolloutError> { Ok(Executor::new(runner, &setup, files)?.files().clone()) };
        let lock: Option<&dyn Fn(Files) -> Result<Files, RolloutError>> =
            if keys.runs_programs() { Some(&lock) } else { None };
        for folder in folders {
            let folder = folder.canonicalize().map_err(RolloutError::io("look for", folder))?;
            let task = Task::load(&folder)?;
            if ids.contains(&task.file.id) {
                return Err(RolloutError::SameId { id: task.file.id, path: folder });
            }
            let files = load_crate(&folder.join("start"))?;
            let prompt = Arc::new(keys.conversation(&task.file.description, &files));
            text += &format!(" {} {}", task.file.id, artifact::hash_tree(&folder)?);
            ids.push(task.file.id);
            // What a candidate does must not hold up all others for longer than the judge would let it.
            let limits = task.file.limits;
            let (seconds, test_seconds) = (setup.seconds.min(limits.check_s), setup.seconds.min(limits.test_s));
            let may_change_tests = task.file.kind == TaskKind::WriteTests;
            let test_seconds = Some(test_seconds);
            let own = Arc::new(Setup { seconds, test_seconds, may_change_tests, ..(*setup).clone() });
            known.push(Known { folder, prompt, locked: with_lock(files.clone(), lock)?, files, setup: own });
        }
        Ok(Self { runner, known, ids, fingerprint: artifact::hash_bytes(text.as_bytes()) })
    }

    /// Folder of a task.
    pub fn folder(&self, task: usize) -> &Path {
        &self.known[task].folder
    }

    /// What a task begins with.
    pub fn files(&self, task: usize) -> &Files {
        &self.known[task].files
    }

    /// What stands before the model's first message.
    pub fn prompt(&self, task: usize) -> &Conversation {
        &self.known[task].prompt
    }

    /// Hash over the tasks and what a model is told of them.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl Tasks for TaskSet<'_> {
    fn ids(&self) -> &[String] {
        &self.ids
    }

    fn environment(&self, task: usize) -> Result<Box<dyn Environment + '_>, RolloutError> {
        let Known { prompt, files, locked, setup, .. } = &self.known[task];
        let executor = Executor::new(self.runner, setup, locked.clone())?;
        Ok(Box::new(TaskEnvironment::new(prompt.clone(), executor, has_lock(files))))
    }
}
