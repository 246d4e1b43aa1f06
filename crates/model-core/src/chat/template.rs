//! The same formats as Hugging Face files say them: chat template, tokenizer and generation settings.

use serde_json::{Value, json};

use super::{ChatFormat, Role};
use crate::error::ModelError;
use crate::tokenizer::Tokenizer;

impl ChatFormat {
    /// The Jinja `chat_template` that writes a conversation as [`ChatFormat::render`] does.
    ///
    /// Programs that tokenize the written text recognise control tokens in contents; [`ChatFormat::render`] does not.
    pub fn jinja(self) -> String {
        let names: Vec<String> = Role::ALL.iter().map(|role| format!("'{role}'")).collect();
        let header = |role: &str| match self {
            Self::ChatMl => format!("'<|im_start|>' + {role} + '\\n'"),
            Self::Llama3 => format!("'<|start_header_id|>' + {role} + '<|end_header_id|>\\n\\n'"),
        };
        let role = match self {
            Self::ChatMl => "message['role']",
            Self::Llama3 => "('ipython' if message['role'] == 'tool' else message['role'])",
        };
        let end = match self {
            Self::ChatMl => "'<|im_end|>\\n'",
            Self::Llama3 => "'<|eot_id|>'",
        };
        let begin = self.begin().map_or(String::new(), |token| format!("{{{{ '{token}' }}}}"));
        format!(
            "{begin}{{% for message in messages %}}\
             {{% if message['role'] not in [{}] %}}{{{{ raise_exception('unknown role ' + message['role']) }}}}{{% endif %}}\
             {{{{ {} + message['content'] + {end} }}}}{{% endfor %}}\
             {{% if add_generation_prompt %}}{{{{ {} }}}}{{% endif %}}",
            names.join(", "),
            header(role),
            header("'assistant'"),
        )
    }

    /// The text of `tokenizer_config.json`.
    ///
    /// # Errors
    /// When the tokenizer lacks a control token of this format.
    pub fn tokenizer_config(self, tokenizer: &Tokenizer, max_seq_len: usize) -> Result<String, ModelError> {
        self.require_controls(tokenizer)?;
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_seq_len,
            "clean_up_tokenization_spaces": false,
            "eos_token": self.end_of_turn(),
            "chat_template": self.jinja(),
        });
        if let Some(begin) = self.begin() {
            config["bos_token"] = json!(begin);
        }
        if tokenizer.control_id(self.end_of_document()).is_some() {
            config["pad_token"] = json!(self.end_of_document());
        }
        Ok(pretty(&config))
    }

    /// The text of `generation_config.json`: which ids begin, end and pad.
    ///
    /// # Errors
    /// When the tokenizer lacks a control token of this format.
    pub fn generation_config(self, tokenizer: &Tokenizer) -> Result<String, ModelError> {
        self.require_controls(tokenizer)?;
        let document = tokenizer.control_id(self.end_of_document());
        let ends: Vec<u32> = tokenizer.control_id(self.end_of_turn()).into_iter().chain(document).collect();
        let mut config = json!({ "do_sample": false, "eos_token_id": ends });
        if let Some(begin) = self.begin().and_then(|token| tokenizer.control_id(token)) {
            config["bos_token_id"] = json!(begin);
        }
        if let Some(pad) = document {
            config["pad_token_id"] = json!(pad);
        }
        Ok(pretty(&config))
    }

    fn require_controls(self, tokenizer: &Tokenizer) -> Result<(), ModelError> {
        let missing = self.control_tokens().iter().find(|token| tokenizer.control_id(token).is_none());
        missing.map_or(Ok(()), |token| Err(self.missing(token)))
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
