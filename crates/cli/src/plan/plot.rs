//! The plot of a step's time over group sizes, as SVG: a panel for each machine and kind of exchange, a
//! stacked bar for each size.

use super::report::{Costs, PlanReport, SizeCost};
use crate::report::bytes;
use lmhead::cost::StepCost;
use plotters::prelude::*;

/// A step's stages, from the bottom of a bar up. Colours after Okabe and Ito, which colour-blind readers can
/// tell apart.
const STAGES: [(&str, RGBColor); 4] = [
    ("matmul (stream or compute, the longer)", RGBColor(0, 114, 178)),
    ("gather", RGBColor(230, 159, 0)),
    ("exchange", RGBColor(0, 158, 115)),
    ("latency", RGBColor(154, 143, 166)),
];

/// Pixels of a panel.
const PANEL: (u32, u32) = (560, 340);

struct Panel<'a> {
    title: String,
    /// The step of each group size with its total in µs.
    bars: Vec<(&'a SizeCost, &'a StepCost, f64)>,
    /// The fastest group size.
    fastest: usize,
}

/// The plot of every machine's costs.
pub fn svg(report: &PlanReport) -> String {
    let panels: Vec<Panel> = report.costs.iter().flat_map(panels).collect();
    let longest = panels.iter().flat_map(|panel| &panel.bars).map(|(_, _, us)| *us).fold(1e-3, f64::max);
    let (unit, factor) = if longest >= 1e4 { ("ms", 1e3) } else { ("µs", 1.0) };
    let heading = format!(
        "One step of a {} x {} {} head, {} rows on each dp rank: {unit} by the cost model, not measured",
        report.vocab_size,
        report.hidden_size,
        report.weights,
        report.costs.first().map_or(0, |costs| costs.logits.rows_per_rank)
    );
    let mut out = String::new();
    let height = 40 + PANEL.1 * report.costs.len() as u32;
    let all = SVGBackend::with_string(&mut out, (2 * PANEL.0, height)).into_drawing_area();
    let drawn = all.fill(&WHITE).and_then(|()| all.titled(&heading, ("sans-serif", 17))).and_then(|all| {
        let areas = all.split_evenly((report.costs.len(), 2));
        areas.iter().zip(&panels).try_for_each(|(area, panel)| draw(area, panel, longest / factor, factor))
    });
    drawn.and_then(|()| all.present()).expect("a string takes what is drawn");
    drop(all);
    out
}

/// The two panels of a machine: whole logits, candidates.
fn panels(costs: &Costs) -> [Panel<'_>; 2] {
    let speeds = format!("{}, {:.0} GB/s link", costs.machine, costs.logits.link_gb_per_s);
    let kept = costs.candidates.candidates.unwrap_or_default();
    let full = costs.sizes.iter().map(|size| (size, &size.logits, size.logits_us));
    let best = costs.sizes.iter().map(|size| (size, &size.candidates, size.candidates_us));
    [
        Panel {
            title: format!("{speeds}: all {} logits", costs.logits.logits_dtype),
            bars: full.collect(),
            fastest: costs.fastest_logits,
        },
        Panel {
            title: format!("{speeds}: {kept} best of each row"),
            bars: best.collect(),
            fastest: costs.fastest_candidates,
        },
    ]
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Draws a panel. Its vertical axis ends above `longest`; times in microseconds are divided by `factor`.
fn draw<'a>(area: &Area<'a>, panel: &Panel<'_>, longest: f64, factor: f64) -> Drawn<'a> {
    let Panel { title, bars, fastest } = panel;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 14))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        // Room for the legend above the bars.
        .build_cartesian_2d((0..bars.len()).into_segmented(), 0.0..longest * 1.45)?;
    let size = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(i) => bars.get(*i).map_or(String::new(), |(size, ..)| {
            format!("{}: {}", size.lmhead_tp_size, bytes(size.shard_bytes))
        }),
        _ => String::new(),
    };
    let axes = "ranks that share a head: bytes of it on each";
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(bars.len())
        .x_label_formatter(&size)
        .x_desc(axes)
        .draw()?;
    let stages_of = |step: &StepCost| [step.matmul_us(), step.gather_us, step.exchange_us, step.latency_us];
    for (stage, (name, color)) in STAGES.into_iter().enumerate() {
        let part = |(i, (_, step, _)): (usize, &(&SizeCost, &StepCost, f64))| {
            let below: f64 = stages_of(step)[..stage].iter().sum();
            let corners = [(i, below), (i + 1, below + stages_of(step)[stage])];
            let corners = corners.map(|(i, us)| (SegmentValue::Exact(i), us / factor));
            let mut part = Rectangle::new(corners, color.filled());
            part.set_margin(0, 0, 12, 12);
            part
        };
        let series = chart.draw_series(bars.iter().enumerate().map(part))?;
        let mark = move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled());
        series.label(name).legend(mark);
    }
    chart.draw_series(bars.iter().enumerate().map(|(i, (size, _, us))| {
        let star = if size.lmhead_tp_size == *fastest { " ★" } else { "" };
        let above = (SegmentValue::CenterOf(i), us / factor + longest / 20.0);
        Text::new(
            format!("{:.1}{star}", us / factor),
            above,
            ("sans-serif", 12).into_font().into_text_style(area),
        )
    }))?;
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK.mix(0.2)).draw()
}
