"""Fixtures of the workstation's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tqdm


@pytest.fixture(autouse=True, scope="session")
def no_progress_thread() -> Iterator[None]:
    """Keep tqdm, which torch and transformers use, from starting a thread that never ends."""
    interval = tqdm.tqdm.monitor_interval
    tqdm.tqdm.monitor_interval = 0
    yield
    tqdm.tqdm.monitor_interval = interval
