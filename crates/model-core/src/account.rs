//! Exact counts: parameters, parameters that multiply, floating point operations per token.
//!
//! # Numerics
//! Integer arithmetic in u64. FLOPs follow one convention for all speed figures of the workspace: forward plus backward
//! is three forwards, attention is causal (half of the full square), the output head counts, the input embedding is a
//! look-up and does not, recomputed work does not.

use crate::config::ModelConfig;

impl ModelConfig {
    /// Number of parameters; a tied head is the embedding and counts once.
    pub fn n_params(&self) -> u64 {
        let embedding = (self.vocab_size * self.d_model) as u64;
        let embeddings = if self.tied { embedding } else { 2 * embedding };
        let norms = ((2 * self.n_layers + 1) * self.d_model) as u64;
        let n_experts = self.experts().map_or(1, |experts| experts.n);
        let block = self.block_matmul_params(n_experts) + self.block_vector_params(n_experts);
        embeddings + norms + block * self.n_layers as u64
    }

    /// Number of parameters that a token meets, the input embedding left out: all but those of experts it does not go
    /// through.
    pub fn active_params(&self) -> u64 {
        let top_k = self.experts().map_or(1, |experts| experts.top_k);
        let norms = ((2 * self.n_layers + 1) * self.d_model) as u64;
        self.matmul_params() + norms + self.block_vector_params(top_k) * self.n_layers as u64
    }

    /// Number of parameters that take part in a matrix product for every token: blocks and output head. Of experts those
    /// count that a token goes through.
    pub fn matmul_params(&self) -> u64 {
        let n_experts = self.experts().map_or(1, |experts| experts.top_k);
        self.block_matmul_params(n_experts) * self.n_layers as u64 + (self.vocab_size * self.d_model) as u64
    }

    /// Floating point operations of forward and backward for one token in rows of `seq_len` tokens.
    pub fn flops_per_token(&self, seq_len: usize) -> u64 {
        let keys_doubled: u64 = (0..self.n_layers).map(|layer| self.keys_doubled(layer, seq_len as u64)).sum();
        6 * self.matmul_params() + 6 * self.attention_width() as u64 * keys_doubled
    }

    /// Twice the mean number of keys that a query of a block sees; a whole row is `seq_len`, by the convention of half the
    /// square.
    fn keys_doubled(&self, layer: usize, seq_len: u64) -> u64 {
        match self.window(layer).map(|window| window as u64).filter(|window| *window < seq_len) {
            // The first `window` queries see a triangle, the others the whole window.
            Some(window) => (2 * window * seq_len - window * window) / seq_len,
            None => seq_len,
        }
    }

    /// Matrices of one block, with `n_experts` of them where the model has experts.
    fn block_matmul_params(&self, n_experts: usize) -> u64 {
        let attention = self.heads().width() + self.attention_width();
        let router = self.experts().map_or(0, |experts| experts.n);
        ((attention + router + 3 * self.d_ff * n_experts) * self.d_model) as u64
    }

    /// Biases and sinks of one block, those of `n_experts` experts among them.
    fn block_vector_params(&self, n_experts: usize) -> u64 {
        let Some(experts) = self.experts() else { return 0 };
        let attention = self.heads().width() + self.d_model + self.n_heads;
        (attention + experts.n + (2 * self.d_ff + self.d_model) * n_experts) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matmul_params_of_the_7b_sizes() {
        assert_eq!(ModelConfig::preset("7b").unwrap().matmul_params(), 5_876_744_192);
        assert_eq!(ModelConfig::preset("7b-wide").unwrap().matmul_params(), 7_185_367_040);
    }

    #[test]
    fn flops_per_token_reproduce_the_published_table() {
        // (preset, seq_len, GFLOP per token rounded to two decimals)
        let table = [
            ("7b-wide", 512, 43.52),
            ("7b-wide", 1024, 43.92),
            ("7b-wide", 2048, 44.72),
            ("7b", 512, 35.66),
            ("7b", 1024, 36.07),
            ("7b", 2048, 36.87),
        ];
        for (name, seq_len, want) in table {
            let got = ModelConfig::preset(name).unwrap().flops_per_token(seq_len) as f64 / 1e9;
            assert!((got - want).abs() < 0.006, "{name} at {seq_len}: got {got}, want {want}");
        }
    }

    #[test]
    fn a_token_meets_the_published_part_of_a_mixture() {
        for (name, active) in [("gpt-oss-20b", 3_608_307_264), ("gpt-oss-120b", 5_132_849_472)] {
            assert_eq!(ModelConfig::preset(name).unwrap().active_params(), active, "{name}");
        }
    }

    #[test]
    fn a_window_bounds_the_cost_of_attention() {
        let model = ModelConfig::preset("gpt-oss-20b").unwrap();
        let attention = |seq_len| model.flops_per_token(seq_len) - 6 * model.matmul_params();
        // 24 blocks within the window; then 12 of them see all of 4096 and 12 a mean of 126 keys.
        assert_eq!(attention(128), 6 * 4096 * 24 * 128);
        assert_eq!(attention(4096), 6 * 4096 * 12 * (4096 + 252));
    }

    #[test]
    fn tying_saves_exactly_one_embedding() {
        let untied = ModelConfig::preset("7b").unwrap();
        let tied = ModelConfig { tied: true, ..untied.clone() };
        assert_eq!(untied.n_params() - tied.n_params(), 206_045_184);
        assert_eq!(untied.matmul_params(), tied.matmul_params());
    }
}
