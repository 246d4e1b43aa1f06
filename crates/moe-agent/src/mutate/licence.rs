//! Licences of sources: SPDX expressions against a list of those that are accepted.

/// Whether an expression is satisfied by accepted licences; the old `MIT/Apache-2.0` means OR.
pub(crate) fn accepted(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let value = any(&words, &mut at, allowed);
    value == Some(true) && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &[String]) -> Option<bool> {
    let mut value = all(words, at, allowed)?;
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        value |= all(words, at, allowed)?;
    }
    Some(value)
}

fn all(words: &[&str], at: &mut usize, allowed: &[String]) -> Option<bool> {
    let mut value = one(words, at, allowed)?;
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        value &= one(words, at, allowed)?;
    }
    Some(value)
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> Option<bool> {
    let word = *words.get(*at)?;
    *at += 1;
    if word == "(" {
        let value = any(words, at, allowed)?;
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return closed.then_some(value);
    }
    let mut licence = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{word} WITH {}", words.get(*at + 1)?);
        *at += 2;
    }
    Some(allowed.contains(&licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read() {
        let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_owned);
        for good in ["MIT", "GPL-3.0/MIT", "(MIT OR X) AND Unicode-3.0", "Apache-2.0 WITH LLVM-exception"] {
            assert!(accepted(good, &allowed), "{good}");
        }
        for bad in ["Apache-2.0", "MIT AND GPL-3.0", "", "(MIT", "MIT)", "MIT MIT", "GPL-3.0 WITH MIT"] {
            assert!(!accepted(bad, &allowed), "{bad}");
        }
    }
}
