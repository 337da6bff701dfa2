//! What a call sends, and the memory that it is sent in.
//!
//! A message is copied into memory of its sender, who keeps it for the next ones: once the sizes are known, a
//! call allocates nothing. A sender comes to its second call after a message only when all receivers of that
//! message have it, so a few buffers are enough.

use crate::exchange::Call;
use std::sync::Arc;

/// Messages of up to so many bytes are copied under the channel's lock.
const SMALL: usize = 512;

/// Small messages that a log may have before its sender looks which of them have been read.
pub(super) const KEPT: usize = 8;

/// What one call of one member sends.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) call: Call,
    /// Whom it is for, ascending; empty where it is for everyone.
    to: Vec<usize>,
    bytes: Vec<u8>,
    /// Where each member's piece ends; empty where all are sent the same.
    ends: Vec<usize>,
    is_small: bool,
}

/// What a call sends, in the caller's memory.
#[derive(Clone, Copy)]
pub(super) enum Outgoing<'a> {
    /// The same bytes to some members, ascending.
    Same { to: &'a [usize], bytes: &'a [u8] },
    /// To each member its piece.
    Pieces(&'a [&'a [u8]]),
}

impl Outgoing<'_> {
    fn bytes(&self) -> usize {
        match self {
            Outgoing::Same { bytes, .. } => bytes.len(),
            Outgoing::Pieces(pieces) => pieces.iter().map(|piece| piece.len()).sum(),
        }
    }

    /// The room that it needs in a group of `size` members.
    fn room(&self, size: usize) -> PostCapacity {
        let (to, ends) = match self {
            Outgoing::Same { to, .. } if to.len() == size => (0, 0),
            Outgoing::Same { to, .. } => (to.len(), 0),
            Outgoing::Pieces(pieces) => (0, pieces.len()),
        };
        PostCapacity { bytes: self.bytes(), to, ends }
    }

    /// Whether copying it takes no longer than counting its readers.
    fn is_small(&self) -> bool {
        let limit = match self {
            Outgoing::Same { .. } => SMALL,
            Outgoing::Pieces(pieces) => SMALL.max(pieces.len() * 64),
        };
        self.bytes() <= limit
    }
}

/// Lengths of a post's lists.
#[derive(Debug, Clone, Copy, Default)]
struct PostCapacity {
    bytes: usize,
    to: usize,
    ends: usize,
}

impl PostCapacity {
    fn holds(&self, other: &PostCapacity) -> bool {
        self.bytes >= other.bytes && self.to >= other.to && self.ends >= other.ends
    }

    /// Room for either. Bytes grow in powers of two, so that slowly growing messages seldom need more.
    fn grown_for(&self, other: &PostCapacity) -> PostCapacity {
        PostCapacity {
            bytes: self.bytes.max(other.bytes.next_power_of_two()),
            to: self.to.max(other.to),
            ends: self.ends.max(other.ends),
        }
    }
}

impl Post {
    fn with_room(call: Call, room: PostCapacity) -> Self {
        Post {
            call,
            to: Vec::with_capacity(room.to),
            bytes: Vec::with_capacity(room.bytes),
            ends: Vec::with_capacity(room.ends),
            is_small: true,
        }
    }

    /// Becomes the message `outgoing` of `call` in a group of `size` members.
    fn fill(&mut self, call: Call, outgoing: Outgoing<'_>, size: usize) {
        let Post { to, bytes, ends, .. } = self;
        to.clear();
        bytes.clear();
        ends.clear();
        match outgoing {
            Outgoing::Same { to: members, bytes: same } => {
                if members.len() != size {
                    to.extend_from_slice(members);
                }
                bytes.extend_from_slice(same);
            }
            Outgoing::Pieces(pieces) => {
                for piece in pieces {
                    bytes.extend_from_slice(piece);
                    ends.push(bytes.len());
                }
            }
        }
        (self.call, self.is_small) = (call, outgoing.is_small());
    }

    pub(super) fn is_small(&self) -> bool {
        self.is_small
    }

    pub(super) fn is_for(&self, member: usize) -> bool {
        self.to.is_empty() || self.to.binary_search(&member).is_ok()
    }

    /// Members that it is for; `None` where it is for everyone.
    pub(super) fn members(&self) -> Option<&[usize]> {
        (!self.to.is_empty()).then_some(&self.to[..])
    }

    /// The bytes for `member`.
    pub(super) fn piece(&self, member: usize) -> &[u8] {
        if self.ends.is_empty() {
            return &self.bytes;
        }
        let start = member.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[member]]
    }
}

/// A sender's buffers for its messages in one channel.
#[derive(Debug)]
pub(super) struct SendBuffers {
    small: Ring,
    large: Ring,
}

impl Default for SendBuffers {
    fn default() -> Self {
        // Small messages stay in the log until KEPT of them are there and the oldest ones are read. Of large
        // ones only those that somebody still reads: the last one and, for a moment, the one before it. A
        // third is for a sender that goes on within a part of the group meanwhile.
        SendBuffers { small: Ring::new(2 * KEPT), large: Ring::new(3) }
    }
}

