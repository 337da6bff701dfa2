"""The picture of a run of scripts/compare-pytorch, as SVG: time over M beside the roof, and each side's share of the roof.

The roof of a time is the longer of two: reading the weights once at the speed of the run's read-only stream, and the products at the
speed of the instruction in registers. The colours follow the reader's light or dark theme; those of `lmhead plan --svg`.
"""

import math
from typing import Any

STYLE = """
  svg { font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; font-size: 12px; }
  .paper { fill: #ffffff; } text { fill: #1f2328; } .faint { fill: #59636e; }
  .grid { stroke: #d8dee4; } .axis { stroke: #8c959f; }
  .line { fill: none; stroke-width: 2; } .spread { stroke-width: 1.5; }
  .own { stroke: #0072b2; } .own2 { stroke: #009e73; } .peer { stroke: #d55e00; } .peer2 { stroke: #9a6fb0; }
  circle.own { fill: #0072b2; } circle.own2 { fill: #009e73; }
  circle.peer { fill: #d55e00; } circle.peer2 { fill: #9a6fb0; }
  .roof { stroke-dasharray: 5 4; fill: none; stroke-width: 1.5; } .any { stroke: #59636e; }
  .heading { font-size: 16px; font-weight: 600; } .title { font-size: 13px; font-weight: 600; }
  .middle { text-anchor: middle; } .end { text-anchor: end; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; } text { fill: #e6edf3; } .faint { fill: #9198a1; }
    .grid { stroke: #262c36; } .axis { stroke: #6e7681; } .any { stroke: #9198a1; }
    .own { stroke: #56b4e9; } .own2 { stroke: #2fbf94; }
    .peer { stroke: #f0883e; } .peer2 { stroke: #c8a2dc; }
    circle.own { fill: #56b4e9; } circle.own2 { fill: #2fbf94; }
    circle.peer { fill: #f0883e; } circle.peer2 { fill: #c8a2dc; }
  }"""

#: Pixels.
LEFT, GAP, RIGHT, TOP, FOOT, BETWEEN = 66, 84, 24, 116, 64, 66
WIDTH, HEIGHT = 400, 220

#: Type of lmhead's -> its class, and its peer's.
CLASSES = {"bf16": ("own", "peer"), "w8a8": ("own", "peer"), "w8a16": ("own2", "peer2")}


