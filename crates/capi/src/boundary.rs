//! The boundary of every call from C: a panic becomes a status, an error is kept for `lmhead_last_error`.

use crate::sys::{self, lmhead_status};
use lmhead::Error;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

/// How a call fails.
#[derive(Debug)]
pub enum Failure {
    Library(Error),
    /// Arguments that no call could take. The text says what was wanted, what came, what to do.
    Argument(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Library(error)
    }
}

pub type Outcome<T = ()> = Result<T, Failure>;

/// A failure because of an argument; `what` is the parameter or the field.
pub fn argument(
    what: &str,
    wanted: impl std::fmt::Display,
    got: impl std::fmt::Display,
    fix: &str,
) -> Failure {
    Failure::Argument(format!("{what}: wanted {wanted}, got {got}; {fix}"))
}

#[derive(Default)]
struct Last {
    /// Ends in a zero byte.
    text: Vec<u8>,
    ranks: Vec<i64>,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
    /// Whether this thread is in a call: its panics then become a status and are not printed.
    static IN_CALL: Cell<bool> = const { Cell::new(false) };
    /// The message and place of this thread's last panic in a call.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the body of a function of the interface.
pub fn call(body: impl FnOnce() -> Outcome) -> lmhead_status {
    silence_own_panics();
    // Calls may be nested: a callback of the engine may have made this one.
    let outer = IN_CALL.replace(true);
    let done = catch_unwind(AssertUnwindSafe(body));
    IN_CALL.set(outer);
    match done {
        Ok(Ok(())) => sys::LMHEAD_OK as lmhead_status,
        Ok(Err(Failure::Library(error))) => {
            remember(&error.to_string(), &error.ranks());
            error.code()
        }
        Ok(Err(Failure::Argument(text))) => {
            remember(&text, &[]);
            sys::LMHEAD_ERROR_ARGUMENT as lmhead_status
        }
        Err(panic) => {
            let said = PANIC.take();
            let said = if said.is_empty() { words_of(&*panic).to_string() } else { said };
            remember(&format!("a bug of this library: {said}; please report it with this sentence"), &[]);
            sys::LMHEAD_ERROR_INTERNAL as lmhead_status
        }
    }
}

/// `call` for functions without a status: a failure is logged.
pub fn call_silently(what: &str, body: impl FnOnce() -> Outcome) {
    if call(body) != sys::LMHEAD_OK as lmhead_status {
        LAST.with_borrow(|last| {
            let text = String::from_utf8_lossy(last.text.strip_suffix(&[0]).unwrap_or_default());
            crate::about::log(1, &format!("{what}: {text}"));
        });
    }
}

/// Installs a panic hook, once: panics in a call are kept and not printed, all others go to the hook that was
/// there before.
fn silence_own_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !IN_CALL.get() {
                return before(info);
            }
            let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
            let said = format!("{}{}", words_of(info.payload()), place.unwrap_or_default());
            PANIC.with_borrow_mut(|panic| *panic = said);
        }));
    });
}

fn words_of(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "a panic without words",
    }
}

fn remember(text: &str, ranks: &[usize]) {
    LAST.with_borrow_mut(|last| {
        last.text.clear();
        // A zero byte inside would end the C string early.
        last.text.extend(text.bytes().filter(|byte| *byte != 0).chain([0]));
        last.ranks.clear();
        last.ranks.extend(ranks.iter().map(|rank| *rank as i64));
    });
}

/// The last error of this thread. Valid until the thread's next error.
pub fn last_error() -> *const c_char {
    LAST.with_borrow(|last| if last.text.is_empty() { c"".as_ptr() } else { last.text.as_ptr().cast() })
}

/// Passes the ranks that the last error names to `look`.
pub fn with_last_ranks<T>(look: impl FnOnce(&[i64]) -> T) -> T {
    LAST.with_borrow(|last| look(&last.ranks))
}

/// A C string as `&str`; `None` for null.
///
/// # Safety
/// `string` must be null, or end in a zero byte and live for `'a`.
pub unsafe fn text<'a>(what: &str, string: *const c_char) -> Outcome<Option<&'a str>> {
    if string.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(string) };
    match bytes.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(argument(what, "UTF-8", format!("{bytes:?}"), "convert it")),
    }
}

/// A reference to what C points to; refuses null and misaligned pointers.
///
/// # Safety
/// Unless `pointer` is null or misaligned, it must point to a `T` that lives and does not change for `'a`.
pub unsafe fn given<'a, T>(what: &str, pointer: *const T) -> Outcome<&'a T> {
    // SAFETY: the caller's promise; `checked` refuses null and misaligned pointers.
    checked(what, pointer).map(|pointer| unsafe { &*pointer })
}

/// Checks a pointer to a place for an answer: neither null nor misaligned.
pub fn place<T>(what: &str, pointer: *mut T) -> Outcome<*mut T> {
    checked(what, pointer.cast_const()).map(<*const T>::cast_mut)
}

fn checked<T>(what: &str, pointer: *const T) -> Outcome<*const T> {
    if pointer.is_null() {
        return Err(argument(what, "a pointer", "NULL", "pass one"));
    }
    if !pointer.is_aligned() {
        let wanted = format!("an address that is a multiple of {}", align_of::<T>());
        return Err(argument(what, wanted, format!("{pointer:p}"), "align it"));
    }
    Ok(pointer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> String {
        // SAFETY: a string of this thread, which is copied at once.
        unsafe { CStr::from_ptr(last_error()) }.to_str().expect("UTF-8").into()
    }

    #[test]
    fn a_panic_is_a_status_with_its_words_and_its_place() {
        let number = call(|| panic!("the {} is gone", "shard"));
        assert_eq!(number, sys::LMHEAD_ERROR_INTERNAL as lmhead_status);
        let text = said();
        assert!(
            text.starts_with("a bug of this library: the shard is gone (") && text.contains("boundary.rs:")
        );
        // A call that succeeds keeps the last error as it is.
        assert_eq!(call(|| Ok(())), 0);
        assert_eq!(said(), text);
        let number = call(|| Err(argument("k", "1", 0, "ask for one")));
        assert_eq!((number, said().as_str()), (15, "k: wanted 1, got 0; ask for one"));
    }
}
