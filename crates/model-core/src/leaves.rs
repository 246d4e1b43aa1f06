//! Named parameters in their one fixed order, which optimizer states, checkpoints and gradients all share.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels_cubecl::{Leaf, Packed};

/// One parameter with the facts that training needs about it.
#[derive(Clone, Debug)]
pub struct NamedLeaf<B: Backend> {
    /// Name in memory, for instance `model.layers.0.self_attn.qkv_proj.weight`.
    pub name: String,
    /// The value.
    pub leaf: Leaf<B>,
    /// Whether training may change it: with an adapter attached, only the adapter's own parameters.
    pub trainable: bool,
    /// Whether weight decay applies: matrices only; norms, biases and sinks never.
    pub decay: bool,
    /// Whether FP8 products are scaled by this weight's peaks, which the optimizer then gathers.
    pub gathers: bool,
}

impl<B: Backend> NamedLeaf<B> {
    /// A base weight of rank 2.
    pub(crate) fn matrix(name: String, value: &Tensor<B, 2>) -> Self {
        NamedLeaf { name, leaf: Leaf::Matrix(value.clone()), trainable: true, decay: true, gathers: false }
    }

    /// A base weight of rank 1.
    pub(crate) fn vector(name: String, value: &Tensor<B, 1>) -> Self {
        NamedLeaf { name, leaf: Leaf::Vector(value.clone()), trainable: true, decay: false, gathers: false }
    }

    /// Whether this parameter belongs to a low-rank adapter.
    pub fn is_adapter(&self) -> bool {
        self.name.ends_with(".lora_A.weight") || self.name.ends_with(".lora_B.weight")
    }
}

/// Hands out leaves in order while a model is put together.
pub struct LeafReader<B: Backend> {
    leaves: std::vec::IntoIter<Leaf<B>>,
    packed: std::vec::IntoIter<Packed<B>>,
    n_taken: usize,
}

impl<B: Backend> LeafReader<B> {
    /// Reads from the first of `leaves` on.
    pub fn new(leaves: Vec<Leaf<B>>) -> Self {
        LeafReader { leaves: leaves.into_iter(), packed: Vec::new().into_iter(), n_taken: 0 }
    }

    /// The same with experts' weights that are packed and therefore no leaves, in their order.
    pub fn with_packed(self, packed: Vec<Packed<B>>) -> Self {
        LeafReader { packed: packed.into_iter(), ..self }
    }

    /// The next packed weight; `None` when the experts of this model are leaves.
    pub fn packed(&mut self) -> Option<Packed<B>> {
        self.packed.next()
    }

    /// The next leaf, which must be a matrix.
    ///
    /// # Panics
    /// When the list ends or has a vector here: the caller's order is not the model's.
    pub fn matrix(&mut self) -> Tensor<B, 2> {
        match self.next() {
            Leaf::Matrix(value) => value,
            Leaf::Vector(value) => {
                panic!("leaf {}: expected a matrix, got a vector {:?}", self.n_taken - 1, value.dims())
            }
        }
    }

    /// The next leaf, which must be a vector.
    ///
    /// # Panics
    /// When the list ends or has a matrix here: the caller's order is not the model's.
    pub fn vector(&mut self) -> Tensor<B, 1> {
        match self.next() {
            Leaf::Vector(value) => value,
            Leaf::Matrix(value) => {
                panic!("leaf {}: expected a vector, got a matrix {:?}", self.n_taken - 1, value.dims())
            }
        }
    }

    /// Ends the reading.
    ///
    /// # Panics
    /// When leaves are left over.
    pub fn finish(self) {
        let n_left = self.leaves.len() + self.packed.len();
        assert!(n_left == 0, "expected {} leaves, got {n_left} more", self.n_taken);
    }

    fn next(&mut self) -> Leaf<B> {
        let leaf = self.leaves.next();
        self.n_taken += 1;
        leaf.unwrap_or_else(|| panic!("expected at least {} leaves, got one less", self.n_taken))
    }
}
