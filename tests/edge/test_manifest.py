import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import manifest as m
from edge.manifest import bytes_from_manifest
from edge.manifest_reading import manifest_from_bytes
from tests.edge.manifests import CONTENT, MANIFEST, Change, altered, refused, spelled
from tests.encoders import TEXT as TEXT_STEPS
from tests.encoders import encoder_parts


def test_the_bytes_are_canonical_json() -> None:
    assert spelled(json.loads(CONTENT)) == CONTENT
    assert CONTENT.startswith(b'{\n "artifacts": [\n  {\n   "path": "affine/fp32.onnx",\n')
    assert manifest_from_bytes(CONTENT) == MANIFEST


finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**63 - 1)
free_text = st.text(max_size=20)


@given(
    measurements=st.lists(
        st.builds(
            m.Measurement,
            device=free_text,
            runtime=free_text,
            threads=counts,
            batch=counts,
            runs=counts,
            p50_ms=finite,
            p99_ms=finite,
        ),
        max_size=2,
    ),
    provenance=st.builds(
        m.Provenance,
        source=free_text,
        opset=counts,
        exporter=free_text,
        tools=st.dictionaries(free_text, free_text, max_size=3),
    ),
    tolerance=st.dictionaries(free_text, finite, max_size=3),
    created=free_text,
    top1=st.none() | finite,
)
def test_what_is_written_is_read_back(
    measurements: list[m.Measurement],
    provenance: m.Provenance,
    tolerance: dict[str, float],
    created: str,
    top1: float | None,
) -> None:
    model = MANIFEST.models[0]
    assert model.accuracy is not None
    model = replace(
        model,
        variants=tuple(replace(v, measurements=tuple(measurements)) for v in model.variants),
        golden=replace(model.golden, tolerance={**tolerance, "fp32": 0.5, "int8": 0.5}),
        accuracy=replace(model.accuracy, fp32_top1_percent=top1),
        provenance=provenance,
    )
    manifest = replace(MANIFEST, models=(model,), created=created)
    content = bytes_from_manifest(manifest)
    assert manifest_from_bytes(content) == manifest
    assert json.loads(content)["created"] == created


@pytest.mark.parametrize("schema", [0, 1, 2, 10**25])
def test_another_schema_is_named_whatever_else_the_file_holds(schema: int) -> None:
    for document in ({"schema": schema}, {"schema": schema, "models": 5, "new": [1]}):
        expected = f"manifest.json has schema {schema}, this agent reads 3; install the edge-kit"
        assert refused(spelled(document)).startswith(expected)


def first_model(document: Any) -> Any:
    return document["models"][0]


def add_twice(key: str) -> Change:
    return lambda document: document[key].append(copy.deepcopy(document[key][0]))


TEXT = {
    "ids": "ids",
    "mask": None,
    "max_tokens": 8,
    "pad": 0,
    "truncation": "end",
    "types": None,
}
DETECTION = {
    "activation": "none",
    "background": "none",
    "boxes": "y",
    "form": "xyxy",
    "iou_threshold": 0.5,
    "labels": ["cat"],
    "max_detections": 100,
    "numbered": False,
    "objectness": False,
    "score_threshold": 0.25,
    "scores": "y",
    "transposed": False,
    "unit": "pixels",
}
REFERENCES: dict[str, tuple[Change, str]] = {
    "variant file": (
        lambda d: first_model(d)["variants"][0].update(files=["none.onnx"]),
        "model 'affine' names the unlisted file 'none.onnx'",
    ),
    "second variant file": (
        lambda d: first_model(d)["variants"][1]["files"].append("weights"),
        "names the unlisted file 'weights'",
    ),
    "golden input": (
        lambda d: first_model(d)["golden"]["cases"][0]["inputs"][0].update(artifact="in"),
        "names the unlisted file 'in'",
    ),
    "golden output": (
        lambda d: first_model(d)["golden"]["cases"][0]["outputs"][0].update(artifact="out"),
        "names the unlisted file 'out'",
    ),
    "calibration table": (
        lambda d: first_model(d)["calibration"].update(table="table.json"),
        "names the unlisted file 'table.json'",
    ),
    "preferred variant": (
        lambda d: first_model(d)["preferences"][0].update(variant="int4"),
        "preference for ort names no such variant",
    ),
    "preferred backend": (
        lambda d: first_model(d)["preferences"][0].update(backend="trt"),
        "preference for trt names no such variant",
    ),
    "tolerance": (
        lambda d: first_model(d)["golden"]["tolerance"].pop("int8"),
        "no golden tolerance for int8",
    ),
    "no artifact": (lambda d: d.update(artifacts=[]), "names the unlisted file"),
    "no model": (lambda d: d.update(models=[]), "no model"),
    "no variant": (lambda d: first_model(d).update(variants=[]), "has no variant"),
    "no file": (lambda d: first_model(d)["variants"][0].update(files=[]), "has no file"),
    "no golden case": (lambda d: first_model(d)["golden"].update(cases=[]), "has no golden case"),
    "no golden output": (
        lambda d: first_model(d)["golden"]["cases"][0].update(outputs=[]),
        "a golden case has no output",
    ),
    "artifact twice": (add_twice("artifacts"), "two artifacts have the same path"),
    "model twice": (add_twice("models"), "two models have the same name"),
    "variant twice": (
        lambda d: first_model(d)["variants"][0].update(id="fp32"),
        "model 'affine': variant ids repeat",
    ),
    "input twice": (
        lambda d: first_model(d)["inputs"].append(first_model(d)["inputs"][0]),
        "model 'affine': tensor names repeat",
    ),
    "output twice": (
        lambda d: first_model(d)["outputs"][0].update(name="s"),
        "model 'affine': tensor names repeat",
    ),
    "profile of no input": (
        lambda d: first_model(d)["profile"]["ranges"].update(
            z=first_model(d)["profile"]["ranges"]["x"]
        ),
        "the profile names the unknown input 'z'",
    ),
    "profile of another rank": (
        lambda d: first_model(d)["profile"]["ranges"]["x"].update(min=[1]),
        "profile rank of 'x'",
    ),
    "profile upside down": (
        lambda d: first_model(d)["profile"]["ranges"]["x"].update(max=[0, 4]),
        "profile of 'x' is not min <= opt <= max",
    ),
    "text": (
        lambda d: first_model(d).update(text={**TEXT, "tokenizer": "affine/fp32.onnx"}),
        "model 'affine': text: the model takes ['x'], text gives ['ids']",
    ),
    "detection without images": (
        lambda d: first_model(d).update(detection=DETECTION),
        "model 'affine': detection: boxes need image steps",
    ),
    "embedding": (
        lambda d: first_model(d).update(embedding="z"),
        "model 'affine': embedding: the model gives ['y', 's'], not 'z'",
    ),
    "embedding of another shape": (
        lambda d: first_model(d).update(embedding="s"),
        "not a FP32 vector a row",
    ),
    "too many artifacts": (
        lambda d: d.update(
            artifacts=[{"path": f"p{i}", "sha256": "0" * 64, "size": 0} for i in range(4097)]
        ),
        "more than 4096 artifacts",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFERENCES.values(), ids=REFERENCES)
def test_a_manifest_that_contradicts_itself_is_refused(change: Change, message: str) -> None:
    assert message in refused(altered(change))


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 65, "0" * 64 + "\n", "A" * 64, "g" * 64, "../" + "0" * 61]
)
def test_a_digest_is_64_lower_case_hex_digits(digest: str) -> None:
    message = refused(altered(lambda d: d["artifacts"][0].update(sha256=digest)))
    assert "bad digest of 'affine/fp32.onnx'" in message


