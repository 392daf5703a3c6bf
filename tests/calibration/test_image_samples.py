from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.errors import CalibrationError
from calibration.image_samples import ImageSamples
from edge.errors import UsageError
from edge.images import ImagePreprocessing, tensor_from_image
from edge.spec import TensorSpec

SPEC = TensorSpec(name="x", datatype="FP32", shape=("batch", 3, 8, 8))
STEPS = ImagePreprocessing(input="x", height=8, width=8)


def write_images(folder: Path, classes: list[str], each: int) -> None:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def opened(folder: Path) -> ImageSamples:
    return ImageSamples(folder, STEPS, SPEC)


def test_every_image_comes_once_in_the_same_mixed_order(tmp_path: Path) -> None:
    write_images(tmp_path / "a", ["cat", "dog"], 20)
    samples = opened(tmp_path / "a")
    labels = samples.labels()
    assert labels is not None
    assert labels.tolist().count(1) == 20
    assert 4 <= labels[:20].sum() <= 16  # not one class after the other
    whole = np.concatenate([feeds["x"] for feeds in samples.batches(7, 0, 40)])
    again = [feeds["x"] for feeds in samples.batches(16, 10, 30)]
    assert [len(rows) for rows in again] == [16, 4]
    np.testing.assert_array_equal(np.concatenate(again), whole[10:30])
    expected = sorted(
        tensor_from_image(path.read_bytes(), STEPS, SPEC.dtype).tobytes()
        for path in (tmp_path / "a").rglob("*.png")
    )
    assert sorted(row[None].tobytes() for row in whole) == expected
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert opened(tmp_path / "b").sha256 == samples.sha256


def test_folders_name_the_classes_by_number_or_by_order(tmp_path: Path) -> None:
    write_images(tmp_path / "names", ["b", "c", "a"], 1)
    write_images(tmp_path / "numbers", ["7", "03"], 1)
    write_images(tmp_path / "single", ["a"], 2)
    assert sorted(opened(tmp_path / "names").labels()) == [0, 1, 2]
    assert sorted(opened(tmp_path / "numbers").labels()) == [3, 7]
    assert opened(tmp_path / "single").labels() is None
    Image.new("RGB", (8, 8)).save(tmp_path / "names" / "loose.png")
    assert opened(tmp_path / "names").labels() is None


def test_one_unreadable_image_among_thousands_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "x" / "0.png")
    for number in range(1, 2_000):
        (tmp_path / "x" / f"{number}.png").hardlink_to(tmp_path / "x" / "0.png")
    bad = tmp_path / "x" / "1234.jpg"
    bad.write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"x/1234\.jpg: not a readable image"):
        opened(tmp_path)
    whole = tmp_path / "x" / "0.png"
    bad.write_bytes(whole.read_bytes()[:-25])  # its header is good, its pixels end early
    samples = opened(tmp_path)
    with pytest.raises(CalibrationError, match=r"x/1234\.jpg: the image is damaged"):
        list(samples.batches(64, 0, samples.count))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UsageError, match="no image below"):
        opened(tmp_path)
