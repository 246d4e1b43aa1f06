//! What the machine gives: f32 multiply-adds that stay in registers, and copying memory.

use rayon::prelude::*;

use super::measure::{Plan, Spread, repeat};
use super::table::{Row, Table};

/// Rounds of the register loop per call.
const ROUNDS: usize = 1 << 16;
/// Numbers of the copied buffer: far more than any cache holds.
const COPIED: usize = 1 << 25;

/// The measured peak of this machine in GFLOP/s of f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peak {
    /// All threads.
    pub(super) gflops: f64,
}

impl Peak {
    /// Measures one thread and all threads.
    pub(super) fn measure(plan: Plan, table: &mut Table) -> Self {
        let isa = Isa::detect();
        let flops = isa.flops_per_round() * ROUNDS as f64;
        let threads = rayon::current_num_threads();
        let one = Spread::rate(flops / 1e9, &repeat(plan, || isa.run(ROUNDS)));
        let work = || (0..threads).into_par_iter().with_max_len(1).map(|_| isa.run(ROUNDS * 8)).sum::<f32>();
        let all = Spread::rate(8.0 * flops * threads as f64 / 1e9, &repeat(plan, work));
        for (name, value) in [("1 thread", one), ("all threads", all)] {
            let name = format!("f32 multiply-adds in registers, {}, {name}", isa.name());
            table.add(Row { part: "peak", name, unit: "GFLOP/s", value, share: None });
        }
        copy(plan, threads, table);
        Self { gflops: all.median }
    }
}

/// Copying between buffers; bytes read and bytes written count.
fn copy(plan: Plan, threads: usize, table: &mut Table) {
    let from = vec![1.0f32; COPIED];
    let mut to = vec![0.0f32; COPIED];
    let gigabytes = 8.0 * COPIED as f64 / 1e9;
    let one = repeat(plan, || to.copy_from_slice(&from));
    let piece = COPIED.div_ceil(threads);
    let all = repeat(plan, || {
        to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| to.copy_from_slice(from));
    });
    for (name, seconds) in [("1 thread", one), ("all threads", all)] {
        let name = format!("memory copy of 128 MiB, read + write, {name}");
        table.add(Row { part: "peak", name, unit: "GB/s", value: Spread::rate(gigabytes, &seconds), share: None });
    }
}

/// The widest registers that the loop knows and the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Scalar,
}

/// Accumulators: more than latency times units of any core.
const ACCUMULATORS: usize = 12;

impl Isa {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            Self::Scalar => "plain code",
        }
    }

    fn flops_per_round(self) -> f64 {
        let lanes = match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 8,
            Self::Scalar => 1,
        };
        (2 * lanes * ACCUMULATORS) as f64
    }

    #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "calls instructions that not every machine has"))]
    fn run(self, rounds: usize) -> f32 {
        match self {
            // SAFETY: `detect` found these instructions on this machine.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { x86::avx512(rounds) },
            // SAFETY: `detect` found these instructions on this machine.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::avx2(rounds) },
            Self::Scalar => scalar(rounds),
        }
    }
}

/// For machines without a loop of their own.
fn scalar(rounds: usize) -> f32 {
    let (x, y) = (std::hint::black_box(0.999f32), std::hint::black_box(1e-3f32));
    let mut acc = [1.0f32; ACCUMULATORS];
    for _ in 0..rounds {
        for a in &mut acc {
            *a = *a * x + y;
        }
    }
    acc.iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The same loop with vector instructions by name, so that it is one in every build profile.

    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_add_ps, _mm512_cvtss_f32,
        _mm512_fmadd_ps, _mm512_set1_ps,
    };

    use super::ACCUMULATORS;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(rounds: usize) -> f32 {
        let (x, y) = (_mm256_set1_ps(std::hint::black_box(0.999)), _mm256_set1_ps(std::hint::black_box(1e-3)));
        let mut acc = [_mm256_set1_ps(std::hint::black_box(1.0)); ACCUMULATORS];
        for _ in 0..rounds {
            for a in &mut acc {
                *a = _mm256_fmadd_ps(*a, x, y);
            }
        }
        _mm256_cvtss_f32(acc.into_iter().fold(x, |sum, a| _mm256_add_ps(sum, a)))
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(rounds: usize) -> f32 {
        let (x, y) = (_mm512_set1_ps(std::hint::black_box(0.999)), _mm512_set1_ps(std::hint::black_box(1e-3)));
        let mut acc = [_mm512_set1_ps(std::hint::black_box(1.0)); ACCUMULATORS];
        for _ in 0..rounds {
            for a in &mut acc {
                *a = _mm512_fmadd_ps(*a, x, y);
            }
        }
        _mm512_cvtss_f32(acc.into_iter().fold(x, |sum, a| _mm512_add_ps(sum, a)))
    }
}
