from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from pathlib import Path

import pytest

from edge.errors import BundleError, StorageError
from edge.sealed import Sealed, memory_file


def open_files() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


CONTENT = bytes(range(256)) * 5000


def sealed(path: Path, content: bytes = CONTENT) -> Sealed:
    return Sealed.from_file(path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def test_the_bytes_of_a_file_are_kept_and_survive_its_change(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    path.write_bytes(CONTENT)
    kept = sealed(path)
    path.write_bytes(b"changed")
    assert bytes(kept.view()) == CONTENT


def test_nobody_can_write_to_sealed_bytes() -> None:
    kept = Sealed.from_bytes(CONTENT)
    with pytest.raises(PermissionError):
        os.pwrite(kept.fileno(), b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(kept.fileno(), 1)
    with pytest.raises(PermissionError):
        Path(f"/proc/self/fd/{kept.fileno()}").write_bytes(b"x")
    view = kept.view()
    with pytest.raises(TypeError):
        view[0] = 1  # type: ignore[index]


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"x", lambda c: b"x" + c[1:]])
def test_another_content_is_refused_and_nothing_stays_open(change, tmp_path: Path) -> None:
    path = tmp_path / "engine"
    path.write_bytes(change(CONTENT))
    before = open_files()
    with pytest.raises(BundleError, match="does not match its digest"):
        sealed(path)
    assert open_files() == before


def test_a_missing_file_or_a_link_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "engine")
    for name in ("engine", "link"):
        with pytest.raises(StorageError, match=name):
            sealed(tmp_path / name)


def test_what_a_child_wrote_can_be_sealed() -> None:
    descriptor = memory_file()
    os.write(descriptor, b"plan")
    kept = Sealed.from_memory_file(descriptor)
    assert bytes(kept.view()) == b"plan"
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    kept.close()
    kept.close()


def test_no_bytes_are_fine() -> None:
    assert Sealed.from_bytes(b"").view() == b""


def test_a_page_that_the_kernel_still_holds_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = fcntl.fcntl, [errno.EBUSY, errno.EBUSY]

    def busy(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_ADD_SEALS and refusals:
            raise OSError(refusals.pop(), "busy")
        return real(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", busy)
    monkeypatch.setattr("edge.sealed.SEAL_PAUSE_S", 0.0)
    sealed = Sealed.from_bytes(b"engine")
    assert bytes(sealed.view()) == b"engine"
    sealed.close()
    refusals.append(errno.EPERM)
    with pytest.raises(PermissionError):
        Sealed.from_bytes(b"engine")
