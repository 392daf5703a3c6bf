"""`edge-agent bench --compare`: every variant in a process of its own, beside the original."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from edge import manifest as m
from edge.bench.compare import compare
from edge.bench.table import MAX_COLUMNS
from edge.errors import InferenceError
from tests.agents import make_config
from tests.bundles import affine_parts
from tests.edge.test_cli import run
from tests.models import affine_model


def compared_config(tmp_path: Path, **graphs: bytes):
    """A bundle with an int8 variant of its own graph, and measured accuracy."""
    manifest, files = affine_parts(graphs)
    accuracy = m.Accuracy(
        samples=9, labelled=True, fp32_top1_percent=99.5, int8_top1_percent=98.25,
        cosine_mean=0.9876, cosine_min=0.9, sqnr_db=30.0, int8_mac_percent=100.0,
    )  # fmt: skip
    manifest = replace(manifest, models=(replace(manifest.models[0], accuracy=accuracy),))
    return make_config(tmp_path, (manifest, files))


def flags(config) -> list[object]:
    return ["--compare", "--bundle", config.bundle, "--trusted-keys", config.trusted_keys,
            "--cache", config.cache, "--duration", "0.1"]  # fmt: skip


def silent(line: str) -> None:
    pass


def test_every_variant_is_measured_at_batch_1_and_at_the_largest(tmp_path):
    config = compared_config(tmp_path, int8=affine_model(offset=1.01).SerializeToString())
    rows = compare(config, model=None, framework=None, seconds=0.1, say=silent)
    assert [(row.name, row.precision, row.error) for row in rows] == [
        ("fp32", "fp32", None), ("int8", "int8", None),
    ]  # fmt: skip
    for row in rows:
        assert [speed.rows for speed in row.speeds] == [1, 8]
        assert all(speed.latency.answers >= 15 for speed in row.speeds)  # 5 rounds of 3 at least
        assert row.rss_bytes > 10 << 20
        assert row.device_bytes is None
    fp32, int8 = rows
    assert fp32.relative_error < 1e-6
    # The graph is off by 0.01 in y; golden y is 1, 3, ..., 15, of norm sqrt(680), and there are 8
    # of them; the sums s are 16 and 48, off by 0.04 each.
    assert int8.relative_error == pytest.approx(max(0.01 * 8**0.5 / 680**0.5,
                                                    0.04 * 2**0.5 / (16**2 + 48**2) ** 0.5),
                                                rel=1e-3)  # fmt: skip
    assert (fp32.top1_percent, fp32.cosine_mean) == (99.5, None)
    assert (int8.top1_percent, int8.cosine_mean) == (98.25, 0.9876)


def test_a_variant_that_does_not_open_is_a_row_with_its_reason(tmp_path):
    config = compared_config(tmp_path, int8=b"no graph")
    fp32, int8 = compare(config, model=None, framework=None, seconds=0.1, say=silent)
    assert fp32.error is None
    assert "ONNX Runtime cannot open" in int8.error
    assert int8.speeds == ()


def test_nothing_that_opens_is_an_error_with_all_reasons(tmp_path):
    config = compared_config(tmp_path, int8=b"no graph", fp32=b"nor this")
    with pytest.raises(InferenceError, match=r"fp32: .*int8: "):
        compare(config, model=None, framework=None, seconds=0.1, say=silent)


@pytest.fixture
def framework(tmp_path):
    """An installed package that offers a framework, as its metadata says; found on a path."""
    site = tmp_path / "site"
    (site / "offer-0.dist-info").mkdir(parents=True)
    (site / "offer-0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: offer\nVersion: 0\n"
    )
    (site / "offer-0.dist-info" / "entry_points.txt").write_text(
        "[edge_kit.framework]\na-first = offer:opened\n"
    )
    (site / "offer.py").write_text(
        textwrap.dedent("""
            from edge.errors import UsageError

            class Original:
                on_gpu = False

                def run(self, feeds):
                    y = 2 * feeds["x"] + 1
                    return {"y": y, "s": y.sum(axis=1)}

            def opened(source, inputs, outputs, threads):
                print("loading: libraries print as they like")
                if source != "m:f":
                    raise UsageError(f"no {source} here")
                assert [spec.name for spec in inputs] == ["x"]
                assert [spec.name for spec in outputs] == ["y", "s"]
                return Original()
        """)
    )
    return site


def test_the_original_is_the_first_row_and_the_others_are_related_to_it(
    tmp_path, framework, monkeypatch
):
    config = compared_config(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(framework), prepend=":")
    done = run("bench", *flags(config), "--framework", "m:f", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["name"], row["error"]) for row in rows] == [
        ("original", None), ("fp32", None), ("int8", None),
    ]  # fmt: skip
    assert rows[0]["relative_error"] == 0
    table = run("bench", *flags(config), "--framework", "m:f").stdout
    assert "times original" in table
    assert max(map(len, table.splitlines())) <= MAX_COLUMNS


def test_an_original_that_cannot_be_opened_costs_one_row(tmp_path, framework, monkeypatch):
    config = compared_config(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(framework), prepend=":")
    done = run("bench", *flags(config), "--framework", "other")
    assert done.returncode == 0
    assert "original was not run: no other here" in done.stdout
    assert "times fp32" in done.stdout


def test_forcing_a_variant_makes_no_comparison(tmp_path):
    done = run("bench", *flags(compared_config(tmp_path)), "--variant", "fp32")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "leave out --variant" in done.stderr
