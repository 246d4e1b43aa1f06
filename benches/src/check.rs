//! `perf check`: the case tables of all ops on a device, against the f64 references.
//!
//! At the end stands what is no op: inputs that wait in the host's memory, copies for the host of tensors that change, and on
//! CUDA the reports of faults.
//!
//! Each op is run on its own: one that panics is a miss and the next one still runs. `--op` and `--precision` choose, so that
//! a script can give each op a process and a time limit of its own.

mod offload;
mod snapshot;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::ensure;
#[cfg(feature = "cuda")]
use kernels_cubecl::Precision;
use kernels_cubecl::cases::{Check, OPS, run_op};
use kernels_cubecl::compare::{Mismatch, Report};
use kernels_cubecl::{Cpu, Device, DeviceChoice, LmBackend};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Checks only this op; repeatable
    #[arg(long = "op", value_name = "OP")]
    ops: Vec<String>,
    /// Checks only this element type; both by default, each in a process of its own
    #[arg(long = "precision", value_parser = ["f32", "bf16"])]
    precisions: Vec<String>,
    /// Prints every comparison
    #[arg(long)]
    verbose: bool,
}

/// One line of the table.
struct Row {
    op: &'static str,
    precision: &'static str,
    checks: usize,
    misses: Vec<String>,
    /// Largest error relative to its bound, with the comparison it is from.
    worst: (f64, String),
    /// Largest relative difference of a whole tensor.
    global: f64,
    /// Whether a second run gave the same numbers.
    repeatable: bool,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    for op in &arguments.ops {
        ensure!(OPS.contains(&op.as_str()), "--op: expected one of {}, got {op}", OPS.join(", "));
    }
    let rows = match arguments.device.resolve()? {
        Device::Cpu(device) => {
            if arguments.device != DeviceChoice::Cpu {
                println!("not run: every case on CUDA in f32 and bf16 ({}); no such device here", OPS.join(", "));
            }
            rows::<Cpu>(arguments, "f32", OFFLOADED_ON_CPU, &device)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(_) | Device::CudaBf16(_) if arguments.precisions.len() != 1 => return each_precision(),
        #[cfg(feature = "cuda")]
        device => {
            let bf16 = arguments.precisions[0] == "bf16";
            match device.with(if bf16 { Precision::Bf16 } else { Precision::F32 })? {
                Device::CudaBf16(device) => rows::<kernels_cubecl::CudaBf16>(arguments, "bf16", OFFLOADED, &device),
                Device::Cuda(device) => {
                    let mut rows = rows::<kernels_cubecl::Cuda>(arguments, "f32", OFFLOADED, &device);
                    if arguments.ops.is_empty() {
                        rows.push(fault(&device));
                        rows.push(out_of_memory(&device));
                    }
                    rows
                }
                Device::Cpu(_) => unreachable!("a CUDA device stays one"),
            }
        }
    };
    print(&rows);
    let missed = rows.iter().any(|row| !row.misses.is_empty() || !row.repeatable);
    Ok(ExitCode::from(u8::from(missed)))
}

/// Runs this program again for each precision: burn keeps one default type per device and process.
#[cfg(feature = "cuda")]
fn each_precision() -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe()?;
    let mut passed = true;
    for precision in ["f32", "bf16"] {
        let mut command = std::process::Command::new(&program);
        command.args(std::env::args_os().skip(1)).args(["--precision", precision]);
        passed &= command.status()?.success();
    }
    Ok(ExitCode::from(u8::from(!passed)))
}

/// Tokens of a row in the check of offloaded inputs: on a device the copies must take as long as kernels do.
#[cfg(feature = "cuda")]
const OFFLOADED: usize = 4096;
const OFFLOADED_ON_CPU: usize = 16;

/// Runs the chosen ops in one precision, and the checks of what is no op where all ops are chosen.
fn rows<B: LmBackend>(arguments: &Arguments, precision: &'static str, seq: usize, device: &B::Device) -> Vec<Row> {
    let wanted = |list: &[String], name: &str| list.is_empty() || list.iter().any(|item| item == name);
    if !wanted(&arguments.precisions, precision) {
        return Vec::new();
    }
    let chosen = OPS.iter().enumerate().filter(|(_, op)| wanted(&arguments.ops, op));
    let mut rows: Vec<Row> =
        chosen.map(|(index, op)| row(op, precision, arguments.verbose, || run_op::<B>(index, device))).collect();
    if arguments.ops.is_empty() {
        let (checks, misses) = guarded(|| offload::compare::<B>(seq, device)).unwrap_or_else(|miss| (1, vec![miss]));
        rows.push(Row::bare("offload", precision, checks, misses));
        let (checks, misses) = guarded(|| snapshot::compare::<B>(seq, device)).unwrap_or_else(|miss| (1, vec![miss]));
        rows.push(Row::bare("snapshot", precision, checks, misses));
    }
    rows
}

