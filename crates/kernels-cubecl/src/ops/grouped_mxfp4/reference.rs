//! Decoding MXFP4 by its definition, in f64; the products are those of [`crate::ops::grouped_linear::reference`].

/// `[rows, i]` from blocks `[rows, i/32, 16]` and scales `[rows, i/32]`.
pub fn decode(blocks: &[u8], scales: &[u8]) -> Vec<f64> {
    let mut out = Vec::new();
    for (block, &scale) in blocks.chunks(16).zip(scales) {
        for byte in block {
            for code in [byte & 15, byte >> 4] {
                let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                let (exponent, half) = (i32::from(code >> 1 & 3), f64::from(code & 1) / 2.0);
                let size = match exponent {
                    0 => half,
                    exponent => (1.0 + half) * 2f64.powi(exponent - 1),
                };
                let power = if scale == 255 { f64::NAN } else { 2f64.powi(i32::from(scale) - 127) };
                out.push(sign * size * power);
            }
        }
    }
    out
}
