//! Truncated, junk and flipped files: errors, never faults.

use crate::files::*;
use lmhead::config::Quantization;
use lmhead::weights::{Checkpoint, LoadOptions, SafetensorsFile};
use proptest::prelude::*;
use std::path::Path;

#[test]
fn every_prefix_of_a_file_is_an_error_and_never_a_fault() {
    let whole = file_bytes(
        &[("lm_head.weight", bf16s(&[3, 2], &[1.0; 6])), ("lm_head.bias", f32s(&[3], &[0.0; 3]))],
        0,
    );
    let folder = Folder::new();
    for length in 0..whole.len() {
        let path = folder.write("cut.safetensors", &whole[..length]);
        let error = SafetensorsFile::open(&path).unwrap_err();
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        assert!(Checkpoint::from_file(&path, "lm_head.weight").is_err());
    }
    let path = folder.write("whole.safetensors", &whole);
    Checkpoint::from_file(&path, "lm_head.weight").unwrap().shard(0..3, 3, &LoadOptions::default()).unwrap();
    let path = folder.write("long.safetensors", &[&whole[..], b"x"].concat());
    let error = SafetensorsFile::open(path).unwrap_err();
    assert_words(&error, &["wanted", "where the last tensor ends", "got", "bytes"]);
}

#[test]
fn every_refused_header_with_its_message() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let u = usize::MAX;
    let data = [0u8; 8];
    let table: Vec<(Vec<u8>, Vec<&str>)> = vec![
        (vec![1, 0, 0], vec!["wanted at least 8 bytes of header length", "got 3 bytes"]),
        (
            u64::MAX.to_le_bytes().to_vec(),
            vec![
                "wanted a header of at most 100000000 bytes",
                "got 18446744073709551615 bytes; it may be no safetensors file at all",
            ],
        ),
        (
            50_000_000u64.to_le_bytes().to_vec(),
            vec!["wanted a header of 50000000 bytes", "ends after 0 of them"],
        ),
        (0u64.to_le_bytes().to_vec(), vec!["not a safetensors file", "JSON object"]),
        (raw_file("[1, 2]", &data, 0), vec!["not a safetensors file", "JSON object"]),
        (raw_file("{\"w\": ", &data, 0), vec!["not a safetensors file", "EOF"]),
        (raw_file(&"[".repeat(100_000), &data, 0), vec!["not a safetensors file"]),
        (
            raw_file(&format!("{{\"w\":{}", "[".repeat(100_000)), &data, 0),
            vec!["not a safetensors file", "recursion"],
        ),
        (raw_file(r#"{"w": 3}"#, &data, 0), vec!["tensor w:", "wanted a dtype, a shape and data_offsets"]),
        (raw_file(&entry("F99", "[2]", "[0,8]"), &data, 0), vec!["tensor w:", "wanted a dtype", "F99"]),
        (raw_file(&entry("F32", "[-2]", "[0,8]"), &data, 0), vec!["tensor w:", "-2"]),
        (
            raw_file(&entry("F32", "[3]", "[0,8]"), &data, 0),
            vec!["tensor w:", "wanted 12 bytes for F32 [3], got data_offsets 0 to 8"],
        ),
        (
            raw_file(&entry("F32", "[2]", "[8,0]"), &data, 0),
            vec!["tensor w:", "wanted 8 bytes for F32 [2], got data_offsets 8 to 0"],
        ),
        (
            raw_file(&entry("F32", &format!("[{u},{u}]"), "[0,8]"), &data, 0),
            vec!["tensor w:", "wanted more than fits bytes"],
        ),
        (
            raw_file(&entry("F32", "[4]", "[0,16]"), &data, 0),
            vec!["tensor w:", "wanted bytes", "to", "of the file, got a file of", "bytes"],
        ),
        (
            raw_file(&entry("U8", &format!("[{}]", u / 8), &format!("[0,{}]", u / 8)), &data, 0),
            vec!["tensor w:", "got a file of"],
        ),
        (
            raw_file(&entry("F32", "[1]", "[4,8]"), &data, 0),
            vec!["wanted a header whose tensors lie one after the other", "w"],
        ),
        (raw_file("{}", &data, 0), vec!["bytes, where the last tensor ends, got"]),
    ];
    let folder = Folder::new();
    for (bytes, words) in table {
        let path = folder.write("bad.safetensors", &bytes);
        let error = SafetensorsFile::open(&path).expect_err(words[0]);
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        assert_words(&error, &words);
    }
    assert_words(
        &SafetensorsFile::open(folder.path()).unwrap_err(),
        &["wanted a .safetensors file, got a folder"],
    );
    assert_words(&SafetensorsFile::open(folder.path().join("no")).unwrap_err(), &["no: cannot be read"]);
    #[cfg(unix)]
    assert_words(&SafetensorsFile::open("/dev/null").unwrap_err(), &["wanted a regular file"]);
}

/// Files that people pass in place of safetensors: each format is recognised, and the error says what to do.
#[test]
fn other_formats_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5368709120\n";
    let table: [(&[u8], &str, &str); 14] = [
        (pointer.as_bytes(), "got a Git LFS pointer", "git lfs pull"),
        (b"# xet version 0\nfilesize = 4\n", "got a Xet pointer", "hf download"),
        (b"PK\x03\x04\x14\0\0\0\x08\0 and so on", "got a zip archive, as PyTorch", "save_file"),
        (b"\x93NUMPY\x01\0v\0{'descr': '<f4'}", "got a NumPy array", "numpy.load"),
        (b"GGUF\x03\0\0\0\x10\0\0\0", "got a GGUF file", "pass it as --model or --head"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF", "got a pickle", "save_file"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "got an HDF5 file", "save_file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "got a gzip archive", "unpack it"),
        (b"<!DOCTYPE html><html>", "got an HTML page", "fetch the file itself"),
        (b"\xef\xbb\xbf\n <HTML lang=en>", "got an HTML page", "fetch the file itself"),
        (b"<?xml version='1.0'?><Error>", "got an XML document", "fetch the file itself"),
        (b"{\"error\": \"Invalid credentials\"}", "got JSON text", "fetch the file itself"),
        (b"Entry not found", "not a whole safetensors file", "fetch or write it again"),
        (b"<t", "not a whole safetensors file", "fetch or write it again"),
    ];
    let folder = Folder::new();
    for (bytes, what, fix) in table {
        let error = SafetensorsFile::open(folder.write("w.safetensors", bytes)).unwrap_err();
        assert_words(&error, &["w.safetensors: ", what, fix]);
    }
    // A length whose first bytes are those of a gzip archive, and a header of that length.
    let header = format!("{{{}}}", " ".repeat(0x088b1f - 2));
    let file = raw_file(&header, &[], 0x088b1f % 8);
    assert!(file.starts_with(&[0x1f, 0x8b, 0x08]));
    assert_eq!(SafetensorsFile::open(folder.write("w", &file)).unwrap().names().count(), 0);
}

