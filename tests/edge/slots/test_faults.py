"""The n-th call of an operation fails, for n = 1, 2, ... until none does."""

from __future__ import annotations

import contextlib
import errno
import os
import random

import click
import pytest

from edge.errors import EdgeError
from tests.edge.slots.crash_cases import CASES, SEED, Bundles, Case, judge_of, make_bundles
from tests.edge.slots.crash_states import Judge
from tests.edge.slots.simulated_disk import LOOKING, SimulatedDisk, Tree, random_cut

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EINTR)
# A disk that is full, or that went read-only, stays so: every call from then on that would write.
LASTING = frozenset({errno.ENOSPC, errno.EROFS})
CUTS, QUICK_CUTS = 8, 1
QUICK_CASES = ("install over two bundles", "a trial that fails")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return make_bundles(tmp_path_factory.mktemp("bundles"))


def fail_from(disk: SimulatedDisk, first: int, code: int, *, lasts: bool) -> None:
    """Let a call of a disk fail, and every later one that writes if that lasts."""

    def before_call(number: int, name: str) -> None:
        is_later = lasts and number > first and name not in LOOKING
        if number == first or is_later:
            raise OSError(code, os.strerror(code))

    disk.before_call = before_call


def failures(
    judge: Judge, tree: Tree, case: Case, bundles: Bundles, code: int, *, lasts: bool, cuts: int
) -> int:
    """Let each call fail in turn; judge what that leaves, and what a cut leaves of it."""
    rng, first = random.Random(SEED), 0
    while True:
        first += 1
        disk = SimulatedDisk(tree)
        fail_from(disk, first, code, lasts=lasts)
        with contextlib.suppress(EdgeError):  # never an OSError, nor anything else
            case.operation(bundles)(disk)
        if disk.calls < first:
            return first - 1
        disk.before_call = lambda number, name: None
        judge.judge(disk.as_is())
        judge.judge(disk.after_cut(lambda _: False))
        for _ in range(cuts):
            judge.judge(disk.after_cut(*random_cut(rng)))


@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", QUICK_CASES)
def test_any_call_may_fail(bundles: Bundles, name: str, code: int) -> None:
    case = CASES[name]
    judge = judge_of(case, bundles, subsets=0)
    tree = case.before(bundles)
    assert failures(judge, tree, case, bundles, code, lasts=False, cuts=QUICK_CUTS) > len(ERRORS)


@pytest.mark.slow
def test_any_call_of_any_operation_may_fail_once_or_from_then_on(
    bundles: Bundles, capsys: pytest.CaptureFixture[str]
) -> None:
    total = 0
    for code in ERRORS:
        count = 0
        for case in CASES.values():
            judge, tree = judge_of(case, bundles, subsets=0), case.before(bundles)
            for lasts in (False, True) if code in LASTING else (False,):
                count += failures(judge, tree, case, bundles, code, lasts=lasts, cuts=CUTS)
        with capsys.disabled():
            click.echo(f"\n  {errno.errorcode[code]}: {count:,} calls failed", nl=False)
        total += count
    with capsys.disabled():
        click.echo(f"\n  all: {total:,} failed calls")
    assert total > 1000