def escape(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def text(kind: str, x: float, y: float, words: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{more}>{escape(words)}</text>'


def roof_us(told: dict[str, Any], each: dict[str, Any]) -> float:
    """What the time could be at best."""
    operations = 2 * each["rows"] * told["vocab_size"] * told["hidden_size"]
    rate = each["arithmetic_gop_per_s"]
    return max(each["read"]["median_us"], operations / rate / 1e3 if rate else 0.0)


class Series:
    """A line of both panels: (M, median, p10, p90, roof), µs."""

    def __init__(self, name: str, kind: str):
        self.name, self.kind = name, kind
        self.points: list[tuple[int, float, float, float, float]] = []

    def add(self, m: int, timing: dict[str, Any], roof: float) -> None:
        self.points.append((m, timing["median_us"], timing["p10_us"], timing["p90_us"], roof))


def series_of(told: dict[str, Any], kinds: list[str]) -> list[Series]:
    found: dict[str, Series] = {}
    for each in told["results"]:
        if each["dtype"] not in kinds:
            continue
        own, peer = CLASSES[each["dtype"]]
        roof = roof_us(told, each)
        found.setdefault(name := f"lmhead {each['dtype']}", Series(name, own)).add(each["rows"], each["lmhead"], roof)
        for theirs in each["pytorch"]:
            if "ratio" in theirs:
                found.setdefault(name := f"PyTorch {theirs['name']}", Series(name, peer)).add(each["rows"], theirs, roof)
    return list(found.values())


class Panel:
    def __init__(self, x: float, y: float, ms: list[int], low: float, high: float, log: bool):
        self.x, self.y, self.ms, self.low, self.high, self.log = x, y, ms, low, high, log

    def across(self, m: int) -> float:
        # Row counts stand at their logarithms.
        first, last = math.log(self.ms[0]), math.log(self.ms[-1])
        part = (math.log(m) - first) / (last - first) if last > first else 0.5
        return self.x + 16 + part * (WIDTH - 32)

    def up(self, value: float) -> float:
        scale = math.log if self.log else float
        part = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.y + HEIGHT - part * HEIGHT

    def frame(self, title: str, across: str, up: str, ticks: list[float], label: Any) -> list[str]:
        out = [text("title", self.x - 46, self.y - 18, title)]
        for tick in ticks:
            y = self.up(tick)
            kind = "axis" if tick == self.low else "grid"
            out.append(f'<line class="{kind}" x1="{self.x}" x2="{self.x + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
            out.append(text("faint end", self.x - 8, y + 4, label(tick)))
        for m in self.ms:
            x, bottom = self.across(m), self.y + HEIGHT
            out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            out.append(text("faint middle", x, bottom + 17, str(m)))
        out.append(text("faint middle", self.x + WIDTH / 2, self.y + HEIGHT + 36, across))
        x, y = self.x - 46, self.y + HEIGHT / 2
        out.append(text("faint middle", x, y, up, f' transform="rotate(-90 {x:.1f} {y:.1f})"'))
        return out

    def line(self, kind: str, points: list[tuple[int, float]]) -> str:
        places = " ".join(f"{self.across(m):.1f},{self.up(v):.1f}" for m, v in points)
        return f'<polyline class="{kind}" points="{places}"/>'

    def dot(self, kind: str, m: int, value: float, words: str) -> str:
        return (f'<circle class="{kind}" cx="{self.across(m):.1f}" cy="{self.up(value):.1f}" r="3.5">'
                f"<title>{escape(words)}</title></circle>")


def time_panel(x: float, y: float, title: str, lines: list[Series], ms: list[int]) -> list[str]:
    times = [t / 1e3 for s in lines for point in s.points for t in point[1:]]
    decades = range(math.floor(math.log10(min(times))), math.ceil(math.log10(max(times))) + 2)
    steps = [n * 10.0**d for d in decades for n in (1, 2, 5)]
    low = max(step for step in steps if step <= min(times))
    high = min(step for step in steps if step >= max(times))
    ticks = [step for step in steps if low <= step <= high]
    panel = Panel(x, y, ms, low, high, log=True)
    out = panel.frame(title, "rows (M), logarithmic", "ms, logarithmic", ticks, lambda tick: f"{tick:g}")
    for s in lines:
        if s.name.startswith("lmhead"):
            out.append(panel.line(f"roof {s.kind}", [(p[0], p[4] / 1e3) for p in s.points]))
    for s in lines:
        out.append(panel.line(f"line {s.kind}", [(p[0], p[1] / 1e3) for p in s.points]))
        for m, median, p10, p90, _ in s.points:
            at, top, bottom = panel.across(m), panel.up(p90 / 1e3), panel.up(p10 / 1e3)
            out.append(f'<line class="spread {s.kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
            words = f"{s.name}, M = {m}: {median / 1e3:.2f} ms ({p10 / 1e3:.2f} to {p90 / 1e3:.2f})"
            out.append(panel.dot(s.kind, m, median / 1e3, words))
    return out


def share_panel(x: float, y: float, title: str, lines: list[Series], ms: list[int]) -> list[str]:
    shares = [(s, [(m, 100 * roof / median) for m, median, _, _, roof in s.points]) for s in lines]
    high = max(100.0, math.ceil(max(v for _, points in shares for _, v in points) / 20) * 20)
    panel = Panel(x, y, ms, 0.0, high, log=False)
    ticks = [20.0 * i for i in range(round(high / 20) + 1)]
    out = panel.frame(title, "rows (M), logarithmic", "share of the roof, %", ticks, lambda tick: f"{tick:.0f}")
    out.append(panel.line("roof any", [(ms[0], 100.0), (ms[-1], 100.0)]))
    for s, points in shares:
        out.append(panel.line(f"line {s.kind}", points))
        out += [panel.dot(s.kind, m, v, f"{s.name}, M = {m}: {v:.0f} % of the roof") for m, v in points]
    return out


def legend(x: float, y: float, lines: list[Series]) -> list[str]:
    out = []
    for name, kind in [(s.name, f"line {s.kind}") for s in lines] + [("the roof of this colour's type", "roof any")]:
        out.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}"/>')
        out.append(text("faint", x + 28, y, name))
        x += 56 + len(name) * 6.6
    return out


def svg(told: dict[str, Any]) -> str:
    groups = [("16-bit weights", ["bf16"]), ("8-bit weights", ["w8a8", "w8a16"])]
    drawn = [(title, lines) for title, kinds in groups if (lines := series_of(told, kinds))]
    width = LEFT + WIDTH + GAP + WIDTH + RIGHT
    height = TOP + len(drawn) * (HEIGHT + FOOT + BETWEEN) - BETWEEN
    heading = f"A {told['vocab_size']} x {told['hidden_size']} head on {told['cpus']} CPU cores: lmhead and PyTorch"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(heading)}</title>\n<style>{STYLE}\n</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        text("heading", 20, 30, heading),
        text("faint", 20, 50, f"{told['machine']}; torch {told['versions']['torch']}; by turns in one run; medians of "
             f"{told['reps']}, bars from the 10th to the 90th percentile"),
        text("faint", 20, 67, "the roof: reading the weights at the speed of a read-only stream, or multiplying in registers, the longer"),
    ]
    for row, (title, lines) in enumerate(drawn):
        y = TOP + row * (HEIGHT + FOOT + BETWEEN)
        ms = sorted({point[0] for s in lines for point in s.points})
        out += time_panel(LEFT, y, f"{title}: time", lines, ms)
        out += share_panel(LEFT + WIDTH + GAP, y, f"{title}: share of the roof", lines, ms)
        out += legend(LEFT - 46, y + HEIGHT + FOOT - 6, lines)
    return "\n".join([*out, "</svg>"]) + "\n"
