//! Choosing the algorithm of a matrix product: by the library's rule, or for large products by time.

use std::mem::MaybeUninit;
use std::ptr::{from_ref, null_mut};

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys as lt_sys;
use cudarc::driver::sys as driver;
use lt_sys::cublasLtMatmulAlgo_t as Algo;

use super::check;
use super::products::{Addresses, Key, Library, Plan, WORKSPACE_BYTES};
use crate::choices::{self, Choices};

/// Floating-point operations from which on a product is worth a search.
const MIN_FLOPS: f64 = 1e9;
/// Algorithms that the library is asked for. It has no more than these on an H100.
const CANDIDATES: usize = 8;
/// Timings of each algorithm that is still in the race.
const ROUNDS: usize = 5;
/// Milliseconds of one timing, at most [`BATCH`] runs: a single run after a pause has the clocks of an idle device.
const TIMING: f32 = 2.0;
/// Most runs of one timing.
const BATCH: f32 = 10.0;
/// An algorithm so many times slower than the fastest in its first run is out.
const HOPELESS: f32 = 1.15;
/// How much faster than the library's own first choice another algorithm must be.
const MARGIN: f32 = 1.02;

/// The choices of this machine.
pub(super) struct Known {
    choices: Choices,
    /// Device, version of the library and workspace, as the names of all products begin.
    place: String,
}

impl Known {
    /// Opens the user's file of choices; `None` where the user wants no search or has no folder for it.
    pub(super) fn open() -> Option<Self> {
        let folder = choices::folder(|name| std::env::var_os(name))?;
        let (mut device, mut name) = (0, [0; 128]);
        // SAFETY: every pointer is to a live local variable and the name is written with its terminating zero into the array;
        // cubecl has made its context current on this thread.
        let (name, version) = unsafe {
            check("cuCtxGetDevice", driver::cuCtxGetDevice(&mut device));
            check("cuDeviceGetName", driver::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device));
            (std::ffi::CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned(), lt_sys::cublasLtGetVersion())
        };
        let name: String = name.split_whitespace().collect::<Vec<_>>().join(" ");
        let place = format!("{name}, cuBLASLt {version}, workspace {}", WORKSPACE_BYTES >> 20);
        Some(Self { choices: Choices::open(&folder), place })
    }
}

/// The algorithm of a product: the known one, the fastest, or the library's first.
pub(super) fn choose(
    library: &Library,
    plan: &Plan,
    known: Option<&mut Known>,
    stream: driver::CUstream,
    key: Key,
    at: Addresses,
) -> Algo {
    let some = |n| {
        candidates(library, plan, key, n).unwrap_or_else(|error| panic!("cuBLASLt's algorithms of {key:?}: {error:?}"))
    };
    let first = |found: &[Algo]| *found.first().unwrap_or_else(|| panic!("cuBLASLt has no algorithm for {key:?}"));
    let flops = 2.0 * key.problem.m as f64 * key.problem.n as f64 * key.problem.k as f64;
    let Some(known) = known.filter(|_| flops >= MIN_FLOPS) else {
        return first(&some(1));
    };
    let name = format!("{}, {key}", known.place);
    if let Some(data) = known.choices.get(&name) {
        let algorithm = Algo { data };
        if fits(library, plan, &algorithm) {
            return algorithm;
        }
        eprintln!("warning: cuBLASLt does not take the remembered algorithm of {name}; it is chosen anew");
        known.choices.forget(&name);
    }
    let found = some(CANDIDATES);
    let Some(fastest) = fastest(library, plan, stream, key, at, &found) else {
        // No memory for a result to throw away: the next run, or the next process, may have some.
        return first(&found);
    };
    let algorithm = Algo { data: known.choices.settle(&name, fastest.data) };
    if fits(library, plan, &algorithm) { algorithm } else { fastest }
}

