//! Abs-maxima that kernels gather of what they write, for the FP8 layer that reads it next.
//!
//! A maximum of whole words, whatever the order, is one number: so the cubes of a kernel share a few words and nothing here
//! depends on their order. As in the layer's own pass, numbers that are not finite do not count.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Shape};
use cubecl::prelude::*;

use super::gemm::zeros;
use super::reduce::cube_max;
use super::{Buffer, has_fp8};

/// Words that the cubes of a kernel share: few to be read, enough that the cubes do not wait for each other.
const WORDS: usize = 64;
/// The largest finite number.
const LARGEST: f32 = f32::MAX;

/// A slot for the abs-maxima of one tensor.
#[derive(Clone, Debug, Default)]
pub struct Peaks(Arc<Mutex<Option<Seen>>>);

/// Abs-maxima of parts of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The tensor, kept so that its address is nobody else's.
    pub(crate) of: Buffer,
    /// `[n]` in f32.
    pub(crate) peaks: Buffer,
}

impl Peaks {
    /// Fills the slot.
    pub(crate) fn leave(&self, of: Buffer, peaks: Buffer) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Seen { of, peaks });
    }

    /// Empties the slot.
    pub(crate) fn take(&self) -> Option<Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The slot, where an FP8 layer of this device could read a tensor of this type.
pub(crate) fn wanted<'a>(slot: Option<&'a Peaks>, like: &Buffer) -> Option<&'a Peaks> {
    slot.filter(|_| like.dtype == DType::BF16 && has_fp8(&like.device))
}

/// The words that the cubes share, all zero.
pub(crate) fn new_words(like: &Buffer) -> Buffer {
    zeros(like, Shape::new([WORDS]), DType::F32)
}

/// [`new_words`] where there is a slot; otherwise any buffer, which the kernel does not touch.
pub(crate) fn words(slot: Option<&Peaks>, like: &Buffer) -> Buffer {
    if slot.is_some() { new_words(like) } else { like.clone() }
}

/// The largest size of a finite number of a vector.
#[cube]
pub(crate) fn largest_size<F: Float, N: Size>(written: Vector<F, N>) -> f32 {
    let values = Vector::<f32, N>::cast_from(written);
    let mut most = 0.0f32;
    let n = values.vector_size();
    #[unroll]
    for i in 0..n {
        let size = values[i].abs();
        // False for NaN.
        most = max(most, select(size <= LARGEST, size, 0.0f32));
    }
    most
}

/// Adds what the threads of a cube have seen to the words. All threads come here; their sizes are not negative, so that their
/// bits are in the order of the numbers.
#[cube]
pub(crate) fn gather(size: f32, words: &Array<Atomic<u32>>, #[comptime] threads: usize) {
    let most = cube_max(size, threads);
    if UNIT_POS == 0u32 {
        words[(CUBE_POS_X % comptime!(WORDS as u32)) as usize].fetch_max(u32::reinterpret(most));
    }
}

/// Writes what the threads of a cube have seen to the cube's own place.
#[cube]
pub(crate) fn keep(size: f32, seen: &mut Array<f32>, #[comptime] threads: usize) {
    let most = cube_max(size, threads);
    if UNIT_POS == 0u32 {
        seen[CUBE_POS_X as usize] = most;
    }
}
