"""The power fails after every call; the device serves the old bundle or the new one, whole."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
import pytest

from edge.errors import EdgeError, SlotsError
from tests.edge.slots.crash_cases import CASES, Bundles, judge_of, make_bundles
from tests.edge.slots.crash_states import Counts, Judge, Operation
from tests.edge.slots.simulated_disk import Directory, Node, SimulatedDisk, Tree

SUBSETS, QUICK_SUBSETS = 16, 1
RESUMED_AT_EVERY, QUICK_RESUMED_AT_EVERY = 3, 60
MIN_STATES = 20_000


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return make_bundles(tmp_path_factory.mktemp("bundles"))


class Killed(BaseException):
    """The process is gone; its writes are not."""


def judge_resumed(judge: Judge, tree: Tree, operation: Operation, *, killed_at: int) -> bool:
    """Kill an operation before a call, repeat it on the same disk, and judge every call of that.

    Returns whether it had such a call. What is done already may be refused the second time.
    """
    disk = SimulatedDisk(tree)

    def repeat(disk: SimulatedDisk) -> None:
        with contextlib.suppress(SlotsError):
            operation(disk)

    def kill(number: int, name: str) -> None:
        if number == killed_at:
            raise Killed

    disk.before_call = kill
    try:
        operation(disk)
    except Killed:
        disk.before_call = lambda number, name: None
        judge.run_on(disk, repeat)
        return True
    return False


@pytest.mark.parametrize("name", CASES)
def test_a_cut_at_any_call_leaves_the_old_bundle_or_the_new_one(
    bundles: Bundles, name: str
) -> None:
    case = CASES[name]
    judge = judge_of(case, bundles, subsets=QUICK_SUBSETS)
    tree = case.before(bundles)
    judge.run(tree, case.operation(bundles))
    assert judge.counts.states > judge.counts.calls


def test_a_cut_of_a_resumed_installation_leaves_the_old_bundle_or_the_new_one(
    bundles: Bundles,
) -> None:
    case = CASES["install over a bundle"]
    judge, tree = judge_of(case, bundles, subsets=QUICK_SUBSETS), case.before(bundles)
    killed_at = QUICK_RESUMED_AT_EVERY
    while judge_resumed(judge, tree, case.operation(bundles), killed_at=killed_at):
        killed_at += QUICK_RESUMED_AT_EVERY
    assert judge.counts.operations > 1


class CarelessDisk(SimulatedDisk):
    """A disk that does nothing when `forgets` is to be synced, as if the store had left that out.

    forgets: the name of a file or directory, as far as digests do not spell it.
    """

    def __init__(self, tree: Tree, forgets: str) -> None:
        super().__init__(tree)
        self.forgets = forgets
        self.forgotten = 0

    def sync_file(self, path: Path, node: Node) -> None:
        if path.name.endswith(self.forgets):
            self.forgotten += 1
        else:
            super().sync_file(path, node)

    def sync_names(self, path: Path, directory: Directory) -> None:
        if str(path).endswith(self.forgets):
            self.forgotten += 1
        else:
            super().sync_names(path, directory)


@pytest.mark.parametrize(
    "forgets",
    ["state.json.new", "manifest.json.new", "manifest.sig.new", ".part",
     "/edge", "/edge/slots/a", "/edge/blobs/sha256"],
)  # fmt: skip
def test_a_store_that_leaves_out_a_sync_is_caught(bundles: Bundles, forgets: str) -> None:
    case = CASES["install over two bundles"]
    disk = CarelessDisk(case.before(bundles), forgets)
    judge = judge_of(case, bundles, subsets=4)
    with pytest.raises((AssertionError, EdgeError)):
        judge.run_on(disk, case.operation(bundles))
    assert disk.forgotten


@pytest.mark.slow
def test_twenty_thousand_crash_states(
    bundles: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    total = Counts()
    for name, case in CASES.items():
        judge = judge_of(case, bundles, subsets=SUBSETS, folder=tmp_path)
        tree = case.before(bundles)
        judge.run(tree, case.operation(bundles))
        killed_at = 1
        while judge_resumed(judge, tree, case.operation(bundles), killed_at=killed_at):
            killed_at += RESUMED_AT_EVERY
        total.add(judge.counts)
        with capsys.disabled():
            click.echo(f"\n  {name}: {judge.counts.states:,}", nl=False)
    with capsys.disabled():
        click.echo(f"\n  all: {total}")
    assert total.states >= MIN_STATES
