"""`edge-agent bench` against real agents, in this process and as the user starts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge.bench.feeds import golden_feeds, made_feeds
from edge.bench.measure import BenchPlan, Subject, bench, model_named, served_by
from edge.bench.measurements import Measurements
from edge.bench.opened import model_in, reader, verified_bundle
from edge.bench.table import MAX_COLUMNS
from edge.config import AgentConfig
from edge.config_options import flags_from_config
from edge.config_sources import load_config
from edge.errors import InferenceError, NoAgentError, UnknownModelError, UsageError
from edge.http_client import address_from_url
from edge.oip_client import get_json, infer_request, try_request
from edge.spec import TensorSpec, check_feeds
from tests.agents import make_config, running_agent, unused_port
from tests.bundles import affine_parts, joined_parts, make_key
from tests.edge.test_cli import clean_environ, run
from tests.fakes import DEADLINE_S
from tests.models import AFFINE_INPUTS, AFFINE_PROFILE

PLAN = BenchPlan(
    connections=(1, 3), rates=(200.0,), rows=2, seconds=0.3, warm_up_s=0.1, binary=True
)


def silent(line: str) -> None:
    pass


@pytest.fixture
def agent(tmp_path):
    config = make_config(tmp_path)
    with running_agent(config) as agent:
        yield address_from_url(agent.url), config


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("with_bundle", [True, False])
def test_every_load_is_measured_and_its_counters_add_up(agent, binary, with_bundle):
    address, config = agent
    subject = Subject(address=address, name="affine")
    if with_bundle:
        bundle = verified_bundle(config)
        subject = replace(subject, model=model_in(bundle, None), read=reader(bundle))
    points = bench(subject, replace(PLAN, binary=binary), say=silent)
    assert [(p.connections, p.offered) for p in points] == [(1, None), (3, None), (None, 200.0)]
    for point in points:
        assert point.failures == 0
        assert point.answers > 0
        # Every answer had two rows, and each of them ran in exactly one run.
        assert sum(run.rows * run.count for run in point.runs) == 2 * point.answers
        assert point.rows_per_s == pytest.approx(2 * point.requests_per_s)
        assert point.stages is not None
        assert point.latency is not None
        assert 0 < point.stages.total_ms < point.latency.mean_ms
        assert 0 < point.usage.engine_share < 1
        # The agent is this very process here, found by the port it listens on.
        assert point.usage.rss_bytes > 1 << 20
        assert point.usage.cpu_s > 0


def test_what_is_served_comes_from_the_agent_and_the_bundle(agent):
    address, config = agent
    bundle = verified_bundle(config)
    served = served_by(Subject(address=address, name="affine", model=model_in(bundle, None)))
    assert (served.variant, served.backend, served.on_gpu) == ("int8", "ort", False)
    assert (served.max_batch, served.batch_rows) == (8, 1)
    assert served.bundle_batches is False
    assert [speed.id for speed in served.speeds] == ["int8", "fp32"]
    assert Measurements(served=served).points == ()


def test_a_request_that_the_model_refuses_is_its_error_before_any_load(agent):
    address, _ = agent
    x = np.zeros((1, 5), np.float32)
    with pytest.raises(InferenceError, match=r"answers 400: .*shape"):
        try_request(address, infer_request("affine", {"x": x}))
    before = get_json(address, "/v2/models/affine/stats")
    with pytest.raises(UsageError, match="takes 8 rows a request, not 9"):
        bench(Subject(address=address, name="affine"), replace(PLAN, rows=9), say=silent)
    assert get_json(address, "/v2/models/affine/stats") == before


def test_a_model_that_is_not_there_is_named_with_those_that_are(agent):
    address, _ = agent
    assert model_named(address, None) == "affine"
    with pytest.raises(UnknownModelError, match="no model 'b'; it has affine"):
        model_named(address, "b")


def test_several_models_need_a_choice(tmp_path):
    parts = joined_parts(affine_parts(), affine_parts(name="other"))
    with running_agent(make_config(tmp_path, parts)) as agent:
        address = address_from_url(agent.url)
        with pytest.raises(UsageError, match="affine, other; choose one with --model"):
            model_named(address, None)
        assert model_named(address, "other") == "other"


def test_nobody_at_the_url_is_one_error_that_names_it():
    url = f"http://127.0.0.1:{unused_port()}"
    with pytest.raises(NoAgentError, match=url):
        model_named(address_from_url(url), None)


def test_golden_rows_go_round_and_made_ones_fit_the_specs(tmp_path):
    bundle = verified_bundle(make_config(tmp_path))
    model = model_in(bundle, None)
    golden = np.arange(8, dtype=np.float32).reshape(2, 4)
    feeds = golden_feeds(model, reader(bundle), rows=3, first=1)
    np.testing.assert_array_equal(feeds["x"], golden[[1, 0, 1]])
    with pytest.raises(UsageError, match="takes 8 rows at most, not 9"):
        golden_feeds(model, reader(bundle), rows=9)
    rng = np.random.default_rng(0)
    check_feeds(made_feeds(AFFINE_INPUTS, rows=5, rng=rng), AFFINE_INPUTS, AFFINE_PROFILE)
    specs = (
        TensorSpec(name="ids", datatype="INT64", shape=("n", "length")),
        TensorSpec(name="image", datatype="UINT8", shape=("n", 2)),
        TensorSpec(name="text", datatype="BYTES", shape=("n",)),
        TensorSpec(name="half", datatype="FP16", shape=("n", 3)),
    )
    made = made_feeds(specs, rows=2, length=7, rng=rng)
    assert {name: (a.shape, str(a.dtype)) for name, a in made.items()} == {
        "ids": ((2, 7), "int64"),
        "image": ((2, 2), "uint8"),
        "text": ((2,), "object"),
        "half": ((2, 3), "float16"),
    }
    assert (made["ids"] == 1).all()


def test_flags_give_another_process_the_same_configuration(tmp_path):
    config = AgentConfig(
        bundle=tmp_path / "b", port=0, batching=False, allow_unsigned=True, batch_window_ms=0.5,
        variant="fp32", intra_op_threads=3,
    )  # fmt: skip
    flags = flags_from_config(config)
    values: dict[str, object] = {}
    words = iter(flags)
    for word in words:
        if word in {"--no-batching", "--allow-unsigned"}:
            values[
                word.removeprefix("--no-").removeprefix("--").replace("-", "_")
            ] = not word.startswith("--no-")
        else:
            values[word[2:].replace("-", "_")] = next(words)
    assert load_config(values, {}, lambda path: None) == config
    assert flags_from_config(AgentConfig()) == []
    assert len(fields(AgentConfig)) > len(values)


def bundle_flags(config: AgentConfig) -> list[object]:
    return ["--bundle", config.bundle, "--trusted-keys", config.trusted_keys]


def test_the_command_starts_an_agent_measures_it_and_leaves_nothing_behind(tmp_path):
    config = make_config(tmp_path)
    plot = tmp_path / "plot.svg"
    done = run(
        "bench", *bundle_flags(config), "--cache", tmp_path / "cache", "--connections", "1,2",
        "--rate", "100", "--duration", "0.3", "--warm-up-time", "0", "--rows", "2", "--plot", plot,
        "--queue-size", "7", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["served"]["queue_size"] == 7
    assert [point["rows"] for point in report["points"]] == [2, 2, 2]
    assert all(point["latency"]["answers"] > 0 for point in report["points"])
    assert ET.parse(plot).getroot().tag.endswith("svg")
    assert [path.name for path in Path("/tmp").glob("edge-bench-*") if path.is_dir()] == []


def test_sigterm_ends_the_agent_and_the_client_as_well(tmp_path):
    config = make_config(tmp_path)
    command = [sys.executable, "-c", "from edge.cli import main; main()", "bench",
               *map(str, bundle_flags(config)), "--cache", str(tmp_path / "cache"),
               "--duration", "60", "--warm-up-time", "0", "--connections", "1"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=clean_environ()) as process:
        assert process.stderr is not None
        while b"measured" not in (line := process.stderr.readline()):
            assert line, "it ended before the load began"
        children = psutil.Process(process.pid).children()
        assert len(children) >= 1
        process.terminate()
        assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert psutil.wait_procs(children, timeout=DEADLINE_S)[1] == []


def test_the_command_prints_tables_of_80_columns_for_an_agent_at_a_url(agent):
    address, _ = agent
    done = run("bench", "--url", address, "--connections", "2", "--duration", "0.3",
               "--warm-up-time", "0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= MAX_COLUMNS
    for word in ("affine, variant int8", "req/s", "rows of a run", "advice"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--url", "ftp://x"], 2, "http://HOST:PORT"),
        (
            ["--url", "http://127.0.0.1:1"],
            3,
            "no answer from http://127.0.0.1:1: connection refused; start an agent",
        ),
        (["--url", "http://127.0.0.1:1", "--queue-size", "9"], 2, "--queue-size is for an agent"),
        (["--connections", "0"], 2, "'0' is not whole numbers up to 1000"),
        (["--connections", "1,x"], 2, "separated by commas"),
        (["--rate", "-1"], 2, "is not numbers"),
        (["--framework", "m:f"], 2, "--framework goes with --compare"),
        (["--compare", "--url", "http://x"], 2, "leave out --url"),
        (["--plot", "/nowhere/x.svg"], 2, "no folder /nowhere"),
        (["--bundle", "/nowhere"], 1, "no bundle at /nowhere"),
        (["--bundle", "/nowhere", "--compare"], 1, "no bundle at /nowhere"),
        (["--bundle", "/nowhere", "--queue-size", "x"], 2, "--queue-size"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_its_exit_code(
    tmp_path, arguments, status, message
):
    keys = [] if "--url" in arguments else ["--trusted-keys", tmp_path]
    (tmp_path / "a.pub").write_bytes(make_key().public_pem)
    done = run("bench", *arguments, *(keys if "--bundle" in arguments else []))
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line[:7]) == (status, "error: ")
    assert message in line
