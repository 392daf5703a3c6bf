from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from calibration.checkpoint import SAVE_EVERY_S, Checkpoints
from calibration.collect import observe
from calibration.graph import prepared
from calibration.observers import Observer
from calibration.parts import Part, reader_for
from calibration.samples import open_samples
from tests.calibration.nets import conv_net, write_samples

TENSORS = ("x", "r1", "r2")


class Stopped(KeyboardInterrupt):
    """Ctrl-C at a chosen place."""


def checkpoints(folder: Path, data: str = "data") -> Checkpoints:
    """Return checkpoints whose clock makes every batch late enough to be saved."""
    ticks = iter(float(n) * SAVE_EVERY_S for n in range(1_000))
    return Checkpoints(folder, data, clock=functools.partial(next, ticks))


@pytest.fixture
def part(tmp_path: Path) -> Part:
    samples = open_samples(write_samples(tmp_path / "s.npz", 200))
    return reader_for(conv_net(), 16).part(samples, 0, 200)


def same(left: dict[str, Observer], right: dict[str, Observer]) -> bool:
    return all(
        (left[n].amax, left[n].width, left[n].moving_amax, left[n].trimmed_amax)
        == (right[n].amax, right[n].width, right[n].moving_amax, right[n].trimmed_amax)
        and np.array_equal(left[n].counts, right[n].counts)
        for n in TENSORS
    )


def test_an_interrupted_pass_goes_on_and_sees_what_one_pass_sees(
    part: Part, tmp_path: Path
) -> None:
    model, folder = prepared(conv_net()), tmp_path / "partial"
    whole = observe(model, TENSORS, part, lambda *_: None)
    rows: list[int] = []

    def stop(_: str, done: int, __: int) -> None:
        rows.append(done)
        if done == 96:
            raise Stopped

    with pytest.raises(Stopped):
        observe(model, TENSORS, part, stop, checkpoints=checkpoints(folder))
    resumed = observe(
        model, TENSORS, part, lambda _, done, __: rows.append(done), checkpoints=checkpoints(folder)
    )
    assert rows == [16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 200]
    assert same(resumed, whole)
    rows.clear()  # a finished pass is not repeated either
    again = observe(
        model, TENSORS, part, lambda _, done, __: rows.append(done), checkpoints=checkpoints(folder)
    )
    assert (rows, same(again, whole)) == ([], True)


def test_other_data_or_another_model_starts_from_nothing(part: Part, tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    observe(prepared(conv_net()), TENSORS, part, lambda *_: None, checkpoints=checkpoints(folder))
    for model, data in ((conv_net(), "other"), (conv_net(seed=1), "data")):
        rows: list[int] = []
        observe(
            prepared(model), TENSORS, part, lambda _, done, __, to=rows: to.append(done),
            checkpoints=checkpoints(folder, data),
        )  # fmt: skip
        assert rows[0] == 16


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_checkpoint_is_no_checkpoint(part: Part, tmp_path: Path, damage: str) -> None:
    model, folder = prepared(conv_net()), tmp_path / "partial"
    whole = observe(model, TENSORS, part, lambda *_: None, checkpoints=checkpoints(folder))
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-500], "text": b"hello", "empty": b""}[damage])
    again = observe(model, TENSORS, part, lambda *_: None, checkpoints=checkpoints(folder))
    assert same(again, whole)


def test_a_short_run_leaves_nothing_on_disk(part: Part, tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "partial", "data", clock=lambda: 0.0)
    observe(prepared(conv_net()), TENSORS, part, lambda *_: None, checkpoints=kept)
    assert not (tmp_path / "partial").exists()
    kept.clear()
