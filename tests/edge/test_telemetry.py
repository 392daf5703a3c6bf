import hashlib
import json
from pathlib import Path

import msgspec

from edge import __version__
from edge.bundle import Bundle
from edge.choice import Choice, Refusal
from edge.latency import LatencyWindow
from edge.manifest import bytes_from_manifest
from edge.places import Places
from edge.probes.sample import Sample
from edge.replicas import Replicas
from edge.self_test import SelfTest
from edge.served import ServedModel
from edge.serving import Serving
from edge.statistics import ModelStatistics
from edge.telemetry import report_from_serving
from edge.trust import public_key_from_pem
from edge.update.status import CHANNEL_FOLDER, MAX_STATUS_BYTES, STATUS_NAME, read_status
from edge.worker import Answer
from tests.bundles import affine_parts, make_key
from tests.fakes import FakeSession, affine_worker

MANIFEST = affine_parts()[0]
REFUSED = Refusal(variant="fp32", code="not-preferred", reason="int8 is faster; set `variant`")


def make_serving(*, signed: bool = True) -> Serving:
    key = public_key_from_pem(make_key().public_pem, name="site.pub") if signed else None
    bundle = Bundle(root=Path("/nowhere"), manifest=MANIFEST, signed_by=key)
    serving = Serving(bundle, started=100.0, allow_unsigned=not signed)
    model = MANIFEST.models[0]
    serving.served = {
        "affine": ServedModel(
            model=model,
            bundle=serving.bundle,
            choice=Choice(
                variant=model.variants[0], means="ort-cpu", why="p50 1.0 ms", refused=(REFUSED,)
            ),
            self_test=SelfTest(cases=1, output="y", relative_error=0.002, tolerance=0.1),
            worker=Replicas([affine_worker(FakeSession)]),
            places=Places("affine", 1),
            metrics=serving.metrics.for_model("affine"),
            latency=LatencyWindow(),
            statistics=ModelStatistics(),
        )
    }
    return serving


def report(serving: Serving) -> dict:
    return json.loads(msgspec.json.encode(report_from_serving(serving, now=107.5)))


def test_the_bundle_is_identified_by_digest_and_signer() -> None:
    serving = make_serving()
    bundle = report(serving)["bundle"]
    assert bundle["name"] == "affine-bundle"
    assert bundle["manifest_sha256"] == hashlib.sha256(bytes_from_manifest(MANIFEST)).hexdigest()
    assert bundle["signed_by"] == {"keyid": serving.bundle.signed_by.keyid, "name": "site.pub"}


def test_an_unsigned_bundle_says_so() -> None:
    body = report(make_serving(signed=False))
    assert body["bundle"]["signed_by"] == "unsigned"
    assert body["allow_unsigned"] is True


def test_a_model_reports_its_variant_the_reason_and_the_refused_ones() -> None:
    model = report(make_serving())["models"][0]
    assert (model["variant"], model["backend"], model["precision"]) == ("int8", "ort", "int8")
    assert model["why"] == "p50 1.0 ms"
    assert model["refused"] == [
        {"variant": "fp32", "code": "not-preferred", "reason": REFUSED.reason, "means": None}
    ]
    assert model["self_test"] == {
        "cases": 1,
        "output": "y",
        "relative_error": 0.002,
        "tolerance": 0.1,
    }


def test_latency_and_outcomes_are_those_recorded() -> None:
    serving = make_serving()
    answer = Answer(outputs={}, queue_s=0.001, compute_s=0.004, batch_rows=1)
    serving.served["affine"].record_answer(
        answer, rows=1, parse_s=0.0005, encode_s=0.0005, total_s=0.006
    )
    serving.served["affine"].record_error("deadline", total_s=1.0)
    model = report(serving)["models"][0]
    assert model["requests"] == {"ok": 1, "deadline": 1}
    assert model["latency"]["stages"]["compute"] == {"p50_ms": 4.0, "p95_ms": 4.0, "p99_ms": 4.0}
    assert model["latency"]["stages"]["total"]["p99_ms"] == 6.0


def test_the_machine_and_the_agent_are_described() -> None:
    serving = make_serving()
    serving.sample = Sample(rss_bytes=5, temperatures_celsius={"cpu": 40.0})
    body = report(serving)
    assert (body["agent_version"], body["uptime_s"], body["phase"]) == (
        __version__,
        7.5,
        "starting",
    )
    assert body["machine"]["rss_bytes"] == 5
    assert body["machine"]["memory_available_bytes"] is None
    assert body["machine"]["temperatures_celsius"] == {"cpu": 40.0}


def test_runs_are_told_by_their_rows() -> None:
    serving = make_serving()
    statistics = serving.served["affine"].statistics
    for rows in (4, 1, 4):
        statistics.record_run(rows, 0.001)
    assert report(serving)["models"][0]["run_rows"] == {"1": 1, "4": 2}


def test_the_last_pass_of_an_update_is_told(tmp_path: Path) -> None:
    assert report(make_serving())["update"] is None
    (tmp_path / CHANNEL_FOLDER).mkdir()
    serving = make_serving()
    serving.update = lambda: read_status(tmp_path)
    assert report(serving)["update"] is None
    status = tmp_path / CHANNEL_FOLDER / STATUS_NAME
    status.write_text('{"at": "2026-03-01T00:00:00Z", "verdict": "current", "reason": "newest"}')
    assert report(serving)["update"]["verdict"] == "current"
    status.write_bytes(b"\xff" * 100)
    assert report(serving)["update"] is None
    status.write_bytes(b" " * (MAX_STATUS_BYTES + 1))
    assert report(serving)["update"] is None
