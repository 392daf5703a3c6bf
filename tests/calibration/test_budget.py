"""The search finds the fewest float nodes; sensitivity agrees with quantizing one node by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from calibration.budget import Budget, budget_from_text, score_from_name, search
from calibration.calibrate import HeldOut, calibrate
from calibration.errors import GateError
from calibration.graph import prepared
from calibration.placement import Placement, place, without
from calibration.qdq import quantize
from calibration.runtime import Runner, run_exposing
from calibration.samples import open_samples
from calibration.sensitivity import sensitivity
from edge.errors import UsageError
from tests.calibration.nets import conv_net, feeds_for, shared_input_net, write_samples


@pytest.mark.parametrize("make", [conv_net, shared_input_net])
def test_sensitivity_is_the_sqnr_with_one_node_quantized(make) -> None:
    model = prepared(make())
    placement, feeds = place(model), feeds_for(model, rows=6)
    values = run_exposing(model, feeds, placement.activations)
    amax = {name: float(np.abs(value).max()) for name, value in values.items()}
    got = sensitivity(model, placement, amax, [feeds])
    reference = Runner(model).run(feeds)
    assert list(got) == [node.name for node in placement.quantized]
    for node in placement.quantized:
        one = quantize(model, Placement(quantized=(node,), kept_float={}), amax)
        errors = []
        for name, answer in Runner(one).run(feeds).items():
            noise = np.square(answer - reference[name], dtype=np.float64).sum()
            signal = np.square(reference[name], dtype=np.float64).sum()
            errors.append(10 * np.log10(signal / noise))
        assert got[node.name] == pytest.approx(min(errors), abs=0.1)


def test_several_batches_count_together() -> None:
    model = prepared(conv_net())
    placement, feeds = place(model), feeds_for(model, rows=6)
    amax = dict.fromkeys(placement.activations, 4.0)
    halves = [{"x": feeds["x"][:3]}, {"x": feeds["x"][3:]}]
    ticks: list[tuple[int, int]] = []
    apart = sensitivity(model, placement, amax, halves, tick=lambda *t: ticks.append(t))
    together = sensitivity(model, placement, amax, [feeds])
    assert apart == pytest.approx(together, abs=1e-3)
    assert ticks[-1] == (4, 4)


def cost_of(costs: dict[str, float], limit: float):
    calls: list[tuple[str, ...]] = []

    def excess(names: Sequence[str]) -> float:
        calls.append(tuple(names))
        return sum(cost for name, cost in costs.items() if name not in names) - limit

    return excess, calls


@pytest.mark.parametrize("seed", range(20))
def test_the_search_finds_the_smallest_set_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = {f"n{i}": float(rng.exponential()) for i in range(9)}
    limit = sum(costs.values()) * rng.uniform(0.05, 1.1)
    order = sorted(costs, key=lambda name: -costs[name])
    excess, _ = cost_of(costs, limit)
    try:
        kept = search(order, excess, tries=99)
    except GateError:
        assert min(costs.values()) > limit
        return
    assert excess(kept) <= 0
    smaller = itertools.combinations(costs, max(0, len(kept) - 1))
    assert not kept or all(excess(names) > 0 for names in smaller)


def test_the_search_looks_at_few_sets() -> None:
    costs = {f"n{i}": 1.0 for i in range(512)}
    excess, calls = cost_of(costs, 100.5)
    assert len(search(list(costs), excess)) == 412
    assert len(calls) < 24


def test_nothing_stays_float_where_nothing_must() -> None:
    excess, calls = cost_of({"a": 1.0}, 2.0)
    assert search(["a"], excess) == ()
    assert calls == [()]


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("top1=0.5", Budget(metric="top1", limit=0.5)),
        ("cosine=0.99", Budget(metric="cosine", limit=0.99)),
        ("pkg.mod:fn=3", Budget(metric="pkg.mod:fn", limit=3.0)),
    ],
)
def test_a_budget_is_read(text: str, budget: Budget) -> None:
    assert budget_from_text(text) == budget


@pytest.mark.parametrize("text", ["", "top1", "top1=", "top1=x", "f1=1", "cosine=nan", "=1"])
def test_a_budget_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write top1=0\.5"):
        budget_from_text(text)


@pytest.mark.parametrize("name", ["nowhere:f", "math:nothing", "math:pi", ":f"])
def test_a_function_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        score_from_name(name)


def largest_error(reference, got, labels) -> float:
    return max(float(np.abs(got[name] - value).max()) for name, value in reference.items())


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (Budget(metric="sqnr", limit=10.0), {0}),
        (Budget(metric="sqnr", limit=45.0), {1}),
        (Budget(metric="tests.calibration.test_budget:largest_error", limit=9.0), {0}),
    ],
)
def test_calibrate_keeps_the_budget_on_the_held_out_samples(
    budget: Budget, counts: set[int], tmp_path: Path
) -> None:
    model = conv_net()
    result = calibrate(
        model,
        open_samples(write_samples(tmp_path / "s.npz", 100)),
        method="minmax",
        held_out=HeldOut(samples=open_samples(write_samples(tmp_path / "h.npz", 64, seed=9))),
        budget=budget,
        improve=False,  # else this net keeps every budget in int8
    )
    kept = [n for n, why in result.kept_float.items() if "budget" in why]
    assert len(kept) in counts
    assert set(result.sensitivity_db) == ({"conv1", "conv2"} if kept else set())
    if kept:
        assert kept == [min(result.sensitivity_db, key=lambda n: result.sensitivity_db[n])]
    if budget.metric == "sqnr":
        assert min(result.tensorrt.accuracy.sqnr_db, result.ort.accuracy.sqnr_db) >= budget.limit


def test_a_budget_that_nothing_keeps_is_a_clear_error(tmp_path: Path) -> None:
    samples = open_samples(write_samples(tmp_path / "s.npz", 100))
    with pytest.raises(GateError, match="even one int8 node"):
        calibrate(conv_net(), samples, method="minmax", budget=Budget(metric="sqnr", limit=150.0))
    with pytest.raises(UsageError, match="needs labels"):
        calibrate(conv_net(), samples, method="minmax", budget=Budget(metric="top1", limit=1.0))


def test_a_node_in_float_takes_its_skip_edge_with_it() -> None:
    model = conv_net()
    placement = place(model)
    fewer = without(placement, ["conv2"], "asked", model.graph)
    assert [node.name for node in fewer.quantized] == ["conv1"]
    assert fewer.skips == ()
    assert fewer.kept_float["conv2"] == "asked"
