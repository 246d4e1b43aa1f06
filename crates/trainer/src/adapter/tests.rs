//! What comes out of a run: a merged model that was proven equal, or an error, whatever lies on disk already.

use data_pipeline::PADDING_SEGMENT;
use kernels_cubecl::Cpu;
use model_core::{Experts, Family, GptOss, ModelConfig, ModelError};
use tempfile::TempDir;

use super::*;

/// A model folder of a tiny mixture of experts, and an adapter on it as a checkpoint has it.
struct Lab {
    dir: TempDir,
    lora: LoraConfig,
    base: Decoder<Cpu>,
    base_hash: String,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let experts = Experts { n: 3, top_k: 2, limit: 7.0, alpha: 1.702, balance_coef: 0.0 };
        let family = Family::GptOss(GptOss { window: 4, sliding: vec![true], experts });
        let shape = ModelConfig { family, tied: false, d_ff: 64, ..ModelConfig::from_depth(1, 40) };
        let base = Decoder::<Cpu>::init(&shape, 7, &Default::default());
        std::fs::create_dir_all(root.join("model")).unwrap();
        base.save(&root.join("model"), 1 << 30).unwrap();
        std::fs::write(root.join("model/tokenizer.json"), "{}").unwrap();
        let keys = AdapterKeys {
            r: 4,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            targets: ["q_proj", "mlp.experts.down_proj"].map(str::to_owned).into(),
            rank_pattern: [("down_proj".to_owned(), 2)].into(),
            divide_by_experts: false,
        };
        let lora = keys.workload(PackedExperts::default()).lora_for(&base.config).unwrap();
        let base_hash = weights_hash(&root.join("model")).unwrap();
        let lab = Self { dir, lora, base, base_hash };
        let mut adapted = lab.base.clone();
        adapted.attach_lora(&lab.lora, 1).unwrap();
        for (_, moe) in adapted.mixtures_mut() {
            let lora = moe.down.adapter.as_mut().unwrap();
            lora.b = lora.b.clone() + 0.1;
        }
        std::fs::create_dir(lab.checkpoint()).unwrap();
        adapted.save_peft(&lab.checkpoint(), &lab.lora, &lab.base_hash).unwrap();
        lab
    }

    fn checkpoint(&self) -> PathBuf {
        self.dir.path().join("checkpoint")
    }

    fn outputs(&self, base_hash: &str) -> Result<PathBuf, TrainError> {
        let mut row = TokenRow { ids: (1..9).collect(), segments: vec![0; 8], weights: vec![1.0; 8] };
        (row.weights[0], row.weights[7], row.segments[7]) = (0.0, 0.0, PADDING_SEGMENT);
        let (root, model_dir, heldout) = (self.dir.path(), self.dir.path().join("model"), [row]);
        let to = Publish {
            stage: "lora",
            dir: root,
            model_dir: &model_dir,
            arithmetic: Arithmetic::F32,
            merge_max_diff: 1e-3,
            heldout: &heldout,
        };
        outputs(&self.lora, self.base.clone(), base_hash, to, &self.checkpoint())
    }

    /// Changes the adapter's configuration, which then does not describe its tensors.
    fn edit(&self, from: &str, to: &str) {
        let path = self.checkpoint().join("adapter_config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }
}

#[test]
fn s27_a_merge_is_made_of_the_adapter_and_proven_and_changes_the_experts() {
    let lab = Lab::new();
    let folder = lab.outputs(&lab.base_hash).unwrap();
    let merged = Decoder::<Cpu>::load(&folder, &Default::default()).unwrap();
    let changed: Vec<String> = merged
        .leaves()
        .into_iter()
        .zip(lab.base.leaves())
        .filter(|(now, before)| now.leaf.clone().into_data() != before.leaf.clone().into_data())
        .map(|(now, _)| now.name)
        .collect();
    assert_eq!(changed, ["model.layers.0.mlp.experts.down_proj"], "B of the attention is zero");
}

#[test]
fn s27_a_merge_never_passes_by_what_lies_on_disk() {
    for (from, to, what) in [
        ("\"q_proj\"", "\"q_proj\", \"v_proj\"", "2 are missing"),
        ("\"mlp.experts.down_proj\"", "\"mlp.experts.gate_up_proj\"", "`rank_pattern`"),
        ("\"r\": 4", "\"r\": 3", "expected shape [3, 64], got [4, 64]"),
        ("\"down_proj\": 2", "\"down_proj\": 1", "expected shape"),
    ] {
        let lab = Lab::new();
        lab.outputs(&lab.base_hash).unwrap();
        let stale = std::fs::read(lab.dir.path().join("merged/model.safetensors")).unwrap();
        lab.edit(from, to);
        let error = lab.outputs(&lab.base_hash).unwrap_err().to_string();
        assert!(error.contains(what), "{from} to {to}: {error}");
        // The folder of an earlier merge is not touched, and no result.
        assert_eq!(std::fs::read(lab.dir.path().join("merged/model.safetensors")).unwrap(), stale);
        assert!(!lab.dir.path().join("final").exists());
    }
    let lab = Lab::new();
    lab.outputs(&lab.base_hash).unwrap();
    let error = lab.outputs("another").unwrap_err();
    assert!(matches!(error, TrainError::Model(ModelError::AdapterBase { .. })), "{error}");
    std::fs::remove_file(lab.checkpoint().join("adapter_model.safetensors")).unwrap();
    assert!(lab.outputs(&lab.base_hash).is_err());
}
