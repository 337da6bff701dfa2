//! Transports that deliver wrong bytes are found before there is any answer: when a head is made and when it
//! is rebuilt.

use crate::reports::test_head;
use lmhead::config::HeadConfig;
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::Exchange;
use lmhead::head::LmHead;
use lmhead::result::{Answer, Request};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead_testkit::wrong::{Wrong, WrongExchange};
use lmhead_testkit::{each_rank, head_of};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Mistakes that change bytes, the operation that shows them, and the smallest group: with two members there
/// are no two peers' pieces to swap.
const MISTAKES: [(Wrong, &str, usize); 4] = [
    (Wrong::GatherOrder, "all_gather", 2),
    (Wrong::PieceOrder, "all_to_all", 3),
    (Wrong::PieceAfterEmpty, "all_to_all", 3),
    (Wrong::LastByte, "all_to_all", 2),
];

fn config() -> HeadConfig {
    HeadConfig { timeout: Duration::from_secs(60), ..test_head().config() }
}

fn step(head: &mut LmHead, size: usize) -> Result<Answer> {
    let bytes = test_head().rows(2, 7);
    let hidden = HiddenRows::new(&bytes, DType::F32, 2, 16)?;
    head.step(RowCounts::exact(&vec![2; size]), &Request::logits(DType::F32))?.run(hidden)
}

/// Every rank names the operation, whichever rank received wrong bytes.
fn assert_found(error: &Error, operation: &str, what: &str) {
    let text = error.to_string();
    assert!(matches!(error, Error::Exchange { .. }), "{what}: {text}");
    assert!(text.contains(operation) && text.contains("self-test"), "{what}: {text}\nwant {operation}");
}

/// nccl#1906: all_gather in the wrong rank order. Also all_to_all that permutes pieces, as NCCL did, or takes
/// an empty piece for its successor, or loses a byte; on one rank or on all.
#[test]
fn nccl_1906_wrong_orders_are_found_when_a_head_is_made() {
    for (wrong, operation, least) in MISTAKES {
        for size in [least, 4] {
            for all in [false, true] {
                let began = Instant::now();
                let errors = each_rank(size, |me, exchange| {
                    let broken = all || me == 1;
                    let exchange: Arc<dyn Exchange> =
                        if broken { Arc::new(WrongExchange::new(exchange, wrong)) } else { exchange };
                    (broken, head_of(&test_head(), &config(), size, me, exchange).err())
                });
                for (rank, (broken, error)) in errors.iter().enumerate() {
                    let what = format!("{wrong:?}, {size} ranks, rank {rank} (wrong: {broken})");
                    let error = error.as_ref().unwrap_or_else(|| panic!("{what}: a head was made"));
                    assert_found(error, operation, &what);
                }
                assert!(began.elapsed() < Duration::from_secs(20), "{wrong:?}: took {:?}", began.elapsed());
            }
        }
    }
}

#[test]
fn a_transport_that_goes_wrong_later_is_found_when_the_head_is_rebuilt() {
    for (wrong, operation, _) in MISTAKES {
        let size = 3;
        each_rank(size, |me, exchange| {
            let (exchange, on) = WrongExchange::later(exchange, wrong);
            let mut head = head_of(&test_head(), &config(), size, me, Arc::new(exchange)).unwrap();
            let want = step(&mut head, size).unwrap();
            on.store(me == 1, Ordering::SeqCst);
            let error = head.rebuild().unwrap_err();
            let what = format!("{wrong:?}, rank {me}");
            assert_found(&error, operation, &what);
            assert!(matches!(step(&mut head, size), Err(Error::Poisoned { .. })), "{what}");
            // Once the transport is right again, the head can be rebuilt.
            on.store(false, Ordering::SeqCst);
            let rebuilt = (0..5).any(|_| head.rebuild().is_ok());
            assert!(rebuilt, "{what}: {:?}", head.poisoned());
            assert_eq!(step(&mut head, size).unwrap().output, want.output, "{what}");
        });
    }
}
