//! Another Rust library in the same program.
#![crate_type = "staticlib"]

use std::panic::catch_unwind;

#[unsafe(no_mangle)]
pub extern "C" fn other_rust_catches_a_panic(number: i32) -> i32 {
    match catch_unwind(|| if number > 0 { std::panic::resume_unwind(Box::new(number)) } else { number }) {
        Ok(number) => number,
        Err(caught) => -caught.downcast_ref::<i32>().copied().unwrap_or(0),
    }
}
