//! Hidden states and heads of different float types, and 16-bit heads that are widened.

use super::*;
use half::f16;

/// The tensor rounded to `dtype`, and those values as f32.
fn rounded(tensor: &Tensor, dtype: Dtype) -> [Tensor; 2] {
    let values = tensor.3.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let rounded: Vec<f32> = match dtype {
        Dtype::F16 => values.map(|v| f16::from_f32(v).to_f32()).collect(),
        Dtype::BF16 => values.map(|v| bf16::from_f32(v).to_f32()).collect(),
        _ => values.collect(),
    };
    let bytes = match dtype {
        Dtype::F16 => rounded.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => rounded.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => rounded.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let wide = rounded.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (name, shape) = (&tensor.0, &tensor.2);
    [(name.clone(), dtype, shape.clone(), bytes), (name.clone(), Dtype::F32, shape.clone(), wide)]
}

/// Whatever the types, the logits are those of the values as f32: widening is exact.
#[test]
fn every_pair_of_types_gives_the_logits_of_the_widened_values() {
    let files = Files::new();
    std::fs::write(files.path("f32.toml"), "head_dtype = \"f32\"").unwrap();
    let (weights, hidden) =
        (f32_tensor("lm_head.weight", &[150, 77], 1), f32_tensor("hidden_states", &[7, 77], 2));
    let (head, rows, config) = (files.name("h"), files.name("r"), files.name("f32.toml"));
    let logits = |weights: &Tensor, hidden: &Tensor, args: &[&str]| {
        write(&files.path("h"), std::slice::from_ref(weights));
        write(&files.path("r"), std::slice::from_ref(hidden));
        let out = files.name("out");
        let base = ["run", "--head", &head, "--hidden", &rows, "--out", &out, "--check", "--steps", "1"];
        let printed = good(&[&base, args].concat());
        assert!(printed.contains("check passed against float64 (everything"), "{printed}");
        (printed, std::fs::read(files.path("out")).unwrap())
    };
    let types = [Dtype::F32, Dtype::F16, Dtype::BF16];
    for (of_weights, of_hidden) in types.iter().flat_map(|w| types.map(|h| (*w, h))) {
        let [weights, wide_weights] = rounded(&weights, of_weights);
        let [hidden, wide_hidden] = rounded(&hidden, of_hidden);
        let (_, wanted) = logits(&wide_weights, &wide_hidden, &[]);
        for sharding in [&[][..], &["--rows", "3,0,4", "--lmhead-tp-size", "3"]] {
            let (printed, got) = logits(&weights, &hidden, &[&["--config", &config], sharding].concat());
            assert!(printed.contains("150 x 77 f32"), "{printed}");
            assert!(got == wanted, "{of_weights:?} {of_hidden:?}: a head that is widened at load");
            let (printed, got) = logits(&weights, &hidden, sharding);
            let name = format!("150 x 77 {}", format!("{of_weights:?}").to_lowercase());
            assert!(printed.contains(&name), "{printed}");
            // Products of two bf16 may use an instruction of their own, which rounds differently.
            if of_weights != of_hidden || of_weights == Dtype::F32 {
                assert!(got == wanted, "{of_weights:?} {of_hidden:?} {sharding:?}");
            }
        }
    }
}

/// A head that is widened, from a file or a mapping, aligned or not, copied or not: the first weight that is
/// not finite is named.
#[test]
fn a_weight_that_is_not_finite_is_named_where_a_head_is_widened() {
    let files = Files::new();
    std::fs::write(files.path("f32.toml"), "head_dtype = \"f32\"").unwrap();
    let mut tensor = bf16_tensor("lm_head.weight", &[150, 20], 1);
    tensor.3[(77 * 20 + 3) * 2..][..2].copy_from_slice(&bf16::NEG_INFINITY.to_le_bytes());
    write(&files.path("broken"), &[tensor]);
    let (head, config) = (files.name("broken"), files.name("f32.toml"));
    for copy in [&[][..], &["--copy"]] {
        let out = lmhead(&[&["run", "--head", &head, "--config", &config], copy].concat());
        assert_eq!(out.status.code(), Some(2));
        let said = text(&out.stderr);
        let wanted = "tensor lm_head.weight: wanted finite weights, got -inf at vocabulary row 77, column 3";
        assert!(said.contains(wanted), "{said}");
    }
}
