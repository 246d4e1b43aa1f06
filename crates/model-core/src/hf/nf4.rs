//! Weights in NF4 as bitsandbytes stores them, read as floats; with or without a second quantisation of the scales.
//!
//! A weight `[o, i]` is a row of 4-bit codes, the high half of a byte first, in blocks that share the scale `absmax`. Scales
//! may be bytes themselves: `absmax = nested_map[byte] · nested_absmax[block] + offset`.
//!
//! # Source
//! QLoRA (Dettmers et al. 2023), section 3, for the codes and the double quantisation.

use half::{bf16, f16};
use serde::Deserialize;

use super::json::parse;
use super::tensor_file::TensorFile;
use crate::error::ModelError;

/// Ending of the tensor that describes a weight.
const STATE: &str = ".quant_state.bitsandbytes__nf4";
/// Largest description that is read.
const MAX_STATE_BYTES: usize = 1 << 16;
/// Codes that there are.
const N_CODES: usize = 16;

/// What a description says.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// The tensors that stand beside a weight in NF4; none when it is not in NF4.
pub(super) fn companions(name: &str, has: &dyn Fn(&str) -> bool) -> Vec<String> {
    let with = |ending: &str| format!("{name}{ending}");
    if !has(&with(STATE)) {
        return Vec::new();
    }
    let nested = [".nested_absmax", ".nested_quant_map"].map(with);
    let mut names = vec![with(STATE), with(".absmax"), with(".quant_map")];
    if nested.iter().any(|name| has(name)) {
        names.extend(nested);
    }
    names
}

/// The values of a weight in NF4 of a known shape.
///
/// # Numerics
/// Products in f32, rounded to the type that the description names, as bitsandbytes does before it multiplies.
///
/// # Errors
/// When a tensor is missing, or its length or the description does not fit `shape`.
pub(super) fn read(file: &TensorFile, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
    let broken = |expected: String, got: String| ModelError::Quantised {
        path: file.path().to_path_buf(),
        tensor: name.to_owned(),
        expected,
        got,
    };
    let state = parse("quant_state", &file.read_bytes(&format!("{name}{STATE}"))?, MAX_STATE_BYTES)?;
    let state: State =
        serde_json::from_value(state).map_err(|error| broken("a description of NF4".to_owned(), error.to_string()))?;
    let n: usize = shape.iter().product();
    if state.quant_type != "nf4" || state.shape != shape || state.blocksize == 0 {
        let got = format!("{} of {:?} in blocks of {}", state.quant_type, state.shape, state.blocksize);
        return Err(broken(format!("nf4 of {shape:?} in blocks"), got));
    }
    let lengths = |what: &str, expected: usize, got: usize| match got == expected {
        true => Ok(()),
        false => Err(broken(format!("{expected} {what}"), got.to_string())),
    };
    let codes = file.read_bytes(name)?;
    lengths("bytes of codes", n.div_ceil(2), codes.len())?;
    let map = file.read_f32(&format!("{name}.quant_map"))?;
    lengths("numbers of codes", N_CODES, map.len())?;
    let absmax = scales(file, name, &state)?;
    lengths("scales", n.div_ceil(state.blocksize), absmax.len())?;
    let mut values = decode(&codes, &absmax, &map, state.blocksize);
    values.truncate(n);
    match state.dtype.as_str() {
        "float32" => {}
        "bfloat16" => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
        "float16" => values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
        other => return Err(broken("float32, bfloat16 or float16".to_owned(), other.to_owned())),
    }
    Ok(values)
}

/// The scale of every block.
fn scales(file: &TensorFile, name: &str, state: &State) -> Result<Vec<f32>, ModelError> {
    let absmax = format!("{name}.absmax");
    if !file.is_bytes(&absmax)? {
        return file.read_f32(&absmax);
    }
    let map = file.read_f32(&format!("{name}.nested_quant_map"))?;
    let nested = file.read_f32(&format!("{name}.nested_absmax"))?;
    let (codes, block) = (file.read_bytes(&absmax)?, state.nested_blocksize.unwrap_or(0));
    let fits = block > 0 && nested.len() == codes.len().div_ceil(block) && map.len() == 1 << u8::BITS;
    let Some(offset) = state.nested_offset.filter(|_| fits) else {
        return Err(ModelError::Quantised {
            path: file.path().to_path_buf(),
            tensor: absmax,
            expected: "nested scales: 256 numbers of codes, an offset and one number per block".to_owned(),
            got: format!("{} numbers and {} scales in blocks of {block}", map.len(), nested.len()),
        });
    };
    let one = |(at, code): (usize, &u8)| map[usize::from(*code)] * nested[at / block] + offset;
    Ok(codes.iter().enumerate().map(one).collect())
}

