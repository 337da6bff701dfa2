//! candle's Qwen3 model with the LM head of `lmhead`, compared with candle's own head.
//!
//! The model has random weights generated here. It generates greedily, first with candle's head, then with
//! `lmhead` on one rank, then as two data-parallel ranks that share the head. The tokens must be the same.

use candle_core::{DType, Device, Storage, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::qwen3::{Config, Model, ModelForCausalLM};
use lmhead::backend::cpu::CpuBackend;
use lmhead::exchange::local;
use lmhead::weights::{self, Matrix};
use lmhead::{
    HeadConfig, HeadGroup, HeadShard, HiddenRows, LmHead, Output, Quantization, Request, RowCounts,
};
use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const TOKENS: usize = 32;
/// Two logits closer than this could change order when sums are computed in another order.
const CLOSE: f32 = 1e-4;

/// A small model, with a vocabulary that no number of ranks divides.
fn config() -> Config {
    Config {
        vocab_size: 1009,
        hidden_size: 128,
        intermediate_size: 256,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        head_dim: 32,
        attention_bias: false,
        num_key_value_heads: 2,
        max_position_embeddings: 256,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: false,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    }
}

/// Weights by their names in a checkpoint: uniform, with variance 1 / columns, so that no layer dominates.
fn random_weights(config: &Config) -> Result<HashMap<String, Tensor>> {
    let (hidden, inner, head) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_string(), config.vocab_size, hidden),
        ("lm_head.weight".to_string(), config.vocab_size, hidden),
    ];
    let mut norms = vec![("model.norm.weight".to_string(), hidden)];
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        shapes.extend([
            (name("self_attn.q_proj"), heads * head, hidden),
            (name("self_attn.k_proj"), kv_heads * head, hidden),
            (name("self_attn.v_proj"), kv_heads * head, hidden),
            (name("self_attn.o_proj"), hidden, heads * head),
            (name("mlp.gate_proj"), inner, hidden),
            (name("mlp.up_proj"), inner, hidden),
            (name("mlp.down_proj"), hidden, inner),
        ]);
        norms.extend([
            (name("self_attn.q_norm"), head),
            (name("self_attn.k_norm"), head),
            (name("input_layernorm"), hidden),
            (name("post_attention_layernorm"), hidden),
        ]);
    }
    let mut state = 1u64;
    let mut tensors = HashMap::new();
    for (name, rows, columns) in shapes {
        let bound = (3.0 / columns as f32).sqrt();
        let values: Vec<f32> = (0..rows * columns).map(|_| bound * uniform(&mut state)).collect();
        tensors.insert(name, Tensor::from_vec(values, (rows, columns), &Device::Cpu)?);
    }
    for (name, n) in norms {
        tensors.insert(name, Tensor::ones(n, DType::F32, &Device::Cpu)?);
    }
    Ok(tensors)
}

/// Uniform in -1..1, by SplitMix64: candle cannot seed the random numbers of its CPU device.
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Passes `tensor`'s f32 elements, which are contiguous in CPU memory, to `take`.
fn with_values<T>(tensor: &Tensor, take: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(format!(
            "wanted a contiguous tensor on the CPU, got {:?} on {:?}",
            layout,
            tensor.device()
        )
        .into());
    };
    Ok(take(&storage.as_slice::<f32>()?[start..end]))
}

/// The ids `vocab` of candle's head `[vocab, hidden]`, used in place.
fn shard(weight: &Tensor, vocab: Range<usize>) -> Result<HeadShard> {
    let (vocab_size, hidden) = weight.dims2()?;
    let part = vocab.start * hidden..vocab.end * hidden;
    let elements = part.len();
    let start = with_values(weight, |values| values[part].as_ptr())?;
    let kept = weight.clone();
    // SAFETY: the tensor is kept until they are released, and candle writes no tensor that is not a `Var`.
    let values = unsafe { weights::Storage::foreign(start, elements, move || drop(kept)) }?;
    Ok(HeadShard::new(vocab, vocab_size, hidden, Quantization::None, Matrix::F32(values), None)?)
}

/// A model without a head, and one rank's shard of the head.
struct Engine {
    model: Model,
    head: LmHead,
    hidden_size: usize,
}

impl Engine {
    /// A collective call if the group has several ranks.
    fn new(
        config: &Config,
        tensors: &HashMap<String, Tensor>,
        group: HeadGroup,
        exchange: local::LocalExchange,
    ) -> Result<Self> {
        let weights = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
        let vocab = group.shard(config.vocab_size, group.me());
        let shard = shard(&tensors["lm_head.weight"], vocab)?;
        let backend = Arc::new(CpuBackend::new(None)?);
        let head_config = HeadConfig::new(config.vocab_size, config.hidden_size);
        let mut head = LmHead::new(&head_config, group, Arc::new(shard), Arc::new(exchange), backend)?;
        head.warm_up(1, &[Request::argmax()])?;
        Ok(Engine { model: Model::new(config, weights)?, head, hidden_size: config.hidden_size })
    }

