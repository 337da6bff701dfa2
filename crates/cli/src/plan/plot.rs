//! The plot of a step's time over group sizes, as SVG: a panel for each machine and kind of exchange, a stacked bar for each size.
//!
//! Written by hand: what a plotting crate would add (axes for any data, fonts to measure text with) is more than stacked bars need, and
//! none leaves colours to a style sheet, by which the plot follows the reader's light or dark theme.

use super::report::{Costs, Report, SizeCost};
use crate::report::bytes;
use lmhead::cost::StepCost;
use std::fmt::Write;

/// Pixels. A bar stands in the middle of its slot.
const SLOT: f64 = 66.0;
const BAR: f64 = 36.0;
const PANEL_HEIGHT: f64 = 230.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 92.0;
/// Above a panel, for its title; below, for the sizes.
const TITLE: f64 = 44.0;
const FOOT: f64 = 66.0;

/// Colours after Okabe and Ito, which colour-blind readers can tell apart; the dark theme's are the lighter ones.
const STYLE: &str = "
  svg { font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; font-size: 12px; }
  .paper { fill: #ffffff; } text { fill: #1f2328; } .faint { fill: #59636e; }
  .grid { stroke: #d8dee4; } .axis { stroke: #8c959f; }
  .matmul { fill: #0072b2; } .gather { fill: #e69f00; } .exchange { fill: #009e73; } .latency { fill: #9a8fa6; }
  .flop { stroke: #ffffff; stroke-width: 2; stroke-dasharray: 4 2; }
  .heading { font-size: 16px; font-weight: 600; } .title { font-size: 13px; font-weight: 600; }
  .fastest { font-weight: 700; } .middle { text-anchor: middle; } .end { text-anchor: end; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; } text { fill: #e6edf3; } .faint { fill: #9198a1; }
    .grid { stroke: #262c36; } .axis { stroke: #6e7681; }
    .matmul { fill: #56b4e9; } .gather { fill: #f0b432; } .exchange { fill: #2fbf94; } .latency { fill: #b3a8c0; }
    .flop { stroke: #0d1117; }
  }";

const STAGES: [(&str, &str); 4] = [
    ("matmul", "matmul (stream or arithmetic, the longer)"),
    ("gather", "gather"),
    ("exchange", "exchange"),
    ("latency", "latency"),
];

/// One bar: its group size, its stages, its sum.
struct Bar<'a> {
    size: &'a SizeCost,
    cost: &'a StepCost,
    total_us: f64,
    fastest: bool,
}

/// The plot of every machine's costs.
pub fn svg(report: &Report) -> String {
    let rows: Vec<[(String, Vec<Bar>); 2]> = report.costs.iter().map(panels).collect();
    let slots = report.legal_sizes.len() as f64;
    let panel_width = (slots * SLOT).max(350.0);
    let (width, row_height) = (2.0 * (LEFT + panel_width + RIGHT), TITLE + PANEL_HEIGHT + FOOT);
    let height = TOP + rows.len() as f64 * row_height;
    let largest = rows.iter().flatten().flat_map(|(_, bars)| bars).map(|b| b.total_us).fold(0.0, f64::max);
    let scale = Scale::to(largest);

    let mut out = String::new();
    let heading = format!(
        "One step of a {} x {} {} head, {} rows on each dp rank",
        report.vocab_size,
        report.hidden_size,
        report.weights,
        report.costs.first().map_or(0, |c| c.logits.rows_per_rank)
    );
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">"#
    );
    let _ = writeln!(out, "<title>{}</title>\n<style>{STYLE}\n</style>", escape(&heading));
    let _ = writeln!(out, r#"<rect class="paper" width="{width}" height="{height}"/>"#);
    text(&mut out, "heading", LEFT - 40.0, 30.0, &heading);
    let about = format!(
        "{} by how many ranks share the head; arithmetic of the cost model, not a measurement; ★ the fastest",
        scale.unit
    );
    text(&mut out, "faint", LEFT - 40.0, 50.0, &about);
    legend(&mut out, LEFT - 40.0, 74.0);
    for (row, pair) in rows.iter().enumerate() {
        for (column, (title, bars)) in pair.iter().enumerate() {
            let x = LEFT + column as f64 * (LEFT + panel_width + RIGHT);
            let y = TOP + TITLE + row as f64 * row_height;
            panel(&mut out, (x, y, panel_width), title, bars, &scale);
        }
    }
    out.push_str("</svg>\n");
    out
}

/// The two panels of a machine: whole logits, candidates.
fn panels(costs: &Costs) -> [(String, Vec<Bar<'_>>); 2] {
    let kept = costs.candidates.candidates.unwrap_or_default();
    let speeds = format!("{}, {:.0} GB/s link", costs.machine, costs.logits.link_gb_per_s);
    let full = costs.sizes.iter().map(|size| Bar {
        size,
        cost: &size.logits,
        total_us: size.logits_us,
        fastest: size.lmhead_tp_size == costs.fastest_logits,
    });
    let best = costs.sizes.iter().map(|size| Bar {
        size,
        cost: &size.candidates,
        total_us: size.candidates_us,
        fastest: size.lmhead_tp_size == costs.fastest_candidates,
    });
    [
        (format!("{speeds}: all {} logits", costs.logits.logits_dtype), full.collect()),
        (format!("{speeds}: {kept} best of each row"), best.collect()),
    ]
}

fn panel(out: &mut String, (x, y, width): (f64, f64, f64), title: &str, bars: &[Bar], scale: &Scale) {
    let bottom = y + PANEL_HEIGHT;
    let height = |us: f64| us / scale.top * PANEL_HEIGHT;
    text(out, "title", x - 40.0, y - 22.0, title);
    for tick in scale.ticks() {
        let at = bottom - height(tick);
        let class = if tick == 0.0 { "axis" } else { "grid" };
        let _ = writeln!(
            out,
            r#"<line class="{class}" x1="{x}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/>"#,
            x + width
        );
        text(out, "faint end", x - 8.0, at + 4.0, &scale.label(tick));
    }
    text(
        out,
        "faint middle",
        x + width / 2.0,
        bottom + 50.0,
        "ranks that share a head, and bytes of it on each",
    );
    let slot = width / bars.len() as f64;
    for (i, bar) in bars.iter().enumerate() {
        let middle = x + (i as f64 + 0.5) * slot;
        let left = middle - BAR / 2.0;
        let stages = [bar.cost.matmul_us(), bar.cost.gather_us, bar.cost.exchange_us, bar.cost.latency_us];
        let mut top = bottom;
        for ((class, _), us) in STAGES.iter().zip(stages) {
            top -= height(us);
            let _ = writeln!(
                out,
                r#"<rect class="{class}" x="{left:.1}" y="{top:.2}" width="{BAR}" height="{:.2}"><title>{} ranks: {class} {us:.1} µs</title></rect>"#,
                height(us),
                bar.size.lmhead_tp_size
            );
        }
        // Where the arithmetic is hidden behind the stream of weights.
        if bar.cost.flop_us < bar.cost.stream_us {
            let at = bottom - height(bar.cost.flop_us);
            let _ = writeln!(
                out,
                r#"<line class="flop" x1="{left:.1}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/>"#,
                left + BAR
            );
        }
        let class = if bar.fastest { "middle fastest" } else { "middle" };
        let mark = if bar.fastest { " ★" } else { "" };
        text(out, class, middle, top - 6.0, &format!("{}{mark}", scale.label(bar.total_us)));
        text(out, class, middle, bottom + 17.0, &bar.size.lmhead_tp_size.to_string());
        text(out, "faint middle", middle, bottom + 32.0, &bytes(bar.size.shard_bytes));
    }
}

fn legend(out: &mut String, mut x: f64, y: f64) {
    for (class, label) in STAGES {
        let _ =
            writeln!(out, r#"<rect class="{class}" x="{x:.1}" y="{:.1}" width="12" height="12"/>"#, y - 10.0);
        text(out, "faint", x + 18.0, y, label);
        x += 42.0 + label.len() as f64 * 6.2;
    }
    let _ = writeln!(
        out,
        r#"<rect class="matmul" x="{x:.1}" y="{:.1}" width="20" height="12"/><line class="flop" x1="{x:.1}" x2="{:.1}" y1="{:.1}" y2="{:.1}"/>"#,
        y - 10.0,
        x + 20.0,
        y - 4.0,
        y - 4.0
    );
    text(out, "faint", x + 26.0, y, "arithmetic, hidden behind the stream");
}

fn text(out: &mut String, class: &str, x: f64, y: f64, words: &str) {
    let _ = writeln!(out, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(words));
}

/// Names of machines and files are the user's.
fn escape(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The vertical axis.
struct Scale {
    unit: &'static str,
    /// Microseconds in a unit.
    factor: f64,
    step: f64,
    top: f64,
}

impl Scale {
    /// Reaches above `largest` µs, in four to nine round steps.
    fn to(largest: f64) -> Self {
        let largest = largest.max(1e-3);
        let decade = 10f64.powf((largest / 4.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * decade).into_iter().rfind(|step| step * 4.0 <= largest);
        let step = step.unwrap_or(decade);
        // Room for the label above the highest bar.
        let top = ((largest * 1.06 / step).ceil() * step).max(step);
        let (unit, factor) = match largest {
            us if us >= 1e7 => ("s", 1e6),
            us if us >= 1e4 => ("ms", 1e3),
            _ => ("µs", 1.0),
        };
        Scale { unit, factor, step, top }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let step = self.step;
        (0..=(self.top / step).round() as usize).map(move |i| i as f64 * step)
    }

    /// Whole units where there are enough of them, else digits as the steps need them.
    fn label(&self, us: f64) -> String {
        let digits = if self.step / self.factor >= 10.0 {
            0
        } else {
            1 + (-(self.step / self.factor).log10()).max(0.0).ceil() as usize
        };
        let value = us / self.factor;
        if value == 0.0 { "0".into() } else { format!("{value:.digits$}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_reach_above_the_largest_in_a_handful_of_round_steps() {
        for exponent in -20..90 {
            let largest = 1.31f64.powi(exponent);
            let scale = Scale::to(largest);
            let ticks: Vec<f64> = scale.ticks().collect();
            assert!(scale.top >= largest.max(1e-3), "{largest}: {}", scale.top);
            assert!((3..=12).contains(&ticks.len()), "{largest}: {ticks:?}");
            let labels: Vec<String> = ticks.iter().map(|t| scale.label(*t)).collect();
            let mut distinct = labels.clone();
            distinct.dedup();
            assert_eq!(labels, distinct, "{largest}");
        }
    }

    #[test]
    fn words_are_escaped() {
        assert_eq!(escape("a<b>&c"), "a&lt;b&gt;&amp;c");
    }
}
