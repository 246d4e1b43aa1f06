//! Routing by its definition: plain loops in f64.

/// `(weights [n, k], experts [n, k])` from `logits [n, e]`.
pub fn forward(logits: &[f64], e: usize, k: usize) -> (Vec<f64>, Vec<usize>) {
    let (mut weights, mut experts) = (Vec::new(), Vec::new());
    for row in logits.chunks(e) {
        let key = |i: usize| if row[i].is_nan() { f64::INFINITY } else { row[i] };
        let mut order: Vec<usize> = (0..e).collect();
        order.sort_by(|&a, &b| key(b).partial_cmp(&key(a)).expect("no NaN").then(a.cmp(&b)));
        let chosen = &order[..k];
        let largest = chosen.iter().fold(f64::NEG_INFINITY, |max, &i| max.max(row[i]));
        let exps: Vec<f64> = chosen.iter().map(|&i| (row[i] - largest).exp()).collect();
        let sum: f64 = exps.iter().sum();
        weights.extend(exps.iter().map(|exp| exp / sum));
        experts.extend(chosen);
    }
    (weights, experts)
}

/// `dlogits [n, e]` for the upstream gradient `dweights [n, k]`.
pub fn backward(dweights: &[f64], weights: &[f64], experts: &[usize], e: usize, k: usize) -> Vec<f64> {
    let n = weights.len() / k;
    let mut dlogits = vec![0.0; n * e];
    for row in 0..n {
        let at = row * k..(row + 1) * k;
        let mean: f64 = weights[at.clone()].iter().zip(&dweights[at.clone()]).map(|(w, dw)| w * dw).sum();
        for slot in at {
            dlogits[row * e + experts[slot]] = weights[slot] * (dweights[slot] - mean);
        }
    }
    dlogits
}
