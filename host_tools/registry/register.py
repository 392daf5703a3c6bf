"""Notes a bundle in a registry: a run with its numbers, and a model version with its digest.

Every step looks for what an earlier try has done, so that a repeat completes it and adds nothing.
The bundle itself stays where it is: only its Manifest is stored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.bundle import MANIFEST_NAME, Bundle, open_bundle
from edge.errors import UsageError
from edge.files import sha256_of
from edge.manifest import Manifest
from edge.trust import trusted_keys_in
from host_tools.registry.client import (
    check_alias,
    is_absent,
    open_registry,
    reference_from_text,
    registry_errors,
    version_of,
)
from host_tools.registry.facts import BundleFacts, facts_from_manifest

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

EXPERIMENT = "edge-kit"
DIGEST_TAG = "edge_kit.bundle_sha256"
PARENT_TAG = "mlflow.parentRunId"
ARTIFACTS = "bundle"
DIGEST_CHARACTERS = 36  # MLflow keeps no more of a dataset's; the parameters have all of it


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterRequest:
    """What to note, and where.

    name: of the registered model; None is the bundle's. alias: to point at the new version.
    training_run: that the model comes from; None is that of the registered model it was packed
    from. trusted_keys: folder of .pub files, one of which must have signed the bundle.
    """

    bundle: Path
    registry: str | None
    name: str | None = None
    alias: str | None = None
    training_run: str | None = None
    trusted_keys: Path | None = None
    allow_unsigned: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What is in the registry, or would be. version, run_id: None if nothing was written.

    is_new: whether this call has made the version.
    """

    name: str
    version: str | None
    run_id: str | None
    alias: str | None
    bundle_sha256: str
    training_run: str | None
    data_sha256: tuple[str, ...]
    is_new: bool
    params: dict[str, str]
    metrics: dict[str, float]


def register(request: RegisterRequest) -> Registration:
    """Note a bundle, once however often it is called.

    Raises TrustError or BundleError for a bundle that does not verify, RegistryError if the
    registry cannot be reached.
    """
    if request.alias is not None:
        check_alias(request.alias)
    keys = () if request.trusted_keys is None else trusted_keys_in(request.trusted_keys)
    bundle = open_bundle(request.bundle, keys, allow_unsigned=request.allow_unsigned)
    digest, _ = sha256_of(bundle.root / MANIFEST_NAME)
    name = request.name or bundle.manifest.name
    facts = facts_from_manifest(bundle.manifest)
    if request.dry_run and is_absent(request.registry):
        return _planned(request, bundle.manifest, name, digest, facts)
    client = open_registry(request.registry)
    with registry_errors(str(request.registry)):
        training_run = request.training_run or _training_run(client, bundle.manifest)
        version = _version(client, name, digest)
        is_new = version is None
        run_id = None
        if version is not None:
            run_id = version.run_id
        elif not request.dry_run:
            run = _run(client, bundle, facts, digest, training_run)
            run_id = run.info.run_id
            version = _new_version(client, bundle, name, run, digest, training_run)
        if version is not None and request.alias is not None and not request.dry_run:
            client.set_registered_model_alias(name, request.alias, version.version)
    return Registration(
        name=name,
        version=None if version is None else str(version.version),
        run_id=run_id,
        alias=request.alias,
        bundle_sha256=digest,
        training_run=training_run,
        data_sha256=facts.data_sha256,
        is_new=is_new and not request.dry_run,
        params=facts.params,
        metrics=facts.metrics,
    )


def _planned(
    request: RegisterRequest, manifest: Manifest, name: str, digest: str, facts: BundleFacts
) -> Registration:
    """Return what would be noted in a registry that is yet to be made."""
    sources = (model.provenance.source for model in manifest.models)
    came_from = next((source for source in sources if source.startswith("models:/")), None)
    if request.training_run is None and came_from is not None:
        raise UsageError(f"{came_from} is not in the registry; there is none at {request.registry}")
    return Registration(
        name=name,
        version=None,
        run_id=None,
        alias=request.alias,
        bundle_sha256=digest,
        training_run=request.training_run,
        data_sha256=facts.data_sha256,
        is_new=False,
        params=facts.params,
        metrics=facts.metrics,
    )


def _training_run(client: MlflowClient, manifest: Manifest) -> str | None:
    """Return the run of the registered model that a bundle was packed from."""
    for model in manifest.models:
        if model.provenance.source.startswith("models:/"):
            found = version_of(client, reference_from_text(model.provenance.source))
            return found.run_id or None
    return None


def _version(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}'")
    return next((one for one in found if one.tags.get(DIGEST_TAG) == digest), None)


def _run(
    client: MlflowClient,
    bundle: Bundle,
    facts: BundleFacts,
    digest: str,
    training_run: str | None,
) -> Run:
    """Return the run with the numbers of a bundle, of an earlier try if that was cut off."""
    from mlflow.entities import Metric, Param, RunTag

    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = (
        client.create_experiment(EXPERIMENT) if experiment is None else (experiment.experiment_id)
    )
    found = client.search_runs([number], f"tags.`{DIGEST_TAG}` = '{digest}'", max_results=1)
    run = found[0] if found else client.create_run(
        number, run_name=f"{bundle.manifest.name} {bundle.manifest.version}",
        tags={DIGEST_TAG: digest},
    )  # fmt: skip
    tags = {"edge_kit.bundle": bundle.manifest.name, "edge_kit.version": bundle.manifest.version}
    if training_run is not None:
        tags[PARENT_TAG] = training_run
    id_, now = run.info.run_id, int(time.time() * 1000)
    known = run.data.metrics
    client.log_batch(
        id_,
        metrics=[Metric(k, v, now, 0) for k, v in facts.metrics.items() if k not in known],
        params=[Param(key, value) for key, value in facts.params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    _log_data(client, id_, facts.data_sha256)
    client.log_artifact(id_, str(bundle.root / MANIFEST_NAME), ARTIFACTS)
    client.set_terminated(id_)
    return run


def _log_data(client: MlflowClient, run_id: str, digests: tuple[str, ...]) -> None:
    """Note what was calibrated on, as an input of the run; the same input twice is one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset("calibration", digest[:DIGEST_CHARACTERS], "sha256", digest),
            [InputTag("mlflow.data.context", "calibration")],
        )
        for digest in digests
    ]
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _new_version(
    client: MlflowClient,
    bundle: Bundle,
    name: str,
    run: Run,
    digest: str,
    training_run: str | None,
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    signer = bundle.signed_by
    tags = {
        DIGEST_TAG: digest,
        "edge_kit.bundle": bundle.manifest.name,
        "edge_kit.version": bundle.manifest.version,
        "edge_kit.signed_by": "nobody" if signer is None else signer.keyid,
        "edge_kit.training_run": training_run or "",
    }
    return client.create_model_version(
        name, source=f"{run.info.artifact_uri}/{ARTIFACTS}", run_id=run.info.run_id, tags=tags
    )
