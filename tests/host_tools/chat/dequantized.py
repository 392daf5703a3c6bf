"""A transformers model with the very weights that a written graph holds, read from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

# Layers as the writer joins them, in the order of their outputs.
JOINED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


class WrittenWeights:
    """The matrices of a graph, as float32 [outputs, inputs], and how each is stored."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(str(path))
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}

    def kind(self, name: str) -> str:
        """Return "int4/128", "int8", "float16" or "float32"."""
        if name in self._tensors:
            return str(numpy_helper.to_array(self._tensors[name]).dtype)
        node = self._dequantizing(name)
        if self._tensors[node.input[0]].data_type == TensorProto.INT8:
            return "int8"
        return f"int4/{self._block(node)}"

    def matrix(self, name: str) -> np.ndarray:
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name]).astype(np.float32).T
        node = self._dequantizing(name)
        scales = numpy_helper.to_array(self._tensors[node.input[1]]).astype(np.float32)
        stored = self._tensors[node.input[0]]
        if stored.data_type == TensorProto.INT8:
            return (numpy_helper.to_array(stored).astype(np.float32) * scales[None, :]).T
        packed = np.frombuffer(stored.raw_data, np.uint8)
        values = np.stack([packed & 15, packed >> 4], axis=1).astype(np.float32)
        values = np.where(values > 7, values - 16, values).reshape(tuple(stored.dims))
        return (values * np.repeat(scales, self._block(node), axis=0)).T

    def into(self, model: Any) -> Any:
        """Put all linear layers and the table into a transformers model, which it returns."""
        import torch

        def put(module: Any, rows: np.ndarray) -> None:
            module.weight = torch.nn.Parameter(torch.tensor(np.ascontiguousarray(rows)))

        table = self._tensors["model.embed_tokens.weight"]
        put(model.model.embed_tokens, numpy_helper.to_array(table).astype(np.float32))
        head = next((n for n in ("logits.weight", "head.weight") if self._is_matrix(n)), None)
        if head is not None:
            put(model.lm_head, self.matrix(head))
        for number, layer in enumerate(model.model.layers):
            for joined, names in JOINED.items():
                rows = self.matrix(f"layers.{number}.{joined}.weight")
                for name in names:
                    module = layer.get_submodule(name)
                    mine, rows = np.split(rows, [module.out_features])
                    put(module, mine)
        return model

    def _is_matrix(self, name: str) -> bool:
        made_by = self._makers.get(name)
        return name in self._tensors or (made_by is not None and made_by.op_type != "Transpose")

    def _dequantizing(self, name: str) -> Any:
        node = self._makers[name]
        return self._makers[node.input[0]] if node.op_type == "Cast" else node

    @staticmethod
    def _block(node: Any) -> int:
        return next(a.i for a in node.attribute if a.name == "block_size")
