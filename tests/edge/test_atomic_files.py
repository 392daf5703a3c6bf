import errno
import os
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.errors import StorageError
from edge.files import CHUNK_BYTES, atomic_directory, atomic_file, atomic_write
from tests.fakes import open_descriptors

# What atomic_write calls before the new name is there, in this order.
STEPS: tuple[tuple[Any, str], ...] = (
    (tempfile, "mkstemp"),
    (os, "fchmod"),
    (os, "fsync"),
    (Path, "replace"),
)


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Every fsync and rename as (call, path, bytes in the file then)."""
    seen: list[tuple[str, str, int]] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        seen.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()), size))
        fsync(descriptor)

    def recorded_move(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moved(source: Path, target: Path) -> Path:
            seen.append(("move", str(source), 0))
            return move(source, target)

        return moved

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_move(replace))
    monkeypatch.setattr(Path, "rename", recorded_move(rename))
    return seen


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_a_write_is_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    for content in (b"old", b"", b"new" * CHUNK_BYTES):
        atomic_write(target, content)
        assert target.read_bytes() == content
        assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize(
    ("cause", "reported"), [(full_disk(), StorageError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_failure_at_any_step_leaves_the_old_content(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    cause: BaseException,
    reported: type[BaseException],
) -> None:
    target = tmp_path / "state.json"
    target.write_bytes(b"old")
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, raising(cause))
        with pytest.raises(reported) as caught:
            atomic_write(target, b"new")
    if reported is StorageError:
        assert str(caught.value) == f"cannot write {target}: no space left on device"
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    assert open_descriptors() == before


def test_a_write_that_the_disk_cuts_short_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*state\.json: file too large"):
            atomic_write(target, b"new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_fsync_of_the_directory_is_told_and_the_new_content_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "state.json"
    target.write_bytes(b"old")
    fsync = os.fsync

    def fail_on_directory(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_on_directory)
    before = open_descriptors()
    with pytest.raises(StorageError, match="input/output error"):
        atomic_write(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]
    assert open_descriptors() == before


def test_content_is_durable_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, events: list[tuple[str, str, int]]
) -> None:
    target = tmp_path / "state.json"
    atomic_write(target, b"12345")
    temporary = events[0][1]
    assert events == [("fsync", temporary, 5), ("move", temporary, 0), ("fsync", str(tmp_path), 0)]
    assert Path(temporary).parent == tmp_path
    assert temporary != str(target)


@pytest.mark.usefixtures("narrow_umask")
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o755])
def test_the_mode_is_as_asked_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "key"
    target.write_bytes(b"")
    target.chmod(0o777)
    atomic_write(target, b"secret", mode=mode)
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_secret_is_never_readable_by_others_on_its_way(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "key", mode=0o600) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600


def test_a_write_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "state.json"
    outside.write_bytes(b"untouched")
    target.symlink_to(outside)
    atomic_write(target, b"new")
    assert not target.is_symlink()
    assert (target.read_bytes(), outside.read_bytes()) == (b"new", b"untouched")


def test_a_write_over_a_directory_or_into_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "file", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match=f"cannot write {path}: "):
            atomic_write(path, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_streamed_file_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    with atomic_file(target) as file:
        file.write(b"first")
        assert not target.exists()
        file.write(b" second")
    assert target.read_bytes() == b"first second"


def test_a_streamed_file_whose_block_fails_never_appears(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_file(tmp_path / "weights") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_appears_whole_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "bundle"
    with atomic_directory(path) as scratch:
        (scratch / "blobs").mkdir()
        (scratch / "blobs" / "one").write_bytes(b"1")
        assert not path.exists()
    assert (path / "blobs" / "one").read_bytes() == b"1"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [full_disk(), KeyboardInterrupt(), StorageError("no")])
def test_a_directory_whose_block_fails_never_appears(tmp_path: Path, error: BaseException) -> None:
    def interrupted() -> None:
        with atomic_directory(tmp_path / "bundle") as scratch:
            (scratch / "blob").write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "rename")])
def test_a_directory_that_cannot_be_made_durable_never_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.setattr(owner, name, raising(full_disk()))
    before = open_descriptors()
    with (
        pytest.raises(OSError, match="No space left"),
        atomic_directory(tmp_path / "bundle") as scratch,
    ):
        (scratch / "blob").write_bytes(b"whole")
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors() == before


def test_every_file_and_folder_is_durable_before_the_name(
    tmp_path: Path, events: list[tuple[str, str, int]]
) -> None:
    with atomic_directory(tmp_path / "bundle") as scratch:
        (scratch / "blobs").mkdir()
        (scratch / "blobs" / "one").write_bytes(b"1")
        (scratch / "manifest").write_bytes(b"12")
    inside = {
        ("fsync", str(scratch), 0),
        ("fsync", str(scratch / "blobs"), 0),
        ("fsync", str(scratch / "blobs" / "one"), 1),
        ("fsync", str(scratch / "manifest"), 2),
    }
    assert set(events[:4]) == inside
    assert events[4:] == [("move", str(scratch), 0), ("fsync", str(tmp_path), 0)]


@pytest.mark.parametrize(
    "put",
    [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")],
    ids=["directory", "file", "dangling link"],
)
def test_a_directory_never_replaces_what_is_there(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    path = tmp_path / "bundle"
    put(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StorageError, match=r"bundle: it exists; remove it"), atomic_directory(path):
        pytest.fail("the block was entered")
    assert sorted(tmp_path.iterdir()) == before


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with pytest.raises(OSError, match="not empty"), atomic_directory(path):
        (path / "theirs").mkdir(parents=True)
    assert [child.name for child in tmp_path.rglob("*")] == ["bundle", "theirs"]


KILLED = """
import os, sys
from pathlib import Path
from edge.files import atomic_directory
with atomic_directory(Path(sys.argv[1])) as scratch:
    (scratch / "blob").write_bytes(b"half")
    os._exit(9)
"""


def test_the_scratch_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == 9
    assert not path.exists()
    assert [child.name.startswith(".bundle.") for child in tmp_path.iterdir()] == [True]
    with atomic_directory(path):
        pass
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("mine", "other"),
    [("net", "net.v2"), ("net.v2", "net"), ("net[12]", "net1"), ("n?t", "net"), ("*", "net")],
)
def test_the_scratch_of_another_path_is_left_alone(tmp_path: Path, mine: str, other: str) -> None:
    with atomic_directory(tmp_path / other) as scratch:
        (scratch / "blob").write_bytes(b"theirs")
        with atomic_directory(tmp_path / mine):
            pass
    assert (tmp_path / other / "blob").read_bytes() == b"theirs"


@pytest.mark.parametrize("name", ["net[12]", "n?t", "*", "net.v2"])
def test_a_stale_scratch_is_found_whatever_the_name(tmp_path: Path, name: str) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    with atomic_directory(tmp_path / name):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("narrow_umask")
def test_a_directory_can_be_entered_by_the_service_user(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "bundle"):
        pass
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == 0o755
