//! Tests of throughput figures and of observers that must not stop a run.

use std::path::Path;

use model_core::ModelConfig;

use super::*;

fn log(tokens: u64, seq_len: usize, seconds: f64) -> StepLog {
    StepLog {
        step: 16,
        loss: 2.0,
        loss_window: None,
        grad_norm: 1.0,
        lr: 0.1,
        units: 1.0,
        tokens,
        seq_len,
        skipped: false,
        metrics: vec![MetricSum::new("nll", 2.0, 1.0)],
        seconds,
        last_step: 20,
    }
}

fn flops(peak_tflops: f64) -> FlopCount {
    FlopCount { config: ModelConfig::preset("7b-wide").unwrap(), peak_tflops }
}

#[test]
fn mfu_follows_the_one_definition() {
    // 13.6k tokens/s of the 7b-wide model in rows of 1024 are 60.4 % of an H100's 989.4 TFLOP/s: causal attention, head
    // counted, embedding and recomputation not.
    let speed = flops(989.4).of(&log(136_000, 1024, 10.0));
    assert!((speed.tokens_per_s - 13_600.0).abs() < 1e-6 && (speed.step_ms - 10_000.0).abs() < 1e-6);
    assert!((speed.mfu.unwrap() - 0.604).abs() < 5e-4, "{:?}", speed.mfu);
    assert_eq!(flops(0.0).of(&log(136_000, 1024, 10.0)).mfu, None);
    assert!(flops(1.0).of(&log(10, 1024, 0.0)).tokens_per_s.is_finite());
}

#[test]
fn curves_that_cannot_be_written_do_not_stop_the_run() {
    // No file can be made in this folder, so the writer's thread dies; on the way out it prints why, which is fine.
    let mut curves = TensorBoard::new(Path::new("/proc/self/task"), flops(0.0)).unwrap();
    // The thread takes a moment to die; until then its channel swallows what it is sent.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !curves.is_off() && std::time::Instant::now() < patience {
        curves.step(&log(10, 8, 1.0)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    curves.eval(&EvalLog { step: 1, metrics: Vec::new(), bits_per_byte: Some(1.0) }).unwrap();
    assert!(curves.is_off());
}