/// Runs one op twice and sums its comparisons up.
fn row(op: &'static str, precision: &'static str, verbose: bool, run: impl Fn() -> Vec<Check>) -> Row {
    let mut row = Row::bare(op, precision, 0, Vec::new());
    let both = guarded(|| (run(), run()));
    let (first, second) = match both {
        Ok(both) => both,
        Err(message) => {
            row.misses.push(format!("{op}: {message}"));
            return row;
        }
    };
    row.checks = first.len();
    row.repeatable = format!("{first:?}") == format!("{second:?}");
    for check in &first {
        if verbose {
            println!("{precision} {check}");
        }
        match &check.outcome {
            Ok(report) | Err(Mismatch::Element(report) | Mismatch::Global(report)) => row.add(check, report),
            Err(Mismatch::Length(..)) => {}
        }
        if check.outcome.is_err() {
            row.misses.push(format!("{precision} {check}"));
        }
    }
    row
}

impl Row {
    /// A row without errors relative to bounds.
    fn bare(op: &'static str, precision: &'static str, checks: usize, misses: Vec<String>) -> Self {
        Self { op, precision, checks, misses, worst: (0.0, String::new()), global: 0.0, repeatable: true }
    }

    fn add(&mut self, check: &Check, report: &Report) {
        let error = (report.got - report.want).abs();
        let share = if error == 0.0 { 0.0 } else { error / report.bound };
        if share > self.worst.0 {
            self.worst = (share, format!("{} / {}", check.case, check.what));
        }
        self.global = self.global.max(report.global);
    }
}

/// Runs `work`; a panic, here or on a device thread, is its message.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let work = AssertUnwindSafe(work);
    #[cfg(feature = "cuda")]
    let result =
        catch_unwind(AssertUnwindSafe(|| kernels_cubecl::cuda::guarded(work.0).map_err(|error| error.to_string())));
    #[cfg(not(feature = "cuda"))]
    let result = catch_unwind(AssertUnwindSafe(|| Ok(work.0())));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let text: String = text.unwrap_or("without a message").chars().take(2000).collect();
        Err(format!("panicked: {text}"))
    })
}

/// A panic on the device thread must come back as an error that names the op.
#[cfg(feature = "cuda")]
fn fault(device: &kernels_cubecl::cuda::CudaDevice) -> Row {
    use burn::tensor::backend::Backend;
    let result = kernels_cubecl::cuda::guarded(|| {
        kernels_cubecl::cuda::provoke_fault(device);
        kernels_cubecl::Cuda::sync(device)
    });
    let misses = match result {
        Err(error) if error.to_string().contains("provoked") => Vec::new(),
        other => vec![format!("a panic on the device thread was not reported: {other:?}")],
    };
    Row::bare("device fault", "", 1, misses)
}

/// Bytes that no device has.
#[cfg(feature = "cuda")]
const TOO_MANY_BYTES: u64 = 1 << 44;

/// A buffer that the device has no room for must come back as the error that says so, with its size.
#[cfg(feature = "cuda")]
fn out_of_memory(device: &kernels_cubecl::cuda::CudaDevice) -> Row {
    use burn::tensor::{Tensor, backend::Backend};
    use kernels_cubecl::{Cuda, KernelError};
    let result = kernels_cubecl::cuda::guarded(|| {
        let too_large = Tensor::<Cuda, 1>::empty([TOO_MANY_BYTES as usize / 4], device);
        let synced = Cuda::sync(device);
        drop(too_large);
        synced
    });
    let misses = match result {
        Err(KernelError::OutOfMemory { bytes: Some(TOO_MANY_BYTES), .. }) => Vec::new(),
        other => vec![format!("a lack of memory was not reported as one: {other:?}")],
    };
    Row::bare("out of memory", "", 1, misses)
}

/// Prints the table, then every miss.
fn print(rows: &[Row]) {
    println!("| op | type | comparisons | misses | worst error / bound | of | worst global | repeatable |");
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let Row { op, precision, checks, misses, worst: (share, place), global, repeatable } = row;
        let repeatable = if *repeatable { "yes" } else { "NO" };
        println!(
            "| {op} | {precision} | {checks} | {} | {share:.3} | {place} | {global:.2e} | {repeatable} |",
            misses.len()
        );
    }
    for miss in rows.iter().flat_map(|row| &row.misses) {
        println!("MISS {miss}");
    }
}
