//! A transport between the members of one input, which are threads: honest at first, then what the input
//! says.

use crate::rig::{Input, init};
use lmhead_capi::sys::*;
use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tables that the library has not released.
pub static HELD: AtomicUsize = AtomicUsize::new(0);

/// Head, instance, epoch.
type Channel = (u32, u32, u32);

#[derive(Default)]
struct State {
    /// By channel, sender and receiver.
    messages: HashMap<(Channel, usize, usize), VecDeque<Vec<u8>>>,
    /// Who gave up which step.
    notices: Vec<(Channel, u64, usize, Vec<u8>)>,
    resets: HashMap<Channel, usize>,
}

/// What the members share.
#[derive(Default)]
pub struct Hub {
    state: Mutex<State>,
    changed: Condvar,
    /// Numbers of all members' heads.
    pub heads: Mutex<Vec<usize>>,
}

struct Port {
    hub: Arc<Hub>,
    n: usize,
    me: usize,
    honest: usize,
    calls: AtomicUsize,
    /// What it does after its honest calls.
    tricks: Vec<u8>,
}

/// A table of member `me`, and what its functions are given.
pub fn table(hub: &Arc<Hub>, n: i64, me: usize, input: &mut Input<'_>) -> (lmhead_transport, *mut c_void) {
    let honest = match input.byte() {
        byte @ 0..=99 => usize::from(byte),
        _ => usize::MAX,
    };
    let tricks = input.bytes::<12>().to_vec();
    let has = input.byte();
    let members = usize::try_from(n).unwrap_or(0);
    let port = Port { hub: Arc::clone(hub), n: members, me, honest, calls: AtomicUsize::new(0), tricks };
    let mut table = init!(lmhead_transport);
    (table.n, table.me) = (n, me as i64);
    table.all_to_all = Some(all_to_all);
    table.release = Some(release);
    table.notify_abort = (has & 1 == 0).then_some(notify_abort as _);
    table.place = (has & 2 == 0).then_some(place as _);
    table.reset = (has & 4 == 0).then_some(reset as _);
    table.pending = (has & 8 == 0).then_some(pending as _);
    table.note = (has & 16 == 0).then_some(note as _);
    HELD.fetch_add(1, Ordering::SeqCst);
    (table, Box::into_raw(Box::new(port)).cast())
}

unsafe extern "C" fn release(user: *mut c_void) {
    // SAFETY: made by `table`, and released once.
    drop(unsafe { Box::from_raw(user.cast::<Port>()) });
    HELD.fetch_sub(1, Ordering::SeqCst);
}

/// Gives back what a table that was not handed over is given.
pub fn keep_own(user: *mut c_void) {
    // SAFETY: the library does not have it.
    unsafe { release(user) };
}

/// # Safety
/// `user` is a port, `call` what the library passes.
unsafe fn of<'a>(user: *mut c_void, call: *const lmhead_call) -> (&'a Port, &'a lmhead_call, Channel) {
    // SAFETY: as the caller says.
    let (port, call) = unsafe { (&*user.cast::<Port>(), &*call) };
    (port, call, (call.head, call.instance, call.epoch))
}

/// # Safety
/// What the library passes.
unsafe fn mark(call: &lmhead_call, member: usize, status: i32, bytes: u64) {
    // SAFETY: as the caller says.
    unsafe { call.peers.add(member).write(lmhead_peer { status, reserved: 0, bytes }) };
}

/// # Safety
/// What the library passes.
unsafe fn set_text(call: &lmhead_call, text: &[u8]) {
    let n = text.len().min(LMHEAD_TEXT_BYTES as usize);
    // SAFETY: as the caller says.
    unsafe { call.text.copy_from_nonoverlapping(text.as_ptr().cast(), n) };
}

impl Port {
    /// The trick of this call, and a number for it.
    fn trick(&self) -> Option<(u8, u8)> {
        let after = self.calls.fetch_add(1, Ordering::Relaxed).checked_sub(self.honest)?;
        let n = self.tricks.len();
        let (trick, number) = (self.tricks[after % n], self.tricks[(after + 1) % n]);
        (trick < 200).then_some((trick % 11, number))
    }

