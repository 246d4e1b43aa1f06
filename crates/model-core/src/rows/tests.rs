//! Rows: positions, documents and what each query sees.

use super::*;

fn spans(rows: &Rows) -> Vec<(i32, i32)> {
    let (start, end) = rows.spans();
    std::iter::zip(start, end).collect()
}

fn masked(mask: &[i64]) -> Rows {
    Rows::from_mask_and_positions(1, mask.len(), vec![5; mask.len()], Some(mask), None).unwrap()
}

#[test]
fn packed_documents_see_only_themselves() {
    let rows = Rows::from_segments(1, 6, vec![1; 6], vec![0, 0, 0, 1, 1, 2]).unwrap();
    assert_eq!(rows.positions, [0, 1, 2, 0, 1, 0]);
    assert_eq!(spans(&rows), [(0, 1), (0, 2), (0, 3), (3, 4), (3, 5), (5, 6)]);
}

#[test]
fn a_window_counts_the_query_itself_and_stays_in_the_document() {
    let rows = Rows::from_segments(1, 8, vec![1; 8], vec![0, 0, 0, 0, 1, 1, 1, -1]).unwrap();
    let (start, end) = rows.spans();
    assert_eq!(windowed(&start, &end, 2), [0, 0, 1, 2, 4, 4, 5, 5]);
    assert_eq!(windowed(&start, &end, 8), start);
}

#[test]
fn padding_is_never_seen() {
    let rows = Rows::from_segments(1, 5, vec![1; 5], vec![0, 0, -1, -1, -1]).unwrap();
    assert_eq!(spans(&rows), [(0, 1), (0, 2), (0, 2), (0, 2), (0, 2)]);
    let rows = Rows::from_segments(1, 3, vec![1; 3], vec![-1, -1, -1]).unwrap();
    assert_eq!(spans(&rows), [(0, 0); 3]);
}

#[test]
fn masks_pad_on_either_side() {
    assert_eq!(spans(&masked(&[1, 1, 0, 0])), [(0, 1), (0, 2), (0, 2), (0, 2)]);
    assert_eq!(spans(&masked(&[0, 0, 1, 1])), [(0, 0), (0, 0), (2, 3), (2, 4)]);
}

#[test]
fn a_mask_with_a_gap_is_refused() {
    let error = Rows::from_mask_and_positions(1, 4, vec![5; 4], Some(&[1, 0, 1, 1]), None).unwrap_err();
    assert!(matches!(error, ModelError::MaskHole { row: 0, position: 2 }), "{error}");
    let error = Rows::from_mask_and_positions(1, 2, vec![5; 2], Some(&[1, 2]), None).unwrap_err();
    assert!(error.to_string().contains("got 2 at row 0 position 1"), "{error}");
}

#[test]
fn positions_make_documents_only_without_a_mask() {
    let positions = [0, 1, 2, 0, 1, 7, 8];
    let packed = Rows::from_mask_and_positions(1, 7, vec![5; 7], None, Some(&positions)).unwrap();
    assert_eq!(packed.segments, [0, 0, 0, 1, 1, 2, 2]);
    let masked = Rows::from_mask_and_positions(1, 7, vec![5; 7], Some(&[1; 7]), Some(&positions)).unwrap();
    assert_eq!(masked.segments, [0; 7]);
    assert_eq!(masked.positions, [0, 1, 2, 0, 1, 7, 8]);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for (rows, seq_len, n) in [(1, 3, 2), (2, 2, 3), (0, 2, 0), (2, 0, 0)] {
        let error = Rows::from_segments(rows, seq_len, vec![0; n], vec![0; n]).unwrap_err();
        assert!(matches!(error, ModelError::Rows { .. }), "{error}");
    }
    assert!(Rows::from_mask_and_positions(1, 2, vec![0; 2], None, Some(&[0, -1])).is_err());
}

#[test]
fn a_segment_that_comes_back_is_refused() {
    let error = Rows::from_segments(1, 4, vec![0; 4], vec![0, 1, 0, 0]).unwrap_err();
    assert!(error.to_string().contains("segment 0 again at row 0 position 2"), "{error}");
}

#[test]
fn s18_vocab_mismatch_is_refused() {
    let config = ModelConfig::from_depth(1, 96);
    for id in [96, -1, i32::MAX] {
        let rows = Rows::from_segments(2, 2, vec![0, 95, 3, id], vec![0; 4]).unwrap();
        let error = rows.check_vocab(&config).unwrap_err();
        assert!(matches!(error, ModelError::TokenOutOfRange { row: 1, position: 1, .. }), "{error}");
    }
    Rows::from_segments(1, 2, vec![0, 95], vec![0; 2]).unwrap().check_vocab(&config).unwrap();
}
