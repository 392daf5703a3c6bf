"""Signed bundles of tiny models, written without `edge-kit pack`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge import manifest as m
from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME
from edge.spec import AnyArray, Profile, ShapeRange, TensorSpec, datatype_from_numpy
from edge.tensor_bytes import bytes_from_tensor
from edge.trust import sign
from tests.models import AFFINE_INPUTS, AFFINE_OUTPUTS, AFFINE_PROFILE, affine, affine_model

# The Manifest of a bundle, and its files by name.
Parts = tuple[m.Manifest, dict[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class TestKey:
    """A key pair in PEM."""

    __test__ = False
    private_pem: bytes
    public_pem: bytes


def make_key() -> TestKey:
    private = Ed25519PrivateKey.generate()
    return TestKey(
        private_pem=private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        public_pem=private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )


def affine_parts(
    graphs: dict[str, bytes] | None = None, *, name: str = "affine", scale: float = 2.0
) -> Parts:
    """Return the Manifest of a bundle that serves "affine" 1, and its files by name.

    graphs: the ONNX bytes of the int8 and fp32 variants; both compute the same here. The manifest
    prefers int8. name: another one for the model. scale: see `tests.models.affine`.
    """
    graph = affine_model(scale=scale).SerializeToString()
    files = {f"{name}/{precision}.onnx": graph for precision in ("int8", "fp32")}
    files |= {f"{name}/{precision}.onnx": content for precision, content in (graphs or {}).items()}
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    golden_in = golden_tensors(f"{name}/golden/0/in", {"x": x}, files)
    golden_out = golden_tensors(f"{name}/golden/0/out", affine(x, scale=scale), files)
    model = m.Model(
        name=name,
        version="1",
        inputs=AFFINE_INPUTS,
        outputs=AFFINE_OUTPUTS,
        profile=AFFINE_PROFILE,
        variants=tuple(
            m.Variant(
                id=precision,
                backend="ort",
                precision=precision,
                files=(f"{name}/{precision}.onnx",),
            )
            for precision in ("int8", "fp32")
        ),
        preferences=(m.Preference(backend="ort", variant="int8", why="p50 1.0 ms against 2.0"),),
        golden=m.Golden(
            cases=(m.GoldenCase(inputs=golden_in, outputs=golden_out),),
            tolerance={"fp32": 1e-5, "int8": 0.1},
        ),
        provenance=m.Provenance(source="tests", opset=17, exporter="tests", tools={}),
    )
    manifest = m.Manifest(
        schema=m.SCHEMA_VERSION,
        name="affine-bundle",
        version="2026.1",
        created="2026-01-01T00:00:00Z",
        artifacts=(),
        models=(model,),
    )
    return manifest, files


def parts_of(
    name: str,
    graph: onnx.ModelProto,
    feeds: Mapping[str, AnyArray],
    wanted: Mapping[str, AnyArray],
    **changes: object,
) -> Parts:
    """Return a bundle of one fp32 model for 1 to 8 rows.

    feeds, wanted: its golden case, whose shapes behind the batch are fixed. changes: of the Model.
    """
    manifest, _ = affine_parts()
    files = {f"{name}/fp32.onnx": graph.SerializeToString()}
    case = m.GoldenCase(
        inputs=golden_tensors(f"{name}/in", feeds, files),
        outputs=golden_tensors(f"{name}/out", wanted, files),
    )
    rows = {n: array.shape[1:] for n, array in feeds.items()}
    values: dict[str, object] = {
        "name": name,
        "inputs": batch_specs(case.inputs),
        "outputs": batch_specs(case.outputs),
        "profile": Profile(
            ranges={n: ShapeRange(min=(1, *s), opt=(1, *s), max=(8, *s)) for n, s in rows.items()}
        ),
        "variants": (
            m.Variant(id="fp32", backend="ort", precision="fp32", files=(f"{name}/fp32.onnx",)),
        ),
        "preferences": (m.Preference(backend="ort", variant="fp32", why="it is the only one"),),
        "golden": m.Golden(cases=(case,), tolerance={"fp32": 1e-5}),
    }
    model = replace(manifest.models[0], **{**values, **changes})  # type: ignore[arg-type]
    return replace(manifest, models=(model,)), files


def batch_specs(tensors: tuple[m.GoldenTensor, ...]) -> tuple[TensorSpec, ...]:
    """Return the specs of tensors whose first axis is the batch."""
    return tuple(
        TensorSpec(name=t.name, datatype=t.datatype, shape=("batch", *t.shape[1:])) for t in tensors
    )


def joined_parts(*parts: Parts) -> Parts:
    """Return one bundle with the models of several."""
    models = tuple(model for manifest, _ in parts for model in manifest.models)
    files = {name: content for _, files in parts for name, content in files.items()}
    return replace(parts[0][0], models=models), files


def write_bundle(
    root: Path, manifest: m.Manifest, files: dict[str, bytes], key: TestKey | None
) -> Path:
    """Write a bundle of files, signed by key unless that is None."""
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    artifacts = []
    for path, content in sorted(files.items()):
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        artifacts.append(m.Artifact(path=path, size=len(content), sha256=digest))
    encoded = m.bytes_from_manifest(replace(manifest, artifacts=tuple(artifacts)))
    (root / MANIFEST_NAME).write_bytes(encoded)
    if key is not None:
        (root / SIGNATURE_NAME).write_bytes(sign(encoded, key.private_pem, name="test key"))
    return root


def golden_tensors(
    prefix: str, tensors: Mapping[str, AnyArray], files: dict[str, bytes]
) -> tuple[m.GoldenTensor, ...]:
    golden = []
    for name, array in tensors.items():
        files[f"{prefix}/{name}.bin"] = bytes_from_tensor(array)
        golden.append(
            m.GoldenTensor(
                name=name,
                datatype=datatype_from_numpy(array.dtype),
                shape=array.shape,
                artifact=f"{prefix}/{name}.bin",
            )
        )
    return tuple(golden)
