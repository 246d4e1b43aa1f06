//! Files of commands, where `-` is standard input or output.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Reads a file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    if path != Path::new("-") {
        return Ok(gates::artifact::read_bounded(path, limit)?);
    }
    let mut bytes = Vec::new();
    std::io::stdin().take(limit + 1).read_to_end(&mut bytes).context("read standard input")?;
    ensure!(
        bytes.len() as u64 <= limit,
        "standard input: expected at most {limit} bytes, got more; give less at a time"
    );
    Ok(bytes)
}

/// Writes a file whole or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if path != Path::new("-") {
        return Ok(gates::artifact::write_atomic(path, bytes)?);
    }
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("write standard output")
}
