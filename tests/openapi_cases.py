"""Property-based requests from OpenAPI documents against a running agent: no server error.

    python -m tests.openapi_cases .peers/schemathesis/bin/python

Serves a bundle of small models (numbers, strings, images, a fake that talks) and lets schemathesis
make requests from two documents: the agent's own, and the Open Inference Protocol's. Ends with 1 if
an answer was an error of the server, or none that its document describes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from edge.classes import Classes
from edge.images import ImagePreprocessing
from edge.manifest import Batching
from edge.tensor_bytes import object_array
from tests.agents import make_config, running_agent
from tests.bundles import Parts, affine_parts, joined_parts, parts_of
from tests.edge.chat.bundles import chat_parts, fake_opener
from tests.models import WORDS, model_from_nodes, text_model

HERE = Path(__file__).parent


def main(python: str) -> int:
    """Return the exit status of the cases."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # "spare" is loaded and unloaded by the cases, so that the others stay.
        spare = affine_parts(name="spare")
        parts = joined_parts(affine_parts(), words_parts(), photo_parts(), chat_parts(), spare)
        config = make_config(root, parts, allow_capture=True)
        with running_agent(config, open_decoder=fake_opener()) as agent:
            script = HERE / "peers" / "schemathesis_cases.py"
            document = HERE / "data" / "open_inference_rest.yaml"
            command = [python, str(script), agent.url, str(document)]
            return subprocess.run(command, check=False).returncode


def words_parts() -> Parts:
    """Return a model that takes and gives strings, see `tests.models.text_model`."""
    text = object_array([word.encode() for word in WORDS[:2]], (2, 1))
    following = object_array([word.encode() for word in WORDS[1:3]], (2, 1))
    outputs = {"same": text, "number": np.array([[0], [1]]), "next": following}
    return parts_of("words", text_model(), {"text": text}, outputs, batching=Batching())


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
    return parts_of(
        "photo",
        graph,
        {"x": x},
        outputs,
        batching=Batching(),
        classes=Classes(output="scores", labels=("red", "green", "blue"), softmax=True),
        image=ImagePreprocessing(input="x", height=4, width=4),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
