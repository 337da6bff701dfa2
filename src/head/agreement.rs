//! What all ranks agree on when a head is created or rebuilt.

use super::LmHead;
use crate::digest;
use crate::error::{Disagreement, Error, Result};
use crate::exchange::{Call, Fault, Operation};
use crate::step::{self, HEADER_BYTES, Header, Mode};
use std::collections::{BTreeMap, BTreeSet};

/// The settings key under which a rank whose own parts do not fit says why.
const REFUSED: &str = "refused";

impl LmHead {
    /// The settings that all ranks must have in common, by the names that messages use.
    fn settings(&self) -> BTreeMap<&'static str, String> {
        let c = &self.config;
        let fingerprint = match self.info.fingerprint {
            Some(fingerprint) => format!("a checkpoint of fingerprint {fingerprint:#018x}"),
            None => "weights without a fingerprint".into(),
        };
        let device = match self.wire.exchange.device() {
            Some(device) => format!("{} ({:?})", device.name(), device.caps()),
            None => "none".into(),
        };
        BTreeMap::from([
            ("backend", self.backend.fingerprint(self.types())),
            ("device exchange", device),
            ("bias", self.info.has_bias.to_string()),
            ("final_logit_softcapping", c.final_logit_softcapping.map_or("none".into(), |v| v.to_string())),
            ("head ranks", format!("{:?}", self.wire.group.ranks())),
            ("hidden_dtype", self.hidden_dtype.to_string()),
            ("hidden_size", c.hidden_size.to_string()),
            ("logit_scale", c.logit_scale.to_string()),
            ("logprobs_chunk_bytes", c.logprobs_chunk_bytes.to_string()),
            ("instance", self.instance.to_string()),
            ("name", c.name.clone()),
            ("quantization", c.quantization.to_string()),
            ("split_rows_over_tp", c.split_rows_over_tp.to_string()),
            ("tp", self.wire.group.tp().to_string()),
            ("verify", c.verify.to_string()),
            ("vocab_size", c.vocab_size.to_string()),
            ("weights", self.info.dtype.to_string()),
            ("weights_fingerprint", fingerprint),
            ("weights_version", self.weights_version.to_string()),
        ])
    }

    fn creation_header(&self, length: u64, digest: u64) -> Header {
        Header {
            epoch: self.epoch,
            counts: length,
            agreement: digest,
            weights_version: self.weights_version,
            ..Header::of_creation(self.id, self.instance, self.config.verify)
        }
    }

    /// A call of a creation or a rebuilding that begins now.
    pub(super) fn creation_call(&self, operation: Operation) -> Call {
        Call { step: 0, ..self.call_from_now(operation, self.config.create_timeout) }
    }

    /// The collective part of creation: ranks compare the digests of their settings and, where these differ,
    /// the settings themselves, so that the error can name them. A rank with a `refusal` sends it among its
    /// settings, and gets it back as its own error. The epoch becomes the highest of any rank.
    pub(super) fn agree_on_settings(&mut self, call: &Call, refusal: Option<Error>) -> Result<()> {
        let mut settings = self.settings();
        if let Some(refusal) = &refusal {
            settings.insert(REFUSED, refusal.to_string());
        }
        let text = serde_json::to_vec(&settings).expect("a map of strings is JSON");
        self.agreement = digest::of_bytes(&text);
        if self.wire.group.size() == 1 {
            return refusal.map_or(Ok(()), Err);
        }
        let agreed = self.compare_settings(call, &text);
        refusal.map_or(agreed, Err)
    }

    fn compare_settings(&mut self, call: &Call, text: &[u8]) -> Result<()> {
        let mine = self.creation_header(text.len() as u64, self.agreement);
        let call = Call { terms: mine.terms(), ..*call };
        self.wire.exchange.note(&call);
        let members: Vec<usize> = (0..self.wire.group.size()).collect();
        let ranks = self.wire.group.ranks().to_vec();
        let mismatch = |disagreements| Err(Error::mismatch(0, disagreements));

        let mut headers = vec![[0; HEADER_BYTES]; members.len()];
        let mut slices: Vec<&mut [u8]> = headers.iter_mut().map(|h| &mut h[..]).collect();
        // Ranks of other heads or epochs make other calls (`OtherCall`): their headers, read below, say more
        // than the fault.
        let fault = match self.wire.exchange.all_gather_v(&call, &members, &mine.encode(), &mut slices) {
            Ok(()) | Err(Fault::OtherCall { .. }) => None,
            Err(fault @ Fault::Length { .. }) => Some(fault),
            Err(fault) => return Err(fault.into_error(&call, &ranks)),
        };
        let decoded: Vec<Option<Header>> = headers.iter().map(Header::decode).collect();
        let doing = decoded.iter().map(|header| match header {
            Some(h) if h.mode == Mode::Create && h.head == self.id => {
                format!("creates head `{}`", self.config.name)
            }
            Some(h) if h.mode == Mode::Create => format!("creates another head (id {:#010x})", h.head),
            Some(h) => format!("is in step {} of a head that exists", h.sequence),
            None => "sends something else (another program or version of lmhead)".into(),
        });
        if let Some(disagreement) = step::disagreement("call", ranks.iter().copied().zip(doing)) {
            return mismatch(vec![disagreement]);
        }
        if let Some(fault) = fault {
            return Err(fault.into_error(&call, &ranks));
        }
        let decoded: Vec<Header> = decoded.into_iter().flatten().collect();
        self.epoch = decoded.iter().map(|h| h.epoch).max().unwrap_or(self.epoch);
        if decoded.iter().all(|h| h.agreement == self.agreement) {
            return Ok(());
        }

        let mut texts: Vec<Vec<u8>> =
            decoded.iter().map(|h| vec![0; h.counts.min(1 << 20) as usize]).collect();
        let mut slices: Vec<&mut [u8]> = texts.iter_mut().map(Vec::as_mut_slice).collect();
        let call = Call { terms: 0, epoch: self.epoch, ..call };
        match self.wire.exchange.all_gather_v(&call, &members, text, &mut slices) {
            Ok(()) | Err(Fault::OtherCall { .. }) => {}
            Err(fault) => return Err(fault.into_error(&call, &ranks)),
        }
        let theirs: Vec<BTreeMap<String, String>> =
            texts.iter().map(|text| serde_json::from_slice(text).unwrap_or_default()).collect();
        // Where a rank refuses to go on, the error names its reason alone.
        let refused: Vec<(Vec<usize>, String)> = ranks
            .iter()
            .zip(&theirs)
            .filter_map(|(&rank, map)| map.get(REFUSED).map(|why| (vec![rank], why.clone())))
            .collect();
        if !refused.is_empty() {
            return mismatch(vec![Disagreement { field: REFUSED.into(), said: refused }]);
        }
        let said = |key: &str| {
            let value =
                |map: &BTreeMap<String, String>| map.get(key).cloned().unwrap_or_else(|| "nothing".into());
            ranks.iter().copied().zip(theirs.iter().map(value).collect::<Vec<_>>())
        };
        let keys: BTreeSet<&str> = theirs.iter().flat_map(|map| map.keys().map(String::as_str)).collect();
        mismatch(keys.into_iter().filter_map(|key| step::disagreement(key, said(key))).collect())
    }
}
