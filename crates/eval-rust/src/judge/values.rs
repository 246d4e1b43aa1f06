//! Types that a function can be asked with, and random values of them.

use super::task::Function;

/// A type of an argument or of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Type {
    Int {
        name: &'static str,
        low: i128,
        high: i128,
    },
    Bool,
    Char,
    Text,
    /// `&str`.
    Str,
    Vec(Box<Type>),
    /// `&[T]`.
    Slice(Box<Type>),
    /// `&mut Vec<T>`: what the function leaves in it is part of its answer.
    MutVec(Box<Type>),
    Option(Box<Type>),
    /// Only as a result; which error it is does not count.
    Result(Box<Type>),
    Tuple(Vec<Type>),
}

const INTS: [(&str, i128, i128); 10] = [
    ("u8", 0, u8::MAX as i128),
    ("u16", 0, u16::MAX as i128),
    ("u32", 0, u32::MAX as i128),
    ("u64", 0, u64::MAX as i128),
    ("usize", 0, u64::MAX as i128),
    ("i8", i8::MIN as i128, i8::MAX as i128),
    ("i16", i16::MIN as i128, i16::MAX as i128),
    ("i32", i32::MIN as i128, i32::MAX as i128),
    ("i64", i64::MIN as i128, i64::MAX as i128),
    ("isize", i64::MIN as i128, i64::MAX as i128),
];

impl Type {
    /// Reads a type as Rust writes it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some((name, low, high)) = INTS.iter().find(|(name, ..)| *name == text) {
            return Some(Self::Int { name, low: *low, high: *high });
        }
        let inner = |open: &str, close: &str| {
            let inner = text.strip_prefix(open)?.strip_suffix(close)?;
            Self::parse(inner).map(Box::new)
        };
        match text {
            "bool" => return Some(Self::Bool),
            "char" => return Some(Self::Char),
            "String" => return Some(Self::Text),
            "&str" => return Some(Self::Str),
            _ => {}
        }
        if let Some(items) = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
            let items = parts(items).into_iter().map(Self::parse).collect::<Option<Vec<_>>>()?;
            return (items.len() != 1 && items.len() <= 4).then_some(Self::Tuple(items));
        }
        if let Some(items) = text.strip_prefix("Result<").and_then(|text| text.strip_suffix('>')) {
            let items = parts(items);
            return (items.len() == 2).then(|| Self::parse(items[0]).map(Box::new).map(Self::Result))?;
        }
        None.or_else(|| inner("&mut Vec<", ">").map(Self::MutVec))
            .or_else(|| inner("&[", "]").map(Self::Slice))
            .or_else(|| inner("Vec<", ">").map(Self::Vec))
            .or_else(|| inner("Option<", ">").map(Self::Option))
    }

    /// The type of the variable that holds it in the driver.
    pub(crate) fn owned(&self) -> String {
        match self {
            Self::Int { name, .. } => (*name).into(),
            Self::Bool => "bool".into(),
            Self::Char => "char".into(),
            Self::Text | Self::Str => "::std::string::String".into(),
            Self::Vec(item) | Self::Slice(item) | Self::MutVec(item) => format!("::std::vec::Vec<{}>", item.owned()),
            Self::Option(item) => format!("::core::option::Option<{}>", item.owned()),
            Self::Result(item) => format!("::core::result::Result<{}, _>", item.owned()),
            Self::Tuple(items) => format!("({})", items.iter().map(|item| item.owned() + ", ").collect::<String>()),
        }
    }

    /// What stands before the variable when it is handed over.
    pub(crate) fn passed(&self) -> &'static str {
        match self {
            Self::Str | Self::Slice(_) => "&",
            Self::MutVec(_) => "&mut ",
            _ => "",
        }
    }

    /// A random value as words; larger for a larger `len`.
    pub(crate) fn random(&self, random: &mut Random, function: &Function, len: u64, out: &mut Vec<String>) {
        let count = random.below(len + 1);
        match self {
            Self::Int { low, high, .. } => {
                let (from, to) = function.ints.unwrap_or((*low, *high));
                out.push(integer(random, from.max(*low), to.min(*high)).to_string());
            }
            Self::Bool => out.push((random.below(2) == 1).to_string()),
            Self::Char => out.push(text(&[character(random)])),
            Self::Text | Self::Str => {
                out.push(text(&(0..count).map(|_| character(random)).collect::<Vec<_>>()));
            }
            Self::Vec(item) | Self::Slice(item) | Self::MutVec(item) => {
                out.push(count.to_string());
                (0..count).for_each(|_| item.random(random, function, len / 2, out));
            }
            Self::Option(item) | Self::Result(item) => {
                let there = random.below(4) > 0;
                out.push(u8::from(there).to_string());
                if there {
                    item.random(random, function, len, out);
                }
            }
            Self::Tuple(items) => items.iter().for_each(|item| item.random(random, function, len, out)),
        }
    }
}

/// Splits at the commas outside of brackets.
fn parts(text: &str) -> Vec<&str> {
    let (mut found, mut depth, mut from) = (Vec::new(), 0_i32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&text[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    found.push(&text[from..]);
    found.retain(|part| !part.trim().is_empty());
    found
}

fn integer(random: &mut Random, low: i128, high: i128) -> i128 {
    let span = high.saturating_sub(low).max(0).unsigned_abs();
    let small = |random: &mut Random| (i128::from(random.below(33)) - 16).clamp(low, high.max(low));
    match random.below(8) {
        0 => low,
        1 => high.max(low),
        2..=4 => small(random),
        _ => low + ((u128::from(random.next()) * (span + 1)) >> 64) as i128,
    }
}

fn character(random: &mut Random) -> char {
    const OTHERS: [char; 8] = ['é', 'ß', '\u{301}', '中', '🦀', '\n', '\t', '\u{0}'];
    match random.below(8) {
        0 => OTHERS[random.below(8) as usize],
        1 => ' ',
        2..=5 => (b'a' + random.below(6) as u8) as char,
        _ => (b'!' + random.below(94) as u8) as char,
    }
}

fn text(characters: &[char]) -> String {
    let text: String = characters.iter().collect();
    text.bytes().fold(String::from("x"), |hex, byte| hex + &format!("{byte:02x}"))
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which must not be 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_rust_writes_them() {
        for text in ["u8", "&str", "Vec<Option<(u8, String)>>", "&[i64]", "&mut Vec<char>", "Result<u8, E<A, B>>", "()"]
        {
            assert!(Type::parse(text).is_some(), "{text}");
        }
        for text in ["", "f64", "Vec<", "Vec<f32>", "&u8", "(u8)", "HashMap<u8, u8>", "Result<u8>"] {
            assert_eq!(Type::parse(text), None, "{text}");
        }
        assert_eq!(
            Type::parse("Result<Vec<(u8, bool)>, E>").unwrap().owned(),
            "::core::result::Result<::std::vec::Vec<(u8, bool, )>, _>"
        );
    }

    #[test]
    fn integers_stay_in_their_range_and_reach_its_ends() {
        let mut random = Random(1);
        for (low, high) in [(0, 0), (3, 5), (i128::from(i64::MIN), i128::from(i64::MAX)), (0, i128::from(u64::MAX))] {
            let got: Vec<i128> = (0..200).map(|_| integer(&mut random, low, high)).collect();
            assert!(got.iter().all(|i| (low..=high).contains(i)) && got.contains(&low) && got.contains(&high));
        }
    }
}
