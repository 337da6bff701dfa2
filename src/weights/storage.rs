//! Elements that are owned, mapped from a file without a copy, or an engine's own.

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
    /// A copy: [`Fresh`], finished. The first `bytes` of the map, which is never empty.
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

// SAFETY: elements that nobody writes; foreign ones by the promise of who gave them.
unsafe impl<T: Send + Sync> Send for Storage<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Storage<T> {}

/// Memory for a copy of weights, zeros at first: from the system in whole pages, which the threads that write them touch first, and in
/// huge ones where the system has them. Reading W is what a step of few rows waits for, and with pages of 4 KiB it is slower
/// (`cargo bench --bench cpu_pages`; `benches/results/cpu/pages.json`).
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
        // A wish: without it the pages are small.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Fresh { map, bytes: n * size_of::<T>(), elements: PhantomData })
    }

    /// No more writing.
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

/// Bytes of a file's pages that are held beside their copy.
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

/// What a read of one page maps with it at most, on either side: Linux takes 64 KiB.
const AROUND_BYTES: usize = 128 << 10;

/// Lets go of the pages of a file that have been read and are not needed again: they count as this process's memory until then. What is
/// read once more comes back from the file.
pub(super) fn forget(map: &Mmap, bytes: Range<usize>) {
    // Reading one page brings some around it along, of parts that have been forgotten already too.
    let bytes = bytes.start.saturating_sub(AROUND_BYTES)..map.len().min(bytes.end + AROUND_BYTES);
    #[cfg(unix)]
    // SAFETY: the map is of a file and read only, so its pages hold nothing that the file does not; whoever reads them, now or
    // later, finds the same bytes.
    let _ =
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
    #[cfg(not(unix))]
    let _ = (map, bytes);
}

impl<T: Pod> Storage<T> {
    /// The elements in `bytes` of `map`: without a copy where they are aligned for `T` on this little-endian
    /// machine, otherwise copied.
    ///
    /// # Panics
    /// When `bytes` is not within the map or not a whole number of elements.
    pub fn from_map(map: &Arc<Mmap>, bytes: Range<usize>) -> Self {
        match bytemuck::try_cast_slice::<u8, T>(&map[bytes.clone()]) {
            Ok(_) => Storage(Inner::Mapped { map: Arc::clone(map), bytes }),
            Err(_) => Storage(Inner::Owned(copy(map, bytes))),
        }
    }

    /// `elements` elements from `start` on, used in place. `release` is called when nobody uses them any more.
    ///
    /// # Errors
    /// `Shape` where the address is null or not aligned to an element; `release` has been called then.
    ///
    /// # Safety
    /// Until `release` is called they are there, and nobody writes them.
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
            // from_map made sure that this cast holds.
            Inner::Mapped { map, bytes } => bytemuck::cast_slice(&map[bytes.clone()]),
            // Pages are aligned for every element.
            Inner::Copied { map, bytes } => bytemuck::cast_slice(&map[..*bytes]),
            Inner::Foreign { elements: 0, .. } => &[],
            // SAFETY: the promise of who gave them; aligned, as was checked.
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
