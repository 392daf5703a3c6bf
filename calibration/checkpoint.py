"""What an interrupted pass had seen, on disk, so that the next run goes on from there."""

from __future__ import annotations

import hashlib
import io
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibration.observers import Observer
from edge.files import atomic_write

SAVE_EVERY_S = 10.0
_SUFFIX = ".npz"


class Checkpoints:
    """Observers by pass, in a folder that exists only once a pass took SAVE_EVERY_S.

    data_sha256: of the samples; another data set, model, batch or tool starts from nothing.
    """

    def __init__(
        self,
        folder: Path,
        data_sha256: str,
        *,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._data_sha256 = data_sha256
        self._say = say
        self._clock = clock
        self._saved = clock()

    def key(self, *parts: bytes) -> str:
        """Return the name of a pass over the data, made of all that its result depends on."""
        digest = hashlib.sha256(self._data_sha256.encode())
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()

    def load(self, key: str) -> tuple[int, dict[str, Observer]]:
        """Return (rows seen, observers) of a pass; (0, {}) if there is nothing to go on from."""
        path = self._folder / f"{key}{_SUFFIX}"
        try:
            content = io.BytesIO(path.read_bytes())
            with np.load(content, allow_pickle=False) as arrays:
                rows, names = int(arrays["rows"]), [str(name) for name in arrays["names"]]
                observers = {
                    name: Observer.from_state(name, {k: arrays[f"{k}/{i}"] for k in Observer.STATE})
                    for i, name in enumerate(names)
                }
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return 0, {}
        self._say(f"going on after {rows} samples that an earlier run had seen")
        return rows, observers

    def save(self, key: str, rows: int, observers: Mapping[str, Observer], *, done: bool) -> None:
        """Keep what a pass has seen, if it is done or the last time is long enough ago."""
        now = self._clock()
        if now - self._saved < SAVE_EVERY_S and not (done and self._folder.is_dir()):
            return
        self._saved = now
        self._folder.mkdir(exist_ok=True)
        arrays: dict[str, Any] = {
            f"{kind}/{i}": value
            for i, observer in enumerate(observers.values())
            for kind, value in observer.state().items()
        }
        content = io.BytesIO()
        arrays |= {"rows": rows, "names": np.array(list(observers), np.str_)}
        np.savez(content, **arrays)
        atomic_write(self._folder / f"{key}{_SUFFIX}", content.getvalue())

    def clear(self) -> None:
        """Remove everything: the run is over."""
        shutil.rmtree(self._folder, ignore_errors=True)