    /// Runs the model on the tokens from `offset` on; returns the next one, chosen greedily.
    fn next(&mut self, tokens: &[u32], offset: usize) -> Result<u32> {
        let input = Tensor::new(&tokens[offset..], &Device::Cpu)?.unsqueeze(0)?;
        let hidden = self.model.forward(&input, offset)?; // [1, tokens, hidden]
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.contiguous()?;
        let step = self.head.step(RowCounts::discover(1), &Request::argmax())?;
        let answer =
            with_values(&last, |values| step.run(HiddenRows::from_f32(values, 1, self.hidden_size)?))??;
        match answer.output {
            Output::Argmax { ids } if ids[0] >= 0 => Ok(ids[0] as u32),
            other => Err(format!("wanted a token, got {other:?} with status {:?}", answer.row_status).into()),
        }
    }

    /// A step in which this rank has no row; the others need its shard.
    fn idle(&mut self) -> Result<()> {
        let rows = HiddenRows::none(self.head.hidden_dtype(), self.hidden_size);
        self.head.step(RowCounts::discover(0), &Request::argmax())?.run(rows)?;
        Ok(())
    }

    /// `n` tokens, one in each `every`-th step of the group.
    fn generate(&mut self, prompt: &[u32], n: usize, every: usize) -> Result<Vec<u32>> {
        let (mut tokens, mut offset) = (prompt.to_vec(), 0);
        for step in 0..n * every {
            if step % every == 0 {
                let next = self.next(&tokens, offset)?;
                offset = tokens.len();
                tokens.push(next);
            } else {
                self.idle()?;
            }
        }
        Ok(tokens.split_off(prompt.len()))
    }
}

/// What candle's own head generates, and the smallest difference between a step's best two logits.
fn with_candles_head(
    config: &Config,
    tensors: &HashMap<String, Tensor>,
    prompt: &[u32],
) -> Result<(Vec<u32>, f32)> {
    let weights = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
    let mut model = ModelForCausalLM::new(config, weights)?;
    let (mut tokens, mut offset, mut closest) = (prompt.to_vec(), 0, f32::INFINITY);
    for _ in 0..TOKENS {
        let input = Tensor::new(&tokens[offset..], &Device::Cpu)?.unsqueeze(0)?;
        let logits = model.forward(&input, offset)?.flatten_all()?.to_vec1::<f32>()?;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a])); // stable: ties to the lowest id
        closest = closest.min(logits[order[0]] - logits[order[1]]);
        offset = tokens.len();
        tokens.push(order[0] as u32);
    }
    Ok((tokens.split_off(prompt.len()), closest))
}

fn compare(what: &str, wanted: &[u32], got: &[u32]) -> Result<()> {
    if wanted != got {
        return Err(format!("{what}: wanted candle's tokens {wanted:?}, got {got:?}").into());
    }
    println!("{what}: {} tokens, as candle's head has them", got.len());
    Ok(())
}

fn main() -> Result<()> {
    let config = config();
    let tensors = random_weights(&config)?;
    let prompts = [vec![5u32, 9, 17], (20..50).collect()];

    let mut wanted = Vec::new();
    for prompt in &prompts {
        let (tokens, closest) = with_candles_head(&config, &tensors, prompt)?;
        let distinct = tokens.iter().collect::<BTreeSet<_>>().len();
        println!(
            "candle's head: {distinct} distinct tokens of {TOKENS}, best two logits at least {closest:.4} apart"
        );
        // Otherwise equal tokens would prove little, or different tokens nothing.
        assert!(
            distinct > TOKENS / 4 && closest > CLOSE,
            "another seed makes a model that tells heads apart"
        );
        wanted.push(tokens);
    }

    for (prompt, wanted) in prompts.iter().zip(&wanted) {
        let [exchange] = local::group(1).try_into().expect("one endpoint");
        let mut engine = Engine::new(&config, &tensors, HeadGroup::data_parallel(1, 0)?, exchange)?;
        compare("lmhead, one rank", wanted, &engine.generate(prompt, TOKENS, 1)?)?;
    }

    // Rank 1 has a token in every other step only, and is idle in the rest.
    let generated = std::thread::scope(|scope| {
        let (config, tensors, prompts) = (&config, &tensors, &prompts);
        let ranks: Vec<_> = local::group(2)
            .into_iter()
            .enumerate()
            .map(|(rank, exchange)| {
                scope.spawn(move || {
                    let mut engine =
                        Engine::new(config, tensors, HeadGroup::data_parallel(2, rank)?, exchange)?;
                    engine.generate(&prompts[rank], TOKENS / (1 + rank), 1 + rank)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect::<Result<Vec<_>>>()
    })?;
    for (rank, tokens) in generated.iter().enumerate() {
        compare(&format!("lmhead, rank {rank} of two that share it"), &wanted[rank][..tokens.len()], tokens)?;
    }
    Ok(())
}
