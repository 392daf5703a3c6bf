from __future__ import annotations

import logging

import numpy as np
import pytest

from edge.drift.metrics import drift_metrics
from edge.drift.reading import Reader
from edge.drift.watch import MAX_WAITING, DriftRules, DriftWatch
from tests.edge.drift.populations import (
    digit_logits,
    digits,
    digits_model,
    reference_of,
    summary_of,
)
from tests.fakes import FakeClock


@pytest.fixture(scope="module")
def reference():
    images, logits, _ = digits()
    summary = summary_of(digits_model(), {"image": images[:500]}, {"logits": logits[:500]})
    return reference_of(summary, np.arange(500), classes=10)


class Watched:
    """A watch, and requests of one scan each."""

    def __init__(self, reference, *, rows=100, seconds=3600.0):
        self.clock, self.changes = FakeClock(), []
        self.watch = DriftWatch(
            "digits",
            reference,
            Reader(digits_model()),
            DriftRules(rows=rows, seconds=seconds),
            on_change=lambda model, report: self.changes.append((model, report.state)),
            clock=self.clock,
            wall_clock=self.clock,
        )
        self._next = 500

    def send(self, count, *, inverted=False):
        images, _, _ = digits()
        for _ in range(count):
            image = images[self._next : self._next + 1]
            image = 1 - image if inverted else image
            self.watch.observe({"image": image}, {"logits": digit_logits(image)})
            self.watch.turn()
            self._next += 1


def test_states_go_from_collecting_to_steady_to_drifted_and_back(reference):
    watched = Watched(reference)
    watched.send(99)
    assert watched.watch.report.state == "collecting"
    assert watched.watch.report.rows == 99
    watched.send(1)
    assert watched.watch.report.state == "steady"
    watched.clock.advance(60)
    watched.send(100, inverted=True)
    drifted = watched.watch.report
    assert drifted.state == "drifted"
    assert drifted.since_s == 1060
    assert "brightness" in drifted.detail
    watched.clock.advance(60)
    watched.send(100, inverted=True)
    assert watched.watch.report.since_s == 1060
    watched.send(100)
    assert watched.watch.report.state == "steady"
    assert watched.watch.report.windows == 4
    assert watched.changes == [("digits", "steady"), ("digits", "drifted"), ("digits", "steady")]


def test_an_old_window_is_compared_with_fewer_rows(reference):
    watched = Watched(reference, seconds=600.0)
    watched.send(40, inverted=True)
    assert watched.watch.report.windows == 0
    watched.clock.advance(600)
    watched.watch.turn()
    assert watched.watch.report.compared_rows == 40
    assert watched.watch.report.state == "drifted"


def test_too_few_rows_are_never_compared(reference):
    watched = Watched(reference, seconds=600.0)
    watched.send(29, inverted=True)
    watched.clock.advance(6000)
    watched.watch.turn()
    assert watched.watch.report.state == "collecting"


def test_what_comes_too_fast_is_counted_and_not_held(reference):
    watched = Watched(reference)
    images, logits, _ = digits()
    for _ in range(MAX_WAITING + 5):
        watched.watch.observe({"image": images[:1]}, {"logits": logits[:1]})
    watched.watch.turn()
    assert watched.watch.report.skipped == 5


def test_a_large_batch_is_looked_at_in_part(reference):
    watched = Watched(reference)
    images, logits, _ = digits()
    watched.watch.observe({"image": images[:64]}, {"logits": logits[:64]})
    watched.watch.turn()
    assert watched.watch.report.rows == 16


def test_a_failure_is_logged_once_and_harms_no_request(reference, caplog):
    watched = Watched(reference)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            watched.watch.observe({"another": np.zeros((1, 1))}, {})
            watched.watch.turn()
    assert [record.getMessage()[:20] for record in caplog.records] == ["drift is not watched"]
    assert watched.watch.report.state == "collecting"


def test_numbers_that_are_none_are_large_and_no_failure(reference):
    watched = Watched(reference)
    for _ in range(100):
        image = np.full((1, 1, 32, 32), np.nan, np.float32)
        watched.watch.observe({"image": image}, {"logits": np.full((1, 10), np.nan, np.float32)})
        watched.watch.turn()
    assert watched.watch.report.state == "drifted"


def test_what_is_kept_of_a_request_is_a_copy(reference):
    watched = Watched(reference)
    images, logits, _ = digits()
    image = images[600:601].copy()
    taken = Reader(digits_model()).take({"image": image}, {"logits": logits[600:601]})
    image[:] = 0
    np.testing.assert_array_equal(taken.inputs["patch"], images[600:601])
    assert watched.watch.report.rows == 0


def test_metrics_tell_the_state_and_the_largest_distances(reference):
    watched = Watched(reference)
    watched.send(100, inverted=True)
    samples = {
        (sample.name, sample.labels.get("kind")): sample.value
        for metric in drift_metrics({"digits": watched.watch.report})
        for sample in metric.samples
    }
    assert samples["edge_drift_active", None] == 1
    assert samples["edge_drift_statistic", "input"] == pytest.approx(1.0)
    assert {kind for _, kind in samples} == {None, "input", "output", "classes", "whole"}
