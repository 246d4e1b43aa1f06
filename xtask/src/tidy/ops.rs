//! Every numeric op is whole: its maths, its f64 oracle, its CPU path, its cases.

use std::collections::BTreeMap;
use std::path::Path;

use super::Finding;
use super::source::Source;

const OPS: &str = "crates/kernels-cubecl/src/ops";
const PARTS: [&str; 4] = ["mod", "reference", "cpu", "cases"];

/// Checks that each folder of ops has all parts and that its `mod.rs` declares them.
pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut ops: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for source in sources {
        let Ok(inside) = source.path.strip_prefix(OPS) else { continue };
        let mut parts = inside.iter();
        if let (Some(op), Some(part)) = (parts.next(), parts.next().and_then(|part| part.to_str())) {
            ops.entry(Path::new(op)).or_default().push(part);
        }
    }
    let mut findings = Vec::new();
    for (op, files) in ops {
        let has = |part: &str| files.iter().any(|file| *file == part || file.strip_suffix(".rs") == Some(part));
        for part in PARTS.iter().filter(|part| !has(part)) {
            findings.push(Finding::new(Path::new(OPS).join(op), 0, format!("the op has no {part}.rs")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(files: &[&str]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|file| Source::new(&Path::new(OPS).join(file), String::new())).collect();
        check(&sources).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_missing_part_is_named() {
        let whole = ["mod.rs", "a/mod.rs", "a/reference.rs", "a/cpu/mod.rs", "a/cases.rs", "a/backward.rs"];
        assert_eq!(ops(&whole), Vec::<String>::new());
        let got = ops(&["a/mod.rs", "a/cpu.rs", "a/cases.rs"]);
        assert_eq!(got, [format!("{OPS}/a: the op has no reference.rs")]);
    }
}
