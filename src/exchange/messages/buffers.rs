//! Memory for frames, kept from one call to the next: once sizes are known, none is allocated.

use std::sync::Arc;

/// The smallest buffer.
const LEAST: usize = 256;

/// Up to this size buffers are made several at a time: how many are in use at once depends on how fast the
/// peers are, and is not seen in the first calls. Memory that no frame has reached is not touched.
const SEVERAL: usize = 64 << 10;

/// How many buffers of a class are made where there are `made` of them, and all are in use.
fn more(class: usize, made: usize) -> usize {
    if LEAST << class <= SEVERAL { made.max(4) } else { 2 }
}

/// Which buffers hold frames of `len` bytes: those of `LEAST << class` bytes.
fn class_of(len: usize) -> usize {
    (len.max(LEAST).next_power_of_two() / LEAST).trailing_zeros() as usize
}

/// Frames on their way to peers. A link holds a frame until it has gone out; then its memory is free again.
#[derive(Debug, Default)]
pub(super) struct SendBuffers {
    /// By size.
    rings: Vec<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    frames: Vec<Arc<Vec<u8>>>,
    /// Where the oldest frame lies: the first that may be free.
    next: usize,
}

impl SendBuffers {
    /// A frame of `len` bytes, written by `write` to memory that nobody else holds.
    pub(super) fn fill(&mut self, len: usize, write: impl FnOnce(&mut Vec<u8>)) -> Arc<Vec<u8>> {
        let class = class_of(len);
        if self.rings.len() <= class {
            self.rings.resize_with(class + 1, Ring::default);
        }
        let Ring { frames, next } = &mut self.rings[class];
        let count = frames.len();
        let free = (0..count).map(|i| (*next + i) % count).find(|&i| Arc::get_mut(&mut frames[i]).is_some());
        let at = free.unwrap_or_else(|| {
            let new = || Arc::new(Vec::with_capacity(LEAST << class));
            frames.extend((0..more(class, count)).map(|_| new()));
            count
        });
        *next = at + 1;
        if let Some(bytes) = Arc::get_mut(&mut frames[at]) {
            write(bytes);
        }
        Arc::clone(&frames[at])
    }

    /// Forgets all buffers. Those of frames on their way are freed when the frames are out.
    pub(super) fn release(&mut self) {
        self.rings.clear();
    }
}

/// Buffers for frames that come, for a [`Link`](super::Link): taken when a frame comes, given back when it
/// has been read.
#[derive(Debug, Default)]
pub struct ReceiveBuffers {
    /// By size.
    classes: Vec<Class>,
}

/// Buffers of one size.
#[derive(Debug, Default)]
struct Class {
    free: Vec<Vec<u8>>,
    /// How many there are, those in use included.
    made: usize,
}

impl ReceiveBuffers {
    /// A buffer of `len` bytes of undefined content; `None` where there is no memory for it.
    pub fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let at = class_of(len);
        if self.classes.len() <= at {
            self.classes.resize_with(at + 1, Class::default);
        }
        let Class { free, made } = &mut self.classes[at];
        if free.is_empty() {
            let new = more(at, *made);
            free.reserve(*made + new);
            for _ in 0..new {
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(LEAST << at).ok()?;
                free.push(bytes);
                *made += 1;
            }
        }
        let mut bytes = free.pop()?;
        bytes.resize(len, 0);
        Some(bytes)
    }

    /// Takes back a buffer that has been read.
    pub fn give_back(&mut self, bytes: Vec<u8>) {
        let at = class_of(bytes.capacity());
        // Buffers of another origin have no known size, and those from before a release are not wanted back.
        let own = self.classes.get_mut(at).filter(|class| class.free.len() < class.made);
        if let Some(class) = own.filter(|_| bytes.capacity() == LEAST << at) {
            class.free.push(bytes);
        }
    }

    /// Forgets all buffers.
    pub fn release(&mut self) {
        self.classes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_frame_on_its_way_stays_as_it_is_and_a_free_buffer_is_taken_again() {
        let mut buffers = SendBuffers::default();
        for len in [64, 5000] {
            let mut fill = |byte: u8| buffers.fill(len, |out| (out.clear(), out.resize(len, byte)).1);
            let held = fill(1);
            let address = held.as_ptr();
            let others: BTreeSet<_> = (2..100u8).map(|byte| fill(byte).as_ptr()).collect();
            assert!(others.len() < 4 && !others.contains(&address), "{others:?}");
            assert_eq!(*held, vec![1; len]);
            drop(held);
            assert!((0..4).any(|_| fill(3).as_ptr() == address));
            // There are as many as are held at once.
            let held: Vec<_> = (0..50).map(&mut fill).collect();
            assert!((0..50).zip(&held).all(|(byte, frame)| **frame == vec![byte; len]));
        }
        let held = buffers.fill(64, |out| out.push(7));
        buffers.release();
        assert_eq!((Arc::strong_count(&held), held.last()), (1, Some(&7)));
    }

    #[test]
    fn a_received_buffer_serves_all_frames_of_its_size() {
        let mut buffers = ReceiveBuffers::default();
        let first = buffers.take(300).unwrap();
        let address = first.as_ptr();
        buffers.give_back(first);
        for len in [257, 512, 300] {
            let bytes = buffers.take(len).unwrap();
            assert_eq!((bytes.len(), bytes.as_ptr()), (len, address));
            buffers.give_back(bytes);
        }
        let larger = buffers.take(513).unwrap();
        assert_ne!(larger.as_ptr(), address);
        let free =
            |buffers: &ReceiveBuffers| buffers.classes.iter().map(|class| class.free.len()).sum::<usize>();
        let before = free(&buffers);
        buffers.give_back(Vec::with_capacity(300));
        assert_eq!(free(&buffers), before, "a foreign buffer is not kept");
        buffers.release();
        buffers.give_back(larger);
        assert_eq!(free(&buffers), 0, "nor one of before the release");
        assert_eq!(buffers.take(usize::MAX / 4), None);
    }

    /// Buffers are taken and given back in any order: no more are made than were in use at once, except for
    /// those that are made together with them.
    #[test]
    fn buffers_in_use_are_distinct_and_their_number_settles() {
        let mut buffers = ReceiveBuffers::default();
        let mut used: Vec<Vec<u8>> = Vec::new();
        for round in 0..1000usize {
            match round * 7 % 5 {
                0..3 if used.len() < 20 => used.push(buffers.take(1000).unwrap()),
                _ if !used.is_empty() => buffers.give_back(used.swap_remove(round * 31 % used.len())),
                _ => {}
            }
            let addresses: BTreeSet<_> = used.iter().map(|bytes| bytes.as_ptr()).collect();
            assert_eq!(addresses.len(), used.len());
        }
        assert!(buffers.classes.iter().map(|class| class.made).sum::<usize>() <= 40);
    }
}
