//! Chooses the tensors of a checkpoint that are the head, and refuses those that would change its logits and
//! are not read.

use crate::config::ModelConfig;
use crate::config::model_rules::Names;
use crate::error::{Error, Result};
use crate::process;
use crate::weights::SafetensorsFile;
use crate::weights::folder::Tensors;
use crate::weights::safetensors_file::{Tensor, integers, listed};
use crate::weights::stored::{self, StoredHead};
use rayon::prelude::*;
use std::path::Path;

/// The tensors that were chosen as the head.
pub(super) struct Chosen {
    pub module: String,
    /// The tensor of its bias, where one is stored.
    pub bias: Option<String>,
}

/// Chooses the head as transformers 5 does. A stored head is preferred to an embedding, even to one that it
/// should be tied to but differs from. Without a head the embedding serves, unless the model's class has a
/// head of its own. `tie_override` is the user's `tie_word_embeddings`, which overrides all else.
pub(super) fn choose(
    tensors: &mut Tensors,
    model: &ModelConfig,
    tie_override: Option<bool>,
    warnings: &mut Vec<String>,
) -> Result<Chosen> {
    let names = model.names();
    // With an unknown model type there is no way to choose between two names of heads in one folder.
    let only_one = model.rule.is_none();
    let tied = tie_override.or(model.tie_word_embeddings);
    let head = stored::find_module(tensors, names.heads, only_one)?;
    if let (Some(head), true) = (&head, tie_override != Some(true)) {
        if tied == Some(true)
            && let Some(embedding) = stored::find_module(tensors, names.embeddings, false).unwrap_or(None)
            && !same_weights(tensors, &embedding, head)?
        {
            warnings.push(format!(
                "{}: tie_word_embeddings is true, but {head}.weight is stored and differs from \
                 {embedding}.weight; \
                 the stored head is used, as transformers 5 does",
                tensors.place().display()
            ));
        }
        return Ok(Chosen { bias: bias_of_head(tensors, head, names), module: head.clone() });
    }
    if head.is_none() {
        refuse_part_of_head(tensors, names)?;
        // A file that cannot be read may hold the head.
        if let Some(error) = tensors.unread() {
            return Err(error.clone());
        }
    }
    let absent = |tensors: &Tensors, wanted: &str, fix: &str| {
        let listed = listed(tensors.names());
        let name = names.heads[0].trim_start_matches('.');
        Error::tensor(tensors.place(), format!("{name}.weight"), wanted, listed, fix)
    };
    if tied == Some(false) {
        let fix = "pass the folder of the whole model; if its embedding is the head, name its tensor with \
                   --tensor (Checkpoint::open_tensor), or set tie_word_embeddings = true in lmhead's own \
                   configuration";
        let wanted = match model.never_tied() {
            true => "a head, as this model type has one of its own",
            false => "a head, as tie_word_embeddings is false",
        };
        return Err(absent(tensors, wanted, fix));
    }
    let embedding = stored::find_module(tensors, names.embeddings, only_one)?;
    let Some(module) = embedding.or_else(|| head.clone()) else {
        let fix = "name its tensor with --tensor (Checkpoint::open_tensor)";
        let wanted = match tied {
            Some(true) => "the embedding (tie_word_embeddings is true) or a head",
            _ => "a head, or an embedding to use as one",
        };
        return Err(absent(tensors, wanted, fix));
    };
    match &head {
        Some(head) if *head == module => warnings.push(format!(
            "{}: tie_word_embeddings is true, but no embedding is stored; {head}.weight is used",
            tensors.place().display()
        )),
        Some(head) if !same_weights(tensors, &module, head)? => warnings.push(format!(
            "{}: {head}.weight is stored and differs from {module}.weight; the embedding is used, as asked",
            tensors.place().display()
        )),
        _ => {}
    }
    let bias = if head.as_ref() == Some(&module) {
        bias_of_head(tensors, &module, names)
    } else {
        bias_of_embedding(tensors, &module, names)
    };
    Ok(Chosen { module, bias })
}

