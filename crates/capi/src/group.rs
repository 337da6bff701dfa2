//! Who shares a head, and which ids each member has.

use crate::boundary::{argument, call, place};
use crate::structs::count;
use crate::sys::{self, lmhead_status};
use lmhead::layout::{self, HeadGroup, ParallelLayout, RankOrder};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_group_ranks(
    dp: i64,
    tp: i64,
    pp: i64,
    order: i32,
    rank: i64,
    tp_size: i64,
    ranks: *mut i64,
    n: *mut i64,
) -> lmhead_status {
    call(|| {
        let n = place("n", n)?;
        let order = match order {
            0 => RankOrder::DpPpTp,
            1 => RankOrder::PpDpTp,
            other => {
                return Err(argument(
                    "order",
                    "LMHEAD_ORDER_DP_PP_TP or PP_DP_TP",
                    other,
                    "use one of those",
                ));
            }
        };
        let layout =
            ParallelLayout { dp: count("dp", dp)?, tp: count("tp", tp)?, pp: count("pp", pp)?, order };
        let size = match i32::try_from(tp_size) {
            // Without a cost model `auto` is the tensor-parallel size, too: both are 1 without tensor
            // parallelism.
            Ok(sys::LMHEAD_TP_SIZE_TENSOR_PARALLEL | AUTO) => layout.tp,
            _ => count("tp_size", tp_size)?,
        };
        let rank = count("rank", rank)?;
        layout.check_group_size(size)?;
        let is_last_stage = layout.coordinates(rank)?.pp + 1 == layout.pp;
        // SAFETY: `n` is non-null and aligned (checked); the header requires the capacity in it.
        let capacity = count("n", unsafe { n.read() })?;
        // Checked before making a list, perhaps a long one, that the caller has no room for.
        if is_last_stage && capacity < size {
            let wanted = format!("room for the {size} ranks of the group");
            return Err(argument("n", wanted, capacity, "dp * tp is always enough"));
        }
        let group = HeadGroup::of(rank, &layout, size)?;
        let members = group.as_ref().map_or(&[][..], HeadGroup::ranks);
        if !members.is_empty() {
            let ranks = place("ranks", ranks)?;
            for (i, &member) in members.iter().enumerate() {
                // SAFETY: within the caller's capacity.
                unsafe { ranks.add(i).write(member as i64) };
            }
        }
        // SAFETY: as above.
        unsafe { n.write(members.len() as i64) };
        Ok(())
    })
}

const AUTO: i32 = sys::LMHEAD_TP_SIZE_AUTO;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_shard_range(
    vocab_size: i64,
    members: i64,
    member: i64,
    first: *mut i64,
    number: *mut i64,
) -> lmhead_status {
    call(|| {
        let (first, number) = (place("first", first)?, place("count", number)?);
        let (vocab_size, members) = (count("vocab_size", vocab_size)?, count("members", members)?);
        let range = shard(vocab_size, members, count("member", member)?)?;
        // SAFETY: places of the caller's.
        unsafe {
            first.write(range.start as i64);
            number.write(range.len() as i64);
        }
        Ok(())
    })
}

/// The ids of a member's shard.
pub fn shard(
    vocab_size: usize,
    members: usize,
    member: usize,
) -> crate::boundary::Outcome<std::ops::Range<usize>> {
    if member >= members {
        let wanted = format!("a member of 0..{members}");
        return Err(argument("member", wanted, member, "members are numbered from 0"));
    }
    Ok(layout::shard_range(vocab_size, members, member))
}
