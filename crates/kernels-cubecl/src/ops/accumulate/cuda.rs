//! Accumulation and scaling on CUDA, in place where the memory has one owner.

use burn::tensor::TensorMetadata;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cuda::launch::{check_indices, dense, lanes, one_thread_each, owned};
use crate::cuda::{Buffer, Runtime};

#[cube(launch)]
fn add_kernel<F: Float, G: Float, N: Size>(
    acc: &mut Array<Vector<F, N>>,
    x: &Array<Vector<G, N>>,
    #[define(F)] _acc_type: StorageType,
    #[define(G)] _x_type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < x.len() {
        let sum = Vector::<f32, N>::cast_from(acc[i]) + Vector::<f32, N>::cast_from(x[i]);
        acc[i] = Vector::cast_from(sum);
    }
}

#[cube(launch)]
fn scale_kernel<F: Float, G: Float, N: Size>(
    x: &mut Array<Vector<F, N>>,
    factor: &Array<G>,
    #[define(F)] _x_type: StorageType,
    #[define(G)] _factor_type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < x.len() {
        let factor = Vector::<f32, N>::new(f32::cast_from(factor[0]));
        x[i] = Vector::cast_from(Vector::<f32, N>::cast_from(x[i]) * factor);
    }
}

/// `acc + x`.
pub(crate) fn add_assign(acc: Buffer, x: Buffer) -> Buffer {
    let (acc, x) = (owned(acc), dense(x));
    check_indices("add_assign", &[&acc]);
    let n = acc.shape().num_elements();
    if n > 0 {
        let lanes = lanes(n, &[&acc, &x]);
        let (count, dim) = one_thread_each(n / lanes);
        let (acc_dtype, dtype) = (acc.dtype, x.dtype);
        let (out, x) = (acc.clone().into_array_arg(), x.into_array_arg());
        add_kernel::launch::<Runtime>(&acc.client.clone(), count, dim, lanes, out, x, acc_dtype.into(), dtype.into());
    }
    acc
}

/// `factor[0]·x`.
pub(crate) fn scale(x: Buffer, factor: Buffer) -> Buffer {
    let (x, factor) = (owned(x), dense(factor));
    check_indices("scale", &[&x]);
    let n = x.shape().num_elements();
    if n > 0 {
        let lanes = lanes(n, &[&x]);
        let (count, dim) = one_thread_each(n / lanes);
        let (dtype, factor_dtype) = (x.dtype, factor.dtype);
        let (out, factor) = (x.clone().into_array_arg(), factor.into_array_arg());
        let client = x.client.clone();
        scale_kernel::launch::<Runtime>(&client, count, dim, lanes, out, factor, dtype.into(), factor_dtype.into());
    }
    x
}