impl SendBuffers {
    /// A message, copied to a buffer that nobody reads any more.
    pub(super) fn post(&mut self, call: Call, outgoing: Outgoing<'_>, size: usize) -> Arc<Post> {
        let ring = if outgoing.is_small() { &mut self.small } else { &mut self.large };
        ring.post(call, outgoing, size)
    }

    /// Forgets the large buffers; those that are being read are freed by their readers.
    pub(super) fn release_large(&mut self) {
        self.large = Ring::new(self.large.count);
    }
}

/// Buffers of one size. Memory that no message has reached is not touched, so the system need not provide it.
#[derive(Debug)]
struct Ring {
    /// How many there are at least, once there are any.
    count: usize,
    posts: Vec<Arc<Post>>,
    /// What each has room for.
    room: PostCapacity,
}

impl Ring {
    fn new(count: usize) -> Self {
        Ring { count, posts: Vec::new(), room: PostCapacity::default() }
    }

    fn post(&mut self, call: Call, outgoing: Outgoing<'_>, size: usize) -> Arc<Post> {
        let room = outgoing.room(size);
        if self.posts.is_empty() || !self.room.holds(&room) {
            // All of them at once: which one comes next depends on how fast the receivers are.
            self.room = self.room.grown_for(&room);
            self.posts.clear();
            self.posts.extend((0..self.count).map(|_| Arc::new(Post::with_room(call, self.room))));
        }
        let free = self.posts.iter_mut().position(|post| Arc::get_mut(post).is_some());
        let at = free.unwrap_or_else(|| {
            self.posts.push(Arc::new(Post::with_room(call, self.room)));
            self.posts.len() - 1
        });
        let post = &mut self.posts[at];
        Arc::get_mut(post).expect("a buffer that nobody else has").fill(call, outgoing, size);
        Arc::clone(post)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Operation;
    use std::time::Instant;

    fn call() -> Call {
        let now = Instant::now();
        let operation = Operation::GatherRows;
        let (began, deadline) = (now, now);
        Call { head: 1, instance: 0, epoch: 0, step: 0, operation, terms: 0, began, deadline }
    }

    fn same<'a>(bytes: &'a [u8], to: &'a [usize]) -> Outgoing<'a> {
        Outgoing::Same { to, bytes }
    }

    #[test]
    fn a_buffer_that_is_read_stays_as_it_is_and_a_free_one_is_taken_again() {
        let mut buffers = SendBuffers::default();
        for len in [4, 4000] {
            let read = buffers.post(call(), same(&vec![1; len], &[0, 1]), 2);
            let (first, second): (*const Post, _) = (&*read, vec![2; len]);
            for _ in 0..100 {
                let next = buffers.post(call(), same(&second, &[0, 1]), 2);
                assert_ne!(&raw const *next, first);
                assert_eq!(next.piece(0), second);
            }
            assert_eq!(read.piece(1), vec![1; len]);
            drop(read);
            assert_eq!(&raw const *buffers.post(call(), same(&second, &[0, 1]), 2), first);
        }
    }

    #[test]
    fn more_readers_than_buffers_get_more_buffers() {
        let mut buffers = SendBuffers::default();
        let posts: Vec<_> =
            (0..50u8).map(|byte| buffers.post(call(), same(&[byte; 4000], &[0, 1]), 2)).collect();
        for (byte, post) in (0..50u8).zip(&posts) {
            assert_eq!(post.piece(0), [byte; 4000]);
        }
    }

    #[test]
    fn a_buffer_says_whom_each_of_its_messages_is_for() {
        let mut buffers = SendBuffers::default();
        let some = buffers.post(call(), same(&[1], &[0, 2]), 3);
        assert_eq!((some.members(), some.is_for(1), some.is_for(2)), (Some(&[0, 2][..]), false, true));
        drop(some);
        let pieces = buffers.post(call(), Outgoing::Pieces(&[&[1], &[], &[2, 3]]), 3);
        assert_eq!((pieces.members(), pieces.is_for(1)), (None, true));
        assert_eq!([pieces.piece(0), pieces.piece(1), pieces.piece(2)], [&[1][..], &[], &[2, 3]]);
        drop(pieces);
        let everyone = buffers.post(call(), same(&[9], &[0, 1, 2]), 3);
        assert_eq!((everyone.members(), everyone.piece(2)), (None, &[9][..]));
    }

    #[test]
    fn large_buffers_are_given_back() {
        let mut buffers = SendBuffers::default();
        let post = buffers.post(call(), same(&[1; 4000], &[0, 1]), 2);
        let gone = Arc::downgrade(&post);
        drop(post);
        assert_eq!(gone.strong_count(), 1, "kept for the next message");
        buffers.release_large();
        assert_eq!(gone.strong_count(), 0);
    }
}
