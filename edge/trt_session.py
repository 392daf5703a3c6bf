"""TensorRT behind the Session seam: one class for tensorrt and tensorrt_rtx.

A run copies the feeds into pinned memory, puts copy in, compute and copy out on one stream (as
one CUDA graph once a shape is frequent), and copies the answers into arrays of the caller.
Everything lives on the device's primary context, in the thread that called `open`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge.cuda_graph import CudaGraph
from edge.cuda_library import PrimaryContext, load_cuda
from edge.errors import EdgeError, InferenceError, InputError
from edge.spec import AnyArray, Feeds, Profile, TensorSpec, check_feeds
from edge.staging import Staged
from edge.tensorrt_library import TensorRT
from edge.trt_engine import Context, Engine, Plan, Shapes

# A shape gets a graph at this run; this many shapes are remembered, the oldest goes first.
GRAPH_AT_RUN = 3
MAX_SHAPES = 16

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Plan:
    """Everything that one exact set of input shapes needs, worked out once.

    feeds, answers: pinned memory in the shapes of this plan, with the device memory behind it.
    """

    shapes: Shapes
    profile: int
    context: Context
    feeds: list[Staged]
    answers: list[Staged]
    runs: int = 0
    graph: CudaGraph | None = field(default=None)


class TrtSession:
    """A deserialized engine that can run; make it with `open`."""

    def __init__(
        self,
        engine: Engine,
        cuda: Any,
        context: PrimaryContext,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        profile: Profile,
        use_graphs: bool,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._engine: Engine | None = engine
        self._cuda = cuda
        self.device_context = context
        self._profile = profile
        self._use_graphs = use_graphs
        self._stream = cuda.Stream()
        self._plans: OrderedDict[Shapes, _Plan] = OrderedDict()

    @classmethod
    def open(
        cls,
        plan: Plan,
        *,
        library: TensorRT,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        profile: Profile,
        device: int = 0,
        use_graphs: bool = True,
    ) -> TrtSession:
        """Deserialize engine bytes and take all memory that the largest request will need.

        plan: the verified bytes of an engine; they run as code, so their digest must have been
        checked on this very buffer. Raises BackendUnavailableError without driver or device,
        ModelError if the engine does not fit the device, the library or the specs.
        """
        cuda = load_cuda()
        context = PrimaryContext(cuda, device)
        with context:
            engine = Engine.open(plan, library=library, cuda=cuda, inputs=inputs, outputs=outputs)
            return cls(
                engine,
                cuda,
                context,
                inputs=inputs,
                outputs=outputs,
                profile=profile,
                use_graphs=use_graphs,
            )

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Return every output for one set of feeds; see `session.Session`."""
        if self._engine is None:
            raise InferenceError("the session is closed; open the model again")
        check_feeds(feeds, self.inputs, self._profile)
        with self.device_context:
            plan = self._plan(tuple(feeds[spec.name].shape for spec in self.inputs))
            try:
                for spec, staged in zip(self.inputs, plan.feeds, strict=True):
                    _check_range(spec, feeds[spec.name], staged)
                    staged.fill(feeds[spec.name], self._stream)
                if plan.graph is not None:
                    plan.graph.launch()
                else:
                    self._enqueue(plan)
                self._stream.synchronize()
            except self._cuda.Error as error:
                raise InferenceError(f"CUDA failed to run the engine: {error}") from error
        return {
            spec.name: staged.copied_as(spec.dtype)
            for spec, staged in zip(self.outputs, plan.answers, strict=True)
        }

    @property
    def memory_bytes(self) -> int:
        """Device memory that opening took: weights, activations, tensors."""
        return 0 if self._engine is None else self._engine.memory_bytes

    def layers(self) -> dict[str, int]:
        """Return the number of layers by precision, after fusion; see `Engine.layers`."""
        return {} if self._engine is None else self._engine.layers()

    @property
    def graphs(self) -> int:
        """The number of shapes that run as a CUDA graph now."""
        return sum(plan.graph is not None for plan in self._plans.values())

    def reset_state(self) -> None:
        """Do nothing: these engines keep no state."""

    def close(self) -> None:
        """Free graphs, contexts, engine and device memory."""
        if self._engine is None:
            return
        with self.device_context:
            for plan in self._plans.values():
                _drop(plan)
            self._plans.clear()
            self._engine.close()
        self._engine = self._stream = None

    def _plan(self, shapes: Shapes) -> _Plan:
        plan = self._plans.get(shapes)
        if plan is None:
            plan = self._plans[shapes] = self._new_plan(shapes)
            if len(self._plans) > MAX_SHAPES:
                _drop(self._plans.popitem(last=False)[1])
        else:
            self._plans.move_to_end(shapes)
        plan.runs += 1
        if plan.runs == GRAPH_AT_RUN and self._use_graphs:
            self._capture(plan)
        return plan

    def _new_plan(self, shapes: Shapes) -> _Plan:
        engine = self._engine
        assert engine is not None  # noqa: S101 - run() has refused a closed session
        profile = engine.profile_for(shapes)
        if profile is None:
            raise InputError(
                f"no profile of the engine takes the shapes {[list(shape) for shape in shapes]}; "
                "build it with a wider profile"
            )
        sizes = engine.output_shapes(profile, shapes)
        return _Plan(
            shapes=shapes,
            profile=profile,
            context=engine.contexts[profile],
            feeds=[b.staged(shape) for b, shape in zip(engine.inputs, shapes, strict=True)],
            answers=[b.staged(shape) for b, shape in zip(engine.outputs, sizes, strict=True)],
        )

    def _enqueue(self, plan: _Plan) -> None:
        engine = self._engine
        assert engine is not None  # noqa: S101
        engine.set_shapes(plan.context, plan.shapes)
        for staged in plan.feeds:
            if not staged.is_large:  # a large one is on its way since it was filled
                self._cuda.memcpy_htod_async(staged.device, staged.host, self._stream)
        if not plan.context.handle.execute_async_v3(self._stream.handle):
            raise InferenceError(f"TensorRT failed to run: {engine.library.last_error()}")
        for staged in plan.answers:
            self._cuda.memcpy_dtoh_async(staged.host, staged.device, self._stream)

    def _capture(self, plan: _Plan) -> None:
        """Make a graph of a frequent shape, or stop trying.

        A context must not change its shape under a graph that was captured from it, so the graph
        gets a context of its own; they share the activation memory, because runs take turns.
        """
        engine = self._engine
        assert engine is not None  # noqa: S101
        try:
            plan.context = engine.new_context(plan.profile)
            self._enqueue(plan)  # the first run of a context does work that cannot be captured
            self._stream.synchronize()
            plan.graph = CudaGraph.capture(self._stream.handle, lambda: self._enqueue(plan))
        except (EdgeError, self._cuda.Error) as error:
            plan.context = engine.contexts[plan.profile]
            self._use_graphs = False
            logger.warning("runs without CUDA graphs shapes=%s: %s", plan.shapes, error)


def _drop(plan: _Plan) -> None:
    if plan.graph is not None:
        plan.graph.close()


def _check_range(spec: TensorSpec, feed: AnyArray, staged: Staged) -> None:
    """Refuse integers that the engine cannot hold: TensorRT 8 computes INT64 as INT32."""
    if staged.host.dtype == feed.dtype or feed.dtype.kind != "i" or not feed.size:
        return
    limits = np.iinfo(staged.host.dtype)
    if feed.min() < limits.min or feed.max() > limits.max:
        raise InputError(
            f"input {spec.name!r}: this engine computes {spec.datatype} as {staged.host.dtype}; "
            f"values must lie in {limits.min}..{limits.max}"
        )
