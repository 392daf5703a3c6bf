"""Property-based requests from OpenAPI documents against a running agent: no server error.

    python -m tests.openapi_cases .peers/schemathesis/bin/python

Serves a bundle of small models (numbers, strings, images) and lets schemathesis make requests from
two documents: the agent's own, and the Open Inference Protocol's. Ends with 1 if an answer was an
error of the server, or none that its document describes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from edge import manifest as m
from edge.classes import Classes
from edge.images import ImagePreprocessing
from edge.spec import AnyArray, Profile, ShapeRange, TensorSpec
from edge.tensor_bytes import object_array
from tests.agents import make_config, running_agent
from tests.bundles import affine_parts, golden_tensors, joined_parts, make_key, write_bundle
from tests.models import WORDS, model_from_nodes, text_model

HERE = Path(__file__).parent
Parts = tuple[m.Manifest, dict[str, bytes]]


def main(python: str) -> int:
    """Return the exit status of the cases."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        key = make_key()
        # "spare" is loaded and unloaded by the cases, so that the others stay.
        spare = affine_parts(name="spare")
        parts = joined_parts(affine_parts(), words_parts(), photo_parts(), spare)
        bundle = write_bundle(root / "several", *parts, key)
        (root / "keys.d").mkdir()
        (root / "keys.d" / "test.pub").write_bytes(key.public_pem)
        config = make_config(root, bundle=bundle, trusted_keys=root / "keys.d")
        with running_agent(config) as agent:
            script = HERE / "peers" / "schemathesis_cases.py"
            document = HERE / "data" / "open_inference_rest.yaml"
            command = [python, str(script), agent.url, str(document)]
            return subprocess.run(command, check=False).returncode


def words_parts() -> Parts:
    """Return a model that takes and gives strings, see `tests.models.text_model`."""
    text = object_array([word.encode() for word in WORDS[:2]], (2, 1))
    following = object_array([word.encode() for word in WORDS[1:3]], (2, 1))
    outputs = {"same": text, "number": np.array([[0], [1]]), "next": following}
    return parts_of("words", text_model().SerializeToString(), {"text": text}, outputs)


def photo_parts() -> Parts:
    """Return a classifier of images of 4 x 4: which colour there is most of."""
    graph = model_from_nodes(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["scores"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
    )
    x = np.random.default_rng(0).uniform(0, 1, (2, 3, 4, 4)).astype(np.float32)
    outputs = {"scores": x.mean(axis=(2, 3))}
    manifest, files = parts_of("photo", graph.SerializeToString(), {"x": x}, outputs)
    classes = Classes(output="scores", labels=("red", "green", "blue"), softmax=True)
    image = ImagePreprocessing(input="x", height=4, width=4)
    model = replace(manifest.models[0], classes=classes, image=image)
    return replace(manifest, models=(model,)), files


def parts_of(
    name: str, graph: bytes, feeds: dict[str, AnyArray], outputs: dict[str, AnyArray]
) -> Parts:
    """Return a bundle of one fp32 model for 1 to 8 rows; feeds and outputs are its golden case."""
    manifest, _ = affine_parts()
    files = {f"{name}/fp32.onnx": graph}
    case = m.GoldenCase(
        inputs=golden_tensors(f"{name}/in", feeds, files),
        outputs=golden_tensors(f"{name}/out", outputs, files),
    )
    rows = {n: array.shape[1:] for n, array in feeds.items()}
    model = replace(
        manifest.models[0],
        name=name,
        inputs=specs(case.inputs),
        outputs=specs(case.outputs),
        profile=Profile(
            ranges={n: ShapeRange(min=(1, *s), opt=(1, *s), max=(8, *s)) for n, s in rows.items()}
        ),
        variants=(
            m.Variant(id="fp32", backend="ort", precision="fp32", files=(f"{name}/fp32.onnx",)),
        ),
        preferences=(),
        golden=m.Golden(cases=(case,), tolerance={"fp32": 1e-5}),
        batching=m.Batching(),
    )
    return replace(manifest, models=(model,)), files


def specs(tensors: tuple[m.GoldenTensor, ...]) -> tuple[TensorSpec, ...]:
    """Return the specs of tensors whose first axis is the batch."""
    return tuple(
        TensorSpec(name=t.name, datatype=t.datatype, shape=("batch", *t.shape[1:])) for t in tensors
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
