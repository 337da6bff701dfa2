//! `lmhead plan`: it predicts what `lmhead run` measures; its table, `auto`'s choices, its plot, its errors.

use super::*;
use serde_json::{Value, json};

fn plan(args: &[&str]) -> Value {
    let args: Vec<&str> = ["plan", "--json"].iter().chain(args).copied().collect();
    serde_json::from_str(&good(&args)).expect("JSON")
}

/// Every rank's shard, bytes and rounds agree, over heads, layouts, requests and settings, with and without
/// headers.
#[test]
fn a_plan_is_what_a_run_measures() {
    let files = Files::new();
    let tensors = [bf16_tensor("lm_head.weight", &[150, 20], 1), f32_tensor("lm_head.bias", &[150], 5)];
    write(&files.path("model/model.safetensors"), &tensors);
    let model = files.name("model");
    let tiny = ["--preset", "tiny"];
    let stored = ["--model", &model];
    let settings: [(&str, &str); 4] = [
        ("plain", ""),
        ("split", "split_rows_over_tp = true"),
        ("chunks", "logprobs_chunk_bytes = 20000"),
        ("f32", "hidden_dtype = \"f32\""),
    ];
    let verify = ["verify = \"always\"", "verify = \"prepare\""];
    for (name, text) in settings {
        for (v, verify) in verify.iter().enumerate() {
            std::fs::write(files.path(&format!("{name}{v}.toml")), format!("{text}\n{verify}")).unwrap();
        }
    }
    let table: Vec<(&[&str], &str, &str)> = vec![
        // head, settings, layout and request
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 4"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 4 --logits-dtype bf16"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 2 --logits-dtype f16"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 1"),
        (&tiny, "plain", "--rows 3,3,3,3,3 --lmhead-tp-size 5 --request argmax"),
        (&tiny, "plain", "--rows 1,2,3,4,5,6 --lmhead-tp-size 3 --request topk:8"),
        // Shards of 64 ids and fewer, less than k.
        (&tiny, "plain", "--rows 1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8 --lmhead-tp-size 18 --request topk:100"),
        (&tiny, "plain", "--rows 2,5 --tp 2 --lmhead-tp-size 4 --request topk:3"),
        (&tiny, "plain", "--rows 2,5 --tp 2 --lmhead-tp-size -1"),
        (&tiny, "plain", "--rows 2,5 --tp 3 --lmhead-tp-size 1 --request argmax"),
        (&tiny, "plain", "--rows 9 --tp 4"),
        (&tiny, "split", "--rows 2,5 --tp 2 --lmhead-tp-size 4"),
        (&tiny, "split", "--rows 2,5 --tp 3 --lmhead-tp-size 3 --request topk:9"),
        (&tiny, "split", "--rows 7,1 --tp 4 --lmhead-tp-size 1"),
        (&tiny, "split", "--rows 7,4 --tp 2 --lmhead-tp-size 4 --request logprobs:2"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 4 --request logprobs"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 2 --request logprobs:300"),
        (&tiny, "chunks", "--rows 40,0,13,27 --lmhead-tp-size 4 --request logprobs:5"),
        (&tiny, "chunks", "--rows 40,1 --tp 2 --lmhead-tp-size 4 --request logprobs:5"),
        (&tiny, "chunks", "--rows 0,0 --lmhead-tp-size 2 --request logprobs:5"),
        (&tiny, "chunks", "--rows 31 --request logprobs:1"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 4 --quantize w8a8"),
        (&tiny, "f32", "--rows 7,0,12,9 --lmhead-tp-size 4 --quantize w8a16 --request argmax"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 4 --request sample"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 2 --request sample --temperature 0"),
        (&tiny, "plain", "--rows 3,3,3,3,3 --lmhead-tp-size 5 --request sample --min-p 0.1"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 4 --request sample --top-p 0.5"),
        (&tiny, "plain", "--rows 2,5 --tp 2 --lmhead-tp-size 4 --request sample --top-p 0.5"),
        (&tiny, "split", "--rows 7,4 --tp 2 --lmhead-tp-size 4 --request sample --top-p 0.5 --min-p 0.01"),
        (&tiny, "plain", "--rows 9 --tp 4 --request sample --top-k 300 --top-p 0.5"),
        (&tiny, "plain", "--rows 5 --request sample --top-p 0.5"),
        (&tiny, "plain", "--rows 7,0,12,9 --lmhead-tp-size 4 --request sample:3"),
        (&tiny, "plain", "--rows 2,5 --tp 2 --lmhead-tp-size 4 --request sample:0 --top-p 0.5"),
        (&tiny, "split", "--rows 7,4 --tp 2 --lmhead-tp-size 4 --request sample:300 --temperature 0"),
        // So many rows that the cuts of top-p take five, six and six rounds instead of four.
        (&tiny, "plain", "--rows 90,0,10,0,200 --lmhead-tp-size 5 --request sample --top-p 0.5"),
        (&tiny, "split", "--rows 900,30 --tp 2 --lmhead-tp-size 4 --request sample --top-p 0.5 --top-k 990"),
        (&tiny, "plain", "--rows 30,801 --tp 2 --lmhead-tp-size 4 --request sample --top-p 0.5 --top-k 990"),
        (&tiny, "plain", "--rows 0,0 --lmhead-tp-size 2"),
        (&stored, "plain", "--rows 3,1,2,1 --lmhead-tp-size 4"),
        (&stored, "plain", "--rows 3,4 --lmhead-tp-size 2 --quantize w8a8 --request topk:140"),
        (&stored, "chunks", "--rows 3,4 --tp 2 --lmhead-tp-size 4 --request logprobs:2"),
    ];
    for (head, settings, rest) in table {
        for v in 0..verify.len() {
            let config = files.name(&format!("{settings}{v}.toml"));
            let mut args = head.to_vec();
            args.extend(rest.split(' ').chain(["--config", &config]));
            let planned = plan(&args);
            let run: Vec<&str> =
                ["run", "--json", "--steps", "1", "--threads", "1"].iter().chain(&args).copied().collect();
            let measured: Value = serde_json::from_str(&good(&run)).unwrap();
            let kind = if v == 0 { "verified" } else { "unverified" };
            for same in [
                "vocab_size",
                "hidden_size",
                "weights",
                "quantization",
                "dp",
                "tp",
                "lmhead_tp_size",
                "request",
            ] {
                assert_eq!(planned[same], measured[same], "{args:?}: {same}");
            }
            for what in ["rounds", "bytes_exchanged"] {
                assert_eq!(planned[kind][what], measured["step"][what], "{args:?}: {what}");
            }
            assert_eq!(
                planned["verified"]["full_logits_bytes"], measured["step"]["full_logits_bytes"],
                "{args:?}"
            );
            let (ranks, their) =
                (planned["ranks"].as_array().unwrap(), measured["ranks"].as_array().unwrap());
            assert_eq!(ranks.len(), their.len(), "{args:?}");
            for (rank, their) in ranks.iter().zip(their) {
                let what = format!("{args:?}, rank {}", rank["rank"]);
                for same in ["rank", "dp", "tp", "shard", "shard_bytes"] {
                    assert_eq!(rank[same], their[same], "{what}: {same}");
                }
                assert_eq!(rank["rows"], their["hidden_rows"], "{what}");
                assert_eq!(
                    planned["groups"][rank["group"].as_u64().unwrap() as usize],
                    their["group"],
                    "{what}"
                );
                let traffic = &rank[kind];
                for same in ["rounds", "bytes_sent", "bytes_received"] {
                    assert_eq!(traffic[same], their[same], "{what}: {same}");
                }
            }
        }
    }
}

/// 32 data-parallel ranks with 28 rows each on H100s: the cost model's times, calculated by hand, in whole
/// µs.
#[test]
fn the_table_over_group_sizes() {
    let files = Files::new();
    // Two collectives, as in the table, because there are no headers.
    std::fs::write(files.path("bare.toml"), "verify = \"prepare\"").unwrap();
    let args = "--preset deepseek-v3 --dp 32 --machine h100-nvlink,h100-infiniband --logits-dtype bf16";
    let config = files.name("bare.toml");
    let args: Vec<&str> = args.split(' ').chain(["--config", &config]).collect();
    let planned = plan(&args);
    #[rustfmt::skip]
    let table = [
        // ranks, MB, stream, arithmetic; NVLink: gather, logits, total, total of 64 best; InfiniBand the same
        (1, 1853, 615, 70, [0, 0, 615, 615], [0, 0, 615, 615]),
        (4, 463, 154, 70, [3, 15, 196, 181], [27, 121, 341, 221]),
        (8, 232, 77, 70, [8, 18, 126, 109], [62, 141, 320, 182]),
        (16, 116, 38, 70, [17, 19, 130, 111], [134, 151, 395, 249]),
        (32, 58, 19, 70, [35, 19, 148, 130], [277, 156, 542, 397]),
    ];
    let whole = |value: &Value| value.as_f64().unwrap().round() as u64;
    for (machine, costs) in planned["costs"].as_array().unwrap().iter().enumerate() {
        for (p, mb, stream, flop, nvlink, infiniband) in table {
            let sizes = costs["sizes"].as_array().unwrap();
            let size = sizes.iter().find(|size| size["lmhead_tp_size"] == p).unwrap();
            // The largest shard may exceed the even share by a block of 64 ids.
            let bytes = size["shard_bytes"].as_f64().unwrap() / 1e6;
            assert!((bytes - f64::from(mb)).abs() < 0.5 + 64.0 * 7168.0 * 2.0 / 1e6, "P {p}: {bytes} MB");
            let (full, best) = (&size["logits"], &size["candidates"]);
            let matmul =
                [&full["stream_us"], &full["flop_us"], &best["stream_us"], &best["flop_us"]].map(whole);
            assert_eq!(matmul, [stream, flop, stream, flop], "P {p}");
            let got = [&full["gather_us"], &full["exchange_us"], &size["logits_us"], &size["candidates_us"]];
            assert_eq!(
                got.map(whole),
                if machine == 0 { nvlink } else { infiniband },
                "P {p}, machine {machine}"
            );
        }
        assert_eq!((&costs["fastest_logits"], &costs["fastest_candidates"]), (&json!(8), &json!(8)));
    }
    assert_eq!(planned["legal_sizes"], json!([1, 2, 4, 8, 16, 32]));
    assert_eq!((&planned["lmhead_tp_size"], &planned["rule"]), (&json!(8), &json!("auto_fastest")));
    let printed = good(&[&["plan"], &args[..]].concat());
    for words in [
        "4 groups of ranks: 0-7  8-15  16-23  24-31",
        "8 ranks share a head (auto: the fastest of the legal sizes by the cost model)",
        "* 126.2 µs",
        "* 320.1 µs",
        "not a measurement",
        "latency is that of every collective (2 in a step)",
        "cost_model = { rows_per_rank = 28, memory_gb_per_s = 3015.0",
    ] {
        assert!(printed.contains(words), "{words}\n{printed}");
    }
}

/// A step takes the latency of each of its rounds: two without headers, three with, 13 or more where top-p
/// needs cuts.
#[test]
fn every_collective_costs_its_latency() {
    let files = Files::new();
    for (v, verify) in ["always", "prepare"].iter().enumerate() {
        std::fs::write(files.path(&format!("v{v}.toml")), format!("verify = \"{verify}\"")).unwrap();
    }
    // Rounds of a verified step that exchanges whole logits, and of one that exchanges candidates.
    for (rest, logits, candidates) in [
        ("--dp 8", 3, 3),
        ("--dp 8 --request argmax", 3, 3),
        // Headers, rows, parameters, largest logits, four histograms and four cuts, candidates.
        ("--dp 8 --request sample --top-p 0.5", 3, 13),
        ("--dp 8 --request sample --temperature 0", 3, 4),
        // Headers; the targets' ids; rows, logits of targets and partials of one chunk.
        ("--dp 8 --request logprobs:2", 3, 5),
    ] {
        for (v, headers) in [(0, 1), (1, 0)] {
            let config = files.name(&format!("v{v}.toml"));
            let args =
                format!("--preset deepseek-v3 {rest} --machine h100-nvlink --latency-us 7 --config {config}");
            let args: Vec<&str> = args.split(' ').collect();
            let planned = plan(&args);
            for size in planned["costs"][0]["sizes"].as_array().unwrap() {
                let alone = size["lmhead_tp_size"] == 1;
                for (kind, rounds) in [("logits", logits), ("candidates", candidates)] {
                    let rounds = if alone { 0 } else { rounds - 1 + headers };
                    assert_eq!(size["collectives"][kind], rounds, "{args:?} {kind}: {size}");
                    assert_eq!(size[kind]["latency_us"], 7.0 * rounds as f64, "{args:?} {kind}: {size}");
                }
            }
            let of_step = planned[["verified", "unverified"][v]]["rounds"].as_u64().unwrap();
            let asked = if rest.contains("--request") { candidates } else { logits };
            if planned["lmhead_tp_size"] != 1 {
                assert_eq!(of_step, asked - 1 + headers, "{args:?}");
            }
            assert_eq!(planned["auto"]["cost_model"]["collectives"], asked - 1 + headers, "{args:?}");
        }
    }
    let args = "plan --preset deepseek-v3 --dp 8 --machine h100-nvlink --request sample --top-p 0.5";
    let printed = good(&args.split(' ').collect::<Vec<_>>());
    for words in ["36.0 µs", "156.0 µs", "(3 in a step with logits, 13 with candidates)"] {
        assert!(printed.contains(words), "{words}\n{printed}");
    }
}

/// With the setting that a plan prints, `run` and another plan choose the same size.
#[test]
fn auto_goes_by_what_is_configured() {
    let files = Files::new();
    let choice = |args: &str| {
        let planned = plan(&args.split(' ').collect::<Vec<_>>());
        (planned["lmhead_tp_size"].clone(), planned["rule"].as_str().unwrap().to_string())
    };
    assert_eq!(choice("--preset tiny --dp 8"), (json!(1), "auto_replicated".into()));
    assert_eq!(choice("--preset tiny --dp 8 --tp 2"), (json!(2), "auto_tensor_parallel".into()));
    assert_eq!(
        choice("--preset tiny --dp 8 --tp 2 --lmhead-tp-size -1"),
        (json!(2), "tensor_parallel".into())
    );
    assert_eq!(choice("--preset tiny --dp 8 --lmhead-tp-size 4"), (json!(4), "asked".into()));
    // Slow memory, a fast link.
    let speeds = "--memory-gb-per-s 1 --tflops 100 --link-gb-per-s 10 --latency-us 1";
    let args = format!("--preset tiny --dp 8 --rows-per-rank 4 {speeds}");
    assert_eq!(choice(&args), (json!(8), "auto_fastest".into()));
    let printed = good(&[&["plan"], &args.split(' ').collect::<Vec<_>>()[..]].concat());
    let setting =
        printed.lines().find_map(|line| line.strip_prefix("as a setting, for auto to go by: ")).unwrap();
    std::fs::write(files.path("c.toml"), setting).unwrap();
    let config = files.name("c.toml");
    assert_eq!(choice(&format!("--preset tiny --dp 8 --config {config}")), (json!(8), "auto_fastest".into()));
    let run = good(&["run", "--preset", "tiny", "--dp", "8", "--config", &config, "--json", "--steps", "1"]);
    assert_eq!(serde_json::from_str::<Value>(&run).unwrap()["lmhead_tp_size"], 8);
    // Options override the configuration: with a latency of a second no ranks share.
    let slow = format!("--preset tiny --dp 8 --config {config} --latency-us 1000000");
    assert_eq!(choice(&slow), (json!(1), "auto_fastest".into()));
}

/// The kernels of a step, chosen and not chosen.
#[test]
fn a_plan_lists_kernels_and_what_each_would_cost() {
    let args = ["--preset", "deepseek-v3", "--dp", "8", "--tp", "2", "--lmhead-tp-size", "16"];
    let planned = plan(&[&args[..], &["--kernels", "h100"]].concat());
    let kernels = &planned["kernels"];
    // All rows of eight replicas, and a sixteenth of the head.
    assert_eq!((&kernels["rows"], &kernels["ids"]), (&json!(8 * 28), &json!(8128)));
    let candidates = kernels["candidates"].as_array().unwrap();
    let total = |candidate: &Value| candidate["clocks"]["total"].as_f64().unwrap();
    assert!(candidates.len() > 5 && candidates.is_sorted_by(|one, other| total(one) <= total(other)));
    let chosen = candidates[0]["kernel"].as_str().unwrap();
    let plan_of = |key: &str| kernels[key].as_str().unwrap().to_string();
    assert!(plan_of("chosen").starts_with("stage_rows on 256 blocks, then wgmma_matmul_bf16_"), "{kernels}");
    assert!(plan_of("chosen").contains(chosen) && kernels["layout"] == "packed", "{kernels}");
    assert!(plan_of("row_major").starts_with("gather_matmul_bf16_"), "{kernels}");
    assert_eq!(plan(&args)["kernels"], Value::Null);

    let printed = good(&[&["plan", "--kernels", "a100", "--quantize", "w8a8"], &args[..]].concat());
    let lines = [
        "A100, w8a8 of bf16 rows: 224 rows x 8128 ids",
        "quantize_rows_bf16 on 224 blocks, then quant_matmul_",
    ];
    for words in lines.into_iter().chain(["% more", "bound by ", "every plan gives the same bits"]) {
        assert!(printed.contains(words), "{words}\n{printed}");
    }
    let refused =
        bad(&["plan", "--vocab-size", "64", "--hidden-size", "8", "--weights", "f32", "--kernels", "l40s"]);
    assert!(refused.contains("use the cpu backend for f32 heads"), "{refused}");
    let refused = bad(&["plan", "--preset", "tiny", "--kernels", "h200"]);
    assert!(refused.contains("h100, a100, l40s"), "{refused}");
}

/// The message of a refused plan.
fn bad(args: &[&str]) -> String {
    let out = lmhead(args);
    assert!(!out.status.success(), "{args:?}: {}", text(&out.stdout));
    text(&out.stderr)
}

/// A profile with speeds that are easy to calculate with: 1 GB/s of memory and of the link, 1 GFLOP/s.
fn slow_profile() -> Value {
    let step = |ranks: u64, rows: u64, request: &str, dtype: Value, us: f64| {
        json!({
            "vocab_size": 1000, "hidden_size": 100, "weights": "bf16", "ranks": ranks, "rows_per_rank": rows,
            "request": request, "logits_dtype": dtype, "median_us": us, "p10_us": us / 2.0, "p90_us": us * 2.0,
        })
    };
    json!({
        "name": "slow", "transport": "pigeons", "ranks": 2, "machine": "a loft", "cpus": 1, "commit": "abc",
        "date": "2026-01-02", "command": "by hand", "load_average": 0.5,
        "memory_gb_per_s": 1.0, "tflops": 0.001, "link_gb_per_s": 1.0, "latency_us": 10.0,
        "steps": [
            step(2, 3, "argmax", Value::Null, 1266.0),
            step(2, 3, "topk:4", Value::Null, 633.0),
            step(4, 3, "logits", json!("f16"), 1.0),
        ],
    })
}

/// Predictions beside measurements, calculated by hand.
#[test]
fn a_profile_compares_its_measured_steps_with_the_model() {
    let files = Files::new();
    let path = files.name("slow.json");
    std::fs::write(files.path("slow.json"), slow_profile().to_string()).unwrap();
    let args = ["--preset", "tiny", "--dp", "4", "--profile", &path];
    let planned = plan(&args);
    let costs = &planned["costs"][0];
    assert_eq!((&costs["machine"], &costs["logits"]["latency_us"]), (&json!("slow"), &json!(10.0)));
    let predicted: Vec<f64> = costs["measured"]["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["predicted_us"].as_f64().unwrap())
        .collect();
    // 3 rows of 100 bf16 are 600 bytes, at 1000 bytes a µs; a step has three collectives of 10 µs.
    let (gather, latency) = (0.6, 30.0);
    // Per rank 2 * 2 * 3 * 100 * 1000 / 2 operations at 1000 a µs, longer than 100 kB of weights take.
    let matmul = 600.0;
    let wanted = [
        // One candidate of each of 3 rows is 16 bytes.
        matmul + gather + 0.048 + latency,
        matmul + gather + 3.0 * 40.0 / 1000.0 + latency,
        // Three quarters of 3 * 1000 f16 logits; rows arrive from three ranks.
        matmul + 3.0 * gather + 4.5 + latency,
    ];
    for (got, want) in predicted.iter().zip(wanted) {
        assert!((got - want).abs() < 1e-6, "{predicted:?}, wanted {wanted:?}");
    }
    let ratio = costs["measured"]["steps"][0]["measured_to_predicted"].as_f64().unwrap();
    assert!((ratio - 1266.0 / wanted[0]).abs() < 1e-9);
    let printed = good(&[&["plan"], &args[..]].concat());
    for words in [
        "measured over pigeons on a loft, 1 CPUs, load average 0.5; 2026-01-02, commit abc, by hand",
        "one rank while 2 work at once",
        "1000 x 100 bf16",
        "logits f16",
    ] {
        assert!(printed.contains(words), "{words}\n{printed}");
    }
    // Speeds given as options apply to the plan, but not to the profile's own predictions.
    let faster = plan(&[&args[..], &["--latency-us", "1"]].concat());
    assert_eq!(faster["costs"][0]["logits"]["latency_us"], 1.0);
    assert_eq!(faster["costs"][0]["measured"], costs["measured"]);
}

/// Every built-in profile has steps measured over several sizes, and says where and when.
#[test]
fn profiles_that_come_with_the_program() {
    for transport in ["local", "callbacks", "processes", "mpi"] {
        let name = format!("cpu2-{transport}");
        let planned = plan(&["--preset", "tiny", "--dp", "4", "--profile", &name]);
        let costs = &planned["costs"][0];
        assert_eq!((&costs["machine"], &costs["measured"]["transport"]), (&json!(name), &json!(transport)));
        let steps = costs["measured"]["steps"].as_array().unwrap();
        let sizes: std::collections::BTreeSet<u64> =
            steps.iter().map(|step| step["ranks"].as_u64().unwrap()).collect();
        assert!(sizes.len() >= 3 && steps.len() >= 3 * sizes.len(), "{name}: {sizes:?}");
        for key in ["machine", "commit", "date", "command"] {
            let text = costs["measured"][key].as_str().unwrap();
            assert!(!text.is_empty() && !text.contains("dirty"), "{name}: {key} {text}");
        }
    }
}

#[test]
fn profiles_that_are_none_are_refused_by_name() {
    let files = Files::new();
    let refused = |profile: &str, more: &[&str]| {
        bad(&[&["plan", "--preset", "tiny", "--dp", "4", "--profile", profile], more].concat())
    };
    let said = refused("cpu3", &[]);
    assert!(said.contains("--profile: wanted one of cpu2-local, cpu2-callbacks,"), "{said}");
    assert!(said.contains("or a profile's file, got `cpu3`; write one by `cargo bench"), "{said}");
    let path = files.name("p.json");
    let wrong = |change: &dyn Fn(&mut Value), words: &str| {
        let mut profile = slow_profile();
        change(&mut profile);
        std::fs::write(files.path("p.json"), profile.to_string()).unwrap();
        let said = refused(&path, &[]);
        assert!(said.contains("p.json: ") && said.contains(words), "{said}\nwanted {words}");
    };
    wrong(&|p| drop(p.as_object_mut().unwrap().remove("tflops")), "it is no profile: missing field `tflops`");
    wrong(&|p| p["speed"] = 1.into(), "it is no profile: unknown field `speed`");
    wrong(&|p| p["tflops"] = 0.into(), "wanted speeds above 0");
    wrong(&|p| p["steps"][0]["request"] = "guess".into(), "steps[0]: --request: wanted logits, argmax");
    wrong(&|p| p["steps"][1]["ranks"] = 0.into(), "steps[1]: ");
    let said = refused("cpu2-local", &["--quantize", "w8a8"]);
    assert!(said.contains("--profile: wanted a head whose products are of 16 bits"), "{said}");
}

#[test]
fn pipeline_stages_orders_and_sizes_by_hand() {
    let sizes = "--vocab-size 1000 --hidden-size 32 --dp 2 --tp 2 --pp 3 --lmhead-tp-size 4";
    let planned = plan(&sizes.split(' ').collect::<Vec<_>>());
    assert_eq!(planned["groups"], json!([[4, 5, 10, 11]]), "the last stage of vLLM's order");
    assert_eq!((&planned["weights"], &planned["head_bytes"]), (&json!("bf16"), &json!(64_000)));
    let megatron = format!("{sizes} --rank-order pp-dp-tp --weights f32 --quantize w8a8");
    let planned = plan(&megatron.split(' ').collect::<Vec<_>>());
    assert_eq!(planned["groups"], json!([[8, 9, 10, 11]]));
    assert_eq!((&planned["weights"], &planned["head_bytes"]), (&json!("i8"), &json!(36_000)));
    assert_eq!(planned["hidden_dtype"], "f32");
    // The largest plan allowed takes a moment, and its list is complete.
    let planned = plan(
        &"--vocab-size 1000 --hidden-size 32 --dp 65536 --lmhead-tp-size 65536"
            .split(' ')
            .collect::<Vec<_>>(),
    );
    assert_eq!(planned["ranks"].as_array().unwrap().len(), 65_536);
}

/// Sums over all ranks may overflow where each rank's own number fits.
#[test]
fn huge_sums_do_not_wrap() {
    let args =
        "--vocab-size 64 --hidden-size 1073741824 --dp 65536 --rows-per-rank 16777216 --lmhead-tp-size 2";
    let planned = plan(&args.split(' ').collect::<Vec<_>>());
    let received = planned["ranks"][0]["verified"]["bytes_received"].as_f64().unwrap();
    let all = planned["verified"]["bytes_exchanged"].as_f64().unwrap();
    assert!(received > 3e16 && all > 65_536.0 * 3e16, "{received} {all}");
}

/// The plot is well-formed, has every machine and size, escapes names, and is written like any output file.
#[test]
fn the_plot() {
    let files = Files::new();
    std::fs::rename(files.path("model"), files.path("a<b>&c")).unwrap();
    let (model, out) = (files.name("a<b>&c"), files.path("plot.svg"));
    let args =
        ["--model", &model, "--dp", "12", "--machine", "h100-nvlink,h100-infiniband", "--request", "topk:5"];
    let printed = good(&[&["plan", "--svg", out.to_str().unwrap()], &args[..]].concat());
    assert!(printed.contains("written: "), "{printed}");
    let svg = std::fs::read_to_string(&out).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    for words in [
        "h100-nvlink, 360 GB/s link: all bf16 logits",
        "h100-infiniband, 45 GB/s link: 5 best of each row",
        "latency",
    ] {
        assert!(svg.contains(words), "{words}");
    }
    // 6 sizes x 2 machines x 2 kinds of exchange in the colour of each stage, and once in the legend; one
    // star in each panel.
    for color in ["#0072B2", "#E69F00", "#009E73", "#9A8FA6"] {
        assert_eq!(svg.matches(&format!("fill=\"{color}\"")).count(), (6 + 1) * 2 * 2, "{color}");
    }
    assert_eq!(svg.matches(" ★").count(), 4);
    let mut open: Vec<&str> = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("every tag ends");
        let name = tag.split([' ', '/']).find(|word| !word.is_empty()).unwrap();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name)),
            (false, false) => open.push(name),
            (false, true) => {}
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
    }
    assert!(open.is_empty());
    assert_eq!(files.entries(), 4, "no temporary file stays");
}

