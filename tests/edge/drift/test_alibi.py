"""The same decisions as alibi-detect's KSDrift, from a fixture and, where it is there, from it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge.drift.hypothesis import benjamini_hochberg, bonferroni, ks_p_value, ks_statistic
from tests.peers.drift_sets import CORRECTIONS, LEVEL, data_sets

REPOSITORY = Path(__file__).parents[3]
FIXTURE = REPOSITORY / "tests" / "data" / "drift_alibi.json"
PEER = REPOSITORY / ".peers" / "alibi-detect" / "bin" / "python"
JUDGES = {"bonferroni": bonferroni, "fdr": benjamini_hochberg}


@pytest.fixture(scope="module")
def recorded():
    return json.loads(FIXTURE.read_text())


def test_the_sets_hold_drift_and_none(recorded):
    verdicts = {each["bonferroni"]["is_drift"] for each in recorded["sets"].values()}
    assert len(recorded["sets"]) == 10
    assert verdicts == {True, False}


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", data_sets())
def test_distances_and_decisions_are_those_of_ksdrift(recorded, name, correction):
    reference, window = (np.sort(part, axis=0) for part in data_sets()[name])
    theirs = recorded["sets"][name][correction]
    distances = [ks_statistic(a, b) for a, b in zip(reference.T, window.T, strict=True)]
    np.testing.assert_allclose(distances, theirs["distance"], atol=1e-6)  # theirs are float32
    p_values = [ks_p_value(d, len(reference), len(window)) for d in distances]
    assert bool(JUDGES[correction](p_values, LEVEL).any()) == theirs["is_drift"]


@pytest.mark.slow
def test_the_fixture_is_what_ksdrift_says_now(recorded):
    if not PEER.is_file():
        pytest.skip("no alibi-detect in .peers/alibi-detect: run `make peers`")
    command = [str(PEER), "-W", "ignore", "-m", "tests.peers.drift_alibi"]
    done = subprocess.run(
        command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=300
    )
    assert json.loads(done.stdout) == recorded
