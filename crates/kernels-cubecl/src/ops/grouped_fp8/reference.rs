//! Decoding FP8 by its definition, in f64; the products are those of [`crate::ops::grouped_linear::reference`].

/// `[rows, i]` from codes and the biased exponent of each row.
pub fn decode(codes: &[u8], scales: &[i32], i: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for (row, scale) in codes.chunks(i).zip(scales) {
        for code in row {
            let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
            let (exponent, eighths) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
            let size = match (exponent, code & 7) {
                (15, 7) => f64::NAN,
                (0, _) => eighths * 2f64.powi(-6),
                _ => (1.0 + eighths) * 2f64.powi(exponent - 7),
            };
            out.push(sign * size * 2f64.powi(scale - 127));
        }
    }
    out
}
