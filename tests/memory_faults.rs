//! Deliberate memory errors that `scripts/memory-check` must find, so that its silence about everything else
//! means something. Loops of the CPU backend could have each of them.
#![allow(unsafe_code, reason = "it is wrong on purpose")]
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;
use std::hint::black_box;

/// Sums `n` floats in fours; the last read may pass the end, as in a loop without a tail.
fn sum_in_fours(values: *const f32, n: usize) -> f32 {
    let mut out = [0.0; 4];
    // SAFETY: none. The caller's allocation ends within the last four.
    unsafe {
        let mut sum = _mm_setzero_ps();
        for i in (0..n).step_by(4) {
            sum = _mm_add_ps(sum, _mm_loadu_ps(values.add(i)));
        }
        _mm_storeu_ps(out.as_mut_ptr(), sum);
    }
    out.iter().sum()
}

#[test]
#[ignore = "deliberately wrong: for scripts/memory-check"]
fn a_vector_load_past_the_end() {
    let values = black_box(vec![1.0f32; 1001]);
    black_box(sum_in_fours(values.as_ptr(), values.len()));
}

#[test]
#[ignore = "deliberately wrong: for scripts/memory-check"]
fn a_wide_load_past_the_end() {
    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32]) -> f32 {
        // SAFETY: none. 16 floats are read from the last of them on.
        unsafe { _mm512_reduce_add_ps(_mm512_loadu_ps(values.as_ptr().add(values.len() - 1))) }
    }
    if is_x86_feature_detected!("avx512f") {
        let values = black_box(vec![1.0f32; 1001]);
        // SAFETY: the feature was detected.
        black_box(unsafe { load(&values) });
    } else {
        a_vector_load_past_the_end();
    }
}

#[test]
#[ignore = "deliberately wrong: for scripts/memory-check"]
fn a_store_past_the_end() {
    let mut values = black_box(vec![0.0f32; 1001]);
    let at = black_box(values.len() - 1);
    // SAFETY: none.
    unsafe { _mm_storeu_ps(values.as_mut_ptr().add(at), _mm_set1_ps(1.0)) };
    black_box(&values);
}

#[test]
#[ignore = "deliberately wrong: for scripts/memory-check"]
fn a_read_after_the_end_of_life() {
    let values = black_box(vec![1.0f32; 1000]);
    let first = values.as_ptr();
    drop(values);
    // SAFETY: none.
    black_box(unsafe { std::ptr::read_volatile(first.add(500)) });
}

#[test]
#[ignore = "deliberately wrong: for scripts/memory-check"]
fn memory_that_nobody_frees() {
    let mut values = vec![1.0f32; 100_000];
    black_box(&mut values);
    std::mem::forget(values);
}

#[test]
#[ignore = "deliberately wrong: for scripts/memory-check"]
fn a_choice_by_what_was_never_written() {
    let mut values: Vec<f32> = Vec::with_capacity(1000);
    // SAFETY: none. The elements are uninitialised.
    unsafe { black_box(&mut values).set_len(1000) };
    if black_box(&values)[500] > 0.0 {
        println!("above zero");
    }
}
