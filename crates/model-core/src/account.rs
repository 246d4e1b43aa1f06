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
        embeddings + norms + self.block_matmul_params() * self.n_layers as u64
    }

    /// Number of parameters that take part in a matrix product for every token: blocks and output head.
    pub fn matmul_params(&self) -> u64 {
        self.block_matmul_params() * self.n_layers as u64 + (self.vocab_size * self.d_model) as u64
    }

    /// Floating point operations of forward and backward for one token in rows of `seq_len` tokens.
    pub fn flops_per_token(&self, seq_len: usize) -> u64 {
        let attention = 6 * (self.n_layers * self.attention_width()) as u64 * seq_len as u64;
        6 * self.matmul_params() + attention
    }

    fn block_matmul_params(&self) -> u64 {
        let attention = self.heads().width() + self.attention_width();
        ((attention + 3 * self.d_ff) * self.d_model) as u64
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
    fn tying_saves_exactly_one_embedding() {
        let untied = ModelConfig::preset("7b").unwrap();
        let tied = ModelConfig { tied: true, ..untied.clone() };
        assert_eq!(untied.n_params() - tied.n_params(), 206_045_184);
        assert_eq!(untied.matmul_params(), tied.matmul_params());
    }
}
