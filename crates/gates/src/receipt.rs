//! Gate receipts, `gate-<transition>.json`: what the next stage asks for before it starts.
//!
//! A receipt is bound to one transition and one model, and carries a hash over its own bytes. The hash is no secret, so
//! it does not stop a forger; it makes sure that nobody edits a receipt by accident or on the quick. Reading therefore
//! also checks that the verdict follows from the recorded numbers.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::artifact::{self, hash_bytes};
use crate::error::{GateError, Refusal, Result};
use crate::policy::Policy;
use crate::report::{parse_versioned, to_json};
use crate::verdict::{Evidence, RuleVerdict, Verdict};

/// Receipts beyond this size are not ours.
const MAX_BYTES: u64 = 1 << 20;

/// The record of one gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Version of the format: [`Receipt::VERSION`].
    pub version: u32,
    /// The transition.
    pub transition: String,
    /// Whether the gate was passed.
    pub passed: bool,
    /// [`artifact::model_hash`] of the model that was checked.
    pub model_hash: String,
    /// BLAKE3 (hex) of the policy file.
    pub policy_hash: String,
    /// BLAKE3 (hex) of the report files.
    pub report_hashes: Vec<String>,
    /// BLAKE3 (hex) of the baseline report files.
    pub baseline_hashes: Vec<String>,
    /// Evidence that was refused.
    pub problems: Vec<String>,
    /// The rules with the numbers that decided them.
    pub rules: Vec<RuleVerdict>,
    /// BLAKE3 (hex) of the file with this hash left out.
    pub receipt_hash: String,
}

impl Receipt {
    /// The version that this build writes and reads.
    pub const VERSION: u32 = 1;

    /// The receipt of a verdict, passed or not.
    pub fn new(
        verdict: Verdict,
        policy: &Policy,
        model_hash: &str,
        evals: &[Evidence],
        baselines: &[Evidence],
    ) -> Self {
        let hashes = |evidence: &[Evidence]| evidence.iter().map(|e| e.hash.clone()).collect();
        let mut receipt = Self {
            version: Self::VERSION,
            transition: verdict.transition,
            passed: verdict.passed,
            model_hash: model_hash.into(),
            policy_hash: policy.hash().into(),
            report_hashes: hashes(evals),
            baseline_hashes: hashes(baselines),
            problems: verdict.problems,
            rules: verdict.rules,
            receipt_hash: String::new(),
        };
        receipt.seal();
        receipt
    }

    /// The file name of a transition's receipt.
    pub fn file_name(transition: &str) -> String {
        format!("gate-{transition}.json")
    }

