//! The optimizer's state copied to the host, as it is.

use burn::tensor::{Int, Tensor, backend::Backend};
use kernels_cubecl::{Cpu, Leaf, LmBackend, Master, Moments, PackedMoments};

use super::{LeafState, Optimizer};

impl<B: LmBackend> Optimizer<B> {
    /// A copy on the host that later steps do not change.
    pub(crate) fn to_host(&self) -> Optimizer<Cpu> {
        let state = |state: &LeafState<B>| LeafState {
            master: match &state.master {
                Master::Remainder(remainder) => Master::Remainder(words(remainder)),
                Master::Nearest => Master::Nearest,
                Master::Stochastic => Master::Stochastic,
            },
            moments: match &state.moments {
                Moments::Full { m, v } => Moments::Full { m: leaf_to_host(m), v: leaf_to_host(v) },
                Moments::Packed(PackedMoments { m, m_scale, v, v_scale }) => Moments::Packed(PackedMoments {
                    m: words(m),
                    m_scale: floats(m_scale),
                    v: words(v),
                    v_scale: floats(v_scale),
                }),
            },
        };
        Optimizer { states: self.states.iter().map(|slot| slot.as_ref().map(state)).collect() }
    }
}

fn words<B: Backend>(tensor: &Tensor<B, 1, Int>) -> Tensor<Cpu, 1, Int> {
    let data = tensor.clone().into_data();
    let dtype = data.dtype;
    Tensor::from_data(data, (&Default::default(), dtype))
}

fn floats<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Tensor<Cpu, D> {
    let data = tensor.clone().into_data();
    let dtype = data.dtype;
    Tensor::from_data(data, (&Default::default(), dtype))
}

/// A copy of a leaf on the host, in its element type.
pub(crate) fn leaf_to_host<B: Backend>(leaf: &Leaf<B>) -> Leaf<Cpu> {
    match leaf {
        Leaf::Vector(tensor) => Leaf::Vector(floats(tensor)),
        Leaf::Matrix(tensor) => Leaf::Matrix(floats(tensor)),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, TensorData};

    use super::*;

    #[test]
    fn a_copy_keeps_its_bits_and_its_type() {
        for data in
            [TensorData::from([1.5f32, -0.0, 3e-45]), TensorData::from([1.5f32, -2.0]).convert_dtype(DType::BF16)]
        {
            let tensor = Tensor::<Cpu, 1>::from_data(data.clone(), (&Default::default(), data.dtype));
            let Leaf::Vector(copy) = leaf_to_host(&Leaf::Vector(tensor)) else { panic!("a vector stays one") };
            assert_eq!(copy.into_data(), data);
        }
        let codes = TensorData::from([i32::MIN, -1, 7]);
        let tensor = Tensor::<Cpu, 1, Int>::from_data(codes.clone(), (&Default::default(), DType::I32));
        assert_eq!(words(&tensor).into_data(), codes);
    }
}
