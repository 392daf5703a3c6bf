"""A registry of MLflow in SQLite, written and read by MLflow's own client."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_tools.registry.client import SETTINGS, open_registry

# Older forms of typing and pydantic inside mlflow warn as it is imported; so do its SQLite pools
# when they are collected.
QUIET = ("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning",
         "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::UserWarning")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the warnings of mlflow out of what fails a test here."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for warning in QUIET:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def idle_threads(no_leaked_threads: None) -> Iterator[None]:
    """Let go of the stores of artifacts that mlflow keeps: their threads end when nobody does."""
    yield
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()
    gc.collect()


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry without models; making its tables takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_registry(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def registry(
    tmp_path: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of an empty registry; whatever it stores by default lands beside it."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_registry, tmp_path / "mlflow.db")
    yield f"sqlite:///{tmp_path}/mlflow.db"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.fixture
def client(registry: str) -> Any:
    """MLflow's client, as any other tool would open it."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=registry, registry_uri=registry)


@pytest.fixture
def log_model(client: Any, tmp_path: Path) -> Any:
    """Log a folder of files as a model of a training run, register it, and return its run."""

    def log(name: str, files: dict[str, bytes], alias: str | None = None) -> str:
        found = client.get_experiment_by_name("training")
        experiment = (
            client.create_experiment("training", artifact_location=f"{tmp_path}/artifacts")
            if found is None
            else found.experiment_id
        )
        run = client.create_run(experiment)
        for file, content in files.items():
            path = tmp_path / "logged" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            place = Path("model", file).parent
            client.log_artifact(run.info.run_id, str(path), str(place))
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        version = client.create_model_version(
            name, source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id
        )
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
        return str(run.info.run_id)

    return log
