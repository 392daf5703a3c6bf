"""MLflow's client, without what it tells its makers, and with errors that say what to do.

mlflow fetches a configuration and sends use counts home as soon as it is imported: this is
switched off before. Its models are often pickles; nothing here loads any.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from edge.errors import BackendUnavailableError, UsageError
from host_tools.errors import RegistryError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

# Read by mlflow when it is imported, or when it asks a server. It retries for minutes by itself.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND")
_HOSTED = ("databricks", "databricks-uc", "uc")
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")
_RESERVED_ALIAS = re.compile(r"latest|v[0-9]+", re.IGNORECASE)
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9][0-9]*))")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """A model version, by its alias or by its number."""

    name: str
    alias: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        """Return it as MLflow spells it."""
        return f"models:/{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


def reference_from_text(text: str) -> ModelReference:
    """Return what models:/NAME@ALIAS or models:/NAME/VERSION means; raises UsageError."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no model; give models:/NAME@ALIAS or models:/NAME/VERSION")
    return ModelReference(name=match["name"], alias=match["alias"], version=match["version"])


def check_alias(alias: str) -> None:
    """Raise UsageError unless MLflow takes this for an alias: it says so only in the end."""
    if _ALIAS.fullmatch(alias) is None or _RESERVED_ALIAS.fullmatch(alias) is not None:
        raise UsageError(
            f"--alias {alias!r}: use letters, digits, '-' and '_' only, and neither latest nor v1"
        )


def is_absent(uri: str | None) -> bool:
    """Whether a registry would lie in a file or folder that is not there; MLflow would make it."""
    scheme, found, rest = (uri or "").partition(":")
    if not uri or (found and scheme not in {"sqlite", "file"}):
        return False
    if not found:
        return uri not in _HOSTED and not Path(uri).exists()
    place = rest.partition("?")[0]
    # sqlite:///relative, sqlite:////absolute; file:relative, file:///absolute
    path = place.removeprefix("///") if scheme == "sqlite" else unquote(place.removeprefix("//"))
    return bool(path) and not Path(path).exists()


def open_registry(uri: str | None) -> MlflowClient:
    """Return a client of the registry; raises UsageError without one, BackendUnavailableError."""
    if not uri:
        raise UsageError(
            "which registry? give --registry, such as sqlite:///mlflow.db or https://HOST, or set "
            "MLFLOW_TRACKING_URI"
        )
    os.environ.update(SETTINGS)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise BackendUnavailableError(
            f"mlflow is not importable: {error}; pip install 'edge-kit[mlflow]'"
        ) from error
    with registry_errors(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def registry_errors(what: str) -> Iterator[None]:
    """Turn what mlflow and its stores raise into a RegistryError about `what`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        words = str(error).partition("\n")[0][:300]
        raise RegistryError(f"{what}: {words}; is --registry right, and does it answer?") from error


def version_of(client: MlflowClient, reference: ModelReference) -> ModelVersion:
    """Return the version that a reference means; raises UsageError if there is none."""
    from mlflow.exceptions import MlflowException

    with registry_errors(str(reference)):
        try:
            if reference.alias is not None:
                return client.get_model_version_by_alias(reference.name, reference.alias)
            return client.get_model_version(reference.name, str(reference.version))
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            known = _known(client, reference.name)
    raise UsageError(f"{reference} is not in the registry; {known}")


def _known(client: MlflowClient, name: str) -> str:
    """Return in words what there is in its place."""
    found = client.search_model_versions(f"name = '{_quoted(name)}'")
    if not found:
        return f"it has no model {name!r}"
    model = client.get_registered_model(name)
    aliases = ", ".join(sorted(model.aliases)) or "none"
    versions = ", ".join(sorted((str(one.version) for one in found), key=int))
    return f"{name} has the aliases {aliases} and the versions {versions}"


def _quoted(text: str) -> str:
    return text.replace("'", "")
