"""A whole chat engine on the fake device: its graph, run by ONNX Runtime on memory at addresses."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge.chat.spec import DecoderSpec
from edge.chat.trt_buffers import ALIGNMENT_BYTES
from edge.chat.trt_whole import TrtWholeDecoder
from edge.chat.whole import Bounds, Shape
from edge.spec import Profile
from tests.host_tools.chat.fake_device import FakeCuda, FakeGraph

_NUMPY = {"float": "f4", "float16": "f2", "int64": "i8"}


class FakeEngine:
    """A GraphEngine with the profiles that TensorRT would have been told."""

    keeps_runs = True

    def __init__(self, graph: Path, profiles: tuple[Profile, ...]) -> None:
        self._session = _session(graph)
        self._profiles = profiles
        self.runs: list[tuple[int, dict[str, Shape]]] = []
        self.made: list[weakref.ref[_FakeRun]] = []

    def inputs(self) -> tuple[dict[str, Bounds], ...]:
        def bounds(node: Any, profile: Profile) -> Bounds:
            known = profile.ranges.get(node.name)
            shape = tuple(node.shape)
            return (shape, shape) if known is None else (known.min, known.max)

        nodes = self._session.get_inputs()
        return tuple({n.name: bounds(n, profile) for n in nodes} for profile in self._profiles)

    def outputs(self) -> dict[str, Shape]:
        return {
            node.name: tuple(-1 if isinstance(dim, str) else dim for dim in node.shape)
            for node in self._session.get_outputs()
        }

    def dtype(self, name: str) -> np.dtype[Any]:
        (node,) = [node for node in self._nodes() if node.name == name]
        return np.dtype(_NUMPY[node.type[7:-1]])

    def run_for(self, shapes: Mapping[str, Shape], profile: int, *, kept: bool) -> _FakeRun:
        bounds = self.inputs()[profile]
        for name, shape in shapes.items():
            low, high = bounds[name]
            assert all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)), name
        self.runs.append((profile, dict(shapes)))
        run = _FakeRun(self, dict(shapes))
        self.made.append(weakref.ref(run))
        return run

    def run(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        assert all(address % ALIGNMENT_BYTES == 0 for address in addresses.values())
        feeds = {
            node.name: self._at(addresses[node.name], node.name, shapes[node.name])
            for node in self._session.get_inputs()
        }
        found = self._session.run(None, feeds)
        for node, value in zip(self._session.get_outputs(), found, strict=True):
            self._at(addresses[node.name], node.name, value.shape)[...] = value

    def close(self) -> None:
        """Keep the session: the next decoder of the same file has it."""

    def _nodes(self) -> list[Any]:
        return [*self._session.get_inputs(), *self._session.get_outputs()]

    def _at(self, address: int, name: str, shape: Shape) -> np.ndarray:
        dtype, size = self.dtype(name), int(np.prod(shape))
        buffer = (ctypes.c_uint8 * (size * dtype.itemsize)).from_address(address)
        return np.frombuffer(buffer, dtype).reshape(shape)


class _FakeRun:
    def __init__(self, engine: FakeEngine, shapes: dict[str, Shape]) -> None:
        self._engine, self._shapes = engine, shapes

    def enqueue(self, addresses: Mapping[str, int], stream: Any) -> None:
        self._engine.run(self._shapes, addresses)


def open_whole_on_fake(
    spec: DecoderSpec,
    graph: Path,
    profiles: tuple[Profile, ...],
    *,
    lanes: int,
    capture: Any = None,
) -> TrtWholeDecoder:
    """Open a graph as if it were an engine that was built for these profiles."""
    return TrtWholeDecoder(
        spec,
        FakeEngine(graph, profiles),
        FakeCuda,
        contextlib.nullcontext(),
        capture or (lambda stream, enqueue: FakeGraph(enqueue)),
        lanes=lanes,
    )


@functools.lru_cache(maxsize=32)
def _session(graph: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(graph), options, ["CPUExecutionProvider"])
