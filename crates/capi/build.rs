//! The name under which programs find the shared library again: it changes with `LMHEAD_ABI` of the header.

fn main() {
    println!("cargo::rerun-if-changed=include/lmhead.h");
    let header =
        std::fs::read_to_string("include/lmhead.h").expect("include/lmhead.h, which this package has");
    let abi = header.lines().find_map(|line| line.strip_prefix("#define LMHEAD_ABI "));
    let abi = abi.expect("LMHEAD_ABI in include/lmhead.h").trim();
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblmhead.so.{abi}");
    }
}