#[test]
fn odd_metadata_is_told_as_that() {
    let folder = Folder::new();
    let long = "x".repeat(100);
    for (metadata, got) in [
        (r#"{"step": 3}"#, "got 3 under the key `step`"),
        (r#"{"format": "pt", "a": {"b": []}}"#, r#"got {"b":[]} under the key `a`"#),
        (r#"{"format": null}"#, "got null under the key `format`"),
        (r#"["pt"]"#, r#"got ["pt"]"#),
        (r#""pt""#, r#"got "pt""#),
        (&format!(r#"["{long}"]"#), "got [\"xxxxxxxx"),
    ] {
        let entry = r#""w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
        let file = raw_file(&format!(r#"{{"__metadata__":{metadata},{entry}}}"#), &[0; 8], 0);
        let error = SafetensorsFile::open(folder.write("w", &file)).unwrap_err();
        assert_words(
            &error,
            &["tensor __metadata__: wanted an object whose values are all text", got, "as text"],
        );
        assert!(error.to_string().len() < 300, "{error}");
    }
}

/// Opens a file and, where that succeeds, loads every tensor that could be a head.
fn exercise(path: &Path) {
    let Ok(file) = SafetensorsFile::open(path) else { return };
    for name in file.names() {
        let info = file.tensor(name).unwrap();
        assert_eq!(file.bytes(name).unwrap().len(), info.bytes.len());
        let _ = (file.float_matrix(name), file.indices(name));
        let Ok(checkpoint) = Checkpoint::from_file(path, name) else { continue };
        let rows = checkpoint.rows();
        for quantization in [Quantization::None, Quantization::W8a8] {
            let _ = checkpoint.shard(0..rows, rows, &asked(quantization));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn flipped_bytes_are_errors_or_other_numbers_never_faults(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        header_only in any::<bool>(),
    ) {
        let mut bytes = file_bytes(
            &[
                ("lm_head.weight", i8s(&[3, 2], &[1; 6])),
                ("lm_head.weight_scale", f32s(&[3], &[1.0; 3])),
                ("p.weight_packed", i32s(&[2, 2], &[7; 4])),
                ("p.weight_scale", bf16s(&[2, 1], &[1.0; 2])),
                ("p.weight_shape", i64s(&[2], &[2, 7])),
                ("e.weight", f16s(&[2, 3], &[1.0; 6])),
            ],
            0,
        );
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte) in flips {
            let at = at.index(if header_only { header } else { bytes.len() });
            bytes[at] = byte;
        }
        let folder = Folder::new();
        exercise(&folder.write("flipped.safetensors", &bytes));
    }

    #[test]
    fn junk_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = Folder::new();
        exercise(&folder.write("junk.safetensors", &bytes));
    }
}
