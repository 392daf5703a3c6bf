"""Tables fit a terminal and say what they hold; the drawing is well-formed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from edge.bench.compare import Row, Speed, compare_tables
from edge.bench.measurements import Advice, Layer
from edge.bench.plot import SERIES, svg_from_points
from edge.bench.report import advice_lines, agent_table, batch_lines, latency_table, layer_tables
from edge.bench.table import MAX_COLUMNS, number, shortened, table
from tests.edge.bench.points import LAYERS, POINT, USAGE, point, stages

HUGE = point(
    connections=1000,
    requests_per_s=123_456.0,
    rows_per_s=12_345_678.0,
    latency=replace(
        POINT.latency, p50_ms=12_345.0, p90_ms=12_345.0, p99_ms=12_345.0, p999_ms=123_456.0
    ),
    refused={429: 123_456},
    stages=stages(queue_ms=12_345.0, compute_ms=12_345.0),
    usage=replace(
        USAGE, gpu_share=1.0, gpu_memory_bytes=80_000 << 20, rss_bytes=99_000 << 20, cpu_s=1e6
    ),
)
EMPTY = point(latency=None, stages=None, runs=(), refused={503: 3}, unanswered=2, lost=1)
OPEN = point(connections=None, offered=500.0)
LONG = Layer(
    name="/encoder/layer.11/attention/self/MatMul_1_quantized_and_fused_with_everything" * 2,
    kind="CaskGemmMatrixMultiplyFusedWithMore",
    precision="int8",
    mean_ms=1234.5,
)


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize("points", [(POINT,), (HUGE,), (EMPTY,), (POINT, OPEN, HUGE, EMPTY)])
@pytest.mark.parametrize("render", [latency_table, agent_table, batch_lines])
def test_tables_of_loads_fit_80_columns(points, render):
    text = render(points)
    assert not text or widest(text) <= MAX_COLUMNS


def test_tables_of_layers_fit_80_columns_with_names_of_any_length():
    text = layer_tables(replace(LAYERS, layers=(LONG, *LAYERS.layers)))
    assert widest(text) <= MAX_COLUMNS
    assert "..everything" not in text.splitlines()[0]


def test_a_table_of_loads_holds_what_was_measured():
    (line,) = latency_table((HUGE,)).splitlines()[-1:]
    assert line.split() == [
        "1000", "conn", "123,456", "12,345,678", "12,345", "12,345", "12,345", "123,456",
        "123456x429",
    ]  # fmt: skip
    (line,) = latency_table((EMPTY,)).splitlines()[-1:]
    assert line.endswith("3x503, 1 lost, 2 open")


def test_a_table_of_layers_is_ordered_by_time_with_shares_of_all_of_it():
    text = layer_tables(LAYERS)
    rows = [line.split() for line in text.splitlines() if line.startswith("conv")]
    assert [(row[0], row[-1]) for row in rows] == [("conv1", "56%"), ("conv2", "44%")]
    (kind,) = [line.split() for line in text.splitlines() if line.startswith("QLinearConv")]
    assert kind == ["QLinearConv", "int8", "2", "0.900", "100%"]


def test_a_comparison_fits_80_columns_and_refers_to_the_first_row_that_ran():
    speeds = (
        Speed(rows=1, latency=POINT.latency, rows_per_s=100.0),
        Speed(rows=1024, latency=POINT.latency, rows_per_s=123_456.0),
    )
    fast = tuple(replace(speed, rows_per_s=2 * speed.rows_per_s) for speed in speeds)
    first = Row(
        name="original", precision=None, on_gpu=True, rss_bytes=4000 << 20, speeds=speeds,
        device_bytes=12_000 << 20, relative_error=0.0,
    )  # fmt: skip
    second = replace(
        first, name="trt-int8-of-a-very-long-name-for-orin", precision="int8", speeds=fast,
        rss_bytes=1000 << 20, device_bytes=1000 << 20, top1_percent=76.13, cosine_mean=0.9987,
    )  # fmt: skip
    refused = Row(name="trt-fp16", precision="fp16", error="the engine " + "is for others " * 9)
    text = compare_tables((refused, first, second))
    assert widest(text) <= MAX_COLUMNS
    (ratios,) = [line.split() for line in text.splitlines() if "0.9987" in line]
    assert ratios[-6:] == ["0.12x", "2.00x", "2.00x", "0.0e+00", "76.13%", "0.9987"]
    assert "trt-fp16 was not run: the engine is for others" in text


def test_advice_is_a_numbered_list_with_key_and_evidence():
    one = Advice(
        code="x", weight=0.5, evidence="what was seen " * 9, change="do " * 40, key="queue_size"
    )
    text = advice_lines((one, one))
    assert widest(text) <= MAX_COLUMNS
    assert text.count("[queue_size]") == text.count("measured: what was seen") == 2
    assert "\n2. do" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.12345, "0.123"), (1.2345, "1.23"), (12.345, "12.3"),
     (1234.5, "1,234"), (0.00012345, "0.000123")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


def test_a_long_name_keeps_both_ends():
    assert shortened("abcdefghij", 6) == "ab..ij"
    assert table(["a", "b"], [["x" * 200, "1"]]).splitlines()[-1].endswith("1")


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)


@pytest.mark.parametrize(
    "points", [(), (EMPTY,), (POINT,), (POINT, HUGE, OPEN), (POINT, POINT, EMPTY)]
)
def test_the_drawing_is_well_formed_and_stays_inside(points):
    root = parsed(svg_from_points(points, 'a <model> & "its" name'))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    (title,) = [e for e in root if e.attrib.get("class") == "title"]
    assert title.text == 'a <model> & "its" name'


def test_the_drawing_has_a_spot_for_every_percentile_of_every_load():
    text = svg_from_points((POINT, HUGE, OPEN), "x")
    spots = [e.text for e in parsed(text).iter("{http://www.w3.org/2000/svg}title")]
    assert len(spots) == 3 * len(SERIES)
    assert "p99, 8 conn: 20 ms" in spots
    assert "p50, 500/s: 9 ms" in spots


def test_higher_latency_is_drawn_higher_and_more_throughput_further_right():
    root = parsed(svg_from_points((POINT, HUGE), "x"))
    spots = {
        title.text: (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
        for circle in root.iter("{http://www.w3.org/2000/svg}circle")
        for title in circle
    }
    low, high = spots["p50, 8 conn: 9 ms"], spots["p99, 8 conn: 20 ms"]
    assert low[0] == high[0]
    assert high[1] < low[1]
    fast = next(at for name, at in spots.items() if name.startswith("p50, 1000 conn"))
    assert fast[0] > low[0]


def test_the_drawing_has_colours_for_light_and_dark_pages():
    text = svg_from_points((POINT,), "x")
    assert "prefers-color-scheme: dark" in text
    for _, _, colour in SERIES:
        for page in ("#ffffff", "#0d1117"):
            assert contrast(colour, page) >= 3  # WCAG 2.1, 1.4.11: graphical objects


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.1's definition of relative luminance."""

    def luminance(colour: str) -> float:
        parts = [int(part, 16) / 255 for part in re.findall("[0-9a-f]{2}", colour)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
