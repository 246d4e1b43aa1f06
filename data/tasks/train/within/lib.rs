//! Whether a point is inside a rectangle or on its edge; corners may come in any order.

/// Whether a point is inside a rectangle or on its edge; corners may come in any order.
pub fn within(point: (i32, i32), a: (i32, i32), b: (i32, i32)) -> bool {
    let (left, right) = (a.0.min(b.0), a.0.max(b.0));
    let (top, bottom) = (a.1.min(b.1), a.1.max(b.1));
    point.0 >= left && point.0 <= right && point.1 >= top && point.1 <= bottom
}
