"""The file of the last day: over a restart, with a torn record, on a disk that refuses."""

import errno
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.history.ring import RingFile

COLUMNS = ("a", "b")
SIZE = 5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.ring"


def write(path: Path, times: Iterator[int] | range, columns=COLUMNS, size=SIZE) -> None:
    ring, _ = RingFile.open(path, columns, size=size)
    for time_s in times:
        ring.add(float(time_s), [time_s + 0.5] * len(columns))
    ring.close()


def read(path: Path, columns=COLUMNS, size=SIZE) -> list[list[float]]:
    ring, rows = RingFile.open(path, columns, size=size)
    ring.close()
    return rows.tolist()


def rows(*times: int) -> list[list[float]]:
    return [[float(t), t + 0.5, t + 0.5] for t in times]


def test_what_was_written_is_there_after_a_restart(path: Path) -> None:
    write(path, range(3))
    write(path, range(3, 4))
    assert read(path) == rows(0, 1, 2, 3)


def test_the_newest_takes_the_place_of_the_oldest_and_the_file_does_not_grow(path: Path) -> None:
    write(path, range(SIZE))
    full = path.stat().st_size
    write(path, range(SIZE, 13))
    assert read(path) == rows(8, 9, 10, 11, 12)
    assert path.stat().st_size == full


def test_unknown_values_stay_unknown(path: Path) -> None:
    ring, _ = RingFile.open(path, COLUMNS, size=SIZE)
    ring.add(1.0, [np.nan, 2.0])
    ring.close()
    np.testing.assert_array_equal(read(path), [[1.0, np.nan, 2.0]])


def test_every_flipped_byte_costs_its_record_alone(path: Path) -> None:
    write(path, range(7))
    whole = path.read_bytes()
    expected = rows(2, 3, 4, 5, 6)
    header = len(whole) - SIZE * (8 + 8 + 4 * len(COLUMNS) + 4)
    for place in range(header, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        found = read(path)
        assert [row for row in found if row not in expected] == []
        assert len(found) == SIZE - 1, place


def test_a_file_cut_anywhere_keeps_what_is_whole(path: Path) -> None:
    write(path, range(4))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = read(path)
        assert found == rows(0, 1, 2, 3)[: len(found)]
        # And it can be written again.
        write(path, range(50, 51))
        assert read(path)[-1:] == rows(50)


def test_a_record_in_anothers_place_is_not_believed(path: Path) -> None:
    write(path, range(4))
    whole = bytearray(path.read_bytes())
    width = 8 + 8 + 4 * len(COLUMNS) + 4
    header = len(whole) - 4 * width
    whole[header : header + width] = whole[header + width : header + 2 * width]
    path.write_bytes(whole)
    assert read(path) == rows(1, 2, 3)


@pytest.mark.parametrize(
    ("columns", "size"), [(("a", "c"), SIZE), (("a",), SIZE), (COLUMNS, SIZE + 1)]
)
def test_a_file_of_another_form_begins_anew(path: Path, columns, size) -> None:
    write(path, range(4))
    assert read(path, columns, size) == []
    write(path, range(9, 10), columns, size)
    assert [row[0] for row in read(path, columns, size)] == [9.0]


def test_a_file_of_garbage_begins_anew(path: Path) -> None:
    path.write_bytes(os.urandom(10_000))
    assert read(path) == []


def test_two_processes_do_not_write_one_file(path: Path) -> None:
    ring, _ = RingFile.open(path, COLUMNS, size=SIZE)
    with pytest.raises(BlockingIOError):
        RingFile.open(path, COLUMNS, size=SIZE)
    ring.close()
    assert read(path) == []


def test_a_pipe_and_a_link_are_refused(tmp_path: Path, path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        RingFile.open(tmp_path / "pipe", COLUMNS, size=SIZE)
    (tmp_path / "other").write_text("kept")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        RingFile.open(path, COLUMNS, size=SIZE)
    assert (tmp_path / "other").read_text() == "kept"


def test_a_full_disk_is_an_error_and_the_next_record_is_written(path: Path) -> None:
    ring, _ = RingFile.open(path, COLUMNS, size=SIZE)
    ring.add(0.0, [0.5, 0.5])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            ring.add(1.0, [1.5, 1.5])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    ring.add(1.0, [1.5, 1.5])
    ring.close()
    assert read(path) == rows(0, 1)


def test_the_form_on_disk_is_as_the_docstring_says(path: Path) -> None:
    write(path, range(1))
    content = path.read_bytes()
    sequence, time_s, a, b = struct.unpack_from("<Qdff", content, len(content) - 28)
    assert (content[:8], sequence, time_s, a, b) == (b"EDGEHIST", 0, 0.0, 0.5, 0.5)
