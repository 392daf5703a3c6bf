"""What docs/observability.md says of the error of quantiles is what numpy and Prometheus say."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml

from edge.metrics import BUCKETS_S, Metrics, State
from edge.probes.sample import Sample
from tests.observability.test_promtool import needs_promtool, promtool
from tests.quantile_error import (
    DISTRIBUTIONS,
    QUANTILES,
    SCALES_S,
    counts_of,
    histogram_quantile,
    table,
    worst_case,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"
RNG = np.random.default_rng


def test_the_document_shows_the_errors_as_they_are() -> None:
    assert table() in DOCUMENT.read_text()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_no_estimate_is_further_off_than_its_bucket_allows(name: str) -> None:
    edges = (0.0, *BUCKETS_S)
    for scale, q in itertools.product(SCALES_S, QUANTILES):
        seconds = np.minimum(DISTRIBUTIONS[name](RNG(5), scale), BUCKETS_S[-1])
        exact = float(np.quantile(seconds, q, method="inverted_cdf"))
        told = histogram_quantile(q, counts_of(seconds), BUCKETS_S)
        number = int(np.searchsorted(BUCKETS_S, exact, side="left"))
        low, high = edges[number], edges[number + 1]
        assert low <= told <= high
        if low:
            assert abs(told - exact) / exact <= worst_case(low, high)


def test_an_agent_counts_into_the_buckets_that_the_table_is_made_with() -> None:
    metrics = Metrics(lambda: State(bundle="b", signed=True, models=(), sample=Sample()))
    recorder = metrics.for_model("m")
    seconds = DISTRIBUTIONS["log-normal, sigma 1"](RNG(1), 0.02)
    for value in seconds:
        recorder.record_answer(queue_s=0.0, compute_s=0.0, total_s=float(value))
    assert recorder.durations()["total"][0] == counts_of(seconds)


@pytest.mark.observability
@needs_promtool
def test_our_quantile_of_a_histogram_is_that_of_prometheus(tmp_path: Path) -> None:
    series, tests = [], []
    bounds = [*(f"{bound:g}" for bound in BUCKETS_S), "+Inf"]
    for name, draw in DISTRIBUTIONS.items():
        counts = counts_of(draw(RNG(3), 0.012))
        for bound, total in zip(bounds, itertools.accumulate(counts), strict=True):
            series.append({"series": f'x_bucket{{d="{name}",le="{bound}"}}', "values": f"{total}"})
        for q in QUANTILES:
            told = histogram_quantile(q, counts, BUCKETS_S)
            # As a question, for promtool compares floats bit by bit.
            expr = f'abs(histogram_quantile({q}, x_bucket{{d="{name}"}}) - {told!r}) < bool 1e-12'
            sample = {"labels": f'{{d="{name}"}}', "value": 1}
            tests.append({"expr": expr, "eval_time": "0s", "exp_samples": [sample]})
    case = {"interval": "1m", "input_series": series, "promql_expr_test": tests}
    path = tmp_path / "quantiles.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    promtool("test", "rules", path)
