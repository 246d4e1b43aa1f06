//! Byte-pair encoding of one piece: the lowest-ranked pair of neighbours is merged, leftmost first, until none is left.
//!
//! Short pieces are merged by scanning for the lowest rank, long ones with a heap in O(n log n), so that a piece of a
//! million characters is no problem. A small direct-mapped cache answers for the pieces that make up most of a text.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Pieces up to this length are merged by scanning.
const SCAN_MAX: usize = 96;
/// No pair merges here.
const NEVER: u32 = u32::MAX;

/// The merges of a vocabulary.
#[derive(Clone)]
pub(crate) struct Bpe {
    byte_ids: [u32; 256],
    merges: PairMap,
}

/// Memory that encoding reuses; one per thread.
pub(crate) struct Scratch {
    cache: Box<[CacheEntry]>,
    ids: Vec<u32>,
    ranks: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
struct CacheEntry {
    key: u128,
    len: u8,
    ids: [u32; CACHED_IDS],
}

const CACHE_BITS: u32 = 14;
const CACHED_IDS: usize = 7;
/// Longest piece that fits a cache key, which has one byte for the length.
const CACHED_BYTES: usize = 15;

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { cache: vec![CacheEntry::default(); 1 << CACHE_BITS].into(), ids: Vec::new(), ranks: Vec::new() }
    }
}

impl Bpe {
    /// Builds the tables; `merges` are `(left, right, result)` in order of rank.
    pub(crate) fn new(byte_ids: [u32; 256], merges: &[(u32, u32, u32)]) -> Self {
        Self { byte_ids, merges: PairMap::new(merges) }
    }

    /// Appends the ids of a piece to `out`.
    pub(crate) fn encode(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if let &[byte] = piece {
            out.push(self.byte_ids[usize::from(byte)]);
            return;
        }
        if piece.len() > CACHED_BYTES {
            return self.merge(piece, scratch, out);
        }
        let mut bytes = [0; 16];
        bytes[..piece.len()].copy_from_slice(piece);
        bytes[15] = piece.len() as u8;
        let key = u128::from_le_bytes(bytes);
        let slot = (hash(key as u64 ^ hash((key >> 64) as u64)) >> (64 - CACHE_BITS)) as usize;
        let entry = &scratch.cache[slot];
        if entry.key == key {
            out.extend_from_slice(&entry.ids[..usize::from(entry.len)]);
            return;
        }
        let start = out.len();
        self.merge(piece, scratch, out);
        let ids = &out[start..];
        if ids.len() <= CACHED_IDS {
            let mut entry = CacheEntry { key, len: ids.len() as u8, ids: [0; CACHED_IDS] };
            entry.ids[..ids.len()].copy_from_slice(ids);
            scratch.cache[slot] = entry;
        }
    }

    fn merge(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if piece.len() > SCAN_MAX {
            return self.merge_long(piece, out);
        }
        let Scratch { ids, ranks, .. } = scratch;
        ids.clear();
        ids.extend(piece.iter().map(|&b| self.byte_ids[usize::from(b)]));
        ranks.clear();
        ranks.extend(ids.windows(2).map(|w| self.rank(w[0], w[1])));
        while let Some((at, &rank)) = ranks.iter().enumerate().min_by_key(|&(_, &rank)| rank) {
            if rank == NEVER {
                break;
            }
            ids[at] = self.merges.result(rank);
            ids.remove(at + 1);
            ranks.remove(at);
            if at < ranks.len() {
                ranks[at] = self.rank(ids[at], ids[at + 1]);
            }
            if at > 0 {
                ranks[at - 1] = self.rank(ids[at - 1], ids[at]);
            }
        }
        out.extend_from_slice(ids);
    }

    /// The same with a heap of `(rank, position)` over a doubly linked list; outdated heap entries are skipped.
    fn merge_long(&self, piece: &[u8], out: &mut Vec<u32>) {
        const GONE: u32 = u32::MAX;
        let n = piece.len();
        let mut ids: Vec<u32> = piece.iter().map(|&b| self.byte_ids[usize::from(b)]).collect();
        let mut next: Vec<usize> = (1..=n).collect();
        let mut previous: Vec<usize> = (0..n).map(|i| i.wrapping_sub(1)).collect();
        let mut ranks: Vec<u32> = ids.windows(2).map(|w| self.rank(w[0], w[1])).collect();
        ranks.push(NEVER);
        let waiting = ranks.iter().enumerate().filter(|(_, r)| **r != NEVER).map(|(i, &r)| Reverse((r, i)));
        let mut heap: BinaryHeap<Reverse<(u32, usize)>> = waiting.collect();
        while let Some(Reverse((rank, at))) = heap.pop() {
            if ids[at] == GONE || ranks[at] != rank {
                continue;
            }
            let (right, left) = (next[at], previous[at]);
            ids[at] = self.merges.result(rank);
            ids[right] = GONE;
            next[at] = next[right];
            if next[at] < n {
                previous[next[at]] = at;
            }
            for i in [left, at] {
                if i < n {
                    ranks[i] = if next[i] < n { self.rank(ids[i], ids[next[i]]) } else { NEVER };
                    if ranks[i] != NEVER {
                        heap.push(Reverse((ranks[i], i)));
                    }
                }
            }
        }
        out.extend(ids.into_iter().filter(|&id| id != GONE));
    }

    fn rank(&self, left: u32, right: u32) -> u32 {
        self.merges.rank(left, right)
    }
}

/// A hash table from pairs of ids to ranks: open addressing, linear probing, at most half full.
#[derive(Clone)]
struct PairMap {
    slots: Box<[(u64, u32)]>,
    shift: u32,
    results: Box<[u32]>,
}

const EMPTY: u64 = u64::MAX;

impl PairMap {
    fn new(merges: &[(u32, u32, u32)]) -> Self {
        let bits = (merges.len() * 2).next_power_of_two().trailing_zeros().max(1);
        let mut map = Self {
            slots: vec![(EMPTY, NEVER); 1 << bits].into(),
            shift: 64 - bits,
            results: merges.iter().map(|m| m.2).collect(),
        };
        for (rank, &(left, right, _)) in merges.iter().enumerate() {
            let slot = map.find(pair(left, right));
            // Of a pair that is listed twice, the later merge counts, as in the tokenizers library.
            map.slots[slot] = (pair(left, right), rank as u32);
        }
        map
    }

    fn rank(&self, left: u32, right: u32) -> u32 {
        self.slots[self.find(pair(left, right))].1
    }

    fn result(&self, rank: u32) -> u32 {
        self.results[rank as usize]
    }

    /// The slot of a key, or the empty slot where it would go.
    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = (hash(key) >> self.shift) as usize;
        while self.slots[slot].0 != key && self.slots[slot].0 != EMPTY {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Multiplicative hashing: the upper bits are good.
fn hash(x: u64) -> u64 {
    let x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}
