//! Timing on the device: warm-up, then repetitions without waiting in between, then one wait for all.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use burn::tensor::backend::Backend;
use kernels_cubecl::{Cuda, cuda::CudaDevice};

/// What the datasheet of an H100 SXM gives, for the shares of the roofline.
pub(super) const PEAK_BF16_TFLOPS: f64 = 989.0;
/// As above, FP8.
pub(super) const PEAK_FP8_TFLOPS: f64 = 1979.0;
/// As above, f32 without the matrix units.
pub(super) const PEAK_F32_TFLOPS: f64 = 67.0;
/// Memory bandwidth of the same.
pub(super) const PEAK_TB_S: f64 = 3.35;

/// Work of one call.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// Floating-point operations on the matrix units.
    Bf16(f64),
    /// The same in FP8.
    Fp8(f64),
    /// Floating-point operations in f32.
    F32(f64),
    /// Bytes moved through device memory.
    Bytes(f64),
}

/// Measures and prints the lines of a table.
pub(super) struct Bench<'a> {
    device: &'a CudaDevice,
    only: &'a str,
    /// Microseconds of the rival, by the name of the line.
    rival: &'a HashMap<String, f64>,
    /// Logarithms of the rival's times over ours, by the first word of the line and what it measures.
    ratios: RefCell<BTreeMap<String, Vec<f64>>>,
}

impl<'a> Bench<'a> {
    /// Prints the head of the table.
    pub(super) fn new(device: &'a CudaDevice, only: &'a str, rival: &'a HashMap<String, f64>) -> Self {
        println!("| op | time | speed | of the peak | host | of PyTorch's speed |\n|---|---|---|---|---|---|");
        Self { device, only, rival, ratios: RefCell::default() }
    }

    /// Prints the geometric means of what both measured.
    pub(super) fn summary(&self) {
        for (group, logarithms) in self.ratios.borrow().iter() {
            let mean = (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp();
            println!("{group}: {mean:.3} of PyTorch's speed, geometric mean of {} lines", logarithms.len());
        }
    }

    /// True when the name is asked for.
    pub(super) fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    fn wait(&self) {
        if let Err(error) = Cuda::sync(self.device) {
            println!("device: {error:?}");
        }
    }

    /// Times calls of `f`; the median of five batches.
    pub(super) fn time(&self, name: &str, work: Work, mut f: impl FnMut()) {
        if !self.wants(name) {
            return;
        }
        let batch = |n: u32, f: &mut dyn FnMut()| {
            let begin = Instant::now();
            (0..n).for_each(|_| f());
            let host = begin.elapsed().as_secs_f64() / f64::from(n);
            self.wait();
            (begin.elapsed().as_secs_f64() / f64::from(n), host)
        };
        (0..3).for_each(|_| f());
        self.wait();
        let once = batch(2, &mut f).0;
        let n = (0.02 / once).clamp(2.0, 50.0) as u32;
        let mut runs: Vec<(f64, f64)> = (0..5).map(|_| batch(n, &mut f)).collect();
        runs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (seconds, host) = runs[2];
        let (amount, unit, peak) = match work {
            Work::Bf16(flops) => (flops, "TFLOP/s", PEAK_BF16_TFLOPS),
            Work::Fp8(flops) => (flops, "TFLOP/s", PEAK_FP8_TFLOPS),
            Work::F32(flops) => (flops, "TFLOP/s", PEAK_F32_TFLOPS),
            Work::Bytes(bytes) => (bytes, "TB/s", PEAK_TB_S),
        };
        let speed = amount / seconds / 1e12;
        let (time, share, host) = (seconds * 1e6, speed / peak * 100.0, host * 1e6);
        let ratio = self.rival.get(name).map(|rival| rival / time);
        if let Some(ratio) = ratio {
            let word = name.split_whitespace().next().unwrap_or(name);
            let group = if name.ends_with("backward") { format!("{word} backward") } else { word.to_owned() };
            self.ratios.borrow_mut().entry(group).or_default().push(ratio.ln());
        }
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        println!("| {name} | {time:.1} us | {speed:.2} {unit} | {share:.0} % | {host:.1} us | {ratio} |");
    }
}