/// The numbers of codes, two for each byte.
fn decode(codes: &[u8], absmax: &[f32], map: &[f32], block: usize) -> Vec<f32> {
    let both = |byte: &u8| [usize::from(byte >> 4), usize::from(byte & 15)];
    codes.iter().flat_map(both).enumerate().map(|(at, code)| map[code] * absmax[at / block]).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::hf::FloatType;
    use crate::hf::tensor_file::{Values, write_tensors};

    fn fixture() -> TensorFile {
        TensorFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nf4.safetensors")).unwrap()
    }

    #[test]
    fn plain_scales_give_bitsandbytes_numbers() {
        let file = fixture();
        let (absmax, map) = (file.read_f32("plain.absmax").unwrap(), file.read_f32("plain.quant_map").unwrap());
        let got = decode(&file.read_bytes("plain.weight").unwrap(), &absmax, &map, 64);
        assert_eq!(got, file.read_f32("plain.dequant").unwrap());
    }

    #[test]
    fn doubly_quantised_scales_give_bitsandbytes_numbers() {
        let file = fixture();
        assert_eq!(read(&file, "dq.weight", &[48, 320]).unwrap(), file.read_f32("dq.dequant").unwrap());
        let names = companions("dq.weight", &|name| file.contains(name));
        assert_eq!(names.len(), 5);
        assert!(names.iter().all(|name| file.contains(name)));
        assert!(companions("plain.weight", &|name| file.contains(name)).is_empty());
    }

    /// A LLaMA folder whose projections are in NF4, each number at the nearest code of its block.
    #[test]
    fn a_folder_in_nf4_is_read_like_any_other() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let (llama, map) = (fixtures.join("llama"), fixture().read_f32("plain.quant_map").unwrap());
        let dense = TensorFile::open(&llama.join("model.safetensors")).unwrap();
        let (mut floats, mut bytes, mut want) = (Vec::new(), Vec::new(), Vec::new());
        for name in dense.names() {
            let (shape, values) = (dense.shape(name).unwrap().to_vec(), dense.read_f32(name).unwrap());
            if !name.contains("_proj") {
                floats.push((name.to_owned(), shape, values));
                continue;
            }
            let absmax: Vec<f32> = values.chunks(64).map(|b| b.iter().fold(0.0, |most, v| v.abs().max(most))).collect();
            let nearest = |(at, value): (usize, &f32)| {
                let distance = |code: &usize| (map[*code] - value / absmax[at / 64]).abs();
                (0..N_CODES).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap() as u8
            };
            let codes: Vec<u8> = values.iter().enumerate().map(nearest).collect();
            let numbers = codes.iter().enumerate().map(|(at, code)| map[usize::from(*code)] * absmax[at / 64]);
            want.push((name.to_owned(), numbers.map(|value| bf16::from_f32(value).to_f32()).collect::<Vec<_>>()));
            let state = format!(
                "{{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": {shape:?}}}"
            );
            let packed: Vec<u8> = codes.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
            bytes.push((name.to_owned(), vec![packed.len(), 1], packed));
            bytes.push((format!("{name}{STATE}"), vec![state.len()], state.into_bytes()));
            floats.push((format!("{name}.absmax"), vec![absmax.len()], absmax));
            floats.push((format!("{name}.quant_map"), vec![N_CODES], map.clone()));
        }
        let dir = tempfile::tempdir().unwrap();
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(llama.join("config.json")).unwrap()).unwrap();
        config["quantization_config"] = serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let mut tensors: Vec<_> = floats.iter().map(|(n, s, v)| (n.clone(), s.clone(), Values::Float(v))).collect();
        tensors.extend(bytes.iter().map(|(n, s, v)| (n.clone(), s.clone(), Values::Bytes(v))));
        write_tensors(&dir.path().join("model.safetensors"), tensors, FloatType::F32).unwrap();

        let model = crate::Decoder::<kernels_cubecl::Cpu>::load(dir.path(), &Default::default()).unwrap();
        let maps = crate::hf::leaf_map(&model.config);
        let mut n_checked = 0;
        for (map, named) in std::iter::zip(&maps, model.leaves()) {
            let values = crate::hf::names::leaf_values(named.leaf);
            for (name, _, got) in crate::hf::split_leaf(map, &values) {
                if let Some((_, want)) = want.iter().find(|(quantised, _)| *quantised == name) {
                    assert_eq!(got.as_ref(), want, "{name}");
                    n_checked += 1;
                }
            }
        }
        assert_eq!(n_checked, 7 * 3);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let file = fixture();
        let refused = |file: &TensorFile, shape: &[usize], part: &str| {
            let error = read(file, "dq.weight", shape).unwrap_err().to_string();
            assert!(error.contains(part), "`{part}` is not in: {error}");
        };
        refused(&file, &[320, 48], "expected nf4 of [320, 48]");
        let copy = |change: &dyn Fn(&str, &mut Vec<u8>)| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("changed.safetensors");
            let names: Vec<String> =
                file.names().filter(|name| name.starts_with("dq.weight")).map(str::to_owned).collect();
            let floats: Vec<_> = names.iter().map(|name| file.read_f32(name).unwrap_or_default()).collect();
            let mut bytes: Vec<_> = names.iter().map(|name| file.read_bytes(name).unwrap_or_default()).collect();
            std::iter::zip(&names, &mut bytes).for_each(|(name, bytes)| change(name, bytes));
            let tensors = names.iter().enumerate().map(|(i, name)| match file.is_bytes(name).unwrap() {
                true => (name.clone(), vec![bytes[i].len()], Values::Bytes(&bytes[i])),
                false => (name.clone(), vec![floats[i].len()], Values::Float(&floats[i])),
            });
            write_tensors(&path, tensors.collect(), FloatType::F32).unwrap();
            let changed = TensorFile::open(&path).unwrap();
            (dir, changed)
        };
        let cut = |part: &'static str| {
            copy(&move |name, bytes| {
                if name == part {
                    bytes.truncate(10)
                }
            })
        };
        refused(&cut("dq.weight").1, &[48, 320], "7680 bytes of codes, got 10");
        refused(&cut("dq.weight.absmax").1, &[48, 320], "240 scales, got 10");
        let state = format!("dq.weight{STATE}");
        let other = copy(&|name, bytes| {
            if name == state {
                *bytes = String::from_utf8(bytes.clone())
                    .unwrap()
                    .replace("float32\", \"shape", "int8\", \"shape")
                    .into_bytes();
            }
        });
        refused(&other.1, &[48, 320], "expected float32, bfloat16 or float16");
    }
}
