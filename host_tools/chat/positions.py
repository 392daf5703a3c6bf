"""What all layers of a chat graph share: positions of the new tokens, rotations, masks.

In shapes: B lanes, S new tokens, T positions of the cache as attention reads it, D head_dim.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edge.chat.spec import Form
from host_tools.chat.graph import Graph
from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.rope import rotary_tables


class Positions:
    """Adds the shared nodes, each when it is first asked for."""

    def __init__(self, graph: Graph, spec: LlmSpec, form: Form, context: int) -> None:
        self.graph = graph
        self.spec = spec
        self.form = form
        self.lanes_start = graph.input("start", TensorProto.INT64, ("lanes",))
        shape = graph.add("Shape", "input_ids", name="tokens.shape")
        self.tokens = graph.add("Gather", shape, graph.index(1), name="tokens")
        self.steps = self._range("steps", self.tokens)
        self.start = graph.add("Unsqueeze", self.lanes_start, graph.ints(1), name="start.column")
        self.positions = graph.add("Add", self.start, self.steps, name="positions")
        length = self._length()
        self._cached = self._range("cached", length)
        self._masks: dict[int | None, tuple[str, ...]] = {}
        self.prefix_end = ""
        if form == "prefix":
            self.prefix_end = graph.add("Unsqueeze", length, graph.ints(0), name="prefix.end")
        self._tables = self._rotations(context)

    def rotated(self, heads: str, *, name: str) -> str:
        """Return heads [B, any, S, D] rotated by the positions of their tokens."""
        graph, (cosines, sines) = self.graph, self._tables
        if graph.opset >= 23:
            inside = self._inside
            return graph.add("RotaryEmbedding", heads, cosines, sines, inside, name=name)
        first, second = graph.add_many(
            "Split",
            heads,
            graph.ints(self.spec.head_dim // 2, self.spec.head_dim // 2),
            name=f"{name}.split",
            outputs=(f"{name}.first", f"{name}.second"),
            axis=-1,
        )
        swapped = graph.add("Concat", second, first, name=f"{name}.swapped", axis=-1)
        along = graph.add("Mul", heads, cosines, name=f"{name}.along")
        across = graph.add("Mul", swapped, sines, name=f"{name}.across")
        return graph.add("Add", along, across, name=name)

    def masks(self, window: int | None) -> tuple[str, ...]:
        """Return what is added to scores: 0 where a token may look, the lowest number elsewhere.

        One mask [B, 1, S, T]; for "prefix" two, [B, 1, S or 1, T] for the cache and [1, 1, S, S]
        for the new tokens. For forms of primitive operators S is repeated for all query heads that
        share a key.
        """
        if window not in self._masks:
            suffix = "" if window is None else f".window{window}"
            if self.form == "prefix":
                self._masks[window] = self._prefix_masks(window, suffix)
            else:
                self._masks[window] = (self._mask(window, suffix),)
        return self._masks[window]

    def _mask(self, window: int | None, suffix: str) -> str:
        graph = self.graph
        own = graph.add("Unsqueeze", self.positions, graph.ints(1, 3), name=f"own{suffix}")
        visible = self._seen(self._cached, own, window, suffix)
        return self._grouped(self._added(visible, suffix), suffix)

    def _prefix_masks(self, window: int | None, suffix: str) -> tuple[str, str]:
        graph = self.graph
        begin = graph.add("Unsqueeze", self.lanes_start, graph.ints(1, 2, 3), name=f"begin{suffix}")
        filled = graph.add("Less", self._cached, begin, name=f"filled{suffix}")
        if window is not None:
            own = graph.add("Unsqueeze", self.positions, graph.ints(1, 3), name=f"own{suffix}")
            near = self._near(self._cached, own, window, f"{suffix}.cached")
            filled = graph.add("And", filled, near, name=f"filled.near{suffix}")
        column = graph.add("Unsqueeze", self.steps, graph.ints(0, 1, 3), name=f"column{suffix}")
        earlier = self._seen(self.steps, column, window, f"{suffix}.new")
        old = self._added(filled, f"{suffix}.cached")
        if window is not None:
            old = self._grouped(old, f"{suffix}.cached")
        return old, self._grouped(self._added(earlier, f"{suffix}.new"), f"{suffix}.new")

    def _length(self) -> str:
        """Return how many positions attention reads: those that the first cache holds."""
        graph = self.graph
        shape = graph.add("Shape", "key_0", name="cache.shape")
        axis = graph.index(0 if self.form == "prefix" else 2)
        length = graph.add("Gather", shape, axis, name="cache.length")
        if self.form == "concat":
            length = graph.add("Add", length, self.tokens, name="cache.total")
        return length

    def _seen(self, cached: str, own: str, window: int | None, suffix: str) -> str:
        graph = self.graph
        seen = graph.add("LessOrEqual", cached, own, name=f"seen{suffix}")
        if window is None:
            return seen
        near = self._near(cached, own, window, suffix)
        return graph.add("And", seen, near, name=f"seen.near{suffix}")

    def _near(self, cached: str, own: str, window: int, suffix: str) -> str:
        graph = self.graph
        end = graph.add("Sub", own, graph.index(window), name=f"window.end{suffix}")
        return graph.add("Greater", cached, end, name=f"near{suffix}")

    def _added(self, visible: str, suffix: str) -> str:
        graph = self.graph
        lowest = graph.number(float(np.finfo(graph.float_dtype).min))
        return graph.add("Where", visible, graph.number(0.0), lowest, name=f"mask{suffix}")

    def _grouped(self, mask: str, suffix: str) -> str:
        group = self.spec.heads // self.spec.kv_heads
        if self.form == "scatter" or group == 1:
            return mask
        return self.graph.add("Concat", *[mask] * group, name=f"mask.grouped{suffix}", axis=2)

    def _range(self, name: str, end: str) -> str:
        return self.graph.add("Range", self.graph.index(0), end, self.graph.index(1), name=name)

    def _rotations(self, context: int) -> tuple[str, str]:
        """Return tables for the operator, or the rotations themselves, [B, 1, S, D]."""
        graph = self.graph
        # A padding token may lie beyond the tables; what it becomes is never seen.
        last = graph.index(context - 1)
        self._inside = graph.add("Min", self.positions, last, name="positions.inside")
        cosines, sines = rotary_tables(self.spec.rope, self.spec.head_dim, context)
        if graph.opset >= 23:
            return graph.floats("rotary.cosines", cosines), graph.floats("rotary.sines", sines)
        found = []
        for kind, table in (
            ("cosines", np.concatenate([cosines, cosines], axis=1)),
            ("sines", np.concatenate([-sines, sines], axis=1)),
        ):
            rows = graph.add(
                "Gather",
                graph.floats(f"rotary.{kind}", table),
                self._inside,
                name=f"rotary.{kind}.found",
                axis=0,
            )
            found.append(
                graph.add("Unsqueeze", rows, graph.ints(1), name=f"rotary.{kind}.of_heads")
            )
        return found[0], found[1]
