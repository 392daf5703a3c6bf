"""May a model be opened? Decided by measured peaks and by the memory that is left.

A Jetson's GPU shares the memory of the machine, so MemAvailable counts there and not what the CUDA
driver calls free. Sources: proc(5), and the kernel's cgroup-v2.rst, "memory.max".
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.choice import Candidate
from edge.cuda_query import free_memory_bytes
from edge.engine_process import AttemptError
from edge.manifest import Manifest, Variant
from edge.matching import GPU_MEANS
from edge.target import Target

MAX_TEXT_BYTES = 1 << 20
_KIB = 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What opening a variant takes, and how that is known, in words."""

    size: int
    source: str


class Admission:
    """Compares what a candidate needs with what is left. Used by one thread.

    reserve_bytes: what must stay free. host, device: bytes that are left, None if nobody can tell;
    then everything is admitted.
    """

    def __init__(
        self,
        target: Target,
        *,
        reserve_bytes: int,
        host: Callable[[], int | None] | None = None,
        device: Callable[[], int | None] = free_memory_bytes,
    ) -> None:
        self._is_unified = target.kind == "jetson"
        self._reserve_bytes = reserve_bytes
        self._host = available_bytes if host is None else host
        self._device = device
        self._seen: dict[str, int] = {}

    def check(self, manifest: Manifest, candidate: Candidate) -> None:
        """Raise AttemptError unless the candidate fits beside all that is open now."""
        problem = self.problem(manifest, candidate)
        if problem is not None:
            raise AttemptError("memory", problem)

    def problem(
        self, manifest: Manifest, candidate: Candidate, *, cache_bytes: int = 0
    ) -> str | None:
        """Return why a candidate does not fit now, in words; None if it does.

        cache_bytes: what the cache of a chat model takes beside it.
        """
        need = self._need(manifest, candidate.variant)
        if cache_bytes:
            source = f"{need.source}, and {_mb(cache_bytes)} for the conversations"
            need = Need(size=need.size + cache_bytes, source=source)
        on_device = candidate.means in GPU_MEANS and not self._is_unified
        left = self._device() if on_device else self._host()
        if left is None or need.size + self._reserve_bytes <= left:
            return None
        where = "of the GPU" if on_device else "of the machine"
        return (
            f"it takes {_mb(need.size)} ({need.source}) and {_mb(self._reserve_bytes)} are kept "
            f"free, but only {_mb(left)} {where} are left; unload another model, or lower "
            "memory_reserve_bytes"
        )

    def note(self, manifest: Manifest, variant: Variant, memory_bytes: int) -> None:
        """Remember the most that opening a variant took here."""
        key = _identity(manifest, variant)
        self._seen[key] = max(memory_bytes, self._seen.get(key, 0))

    def _need(self, manifest: Manifest, variant: Variant) -> Need:
        """Return the largest of what is known: opening may have used memory that was freed."""
        engine = variant.engine.memory_bytes if variant.engine is not None else 0
        files = sum(manifest.artifact(path).size for path in variant.files)
        known = (
            Need(size=engine, source="as measured when it was built"),
            Need(size=variant.memory_bytes, source="as measured when it was packed"),
            Need(size=self._seen.get(_identity(manifest, variant), 0), source="as it took here"),
        )
        largest = max(known, key=lambda need: need.size)
        if largest.size:
            return largest
        return Need(size=files, source="its files alone, as it was never measured")


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return what this process may still allocate: of the machine, and of its control group."""
    found = [_memory_available(root), _group_available(root)]
    return min((size for size in found if size is not None), default=None)


def return_freed_memory() -> None:
    """Have the C library give what was freed back to the kernel; others may need it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        logger.debug("this C library has no malloc_trim")


def _memory_available(root: Path) -> int | None:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo") or "", re.M)
    return int(match[1]) * _KIB if match is not None else None


def _group_available(root: Path) -> int | None:
    """Return what the limit of the control group leaves; the kernel takes page cache back."""
    match = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup") or "", re.M)
    if match is None:
        return None
    group = root / "sys/fs/cgroup" / match[1]
    limit, used = _text(group / "memory.max"), _text(group / "memory.current")
    if limit is None or used is None or not limit.isdecimal():
        return None
    cached = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat") or "", re.M)
    taken = int(used) - (int(cached[1]) if cached is not None else 0)
    return max(0, int(limit) - taken)


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return None


def _identity(manifest: Manifest, variant: Variant) -> str:
    return f"{variant.backend} {manifest.artifact(variant.files[0]).sha256}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
