//! Any shape, layout and epilogue; a row has the same bits whatever is around it.

use crate::device;
use lmhead::DType;
use lmhead::plan::{Plan, Shape};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::product::table::PRECISIONS;
use lmhead_testkit::product::{
    Finish, Index, Launch, Layout, Loaded, Operands, Picks, Product, Values, bits_of, expected, run_product,
    same_logits, same_status,
};
use proptest::prelude::*;
use proptest::sample::{Index as Pick, select};

/// Most multiply-adds of a plan that is tested beside the chosen one.
const WORK: usize = 12 << 20;

fn shapes() -> impl Strategy<Value = (usize, usize, usize)> {
    let rows = prop_oneof![5 => 1usize..=20, 2 => 21usize..=70, 1 => 100usize..=140];
    let vocab = prop_oneof![1 => 1usize..=5, 2 => 60usize..=70, 3 => 100usize..=300];
    let hidden = prop_oneof![3 => 1usize..=70, 2 => 71usize..=400, 1 => 500usize..=900];
    (rows, vocab, hidden)
}

fn finishes() -> impl Strategy<Value = Finish> {
    let softcap = prop::option::of(select(vec![0.5f32, 30.0]));
    let scale = select(vec![1.0f32, 1.0, 0.0625, -2.5, 1e30]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let out = select(vec![DType::F32, DType::Bf16, DType::F16]);
    (softcap, scale, flags, out).prop_map(|(softcap, scale, flags, out)| {
        let (bias, mask, logit_bias, penalties, temperatures) = flags;
        Finish { bias, softcap, scale, mask, logit_bias, penalties, temperatures, out }
    })
}

fn layouts(rows: usize) -> impl Strategy<Value = Layout> {
    let index = select(vec![Index::InOrder, Index::Int32, Index::Int64]);
    // Aligned to 16 bytes, or to one element.
    let gap = || prop_oneof![2 => Just(0usize), 1 => Just(8usize), 2 => 1usize..20];
    let gaps = (gap(), gap(), 0usize..3, gap(), gap());
    (index, 0usize..9, gaps).prop_map(move |(index, more, gaps)| {
        let (row_offset, row_gap, weight_gap, out_offset, out_gap) = gaps;
        // Rows picked by indices may come from far fewer rows.
        let source_rows = if index == Index::InOrder { rows + more } else { more + 1 };
        Layout { index, source_rows, row_offset, row_gap, weight_gap, out_offset, out_gap }
    })
}

fn products() -> impl Strategy<Value = Product> {
    let values = select(vec![Values::Gaussian, Values::Integers, Values::Broken]);
    (select(&PRECISIONS[..]), shapes(), values, finishes(), any::<u64>()).prop_flat_map(
        |(precision, (rows, vocab, hidden), values, finish, seed)| {
            layouts(rows).prop_map(move |layout| {
                let shape = Shape { rows, vocab, hidden };
                // The root mean square of few values says nothing.
                let few = rows * vocab < 64 && values == Values::Gaussian;
                let values = if few { Values::Integers } else { values };
                Product { precision, shape, values, finish, layout, seed }
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_product(product in products(), schedule in any::<u64>()) {
        let outcome = run_product(&EmulatedDevice::new(schedule), &product, WORK);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }

    /// The rows of a batch reordered, repeated or left out, by any index and plan: the same bits.
    #[test]
    fn a_row_alone_has_the_bits_of_its_batch(
        product in products(), picks in prop::collection::vec(any::<Pick>(), 1..40), wide in any::<bool>(),
        plan in any::<Pick>(),
    ) {
        let device = device();
        let rows = product.layout.source_rows;
        let shape = Shape { rows, ..product.shape };
        let layout = Layout { index: Index::InOrder, ..product.layout };
        let all = Product { shape, layout, finish: Finish::NONE, ..product };
        let operands = Operands::new(&all);
        let loaded = Loaded::new(&device, &all, &operands).unwrap();
        let limits = lmhead::plan::DeviceLimits::H100;
        let whole = Plan::new(product.precision, shape, &limits).unwrap();
        let whole = loaded.launch(&Launch::raw(&whole, &operands)).unwrap().f32s();

        let picks: Vec<i64> = picks.iter().map(|pick| pick.index(rows) as i64).collect();
        let plans =
            Plan::candidates(product.precision, Shape { rows: picks.len(), ..shape }, &limits).unwrap();
        let plan = plans[plan.index(plans.len())];
        let index = if wide { Index::Int64 } else { Index::Int32 };
        let launch = Launch { picks: Picks { indices: &picks, index }, ..Launch::raw(&plan, &operands) };
        let some = loaded.launch(&launch).unwrap().f32s();
        for (i, &row) in picks.iter().enumerate() {
            let vocab = shape.vocab;
            let (got, want) = (&some[i * vocab..][..vocab], &whole[row as usize * vocab..][..vocab]);
            prop_assert_eq!(bits_of(got), bits_of(want), "row {}, {}", row, plan);
        }
    }

    /// A head cut at multiples of 64, with each shard writing its columns of the full rows: the same bits and
    /// statuses.
    #[test]
    fn shards_have_the_bits_of_the_whole(
        product in products(), cuts in prop::collection::vec(any::<Pick>(), 1..3), plan in any::<Pick>(),
    ) {
        let device = device();
        // Entries for single ids would have to be split on the host.
        let finish = Finish { logit_bias: false, penalties: false, ..product.finish };
        let product = Product { finish, ..product };
        let (Shape { rows, vocab, hidden }, limits) = (product.shape, lmhead::plan::DeviceLimits::H100);
        let operands = Operands::new(&product);
        let loaded = Loaded::new(&device, &product, &operands).unwrap();
        let whole = Plan::new(product.precision, product.shape, &limits).unwrap();
        let raw = loaded.launch(&Launch::raw(&whole, &operands)).unwrap().f32s();
        let (want, want_status) = expected(&operands, &finish, &raw);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| 64 * cut.index(vocab.div_ceil(64))).collect();
        ends.extend([0, vocab]);
        ends.sort_unstable();
        ends.dedup();
        let size = finish.out.size();
        let mut status = vec![0; rows];
        for ids in ends.windows(2) {
            let width = ids[1] - ids[0];
            let plans =
                Plan::candidates(product.precision, Shape { rows, vocab: width, hidden }, &limits).unwrap();
            let plan = plans[plan.index(plans.len())];
            let launch = Launch { ids: (ids[0], ids[1]), finish, ..Launch::raw(&plan, &operands) };
            let ran = loaded.launch(&launch).unwrap();
            let columns = want.chunks(vocab * size).flat_map(|row| &row[ids[0] * size..ids[1] * size]);
            let columns: Vec<u8> = columns.copied().collect();
            let same = same_logits(&ran, &columns, width, finish.out);
            prop_assert!(same.is_ok(), "ids {:?}: {}", ids, same.unwrap_err());
            status.iter_mut().zip(&ran.status).for_each(|(all, said)| *all |= said);
        }
        let same = same_status(&status, &want_status);
        prop_assert!(same.is_ok(), "{}", same.unwrap_err());
    }
}
