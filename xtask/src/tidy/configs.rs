//! Configurations parse, pipelines and policies fit together, and no gate is out of reach.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use gates::Policy;

use super::Finding;
use crate::pipeline::config::{Pipeline, Step};
use crate::workspace;

/// Checks every file below `configs/`.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut used: BTreeSet<(PathBuf, String)> = BTreeSet::new();
    let paths = workspace::files(root, "configs", "toml")?;
    for path in &paths {
        let text = workspace::read(root, path)?;
        if let Err(error) = text.parse::<toml::Table>() {
            findings.push(Finding::new(path, 0, format!("is not TOML: {error}")));
        } else if path.starts_with("configs/pipeline") {
            match Pipeline::load(root, path, &[]) {
                Ok(pipeline) => findings.extend(check_gates(root, path, &pipeline, &mut used)),
                Err(error) => findings.push(Finding::new(path, 0, format!("{error:#}"))),
            }
        }
    }
    // Defect S3: gates that stand in a file and are never asked.
    for path in paths.iter().filter(|path| path.starts_with("configs/gates")) {
        let Ok(policy) = Policy::load(&root.join(path)) else { continue };
        for name in policy.names() {
            if !used.contains(&(path.clone(), name.clone())) {
                findings.push(Finding::new(path, 0, format!("no pipeline asks the gate `{name}`")));
            }
        }
    }
    Ok(findings)
}

/// Checks that every gate step names a transition that its policy has.
fn check_gates(root: &Path, path: &Path, pipeline: &Pipeline, used: &mut BTreeSet<(PathBuf, String)>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for step in pipeline.steps.iter().filter(|step| step.args.first().is_some_and(|arg| arg == "check")) {
        let (Some(policy), Some(transition)) = (value(step, "--policy"), value(step, "--transition")) else {
            findings.push(Finding::new(path, 0, format!("step `{}` needs --policy and --transition", step.name)));
            continue;
        };
        let found = Policy::load(&root.join(policy)).and_then(|p| p.rules(transition).map(|_| ()));
        match found {
            Ok(()) => _ = used.insert((PathBuf::from(policy), transition.to_owned())),
            Err(error) => findings.push(Finding::new(path, 0, format!("step `{}`: {error}", step.name))),
        }
    }
    findings
}

fn value<'a>(step: &'a Step, option: &str) -> Option<&'a str> {
    let at = step.args.iter().position(|arg| arg == option)?;
    step.args.get(at + 1).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
version = 1
[[transitions.a-to-b.rules]]
metric = "x"
op = "<"
bound = "point"
min_n = 1
threshold = 1.0
"#;

    fn findings(pipeline: &str, policy: &str) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [("pipeline/p.toml", pipeline), ("gates/g.toml", policy), ("stage/s.toml", "x = 1\n")] {
            let path = root.path().join("configs").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        check(root.path()).unwrap().iter().map(ToString::to_string).collect()
    }

    fn pipeline(transition: &str) -> String {
        format!(
            "version = 1\nname = \"p\"\n[[steps]]\nname = \"gate\"\nkind = \"gate\"\nprogram = \"gates\"\n\
             args = [\"check\", \"--policy\", \"configs/gates/g.toml\", \"--transition\", \"{transition}\"]\n\
             inputs = [\"configs/gates/g.toml\"]\noutputs = []\n"
        )
    }

    #[test]
    fn s03_every_gate_of_a_policy_is_asked_and_every_question_has_a_gate() {
        assert_eq!(findings(&pipeline("a-to-b"), POLICY), Vec::<String>::new());
        let got = findings(&pipeline("b-to-c"), POLICY);
        assert_eq!(got.len(), 2, "{got:?}");
        assert!(got[0].contains("unknown transition `b-to-c`; the policy has a-to-b"), "{got:?}");
        assert!(got[1].contains("no pipeline asks the gate `a-to-b`"), "{got:?}");
        let got = findings(&pipeline("a-to-b").replace("--transition", "--transitions"), POLICY);
        assert!(got[0].contains("needs --policy and --transition"), "{got:?}");
    }

    /// The line of GPT-OSS: every gate of its policy is asked, in the order of the stages, and each stage wants the receipt
    /// of the gate before it.
    #[test]
    fn s03_every_gate_of_the_gpt_oss_line_is_reached() {
        let root = workspace::root().unwrap();
        let pipeline = Pipeline::load(&root, Path::new("configs/pipeline/moe-demo.toml"), &[]).unwrap();
        let policy = Policy::load(&root.join("configs/gates/moe-demo.toml")).unwrap();
        let asked: Vec<&str> = pipeline.steps.iter().filter_map(|step| value(step, "--transition")).collect();
        assert_eq!(asked, ["pretrain-to-sft", "sft-to-dpo", "dpo-to-lora", "lora-to-release"]);
        assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), policy.names().len());
        let place = |name: &str| pipeline.steps.iter().position(|step| step.name == name).unwrap();
        for (gate, stage) in asked.iter().zip(["sft", "dpo", "lora"]) {
            let receipt = format!("{{run}}/gates/gate-{gate}.json");
            assert!(place(&format!("gate-{gate}")) < place(stage));
            assert!(pipeline.steps[place(stage)].args.contains(&format!("gate.receipt={receipt}")), "{stage}");
            let text = workspace::read(&root, Path::new(&format!("configs/stage/moe-demo-{stage}.toml"))).unwrap();
            assert!(text.contains(&format!("transition = \"{gate}\"")), "{stage}");
            assert!(!policy.rules(gate).unwrap().is_empty());
        }
    }

    #[test]
    fn files_that_do_not_parse_are_found() {
        let got = findings("version = ", POLICY);
        assert!(got[0].contains("configs/pipeline/p.toml: is not TOML"), "{got:?}");
        let got = findings("version = 1\n", POLICY);
        assert!(got[0].contains("missing field `name`"), "{got:?}");
    }
}
