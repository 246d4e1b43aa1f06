//! Recomputing a block in the backward pass, without a second graph.
//!
//! `Autodiff` cannot run a backward pass inside a backward pass: the outer one holds its graph's lock, and the inner one
//! would wait for it when it clears orphaned nodes. So the block's ops are put into the one graph as always, but in place
//! of the tensors that their gradients need they save a ticket of the block's [`Segment`]. The first ticket that is
//! redeemed in the backward pass runs the block again, untracked, and every op on the way fills its slot. Forward values
//! and the order of the backward pass are those of the plain block, which makes the gradients bit-equal.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    static SCOPE: RefCell<Scope> = const { RefCell::new(Scope::Plain) };
}

/// What the ops of this thread do with the state of their backward pass.
enum Scope {
    /// Keep it in the graph.
    Plain,
    /// Drop it and save a ticket.
    Record(Arc<Segment>),
    /// Fill the slot of the next ticket.
    Replay { segment: Arc<Segment>, next: usize },
}

/// One run of a block whose activations were not kept.
pub(super) struct Segment {
    inner: Mutex<Inner>,
}

struct Inner {
    /// Runs the block again; taken by the first ticket that is redeemed.
    run: Option<Box<dyn FnOnce() + Send>>,
    /// Per op, in the order of execution: which parents were tracked.
    tracked: Vec<Vec<bool>>,
    /// Per op: the state, once it is made again.
    slots: Vec<Option<Box<dyn Any + Send>>>,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Segment")
    }
}

/// Puts the old scope back, also when the block panics.
struct Restore(Option<Scope>);

impl Restore {
    fn enter(scope: Scope) -> Self {
        Self(Some(SCOPE.replace(scope)))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(scope) = self.0.take() {
            SCOPE.set(scope);
        }
    }
}

impl Segment {
    /// A segment that `run` executes again.
    pub(super) fn new(run: impl FnOnce() + Send + 'static) -> Arc<Self> {
        let inner = Inner { run: Some(Box::new(run)), tracked: Vec::new(), slots: Vec::new() };
        Arc::new(Self { inner: Mutex::new(inner) })
    }

    /// True while a block is recorded or replayed; a block inside a block is part of the outer one.
    pub(super) fn active() -> bool {
        SCOPE.with_borrow(|scope| !matches!(scope, Scope::Plain))
    }

    /// Runs the block for the first time.
    pub(super) fn record<T>(self: Arc<Self>, block: impl FnOnce() -> T) -> T {
        let _restore = Restore::enter(Scope::Record(self));
        block()
    }

    fn lock<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The state of op `index`, after running the block again if that has not happened yet.
    fn redeem(self: &Arc<Self>, index: usize) -> Box<dyn Any + Send> {
        let run = self.lock(|inner| {
            inner.slots.resize_with(inner.tracked.len(), || None);
            inner.run.take()
        });
        if let Some(run) = run {
            let _restore = Restore::enter(Scope::Replay { segment: self.clone(), next: 0 });
            run();
        }
        self.lock(|inner| inner.slots[index].take())
            .expect("a block must run the same ops again and each state is used once")
    }
}

/// The state of an op's backward pass: kept, or to be made again.
#[derive(Clone, Debug)]
pub(super) enum Saved<S> {
    /// Kept in the graph.
    Now(S),
    /// Made again when it is needed.
    Later(Arc<Segment>, usize),
}

impl<S: 'static> Saved<S> {
    /// The state itself.
    pub(super) fn take(self) -> S {
        match self {
            Self::Now(state) => state,
            Self::Later(segment, index) => {
                *segment.redeem(index).downcast().expect("a block must run the same ops again")
            }
        }
    }
}

/// Where an op's state goes.
pub(super) enum Place {
    /// Into the graph.
    Graph,
    /// Nowhere yet: the graph gets this ticket.
    Ticket(Arc<Segment>, usize),
    /// Into this slot; the op makes no node, the graph has one already.
    Slot(Arc<Segment>, usize),
}

impl Place {
    /// Registers the next op of this thread; gives its place and which parents count as tracked.
    pub(super) fn next<const N: usize>(live: [bool; N]) -> (Self, [bool; N]) {
        SCOPE.with_borrow_mut(|scope| match scope {
            Scope::Plain => (Self::Graph, live),
            Scope::Record(segment) => {
                let index = segment.lock(|inner| {
                    inner.tracked.push(live.to_vec());
                    inner.tracked.len() - 1
                });
                (Self::Ticket(segment.clone(), index), live)
            }
            Scope::Replay { segment, next } => {
                let index = *next;
                *next += 1;
                let tracked = segment.lock(|inner| inner.tracked.get(index).cloned().unwrap_or_default());
                let tracked = tracked.try_into().expect("a block must run the same ops again");
                (Self::Slot(segment.clone(), index), tracked)
            }
        })
    }
}

impl Segment {
    /// Keeps the state of op `index` for its ticket.
    pub(super) fn fill(&self, index: usize, state: Box<dyn Any + Send>) {
        self.lock(|inner| inner.slots[index] = Some(state));
    }
}