#[test]
fn bad_plans_are_refused_with_a_sentence() {
    let files = Files::new();
    std::fs::write(files.path("speed.toml"), "cost_model = { rows_per_rank = 1, memory_gb_per_s = 0.0, tflops = 1.0, link_gb_per_s = 1.0, latency_us = 1.0 }").unwrap();
    std::fs::write(files.path("i8.toml"), "cost_model = { rows_per_rank = 1, memory_gb_per_s = 1.0, tflops = 1.0, link_gb_per_s = 1.0, latency_us = 1.0, logits_dtype = \"i8\" }").unwrap();
    std::fs::write(files.path("tied.toml"), "tie_word_embeddings = true").unwrap();
    std::fs::write(files.path("sizes.toml"), "hidden_size = 21").unwrap();
    std::fs::write(files.path("dtype.toml"), "head_dtype = \"f32\"").unwrap();
    std::fs::write(files.path("chunk.toml"), "logprobs_chunk_bytes = 100").unwrap();
    std::fs::write(files.path("bias.toml"), "bias = true").unwrap();
    let model = files.name("model");
    let at = |name: &str| files.name(name);
    let before = files.entries();
    let tiny = |rest: &str| format!("--preset tiny {rest}");
    let table: Vec<(String, &[&str])> = vec![
        ("".into(), &["--preset, --model, --vocab-size: wanted one of them, got none"]),
        (tiny("--vocab-size 5"), &["wanted one of them, got several"]),
        (tiny(&format!("--model {model}")), &["wanted one of them, got several"]),
        ("--preset gpt-9".into(), &["--preset: wanted one of deepseek-v3", "gpt-9"]),
        (format!("--model {}", at("nowhere")), &["nowhere", "cannot be read"]),
        ("--vocab-size 5".into(), &["--vocab-size, --hidden-size: wanted both"]),
        (
            "--vocab-size 0 --hidden-size 5".into(),
            &["--vocab-size: wanted a whole number of at least 1, got `0`"],
        ),
        ("--vocab-size 5 --hidden-size -5".into(), &["--hidden-size", "got `-5`"]),
        ("--vocab-size 5000000000 --hidden-size 5".into(), &["vocab_size: wanted 1 to 1073741824"]),
        (
            "--vocab-size 5 --hidden-size 200000 --quantize w8a8".into(),
            &["hidden_size with quantization w8a8"],
        ),
        (
            "--vocab-size 5 --hidden-size 5 --weights i8".into(),
            &["--weights: wanted f32, bf16 or f16, got `i8`; for int8 add --quantize"],
        ),
        (tiny("--weights f32"), &["--weights: wanted --vocab-size and --hidden-size beside it"]),
        (tiny("--quantize int4"), &["--quantize: wanted none, w8a8 or w8a16, got `int4`"]),
        (tiny("--dp 0"), &["--dp: wanted a whole number of at least 1"]),
        (tiny("--tp two"), &["--tp", "got `two`"]),
        (tiny("--pp 0"), &["--pp: wanted a whole number of at least 1"]),
        (tiny("--dp 65537"), &["--dp, --tp, --pp: wanted at most 65536 ranks, got dp 65537 x tp 1 x pp 1"]),
        (tiny("--dp 9223372036854775807 --tp 3"), &["wanted at most 65536 ranks"]),
        (
            tiny("--dp 4 --lmhead-tp-size 3"),
            &["--lmhead-tp-size: wanted 1, or a multiple of tp = 1 that divides", "2, 4"],
        ),
        (tiny("--lmhead-tp-size many"), &["--lmhead-tp-size: wanted auto, -1", "got `many`"]),
        (tiny("--rows 3,4 --dp 3"), &["--rows: wanted 3 entries, one for each of --dp 3, got 2"]),
        (tiny("--rows 3,x"), &["--rows: wanted row counts of at least 0", "got `x`"]),
        (tiny("--rows 3,4 --rows-per-rank 3"), &["--rows-per-rank: wanted it or --rows"]),
        (tiny("--rows-per-rank -1"), &["--rows-per-rank: wanted a whole number of at least 0, got `-1`"]),
        (tiny("--rows-per-rank 16777217"), &["wanted at most 16777216 rows on a rank"]),
        (tiny("--request topk:0"), &["--request topk:K: wanted k from 1"]),
        (tiny("--request topk:1001"), &["vocabulary size, 1000", "1001"]),
        (tiny("--top-k 5"), &["--top-k: wanted --request sample beside it, got `logits`"]),
        (tiny("--request sample --top-p 0"), &["--top-p: wanted a number above 0 and at most 1, got `0`"]),
        (tiny("--request guess"), &["--request: wanted logits, argmax, topk:K", "got `guess`"]),
        (tiny("--logits-dtype i8"), &["--logits-dtype: wanted f32, bf16 or f16"]),
        (tiny("--logits-dtype bf16 --request sample"), &["--logits-dtype: wanted --request logits beside it"]),
        (
            tiny("--candidates 1001 --machine h100-nvlink"),
            &["--candidates: wanted 1 to the vocabulary size, 1000, got `1001`"],
        ),
        (tiny("--machine h100"), &["--machine: wanted one of h100-nvlink, h100-infiniband, got `h100`"]),
        (tiny("--machine "), &["--machine: wanted one of", "got ``"]),
        (tiny("--tflops 5"), &["wanted all of them where no machine is named, got 1 of them"]),
        (
            tiny("--machine h100-nvlink --latency-us inf"),
            &["--latency-us: wanted a finite number, at least 0, got `inf`"],
        ),
        (tiny("--machine h100-nvlink --tflops nan"), &["--tflops", "got `nan`"]),
        (
            tiny("--machine h100-nvlink --link-gb-per-s 0"),
            &["cost_model.link_gb_per_s: wanted a finite number above 0"],
        ),
        (tiny("--machine h100-nvlink --memory-gb-per-s -1"), &["--memory-gb-per-s", "got `-1`"]),
        (
            tiny(&format!("--config {}", at("speed.toml"))),
            &["cost_model.memory_gb_per_s: wanted a finite number above 0, got 0"],
        ),
        (
            tiny(&format!("--config {}", at("i8.toml"))),
            &["cost_model.logits_dtype: wanted f32, f16 or bf16, got i8"],
        ),
        (tiny(&format!("--config {}", at("tied.toml"))), &["tie_word_embeddings: wanted nothing"]),
        (tiny(&format!("--config {}", at("sizes.toml"))), &["hidden_size: wanted 256, the preset's, got 21"]),
        (
            tiny(&format!("--config {}", at("dtype.toml"))),
            &["head_dtype: wanted nothing (a preset's weights are made in its own type)"],
        ),
        (
            tiny(&format!("--config {} --dp 2 --lmhead-tp-size 2 --request logprobs", at("chunk.toml"))),
            &["logprobs_chunk_bytes: wanted at least"],
        ),
        (
            tiny(&format!("--config {} --request logprobs", at("chunk.toml"))),
            &["logprobs_chunk_bytes: wanted at least"],
        ),
        (format!("--model {model} --config {}", at("sizes.toml")), &["hidden_size", "21", "20"]),
        (
            tiny(&format!("--svg {}", at("p.svg"))),
            &["--svg: wanted speeds to plot by, got none; add --machine"],
        ),
        (
            tiny(&format!("--machine h100-nvlink --svg {}", at("no/such/p.svg"))),
            &["no/such does not exist", "--svg"],
        ),
        (
            format!("--model {model} --machine h100-nvlink --svg {model}/config.json"),
            &["is an input of this run"],
        ),
        (tiny("--rank-order tp-first"), &["--rank-order"]),
        (
            "--vocab-size 1073741824 --hidden-size 1073741824 --dp 65536 --rows-per-rank 16777216 --lmhead-tp-size 65536".into(),
            &["bytes of a step: wanted fewer than 2^64"],
        ),
    ];
    for (args, wanted) in &table {
        let all: Vec<&str> =
            ["plan"].into_iter().chain(args.split(' ').filter(|_| !args.is_empty())).collect();
        let out = lmhead(&all);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args}: {said}");
        for want in *wanted {
            assert!(said.contains(want), "{args}\n got {said}\nwant {want}");
        }
        assert!(said.starts_with("error: "), "{said}");
        assert_eq!(text(&out.stdout), "", "{args}");
    }
    assert_eq!(files.entries(), before, "no file was made");
}
