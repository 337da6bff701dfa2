//! Handles are numbers, not addresses: so a handle that was freed, is of another kind, or was made before a
//! fork can be told from a valid one.
//!
//! Numbers are never reused. A slot is found without a lock, and its owner is checked before its lock is
//! taken: in a forked process the lock may be held by a thread that does not exist there.

use crate::backend::Backend;
use crate::boundary::{Outcome, argument};
use crate::exchange::Endpoint;
use crate::head::Head;
use crate::weights::Weights;
use lmhead::Error;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The base of all handles. No program has such addresses, since the high bits are not all equal.
const MARK: usize = 0x6c6d_0000_0000_0000;

const CHUNK: usize = 256;
const CHUNKS: usize = 4096;

/// Anything that a handle stands for.
enum Thing {
    Backend(Arc<Backend>),
    Weights(Arc<Weights>),
    Endpoint(Arc<Endpoint>),
    Head(Arc<Head>),
}

impl Thing {
    fn kind(&self) -> &'static str {
        match self {
            Thing::Backend(_) => Backend::NAME,
            Thing::Weights(_) => Weights::NAME,
            Thing::Endpoint(_) => Endpoint::NAME,
            Thing::Head(_) => Head::NAME,
        }
    }
}

/// A kind of things that handles stand for.
pub trait HandleKind: Sized {
    const NAME: &'static str;
    /// The header's name of the handle.
    type Handle;
    #[allow(private_interfaces, reason = "implemented here alone")]
    fn of(thing: &Thing) -> Option<&Arc<Self>>;
    #[allow(private_interfaces, reason = "as above")]
    fn thing(this: Arc<Self>) -> Thing;
}

macro_rules! kind {
    ($kind:ident, $name:literal, $handle:ident) => {
        impl HandleKind for $kind {
            const NAME: &'static str = $name;
            type Handle = crate::sys::$handle;
            #[allow(private_interfaces, reason = "as in the trait")]
            fn of(thing: &Thing) -> Option<&Arc<Self>> {
                if let Thing::$kind(this) = thing { Some(this) } else { None }
            }
            #[allow(private_interfaces, reason = "as in the trait")]
            fn thing(this: Arc<Self>) -> Thing {
                Thing::$kind(this)
            }
        }
    };
}

kind!(Backend, "backend", lmhead_backend);
kind!(Weights, "weights", lmhead_weights);
kind!(Endpoint, "exchange", lmhead_exchange);
kind!(Head, "head", lmhead_head);

struct Slot {
    /// The process that made the thing; 0 while there is none yet.
    owner: AtomicU32,
    /// `None` after the thing was freed.
    thing: Mutex<Option<Thing>>,
}

static NEXT: AtomicUsize = AtomicUsize::new(0);
static SLOTS: [AtomicPtr<[Slot; CHUNK]>; CHUNKS] = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];

/// The slot with this number; `None` where its chunk does not exist yet.
fn slot(number: usize) -> Option<&'static Slot> {
    let chunk = SLOTS.get(number / CHUNK)?.load(Ordering::Acquire);
    // SAFETY: null, or a chunk that is never freed.
    unsafe { chunk.as_ref() }.map(|chunk| &chunk[number % CHUNK])
}

fn make_chunk(at: usize) {
    let new = || Slot { owner: AtomicU32::new(0), thing: Mutex::new(None) };
    let chunk = Box::into_raw(Box::new([(); CHUNK].map(|()| new())));
    if SLOTS[at].compare_exchange(ptr::null_mut(), chunk, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: made above, and nobody else has seen it.
        drop(unsafe { Box::from_raw(chunk) });
    }
}

/// Keeps `thing` and returns its handle.
pub fn keep<K: HandleKind>(thing: K) -> Outcome<*mut K::Handle> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    if number >= CHUNK * CHUNKS {
        let got = "one more";
        let fix = "keep handles from step to step, as they are meant to be";
        return Err(Error::unsupported(
            "handles",
            format!("at most {} in a process", CHUNK * CHUNKS),
            got,
            fix,
        )
        .into());
    }
    if SLOTS[number / CHUNK].load(Ordering::Acquire).is_null() {
        make_chunk(number / CHUNK);
    }
    let slot = slot(number).expect("made above");
    *slot.thing.lock().unwrap_or_else(PoisonError::into_inner) = Some(K::thing(Arc::new(thing)));
    slot.owner.store(std::process::id(), Ordering::Release);
    Ok(ptr::without_provenance_mut(MARK + number))
}

/// The slot of a handle; refuses handles that this process has not made.
fn owned(what: &str, handle: *const impl fmt::Debug) -> Outcome<&'static Slot> {
    let fix = "pass what this library has made, before it is freed";
    if handle.is_null() {
        return Err(argument(what, "a handle", "NULL", fix));
    }
    let known = handle.addr().checked_sub(MARK).and_then(slot);
    let owner = known.map_or(0, |slot| slot.owner.load(Ordering::Acquire));
    let Some(slot) = known.filter(|_| owner != 0) else {
        return Err(argument(what, "a handle", format!("{handle:p}, which is none"), fix));
    };
    let here = std::process::id();
    if owner != here {
        let (wanted, got) = (
            format!("a handle that process {here} has made"),
            format!("one of process {owner}, from which it was forked"),
        );
        let fix = "fork first and open backends in the child, or start the child with exec (Python's \
                   multiprocessing: spawn)";
        return Err(argument(what, wanted, got, fix));
    }
    Ok(slot)
}

fn wrong(what: &str, name: &str, found: Option<&Thing>) -> crate::boundary::Failure {
    let got = found.map_or("one that was freed".into(), |thing| format!("a handle of kind {}", thing.kind()));
    argument(
        what,
        format!("a handle of kind {name}"),
        got,
        "pass what this library has made, before it is freed",
    )
}

/// The thing that a handle stands for.
pub fn get<K: HandleKind>(what: &str, handle: *const K::Handle) -> Outcome<Arc<K>>
where
    K::Handle: fmt::Debug,
{
    let slot = owned(what, handle)?;
    let thing = slot.thing.lock().unwrap_or_else(PoisonError::into_inner);
    match thing.as_ref().and_then(K::of) {
        Some(this) => Ok(Arc::clone(this)),
        None => Err(wrong(what, K::NAME, thing.as_ref())),
    }
}

/// Frees the thing that a handle stands for. Null is ignored.
pub fn free<K: HandleKind>(what: &str, handle: *mut K::Handle) -> Outcome
where
    K::Handle: fmt::Debug,
{
    if handle.is_null() {
        return Ok(());
    }
    let slot = owned(what, handle)?;
    let mut thing = slot.thing.lock().unwrap_or_else(PoisonError::into_inner);
    if thing.as_ref().and_then(K::of).is_none() {
        return Err(wrong(what, K::NAME, thing.as_ref()));
    }
    let freed = thing.take();
    // Unlocks the slot first: dropping the thing may take long, and may call back.
    drop(thing);
    drop(freed);
    Ok(())
}
