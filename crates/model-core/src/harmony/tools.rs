//! Tools as the model is told of them: namespaces of functions with their arguments as TypeScript types.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::typescript::{self, Json};

/// Tools under one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolNamespace {
    /// The name, before the dot of a recipient.
    pub name: String,
    /// What they are for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The tools; none when the namespace itself is the tool.
    pub tools: Vec<Tool>,
}

/// One tool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// The name, behind the dot of a recipient.
    pub name: String,
    /// What it does.
    pub description: String,
    /// The JSON schema of its argument; without one it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Json>,
}

impl ToolNamespace {
    /// Functions, as a developer's message declares them.
    pub fn functions(tools: Vec<Tool>) -> Self {
        Self { name: "functions".into(), description: None, tools }
    }

    /// The tools that GPT-OSS was trained with, `browser` and `python`, described as in its training.
    pub fn builtins() -> &'static [Self] {
        static BUILTINS: LazyLock<Vec<ToolNamespace>> = LazyLock::new(|| {
            serde_json::from_str(include_str!("builtin_tools.json")).expect("the file is part of the program")
        });
        &BUILTINS
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("## {}\n", self.name)];
        let mark = if self.tools.is_empty() { "" } else { "// " };
        lines.extend(self.description.iter().flat_map(|text| text.lines()).map(|line| format!("{mark}{line}")));
        if !self.tools.is_empty() {
            lines.push(format!("namespace {} {{\n", self.name));
            lines.extend(self.tools.iter().flat_map(Tool::lines));
            lines.push(format!("}} // namespace {}", self.name));
        }
        lines.join("\n")
    }
}

impl Tool {
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.description.lines().map(|line| format!("// {line}")).collect();
        let argument = self.parameters.as_ref().map(|schema| format!("_: {}", typescript::type_of(schema, "")));
        lines.push(format!("type {} = ({}) => any;\n", self.name, argument.unwrap_or_default()));
        lines
    }
}

/// The section `# Tools` of a system or developer message.
pub(super) fn section(tools: &BTreeMap<String, ToolNamespace>) -> String {
    let namespaces = tools.values().map(ToolNamespace::text);
    std::iter::once("# Tools".to_owned()).chain(namespaces).collect::<Vec<_>>().join("\n\n")
}
