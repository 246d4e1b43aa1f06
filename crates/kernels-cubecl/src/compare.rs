//! Comparing a result with the f64 reference, element by element and as a whole. NaN never passes for a number.

use std::fmt;

use crate::tolerance::Tolerance;

/// What a comparison saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Elements compared.
    pub n: usize,
    /// Index of the element with the largest error relative to its bound.
    pub worst: usize,
    /// The result there.
    pub got: f64,
    /// The reference there.
    pub want: f64,
    /// The bound there.
    pub bound: f64,
    /// Euclidean norm of the finite elements of the result.
    pub got_norm: f64,
    /// Euclidean norm of the finite elements of the reference.
    pub want_norm: f64,
    /// Norm of the difference over the norm of the reference; the norm of the difference where the reference is zero.
    pub global: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n, worst, got, want, bound, got_norm, want_norm, global } = self;
        write!(f, "worst of {n} at {worst}: got {got:e}, want {want:e}, bound {bound:e}; ")?;
        write!(f, "norms {got_norm:e} and {want_norm:e}, relative difference {global:e}")
    }
}

/// Why a comparison failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// The lengths differ: got, want.
    Length(usize, usize),
    /// Some element is beyond its bound, or finite where the reference is not, or the other way round.
    Element(Report),
    /// Each element is within its bound, but together they are too far off.
    Global(Report),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(got, want) => write!(f, "got {got} elements, want {want}"),
            Self::Element(report) => write!(f, "an element is off: {report}"),
            Self::Global(report) => write!(f, "the tensor is off: {report}"),
        }
    }
}

/// Compares a result with the reference.
///
/// Where the reference, rounded to f32, is NaN or infinite, the result must be the same kind of non-finite number. Everywhere
/// else it must be a number within `element·|want| + floor·max|want|`, and the whole within `global`.
///
/// # Errors
/// [`Mismatch`] with the worst element, both values and both norms.
pub fn compare(got: &[f32], want: &[f64], tolerance: Tolerance) -> Result<Report, Mismatch> {
    if got.len() != want.len() {
        return Err(Mismatch::Length(got.len(), want.len()));
    }
    let finite = |x: f64| (x as f32).is_finite();
    let largest = want.iter().filter(|x| finite(**x)).fold(0.0f64, |max, x| max.max(x.abs()));
    let mut report =
        Report { n: got.len(), worst: 0, got: 0.0, want: 0.0, bound: 0.0, got_norm: 0.0, want_norm: 0.0, global: 0.0 };
    let (mut worst_share, mut failed, mut difference) = (-1.0f64, false, 0.0f64);
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let got = f64::from(got);
        let bound = tolerance.element * want.abs() + tolerance.floor * largest;
        let error = (got - want).abs();
        let (fits, share) = match finite(want) {
            false => {
                let same = if want.is_nan() { got.is_nan() } else { got == f64::from(want as f32) };
                (same, if same { 0.0 } else { f64::INFINITY })
            }
            true if error <= bound => (true, if bound > 0.0 { error / bound } else { 0.0 }),
            true => (false, if got.is_nan() { f64::INFINITY } else { error / bound }),
        };
        failed |= !fits;
        if share > worst_share {
            worst_share = share;
            (report.worst, report.got, report.want, report.bound) = (i, got, want, bound);
        }
        if finite(want) {
            difference += error * error;
            report.want_norm += want * want;
        }
        if got.is_finite() {
            report.got_norm += got * got;
        }
    }
    (report.got_norm, report.want_norm) = (report.got_norm.sqrt(), report.want_norm.sqrt());
    report.global = difference.sqrt() / if report.want_norm > 0.0 { report.want_norm } else { 1.0 };
    // Not `global > tolerance`: that would let NaN pass.
    let together = report.global <= tolerance.global;
    match (failed, together) {
        (true, _) => Err(Mismatch::Element(report)),
        (false, false) => Err(Mismatch::Global(report)),
        (false, true) => Ok(report),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tolerance::{Kind, Precision, tolerance};

    const LOOSE: Tolerance = Tolerance { element: 1e-3, floor: 1e-3, global: 1e-3 };

    /// The original system's two checkers asked `difference > tolerance`, which NaN answers with no.
    #[test]
    fn s02_nan_fails_a_comparison() {
        assert!(
            matches!(compare(&[1.0, f32::NAN], &[1.0, 2.0], LOOSE), Err(Mismatch::Element(report)) if report.worst == 1)
        );
        assert!(compare(&[f32::NAN], &[0.0], LOOSE).is_err());
        assert!(compare(&[f32::INFINITY], &[1.0], LOOSE).is_err());
        assert!(compare(&[1.0], &[f64::NAN], LOOSE).is_err());
        let nan = Tolerance { element: f64::NAN, floor: f64::NAN, global: f64::NAN };
        assert!(compare(&[1.0], &[1.0], nan).is_err(), "a NaN bound lets nothing pass");
    }

    #[test]
    fn expected_non_finite_numbers_pass() {
        let got = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY];
        assert!(compare(&got, &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300], LOOSE).is_ok());
        assert!(compare(&got[1..2], &[f64::NEG_INFINITY], LOOSE).is_err());
        assert!(compare(&got[1..2], &[f64::NAN], LOOSE).is_err());
    }

    #[test]
    fn one_wrong_element_fails_and_is_named() {
        let mut got = vec![1.0f32; 100_000];
        let want = vec![1.0f64; 100_000];
        assert!(compare(&got, &want, LOOSE).is_ok());
        got[777] = 1.01;
        match compare(&got, &want, LOOSE) {
            Err(Mismatch::Element(report)) => assert_eq!((report.worst, report.want), (777, 1.0)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn many_small_errors_fail_together() {
        let strict = Tolerance { global: 1e-5, ..LOOSE };
        assert!(matches!(compare(&[1.0005; 64], &[1.0; 64], strict), Err(Mismatch::Global(_))));
    }

    #[test]
    fn lengths_and_zeros_are_checked() {
        assert_eq!(compare(&[1.0], &[], LOOSE), Err(Mismatch::Length(1, 0)));
        assert!(compare(&[], &[], LOOSE).is_ok());
        assert!(compare(&[0.0; 3], &[0.0; 3], tolerance(Precision::F32, Kind::Copy)).is_ok());
        assert!(compare(&[1e-30, 0.0], &[0.0; 2], LOOSE).is_err());
    }
}
