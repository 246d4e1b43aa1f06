//! Checking a hand-written gradient of a reference against finite differences of its forward pass.

/// Panics unless `gradient` is that of `Σ f(x)·dy`, to 1e-5 of its largest element.
pub(crate) fn assert_gradient(x: &[f64], gradient: &[f64], dy: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) {
    let value = |x: &[f64]| f(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
    assert_eq!(gradient.len(), x.len(), "a gradient has the shape of its variable");
    let largest = gradient.iter().fold(0.0f64, |max, g| max.max(g.abs()));
    assert!(largest > 0.0, "a gradient that is all zero shows nothing");
    for i in 0..x.len() {
        let step = 1e-5 * x[i].abs().max(1.0);
        let (mut up, mut down) = (x.to_vec(), x.to_vec());
        up[i] += step;
        down[i] -= step;
        let slope = (value(&up) - value(&down)) / (up[i] - down[i]);
        let error = (slope - gradient[i]).abs();
        assert!(error <= 1e-5 * largest, "element {i}: finite difference {slope:e}, gradient {:e}", gradient[i]);
    }
}
