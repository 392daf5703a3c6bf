from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn

from calibration.errors import CalibrationError
from edge.errors import UsageError
from host_tools.cli import cli
from host_tools.distill import DistillRequest, distill
from host_tools.errors import TrainingError
from host_tools.prune import PruneRequest, masks_for, prune, two_of_four
from host_tools.sources import source_from_factory
from host_tools.training import (
    Schedule,
    TrainingSet,
    distillation_loss,
    evaluator,
    load_state,
    outputs_of,
    save_state,
    train,
    user_module,
)

CLASSES = "tests.host_tools.factories:classes"
SMALL_CLASSES = "tests.host_tools.factories:small_classes"
SHORT = Schedule(epochs=4, batch=32, rate=5e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of points around three corners, 400 to train on and 200 held out."""
    folder = tmp_path_factory.mktemp("points")
    rng = np.random.default_rng(0)
    corners = rng.normal(0, 2, (3, 16))
    for name, rows in (("train", 400), ("held", 200)):
        labels = rng.integers(0, 3, rows)
        x = (corners[labels] + rng.normal(0, 1.5, (rows, 16))).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, labels=labels)
    return folder


def prune_request(folder: Path, out: Path, **changes: object) -> PruneRequest:
    values = {
        "source": CLASSES, "data": folder / "train.npz", "held_out": folder / "held.npz",
        "out": out, "pattern": "magnitude", "sparsity": 0.7, "schedule": SHORT,
    }  # fmt: skip
    return PruneRequest(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 8), (5, 12, 3, 3), (2, 4, 7)])
def test_two_of_four_keeps_the_two_largest_of_every_four_input_channels(shape: tuple) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    kept = weight * two_of_four(weight)
    rows = np.moveaxis(kept.numpy(), 1, -1).reshape(-1, 4)
    before = np.moveaxis(weight.numpy(), 1, -1).reshape(-1, 4)
    for got, row in zip(rows, before, strict=True):
        largest = np.sort(np.argsort(-np.abs(row))[:2])
        np.testing.assert_array_equal(np.flatnonzero(got), largest)
        np.testing.assert_array_equal(got[largest], row[largest])


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7])
def test_magnitude_drops_that_share_of_all_layers_together(sparsity: float) -> None:
    source = source_from_factory(CLASSES)
    masks = masks_for(source, "magnitude", sparsity)
    count = sum(mask.numel() for _, mask in masks)
    zeros = sum(int((mask == 0).sum()) for _, mask in masks)
    assert zeros == int(sparsity * count)
    for weight, mask in masks:
        if 0 < mask.mean() < 1:
            size = weight.detach().abs()
            assert size[mask == 0].max() <= size[mask == 1].min()


@pytest.mark.parametrize("pattern", ["magnitude", "2:4"])
def test_a_pruned_model_stays_pruned_through_training_and_export(
    pattern: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pruned.pt"
    report = prune(prune_request(data, out, pattern=pattern))
    assert report.zero_percent == pytest.approx(70 if pattern == "magnitude" else 50, abs=0.2)
    assert report.metric == "top1"
    assert len(report.curve) == SHORT.epochs + 1
    assert report.after >= 0.98 * report.before
    shapes = ["--shape", "x=1x16:4x16:64x16", "--state", str(out), "--out"]
    result = CliRunner().invoke(cli, ["export", CLASSES, *shapes, str(tmp_path / "m.onnx")])
    assert result.exit_code == 0, result.output
    weights = [
        numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "m.onnx").graph.initializer
        if len(t.dims) == 2
    ]
    zeros = sum((w == 0).sum() for w in weights) / sum(w.size for w in weights)
    assert 100 * zeros == pytest.approx(report.zero_percent, abs=0.1)
    if pattern == "2:4":
        for weight in weights:
            groups = (weight.T if weight.shape[0] == 16 else weight).reshape(-1, 4)
            assert (np.count_nonzero(groups, axis=1) <= 2).all()


def test_the_loss_is_that_of_the_paper_in_plain_numpy() -> None:
    teacher, student = torch.randn(5, 4), torch.randn(5, 4)
    labels = torch.tensor([0, 3, 1, 1, 2])

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (teacher,)

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    t, s = teacher.double().numpy(), student.double().numpy()
    p, q = softmax(t / 3), softmax(s / 3)
    soft = 9 * (p * np.log(p / q)).sum(axis=1).mean()
    hard = -np.log(softmax(s)[np.arange(5), labels.numpy()]).mean()
    loss = distillation_loss(Fixed(), temperature=3.0, share=0.6)
    for truth, expected in ((labels, 0.6 * soft + 0.4 * hard), (None, soft)):
        got = float(loss((student,), (torch.zeros(5, 1),), truth))
        assert got == pytest.approx(expected, rel=1e-5)


def test_a_student_that_is_taught_answers_as_its_teacher(data: Path, tmp_path: Path) -> None:
    trained = tmp_path / "teacher.pt"
    prune(prune_request(data, trained, sparsity=0.0, schedule=Schedule(epochs=8, rate=5e-3)))
    without = tmp_path / "unlabelled.npz"
    np.savez(without, x=np.load(data / "train.npz")["x"])
    report = distill(
        DistillRequest(
            teacher=CLASSES, student=SMALL_CLASSES, data=without, held_out=data / "held.npz",
            out=tmp_path / "student.pt", schedule=Schedule(epochs=8, rate=5e-3),
            teacher_state=trained,
        )
    )  # fmt: skip
    assert report.student_parameters < report.teacher_parameters
    assert report.curve[0] < 70 < report.after
    assert report.after >= report.teacher - 5
    source = source_from_factory(SMALL_CLASSES)
    load_state(source.module, tmp_path / "student.pt")
    held = np.load(data / "held.npz")
    answers = outputs_of(source.module, (torch.from_numpy(held["x"]),))[0].argmax(dim=1).numpy()
    assert 100 * (answers == held["labels"]).mean() == pytest.approx(report.after)


def test_the_best_epoch_is_kept(data: Path) -> None:
    source = source_from_factory(CLASSES)
    held = np.load(data / "held.npz")
    points = TrainingSet(inputs=(torch.from_numpy(held["x"]),), labels=None)
    values = iter([1.0, 5.0, 3.0])
    states = []

    def evaluate() -> float:
        states.append(copy.deepcopy(user_module(source.module).state_dict()))
        return next(values)

    loss = distillation_loss(copy.deepcopy(source.module), temperature=1.0, share=1.0)
    curve = train(
        source.module, points, lambda out, x, y: loss(out, x, y) + (out[0] - 3).square().mean(),
        schedule=Schedule(epochs=2), evaluate=evaluate,
    )  # fmt: skip
    assert curve == (1.0, 5.0, 3.0)
    kept = user_module(source.module).state_dict()
    for name, value in states[1].items():
        assert torch.equal(kept[name], value)


def test_without_labels_the_metric_is_the_cosine_to_the_original() -> None:
    source = source_from_factory(CLASSES)
    other = copy.deepcopy(source.module)
    x = torch.randn(50, 16)
    points = TrainingSet(inputs=(x,), labels=None)
    assert evaluator(source.module, points, other, 16)() == pytest.approx(1.0)
    with torch.no_grad():
        for weight in source.module.parameters():
            weight.neg_()
    a, b = (outputs_of(m, (x,))[0].detach().double() for m in (source.module, other))
    expected = float((a * b).sum(1).div(a.norm(dim=1) * b.norm(dim=1)).mean())
    assert evaluator(source.module, points, other, 16)() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"labels": np.full(400, 3)}, TrainingError, "number the classes from 0"),
        ({"labels": np.full(400, -1)}, TrainingError, "number the classes from 0"),
        ({"labels": np.zeros(400)}, CalibrationError, "one integer per sample"),
        ({"x": np.full((400, 16), np.nan, np.float32)}, TrainingError, "not finite in epoch 1"),
        ({"x": np.zeros((400, 15), np.float32)}, TrainingError, "fails"),
    ],
)
def test_bad_samples_are_one_clear_error_and_write_nothing(
    change: dict, error: type, words: str, data: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "t.npz", **{**np.load(data / "train.npz"), **change})
    out = tmp_path / "pruned.pt"
    with pytest.raises(error, match=words):
        prune(prune_request(data, out, data=tmp_path / "t.npz"))
    assert not out.exists()


def test_missing_things_are_named(data: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", y=np.zeros((9, 16), np.float32))
    for changes, words in (
        ({"data": tmp_path / "nowhere.npz"}, "no samples at"),
        ({"data": tmp_path / "y.npz"}, "no array 'x'"),
        ({"out": Path("/nowhere/p.pt")}, "no folder /nowhere"),
    ):
        with pytest.raises(UsageError, match=words):
            prune(prune_request(data, **{"out": tmp_path / "p.pt", **changes}))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    other = source_from_factory(SMALL_CLASSES)
    save_state(other.module, tmp_path / "small.pt")
    (tmp_path / "no.pt").write_bytes(b"PK\x03\x04 nothing")
    source = source_from_factory(CLASSES)
    for name in ("small.pt", "no.pt"):
        with pytest.raises(TrainingError, match="does not hold the weights of this model"):
            load_state(source.module, tmp_path / name)
    with pytest.raises(UsageError, match="no weights at"):
        load_state(source.module, tmp_path / "missing.pt")


def test_the_commands_tell_what_it_cost(data: Path, tmp_path: Path) -> None:
    common = [
        "--data", data / "train.npz", "--held-out", data / "held.npz", "--epochs", "2",
        "--out", tmp_path / "w.pt",
    ]  # fmt: skip
    words = [str(word) for word in common]
    result = CliRunner().invoke(cli, ["prune", CLASSES, "--pattern", "2:4", *words])
    assert result.exit_code == 0, result.output
    assert "50.0 % of the weights of 2 layers are zero; top1 " in result.output
    assert f"next: edge-kit export {CLASSES} --state {tmp_path / 'w.pt'}" in result.output
    result = CliRunner().invoke(cli, ["distill", CLASSES, SMALL_CLASSES, *words, "--json"])
    assert len(json.loads(result.stdout)["curve"]) == 3
