//! An engine's callbacks that exchange device memory.

use crate::device;
use crate::whole::KINDS;
use lmhead::backend::device::KernelDevice;
use lmhead::exchange::callbacks::Status;
use lmhead::exchange::{Call, DeviceExchange, Exchange, Fault, Operation, Piece, Reset};
use lmhead::memory::Stream;
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::engine::{Odd, device_group};
use lmhead_testkit::product::shared_device::call;
use lmhead_testkit::requests;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn steps_that_stay_on_the_device_have_the_bits_of_the_host_s(
        case in requests::cases(&KINDS), schedule in any::<u64>(),
    ) {
        let device = EmulatedDevice::new(schedule);
        let backend = device.clone().backend();
        case.stays_on(&requests::Resident::over_callbacks(device, Arc::new(backend)))?;
    }
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

fn side(endpoint: &Arc<dyn Exchange>) -> &dyn DeviceExchange {
    endpoint.device().expect("a side for device memory")
}

fn gather_nothing(endpoint: &Arc<dyn Exchange>, call: &Call) -> Result<(), Fault> {
    let nothing = Piece::default();
    // SAFETY: there are no bytes.
    unsafe { side(endpoint).all_gather_v(call, &[0, 1], nothing, &[nothing, nothing], Stream::NONE) }
}

/// Runs on a thread for each of two members.
fn both<D: KernelDevice>(
    device: &D,
    odd: impl Fn(usize, &'static str, &Call) -> Option<Odd> + Send + Sync + 'static,
    run: impl Fn(usize, &Arc<dyn Exchange>) + Sync,
) {
    let endpoints = device_group(device, 2, odd);
    std::thread::scope(|scope| {
        for (me, endpoint) in endpoints.iter().enumerate() {
            let run = &run;
            scope.spawn(move || run(me, endpoint));
        }
    });
}

#[test]
fn pieces_come_to_their_places_and_a_mark_is_reached() {
    let device = device();
    both(
        &device,
        |_, _, _| None,
        |me, endpoint| {
            let (send, recv) = (device.alloc(8).expect("memory"), device.alloc(16).expect("memory"));
            device.write(&send, 0, &[me as u8 + 1; 8]).expect("a copy");
            device.write(&recv, 0, &[0; 16]).expect("a copy");
            let piece = |at: u64, len| Piece { address: device.address(&recv) + at, len };
            let own = Piece { address: device.address(&send), len: 4 + 4 * me };
            let this = call(1, Operation::GatherRows, LONG);
            // SAFETY: both live until the end.
            let done = unsafe {
                side(endpoint).all_gather_v(&this, &[0, 1], own, &[piece(0, 4), piece(8, 8)], Stream::NONE)
            };
            assert_eq!(done, Ok(()));
            let mark = side(endpoint).mark(&this, Stream::NONE).expect("a mark");
            assert_eq!(side(endpoint).wait(None, mark, &this, &**endpoint), Ok(()));
            let mut got = [9; 16];
            device.read(&recv, 0, &mut got).expect("a copy");
            assert_eq!(got, [1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2]);
        },
    );
}

#[test]
fn a_function_that_fails_is_told_to_the_peer_and_a_reset_begins_anew() {
    let odd = |me: usize, function: &'static str, call: &Call| {
        let here = me == 1 && function == "all_to_all" && call.epoch == 0;
        here.then_some(Odd::Returns(Status(99)))
    };
    both(&device(), odd, |me, endpoint| {
        let began = Instant::now();
        let this = call(1, Operation::GatherRows, LONG);
        let first = gather_nothing(endpoint, &this);
        let next = gather_nothing(endpoint, &Call { operation: Operation::ExchangeResults, ..this });
        let text = format!("{first:?} {next:?}");
        assert!(text.contains("returned 99, which is no status"), "member {me}: {text}");
        assert!(next.is_err() && began.elapsed() < LONG / 2, "member {me}: {text}");
        assert_eq!(endpoint.reset(&this), Ok(Reset::Done));
        assert_eq!(gather_nothing(endpoint, &Call { epoch: 1, ..this }), Ok(()));
    });
}

#[test]
fn who_does_not_come_is_named_at_the_deadline() {
    let endpoints = device_group(&device(), 2, |_, _, _| None);
    let began = Instant::now();
    let late = gather_nothing(&endpoints[0], &call(1, Operation::GatherRows, SHORT));
    assert_eq!(late, Err(Fault::Timeout { missing: vec![1] }));
    assert!(began.elapsed() >= SHORT && began.elapsed() < SHORT + Duration::from_secs(1));
}

/// The notice arrives during the wait for the device, not during a wait for peers.
#[test]
fn a_notice_ends_the_wait_for_the_device() {
    let device = device();
    let endpoints = device_group(&device, 2, |_, _, _| None);
    let this = call(1, Operation::GatherRows, LONG);
    std::thread::scope(|scope| {
        let gathers = scope.spawn(|| gather_nothing(&endpoints[1], &this));
        assert_eq!(gather_nothing(&endpoints[0], &this), Ok(()));
        assert_eq!(gathers.join().expect("no panic"), Ok(()));
    });
    let why = Fault::Aborted { member: 1, reason: "no memory".into() };
    side(&endpoints[1]).abort(&why);
    // An event that is not of the device: it never completes.
    let mark = side(&endpoints[0]).mark(&this, Stream::NONE).expect("a mark");
    assert_eq!(side(&endpoints[0]).wait(None, mark, &this, &*endpoints[0]), Err(why));
}