@pytest.mark.parametrize("path", ["", "/", "/etc/passwd", "..", "../x", "a/../b", "a/.."])
def test_the_path_of_an_artifact_is_relative_and_goes_down(path: str) -> None:
    assert f"bad path {path!r}" in refused(
        altered(lambda d: d["artifacts"].append({"path": path, "sha256": "0" * 64, "size": 0}))
    )


@pytest.mark.parametrize(
    "name", ["", "/x", "a/b", "..", ".hidden", "-flag", "a b", "a\n", "é", "a\0", "x" * 129]
)
def test_the_names_that_reach_paths_and_urls_are_plain(name: str) -> None:
    assert not m.is_plain_name(name)
    assert "bundle name" in refused(altered(lambda d: d.update(name=name)))
    assert "model name" in refused(altered(lambda d: first_model(d).update(name=name)))
    assert "model version" in refused(altered(lambda d: first_model(d).update(version=name)))


@pytest.mark.parametrize("name", ["a", "0", "net-1.2_x", "x" * 128])
def test_a_plain_name_is_accepted(name: str) -> None:
    assert m.is_plain_name(name)
    assert manifest_from_bytes(altered(lambda d: d.update(name=name))).name == name


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("", "version is empty"),
        ("x" * 201, "has 201 characters, and 200 are the most"),
        ("1\n2", "cannot be printed"),
        ("\x1b[2J", "cannot be printed"),
    ],
)
def test_a_bundle_version_is_short_and_can_be_printed(version: str, problem: str) -> None:
    assert problem in refused(altered(lambda d: d.update(version=version)))


@pytest.mark.parametrize("version", ["1", "2026-11 (Müller's)", "é" * 200])
def test_a_bundle_version_is_any_other_text(version: str) -> None:
    assert manifest_from_bytes(altered(lambda d: d.update(version=version))).version == version


def test_an_empty_name_is_refused_elsewhere_too() -> None:
    for kind in ("inputs", "outputs"):
        content = altered(lambda d, kind=kind: first_model(d)[kind][0].update(name=""))
        assert "a tensor has no name" in refused(content)
    content = altered(lambda d: first_model(d)["variants"][1].update(id=""))
    assert "a variant has no id" in refused(content)


def test_an_artifact_is_found_by_its_path() -> None:
    for artifact in MANIFEST.artifacts:
        assert MANIFEST.artifact(artifact.path) is artifact


def test_the_tokenizer_of_a_model_is_a_file_of_the_bundle() -> None:
    manifest, files = encoder_parts()
    artifacts = tuple(
        m.Artifact(path=path, size=len(content), sha256="0" * 64) for path, content in files.items()
    )
    whole = replace(manifest, artifacts=artifacts)
    assert manifest_from_bytes(bytes_from_manifest(whole)).models[0].text == TEXT_STEPS
    without = tuple(a for a in artifacts if a.path != TEXT_STEPS.tokenizer)
    message = refused(bytes_from_manifest(replace(whole, artifacts=without)))
    assert "unlisted file 'encoder/tokenizer.json'" in message
