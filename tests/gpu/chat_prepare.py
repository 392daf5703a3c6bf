"""What the GPU benchmark of chat needs, made where torch and onnx are: graphs and references.

python -m tests.gpu.chat_prepare FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from edge.chat.layered import MODEL_FILE
from edge.chat.ort_decoder import OrtDecoder
from host_tools.chat.engine import EngineShapes, write_engine_graph
from host_tools.chat.layered import layered_model, write_graphs, write_layered
from host_tools.chat.llm_spec import llm_spec_from_config
from tests.chat_models import make_folder, write_onnx
from tests.edge.chat.decoder_contract import CONTEXT, LANES
from tests.gpu import chat_rows, chat_weights

PROMPTS, TOKENS = 3, 64


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    hf = make_folder(folder / "hf", "llama", vocab_size=9088)  # in groups of 128
    write_layered(
        hf, folder / "tiny", lanes=LANES, chunks=(CONTEXT,), capacities=(128, CONTEXT), half=False
    )
    graph = write_onnx(hf, folder / "tiny.onnx")
    _write_references(graph, folder / "tiny" / "greedy.json")
    _write_whole(hf, folder / "whole")
    _write_references(graph, folder / "whole" / "greedy.json")
    qwen = make_folder(folder / "hf-qwen3", "qwen3", vocab_size=9088)
    write_layered(
        qwen, folder / "qwen3", lanes=LANES, chunks=(16, 64, CONTEXT), capacities=(128, CONTEXT),
        half=False,
    )  # fmt: skip
    _write_references(write_onnx(qwen, folder / "qwen3.onnx"), folder / "qwen3" / "greedy.json")
    spec = llm_spec_from_config(chat_weights.CONFIG)
    model = layered_model(
        spec, lanes=chat_weights.LANES, chunks=(chat_weights.CHUNK,),
        capacities=(chat_weights.CAPACITY,), half=True,
    )  # fmt: skip
    (folder / "8b").mkdir()
    write_graphs(spec, model, folder / "8b")
    (folder / "8b" / MODEL_FILE).write_bytes(msgspec.json.encode(model))
    (folder / "rows").mkdir()
    chat_rows.write_graphs(folder / "rows")


def _write_whole(hf: Path, out: Path) -> None:
    """Write a whole graph in the form that TensorRT builds before 10.15, and what it is."""
    out.mkdir()
    shapes = EngineShapes(lanes=LANES, capacity=CONTEXT, chunk=CONTEXT)
    spec = write_engine_graph(
        hf, out / "model.onnx", form="prefix", precision="fp32", shapes=shapes
    )
    (out / "decoder.json").write_bytes(msgspec.json.encode(replace(spec, lanes=LANES)))


def _write_references(graph: Path, out: Path) -> None:
    """Write prompts and the greedy tokens that ONNX Runtime finds on the CPU."""
    found = []
    for seed in range(PROMPTS):
        tokens = np.random.default_rng(seed).integers(3, 9000, 10 + 7 * seed)
        decoder = OrtDecoder.open(graph, lanes=1, intra_op_threads=1)
        prompt, answer, start = tokens.tolist(), [], 0
        while len(answer) < TOKENS:
            step = np.array([tokens]), np.array([start]), np.array([[len(tokens) - 1]])
            logits = decoder.step(0, *step)[0, 0]
            start += len(tokens)
            answer.append(int(logits.argmax()))
            tokens = np.array(answer[-1:])
        found.append({"prompt": prompt, "answer": answer})
        decoder.close()
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
