"""Change one byte anywhere in a packed bundle: the agent must notice before it opens a model."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.agent import Agent
from edge.config import AgentConfig
from edge.errors import BundleError
from edge.notify import Notifier
from edge.session import Session
from host_tools.pack import pack
from tests.host_tools.packing import pack_request

BLOB_POSITIONS = 2000


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AgentConfig:
    folder = tmp_path_factory.mktemp("bundle")
    packed = pack(pack_request(folder), say=lambda _: None)
    return AgentConfig(bundle=packed.out, trusted_keys=folder / "keys", port=0)


def never_open(*_: object) -> Session:
    raise AssertionError("a model of an altered bundle was opened")


def refusal(config: AgentConfig) -> str:
    with pytest.raises(BundleError) as caught:
        Agent.open(config, notifier=Notifier.from_environ({}), prepare=never_open)
    return str(caught.value)


def flip_each(path: Path, positions: list[int], check: Callable[[int], None]) -> None:
    original = path.read_bytes()
    rng = random.Random(path.name)
    try:
        for position in positions:
            altered = bytearray(original)
            altered[position] ^= rng.randrange(1, 256)
            path.write_bytes(bytes(altered))
            check(position)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig"])
def test_every_byte_of_manifest_and_signature_counts(config: AgentConfig, name: str) -> None:
    path = config.bundle / name
    for _ in range(2):

        def check(position: int) -> None:
            message = refusal(config)
            assert "manifest.json" in message or "manifest.sig" in message, (position, message)

        flip_each(path, list(range(path.stat().st_size)), check)


def test_sampled_bytes_of_every_blob_count(config: AgentConfig) -> None:
    blobs = sorted((config.bundle / "blobs" / "sha256").iterdir())
    total = sum(blob.stat().st_size for blob in blobs)
    rng = random.Random(0)
    checked = 0
    for blob in blobs:
        size = blob.stat().st_size
        share = min(size, max(20, BLOB_POSITIONS * size // total + 1))

        def check(position: int, name: str = blob.name) -> None:
            message = refusal(config)
            assert name in message, (position, message)

        positions = sorted(rng.sample(range(size), share))
        flip_each(blob, positions, check)
        checked += len(positions)
    assert checked >= BLOB_POSITIONS


def test_truncated_extended_and_missing_files_are_named(config: AgentConfig) -> None:
    for path in [p for p in config.bundle.rglob("*") if p.is_file()]:
        original = path.read_bytes()
        for altered in (b"", original[:-1], original + b"\0", original + b"\n"):
            path.write_bytes(altered)
            assert path.name in refusal(config)
        path.unlink()
        assert path.name in refusal(config)
        path.mkdir()
        assert path.name in refusal(config)
        path.rmdir()
        path.symlink_to("/etc/hostname")
        assert path.name in refusal(config)
        path.unlink()
        path.write_bytes(original)


def test_two_blobs_cannot_change_places(config: AgentConfig) -> None:
    first, second = sorted((config.bundle / "blobs" / "sha256").iterdir())[:2]
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    message = refusal(config)
    assert first.name in message or second.name in message
    first.write_bytes(contents[0])
    second.write_bytes(contents[1])


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig", "blob"])
def test_the_agent_exits_with_one_line_and_status_1(config: AgentConfig, name: str) -> None:
    path = config.bundle / name
    if name == "blob":
        path = max((config.bundle / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    original = path.read_bytes()
    middle = len(original) // 2
    path.write_bytes(original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :])
    command = [sys.executable, "-c", "from edge.cli import main; main()", "serve", "--port", "0"]
    flags = ["--bundle", str(config.bundle), "--trusted-keys", str(config.trusted_keys)]
    result = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=30)
    path.write_bytes(original)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert path.name in lines[0]
    assert lines[0].startswith("error: ")
