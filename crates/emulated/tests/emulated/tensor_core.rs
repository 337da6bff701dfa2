//! 16-bit matrix instructions give the bits recorded on an H100.

use lmhead_emulated::arithmetic::{Element, Half, Path, STEP, multiply_step, step_of_8, warp_tile};
use lmhead_testkit::Random;
use proptest::prelude::*;

/// One line of the file: operands, accumulator and answer as bits.
struct Step {
    half: Half,
    a: Vec<u16>,
    b: Vec<u16>,
    c: u32,
    d: u32,
}

fn recorded(products: &str) -> Vec<Step> {
    let text = include_str!("../../../../benches/results/h100/tensor_core_golden.txt");
    let bits = |list: &str| list.split(',').map(|x| u16::from_str_radix(x, 16).unwrap()).collect();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let half = if fields[0] == "bf16" { Half::Bf16 } else { Half::F16 };
            let word = |i: usize| u32::from_str_radix(fields[i], 16).unwrap();
            (fields[1] == products).then(|| Step {
                half,
                a: bits(fields[2]),
                b: bits(fields[3]),
                c: word(4),
                d: word(5),
            })
        })
        .collect()
}

#[test]
fn recorded_steps_have_the_bits_of_the_hardware() {
    let steps = recorded("16");
    assert_eq!(steps.len(), 223, "the file holds 223 steps of 16 products");
    for (number, step) in steps.iter().enumerate() {
        for path in [Path::Model, Path::Fast, Path::Portable, Path::Avx2] {
            // Every column of the tile has the same operands: none may depend on its neighbours.
            let a = step.a.repeat(2);
            let b = step.b.repeat(16);
            let mut d = vec![f32::from_bits(step.c); 32];
            multiply_step(path, step.half, &a, &b, &mut d);
            for value in d {
                assert_eq!(value.to_bits(), step.d, "step {number} by {path:?}: wanted {:08x}", step.d);
            }
        }
    }
}

#[test]
fn recorded_steps_of_8_products_too() {
    let steps = recorded("8");
    assert_eq!(steps.len(), 261, "the file holds 261 steps of 8 products");
    for (number, step) in steps.iter().enumerate() {
        let of = |list: &[u16]| -> [u16; 8] { list.try_into().expect("eight operands") };
        let d = step_of_8(step.half, &of(&step.a), &of(&step.b), f32::from_bits(step.c));
        assert_eq!(d.to_bits(), step.d, "step {number}: wanted {:08x}", step.d);
    }
}

/// Operands of similar size, far apart, subnormal, special, or any bits.
fn operand() -> impl Strategy<Value = (u16, u16, u16)> {
    // (smallest exponent field, range of exponents, one in how many is any bits at all)
    (
        0u16..256,
        prop_oneof![Just(1u16), Just(4), Just(12), Just(40), Just(255)],
        prop_oneof![Just(3u16), Just(50), Just(2000)],
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn the_fast_paths_equal_the_model(
        (least, span, odd) in operand(), c_field in 0u32..255, seed in any::<u64>(), f16 in any::<bool>(),
    ) {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as u32
        };
        let half = if f16 { Half::F16 } else { Half::Bf16 };
        let mantissa = if f16 { 10 } else { 7 };
        let fields = 1u16 << (15 - mantissa);
        let mut value = || {
            let bits = next();
            if next().is_multiple_of(u32::from(odd)) {
                return bits as u16;
            }
            let field = (least % fields + (bits >> 16) as u16 % span).min(fields - 2);
            (bits as u16 & 0x8000) | field << mantissa | (bits as u16 & ((1 << mantissa) - 1))
        };
        let (m, n) = (16, 24);
        let a: Vec<u16> = (0..m * STEP).map(|_| value()).collect();
        let b: Vec<u16> = (0..n * STEP).map(|_| value()).collect();
        let c: Vec<f32> = (0..m * n)
            .map(|_| {
                let bits = next();
                let near = (c_field + next() % 24).min(254);
                let bits = match bits % 16 {
                    0 => 0,
                    1 => bits,
                    2..8 => bits & 0x807f_ffff | near << 23,
                    // About the size of the products.
                    _ => {
                        let field = (2 * u32::from(least % fields) + 400 - u32::from(fields)) % 255;
                        bits & 0x807f_ffff | field << 23
                    }
                };
                f32::from_bits(bits)
            })
            .collect();
        let by = |path| {
            let mut d = c.clone();
            multiply_step(path, half, &a, &b, &mut d);
            d.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let wanted = by(Path::Model);
        prop_assert_eq!(&by(Path::Fast), &wanted);
        prop_assert_eq!(&by(Path::Portable), &wanted);
        prop_assert_eq!(&by(Path::Avx2), &wanted);

        // The tile of one mma.sync: the first eight columns, with the words of b transposed.
        let word = |pair: &[u16]| u32::from(pair[0]) | u32::from(pair[1]) << 16;
        let tile_a = std::array::from_fn(|i| word(&a[2 * i..]));
        let tile_b = std::array::from_fn(|i| word(&b[i % 8 * STEP + i / 8 * 2..]));
        let tile = |bits: &[u32]| std::array::from_fn(|i| bits[i / 8 * n + i % 8]);
        for portable in [false, true] {
            let mut d: [u32; 128] = tile(&c.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            warp_tile(portable, Element::Half(half), &tile_a, &tile_b, &mut d);
            prop_assert_eq!(d, tile(&wanted));
        }
    }

    #[test]
    fn int8_tiles_are_exact_and_wrap(seed in any::<u64>(), extreme in any::<bool>()) {
        let mut random = Random(seed);
        let mut word = || random.next() as u32;
        let (a, b): ([u32; 128], [u32; 64]) =
            (std::array::from_fn(|_| word()), std::array::from_fn(|_| word()));
        let (a, b) = if extreme { ([0x8080_8080; 128], [0x8080_7f80; 64]) } else { (a, b) };
        let c: [u32; 128] = std::array::from_fn(|_| word());
        let wanted: [u32; 128] = std::array::from_fn(|i| {
            let bytes = |words: &dyn Fn(usize) -> u32| -> Vec<i8> {
                (0..8).flat_map(|k| words(k).to_le_bytes()).map(|byte| byte as i8).collect()
            };
            let (row, column) = (bytes(&|k| a[i / 8 * 8 + k]), bytes(&|k| b[k * 8 + i % 8]));
            let sum: i32 = row.iter().zip(&column).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
            c[i].wrapping_add(sum as u32)
        });
        for portable in [false, true] {
            let mut d = c;
            warp_tile(portable, Element::Int8, &a, &b, &mut d);
            prop_assert_eq!(d, wanted);
        }
    }
}
