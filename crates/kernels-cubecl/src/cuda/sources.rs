//! A hash over the sources of all kernels, made at build time: cached kernels of another build are never used.

/// The sources that kernels are generated from.
const SOURCES: [&str; 23] = [
    include_str!("launch.rs"),
    include_str!("peaks.rs"),
    include_str!("reduce.rs"),
    include_str!("../ops/accumulate/cuda.rs"),
    include_str!("../ops/adamw/cuda.rs"),
    include_str!("../ops/attention/cuda/backward.rs"),
    include_str!("../ops/attention/cuda/flash.rs"),
    include_str!("../ops/attention/cuda/flash_backward.rs"),
    include_str!("../ops/attention/cuda/forward.rs"),
    include_str!("../ops/attention/cuda/mma.rs"),
    include_str!("../ops/attention/cuda/tile.rs"),
    include_str!("../ops/dispatch/cuda.rs"),
    include_str!("../ops/embedding/cuda.rs"),
    include_str!("../ops/grouped_fp8/cuda.rs"),
    include_str!("../ops/grouped_mxfp4/cuda.rs"),
    include_str!("../ops/linear_bias/cuda.rs"),
    include_str!("../ops/linear_cross_entropy/cuda.rs"),
    include_str!("../ops/rms_norm/cuda.rs"),
    include_str!("../ops/rope_qkv/cuda.rs"),
    include_str!("../ops/route/cuda.rs"),
    include_str!("../ops/sum_squares/cuda.rs"),
    include_str!("../ops/swiglu/cuda.rs"),
    include_str!("../ops/swiglu_clamped/cuda.rs"),
];

/// The hash.
pub(super) const HASH: u64 = hash();

/// FNV-1a over all bytes.
const fn hash() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut file = 0;
    while file < SOURCES.len() {
        let bytes = SOURCES[file].as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            i += 1;
        }
        file += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every file with a kernel is part of the hash.
    #[test]
    fn all_kernels_are_hashed() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("a source");
                let has_kernel = text.lines().any(|line| line.trim_start().starts_with("#[cube"));
                assert!(!has_kernel || SOURCES.contains(&text.as_str()), "{} is not hashed", path.display());
            }
        }
    }
}