/// Refuses a folder where a head's module has tensors, but no weight in a known form: the head is then stored
/// in some other way, and the embedding is not the head.
fn refuse_part_of_head(tensors: &Tensors, names: &Names) -> Result<()> {
    let of_head = |name: &&str| {
        names.heads.iter().any(|head| {
            let bare_name = head.trim_start_matches('.');
            let rest = match name.strip_prefix(bare_name).and_then(|rest| rest.strip_prefix('.')) {
                Some(rest) => Some(rest),
                None if head.starts_with('.') => {
                    name.split_once(head).and_then(|(_, rest)| rest.strip_prefix('.'))
                }
                None => None,
            };
            // A head's bias is stored beside a tied embedding.
            rest.is_some_and(|rest| rest != "bias" && !names.biases.contains(name) && is_of_weight(rest))
        })
    };
    match tensors.names().find(of_head) {
        None => Ok(()),
        Some(name) => Err(stored::unread(tensors.place(), name, "the weight of a head beside it")),
    }
}

/// Whether `rest`, a tensor's name after `MODULE.`, names the weight in some form. Weights of layers before
/// the head's last matrix (`lm_head.dense.weight`) do not count.
fn is_of_weight(rest: &str) -> bool {
    rest.starts_with("weight") || rest.starts_with("parametrizations.weight") || stored::is_peft_part(rest)
}

fn bias_of_head(tensors: &Tensors, module: &str, names: &Names) -> Option<String> {
    let bias_name = format!("{module}.bias");
    if tensors.contains(&bias_name) { Some(bias_name) } else { other_bias(tensors, names) }
}

/// The bias of an embedding that serves as the head: stored beside it, or under a head's name.
fn bias_of_embedding(tensors: &Tensors, module: &str, names: &Names) -> Option<String> {
    let bias_name = format!("{module}.bias");
    if tensors.contains(&bias_name) {
        return Some(bias_name);
    }
    let of_heads = names.heads.iter().find_map(|head| find_tensor(tensors, &format!("{head}.bias")));
    of_heads.or_else(|| other_bias(tensors, names))
}

fn other_bias(tensors: &Tensors, names: &Names) -> Option<String> {
    names.biases.iter().find_map(|bias| find_tensor(tensors, bias))
}

/// The tensor of this name; for a name that begins with a dot also the only tensor whose name ends in it.
fn find_tensor(tensors: &Tensors, name: &str) -> Option<String> {
    let bare_name = name.trim_start_matches('.');
    if tensors.contains(bare_name) {
        return Some(bare_name.to_string());
    }
    let mut others = tensors.names().filter(|other| name.starts_with('.') && other.ends_with(name));
    match (others.next(), others.next()) {
        (Some(only), None) => Some(only.to_string()),
        _ => None,
    }
}

/// The module of a tensor that the user names. A packed weight may be named with or without `_packed`. A name
/// that does not end in `.weight` is kept whole.
pub(super) fn named(tensors: &Tensors, tensor: &str) -> Chosen {
    let packed = tensor.strip_suffix("_packed").filter(|name| tensors.contains(&format!("{name}_shape")));
    let name = packed.unwrap_or(tensor);
    match name.strip_suffix(".weight") {
        Some(module) => Chosen { bias: Some(format!("{module}.bias")), module: module.to_string() },
        None => Chosen { module: name.to_string(), bias: None },
    }
}

/// Refuses tensors outside of the head's module that would change its logits.
pub(super) fn refuse_beside(
    tensors: &mut Tensors,
    folder: &Path,
    model: &ModelConfig,
    module: &str,
) -> Result<()> {
    // If an embedding serves as the head, what PEFT stored under the head's own name is refused.
    for head in model.names().heads.iter().map(|head| head.trim_start_matches('.')) {
        let part = |name: &&str| {
            let rest = name.strip_prefix(head).and_then(|rest| rest.strip_prefix('.'));
            head != module && rest.is_some_and(stored::is_peft_part)
        };
        if let Some(name) = tensors.names().find(part) {
            return Err(stored::unread(tensors.place(), name, "a head without LoRA matrices"));
        }
    }
    // Encoder-decoder models like BART add this bias to their logits; their decoders used alone do not.
    if let Some(bias) = tensors.get_if_stored("final_logits_bias")?
        && bias.bytes().iter().any(|byte| *byte != 0)
    {
        let fix =
            "this bias is not added: set it to zero for a decoder alone, or add it to the logits yourself";
        return Err(bias.error("zeros", "other values", fix));
    }
    adapter_of_head(folder, module)
}