    /// Waits until `ready` has something: whatever it is, or why not.
    ///
    /// # Safety
    /// What the library passes.
    unsafe fn wait<T>(
        &self,
        call: &lmhead_call,
        of: Channel,
        until: Instant,
        from: usize,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, i32> {
        let mut state = self.hub.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = ready(&mut state) {
                return Ok(found);
            }
            let notice =
                state.notices.iter().find(|(channel, step, ..)| *channel == of && *step <= call.step);
            if let Some((_, _, who, text)) = notice {
                // SAFETY: as the caller says.
                unsafe {
                    mark(call, *who, LMHEAD_FAULT_ABORTED as i32, 0);
                    set_text(call, text);
                }
                return Err(LMHEAD_FAULT_ABORTED as i32);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // SAFETY: as above.
                unsafe { mark(call, from, LMHEAD_FAULT_TIMEOUT as i32, 0) };
                return Err(LMHEAD_FAULT_TIMEOUT as i32);
            }
            let waited = self.hub.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

unsafe extern "C" fn all_to_all(
    user: *mut c_void,
    call: *mut lmhead_call,
    send: *const lmhead_piece,
    recv: *const lmhead_piece,
) -> i32 {
    // SAFETY: what the library passes.
    let (port, call, channel, send, recv) = unsafe {
        let (port, call, channel) = of(user, call);
        let pieces = |pieces: *const lmhead_piece| std::slice::from_raw_parts(pieces, port.n);
        (port, call, channel, pieces(send), pieces(recv))
    };
    let until = Instant::now() + Duration::from_micros(call.left_us.min(1_000_000));
    let trick = port.trick();
    if port.n > 16 {
        // There are not as many threads.
        return LMHEAD_FAULT_BROKEN as i32;
    }
    // SAFETY: the library's memory, as long as the header says.
    unsafe {
        match trick {
            Some((0, number)) => return i32::from(number) - 3,
            Some((1, number)) => {
                (0..port.n).for_each(|member| mark(call, member, i32::from(number) - 3, u64::MAX));
                return i32::from(number % 8);
            }
            Some((2, number)) => {
                set_text(call, &[number | 0x80; LMHEAD_TEXT_BYTES as usize]);
                return LMHEAD_FAULT_BROKEN as i32;
            }
            Some((3, _)) => {
                std::thread::sleep(Duration::from_micros(call.left_us.min(80_000) + 3000));
                return 0;
            }
            Some((5, number)) => {
                mark(call, usize::from(number) % port.n, LMHEAD_FAULT_LENGTH as i32, u64::from(number) << 56);
                return LMHEAD_FAULT_LENGTH as i32;
            }
            Some((6, number)) => {
                mark(call, usize::from(number) % port.n, LMHEAD_FAULT_ABORTED as i32, 0);
                set_text(call, &port.tricks);
                return LMHEAD_FAULT_ABORTED as i32;
            }
            Some((7, number)) => {
                mark(call, usize::from(number) % port.n, LMHEAD_FAULT_OTHER_CALL as i32, 0);
                return LMHEAD_FAULT_OTHER_CALL as i32;
            }
            Some((8, _)) => return 0,
            Some((9, _)) => {
                // A callback must not call the library for the same head: it is refused.
                let heads = port.hub.heads.lock().unwrap_or_else(PoisonError::into_inner).clone();
                for head in heads {
                    let head = ptr::without_provenance_mut(head);
                    lmhead_async_status(head);
                    lmhead_rebuild(head);
                    lmhead_run(head, ptr::null(), ptr::null_mut());
                }
            }
            _ => {}
        }
        {
            let mut state = port.hub.state.lock().unwrap_or_else(PoisonError::into_inner);
            for (to, piece) in send.iter().enumerate() {
                let mut bytes = vec![0; piece.bytes];
                bytes.as_mut_ptr().copy_from_nonoverlapping(piece.data.cast(), piece.bytes);
                if let (Some((10, number)), false) = (trick, to == port.me) {
                    bytes.truncate(usize::from(number));
                }
                state.messages.entry((channel, port.me, to)).or_default().push_back(bytes);
            }
            port.hub.changed.notify_all();
        }
        let mut ended = 0;
        for (from, piece) in recv.iter().enumerate() {
            let next = |state: &mut State| {
                state.messages.get_mut(&(channel, from, port.me)).and_then(VecDeque::pop_front)
            };
            let mut bytes = match port.wait(call, channel, until, from, next) {
                Ok(bytes) => bytes,
                Err(status) => return status,
            };
            if let (Some((4, number)), false) = (trick, bytes.is_empty() || from == port.me) {
                // Somewhere, a byte of another value.
                let at = usize::from(number) * 37 % bytes.len();
                bytes[at] ^= port.tricks[usize::from(number) % port.tricks.len()] | 1;
            }
            let n = bytes.len().min(piece.bytes);
            piece.data.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), n);
            if bytes.len() != piece.bytes {
                mark(call, from, LMHEAD_FAULT_LENGTH as i32, bytes.len() as u64);
                ended = LMHEAD_FAULT_LENGTH as i32;
            }
        }
        ended
    }
}

unsafe extern "C" fn notify_abort(user: *mut c_void, call: *const lmhead_call, notice: *const c_char) {
    // SAFETY: what the library passes.
    let (port, call, channel, notice) = unsafe {
        let (port, call, channel) = of(user, call);
        (port, call, channel, CStr::from_ptr(notice))
    };
    let mut state = port.hub.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.notices.push((channel, call.step, port.me, notice.to_bytes().to_vec()));
    port.hub.changed.notify_all();
}

unsafe extern "C" fn note(_: *mut c_void, call: *const lmhead_call) {
    // SAFETY: what the library passes.
    assert!(unsafe { (*call).peers.is_null() && (*call).text.is_null() });
}

unsafe extern "C" fn place(user: *mut c_void, member: i64, place: *mut lmhead_place) -> i32 {
    // SAFETY: what the library passes.
    unsafe {
        let port = &*user.cast::<Port>();
        let number = port.tricks[member as usize % port.tricks.len()];
        let operation = i32::from(number % 24) - 2;
        let (head, instance, epoch) = (u32::from(number), u32::from(number / 3), 1);
        let step = u64::from(number) << 50;
        place.write(lmhead_place { head, instance, epoch, operation, step, age_us: step << 8 });
        i32::from(number % 3) - 1
    }
}

unsafe extern "C" fn pending(user: *mut c_void, call: *mut lmhead_call) -> i32 {
    // SAFETY: what the library passes.
    let (port, call, channel) = unsafe { of(user, call) };
    let state = port.hub.state.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((_, _, who, text)) =
        state.notices.iter().find(|(of, step, ..)| *of == channel && *step <= call.step)
    else {
        return 0;
    };
    // SAFETY: as above.
    unsafe {
        mark(call, *who, LMHEAD_FAULT_ABORTED as i32, 0);
        set_text(call, text);
    }
    LMHEAD_FAULT_ABORTED as i32
}

unsafe extern "C" fn reset(user: *mut c_void, call: *mut lmhead_call) -> i32 {
    // SAFETY: what the library passes.
    let (port, call, channel) = unsafe { of(user, call) };
    if let Some((0..=3, number)) = port.trick() {
        return i32::from(number % 9) - 1;
    }
    let until = Instant::now() + Duration::from_micros(call.left_us.min(1_000_000));
    {
        let mut state = port.hub.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.messages.retain(|(of, ..), _| of.0 != channel.0 || of.1 != channel.1 || of.2 > channel.2);
        *state.resets.entry(channel).or_default() += 1;
        port.hub.changed.notify_all();
    }
    let all_came = |state: &mut State| (state.resets[&channel] >= port.n).then_some(());
    // SAFETY: as above.
    unsafe { port.wait(call, channel, until, (port.me + 1) % port.n, all_came) }.err().unwrap_or(0)
}
