//! The format's limits, one hostile file each, and what comes back of what was written.

use proptest::prelude::*;

use super::*;

/// A file of a header and `n_bytes` zero bytes of tensors.
fn file_of(header: &str, n_bytes: usize) -> tempfile::NamedTempFile {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(vec![0; n_bytes]);
    raw(&bytes)
}

fn raw(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn refused(file: &tempfile::NamedTempFile, part: &str) {
    let error = TensorFile::open(file.path()).unwrap_err();
    assert!(matches!(error, ModelError::Safetensors { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(part), "`{part}` is not in: {text}");
    assert!(text.contains(file.path().to_str().unwrap()), "{text}");
}

fn entry(name: &str, shape: &str, begin: usize, end: usize) -> String {
    format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
}

#[test]
fn headers_that_lie_about_their_length_are_refused() {
    refused(&raw(&[]), "at least 8 bytes");
    refused(&raw(&[1, 2, 3]), "at least 8 bytes");
    refused(&raw(&u64::MAX.to_le_bytes()), "at most 16777216 bytes");
    refused(&raw(&(MAX_HEADER_BYTES + 1).to_le_bytes()), "at most 16777216 bytes");
    refused(&raw(&100u64.to_le_bytes()), "truncated");
}

#[test]
fn other_formats_are_refused_by_content() {
    refused(&raw(b"PK\x03\x04 a zip archive with a pickle in it"), "header");
    refused(&file_of("not json at all", 0), "plain tensor names");
    refused(&file_of("[1,2]", 0), "plain tensor names");
}

#[test]
fn offsets_and_shapes_must_fit() {
    let a = entry("a", "[2]", 0, 8);
    let cases = [
        format!("{{{a},{}}}", entry("b", "[2]", 4, 12)),
        format!("{{{a},{}}}", entry("b", "[2]", 12, 20)),
        format!("{{{}}}", entry("a", "[2]", 8, 0)),
        format!("{{{}}}", entry("a", "[3]", 0, 8)),
        format!("{{{}}}", entry("a", "[9223372036854775807,9223372036854775807]", 0, 8)),
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}".to_owned(),
        "{\"a\":{\"dtype\":\"X9\",\"shape\":[2],\"data_offsets\":[0,8]}}".to_owned(),
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}".to_owned(),
    ];
    for header in cases {
        refused(&file_of(&header, 20), "shapes and offsets that fit");
    }
}

#[test]
fn missing_and_surplus_bytes_are_refused() {
    let header = format!("{{{}}}", entry("a", "[2]", 0, 8));
    refused(&file_of(&header, 7), "8 bytes of tensors, got 7");
    refused(&file_of(&header, 9), "8 bytes of tensors, got 9");
    TensorFile::open(file_of(&header, 8).path()).unwrap();
}

#[test]
fn names_are_distinct_and_plain() {
    let a = entry("a", "[0]", 0, 0);
    refused(&file_of(&format!("{{{a},{a}}}"), 0), "name `a` twice");
    let long = "n".repeat(MAX_NAME_BYTES + 1);
    for name in ["", "../x", "a/b", "a\\\\b", "a\\u0000", "a\\n", "a b", "\\u00e9", long.as_str()] {
        refused(&file_of(&format!("{{{}}}", entry(name, "[0]", 0, 0)), 0), "name `");
    }
}

#[test]
fn counts_and_ranks_are_limited() {
    let rank = ["1"; MAX_RANK + 1].join(",");
    refused(&file_of(&format!("{{{}}}", entry("a", &format!("[{rank}]"), 0, 4)), 4), "at most 8 dimensions");
    let many: Vec<String> = (0..=MAX_TENSORS).map(|i| entry(&format!("t{i}"), "[0]", 0, 0)).collect();
    refused(&file_of(&format!("{{{}}}", many.join(",")), 0), "more than 100000 tensors");
}

#[test]
fn a_folder_is_not_a_file() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(TensorFile::open(dir.path()), Err(ModelError::Safetensors { .. })));
    assert!(matches!(TensorFile::open(&dir.path().join("none")), Err(ModelError::Io { .. })));
}

