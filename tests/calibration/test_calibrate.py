from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calibration.calibrate import HeldOut, calibrate
from calibration.errors import CalibrationError
from calibration.gate import Gate, gate_problems
from calibration.methods import METHODS
from calibration.runtime import Runner
from calibration.samples import open_samples
from edge.errors import InputError, UsageError
from edge.manifest import Accuracy
from tests.calibration.nets import IMAGE, conv_net, write_samples


def test_auto_keeps_the_method_with_the_highest_sqnr(tmp_path: Path) -> None:
    samples = open_samples(write_samples(tmp_path / "s.npz", 200))
    result = calibrate(conv_net(), samples)
    assert set(result.sqnr_db) == set(METHODS)
    assert result.sqnr_db[result.method] == max(result.sqnr_db.values())
    for method, score in result.sqnr_db.items():
        alone = calibrate(conv_net(), samples, method=method)
        assert alone.method == method
        assert alone.sqnr_db == {method: score}


def test_accuracy_is_measured_on_the_held_out_samples(tmp_path: Path) -> None:
    model = conv_net()
    held = write_samples(tmp_path / "h.npz", 64, seed=9)
    images = np.load(held)["x"]
    truth = Runner(model).run({"x": images})["logits"].argmax(axis=1)
    truth[:16] = (truth[:16] + 1) % 5
    result = calibrate(
        model,
        open_samples(write_samples(tmp_path / "s.npz", 100)),
        method="minmax",
        held_out=HeldOut(samples=open_samples(held), labels=truth),
    )
    answers = Runner(result.tensorrt.model).run({"x": images})["logits"]
    reference = Runner(model).run({"x": images})["logits"]
    accuracy = result.tensorrt.accuracy
    assert (accuracy.samples, accuracy.labelled) == (64, True)
    assert accuracy.fp32_top1_percent == 75.0
    assert accuracy.int8_top1_percent == 100 * np.mean(answers.argmax(axis=1) == truth)
    noise = np.square(answers - reference, dtype=np.float64).sum()
    signal = np.square(reference, dtype=np.float64).sum()
    assert accuracy.sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.05)
    cosines = (answers * reference).sum(1) / (
        np.linalg.norm(answers, axis=1) * np.linalg.norm(reference, axis=1)
    )
    assert accuracy.cosine_mean == pytest.approx(cosines.mean(), abs=1e-6)
    assert accuracy.cosine_min == pytest.approx(cosines.min(), abs=1e-6)


def test_one_outlier_sample_does_not_spoil_auto(tmp_path: Path) -> None:
    clean = np.load(write_samples(tmp_path / "s.npz", 320))["x"]
    spoiled = clean.copy()
    spoiled[7] *= 15
    np.savez(tmp_path / "spoiled.npz", x=spoiled)
    held = HeldOut(samples=open_samples(write_samples(tmp_path / "h.npz", 64, seed=4)))

    def sqnr(path: Path, method: str) -> float:
        result = calibrate(conv_net(), open_samples(path), method=method, held_out=held)
        return result.tensorrt.accuracy.sqnr_db

    before = sqnr(tmp_path / "s.npz", "auto")
    assert sqnr(tmp_path / "spoiled.npz", "minmax") < before - 16
    assert sqnr(tmp_path / "spoiled.npz", "auto") > before - 1


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from calibration.calibrate import calibrate\n"
        "from calibration.samples import open_samples\n"
        "from tests.calibration.nets import conv_net\n"
        "calibrate(conv_net(), open_samples(Path(sys.argv[1])), method='minmax')\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.split('VmHWM:')[1].split()[0])\n"
    )

    def peak_kib(count: int) -> int:
        path = write_samples(tmp_path / f"{count}.npz", count)
        command = [sys.executable, "-c", script, str(path)]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    few, many = peak_kib(128), peak_kib(40_000)
    file_kib = (tmp_path / "40000.npz").stat().st_size / 1024
    assert many - few < 0.4 * file_kib  # threads have heaps of their own


def test_a_fixed_batch_is_calibrated_in_batches_of_that_size(tmp_path: Path) -> None:
    samples = open_samples(write_samples(tmp_path / "s.npz", 40))
    assert calibrate(conv_net(batch=4), samples, batch=16).ort.accuracy.samples == 8


def test_bad_samples_cost_one_clear_line(tmp_path: Path) -> None:
    model = conv_net()
    good = write_samples(tmp_path / "good.npz", 50)
    np.savez(tmp_path / "rank.npz", x=np.zeros((50, 8, 8), np.float32))
    np.savez(tmp_path / "dtype.npz", x=np.zeros((50, *IMAGE)))
    np.savez(tmp_path / "name.npz", y=np.zeros((50, *IMAGE), np.float32))
    np.savez(tmp_path / "zero.npz", x=np.zeros((50, *IMAGE), np.float32))
    np.savez(tmp_path / "nan.npz", x=np.full((50, *IMAGE), np.nan, np.float32))
    np.savez(tmp_path / "one.npz", x=np.zeros((1, *IMAGE), np.float32))
    cases = [
        ("rank.npz", InputError, "got rank 3"),
        ("dtype.npz", InputError, "datatype is FP64"),
        ("name.npz", InputError, "input 'y' is unknown"),
        ("nan.npz", CalibrationError, "not finite"),
        ("one.npz", UsageError, "too few"),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind, match=message):
            calibrate(model, open_samples(tmp_path / name))
    with pytest.raises(CalibrationError, match="3 labels for 50 samples"):
        calibrate(model, open_samples(good), labels=np.zeros(3, np.int64))
    with pytest.raises(UsageError, match="unknown method 'kl'"):
        calibrate(model, open_samples(good), method="kl")


def test_nodes_with_a_dead_input_stay_float(tmp_path: Path) -> None:
    np.savez(tmp_path / "zero.npz", x=np.zeros((20, *IMAGE), np.float32))
    result = calibrate(conv_net(), open_samples(tmp_path / "zero.npz"))
    assert result.kept_float["conv1"] == "input is always zero"


def accuracy(**changes: float | None) -> Accuracy:
    values: dict[str, object] = {
        "samples": 100, "labelled": False, "cosine_mean": 0.99, "cosine_min": 0.9,
        "sqnr_db": 20.0, "int8_mac_percent": 99.0,
    }  # fmt: skip
    return Accuracy(**{**values, **changes})  # type: ignore[arg-type]


def test_gate_judges_top1_with_labels_and_similarity_without() -> None:
    gate = Gate()
    assert gate_problems(accuracy(fp32_top1_percent=99.0, int8_top1_percent=98.5), gate) == []
    fallen = accuracy(fp32_top1_percent=99.0, int8_top1_percent=98.4)
    assert "falls by 0.60 points" in gate_problems(fallen, gate)[0]
    assert gate_problems(accuracy(argmax_agreement_percent=99.0), gate) == []
    assert "0.9700" in gate_problems(accuracy(cosine_mean=0.97), gate)[0]
    assert "98.00 %" in gate_problems(accuracy(argmax_agreement_percent=98.0), gate)[0]
    assert gate_problems(accuracy(cosine_mean=float("nan")), gate)
