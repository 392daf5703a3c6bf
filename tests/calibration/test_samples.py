from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.samples import IteratedSamples, open_samples, read_labels
from edge.errors import UsageError


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("start", "stop", "size"), [(0, 100, 7), (13, 60, 16), (99, 100, 4)])
def test_batches_are_the_rows_of_the_array(tmp_path: Path, save, start, stop, size) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(100, 3, 2)).astype(np.float32), rng.integers(0, 9, 100)
    save(tmp_path / "s.npz", a=a, b=b)
    batches = list(open_samples(tmp_path / "s.npz").batches(size, start, stop))
    assert all(len(batch["a"]) <= size for batch in batches)
    np.testing.assert_array_equal(np.concatenate([x["a"] for x in batches]), a[start:stop])
    np.testing.assert_array_equal(np.concatenate([x["b"] for x in batches]), b[start:stop])


def test_a_folder_is_read_in_name_order_with_ragged_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=np.ones((3, 5)), labels=np.arange(3))
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 9)), labels=np.arange(2))
    samples = open_samples(tmp_path)
    assert samples.count == 5
    assert [x["x"].shape for x in samples.batches(2, 0, 5)] == [(2, 9), (2, 5), (1, 5)]
    assert [x["x"].shape for x in samples.batches(2, 1, 4)] == [(1, 9), (2, 5)]
    labels = samples.labels()
    assert labels is not None
    assert labels.tolist() == [0, 1, 0, 1, 2]


def test_digest_depends_on_content_alone(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", x=np.full((4, 2), value))
    digests = [open_samples(tmp_path / name).sha256 for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not a zip")
    np.savez(tmp_path / "uneven.npz", a=np.zeros(3), b=np.zeros(4))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    np.savez(tmp_path / "scalar.npz", a=np.float32(1))
    np.savez(tmp_path / "fortran.npz", a=np.asfortranarray(np.zeros((3, 4))))
    np.savez(tmp_path / "empty.npz")
    for name, message in [
        ("text", "not a readable .npz"),
        ("uneven", "differ in their number of samples"),
        ("objects", "Python objects"),
        ("scalar", "no axis of samples"),
        ("fortran", "Fortran order"),
        ("empty", "holds no array"),
    ]:
        with pytest.raises(CalibrationError, match=message) as caught:
            open_samples(tmp_path / f"{name}.npz")
        assert f"{name}.npz" in str(caught.value)


def test_an_altered_value_is_found_by_the_checksum(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).normal(size=(50, 40)))
    whole = (tmp_path / "s.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (tmp_path / "s.npz").write_bytes(bytes(flipped))
    with pytest.raises(CalibrationError, match="Bad CRC-32"):
        list(open_samples(tmp_path / "s.npz").batches(50, 0, 50))


def test_missing_paths_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"give an \.npz file or a folder"):
        open_samples(tmp_path / "none.npz")
    with pytest.raises(UsageError, match=r"no \.npz file in"):
        open_samples(tmp_path)
    with pytest.raises(UsageError, match="no labels at"):
        read_labels(tmp_path / "none.txt")


def test_labels_come_from_npy_and_text(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.array([3, 1, 2]))
    (tmp_path / "l.txt").write_text("3\n1\n2\n")
    (tmp_path / "bad.txt").write_text("3\ncat\n")
    np.save(tmp_path / "float.npy", np.array([0.5]))
    assert read_labels(tmp_path / "l.npy").tolist() == [3, 1, 2]
    assert read_labels(tmp_path / "l.txt").tolist() == [3, 1, 2]
    for name in ("bad.txt", "float.npy"):
        with pytest.raises(CalibrationError, match=name):
            read_labels(tmp_path / name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_costs_one_clear_line_or_nothing(tmp_path: Path, save) -> None:
    path = tmp_path / "s.npz"
    save(path, x=np.random.default_rng(0).normal(size=(20, 3, 4)), labels=np.arange(20))
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    flips = [(int(i), int(rng.integers(1, 256))) for i in rng.integers(0, len(good), 400)]
    damaged = [good[:i] + bytes([good[i] ^ bits]) + good[i + 1 :] for i, bits in flips]
    damaged += [good[:length] for length in range(0, len(good), len(good) // 100)]
    errors = []
    for content in damaged:
        path.write_bytes(content)
        try:
            samples = open_samples(path)
            samples.labels()
            batches = list(samples.batches(7, 0, samples.count))
        except CalibrationError as error:
            errors.append(str(error))
        else:
            assert sum(len(next(iter(batch.values()))) for batch in batches) == samples.count
    assert len(errors) > len(damaged) / 2
    assert all(str(path) in error and "\n" not in error for error in errors)


def test_labels_of_an_empty_file_are_none_at_all(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.zeros((0, 2)), labels=np.zeros(0, np.int64))
    labels = open_samples(tmp_path / "s.npz").labels()
    assert labels is not None
    assert labels.shape == (0,)


def test_batches_of_a_function_are_cut_to_the_asked_size_and_read_again() -> None:
    rng = np.random.default_rng(0)
    x, passes = rng.normal(size=(23, 4)).astype(np.float32), []

    def read_again():
        passes.append(0)
        for start, stop in ((0, 5), (5, 18), (18, 23)):
            yield {"x": x[start:stop], "y": x[start:stop, 0]}

    samples = IteratedSamples(read_again)
    assert samples.count == 23
    digest = samples.sha256
    assert len(passes) == 1
    batches = list(samples.batches(8, 3, 20))
    assert [len(batch["x"]) for batch in batches] == [2, 8, 5, 2]
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in batches]), x[3:20])
    np.testing.assert_array_equal(np.concatenate([b["y"] for b in batches]), x[3:20, 0])
    x[22, 3] += 1
    assert IteratedSamples(read_again).sha256 != digest


@pytest.mark.parametrize(
    "feeds", [{}, {"x": np.float32(1)}, {"x": np.zeros((2, 3)), "y": np.zeros(3)}]
)
def test_a_batch_without_common_rows_is_refused(feeds: dict) -> None:
    with pytest.raises(CalibrationError, match="one row a sample"):
        _ = IteratedSamples(lambda: iter([feeds])).count


def test_text_is_read_as_bytes_from_either_kind_of_numpy_string(tmp_path: Path) -> None:
    words = ["cat", "grün", ""]
    np.savez(tmp_path / "u.npz", text=np.array(words))
    np.savez(tmp_path / "s.npz", text=np.array([word.encode() for word in words]))
    for name in ("u.npz", "s.npz"):
        parts = [feeds["text"] for feeds in open_samples(tmp_path / name).batches(2, 0, 3)]
        assert [part.tolist() for part in parts] == [[b"cat", "grün".encode()], [b""]]


def test_the_digest_of_text_is_that_of_its_letters(tmp_path: Path) -> None:
    def digest(*words: str) -> str:
        rows = np.array([word.encode() for word in words], object)
        return IteratedSamples(lambda: [{"text": rows}]).sha256

    assert digest("cat", "dog") == digest("".join(["c", "at"]), "".join(["do", "g"]))
    assert len({digest("cat", "dog"), digest("catd", "og"), digest("dog", "cat")}) == 3
