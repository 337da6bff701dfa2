//! Translates the answers of an EAGLE-3 draft head to the target model's ids.

use crate::input::HeadSource;
use lmhead::error::{Error, Result};
use lmhead::result::{Output, Request};

/// The target id of each draft id, for `--target-ids`.
///
/// # Errors
/// `Config` where the head has no draft vocabulary, and for logits, which have no ids.
pub fn target_ids<'a>(source: &'a HeadSource, request: &Request) -> Result<&'a [u32]> {
    let refuse = |wanted: &str, got: &str, fix: &str| Error::Config {
        key: "--target-ids".into(),
        wanted: wanted.into(),
        got: got.into(),
        fix: fix.into(),
    };
    if matches!(request, Request::Logits { .. }) {
        let fix = "ask for argmax, topk, sample or logprobs; logits are in the order of the draft ids";
        return Err(refuse("a request that answers ids", "--request logits", fix));
    }
    source.target_ids().ok_or_else(|| {
        let wanted = "--model with a draft model: draft_vocab_size in config.json and a tensor d2t";
        refuse(wanted, "a head whose ids are the model's own", "leave it out")
    })
}

/// Replaces draft ids by target ids; -1 (no id) stays.
pub fn translate(output: &mut Output, targets: &[u32]) {
    let (ids, more) = match output {
        Output::Argmax { ids } | Output::TopK { ids, .. } => (ids, None),
        Output::Sample { ids, logprobs } => (ids, logprobs.as_mut().map(|logprobs| &mut logprobs.top_ids)),
        Output::Logprobs(logprobs) => (&mut logprobs.top_ids, None),
        // [`target_ids`] refuses logits.
        _ => return,
    };
    for id in ids.iter_mut().chain(more.into_iter().flatten()) {
        if let Some(target) = usize::try_from(*id).ok().and_then(|id| targets.get(id)) {
            *id = i64::from(*target);
        }
    }
}