#[test]
fn values_come_back_in_every_type() {
    let dir = tempfile::tempdir().unwrap();
    let floats = [1.0, -2.5, 3.140_625, 1e-3];
    for (float, name, error) in [(FloatType::F32, "F32", 0.0), (FloatType::Bf16, "BF16", 4e-6)] {
        let path = dir.path().join(name);
        let tensors = vec![
            ("w".to_owned(), vec![2, 2], Values::Float(&floats)),
            ("i".to_owned(), vec![3], Values::Int(&[-1, 0, i64::MAX])),
        ];
        write_tensors(&path, tensors, float).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["i", "w"]);
        assert_eq!(file.dtype("w").unwrap(), name);
        assert_eq!(file.read_i64("i").unwrap(), [-1, 0, i64::MAX]);
        for (got, want) in std::iter::zip(file.read_weight("w", &[2, 2], false).unwrap(), floats) {
            assert!((got - want).abs() <= error, "{name}: got {got}, want {want}");
        }
        assert!(matches!(file.read_i64("w"), Err(ModelError::TensorDtype { .. })));
        assert!(matches!(file.read_f32("i"), Err(ModelError::TensorDtype { .. })));
        assert!(matches!(file.read_f32("x"), Err(ModelError::TensorMissing { .. })));
    }
}

#[test]
fn half_precision_is_read() {
    let header = "{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}";
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend([f16::from_f32(0.333).to_le_bytes(), f16::from_f32(-2.0).to_le_bytes()].concat());
    let values = TensorFile::open(raw(&bytes).path()).unwrap().read_f32("a").unwrap();
    assert_eq!(values, [f16::from_f32(0.333).to_f32(), -2.0]);
}

#[test]
fn values_that_are_not_finite_are_refused_by_default() {
    let dir = tempfile::tempdir().unwrap();
    for (i, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        let path = dir.path().join(i.to_string());
        write_tensors(&path, vec![("w".to_owned(), vec![3], Values::Float(&[0.0, bad, 1.0]))], FloatType::F32).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let error = file.read_weight("w", &[3], false).unwrap_err();
        assert!(matches!(error, ModelError::TensorNonFinite { index: 1, .. }), "{error}");
        assert_eq!(file.read_weight("w", &[3], true).unwrap()[2], 1.0);
    }
}

#[test]
fn writing_refuses_what_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let one = |shape: Vec<usize>| ("w".to_owned(), shape, Values::Float(&[1.0, 2.0]));
    assert!(matches!(write_tensors(&path, vec![one(vec![3])], FloatType::F32), Err(ModelError::Safetensors { .. })));
    let twice = vec![one(vec![2]), one(vec![2])];
    assert!(matches!(write_tensors(&path, twice, FloatType::F32), Err(ModelError::Safetensors { .. })));
    assert!(!path.exists());
    write_tensors(&path, vec![one(vec![2])], FloatType::F32).unwrap();
    assert!(matches!(write_tensors(&path, vec![one(vec![2])], FloatType::F32), Err(ModelError::OutputExists { .. })));
}

#[test]
fn a_file_that_shrinks_while_open_is_an_error() {
    let header = format!("{{{}}}", entry("a", "[1024]", 0, 4096));
    let file = file_of(&header, 4096);
    let open = TensorFile::open(file.path()).unwrap();
    File::options().write(true).open(file.path()).unwrap().set_len(600).unwrap();
    assert!(matches!(open.read_f32("a"), Err(ModelError::Io { .. })));
}

/// The bytes of a small valid file.
fn valid_bytes() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let tensors = vec![
        ("w.weight".to_owned(), vec![2, 3], Values::Float(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("n".to_owned(), vec![1], Values::Int(&[7])),
    ];
    write_tensors(&dir.path().join("x"), tensors, FloatType::F32).unwrap();
    std::fs::read(dir.path().join("x")).unwrap()
}

/// Opens and reads everything; the result does not matter, that it ends does.
fn read_all(bytes: &[u8]) -> Result<(), ModelError> {
    let stored = raw(bytes);
    let file = TensorFile::open(stored.path())?;
    for name in file.names() {
        file.read_f32(name).or_else(|_| file.read_i64(name).map(|_| Vec::new()))?;
    }
    Ok(())
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = valid_bytes();
    read_all(&bytes).unwrap();
    for len in 0..bytes.len() {
        assert!(read_all(&bytes[..len]).is_err(), "cut to {len} of {}", bytes.len());
    }
}

proptest! {
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((0usize..400, any::<u8>()), 1..6)) {
        let mut bytes = valid_bytes();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = read_all(&bytes);
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read_all(&bytes).is_err());
    }
}
