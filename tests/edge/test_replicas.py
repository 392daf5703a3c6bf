"""One model on several devices: who gets a request, and who answers it in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edge.errors import DeadlineError, InferenceError, InputError
from edge.manifest import Batching
from edge.replicas import PROBE_S, Replicas
from tests.fakes import DEADLINE_S, FakeClock, FakeSession, Gate, affine_plan, affine_worker
from tests.models import affine

X = np.ones((1, 4), np.float32)


class Device:
    """A session that can break; once broken it fails every run, as a lost GPU does."""

    def __init__(self) -> None:
        self.is_broken = False
        self.gate: Gate | None = None
        self.session = FakeSession(before_run=self.run)

    def run(self) -> None:
        if self.gate is not None:
            self.gate()
        if self.is_broken:
            raise InferenceError("CUDA error 700: an illegal memory access")


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[Replicas, list[Device]]]]:
    made: list[Replicas] = []

    def make(count: int = 2, **options: object) -> tuple[Replicas, list[Device]]:
        devices = [Device() for _ in range(count)]
        workers = [affine_worker(lambda d=d: d.session, **options) for d in devices]
        clock = options.get("clock")
        made.append(Replicas(workers, **({} if clock is None else {"clock": clock})))  # type: ignore[arg-type]
        for worker in workers:
            worker.start()
        return made[-1], devices

    yield make
    for replicas in made:
        assert replicas.stop(DEADLINE_S)


def test_a_request_goes_to_the_worker_with_the_least_to_do(
    make: Callable[..., tuple[Replicas, list[Device]]],
) -> None:
    replicas, devices = make()
    devices[0].gate = devices[1].gate = gate = Gate()
    answers = [replicas.submit({"x": X}, deadline=None) for _ in range(2)]
    gate.wait_entered()
    gate.wait_entered()  # both run: had one got both, the other would not
    answers += [replicas.submit({"x": X}, deadline=None) for _ in range(4)]
    assert [worker.load for worker in replicas.workers] == [3, 3]
    assert replicas.queue_depth == 4
    gate.open()
    for answer in answers:
        np.testing.assert_array_equal(answer.result(DEADLINE_S).outputs["y"], affine(X)["y"])
    assert [device.session.runs for device in devices] == [3, 3]


def test_when_a_device_is_lost_the_others_answer_and_the_model_stays_ready(
    make: Callable[..., tuple[Replicas, list[Device]]],
) -> None:
    replicas, devices = make(queue_size=64, plan=affine_plan(batching=Batching()))
    devices[1].gate = gate = Gate()
    answers = [replicas.submit({"x": X * n}, deadline=None) for n in range(20)]
    gate.wait_entered()
    devices[1].is_broken = True  # with requests that run and wait there
    gate.open()
    for n, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.result(DEADLINE_S).outputs["y"], affine(X * n)["y"])
    assert replicas.is_ready
    assert replicas.workers[0].consecutive_failures == 0
    assert replicas.workers[1].consecutive_failures > 0
    before = devices[1].session.runs
    for _ in range(10):
        replicas.infer({"x": X}, deadline=None)
    assert devices[1].session.runs <= before + 1  # but for a probe


def test_a_device_that_works_again_is_found_by_a_probe(
    make: Callable[..., tuple[Replicas, list[Device]]],
) -> None:
    clock = FakeClock()
    replicas, devices = make(clock=clock)
    devices[0].is_broken = True
    replicas.infer({"x": X}, deadline=None)
    assert replicas.workers[0].consecutive_failures == 1
    devices[0].is_broken = False
    clock.advance(PROBE_S)
    replicas.infer({"x": X}, deadline=None)
    assert replicas.workers[0].consecutive_failures == 0


def test_what_fails_everywhere_is_an_error_after_one_more_try(
    make: Callable[..., tuple[Replicas, list[Device]]],
) -> None:
    replicas, devices = make(3)
    for device in devices:
        device.is_broken = True
    with pytest.raises(InferenceError, match="illegal memory access"):
        replicas.submit({"x": X}, deadline=None).result(DEADLINE_S)
    assert sum(device.session.runs for device in devices) == 2


def test_a_bad_request_is_not_tried_again(
    make: Callable[..., tuple[Replicas, list[Device]]],
) -> None:
    replicas, _ = make()
    with pytest.raises(InputError):
        replicas.submit({"x": np.ones((9, 4), np.float32)}, deadline=None).result(DEADLINE_S)
    assert all(worker.consecutive_failures == 0 for worker in replicas.workers)


def test_a_request_whose_time_is_over_is_not_tried_again(
    make: Callable[..., tuple[Replicas, list[Device]]],
) -> None:
    clock = FakeClock()
    replicas, devices = make(clock=clock)
    devices[0].gate = gate = Gate()
    devices[0].is_broken = True
    answer = replicas.submit({"x": X}, deadline=clock.now + 1)
    gate.wait_entered()
    clock.advance(2)
    gate.open()
    with pytest.raises(DeadlineError):
        answer.result(DEADLINE_S)
    assert devices[1].session.runs == 0


def test_a_hung_device_gets_nothing_more_and_only_all_of_them_count_as_stalled(
    make: Callable[..., tuple[Replicas, list[Device]]],
) -> None:
    clock = FakeClock()
    replicas, devices = make(clock=clock, stall_timeout_s=10.0)
    devices[0].gate = gate = Gate()
    hung = replicas.submit({"x": X}, deadline=None)
    gate.wait_entered()
    clock.advance(11)
    for _ in range(5):
        replicas.infer({"x": X}, deadline=None)
    assert devices[1].session.runs == 5
    assert not replicas.is_stalled(clock.now)
    gate.open()
    hung.result(DEADLINE_S)
