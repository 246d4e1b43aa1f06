//! JSON schemas as TypeScript types, with their keys in the order of the file.
//!
//! The model was trained on what OpenAI's renderer writes, so its habits are kept: an enum in an array has no
//! parentheses, an object's description stands before its brace and above its property, a nested brace is indented deeper.

use std::fmt::{self, Write};

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Number;

/// A JSON value whose objects keep the order of their keys.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object; no key stands twice.
    Object(Vec<(String, Json)>),
}

impl Json {
    fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    fn str_at(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Self::as_str)
    }

    fn array_at(&self, key: &str) -> Option<&[Self]> {
        match self.get(key) {
            Some(Self::Array(values)) => Some(values),
            _ => None,
        }
    }

    fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

/// Without spaces, and with exponents as the official renderer has them: `1e30`, not `1e+30`.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| serde_json::to_string(text).map_err(|_| fmt::Error);
        let comma = |at| if at > 0 { "," } else { "" };
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => f.write_str(&value.to_string().replace("e+", "e")),
            Self::String(text) => f.write_str(&quoted(text)?),
            Self::Array(values) => {
                f.write_char('[')?;
                values.iter().enumerate().try_for_each(|(at, value)| write!(f, "{}{value}", comma(at)))?;
                f.write_char(']')
            }
            Self::Object(entries) => {
                f.write_char('{')?;
                let mut entries = entries.iter().enumerate();
                entries.try_for_each(|(at, (key, value))| write!(f, "{}{}:{value}", comma(at), quoted(key)?))?;
                f.write_char('}')
            }
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(value) => value.serialize(serializer),
            Self::String(value) => serializer.serialize_str(value),
            Self::Array(values) => values.serialize(serializer),
            Self::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyJson)
    }
}

struct AnyJson;

impl<'de> Visitor<'de> for AnyJson {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.into()))
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element()? {
            values.push(value);
        }
        Ok(Json::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries: Vec<(String, Json)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Json>()? {
            if entries.iter().any(|(name, _)| *name == key) {
                return Err(A::Error::custom(format!("key `{}` stands twice", key.escape_debug())));
            }
            entries.push((key, value));
        }
        Ok(Json::Object(entries))
    }
}

/// The type that a schema describes; every line after the first begins with `indent`.
pub(super) fn type_of(schema: &Json, indent: &str) -> String {
    if let Some(variants) = schema.array_at("oneOf") {
        return variants.iter().map(|variant| bare_variant(variant, indent)).collect();
    }
    if let Some(types) = schema.array_at("type") {
        let names: Vec<&str> = types.iter().filter_map(Json::as_str).map(number_or).collect();
        if !names.is_empty() {
            return names.join(" | ");
        }
    }
    match schema.str_at("type") {
        Some("object") => object(schema, indent),
        Some("string") => string(schema),
        Some("number" | "integer") => "number".into(),
        Some("boolean") => "boolean".into(),
        Some("array") => {
            schema.get("items").map_or("Array<any>".into(), |items| format!("{}[]", type_of(items, indent)))
        }
        _ => "any".into(),
    }
}

/// TypeScript has one type of number.
fn number_or(name: &str) -> &str {
    if name == "integer" { "number" } else { name }
}

fn string(schema: &Json) -> String {
    let quoted = |value: &Json| value.as_str().map(|text| format!("\"{text}\""));
    let values: Vec<String> = schema.array_at("enum").unwrap_or_default().iter().filter_map(quoted).collect();
    if values.is_empty() { "string".into() } else { values.join(" | ") }
}

/// The type, with ` | null` behind it when the schema allows that and the type does not say so.
fn nullable_type(schema: &Json, indent: &str) -> String {
    let mut text = type_of(schema, indent);
    if schema.get("nullable") == Some(&Json::Bool(true)) && !text.contains("null") {
        text.push_str(" | null");
    }
    text
}

/// One variant of a schema that is nothing but a choice.
fn bare_variant(variant: &Json, indent: &str) -> String {
    let default = variant.get("default").map(|value| match value {
        Json::String(text) if !has_enum(variant) => format!("default: \"{text}\""),
        _ => format!("default: {value}"),
    });
    let notes: Vec<String> = variant.str_at("description").map(str::to_owned).into_iter().chain(default).collect();
    let text = nullable_type(variant, &format!("{indent}   "));
    format!("\n{indent} | {text}{}", trailing(&notes))
}

fn trailing(notes: &[String]) -> String {
    if notes.is_empty() { String::new() } else { format!(" // {}", notes.join(" ")) }
}

fn has_enum(schema: &Json) -> bool {
    schema.array_at("enum").is_some_and(|values| !values.is_empty())
}

