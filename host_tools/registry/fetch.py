"""A registered model as what `pack` takes: an ONNX file, or the folder of `export-chat`.

A pickle is a program, and whoever may write to a registry would run it here: none is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import UsageError
from host_tools.registry.client import (
    open_registry,
    reference_from_text,
    registry_errors,
    version_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT_RECORD = "chat.json"  # of an export-chat folder
PICKLES = (".pkl", ".pickle", ".pth", ".pt", ".bin", ".ckpt", ".joblib")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedModel:
    """What was downloaded.

    path: of the model file or folder. reference: the version itself, whatever alias was asked for.
    run_id: of the training run that logged it, None if the registry does not know.
    """

    path: Path
    reference: str
    run_id: str | None


def fetch_model(text: str, folder: Path, *, registry: str | None) -> FetchedModel:
    """Download models:/NAME@ALIAS or models:/NAME/VERSION into a folder.

    Raises UsageError for a version that is not there or holds nothing to pack, RegistryError if
    the registry or its files cannot be reached.
    """
    reference = reference_from_text(text)
    client = open_registry(registry)
    version = version_of(client, reference)
    exact = f"models:/{version.name}/{version.version}"
    import mlflow

    with registry_errors(exact):
        found = mlflow.artifacts.download_artifacts(
            artifact_uri=client.get_model_version_download_uri(version.name, version.version),
            dst_path=str(folder),
            tracking_uri=registry,
        )
    path = _packable(Path(found), exact)
    return FetchedModel(path=path, reference=exact, run_id=version.run_id or None)


def _packable(root: Path, reference: str) -> Path:
    """Return the one thing in a download that `pack` takes."""
    files = sorted(_files(root))
    found = [path.parent for path in files if path.name == CHAT_RECORD]
    if not found:
        found = [path for path in files if path.suffix == ".onnx"]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(path.relative_to(root)) for path in found[:5])
        raise UsageError(f"{reference} holds {names}; log the one to pack as a model of its own")
    way_out = (
        "log the .onnx file that `edge-kit export` wrote, or the folder of `edge-kit export-chat`, "
        "and register that"
    )
    pickle = next((path for path in files if path.suffix in PICKLES), None)
    if pickle is not None:
        raise UsageError(
            f"{reference} holds {pickle.relative_to(root)}, a pickle, which is a program and is "
            f"never run here; {way_out}"
        )
    raise UsageError(f"{reference} holds no model that can be packed; {way_out}")


def _files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    yield from (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
