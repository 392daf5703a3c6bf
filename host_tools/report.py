"""The calibration report: one HTML file that opens without a network."""

from __future__ import annotations

import math
from pathlib import Path

import jinja2

from calibration.calibrate import Calibrated, LayerView
from host_tools.describe import accuracy_rows, cost_line

BAR_WIDTH, BAR_HEIGHT = 420, 18
PLOT_WIDTH, PLOT_HEIGHT = 320, 110
_NAME_LENGTH = 46

_PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Calibration of {{ model }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2733; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .15rem 1.2rem .15rem 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.plots { display: flex; flex-wrap: wrap; gap: 1.2rem } figure { margin: 0 }
figcaption { font-size: .85rem; max-width: {{ plot_width }}px; overflow-wrap: anywhere }
.bar { fill: #4c78a8 } .float { fill: #b8c4d0 } .clip { stroke: #d1495b; stroke-width: 2 }
.note { color: #5b6b7b }
@media (prefers-color-scheme: dark) {
  body { color: #dbe4ee; background: #12181f } .bar { fill: #7aa6d6 } .float { fill: #4a5866 }
  .note { color: #93a3b3 } }
</style></head><body>
<h1>INT8 calibration of {{ model }}</h1>
<p>Ranges from {{ result.samples }} samples; method <b>{{ result.method }}</b>.</p>

<h2>Accuracy on samples that calibration never saw</h2>
<table><tr><th></th><th>for TensorRT</th><th>for ONNX Runtime</th></tr>
{% for name, left, right in accuracy %}
<tr><td>{{ name }}</td><td>{{ left }}</td><td>{{ right }}</td></tr>
{% endfor %}</table>
<p>{{ cost }}</p>

<h2>Methods, by signal-to-quantization-noise ratio of the outputs</h2>
<svg role="img" aria-label="SQNR by method" width="{{ bar_width + 230 }}"
  height="{{ methods|length * 24 }}" font-size="13" fill="currentColor">
{% for bar in methods %}<g transform="translate(0 {{ loop.index0 * 24 }})">
<text y="14">{{ bar.name }}</text>
<rect x="150" class="bar" width="{{ bar.width }}" height="{{ bar_height }}"/>
<text x="{{ 156 + bar.width }}" y="14">{{ bar.text }}</text></g>
{% endfor %}</svg>
{% for name, gain in result.gains_db.items() %}<p>{{ name }}: {{ "%+.1f"|format(gain) }} dB</p>
{% endfor %}

<h2>Layers, the most sensitive first</h2>
<p class="note">SQNR of the outputs with this layer alone in int8. Grey layers stay float:
{{ floats }} of {{ layers|length }}.</p>
<svg role="img" aria-label="SQNR by layer" width="{{ bar_width + 460 }}"
  height="{{ layers|length * 24 }}" font-size="13" fill="currentColor">
{% for bar in layers %}<g transform="translate(0 {{ loop.index0 * 24 }})">
<title>{{ bar.full }}</title><text y="14">{{ bar.name }}</text>
<rect x="360" class="{{ bar.kind }}" width="{{ bar.width }}" height="{{ bar_height }}"/>
<text x="{{ 366 + bar.width }}" y="14">{{ bar.text }}</text></g>
{% endfor %}</svg>

<h2>What the most sensitive layers read</h2>
<p class="note">Magnitudes of the input, logarithmic counts; the red line is where int8 clips.</p>
<div class="plots">
{% for plot in plots %}<figure>
<svg role="img" aria-label="histogram of {{ plot.tensor }}" width="{{ plot_width }}"
  height="{{ plot_height }}"><path class="bar" d="{{ plot.path }}"/>
<line class="clip" x1="{{ plot.clip }}" x2="{{ plot.clip }}" y1="0" y2="{{ plot_height }}"/></svg>
<figcaption>{{ plot.node }}<br><span class="note">{{ plot.tensor }}: 0 to {{ plot.amax }},
clipped at {{ plot.at }}; {{ plot.sqnr }} dB</span></figcaption></figure>
{% endfor %}</div>
</body></html>
""")


def report_from(result: Calibrated, model: Path) -> str:
    """Return the page for a calibration that was made with `explain`."""
    left, right = accuracy_rows(result.tensorrt.accuracy), accuracy_rows(result.ort.accuracy)
    layers = sorted(result.sensitivity_db.items(), key=lambda item: item[1])
    floats = [name for name, _ in layers if name in result.kept_float]
    return _PAGE.render(
        model=model.name,
        result=result,
        accuracy=[(name, a, b) for (name, a), (_, b) in zip(left, right, strict=True)],
        methods=[
            _bar(name, db, result.sqnr_db, "bar")
            for name, db in sorted(result.sqnr_db.items(), key=lambda item: -item[1])
        ],
        layers=[
            _bar(name, db, result.sensitivity_db, "float" if name in floats else "bar")
            for name, db in layers
        ],
        cost=cost_line(result.cost),
        floats=len(floats),
        plots=[_plot(view) for view in result.worst],
        bar_width=BAR_WIDTH,
        bar_height=BAR_HEIGHT,
        plot_width=PLOT_WIDTH,
        plot_height=PLOT_HEIGHT,
    )


def _bar(name: str, db: float, every: dict[str, float], kind: str) -> dict[str, object]:
    longest = max((*every.values(), 1.0))
    short = name if len(name) <= _NAME_LENGTH else "..." + name[3 - _NAME_LENGTH :]
    width = max(0.0, db) / longest * BAR_WIDTH
    return {
        "name": short,
        "full": name,
        "kind": kind,
        "width": round(width),
        "text": f"{db:.1f} dB",
    }


def _plot(view: LayerView) -> dict[str, object]:
    heights = [math.log1p(count) for count in view.counts]
    tallest, step = max((*heights, 1e-9)), PLOT_WIDTH / len(heights)
    ups = [f"v{-height / tallest * PLOT_HEIGHT:.1f}" for height in heights]
    bars = (
        f"M{i * step:.1f} {PLOT_HEIGHT}{up}h{step - 1:.1f}V{PLOT_HEIGHT}z"
        for i, up in enumerate(ups)
    )
    return {
        "node": view.node,
        "tensor": view.tensor,
        "path": "".join(bars),
        "clip": round(min(1.0, view.clip / view.amax) * PLOT_WIDTH, 1),
        "amax": f"{view.amax:.4g}",
        "at": f"{view.clip:.4g}",
        "sqnr": f"{view.sqnr_db:.1f}",
    }
