"""Runs a chat graph with ONNX Runtime in the plainest way, and its origin with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edge.chat.spec import DECODER_KEY, cache_inputs, cache_outputs, decoder_from_metadata

DTYPES = {"FP32": np.float32, "FP16": np.float16}


def open_graph(path: Path, **options: Any) -> PlainDecoder:
    return PlainDecoder(path, **options)


class PlainDecoder:
    """One chat graph and its caches, as numpy arrays that a step replaces.

    fill: what the cache holds before anything is written to it. as_written: without optimizing,
    which makes of quantized layers a kernel that quantizes activations too.
    """

    def __init__(
        self,
        path: Path,
        *,
        lanes: int = 1,
        capacity: int = 128,
        fill: float = 0.0,
        as_written: bool = False,
    ):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3  # it warns that these caches are copied
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options)
        metadata = onnx.load(str(path), load_external_data=False).metadata_props
        stored = {entry.key: entry.value for entry in metadata}
        self.spec = spec = decoder_from_metadata(stored[DECODER_KEY])
        self.lanes = lanes
        self.start = np.zeros(lanes, np.int64)
        if spec.form == "prefix":
            shape = (capacity, lanes, spec.kv_heads, spec.head_dim)
        else:
            shape = (lanes, spec.kv_heads, capacity, spec.head_dim)
        if spec.form == "concat":
            shape = (lanes, spec.kv_heads, 0, spec.head_dim)
        dtype = DTYPES[spec.cache]
        self.caches = {name: np.full(shape, fill, dtype) for name in cache_inputs(spec)}

    def step(self, tokens: Any, rows: Any = None, real: Any = None) -> np.ndarray:
        """Return logits [lanes, wanted, vocabulary] of new tokens [lanes, tokens].

        rows: default, all. real: how many of each lane's tokens are no padding; default, all.
        """
        tokens = np.atleast_2d(np.asarray(tokens, np.int64))
        lanes, count = tokens.shape
        if rows is None:
            rows = np.tile(np.arange(count), (lanes, 1))
        feeds = {
            "input_ids": tokens,
            "start": self.start,
            "rows": np.asarray(rows, np.int64),
            **self.caches,
        }
        names = cache_outputs(self.spec)
        logits, *updated = self.session.run(["logits", *names], feeds)
        for name, new in zip(cache_inputs(self.spec), updated, strict=True):
            if self.spec.form == "prefix":
                for lane, begin in enumerate(self.start):
                    self.caches[name][begin : begin + count, lane] = new[:, lane]
            else:
                self.caches[name] = new
        self.start = self.start + (count if real is None else np.asarray(real))
        return logits

    def greedy(self, prompt: Any, count: int) -> list[int]:
        """Return the likeliest continuation of one lane."""
        logits = self.step([prompt])[:, -1]
        found = []
        for _ in range(count):
            found.append(int(logits[0].argmax()))
            logits = self.step([found[-1:]])[:, -1]
        return found


def torch_logits(folder: Path, tokens: Any) -> np.ndarray:
    """Return what transformers computes for [sequences, tokens], in float32."""
    import torch

    with torch.no_grad():
        return _torch_model(folder)(torch.tensor(np.asarray(tokens))).logits.numpy()


def torch_greedy(folder: Path, prompt: Any, count: int) -> list[int]:
    """Return the likeliest continuation, computed anew for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(torch_logits(folder, [tokens])[0, -1].argmax()))
    return tokens[len(prompt) :]


def _torch_model(folder: Path) -> Any:
    import torch
    import transformers

    if folder not in _MODELS:
        _MODELS[folder] = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()
    return _MODELS[folder]


_MODELS: dict[Path, Any] = {}
