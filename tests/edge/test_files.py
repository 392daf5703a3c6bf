import hashlib
import os
import signal
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge.errors import StorageError
from edge.files import CHUNK_BYTES, open_regular, read_capped, safe_join, sha256_of, storage_errors
from tests.fakes import open_descriptors

ROOT = Path("/srv/bundle")
HANG_S = 10.0


@pytest.fixture
def never_hangs() -> Iterator[None]:
    """Fail a test that blocks, on a pipe without a writer for example."""

    def stop(*_: object) -> None:
        raise AssertionError(f"still blocked after {HANG_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_file_up_to_the_cap_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert read_capped(path, max_bytes=100) == b"x" * size


@pytest.mark.parametrize("size", [101, 5000])
def test_a_file_beyond_the_cap_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    with pytest.raises(StorageError) as caught:
        read_capped(path, max_bytes=100)
    assert str(caught.value) == f"cannot read {path}: larger than the cap of 100 bytes"


def test_a_huge_file_costs_no_more_memory_than_the_cap(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    tracemalloc.start()
    try:
        with pytest.raises(StorageError, match="larger than the cap"):
            read_capped(path, max_bytes=1000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def make_odd(kind: str, path: Path) -> None:
    """Put something at path that is no regular file."""
    if kind == "link":
        path.with_name("real").write_bytes(b"content")
        path.symlink_to("real")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    else:
        assert kind == "nothing"


ODD = ("link", "dangling link", "link to a device", "pipe", "directory", "socket", "nothing")


@pytest.mark.usefixtures("never_hangs")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("read", [lambda path: read_capped(path, max_bytes=100), sha256_of])
def test_only_a_regular_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path = tmp_path / "file"
    make_odd(kind, path)
    before = open_descriptors()
    with pytest.raises(StorageError, match=f"cannot read {path}: "):
        read(path)
    assert open_descriptors() == before


@pytest.mark.usefixtures("never_hangs")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_not_read(device: str) -> None:
    for read in (lambda path: read_capped(path, max_bytes=100), sha256_of):
        with pytest.raises(StorageError, match=f"cannot read {device}: not a regular file"):
            read(Path(device))


def test_an_opened_file_is_not_inherited_by_children(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with open_regular(tmp_path / "file") as file:
        assert not os.get_inheritable(file.fileno())


def test_an_error_without_a_reason_is_still_told() -> None:
    with (
        pytest.raises(StorageError, match="cannot read /x: odd"),
        storage_errors("read", ROOT / "/x"),
    ):
        raise OSError("odd")


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7]
)
def test_the_digest_is_that_of_hashlib(tmp_path: Path, size: int) -> None:
    content = (b"0123456789abcdef!" * (size // 17 + 1))[:size]
    path = tmp_path / "file"
    path.write_bytes(content)
    expected = (hashlib.sha256(content).hexdigest(), size)
    for max_bytes in (None, size, size + 1, 10**30):
        assert sha256_of(path, max_bytes=max_bytes) == expected


@pytest.mark.parametrize("max_bytes", [0, 10, CHUNK_BYTES, 2 * CHUNK_BYTES - 1])
def test_a_digest_reads_one_byte_more_than_the_cap_and_no_further(
    tmp_path: Path, max_bytes: int
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    digest, size = sha256_of(path, max_bytes=max_bytes)
    assert size == max_bytes + 1
    assert digest == hashlib.sha256(bytes(max_bytes + 1)).hexdigest()


# --- safe_join

tricky_text = st.text(st.sampled_from("a./\\~\0 -:"), max_size=12) | st.text(max_size=12)
plain_part = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(
    lambda part: part not in {".", ".."}
)


@given(tricky_text)
@example("..")
@example("a/../..")
@example("/etc/passwd")
@example("//host")
@example("~root")
def test_a_joined_path_is_always_below_the_root(relative: str) -> None:
    try:
        joined = safe_join(ROOT, relative)
    except StorageError:
        return
    # What the kernel would resolve, by the standard library's own rules.
    resolved = os.path.normpath(os.path.join(str(ROOT), relative))  # noqa: PTH118
    assert str(joined) == resolved
    assert resolved.startswith(f"{ROOT}/")
    assert "\0" not in resolved


@given(st.lists(plain_part, min_size=1, max_size=5))
def test_every_plain_path_is_accepted(parts: list[str]) -> None:
    assert safe_join(ROOT, "/".join(parts)).parts == (*ROOT.parts, *parts)


@pytest.mark.parametrize(
    "relative",
    ["", ".", "..", "/", "/etc", "a/", "a//b", "a/./b", "a/..", "../a", "a/../../b", "a\0b"],
)
def test_a_path_that_is_not_plain_is_refused(relative: str) -> None:
    with pytest.raises(StorageError, match="is not a plain path below /srv/bundle"):
        safe_join(ROOT, relative)
