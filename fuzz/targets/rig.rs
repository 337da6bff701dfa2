//! What the targets share: fields from bytes, and memory of which no byte too much can be read or written.
#![allow(dead_code, reason = "each target uses a part of it")]

use lmhead_capi::sys::*;
use std::cell::Cell;
use std::ffi::CStr;
use std::ptr;

/// A struct of the header, of zeros.
pub fn zeroed<T: Copy>() -> T {
    // SAFETY: structs of the header: numbers and pointers.
    unsafe { std::mem::zeroed() }
}

/// What `NAME_init()` of the header does.
macro_rules! init {
    ($name:ident) => {{
        let mut value: $name = $crate::rig::zeroed();
        value.size = size_of::<$name>();
        value
    }};
}
pub(crate) use init;

/// `rows` rows of that many f32.
pub fn tensor(data: *const f32, rows: usize, columns: usize) -> lmhead_tensor {
    lmhead_tensor {
        data: data.cast_mut().cast(),
        device_type: LMHEAD_HOST as i32,
        device_id: 0,
        dtype: LMHEAD_F32,
        reserved: 0,
        rows: rows as i64,
        columns: columns as i64,
        stride: 0,
    }
}

/// Any status of the header but INTERNAL: a panic in the library is a finding.
#[track_caller]
pub fn known(status: lmhead_status) -> lmhead_status {
    if !(0..LMHEAD_ERROR_INTERNAL as i32).contains(&status) {
        // SAFETY: a string of the library's.
        let said = unsafe { CStr::from_ptr(lmhead_last_error()) };
        panic!("status {status}: {said:?}");
    }
    status
}

/// Takes fields from the input; zeros once it has ended.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let n = N.min(self.0.len());
        bytes[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        bytes
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    /// Whether the next byte is below `of256`.
    pub fn chance(&mut self, of256: u8) -> bool {
        self.byte() < of256
    }

    /// Mostly small, sometimes any.
    pub fn number(&mut self) -> i64 {
        match self.byte() {
            byte @ 0..=199 => i64::from(byte % 12),
            200..=219 => -1,
            220..=229 => i64::MAX,
            _ => i64::from_le_bytes(self.bytes()),
        }
    }

    pub fn word(&mut self) -> u32 {
        match self.byte() {
            byte @ 0..=239 => u32::from(byte % 8),
            _ => u32::from_le_bytes(self.bytes()),
        }
    }

    pub fn dtype(&mut self) -> u32 {
        [LMHEAD_F32, LMHEAD_F16, LMHEAD_BF16, LMHEAD_I8, LMHEAD_F32, LMHEAD_F32, 0, 5]
            [usize::from(self.byte() % 8)]
    }
}

/// What fills memory before the library gets it, and what lies before and behind it.
pub const FILL: u8 = 0xa5;
const PAGE: usize = 4096;
/// Bytes that are looked at before each piece.
const BEFORE: usize = 64;

/// Pieces of memory that end at a page which nobody may touch: reading or writing behind one ends the
/// program. What is written before one is found by [`Guarded::check`].
pub struct Guarded {
    base: *mut u8,
    /// Bytes of a region without its last page.
    room: usize,
    regions: usize,
    taken: Cell<usize>,
    pieces: Cell<[(usize, usize); Guarded::MOST]>,
}

impl Guarded {
    const MOST: usize = 64;

    /// Memory for as many pieces of at most `room` bytes.
    pub fn new(regions: usize, room: usize) -> Self {
        assert!(regions <= Self::MOST && room.is_multiple_of(PAGE));
        let (flags, size) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, regions * (room + PAGE));
        // SAFETY: fresh memory, of which the last page of each region is closed.
        let base = unsafe {
            let base = libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            for region in 0..regions {
                let guard = base.byte_add(region * (room + PAGE) + room);
                assert_eq!(libc::mprotect(guard, PAGE, libc::PROT_NONE), 0);
            }
            base.cast::<u8>()
        };
        Guarded { base, room, regions, taken: Cell::new(0), pieces: Cell::new([(0, 0); Self::MOST]) }
    }

    /// So many bytes of [`FILL`], which end as near to the closed page as `align` allows. Null where they are
    /// too many, or too many pieces were taken.
    pub fn take(&self, bytes: i128, align: usize) -> *mut u8 {
        let (at, most) = (self.taken.get(), (self.room - BEFORE - align) as i128);
        if at == self.regions || !(0..=most).contains(&bytes) {
            return ptr::null_mut();
        }
        let bytes = bytes as usize;
        let offset = (self.room - bytes) / align * align;
        let start = at * (self.room + PAGE) + offset;
        self.taken.set(at + 1);
        let mut pieces = self.pieces.get();
        pieces[at] = (start, bytes);
        self.pieces.set(pieces);
        // SAFETY: within the region.
        unsafe {
            self.base.add(start - BEFORE).write_bytes(FILL, BEFORE + self.room - offset);
            self.base.add(start)
        }
    }

    /// `value` as the last thing before the closed page.
    pub fn put<T: Copy>(&self, value: T) -> *mut T {
        let place = self.take(size_of::<T>() as i128, align_of::<T>()).cast::<T>();
        if !place.is_null() {
            // SAFETY: as large as that.
            unsafe { place.write(value) };
        }
        place
    }

    /// Whether nothing was written into the pieces from number `first` to before `end`.
    pub fn is_untouched(&self, first: usize, end: usize) -> bool {
        // SAFETY: the pieces' own bytes.
        let bytes =
            |&(start, n): &(usize, usize)| unsafe { std::slice::from_raw_parts(self.base.add(start), n) };
        self.pieces.get()[first..end].iter().map(bytes).all(|piece| piece.iter().all(|b| *b == FILL))
    }

    /// How many pieces were taken.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }

    /// Refuses what was written around the pieces, and takes all of them back.
    pub fn check(&self) {
        for (at, &(start, n)) in self.pieces.get()[..self.taken.get()].iter().enumerate() {
            let end = at * (self.room + PAGE) + self.room;
            // SAFETY: within the region.
            let around = |from: usize, to: usize| unsafe {
                std::slice::from_raw_parts(self.base.add(from), to - from)
            };
            let is_whole = |bytes: &[u8]| bytes.iter().all(|byte| *byte == FILL);
            assert!(
                is_whole(around(start - BEFORE, start)),
                "bytes were written before a piece of {n} bytes"
            );
            assert!(is_whole(around(start + n, end)), "bytes were written behind a piece of {n} bytes");
        }
        self.taken.set(0);
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped above, and nobody uses it any more.
        unsafe { libc::munmap(self.base.cast(), self.regions * (self.room + PAGE)) };
    }
}
