//! `--backend`: the kernels on the emulated device write the same bits as the CPU backend where that is
//! promised, and name what they refuse.

use super::{good, read};

#[test]
fn int8_files_are_the_same_from_either_backend() {
    let folder = tempfile::tempdir().unwrap();
    for request in ["logits", "topk:5"] {
        let files = ["cpu", "emulated"].map(|backend| {
            let path = folder.path().join(format!("{backend}.safetensors"));
            let out = path.display().to_string();
            let fixed =
                ["run", "--preset", "tiny", "--quantize", "w8a8", "--rows", "3,0,2", "--lmhead-tp-size", "3"];
            let args = [&fixed[..], &["--request", request, "--check", "--backend", backend, "--out", &out]]
                .concat();
            good(&args);
            read(&path)
        });
        assert!(!files[0].is_empty());
        assert_eq!(files[0], files[1], "{request}");
    }
}