/// The error for a folder with a LoRA adapter but no model: what PEFT writes has no `config.json`.
pub(super) fn unmerged_adapter(folder: &Path) -> Option<Error> {
    let adapter = folder.join(ADAPTER_CONFIG);
    let has_model = folder.join("config.json").exists();
    (!has_model && adapter.exists()).then(|| {
        let problem = format!(
            "wanted a model folder with config.json, got a LoRA adapter without its model ({ADAPTER_CONFIG})"
        );
        Error::file(folder, problem, stored::MERGE)
    })
}

const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Refuses a LoRA adapter beside the model that changes the head: transformers would apply it. An adapter
/// that does not touch the head only changes hidden states.
fn adapter_of_head(folder: &Path, module: &str) -> Result<()> {
    let path = folder.join("adapter_model.safetensors");
    if !folder.join(ADAPTER_CONFIG).exists() || !path.exists() {
        return Ok(());
    }
    let adapter = SafetensorsFile::open(&path)?;
    let last = module.rsplit('.').next().unwrap_or(module);
    match adapter.names().find(|name| name.split('.').any(|part| part == last)) {
        None => Ok(()),
        Some(name) => Err(stored::unread(&path, name, &format!("no LoRA matrices for {module}"))),
    }
}

/// The target id of each draft id of an EAGLE-3 draft model: draft id plus difference, which `d2t` holds.
/// `None` for other models.
pub(super) fn draft_ids(
    tensors: &mut Tensors,
    model: &ModelConfig,
    head: &StoredHead,
) -> Result<Option<Vec<u32>>> {
    let Some(draft) = model.draft_vocab_size else { return Ok(None) };
    if draft != head.rows {
        let wanted = format!("{draft} rows, config.json's draft_vocab_size");
        let fix = "pass the folder of the draft model whole, or correct its config.json";
        return Err(head.weight.error(wanted, format!("{} rows", head.rows), fix));
    }
    let Some(offsets) = tensors.get_if_stored("d2t")? else { return Ok(None) };
    let fix = "export the draft model again";
    let values = integers(offsets.info.dtype, offsets.bytes()).filter(|_| offsets.info.shape == [draft]);
    let Some(values) = values else {
        return Err(offsets.error(
            format!("i64 or i32 [{draft}], one for each draft id"),
            &offsets.info,
            fix,
        ));
    };
    let ids = values.iter().enumerate().map(|(id, offset)| {
        let target = i64::try_from(id).ok().and_then(|id| id.checked_add(*offset));
        target.and_then(|target| u32::try_from(target).ok()).ok_or_else(|| {
            offsets.error(
                "differences that lead to ids from 0 to 2^32 - 1",
                format!("{offset} at draft id {id}"),
                fix,
            )
        })
    });
    ids.collect::<Result<Vec<u32>>>().map(Some)
}

/// Whether two modules store the same tensors, byte for byte.
fn same_weights(tensors: &mut Tensors, a: &str, b: &str) -> Result<bool> {
    for form in ["weight", "weight_packed", "weight_scale"] {
        let a = tensors.get_if_stored(&format!("{a}.{form}"))?;
        let b = tensors.get_if_stored(&format!("{b}.{form}"))?;
        match (a, b) {
            (None, None) => {}
            (Some(a), Some(b)) if same_bytes(&a, &b)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn same_bytes(a: &Tensor, b: &Tensor) -> Result<bool> {
    const CHUNK: usize = 4 << 20;
    if a.info.dtype != b.info.dtype || a.info.shape != b.info.shape {
        return Ok(false);
    }
    let (a, b) = (a.bytes().par_chunks(CHUNK), b.bytes().par_chunks(CHUNK));
    process::on_live_threads(|| a.zip(b).all(|(a, b)| a == b))
}
