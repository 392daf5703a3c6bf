"""What `inspect` says that an installation takes is what it takes at its peak."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from edge.slots.installing import Wish
from edge.slots.installing import install as bring
from edge.target import Target
from host_tools.describe import print_manifest
from host_tools.disk_need import ELSEWHERE, peak_bytes
from tests.edge.slots.crash_states import fetch_from, open_store
from tests.edge.slots.simulated_disk import SimulatedDisk
from tests.edge.slots.slot_bundles import AGX_ORIN, CPU, RTX_4060, TRUSTED, Packed, packed
from tests.edge.slots.test_needs import FILES, with_engines


@pytest.fixture
def bundle(tmp_path: Path) -> Packed:
    return packed(tmp_path / "release", "1", change=with_engines, files=FILES)


def stored(disk: SimulatedDisk) -> int:
    return sum(len(content) for content in disk.as_is().values() if isinstance(content, bytes))


@pytest.mark.parametrize(
    ("target", "device"),
    [(RTX_4060, "rtx-4060"), (AGX_ORIN, "agx-orin-64gb"), (CPU, ELSEWHERE)],
)
def test_an_installation_never_takes_more_than_was_said(
    bundle: Packed, target: Target, device: str
) -> None:
    disk = SimulatedDisk()
    store = open_store(disk)
    taken = [stored(disk)]
    disk.after_change = lambda name: taken.append(stored(disk))
    wish = Wish(manifest=bundle.manifest, signature=bundle.signature, keys=TRUSTED, target=target)
    with store.changing("test"):
        bring(store, wish, fetch_from(bundle))
    peak, said = max(taken) - taken[0], peak_bytes(bundle.parsed)[device]
    assert peak <= said
    assert said <= sum(4096 + len(content) for content in bundle.blobs.values())


def shown(bundle: Packed) -> str:
    sink = io.StringIO()
    print_manifest(bundle.parsed, "unsigned", Console(file=sink, width=80))
    assert all(len(line) <= 80 for line in sink.getvalue().splitlines())
    return " ".join(sink.getvalue().split())


def test_it_is_said_for_each_device(bundle: Packed) -> None:
    peaks = peak_bytes(bundle.parsed)
    assert set(peaks) == {"rtx-4060", "agx-orin-64gb", ELSEWHERE}
    assert f"installing takes at most {peaks['agx-orin-64gb'] / 1e3:.1f} kB on agx" in shown(bundle)


def test_without_engines_it_is_the_same_everywhere(tmp_path: Path) -> None:
    plain = packed(tmp_path / "plain", "1")
    (peak,) = peak_bytes(plain.parsed).values()
    words = f"installing takes at most {peak / 1e3:.1f} kB of disk, beside the bundle in service"
    assert words in shown(plain)
