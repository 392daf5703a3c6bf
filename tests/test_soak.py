"""The soak's own judgement: it must see a wrong bit, a leak and growth, and nothing in noise."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from edge.agent_process import agent_process
from tests.clients_400 import run
from tests.exact import MODELS, Answer, exact_bundle, make_question
from tests.soak_serving import (
    MAX_BODY_BYTES,
    MAX_GROWTH_BYTES,
    Level,
    Soak,
    growth_problem,
    leaks,
    theil_sen,
)

LEVEL = Level(at_s=0.0, resident_bytes=100 << 20, threads=10, descriptors=14)


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_is_right_only_if_every_value_is(model: str) -> None:
    question = make_question(np.random.default_rng(0), model, rows=3)
    scale, offset = MODELS[model]
    y = scale * question.x + offset
    outputs = [
        {"name": "y", "shape": [3, 4], "data": y.ravel().tolist()},
        {"name": "s", "shape": [3], "data": y.sum(axis=1).tolist()},
    ]

    def answer(status: int = 200) -> Answer:
        body = json.dumps({"outputs": outputs}).encode()
        return Answer(status=status, headers={}, body=body)

    assert question.is_right(answer())
    assert not question.is_right(answer(status=500))
    assert not make_question(np.random.default_rng(1), model, rows=3).is_right(answer())
    outputs[0]["data"][11] += 0.0625  # type: ignore[index]
    assert not question.is_right(answer())
    assert not question.is_right(Answer(status=200, headers={}, body=b"{}"))


def test_the_slope_is_that_of_scipy_and_jumps_do_not_move_it() -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 600, 101))
    values = 5.0 + 0.25 * times + rng.normal(0, 1, 101)
    values[::10] += 1000.0
    expected = stats.theilslopes(values, times).slope
    assert theil_sen(times, values) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(0.25, abs=0.02)


def test_growth_beyond_what_is_allowed_is_a_problem_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 3e6, 600)
    for grown, is_problem in ((0.0, False), (3.0 * MAX_GROWTH_BYTES, True)):
        levels = [
            replace(LEVEL, at_s=float(t), resident_bytes=int(1e8 + n + grown * t / 300))
            for t, n in enumerate(noise)
        ]
        assert (growth_problem(levels) is not None) == is_problem


def test_more_threads_or_descriptors_than_before_are_leaks_and_fewer_are_not() -> None:
    assert leaks(LEVEL, replace(LEVEL, threads=9, descriptors=14)) == []
    assert leaks(LEVEL, replace(LEVEL, threads=11, descriptors=15)) == [
        "threads grew from 10 to 11",
        "descriptors grew from 14 to 15",
    ]


def test_a_second_of_every_kind_of_client_is_answered_as_it_should(tmp_path: Path) -> None:
    bundle, keys = exact_bundle(tmp_path)
    flags = ["--bundle", str(bundle), "--trusted-keys", str(keys), "--port", "0"]
    flags += ["--max-body-bytes", str(MAX_BODY_BYTES)]
    counts: Counter[tuple[str, str]] = Counter()
    with agent_process(tmp_path, flags) as (url, _):
        asyncio.run(Soak(url, counts, 1.0).run())
        closed, latencies = asyncio.run(run(url, clients=20, seconds=0.5))
    assert closed == {"right": len(latencies)}
    assert [what for _, what in counts if what.startswith(("FAILED", "WRONG"))] == []
    kinds = {"good", "trickled", "read_slowly", "bad", "vanish", "reload", "watch /metrics"}
    assert kinds <= {who for who, _ in counts}
