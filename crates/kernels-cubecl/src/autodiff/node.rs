//! Making the graph node of an op.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::{Backward, OpsKind};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;

use super::replay::{Place, Saved};
use crate::LmBackend;

/// A primitive of the autodiff backend. It is one type for all checkpoint strategies.
pub(super) type Var<B> = FloatTensor<Autodiff<B>>;

/// A node that is being made: opened before the op runs, closed with its output.
pub(super) struct Node<B: LmBackend, C, const N: usize> {
    parents: [Var<B>; N],
    place: Place,
    /// Which parents want a gradient.
    pub(super) tracked: [bool; N],
    strategy: PhantomData<C>,
}

impl<B: LmBackend, C: CheckpointStrategy, const N: usize> Node<B, C, N> {
    /// Opens the node of an op with these parents.
    pub(super) fn open(parents: [&Var<B>; N]) -> Self {
        let (place, tracked) = Place::next(parents.map(|parent| parent.is_tracked()));
        Self { parents: parents.map(Clone::clone), place, tracked, strategy: PhantomData }
    }

    /// Closes the node; `state` is only made when some parent wants a gradient.
    pub(super) fn close<O, S>(self, op: O, out: FloatTensor<B>, state: impl FnOnce() -> S) -> Var<B>
    where
        O: Backward<B, N, State = Saved<S>>,
        S: Clone + Send + Debug + 'static,
    {
        let wanted = self.tracked.contains(&true);
        let saved = match self.place {
            Place::Slot(segment, index) => {
                if wanted {
                    segment.fill(index, Box::new(state()));
                }
                return <Autodiff<B, C> as AutodiffBackend>::from_inner(out);
            }
            Place::Graph => wanted.then(|| Saved::Now(state())),
            Place::Ticket(segment, index) => Some(Saved::Later(segment, index)),
        };
        let nodes = self.parents.map(|parent| parent.node.clone());
        match (op.prepare::<C>(nodes).compute_bound().stateful(), saved) {
            (OpsKind::Tracked(prep), Some(saved)) => prep.finish(saved, out),
            (OpsKind::Tracked(_), None) => unreachable!("a node with a tracked parent has a state"),
            (OpsKind::UnTracked(prep), _) => prep.finish(out),
        }
    }
}
