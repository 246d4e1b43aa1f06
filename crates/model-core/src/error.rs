//! The one error type of this crate: every variant says what was expected, what came and what to do next.

use std::path::PathBuf;

/// Everything that can go wrong between a model folder, its tokenizer, its adapter and a batch of tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file or folder could not be read or written.
    #[error("could not {action} {path}: {source}; check the path, its permissions and the free space", path = path.display())]
    Io {
        /// What was attempted, as a verb: `read`, `write`, `create`, `rename`, `list`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// An error that belongs to one file.
    #[error("{path}: {source}", path = path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What was wrong in it.
        source: Box<ModelError>,
    },
    /// A JSON text does not parse, is too large, or gives a key twice.
    #[error("{what} is not usable JSON: {reason}; correct the file or write it again")]
    Json {
        /// Which text.
        what: &'static str,
        /// What the parser said, with line and column where it knows them.
        reason: String,
    },
    /// A key that the configuration must have is absent.
    #[error("config.json has no key `{key}`, expected {expected}; add it")]
    ConfigMissing {
        /// The key.
        key: &'static str,
        /// What its value should be.
        expected: &'static str,
    },
    /// A key has a value that this model family does not have.
    #[error("config.json key `{key}`: expected {expected}, got {got}; convert the model or use another program")]
    ConfigUnsupported {
        /// The key.
        key: String,
        /// What is supported.
        expected: String,
        /// What the file says.
        got: String,
    },
    /// A key has a value that makes no model, alone or beside another key.
    #[error("config.json key `{key}`: expected {expected}, got {got}; correct the value")]
    ConfigInvalid {
        /// The key.
        key: String,
        /// What would be right.
        expected: String,
        /// What the file says.
        got: String,
    },
    /// A preset name that is not on the list.
    #[error("unknown model preset `{name}`; choose one of {known}, or give a depth or a configuration file")]
    UnknownPreset {
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A safetensors file breaks the format or one of our limits.
    #[error("{path} is not a readable safetensors file: expected {expected}, got {got}; copy or export it again", path = path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the format or the limit asks for.
        expected: String,
        /// What the file has.
        got: String,
    },
    /// A model folder without weights that can be read.
    #[error("{path}: expected `model.safetensors` or `model.safetensors.index.json` with its shards, got {got}; point at a complete model folder", path = path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What was found instead.
        got: String,
    },
    /// The index and the shards disagree.
    #[error("{path}: expected {expected}, got {got}; copy the model folder again", path = path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What the index should say.
        expected: String,
        /// What it says.
        got: String,
    },
    /// Tensors that the configuration asks for are absent.
    #[error("{path}: expected {expected} tensors, {n_missing} are missing: {names}; is config.json the one of these weights?", path = path.display())]
    TensorMissing {
        /// The file or folder.
        path: PathBuf,
        /// How many tensors the configuration asks for.
        expected: usize,
        /// How many of them are missing.
        n_missing: usize,
        /// The first of their names.
        names: String,
    },
    /// Tensors that the configuration does not know.
    #[error("{path}: {n_unexpected} tensors are not part of this architecture: {names}; is config.json the one of these weights?", path = path.display())]
    TensorUnexpected {
        /// The file or folder.
        path: PathBuf,
        /// How many there are.
        n_unexpected: usize,
        /// The first of their names.
        names: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{path}: tensor `{tensor}`: expected shape {expected:?}, got {got:?}; is config.json the one of these weights?", path = path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A tensor of an element type that cannot be read here.
    #[error("{path}: tensor `{tensor}`: expected element type {expected}, got {got}; convert the file", path = path.display())]
    TensorDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element types that are read.
        expected: &'static str,
        /// The element type in the file.
        got: String,
    },
    /// A weight that is not a number.
    #[error("{path}: tensor `{tensor}`: expected finite values, got {value} at element {index}; the file comes from a failed run, use an earlier one", path = path.display())]
    TensorNonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first element that is not finite.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A batch whose parts do not fit together.
    #[error("rows: {what}: expected {expected}, got {got}; correct the input")]
    Rows {
        /// Which part.
        what: &'static str,
        /// What would fit.
        expected: String,
        /// What came.
        got: String,
    },
    /// An attention mask that hides tokens in the middle of a row.
    #[error(
        "attention_mask row {row}: expected one unbroken run of ones, got a second run at position {position}; pad on one side only"
    )]
    MaskHole {
        /// The row.
        row: usize,
        /// Where the second run begins.
        position: usize,
    },
    /// A token id that the model has no embedding for.
    #[error(
        "input_ids row {row} position {position}: expected an id below vocab_size {vocab_size}, got {id}; tokenize with this model's own tokenizer"
    )]
    TokenOutOfRange {
        /// The row.
        row: usize,
        /// The position in the row.
        position: usize,
        /// The id.
        id: i64,
        /// How many ids the model has.
        vocab_size: usize,
    },
    /// A tokenizer that cannot belong to the model.
    #[error(
        "vocabulary mismatch: the tokenizer has {tokenizer} ids, the model {model}; expected the model to have as many, or up to {slack} more as padding; use the tokenizer that the model was made with"
    )]
    VocabMismatch {
        /// Ids of the tokenizer.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
        /// Rows allowed beyond the tokenizer's ids.
        slack: usize,
    },
    /// Weights cannot be saved while an adapter is attached, it would be lost without a word.
    #[error(
        "saving the weights: expected a model without adapters, got one with an adapter in {n_adapters} places; merge it first, or save the adapter folder instead"
    )]
    AdapterAttached {
        /// How many places of the model carry an adapter.
        n_adapters: usize,
    },
    /// What was written does not read back as what was meant.
    #[error("{path}: tensor `{tensor}` element {index}: expected to read {expected} back, got {got}; check the disk and export again", path = path.display())]
    ReadBack {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first element that differs.
        index: usize,
        /// The value that was written.
        expected: f32,
        /// The value that was read.
        got: f32,
    },
    /// A file or folder that would be overwritten.
    #[error("{path} already exists; choose another place or remove it first", path = path.display())]
    OutputExists {
        /// The file or folder.
        path: PathBuf,
    },

    // Tokenizer.
    /// The tokenizer's file could not be read.
    #[error("could not read the tokenizer {path}: {source}; give the model folder or its tokenizer.json", path = path.display())]
    TokenizerRead {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The tokenizer's file contradicts itself.
    #[error("tokenizer {path}: {reason}; export the tokenizer again", path = path.display())]
    TokenizerInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer uses a feature that is not on the list of supported ones.
    #[error("tokenizer {path}: expected {expected}, got {found}; convert the tokenizer", path = path.display())]
    TokenizerUnsupported {
        /// The file.
        path: PathBuf,
        /// What the file has.
        found: String,
        /// What is supported.
        expected: &'static str,
    },

    // Chat.
    /// A role that no chat format has.
    #[error("unknown role `{role}`; expected system, user, assistant or tool")]
    UnknownRole {
        /// The role, control characters escaped.
        role: String,
    },
    /// A chat format that is not on the list.
    #[error("unknown chat format `{format}`; expected chatml or llama3")]
    UnknownChatFormat {
        /// The name given, control characters escaped.
        format: String,
    },
    /// A conversation that would train nothing.
    #[error(
        "expected a conversation with a supervised token, got {n_messages} messages without an assistant's answer; add one or drop the record"
    )]
    NothingSupervised {
        /// How many messages there are.
        n_messages: usize,
    },
    /// The tokenizer lacks a control token of the chat format.
    #[error(
        "chat format {format}: expected the special token `{token}` in the tokenizer, got none; use the tokenizer of that format"
    )]
    MissingControlToken {
        /// The token.
        token: &'static str,
        /// The chat format.
        format: &'static str,
    },

    // Harmony.
    /// The ranks of the built-in vocabulary are not the published ones.
    #[error(
        "vocabulary o200k_harmony: expected ranks with SHA-256 {expected}, got {got}; build with the locked version of tiktoken-rs"
    )]
    VocabularyHash {
        /// The hash of the published file.
        expected: &'static str,
        /// The hash of the ranks in the program, or why there is none.
        got: String,
    },
    /// A role that Harmony does not have.
    #[error("unknown role `{role}`; expected system, developer, user, assistant, or a tool's name with a recipient")]
    HarmonyRole {
        /// The role, control characters escaped.
        role: String,
    },
    /// A channel that Harmony does not have.
    #[error("unknown channel `{channel}`; expected analysis, commentary or final")]
    HarmonyChannel {
        /// The channel, control characters escaped.
        channel: String,
    },
    /// A message whose parts do not fit together.
    #[error("message {index} from {role}: {what}: expected {expected}, got {got}; correct the message")]
    HarmonyMessage {
        /// The place in the conversation, from 0.
        index: usize,
        /// Who it is from.
        role: &'static str,
        /// Which part.
        what: &'static str,
        /// What would fit.
        expected: &'static str,
        /// What came, control characters escaped.
        got: String,
    },
    /// A call whose arguments are not the JSON that its content type says.
    #[error(
        "message {index}: call of {recipient}: expected JSON, as its content type says, got {reason}; correct the arguments or let the model try again"
    )]
    HarmonyCall {
        /// The place in the conversation, from 0.
        index: usize,
        /// The tool.
        recipient: String,
        /// What the parser said.
        reason: String,
    },
    /// A setting of the system message, and no system message to put it in.
    #[error("conversation: expected a system message with a system_content, got none; add one as the first message")]
    HarmonyNoSystem,
    /// A message that cannot be trained on.
    #[error(
        "supervision: expected messages of the assistant that are written, got message {got}; correct the selection"
    )]
    HarmonySupervise {
        /// Which one, and why not.
        got: String,
    },
    /// A conversation that is cut off before the model has answered, so that its end would be learnt as one.
    #[error(
        "message {index}: expected every turn to end with the model's answer on final or its call, got {got}; complete the conversation or cut it before"
    )]
    HarmonyOpenTurn {
        /// The place in the conversation, from 0.
        index: usize,
        /// What stands there.
        got: String,
    },
    /// A text that spells a control token, in data to train on.
    #[error(
        "message {index}: expected texts without control tokens in training data, got `{token}`; give messages instead of rendered text, or spell it otherwise"
    )]
    HarmonyControlText {
        /// The place in the conversation, from 0.
        index: usize,
        /// The token.
        token: String,
    },
    /// A text with a run of blanks that no encoder takes.
    #[error("message {index}: expected at most {max} blank characters in a row, got more; shorten the run")]
    HarmonyBlanks {
        /// The place in the conversation, from 0.
        index: usize,
        /// How many may follow each other.
        max: usize,
    },
    /// A token in a place where it cannot stand.
    #[error("token {position}: expected {expected}, got {got}; the tokens are not Harmony, or of another vocabulary")]
    HarmonyToken {
        /// The place in the tokens, from 0.
        position: usize,
        /// What could stand there.
        expected: &'static str,
        /// The id, with its spelling if it has one.
        got: String,
    },
    /// A header that says too much or too little.
    #[error("header before token {position}: expected {expected}, got `{got}`; the message cannot be told apart")]
    HarmonyHeader {
        /// The place of its `<|message|>`, from 0.
        position: usize,
        /// What a header has.
        expected: &'static str,
        /// What this one has, control characters escaped.
        got: String,
    },
    /// Tokens that stop inside a message.
    #[error(
        "message {message}: expected {missing} after its {part}, got the end of the {n_tokens} tokens; give the rest, or the role of the completion"
    )]
    HarmonyUnterminated {
        /// The place of the message, from 0.
        message: usize,
        /// In which part the tokens stop.
        part: &'static str,
        /// What is missing.
        missing: &'static str,
        /// How many tokens there are.
        n_tokens: usize,
    },

    // Generation.
    /// A sampling setting outside its range.
    #[error("sampling `{key}`: expected {expected}, got {value}; correct the value")]
    BadSampling {
        /// The setting.
        key: &'static str,
        /// What came.
        value: f64,
        /// What would be right.
        expected: &'static str,
    },
    /// Logits from which no token can be chosen.
    #[error(
        "generation: expected finite logits, got a NaN, +inf or nothing but -inf for sequence {sequence} at position {position}; the weights come from a failed run, use an earlier checkpoint"
    )]
    NonFiniteLogits {
        /// The sequence.
        sequence: u64,
        /// The position of the token that was to be chosen.
        position: usize,
    },
    /// A prompt that leaves nothing to generate from or no room to generate into.
    #[error(
        "generation: sequence {sequence}: expected a prompt of 1 to {max} tokens, got {got}; the model's context ends there, shorten the prompt"
    )]
    PromptLength {
        /// The sequence.
        sequence: u64,
        /// The longest prompt that leaves room for a token.
        max: usize,
        /// Tokens of the prompt.
        got: usize,
    },

    // Adapters.
    /// An adapter setting outside its range, or one that does not fit the attached adapter.
    #[error("adapter setting `{key}`: expected {expected}, got {got}; correct the value")]
    LoraInvalid {
        /// The setting.
        key: &'static str,
        /// What would be right.
        expected: String,
        /// What came.
        got: String,
    },
    /// A target that names no projection of the model.
    #[error("adapter target `{target}` matches nothing in this model; expected one of {available}, or all-linear")]
    LoraTarget {
        /// The target, as written.
        target: String,
        /// The names there are.
        available: String,
    },
    /// Something that needs an adapter was asked of a model without one.
    #[error("{action}: expected a model with an adapter, got one without; attach or load the adapter first")]
    NoAdapter {
        /// What was asked.
        action: &'static str,
    },
    /// An adapter folder with a feature that is not implemented, or one that contradicts itself.
    #[error("adapter {path}: expected {expected}, got {got}; export the adapter again without it", path = path.display())]
    AdapterFile {
        /// The file.
        path: PathBuf,
        /// What is read here.
        expected: String,
        /// What the file says.
        got: String,
    },
    /// An adapter that was trained on another base model.
    #[error("adapter {path}: expected base weights {recorded}, as recorded in it, got {actual}; use the base model it was trained on", path = path.display())]
    AdapterBase {
        /// The adapter folder.
        path: PathBuf,
        /// Hash of the weights it was trained on.
        recorded: String,
        /// Hash of the weights it was to be put on.
        actual: String,
    },
    /// An adapter that does not say which base model it was trained on.
    #[error(
        "adapter {path}: expected a record of the base model's hash, got none; give --unrecorded-base if you know that it is {model}",
        path = path.display(), model = model.display()
    )]
    AdapterUnrecorded {
        /// The adapter folder.
        path: PathBuf,
        /// The base that it was to be merged into.
        model: PathBuf,
    },
    /// A merge report that is not what it should be.
    #[error("{path}: expected the report of a merge, got {got}; merge again with this build", path = path.display())]
    MergeFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        got: String,
    },
    /// Adapter parameters that training does not reach, or base weights that it does.
    #[error(
        "adapter training: {expected}, got {n_leaves} that do not: {names}; the adapter is attached but does not train, check its targets and the graph"
    )]
    AdapterInert {
        /// What every parameter of this kind should do.
        expected: &'static str,
        /// How many do not.
        n_leaves: usize,
        /// The first of their names.
        names: String,
    },
    /// A merged model that answers differently from the model with its adapter.
    #[error(
        "merge check: {measure}: expected {expected}, got {got:.3e} over {n_tokens} tokens; do not use the merged weights"
    )]
    MergeDrift {
        /// What was compared.
        measure: &'static str,
        /// The bound.
        expected: String,
        /// The value.
        got: f64,
        /// How many positions were compared.
        n_tokens: usize,
    },
    /// A form in which weights of experts do not stay.
    #[error("packed experts: expected no, mxfp4 or fp8, got `{got}`; correct the option")]
    PackedExperts {
        /// What was given, control characters escaped.
        got: String,
    },
    /// A model that a GGUF file cannot say, or numbers that its type cannot hold.
    #[error("GGUF: {what}: expected {expected}, got {got}; choose another --type, or export to safetensors")]
    Gguf {
        /// Which part.
        what: &'static str,
        /// What can be written.
        expected: String,
        /// What the model has.
        got: String,
    },
    /// A quantised weight whose parts do not fit together.
    #[error(
        "{path}: quantised tensor `{tensor}`: expected {expected}, got {got}; export the model again",
        path = path.display()
    )]
    Quantised {
        /// Where.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// What its shape and description ask for.
        expected: String,
        /// What was found.
        got: String,
    },
    /// Packed weights that no kernel takes.
    #[error(transparent)]
    Kernel(#[from] kernels_cubecl::KernelError),
}

impl ModelError {
    /// The same error, said of one file.
    pub fn in_file(self, path: &std::path::Path) -> Self {
        ModelError::InFile { path: path.to_path_buf(), source: Box::new(self) }
    }
}
