//! The memory that a head keeps after its largest step, and gives back when told to; counted by the
//! allocator.

use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::exchange::{Exchange, local};
use lmhead::{HiddenRows, LmHead, Output, Request, RowCounts};
use lmhead_testkit::{TestHead, head_of};
use peak_alloc::PeakAlloc;
use std::sync::Arc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const VOCAB: usize = 60_000;
const ROWS: usize = 24;

#[test]
fn release_memory_gives_back_what_the_largest_step_took() {
    let test = TestHead::random(VOCAB, 4, DType::F32, Quantization::None, 3);
    let exchange: Arc<dyn Exchange> = Arc::new(local::group(1).remove(0));
    let mut head = head_of(&test, &test.config(), 1, 0, exchange).unwrap();
    let rows = test.rows(ROWS, 7);
    let run = |head: &mut LmHead, k: usize| -> Output {
        let hidden = HiddenRows::new(&rows, DType::F32, ROWS, 4).unwrap();
        head.step(RowCounts::exact(&[ROWS]), &Request::top_k(k)).unwrap().run(hidden).unwrap().output
    };
    let few = run(&mut head, 8);
    let before = MEMORY.current_usage();
    // As many candidates as the vocabulary has ids: many times the size of the logits.
    drop(run(&mut head, VOCAB));
    let kept = MEMORY.current_usage() - before;
    head.release_memory();
    let left = MEMORY.current_usage().saturating_sub(before);
    println!("kept {} MB more after topk:{VOCAB}, {left} bytes after release_memory()", kept >> 20);
    assert!(kept > ROWS * VOCAB * 8, "the step kept only {kept} bytes: there is nothing to give back");
    assert!(left < 64 << 10, "{left} bytes are left of {kept}");
    assert_eq!(run(&mut head, 8), few);
}
