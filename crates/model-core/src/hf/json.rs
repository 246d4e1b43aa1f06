//! JSON with limits: a size cap, and a key that stands twice is an error instead of a silent choice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::ModelError;

/// Largest `config.json` that is read.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;

/// Parses `text` into a value.
///
/// # Errors
/// [`ModelError::Json`] when `text` is longer than `max_bytes`, is not JSON, nests deeper than the parser's limit, or
/// gives a key twice.
pub fn parse(what: &'static str, text: &[u8], max_bytes: usize) -> Result<Value, ModelError> {
    if text.len() > max_bytes {
        let reason = format!("expected at most {max_bytes} bytes, got {}", text.len());
        return Err(ModelError::Json { what, reason });
    }
    let mut parser = serde_json::Deserializer::from_slice(text);
    let parsed = Unique.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    parsed.map_err(|error| ModelError::Json { what, reason: error.to_string() })
}

/// Deserialises any value and refuses duplicate keys.
struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(Unique)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if values.contains_key(&key) {
                return Err(A::Error::custom(format!("key `{}` stands twice", key.escape_debug())));
            }
            let value = map.next_value_seed(Unique)?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse("test", text.as_bytes(), 1000).unwrap_err().to_string()
    }

    #[test]
    fn values_come_through() {
        let value = parse("test", br#"{"a": [1, -2, 0.5, null, true, "x"], "b": {"c": {}}}"#, 1000).unwrap();
        assert_eq!(value["a"][1], -2);
        assert_eq!(value["a"][2], 0.5);
        assert!(value["b"]["c"].is_object());
    }

    #[test]
    fn duplicate_keys_are_refused_at_any_depth() {
        assert!(error(r#"{"a": 1, "a": 1}"#).contains("key `a` stands twice"));
        assert!(error(r#"{"x": [{"b": 1, "b": 2}]}"#).contains("key `b` stands twice"));
    }

    #[test]
    fn hostile_texts_are_refused() {
        assert!(error(&"[".repeat(900)).contains("recursion limit"));
        assert!(error(&" ".repeat(1001)).contains("at most 1000 bytes"));
        assert!(error("{} x").contains("trailing"));
        assert!(error("NaN").contains("expected"));
        assert!(error("1e999").contains("range"));
    }
}