/// Up to `n` algorithms, the library's favourite first.
fn candidates(library: &Library, plan: &Plan, key: Key, n: usize) -> Result<Vec<Algo>, CublasError> {
    let preference = preference(key.alignment)?;
    let mut found: Vec<MaybeUninit<lt_sys::cublasLtMatmulHeuristicResult_t>> = vec![MaybeUninit::uninit(); n];
    let mut count = 0;
    // SAFETY: all descriptors are alive; the library writes at most `n` results and says how many; the preference is destroyed
    // once, after its last use.
    unsafe {
        let status = lt_sys::cublasLtMatmulAlgoGetHeuristic(
            library.lt,
            plan.description,
            plan.first,
            plan.second,
            plan.result,
            plan.result,
            preference,
            n as i32,
            found.as_mut_ptr().cast(),
            &mut count,
        );
        let _ = lt::destroy_matmul_pref(preference);
        status.result()?;
        let found = found.into_iter().take(count.max(0) as usize).map(|result| result.assume_init());
        let good = found.filter(|result| result.state == lt_sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(good.map(|result| result.algo).collect())
    }
}

/// True when the library takes the algorithm for this product, within the workspace.
fn fits(library: &Library, plan: &Plan, algorithm: &Algo) -> bool {
    let mut result = MaybeUninit::<lt_sys::cublasLtMatmulHeuristicResult_t>::zeroed();
    // SAFETY: all descriptors are alive; the result is plain numbers, for which zeros are valid, and is read after success.
    unsafe {
        let Plan { description, first, second, result: c, .. } = *plan;
        let (lt, out) = (library.lt, result.as_mut_ptr());
        let status = lt_sys::cublasLtMatmulAlgoCheck(lt, description, first, second, c, c, algorithm, out);
        status.result().is_ok() && result.assume_init().workspaceSize <= WORKSPACE_BYTES
    }
}

/// The fastest of the algorithms on these operands; `None` where there is no memory to try them.
///
/// The result of a product that does not accumulate is overwritten anyway, so that it can be written many times.
fn fastest(
    library: &Library,
    plan: &Plan,
    stream: driver::CUstream,
    key: Key,
    at: Addresses,
    found: &[Algo],
) -> Option<Algo> {
    let scratch = match key.problem.accumulate {
        true => Some(Scratch::new(key.problem.m * key.problem.n * key.types.c.bytes())?),
        false => None,
    };
    let at = Addresses { c: scratch.as_ref().map_or(at.c, |scratch| scratch.0), ..at };
    let clock = Clock::new(stream);
    // Twice: the first run loads the kernel.
    let mut race: Vec<(usize, Vec<f32>)> = (0..found.len()).map(|i| (i, Vec::new())).collect();
    let time = |i: usize, n: usize| {
        let runs = || (0..n).try_for_each(|_| plan.run(library, &found[i], stream, at));
        clock.time(runs).map(|time| time / n as f32)
    };
    race.retain(|(i, _)| time(*i, 1).is_some());
    let warm: Vec<f32> = race.iter().map(|(i, _)| time(*i, 1).unwrap_or(f32::INFINITY)).collect();
    let shortest = warm.iter().copied().fold(f32::INFINITY, f32::min);
    let mut warm = warm.into_iter();
    race.retain(|(i, _)| warm.next().is_some_and(|time| time <= HOPELESS * shortest) || *i == 0);
    let n = (TIMING / shortest).clamp(1.0, BATCH) as usize;
    // Round by round, so that a clock that changes meets all of them alike.
    for _ in 0..ROUNDS {
        for (i, times) in &mut race {
            times.push(time(*i, n).unwrap_or(f32::INFINITY));
        }
    }
    let median = |times: &mut Vec<f32>| {
        times.sort_by(f32::total_cmp);
        times[times.len() / 2]
    };
    let mut ranked: Vec<(usize, f32)> = race.iter_mut().map(|(i, times)| (*i, median(times))).collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (best, time) = *ranked.first()?;
    let first = ranked.iter().find(|(i, _)| *i == 0).map_or(f32::INFINITY, |(_, time)| *time);
    Some(found[if first <= MARGIN * time { 0 } else { best }])
}

/// Device memory outside cubecl's, freed at the end.
struct Scratch(u64);

impl Scratch {
    fn new(bytes: usize) -> Option<Self> {
        let mut address = 0;
        // SAFETY: the pointer is to a live local variable; cubecl has made its context current on this thread.
        let result = unsafe { driver::cuMemAlloc_v2(&mut address, bytes) };
        (result == driver::CUresult::CUDA_SUCCESS).then_some(Self(address))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: the memory is ours, and freeing it waits for the work on it.
        unsafe { check("cuMemFree", driver::cuMemFree_v2(self.0)) };
    }
}

/// Times work on a stream.
struct Clock {
    stream: driver::CUstream,
    events: [driver::CUevent; 2],
}

impl Clock {
    fn new(stream: driver::CUstream) -> Self {
        let event = || {
            let mut event = null_mut();
            // SAFETY: the pointer is to a live local variable.
            unsafe { check("cuEventCreate", driver::cuEventCreate(&mut event, 0)) };
            event
        };
        Self { stream, events: [event(), event()] }
    }

    /// Milliseconds of the work on the device; `None` where it could not be enqueued.
    fn time(&self, work: impl FnOnce() -> Result<(), CublasError>) -> Option<f32> {
        let [begin, end] = self.events;
        let mut time = 0.0;
        // SAFETY: stream and events are alive; the pointer is to a live local variable.
        unsafe {
            check("cuEventRecord", driver::cuEventRecord(begin, self.stream));
            work().ok()?;
            check("cuEventRecord", driver::cuEventRecord(end, self.stream));
            check("cuEventSynchronize", driver::cuEventSynchronize(end));
            check("cuEventElapsedTime", driver::cuEventElapsedTime_v2(&mut time, begin, end));
        }
        Some(time)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        for event in self.events {
            // SAFETY: the event was made in `new` and is destroyed once.
            unsafe { check("cuEventDestroy", driver::cuEventDestroy_v2(event)) };
        }
    }
}

/// How much workspace there is, how the buffers are aligned, and that partial sums stay in f32.
fn preference(alignment: [u32; 3]) -> Result<lt_sys::cublasLtMatmulPreference_t, CublasError> {
    use lt_sys::cublasLtMatmulPreferenceAttributes_t::{
        CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
    };
    use lt_sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    let preference = lt::create_matmul_pref()?;
    let [a, b, c] = alignment;
    let words = [
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        (CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32),
    ];
    // SAFETY: the preference is alive; the workspace attribute is a `size_t`, the others are `uint32_t`, and all are copied.
    unsafe {
        let workspace = WORKSPACE_BYTES;
        let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        lt::set_matmul_pref_attribute(preference, attribute, from_ref(&workspace).cast(), size_of::<usize>())?;
        for (attribute, value) in words {
            lt::set_matmul_pref_attribute(preference, attribute, from_ref(&value).cast(), size_of::<u32>())?;
        }
    }
    Ok(preference)
}
