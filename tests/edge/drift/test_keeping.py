"""Rows that are kept: which, where, for whom, and what becomes of them."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.drift import keeping
from edge.drift.keeping import Keeper, KeepRules
from edge.drift.kept_folder import About, KeptFolder, KeptRow, find_kept
from edge.drift.reading import Scores
from edge.errors import StorageError
from tests.fakes import FakeClock


def about(**changes: object) -> About:
    values: dict[str, object] = {
        "model": "m",
        "model_version": "1",
        "bundle_version": "1",
        "reference_sha256": "a" * 64,
        "inputs": ("x", "note"),
        "outputs": ("logits",),
        "scores": Scores(output="logits", classes=2, softmax=True),
    }
    return About(**{**values, **changes})  # type: ignore[arg-type]


class Keeping:
    """A keeper, and windows of requests whose first value says which they are."""

    def __init__(
        self, root: Path, *, rows: int = 8, reference_sha256: str = "a" * 64, **changes: object
    ) -> None:
        values = {"folder": root / "kept", "rows": rows, "bytes": 1 << 30, **changes}
        self.rules = KeepRules(**values)  # type: ignore[arg-type]
        self.folder = self.rules.folder / "m" / ("a" * 16)
        self.clock = FakeClock()
        self.keeper = Keeper.open(
            about(reference_sha256=reference_sha256), self.rules, wall_clock=self.clock
        )

    def send(self, *values: float, width: int = 3) -> None:
        count = len(values)
        x = np.zeros((count, width), np.float32)
        x[:, 0] = values
        note = np.array([[f"secret {value}".encode()] for value in values], object)
        logits = np.stack([x[:, 0], -x[:, 0]], axis=1)
        chosen = self.keeper.choose({"x": x, "note": note}, {"logits": logits}, None)
        if chosen is not None:
            self.keeper.take(chosen)

    def window(self, *values: float, is_drifted: bool = False, **options: int) -> None:
        for value in values:
            self.send(value, **options)
        self.keeper.end_window(is_drifted=is_drifted)

    def rows(self, *redact: str) -> list[KeptRow]:
        found = list(find_kept(self.rules.folder, "m").rows(redact))
        assert None not in found
        return sorted(filter(None, found), key=lambda kept: float(kept.row.feeds["x"][0, 0]))

    def values(self) -> list[tuple[float, bool]]:
        return [(float(kept.row.feeds["x"][0, 0]), kept.is_drifted) for kept in self.rows()]


def test_rows_come_back_as_they_were(tmp_path):
    made = Keeping(tmp_path)
    made.clock.advance(0.25)
    made.send(1.5, -2.0)
    made.keeper.end_window(is_drifted=True)
    first, second = made.rows()
    assert (first.row.when, first.is_drifted) == (1000.25, True)
    np.testing.assert_array_equal(second.row.feeds["x"], [[1.5, 0, 0]])
    assert second.row.feeds["note"].tolist() == [[b"secret 1.5"]]
    np.testing.assert_array_equal(first.row.outputs["logits"], [[-2.0, 2.0]])


def test_both_kinds_of_windows_have_room_of_their_own(tmp_path):
    made = Keeping(tmp_path, rows=4)
    for number in range(20):
        made.window(*range(number * 10, number * 10 + 10))
    made.window(1001, 1002, is_drifted=True)
    drifts = [is_drifted for _, is_drifted in made.values()]
    assert sorted(drifts) == [False] * 4 + [True] * 2
    assert len(made.keeper) == 6


def test_what_is_kept_is_for_its_owner_only(tmp_path):
    made = Keeping(tmp_path)
    made.window(1, 2)
    paths = list((made.rules.folder / "m").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}
    folders = (made.folder, *made.folder.iterdir(), made.folder.parent)
    assert {path.stat().st_mode & 0o777 for path in folders if path.is_dir()} == {0o700}


def test_a_restart_goes_on_with_what_is_there(tmp_path):
    first = Keeping(tmp_path, rows=5)
    first.window(*range(30))
    before = first.values()
    again = Keeping(tmp_path, rows=5)
    assert (again.values(), len(again.keeper)) == (before, 5)
    again.window(*range(100, 2000))
    assert len(again.values()) == 5
    assert again.values() != before
    assert len(Keeping(tmp_path, rows=2).values()) == 2


def reopened(made: Keeping, letter: str) -> Keeper:
    return Keeper.open(about(reference_sha256=letter * 64), made.rules)


def test_another_reference_begins_anew_and_takes_nothing_from_the_one_before(tmp_path):
    made = Keeping(tmp_path)
    made.window(1, 2)
    assert len(reopened(made, "b")) == 0
    assert made.values() == []
    assert len(reopened(made, "a")) == 2
    assert made.values() == [(1.0, False), (2.0, False)]


def test_trials_one_after_the_other_leave_what_is_kept_of_the_bundle_in_service(tmp_path):
    made = Keeping(tmp_path)
    made.window(1, 2)
    for trial in "bcde":
        reopened(made, trial)
        assert len(reopened(made, "a")) == 2
    assert sorted(path.name for path in made.folder.parent.iterdir()) == ["a" * 16, "e" * 16]


def test_what_is_older_than_the_last_two_references_is_removed(tmp_path):
    made = Keeping(tmp_path)
    made.window(1, 2)
    reopened(made, "b")
    reopened(made, "c")
    assert sorted(path.name for path in made.folder.parent.iterdir()) == ["b" * 16, "c" * 16]


def test_files_of_others_are_never_removed(tmp_path):
    made = Keeping(tmp_path)
    made.window(1, 2)
    foreign = [
        made.rules.folder / "precious",
        made.folder.parent / "precious",
        made.folder / "precious",
        made.folder / "steady" / "precious",
        made.folder / "steady" / "precious.capture",
        made.folder / "drifted" / "precious.partial",
    ]
    for path in foreign:
        path.write_text("mine")
    reopened(made, "b")
    reopened(made, "c")
    assert sorted(made.rules.folder.rglob("precious*")) == sorted(foreign)
    assert list(made.folder.rglob(f"{'[0-9a-f]' * 14}.capture")) == []


@pytest.mark.parametrize("inside", ["", "a" * 16])
def test_a_folder_in_which_somebody_else_has_files_is_refused(tmp_path, inside):
    folder = tmp_path / "kept" / "m" / inside
    folder.mkdir(parents=True)
    (folder / "precious").write_text("mine")
    with pytest.raises(StorageError, match=r"holds 'precious', .* another drift_keep_folder"):
        Keeping(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["precious"]


@pytest.mark.parametrize("names", [["m"], ["m", "a" * 16], ["m", "a" * 16, "about.partial"]])
def test_a_first_start_that_was_cut_off_is_gone_on_with(tmp_path, names):
    path = (tmp_path / "kept").joinpath(*names)
    path.parent.mkdir(parents=True)
    path.write_text("half") if path.suffix else path.mkdir()
    made = Keeping(tmp_path)
    made.window(1)
    assert made.values() == [(1.0, False)]


def test_a_disk_that_cannot_be_read_for_a_moment_costs_no_row(tmp_path, monkeypatch):
    made = Keeping(tmp_path)
    made.window(1, 2)

    def fails(path: Path, **_: object) -> bytes:
        raise StorageError(f"cannot read {path}: Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("edge.drift.kept_folder.read_capped", fails)
        with pytest.raises(StorageError, match="Input/output"):
            Keeping(tmp_path)
    assert len(Keeping(tmp_path).keeper) == 2


def test_a_description_that_is_damaged_is_written_again_and_costs_no_row(tmp_path):
    made = Keeping(tmp_path)
    made.window(1, 2)
    (made.folder / "about.json").write_bytes(b'{"model": "\xff"}')
    assert Keeping(tmp_path).values() == [(1.0, False), (2.0, False)]
    assert find_kept(made.rules.folder, "m").about().model == "m"


def test_bytes_bound_the_files(tmp_path):
    made = Keeping(tmp_path, rows=1000, bytes=40_000)
    made.window(*range(300), width=100)
    made.window(*range(300, 600), width=100, is_drifted=True)
    sizes = [path.stat().st_size for path in made.rules.folder.rglob("*.capture")]
    assert 30_000 < sum(sizes) <= 40_000


def test_a_row_that_is_too_large_is_not_kept_and_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(keeping, "MAX_ROW_BYTES", 500)
    made = Keeping(tmp_path)
    with caplog.at_level(logging.WARNING):
        made.window(1, 2, width=200)
        made.window(3)
    assert made.values() == [(3.0, False)]
    assert len(caplog.records) == 1


def test_requests_wait_in_bounded_memory(tmp_path, monkeypatch):
    made = Keeping(tmp_path)
    monkeypatch.setattr(keeping, "MAX_WAITING_BYTES", 1000)
    feeds = {"x": np.zeros((1, 200), np.float32)}
    first = made.keeper.choose(feeds, {}, None)
    assert first is not None
    assert made.keeper.choose(feeds, {}, None) is None
    made.keeper.take(first)
    assert made.keeper.choose(feeds, {}, None) is not None


def test_a_window_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "MAX_WINDOW_BYTES", 5000)
    made = Keeping(tmp_path, rows=1000)
    made.window(*range(100), width=100)
    assert 0 < len(made.values()) <= 5000 // 400


def test_contents_to_redact_are_never_written(tmp_path):
    made = Keeping(tmp_path, redact=frozenset({"note"}))
    made.window(1, 2)
    assert all(b"secret" not in path.read_bytes() for path in made.rules.folder.rglob("*.capture"))
    (first, _) = made.rows()
    assert first.row.feeds["note"].tolist() == [[b"x" * len("secret 1")]]
    np.testing.assert_array_equal(first.row.feeds["x"], [[1, 0, 0]])
    assert first.row.outputs == {}


@pytest.mark.parametrize("then", ["a", "b"])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_contents_to_redact_later_are_gone_from_what_was_kept_before(tmp_path, then, is_damaged):
    made = Keeping(tmp_path)
    made.window(1, 2)
    if is_damaged:
        (made.folder / "about.json").write_bytes(b"")
    rules = replace(made.rules, redact=frozenset({"note"}))
    Keeper.open(about(reference_sha256=then * 64), rules)
    assert all(b"secret" not in path.read_bytes() for path in made.rules.folder.rglob("*.capture"))
    if then == "b" and is_damaged:
        assert not made.folder.exists()
        return
    rows = [kept for kept in find_kept(rules.folder, "m", "a").rows(()) if kept is not None]
    assert sorted(kept.row.feeds["x"][0, 0] for kept in rows) == [1, 2]
    assert [kept.row.outputs for kept in rows] == [{}, {}]
    assert find_kept(rules.folder, "m", "a").about().redact == ("note",)


def test_redaction_that_is_taken_back_and_asked_for_again_misses_no_row(tmp_path):
    Keeping(tmp_path, redact=frozenset({"note"})).window(1)
    Keeping(tmp_path).window(2)
    Keeping(tmp_path, redact=frozenset({"note"}))
    captures = list((tmp_path / "kept").rglob("*.capture"))
    assert len(captures) == 2
    assert all(b"secret" not in path.read_bytes() for path in captures)


def test_rows_that_cannot_be_redacted_later_are_removed(tmp_path, monkeypatch):
    made = Keeping(tmp_path)
    made.window(1, 2)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(KeptFolder, "write", fails)
    assert len(Keeping(tmp_path, redact=frozenset({"note"})).keeper) == 0
    assert list((tmp_path / "kept").rglob("*.capture")) == []


def test_a_text_is_kept_as_it_was_asked_and_not_at_all_where_it_may_have_to_be_redacted(tmp_path):
    for redact, texts in ((frozenset[str](), ["grüße\nan alle"]), (frozenset({"x"}), [])):
        made = Keeping(tmp_path / str(len(redact)), redact=redact)
        feeds = {"x": np.zeros((1, 3), np.float32)}
        chosen = made.keeper.choose(feeds, {"logits": np.ones((1, 2))}, ["grüße\nan alle"])
        assert chosen is not None
        made.keeper.take(chosen)
        made.keeper.end_window(is_drifted=False)
        kept = list(find_kept(made.rules.folder, "m").rows(()))
        assert [each.row.text for each in kept if each is not None] == texts


def test_damage_costs_one_row(tmp_path):
    made = Keeping(tmp_path)
    made.window(1, 2, 3)
    (path, *_) = made.rules.folder.rglob("*.capture")
    path.write_bytes(path.read_bytes()[:-20])
    found = list(find_kept(made.rules.folder, "m").rows(()))
    assert [row is None for row in found].count(True) == 1
    assert len(found) == 3


def test_a_length_that_is_no_number_is_one_row_that_cannot_be_read(tmp_path):
    made = Keeping(tmp_path)
    made.window(1)
    (path,) = made.rules.folder.rglob("*.capture")
    before = path.read_bytes()
    content = re.sub(rb"(Header-Content-Length\xa3)\d", rb"\1x", before, count=1)
    assert content != before
    path.write_bytes(content)
    assert list(find_kept(made.rules.folder, "m").rows(())) == [None]


def test_a_text_that_is_damaged_is_one_row_that_cannot_be_read(tmp_path):
    made = Keeping(tmp_path)
    chosen = made.keeper.choose({"x": np.zeros((1, 3), np.float32)}, {}, ["hello"])
    assert chosen is not None
    made.keeper.take(chosen)
    made.keeper.end_window(is_drifted=False)
    (path,) = made.rules.folder.rglob("*.capture")
    path.write_bytes(path.read_bytes().replace(b"hello", b"hell\xff"))
    assert list(find_kept(made.rules.folder, "m").rows(())) == [None]


def test_what_a_cut_off_write_leaves_is_removed(tmp_path):
    made = Keeping(tmp_path)
    made.window(1)
    left = made.folder / "steady" / f"{0:014x}.partial"
    left.write_bytes(b"half")
    assert Keeping(tmp_path).values() == [(1.0, False)]
    assert not left.exists()


def test_a_disk_that_cannot_be_written_harms_no_window_and_is_said_once(
    tmp_path, monkeypatch, caplog
):
    made = Keeping(tmp_path)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(KeptFolder, "write", fails)
    with caplog.at_level(logging.WARNING):
        made.window(1, 2)
        made.window(3)
    assert len(caplog.records) == 1
    assert made.values() == []


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    made = Keeping(tmp_path)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fails)
    made.window(1, 2)
    assert [path.name for path in made.rules.folder.rglob("*") if path.is_file()] == ["about.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": "\xff"}', b'{"version": 9}'])
def test_a_damaged_description_is_an_error_that_names_it(tmp_path, content):
    made = Keeping(tmp_path)
    if content.endswith(b"9}"):
        content = msgspec.json.encode(msgspec.structs.replace(about(), version=9))
    (made.folder / "about.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"about\.json"):
        find_kept(made.rules.folder, "m").about()
