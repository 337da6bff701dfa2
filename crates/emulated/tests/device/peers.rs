//! Exchanges through windows, between ranks whose kernels run at the same time.

use crate::device;
use lmhead::backend::device::{KernelDevice, stream_marks};
use lmhead::exchange::peers::{MOST_MEMBERS, PeerExchange, window_bytes};
use lmhead::exchange::{Fault, Piece};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::product::peers::{
    PeerGroup, long_pieces_arrive_through_windows, pieces_arrive_through_windows,
};
use proptest::prelude::*;
use std::sync::Barrier;
use std::time::{Duration, Instant};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn pieces_arrive(size in 2usize..6, rounds in 1usize..4, seed in any::<u64>()) {
        pieces_arrive_through_windows(&device(), size, rounds, seed);
    }
}

#[test]
fn long_pieces_go_through_every_lane_and_slot() {
    long_pieces_arrive_through_windows(&device());
}

/// Sends each other member `bytes` bytes of a value, wants as many of each, and waits for the kernel. Returns
/// what has arrived.
fn bytes_to_all(
    device: &EmulatedDevice,
    member: &dyn PeerExchange,
    (size, bytes, value): (usize, usize, u8),
    timeout: Duration,
) -> Vec<u8> {
    let buffer = device.alloc(2 * size * bytes).expect("memory");
    device.write(&buffer, 0, &vec![value; 2 * size * bytes]).expect("a copy");
    let piece = |at: usize| Piece { address: device.address(&buffer) + (at * bytes) as u64, len: bytes };
    let (send, recv): (Vec<_>, Vec<_>) = (0..size).map(|m| (piece(m), piece(size + m))).unzip();
    // SAFETY: memory that lives until the launch has ended, which is when it returns.
    let queued = unsafe { member.exchange(&send, &recv, timeout, device.handle(())) };
    assert_eq!(queued, Ok(()));
    let mut arrived = vec![0; size * bytes];
    device.read(&buffer, size * bytes, &mut arrived).expect("a copy");
    arrived
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn a_member_that_does_not_come_is_named_when_the_time_is_over() {
    let (device, timeout) = (device(), Duration::from_secs(2));
    let (group, meeting) = (PeerGroup::new(&device, 3), Barrier::new(2));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for member in &group.members[..2] {
            let (device, meeting) = (&device, &meeting);
            scope.spawn(move || {
                meeting.wait();
                bytes_to_all(device, &**member, (3, 1, 1), timeout);
                assert_eq!(member.fault(), Some(Fault::Timeout { missing: vec![2] }));
                // From then on nobody waits.
                bytes_to_all(device, &**member, (3, 1, 1), LONG);
            });
        }
    });
    assert!(began.elapsed() >= timeout && began.elapsed() < LONG / 4);
    assert_eq!(group.members[2].fault(), None);
}

/// Rank 0 gives up before rank 1 comes; what it sends afterwards is made of what did not arrive.
#[test]
fn a_member_that_has_given_up_sends_nothing_more() {
    let device = device();
    let group = PeerGroup::new(&device, 2);
    bytes_to_all(&device, &*group.members[0], (2, 100, 1), Duration::from_secs(2));
    assert_eq!(group.members[0].fault(), Some(Fault::Timeout { missing: vec![1] }));
    bytes_to_all(&device, &*group.members[0], (2, 100, 2), LONG);
    // The first was sent in time; the second never comes.
    let late = &*group.members[1];
    assert_eq!(bytes_to_all(&device, late, (2, 100, 3), LONG)[..100], [1; 100]);
    assert_eq!(late.fault(), None);
    let arrived = bytes_to_all(&device, late, (2, 100, 4), Duration::from_millis(50));
    assert_eq!(arrived[..100], [4; 100]);
    assert_eq!(late.fault(), Some(Fault::Timeout { missing: vec![0] }));
}

#[test]
fn a_piece_of_another_length_is_told() {
    let device = device();
    let group = PeerGroup::new(&device, 2);
    std::thread::scope(|scope| {
        for (me, member) in group.members.iter().enumerate() {
            let device = &device;
            let bytes = [100, 104][me];
            scope.spawn(move || bytes_to_all(device, &**member, (2, bytes, 1), Duration::from_secs(2)));
        }
    });
    // Who has given up may have sent nothing: then the other one waits in vain.
    let faults = [0, 1].map(|me: usize| group.members[me].fault().expect("a fault"));
    let length = |member, wanted, got| Fault::Length { peers: vec![(member, wanted, got)] };
    let told = [faults[0] == length(1, 100, 104), faults[1] == length(0, 104, 100)];
    let missed = [1, 0].map(|member| Fault::Timeout { missing: vec![member] });
    assert!(told.contains(&true), "{faults:?}");
    assert!((0..2).all(|me| told[me] || faults[me] == missed[me]), "{faults:?}");
}

#[test]
fn the_host_ends_a_wait() {
    let device = device();
    let group = PeerGroup::new(&device, 2);
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| bytes_to_all(&device, &*group.members[0], (2, 1, 1), LONG));
        std::thread::sleep(Duration::from_millis(100));
        group.members[0].end();
    });
    assert!(began.elapsed() < LONG / 4);
    assert_eq!(group.members[0].fault(), None, "the host knows why");
}

#[test]
fn windows_and_pieces_that_cannot_be_are_refused() {
    let device = device();
    let marks = stream_marks(&device);
    let window = device.alloc(2 * window_bytes(2)).expect("memory");
    let at = device.address(&window);
    let refused = |me: usize, windows: &[u64]| {
        // SAFETY: nothing is launched.
        let made = unsafe { marks.peer_exchange(me, windows) };
        let Err(Fault::Broken { problem, .. }) = made.map(|_| ()) else { panic!("wanted a refusal") };
        problem
    };
    assert!(refused(0, &[at]).contains("wanted one of 2 to 64 members, got member 0 of 1"));
    assert!(refused(2, &[at, at]).contains("got member 2 of 2"));
    assert!(refused(0, &[at; MOST_MEMBERS + 1]).contains("got member 0 of 65"));
    assert!(refused(0, &[at, at + 64]).contains("multiples of 128"));
    let group = PeerGroup::new(&device, 2);
    // SAFETY: nothing is launched.
    let short = unsafe {
        group.members[0].exchange(&[Piece::default()], &[Piece::default()], Duration::ZERO, device.handle(()))
    };
    assert!(matches!(short, Err(Fault::Broken { .. })), "{short:?}");
}
