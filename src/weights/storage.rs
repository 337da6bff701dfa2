//! Storage of weights: owned, mapped from a file without a copy, or an engine's own.

use super::foreign::Release;
use crate::error::{Error, Result};
use bytemuck::Pod;
use memmap2::{Mmap, MmapMut};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// A read-only slice of `T`: owned, mapped, or an engine's own.
pub struct Storage<T>(Inner<T>);

enum Inner<T> {
    Owned(Vec<T>),
    Mapped {
        map: Arc<Mmap>,
        bytes: Range<usize>,
    },
    /// A copy made with [`Fresh`]: the first `bytes` bytes of `map`. (`map` has one byte at least, so `bytes`
    /// may be 0.)
    Copied {
        map: Mmap,
        bytes: usize,
    },
    Foreign {
        start: *const T,
        elements: usize,
        _release: Release,
    },
}

// SAFETY: nobody writes the elements; for foreign ones that is the promise of `Storage::foreign`'s caller.
unsafe impl<T: Send + Sync> Send for Storage<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Storage<T> {}

/// Zeroed memory for a copy of weights, in whole pages from the system; huge pages where it has them. Each
/// page is first touched by the thread that writes it. A step with few rows waits for reading W, which is
/// slower with pages of 4 KiB (`cargo bench --bench cpu_pages`; `benches/results/cpu/pages.json`).
pub(super) struct Fresh<T> {
    map: MmapMut,
    bytes: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Fresh<T> {
    /// `n` zeros.
    ///
    /// # Errors
    /// `Unsupported` where there is no memory for them.
    pub fn zeros(n: usize, what: &str) -> Result<Self> {
        let wanted = n as u128 * size_of::<T>() as u128;
        let map = usize::try_from(wanted).ok().and_then(|bytes| MmapMut::map_anon(bytes.max(1)).ok());
        let Some(map) = map else {
            return Err(Error::unsupported(
                what,
                format!("{wanted} bytes of memory"),
                "a refusal from the system",
                "share the head over more ranks, or quantise it",
            ));
        };
        // Only advice: if the system refuses, the pages are small.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Fresh { map, bytes: n * size_of::<T>(), elements: PhantomData })
    }

    /// Makes the memory read-only.
    ///
    /// # Errors
    /// `Unsupported` where the system refuses.
    pub fn finish(self, what: &str) -> Result<Storage<T>> {
        match self.map.make_read_only() {
            Ok(map) => Ok(Storage(Inner::Copied { map, bytes: self.bytes })),
            Err(problem) => Err(Error::unsupported(what, "memory that is read only", problem, "try again")),
        }
    }
}

impl<T: Pod> Deref for Fresh<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[..self.bytes])
    }
}

impl<T: Pod> DerefMut for Fresh<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[..self.bytes])
    }
}

/// Bytes copied at a time; only so many pages of the file are in memory beside the copy.
const COPY_BYTES: usize = 1 << 20;

/// The elements in `bytes` of `map`, whatever their alignment.
fn copy<T: Pod>(map: &Mmap, bytes: Range<usize>) -> Vec<T> {
    let mut values = Vec::with_capacity(bytes.len() / size_of::<T>());
    for start in bytes.clone().step_by(COPY_BYTES) {
        let part = start..bytes.end.min(start + COPY_BYTES);
        let elements = map[part.clone()].chunks_exact(size_of::<T>());
        values.extend(elements.map(bytemuck::pod_read_unaligned::<T>));
        forget(map, part);
    }
    values
}

/// The most that the system maps around a page that is read, on either side, with a margin: Linux maps 64
/// KiB.
const AROUND_BYTES: usize = 128 << 10;

/// Unmaps the pages of a file that have been read and are not needed again, since they count as memory of
/// this process. Reading them again brings them back from the file.
pub(super) fn forget(map: &Mmap, bytes: Range<usize>) {
    // Reading a page also maps pages around it, perhaps some that were unmapped before.
    let bytes = bytes.start.saturating_sub(AROUND_BYTES)..map.len().min(bytes.end + AROUND_BYTES);
    #[cfg(unix)]
    // SAFETY: the map is of a file and read-only, so its pages hold nothing that the file does not; readers
    // find the same bytes, now and later.
    let _ =
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
    #[cfg(not(unix))]
    let _ = (map, bytes);
}

impl<T: Pod> Storage<T> {
    /// The elements in `bytes` of `map` (little-endian): in place where they are aligned for `T`, otherwise
    /// copied.
    ///
    /// # Panics
    /// When `bytes` is not within the map or not a whole number of elements.
    pub fn from_map(map: &Arc<Mmap>, bytes: Range<usize>) -> Self {
        match bytemuck::try_cast_slice::<u8, T>(&map[bytes.clone()]) {
            Ok(_) => Storage(Inner::Mapped { map: Arc::clone(map), bytes }),
            Err(_) => Storage(Inner::Owned(copy(map, bytes))),
        }
    }

    /// Uses `elements` elements from `start` on in place. `release` is called when nobody uses them any more.
    ///
    /// # Errors
    /// `Shape` where the address is null or not aligned to an element; `release` has been called then.
    ///
    /// # Safety
    /// Until `release` is called, the elements must be valid and must not be written.
    pub unsafe fn foreign(
        start: *const T,
        elements: usize,
        release: impl FnOnce() + Send + Sync + 'static,
    ) -> Result<Self> {
        let release = Release::new(release);
        if elements > 0 && (start.is_null() || !start.is_aligned()) {
            let wanted = format!("an address that is a multiple of {}, not null", align_of::<T>());
            let fix = "align the weights to their elements";
            return Err(Error::shape("weights", wanted, format!("{start:p}"), fix));
        }
        Ok(Storage(Inner::Foreign { start, elements, _release: release }))
    }

    /// True where the elements are still in the file's mapping.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Inner::Mapped { .. })
    }
}

impl<T> From<Vec<T>> for Storage<T> {
    fn from(values: Vec<T>) -> Self {
        Storage(Inner::Owned(values))
    }
}

impl<T: Pod> Deref for Storage<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Inner::Owned(values) => values,
            // from_map has checked that this cast succeeds.
            Inner::Mapped { map, bytes } => bytemuck::cast_slice(&map[bytes.clone()]),
            // Pages are aligned for every element.
            Inner::Copied { map, bytes } => bytemuck::cast_slice(&map[..*bytes]),
            Inner::Foreign { elements: 0, .. } => &[],
            // SAFETY: valid by the promise of `foreign`'s caller; aligned, as `foreign` has checked.
            Inner::Foreign { start, elements, .. } => unsafe {
                std::slice::from_raw_parts(*start, *elements)
            },
        }
    }
}

impl<T> fmt::Debug for Storage<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Owned(values) => write!(f, "Owned({} elements)", values.len()),
            Inner::Mapped { bytes, .. } => write!(f, "Mapped({} bytes)", bytes.len()),
            Inner::Copied { bytes, .. } => write!(f, "Copied({bytes} bytes)"),
            Inner::Foreign { elements, .. } => write!(f, "Foreign({elements} elements)"),
        }
    }
}
