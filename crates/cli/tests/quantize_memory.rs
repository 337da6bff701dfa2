//! The memory that `Checkpoint::write_int8` allocates: it never holds a whole head. A test program of its
//! own, because the allocator counts for the whole process.

use lmhead::{Checkpoint, DType, HeadConfig};
use peak_alloc::PeakAlloc;
use safetensors::tensor::{Dtype, TensorView};
use std::fs::File;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

#[test]
fn writing_stays_within_its_bound_on_any_number_of_threads() {
    let folder = tempfile::TempDir::new().unwrap();
    let (source, out) = (folder.path().join("head"), folder.path().join("int8"));
    for (dtype, vocab, hidden) in [(DType::Bf16, 30_000, 1024), (DType::F32, 12_000, 777)] {
        let size = vocab * hidden * dtype.size();
        {
            let bytes: Vec<u8> = match dtype {
                DType::F32 => (0..vocab * hidden).flat_map(|i| (i as f32).sin().to_le_bytes()).collect(),
                _ => (0..vocab * hidden)
                    .flat_map(|i| half::bf16::from_f32((i % 251) as f32).to_le_bytes())
                    .collect(),
            };
            let stored = if dtype == DType::F32 { Dtype::F32 } else { Dtype::BF16 };
            let view = TensorView::new(stored, vec![vocab, hidden], &bytes).unwrap();
            safetensors::serialize_to_file([("w", view)], None, &source).unwrap();
        }
        for threads in [1, 2, 4] {
            let checkpoint = Checkpoint::from_file(&source, "w").unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let bound = checkpoint.int8_working_bytes(vocab, threads) as usize;
            // For the pool's own queues, the names and the header.
            let slack = 64 << 10;
            assert!(bound + slack < size / 2, "{bound} bytes would say little of a head of {size}");
            let file = File::create(&out).unwrap();
            let config = HeadConfig::new(vocab, hidden);
            pool.install(|| ());
            MEMORY.reset_peak_usage();
            let before = MEMORY.current_usage();
            pool.install(|| checkpoint.write_int8("w", &config, &file, &out, None)).unwrap();
            let taken = MEMORY.peak_usage() - before;
            assert!(
                taken <= bound + slack,
                "{dtype} on {threads} threads: {taken} bytes, allowed {bound} + {slack}"
            );
            assert!(taken >= vocab * 24, "the count counts: {taken}");
        }
    }
}
