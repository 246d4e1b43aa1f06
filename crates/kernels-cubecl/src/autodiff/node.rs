//! Making the graph node of an op.

use std::fmt::Debug;

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
///
/// It holds the parents' graph nodes but not their values, so that the op can still take a value's memory over.
pub(super) struct Node<O, B: LmBackend, S, C, const N: usize> {
    kind: OpsKind<O, B, Saved<S>, C, N>,
    place: Place,
    /// Which parents want a gradient.
    pub(super) tracked: [bool; N],
}

/// Opens the node of an op: `open!(backward step, checkpoint strategy, parents)`.
macro_rules! open {
    ($op:expr, $strategy:ty, [$($parent:expr),+]) => {
        $crate::autodiff::node::Node::open(
            $op.prepare::<$strategy>([$($parent.node.clone()),+]).compute_bound().stateful(),
            [$($parent.is_tracked()),+],
        )
    };
}
pub(super) use open;

impl<O, B, S, C, const N: usize> Node<O, B, S, C, N>
where
    O: Backward<B, N, State = Saved<S>>,
    B: LmBackend,
    S: Clone + Send + Debug + 'static,
    C: CheckpointStrategy,
{
    /// Opens a node from burn's preparation; use the macro of the same name.
    pub(super) fn open(kind: OpsKind<O, B, Saved<S>, C, N>, live: [bool; N]) -> Self {
        let (place, tracked) = Place::next(live);
        Self { kind, place, tracked }
    }

    /// Closes the node; `state` is only made when some parent wants a gradient.
    pub(super) fn close(self, out: FloatTensor<B>, state: impl FnOnce() -> S) -> Var<B> {
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
        match (self.kind, saved) {
            (OpsKind::Tracked(prep), Some(saved)) => prep.finish(saved, out),
            (OpsKind::Tracked(_), None) => unreachable!("a node with a tracked parent has a state"),
            (OpsKind::UnTracked(prep), _) => prep.finish(out),
        }
    }
}
