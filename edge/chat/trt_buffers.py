"""What a step of a chat model in pieces reads and leaves behind, on the host and on the device."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from edge.chat.decoder import FloatArray
from edge.chat.layered import LIKELIEST, LayeredModel
from edge.chat.trt_piece import Addresses, PieceEngine
from edge.spec import AnyArray

ALIGNMENT_BYTES = 256


class StepInputs:
    """What a step of one width brings to the layers, in one block of memory on either side.

    addresses: of the inputs. heads, hidden_out: addresses of what layers give.
    """

    def __init__(
        self, model: LayeredModel, width: int, tokens: int, capacity: int, cuda: Any
    ) -> None:
        dim, every = model.decoder.head_dim, model.heads + 2 * model.decoder.kv_heads
        shapes = {
            "hidden": (width, tokens, model.hidden),
            "cosines": (width, tokens, dim),
            "sines": (width, tokens, dim),
            "mask": (width, capacity),
        }
        self.capacity = capacity
        self._cuda, self._tokens = cuda, tokens
        self._lowest = np.finfo(model.dtype).min
        item = model.dtype.itemsize
        offsets, size = {}, 0
        for name, shape in shapes.items():
            offsets[name] = size
            size += -(-prod(shape) * item // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self._host = cuda.pagelocked_empty(size, np.uint8)
        self._host[:] = 0
        self._device = cuda.mem_alloc(size)
        self._arrays = {
            name: self._host[offsets[name] : offsets[name] + prod(shape) * item]
            .view(model.dtype)
            .reshape(shape)
            for name, shape in shapes.items()
        }
        self._arrays["mask"][:] = self._lowest
        self.addresses = {name: int(self._device) + offset for name, offset in offsets.items()}
        # What the layers of a step of one token give is kept until the step is over.
        self._heads_bytes = width * every * tokens * dim * item
        self._heads = cuda.mem_alloc(
            self._heads_bytes * (model.decoder.layers if tokens == 1 else 1)
        )
        rows = [cuda.mem_alloc(width * tokens * model.hidden * item) for _ in range(2)]
        self._hidden_out = tuple(rows)
        self.heads = int(self._heads)
        self.hidden_out = tuple(int(memory) for memory in rows)

    def heads_of(self, layer: int) -> int:
        """Return where a layer leaves its heads."""
        return self.heads + (layer * self._heads_bytes if self._tokens == 1 else 0)

    def set(
        self, row: int, tokens: list[int], position: int, tables: Mapping[str, AnyArray]
    ) -> None:
        """Write the inputs of one lane."""
        count = len(tokens)
        self._arrays["hidden"][row, :count] = tables["embedding"][tokens]
        for name in ("cosines", "sines"):
            self._arrays[name][row, :count] = tables[name][position : position + count]
        mask = self._arrays["mask"][row]
        mask[:position] = 0
        mask[position:] = self._lowest

    def send(self, stream: Any) -> None:
        """Put the copy to the device on a stream."""
        self._cuda.memcpy_htod_async(int(self._device), self._host, stream)

    def close(self) -> None:
        """Free the device's memory."""
        for memory in (self._device, self._heads, *self._hidden_out):
            memory.free()


class Tail:
    """The end of a step for rows of one width, and where it leaves logits for the host."""

    def __init__(self, model: LayeredModel, width: int, engine: PieceEngine, cuda: Any) -> None:
        count, vocabulary = min(LIKELIEST, model.decoder.vocabulary), model.decoder.vocabulary
        self.width = width
        self._engine, self._cuda = engine, cuda
        dtypes = {name: engine.dtype(name) for name in ("logits", "top", "top_ids")}
        self.logits = cuda.pagelocked_empty((width, vocabulary), dtypes["logits"])
        self.top = cuda.pagelocked_empty((width, count), dtypes["top"])
        self.top_ids = cuda.pagelocked_empty((width, count), dtypes["top_ids"])
        arrays = {"logits": self.logits, "top": self.top, "top_ids": self.top_ids}
        self._memory = {name: cuda.mem_alloc(array.nbytes) for name, array in arrays.items()}
        self._memory["hidden"] = cuda.mem_alloc(width * model.hidden * model.dtype.itemsize)
        self.hidden = int(self._memory["hidden"])

    def enqueue(self, inputs: Addresses, stream: Any, few: bool) -> None:
        """Put it on a stream, and the copy of the likeliest or of all logits behind it."""
        outputs = {name: int(m) for name, m in self._memory.items() if name != "hidden"}
        self._engine.enqueue({**inputs, **outputs}, stream)
        wanted = {"top": self.top, "top_ids": self.top_ids} if few else {"logits": self.logits}
        for name, array in wanted.items():
            self._cuda.memcpy_dtoh_async(array, outputs[name], stream)

    def close(self) -> None:
        """Free the device's memory."""
        for memory in self._memory.values():
            memory.free()


class SparseRows:
    """Rows that are minus infinity but for a few logits, written again and again."""

    def __init__(self, vocabulary: int) -> None:
        self._rows = np.full((0, vocabulary), -np.inf, np.float32)
        self._written: AnyArray = np.empty((0, 0), np.int64)

    def filled(self, values: AnyArray, ids: AnyArray) -> FloatArray:
        """Return rows [n, vocabulary] with these values at these tokens, both [n, few]."""
        count = len(values)
        if count > len(self._rows):
            self._rows = np.full((count, self._rows.shape[1]), -np.inf, np.float32)
        else:
            np.put_along_axis(self._rows[: len(self._written)], self._written, -np.inf, axis=1)
        self._written = ids.astype(np.int64)
        np.put_along_axis(self._rows[:count], self._written, values, axis=1)
        return self._rows[:count]
