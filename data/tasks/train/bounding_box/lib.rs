//! The smallest and the largest of the x and y of points; `None` of none.

/// The smallest and the largest of the x and y of points; `None` of none.
pub fn bounding_box(points: &[(i32, i32)]) -> Option<(i32, i32, i32, i32)> {
    let &(x, y) = points.first()?;
    let mut found = (x, y, x, y);
    for &(x, y) in points {
        found.0 = found.0.min(x);
        found.1 = found.1.min(y);
        found.2 = found.2.max(x);
        found.3 = found.3.max(y);
    }
    Some(found)
}
