//! Elements that are owned, or mapped from a file without a copy.

use memmap2::Mmap;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A read-only slice of `T`, owned or mapped.
pub struct Storage<T>(Inner<T>);

enum Inner<T> {
    Owned(Vec<T>),
    Mapped { map: Arc<Mmap>, bytes: Range<usize> },
}

impl<T: bytemuck::Pod> Storage<T> {
    /// The elements in `bytes` of `map`: without a copy where they are aligned for `T` on this little-endian
    /// machine, otherwise copied.
    ///
    /// # Panics
    /// When `bytes` is not within the map or not a whole number of elements.
    pub fn from_map(map: &Arc<Mmap>, bytes: Range<usize>) -> Self {
        match bytemuck::try_cast_slice::<u8, T>(&map[bytes.clone()]) {
            Ok(_) => Storage(Inner::Mapped { map: Arc::clone(map), bytes }),
            Err(_) => Storage(Inner::Owned(bytemuck::pod_collect_to_vec(&map[bytes]))),
        }
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

impl<T: bytemuck::Pod> Deref for Storage<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Inner::Owned(values) => values,
            // from_map made sure that this cast holds.
            Inner::Mapped { map, bytes } => bytemuck::cast_slice(&map[bytes.clone()]),
        }
    }
}

impl<T> fmt::Debug for Storage<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Owned(values) => write!(f, "Owned({} elements)", values.len()),
            Inner::Mapped { bytes, .. } => write!(f, "Mapped({} bytes)", bytes.len()),
        }
    }
}
