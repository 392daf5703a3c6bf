"""Points of a day: thinned, kept over restarts, and what an interval makes of its readings."""

import json
import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.history.history import COLUMNS, SIZE, History, HistoryQuery, Point
from edge.history.recorder import HistoryRecorder
from edge.history.ring import RingFile
from edge.probes.sample import GpuSample, Sample
from edge.worker import Answer
from tests.edge.api_clients import affine_serving, error_of, make_app
from tests.edge.test_telemetry import make_serving


def filled(history: History, count: int) -> History:
    for number in range(count):
        history.add(1000.0 + 10 * number, Point(cpu_percent=float(number)))
    return history


def test_points_come_back_oldest_first_with_what_cannot_be_told_as_null() -> None:
    report = filled(History.open(None), 3).report()
    assert report.time_s == (1000.0, 1010.0, 1020.0)
    assert report.columns["cpu_percent"] == (0.0, 1.0, 2.0)
    assert report.columns["gpu_percent"] == (None, None, None)
    assert set(report.columns) == set(COLUMNS)


def test_only_points_after_since_are_given() -> None:
    report = filled(History.open(None), 5).report(HistoryQuery(since=1020.0))
    assert report.time_s == (1030.0, 1040.0)


def test_thinned_points_are_the_means_of_their_neighbours_whatever_is_unknown() -> None:
    history = History.open(None)
    values = [1.0, None, 3.0, None, None, None, 7.0, 9.0]
    for number, value in enumerate(values):
        history.add(1.0 + number, Point(power_watts=value, cpu_percent=float(number)))
    report = history.report(HistoryQuery(points=4))
    assert report.time_s == (2.0, 4.0, 6.0, 8.0)
    assert report.columns["power_watts"] == (1.0, 3.0, None, 8.0)
    assert report.columns["cpu_percent"] == (0.5, 2.5, 4.5, 6.5)


def test_a_day_is_held_and_no_more() -> None:
    report = filled(History.open(None), SIZE + 2).report()
    assert (len(report.time_s), report.time_s[0]) == (SIZE, 1020.0)


def test_points_survive_a_restart(tmp_path: Path) -> None:
    filled(History.open(tmp_path / "ring"), 3).close()
    again = History.open(tmp_path / "ring")
    again.add(5000.0, Point(cpu_percent=50.0))
    assert again.report().time_s == (1000.0, 1010.0, 1020.0, 5000.0)
    assert again.report().columns["cpu_percent"] == (0.0, 1.0, 2.0, 50.0)
    again.close()
    again.close()


def test_without_a_folder_the_history_is_in_memory_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        history = filled(History.open(tmp_path / "none" / "ring"), 2)
    assert len(history.report().time_s) == 2
    assert [record.getMessage().count("none/ring") for record in caplog.records] == [1]


def test_a_disk_that_refuses_is_logged_at_the_change_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History.open(tmp_path / "ring")
    with caplog.at_level(logging.WARNING):
        with monkeypatch.context() as patch:
            patch.setattr("os.pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
            filled(history, 3)
        filled(history, 1)
    assert len(caplog.records) == 1
    assert len(history.report().time_s) == 4
    history.close()
    assert len(History.open(tmp_path / "ring").report().time_s) == 1


class Times:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def gpu(**changes: object) -> GpuSample:
    return GpuSample(throttle_reasons=(), **changes)  # type: ignore[arg-type]


def test_an_interval_is_means_highest_values_and_rates() -> None:
    serving, clock = make_serving(), Times()
    recorder = HistoryRecorder(serving, clock=clock, wall_clock=lambda: 77.0)
    readings = [
        Sample(cpu_percent=10.0, gpus=(gpu(utilization_percent=20.0, temperature_celsius=50.0),)),
        Sample(cpu_percent=20.0, gpus=(gpu(utilization_percent=60.0, temperature_celsius=70.0),)),
        Sample(
            cpu_percent=30.0,
            memory_total_bytes=100,
            memory_available_bytes=40,
            temperatures_celsius={"cpu": 71.0},
            gpus=(
                GpuSample(
                    utilization_percent=100.0,
                    temperature_celsius=60.0,
                    memory_used_bytes=5,
                    power_watts=12.0,
                    throttle_reasons=("thermal",),
                ),
            ),
        ),
    ]
    answer = Answer(outputs={}, queue_s=0.001, compute_s=0.004, batch_rows=1)
    for number, reading in enumerate(readings):
        served = serving.served["affine"]
        served.record_answer(answer, rows=1, parse_s=0, encode_s=0, total_s=0.006)
        clock.now = 5.0 * (number + 1)
        if number == 2:
            served.record_error("deadline", total_s=1.0)
        recorder.take(reading)
        if number == 1:
            assert len(serving.history.report().time_s) == 1
    report = serving.history.report()
    # The first two readings make ten seconds; the third waits for company.
    assert report.time_s == (77.0,)
    clock.now = 20.0
    recorder.take(readings[2])
    last = {name: column[-1] for name, column in serving.history.report().columns.items()}
    assert last == {
        **dict.fromkeys(COLUMNS),
        "cpu_percent": 30.0,
        "memory_used_bytes": 60.0,
        "gpu_percent": 100.0,
        "gpu_memory_used_bytes": 5.0,
        "gpu_celsius": 60.0,
        "hottest_celsius": 71.0,
        "power_watts": 12.0,
        "throttled": 1.0,
        "requests_per_s": 0.1,
        "failures_per_s": 0.1,
        "queue_depth": 0.0,
        "p50_ms": 6.0,
        "p95_ms": 6.0,
    }
    first = {name: column[0] for name, column in report.columns.items()}
    assert (first["cpu_percent"], first["gpu_percent"], first["gpu_celsius"]) == (15.0, 40.0, 70.0)
    assert (first["requests_per_s"], first["throttled"]) == (0.2, 0.0)


def test_the_path_gives_json_and_refuses_what_it_cannot_read() -> None:
    serving = affine_serving()
    filled(serving.history, 4)
    client = make_app(serving).test_client()
    body = client.get("/telemetry/history?since=1000&points=2").get_json()
    assert body["time_s"] == [1020.0, 1030.0]
    assert body["interval_s"] == 10.0
    body = client.get("/telemetry/history?seconds=15").get_json()
    assert body["time_s"] == [1020.0, 1030.0]
    for query in (
        "seconds=0",
        "since=x",
        "points=0",
        "points=1.5",
        "since=nan",
        "since=-1",
        "points=1e9",
    ):
        message = error_of(client.get(f"/telemetry/history?{query}"), 400)
        assert query.partition("=")[0] in message


def test_a_day_as_json_stays_small_and_is_what_json_says() -> None:
    history = History.open(None)
    rng = np.random.default_rng(0)
    for number in range(SIZE):
        values = rng.normal(1e9, 1e9, len(COLUMNS))
        history.add(1.7e9 + number, Point(**dict(zip(COLUMNS, values, strict=True))))
    content = msgspec.json.encode(history.report(HistoryQuery(points=500)))
    assert len(content) < 150_000
    assert len(json.loads(content)["columns"]["rss_bytes"]) == 500


def test_the_shipped_columns_fit_the_file(tmp_path: Path) -> None:
    ring, _ = RingFile.open(tmp_path / "ring", COLUMNS, size=SIZE)
    for number in range(SIZE):
        ring.add(float(number), [0.0] * len(COLUMNS))
    ring.close()
    assert (tmp_path / "ring").stat().st_size < 1_000_000
