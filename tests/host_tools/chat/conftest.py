"""Models that several modules of these tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host_tools.chat import trained


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learnt something."""
    return trained.train(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def outlier_folder(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function with channels of very different sizes."""
    return trained.with_outliers(trained_folder, tmp_path_factory.mktemp("outliers"))
