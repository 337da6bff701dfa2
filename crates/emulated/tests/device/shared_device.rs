//! The exchange of device memory between ranks on one device.

use crate::device;
use lmhead::backend::device::shared_device::group;
use lmhead::exchange::{Call, DeviceExchange, Exchange, Fault, Operation, Piece, WithDevice};
use lmhead::memory::Stream;
use lmhead_testkit::product::shared_device::{call, pieces_arrive};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn pieces_arrive_as_on_the_host(size in 1usize..7, rounds in 1usize..12, seed in any::<u64>()) {
        pieces_arrive(&device(), size, rounds, seed);
    }
}

fn side(endpoint: &WithDevice) -> &dyn DeviceExchange {
    endpoint.device().expect("a side for device memory")
}

fn gather(endpoint: &dyn Exchange, call: &Call) -> Result<(), Fault> {
    let side = endpoint.device().expect("a side for device memory");
    let nothing = Piece::default();
    // SAFETY: there are no bytes.
    unsafe { side.all_gather_v(call, &[0, 1], nothing, &[nothing, nothing], Stream::NONE) }
}

#[test]
fn who_does_not_come_or_gives_up_is_named() {
    let endpoints = group(&device(), 2).expect("events");
    let began = Instant::now();
    let late = gather(&endpoints[0], &call(1, Operation::GatherRows, SHORT));
    assert_eq!(late, Err(Fault::Timeout { missing: vec![1] }));
    assert!(began.elapsed() >= SHORT && began.elapsed() < LONG);

    let endpoints = group(&device(), 2).expect("events");
    let this = call(1, Operation::GatherRows, LONG);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| gather(&endpoints[0], &this));
        endpoints[1].notify_abort(&this, "no memory");
        let told = waits.join().expect("no panic");
        assert_eq!(told, Err(Fault::Aborted { member: 1, reason: "no memory".into() }));
    });
}

#[test]
fn other_lengths_are_told_by_both_sides_and_what_is_common_arrives() {
    let device = device();
    let endpoints = group(&device, 2).expect("events");
    use lmhead::backend::device::KernelDevice;
    std::thread::scope(|scope| {
        for endpoint in &endpoints {
            let device = &device;
            scope.spawn(move || {
                let me = endpoint.me();
                let (send, recv) = (device.alloc(8).expect("memory"), device.alloc(16).expect("memory"));
                device.write(&send, 0, &[me as u8 + 1; 8]).expect("a copy");
                device.write(&recv, 0, &[0; 16]).expect("a copy");
                let piece = |len| Piece { address: device.address(&send), len };
                let place = |at: u64, len| Piece { address: device.address(&recv) + at, len };
                // Member 1 sends 6 bytes, and member 0 wants 8.
                let (sent, wanted) = if me == 0 { (piece(8), 8) } else { (piece(6), 6) };
                let this = call(1, Operation::GatherRows, LONG);
                let places = [place(0, 8), place(8, wanted)];
                // SAFETY: both live until the end.
                let done =
                    unsafe { side(endpoint).all_gather_v(&this, &[0, 1], sent, &places, Stream::NONE) };
                let mut got = [0; 16];
                device.read(&recv, 0, &mut got).expect("a copy");
                assert_eq!(got, [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0]);
                match me {
                    0 => assert_eq!(done, Err(Fault::Length { peers: vec![(1, 8, 6)] })),
                    _ => assert_eq!(done, Ok(())),
                }
            });
        }
    });
}

#[test]
fn an_abort_ends_what_comes_after_and_a_reset_begins_anew() {
    let endpoints = group(&device(), 1).expect("events");
    let endpoint = &endpoints[0];
    let this = call(1, Operation::GatherRows, LONG);
    let nothing = Piece::default();
    // SAFETY: there are no bytes.
    let gather = || unsafe { side(endpoint).all_gather_v(&this, &[0], nothing, &[nothing], Stream::NONE) };
    assert_eq!(gather(), Ok(()));
    let pending = side(endpoint).mark(&this, Stream::NONE).expect("a mark");
    let why = Fault::Lost { members: vec![0] };
    side(endpoint).abort(&why);
    side(endpoint).abort(&Fault::Timeout { missing: vec![] });
    assert_eq!(gather(), Err(why.clone()));
    assert_eq!(side(endpoint).wait(None, pending, &this, endpoint), Err(why));
    endpoint.reset(&this).expect("a reset");
    assert_eq!(gather(), Ok(()));
}