/// `default: …` as it stands in a comment: strings in quotes except the value of an enum.
fn default_of(schema: &Json) -> Option<String> {
    schema.get("default").map(|value| match value {
        Json::String(text) if has_enum(schema) => format!("default: {text}"),
        Json::String(text) => format!("default: \"{text}\""),
        _ => format!("default: {value}"),
    })
}

fn object(schema: &Json, indent: &str) -> String {
    let mut out = String::new();
    comment(&mut out, indent, schema.str_at("description"));
    out.push_str("{\n");
    let required = schema.array_at("required").unwrap_or_default();
    if let Some(Json::Object(properties)) = schema.get("properties") {
        for (key, property) in properties {
            let optional = if required.iter().any(|name| name.as_str() == Some(key)) { "" } else { "?" };
            head(&mut out, property, indent);
            let name = format!("{indent}{key}{optional}");
            match property.array_at("oneOf") {
                Some(variants) => choice(&mut out, property, variants, &name, indent),
                None => plain(&mut out, property, &name, indent),
            }
        }
    }
    out.push_str(indent);
    out.push('}');
    out
}

fn comment(out: &mut String, indent: &str, text: Option<&str>) {
    if let Some(text) = text {
        writeln!(out, "{indent}// {text}").expect("a string takes every text");
    }
}

/// The comments above a property.
fn head(out: &mut String, property: &Json, indent: &str) {
    if let Some(title) = property.str_at("title") {
        writeln!(out, "{indent}// {title}\n{indent}//").expect("a string takes every text");
    }
    if property.get("oneOf").is_none() {
        comment(out, indent, property.str_at("description"));
    }
    let examples = property.array_at("examples").unwrap_or_default();
    if !examples.is_empty() {
        comment(out, indent, Some("Examples:"));
    }
    for example in examples.iter().filter_map(Json::as_str) {
        comment(out, indent, Some(&format!("- \"{example}\"")));
    }
}

fn plain(out: &mut String, property: &Json, name: &str, indent: &str) {
    let text = nullable_type(property, &format!("{indent}    "));
    let default = default_of(property).filter(|_| property.get("oneOf").is_none());
    let notes: Vec<String> = default.into_iter().collect();
    writeln!(out, "{name}: {text},{}", trailing(&notes)).expect("a string takes every text");
}

/// A property with a choice of types, each on its line.
fn choice(out: &mut String, property: &Json, variants: &[Json], name: &str, indent: &str) {
    let description = property.str_at("description");
    let is_first_variants = variants.first().is_some_and(|first| first.str_at("description") == description);
    let above = description.filter(|_| !is_first_variants);
    comment(out, indent, above);
    comment(out, indent, default_of(property).as_deref());
    writeln!(out, "{name}:").expect("a string takes every text");
    for (at, variant) in variants.iter().enumerate() {
        let covered = at == 0 && above.is_some();
        let own = variant.str_at("description").filter(|text| !covered && Some(*text) != description);
        let notes: Vec<String> = own.map(str::to_owned).into_iter().chain(default_of(variant)).collect();
        let text = nullable_type(variant, &format!("{indent}   "));
        writeln!(out, "{indent} | {text}{}", trailing(&notes)).expect("a string takes every text");
    }
    writeln!(out, "{indent},").expect("a string takes every text");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types as openai-harmony 0.0.8 writes them; the fixture of the renderer has the common schemas.
    #[test]
    fn rare_schemas_are_written_as_the_official_renderer_does() {
        let choice = r#"{"oneOf": [{"type": "string", "enum": ["a", "b"], "default": "a", "description": "d"},
            {"type": "integer", "nullable": true, "default": 3}, {"type": "string", "default": "x"}]}"#;
        let object = r#"{"type": "object", "properties": {
            "z": {"oneOf": "x", "type": "string", "default": "q", "description": "d"},
            "a": {"oneOf": [], "default": {"k": 1, "b": [2.5, "\u00e9\"", null, true, 1e30, 1e-7]}},
            "m": {"type": ["integer", "null"], "nullable": true},
            "o": {"type": "array", "items":
                {"type": "object", "description": "item", "properties": {"p": {"type": "boolean"}}, "required": ["p"]}}}}"#;
        for (schema, want) in [
            (
                choice,
                "\n | \"a\" | \"b\" // d default: \"a\"\n | number | null // default: 3\n | string // default: \"x\"",
            ),
            (
                object,
                "{\nz?: string,\n// default: {\"k\":1,\"b\":[2.5,\"é\\\"\",null,true,1e30,1e-7]}\na?:\n,\nm?: number | null,\n\
                 o?:     // item\n{\n    p: boolean,\n    }[],\n}",
            ),
        ] {
            assert_eq!(type_of(&serde_json::from_str(schema).unwrap(), ""), want);
        }
        assert!(serde_json::from_str::<Json>(r#"{"a": {"b": 1, "b": 2}}"#).is_err());
    }
}