    /// Writes the receipt atomically.
    ///
    /// # Errors
    /// [`GateError::Artifact`].
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(artifact::write_atomic(path, to_json(self).as_bytes())?)
    }

    /// Reads a receipt that says yes to this transition for this model.
    ///
    /// # Errors
    /// [`GateError::Refused`] with the [`Refusal`]: missing, unreadable, edited, of another transition or model,
    /// failed, or with a verdict that its own numbers contradict.
    pub fn require(path: &Path, transition: &str, model_hash: &str) -> Result<Self> {
        let refuse = |problem| GateError::Refused { transition: transition.into(), path: path.into(), problem };
        let receipt = Self::read(path).map_err(refuse)?;
        receipt.check(transition, model_hash).map_err(refuse)?;
        Ok(receipt)
    }

    /// Reads a receipt whatever it says, for reports.
    ///
    /// # Errors
    /// [`Refusal::Missing`], [`Refusal::Unreadable`], [`Refusal::Edited`].
    pub fn read(path: &Path) -> Result<Self, Refusal> {
        if !path.exists() {
            return Err(Refusal::Missing);
        }
        let bytes = artifact::read_bounded(path, MAX_BYTES).map_err(|e| Refusal::Unreadable(e.to_string()))?;
        let receipt: Self = parse_versioned("receipt", "gates check", path, &bytes, Self::VERSION)
            .map_err(|e| Refusal::Unreadable(e.to_string()))?;
        let mut again = receipt.clone();
        again.seal();
        // Comparing the bytes as well catches edits that the parser would not see, such as a key written twice.
        if again.receipt_hash != receipt.receipt_hash || to_json(&receipt).as_bytes() != bytes {
            return Err(Refusal::Edited);
        }
        Ok(receipt)
    }

    fn seal(&mut self) {
        self.receipt_hash.clear();
        self.receipt_hash = hash_bytes(to_json(self).as_bytes());
    }

    fn check(&self, transition: &str, model_hash: &str) -> Result<(), Refusal> {
        if self.transition != transition {
            return Err(Refusal::OtherTransition(self.transition.clone()));
        }
        if self.model_hash != model_hash {
            return Err(Refusal::OtherModel { found: self.model_hash.clone(), wanted: model_hash.into() });
        }
        if !self.passed {
            let failed = self.rules.iter().filter(|r| !r.passed).map(|r| format!("{}: {}", r.metric, r.reason));
            let reasons: Vec<String> = self.problems.iter().cloned().chain(failed).collect();
            return Err(Refusal::Failed(reasons.join("; ")));
        }
        if self.rules.is_empty() {
            return Err(Refusal::Inconsistent("passed without a rule".into()));
        }
        if let Some(problem) = self.problems.first() {
            return Err(Refusal::Inconsistent(format!("passed in spite of: {problem}")));
        }
        match self.rules.iter().find(|r| !r.passed || !r.follows()) {
            Some(rule) => Err(Refusal::Inconsistent(format!("passed although its numbers say: {rule}"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interval::rate;
    use crate::report::{Direction, EvalReport, Metric};
    use crate::verdict;

    const POLICY: &str = r#"
version = 1
[[transitions.sft-to-dpo.rules]]
metric = "accuracy"
op = ">="
bound = "lower"
min_n = 100
threshold = 0.3
"#;

    fn receipt(hits: u64) -> Receipt {
        let policy = Policy::parse(Path::new("p.toml"), POLICY.as_bytes()).unwrap();
        let mut report = EvalReport::new("model", "suite");
        report.metrics.push(Metric::new("accuracy", Direction::Higher, rate(hits, 300), "data"));
        let evals = [Evidence { report, hash: "report".into() }];
        let verdict = verdict::check(&policy, "sft-to-dpo", "model", &evals, &[]).unwrap();
        Receipt::new(verdict, &policy, "model", &evals, &[])
    }

    fn refusal(path: &Path) -> Refusal {
        match Receipt::require(path, "sft-to-dpo", "model").unwrap_err() {
            GateError::Refused { problem, .. } => problem,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_passed_receipt_opens_the_gate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(Receipt::file_name("sft-to-dpo"));
        receipt(200).write(&path).unwrap();
        let got = Receipt::require(&path, "sft-to-dpo", "model").unwrap();
        assert_eq!(got, receipt(200));
        assert_eq!(got.report_hashes, ["report"]);
    }

    /// Guarantee G34: missing, stale, edited or failed gate records, in every form that we could think of.
    #[test]
    fn g34_gates_cannot_be_bypassed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate.json");
        let forged = |change: &dyn Fn(&mut Receipt)| {
            let mut forged = receipt(0);
            change(&mut forged);
            forged.seal();
            forged.write(&path).unwrap();
            refusal(&path)
        };
        assert_eq!(refusal(&path), Refusal::Missing);
        // 1 failed
        assert!(matches!(forged(&|_| ()), Refusal::Failed(why) if why.contains("wanted >= 0.3")));
        // 2 failed, `passed` set by hand and the hash computed anew
        assert!(matches!(forged(&|r| r.passed = true), Refusal::Inconsistent(_)));
        // 3 the same with the rule's flag
        let both = |r: &mut Receipt| (r.passed, r.rules[0].passed) = (true, true);
        assert!(matches!(forged(&both), Refusal::Inconsistent(_)));
        // 4 all rules removed
        let no_rules = |r: &mut Receipt| (r.passed, r.rules) = (true, Vec::new());
        assert!(matches!(forged(&no_rules), Refusal::Inconsistent(_)));
        // 5 a failed receipt edited in the file
        receipt(0).write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"passed\": false", "\"passed\": true")).unwrap();
        assert_eq!(refusal(&path), Refusal::Edited);
        // 6 the same receipt with other bytes: a space, a key written twice
        receipt(200).write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"model\"", " \"model\"")).unwrap();
        assert_eq!(refusal(&path), Refusal::Edited);
        std::fs::write(&path, text.replace("\"passed\": true,\n  \"mod", "\"passed\": true, \"passed\": true, \"mod"))
            .unwrap();
        assert!(matches!(refusal(&path), Refusal::Unreadable(why) if why.contains("duplicate field")));
        // 7 torn, empty, of another version, a folder
        for torn in [&text[..text.len() / 2], "", &text.replace("\"version\": 1", "\"version\": 9")] {
            std::fs::write(&path, torn).unwrap();
            assert!(matches!(refusal(&path), Refusal::Unreadable(_)), "{torn}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(refusal(&path), Refusal::Unreadable(_)));
        std::fs::remove_dir(&path).unwrap();
        // 8 stale: another model, another transition
        receipt(200).write(&path).unwrap();
        assert!(Receipt::require(&path, "sft-to-dpo", "other").is_err());
        let error = Receipt::require(&path, "dpo-to-lora", "model").unwrap_err().to_string();
        assert!(error.contains("is for the transition `sft-to-dpo`") && error.contains("run `gates eval`"), "{error}");
    }
}
