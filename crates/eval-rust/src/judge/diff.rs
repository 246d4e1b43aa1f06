//! The size of a change: lines added plus lines removed.

/// From this many cells on, the part between equal ends counts as replaced.
const MAX_CELLS: usize = 16 << 20;

/// Lines of `new` that are not in `old` plus lines of `old` that are not in `new`, by a longest common subsequence.
///
/// Of very long changes the equal ends are left out and everything between counts.
pub fn changed_lines(old: &str, new: &str) -> u64 {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
    let common = if old.len() * new.len() > MAX_CELLS { 0 } else { longest_common(old, new) };
    (old.len() + new.len() - 2 * common) as u64
}

fn longest_common(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0_usize; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_and_removed_lines_are_counted() {
        for (old, new, want) in [
            ("a\nb\nc\n", "a\nb\nc\n", 0),
            ("", "a\nb\n", 2),
            ("a\nb\n", "", 2),
            ("a\nb\nc\n", "a\nx\nc\n", 2),
            ("a\nb\nc\nd\n", "b\nc\nd\ne\n", 2),
            ("a\nb\na\nb\n", "b\na\nb\na\n", 2),
        ] {
            assert_eq!(changed_lines(old, new), want, "{old:?} {new:?}");
        }
    }
}
