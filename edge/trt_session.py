"""TensorRT behind the Session seam: one class for tensorrt and tensorrt_rtx.

A run puts copy in, compute and copy out on one stream (as one CUDA graph once a shape is
frequent) and returns the answers in new arrays; see `staging` for how tensors travel. Two runs may
have begun: while the device computes one, the host stages the other in a bank of its own.
Everything lives on the device's primary context, in the thread that called `open`.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge.cuda_graph import CudaGraph
from edge.cuda_library import PrimaryContext, load_cuda
from edge.errors import EdgeError, InferenceError, InputError, ModelError
from edge.session import Finish
from edge.spec import AnyArray, Feeds, Profile, StatePair, TensorSpec, check_feeds, name_of_strings
from edge.staging import Staged
from edge.tensorrt_library import TensorRT
from edge.trt_engine import Context, Engine, Plan, Shapes
from edge.trt_outputs import GrowingOutput

# A shape has earned a graph at this run in each bank. A graph costs tens of milliseconds to make
# and saves a tenth of one in a run, so after the first few it is for shapes that come often, and
# none is made while runs are begun one after the other.
GRAPH_AT_RUN = 2
FEW_GRAPHS = 16
LATER_GRAPH_AT_RUN = 200
# So many of each are remembered, those that were not used for the longest time go first.
MAX_GRAPHS = 64
MAX_PLANS = 1024

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Plan:
    """Everything that one exact set of input shapes needs in one bank, worked out once.

    feeds, answers: device memory in the shapes of this plan, and the way there and back.
    arrived, done: events behind the copies of large feeds, and behind everything.
    graphs: by the turn of the states, which have an address each turn.
    """

    shapes: Shapes
    bank: int
    profile: int
    arrived: Any
    done: Any
    feeds: list[Staged]
    answers: list[Staged | GrowingOutput]
    runs: int = 0
    graphs: dict[int, CudaGraph] = field(default_factory=dict)
    contexts: list[Context] = field(default_factory=list)


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
        # A graph replays what was captured, and a growing output would need a new address.
        self._use_graphs = use_graphs and engine.is_sized
        self._turn = 0
        self._stream = cuda.Stream()
        # Large tensors travel beside the stream, or they would wait for the run before.
        self._incoming, self._outgoing = cuda.Stream(), cuda.Stream()
        self._plans: OrderedDict[tuple[Shapes, int], _Plan] = OrderedDict()
        self._captured = 0  # graphs that are kept
        self._to_capture: dict[tuple[Shapes, int], _Plan] = {}
        self._free_banks = list(range(len(engine.banks)))

    @classmethod
    def open(
        cls,
        plan: Plan,
        *,
        library: TensorRT,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        profile: Profile,
        states: tuple[StatePair, ...] = (),
        device: int = 0,
        use_graphs: bool = True,
    ) -> TrtSession:
        """Deserialize engine bytes and take all memory that the largest request will need.

        plan: the verified bytes of an engine; they run as code, so their digest must have been
        checked on this very buffer. Raises BackendUnavailableError without driver or device,
        ModelError if the engine does not fit the device, the library or the specs.
        """
        text = name_of_strings(*inputs, *outputs)
        if text is not None:
            raise ModelError(
                f"tensor {text!r} is BYTES, and TensorRT has no strings; serve the variant of ONNX "
                "Runtime"
            )
        cuda = load_cuda()
        context = PrimaryContext(cuda, device)
        with context:
            engine = Engine.open(
                plan, library=library, cuda=cuda, inputs=inputs, outputs=outputs, states=states
            )
            session = cls(
                engine,
                cuda,
                context,
                inputs=inputs,
                outputs=outputs,
                profile=profile,
                use_graphs=use_graphs,
            )
        session.reset_state()
        return session

    @property
    def depth(self) -> int:
        """How many runs may have begun and not finished; see `session.PipelinedSession`."""
        return 1 if self._engine is None else len(self._engine.banks)

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Return every output for one set of feeds; see `session.Session`.

        Prepares at once what `start` leaves to `prepare`.
        """
        answer = self.start(feeds)()
        while not self.is_prepared:
            self.prepare()
        return answer

    def start(self, feeds: Feeds) -> Finish:
        """Begin a run; see `session.PipelinedSession`."""
        if self._engine is None:
            raise InferenceError("the session is closed; open the model again")
        check_feeds(feeds, self.inputs, self._profile)
        with self.device_context:
            bank = self._free_banks.pop(0)
            try:
                plan = self._plan(tuple(feeds[spec.name].shape for spec in self.inputs), bank)
                self._launch(self._engine, plan, feeds)
            except self._cuda.Error as error:
                self._free_banks.append(bank)
                raise InferenceError(f"CUDA failed to run the engine: {error}") from error
            except EdgeError:
                self._free_banks.append(bank)
                raise
        return functools.partial(self._finish, plan)

    @property
    def is_prepared(self) -> bool:
        """Whether every shape that has earned a CUDA graph has one."""
        return not self._to_capture

    def prepare(self) -> None:
        """Make one graph; see `session.PreparingSession`."""
        if self._engine is None or not self._to_capture:
            return
        with self.device_context:
            plan = self._to_capture.pop(next(iter(self._to_capture)))
            if self._use_graphs and self._turn not in plan.graphs:
                self._make_room_for_graph()
                self._capture(plan)

    def _launch(self, engine: Engine, plan: _Plan, feeds: Feeds) -> None:
        for spec, staged in zip(self.inputs, plan.feeds, strict=True):
            _check_range(spec, feeds[spec.name], staged)
            staged.fill(feeds[spec.name], self._incoming)
        if any(staged.is_large for staged in plan.feeds):
            plan.arrived.record(self._incoming)
            self._stream.wait_for_event(plan.arrived)
        graph = plan.graphs.get(self._turn)
        if graph is not None:
            graph.launch()
        else:
            self._enqueue(plan, engine.contexts[plan.profile])
        plan.done.record(self._stream)
        if engine.states:
            self._turn = 1 - self._turn

    def _finish(self, plan: _Plan) -> dict[str, AnyArray]:
        if self._engine is None:
            raise InferenceError("the session was closed during a run; open the model again")
        with self.device_context:
            try:
                plan.done.synchronize()
                return {
                    spec.name: answer.copied_as(spec.dtype, self._outgoing)
                    for spec, answer in zip(self.outputs, plan.answers, strict=True)
                }
            except self._cuda.Error as error:
                raise InferenceError(f"CUDA failed to run the engine: {error}") from error
            finally:
                self._free_banks.append(plan.bank)

    @property
    def memory_bytes(self) -> int:
        """Device memory that opening took: weights, activations, tensors."""
        return 0 if self._engine is None else self._engine.memory_bytes

    def run_profiled(self, feeds: Feeds, profiler: Any) -> None:
        """Run past any CUDA graph, so that TensorRT times every layer for an IProfiler."""
        if self._engine is None:
            raise InferenceError("the session is closed; open the model again")
        check_feeds(feeds, self.inputs, self._profile)
        with self.device_context:
            bank = self._free_banks[0]
            plan = self._plan(tuple(feeds[spec.name].shape for spec in self.inputs), bank)
            context = self._engine.contexts[plan.profile]
            try:
                for spec, staged in zip(self.inputs, plan.feeds, strict=True):
                    staged.fill(feeds[spec.name], self._stream)
                context.handle.profiler = profiler
                self._enqueue(plan, context)
                self._stream.synchronize()
            except self._cuda.Error as error:
                raise InferenceError(f"CUDA failed to run the engine: {error}") from error

    def layer_details(self) -> list[dict[str, Any]]:
        """Return what TensorRT tells of every layer; see `Engine.layer_details`."""
        return [] if self._engine is None else self._engine.layer_details()

    def layers(self) -> dict[str, int]:
        """Return the number of layers by precision, after fusion; see `Engine.layers`."""
        return {} if self._engine is None else self._engine.layers()

    @property
    def graphs(self) -> int:
        """The number of shapes that run as a CUDA graph now, counted in each bank."""
        return sum(bool(plan.graphs) for plan in self._plans.values())

    def reset_state(self) -> None:
        """Fill all state with zeros."""
        if self._engine is not None and self._engine.states:
            with self.device_context:
                self._engine.reset_states(self._stream)
                self._stream.synchronize()

    def close(self) -> None:
        """Free graphs, contexts, engine and device memory."""
        if self._engine is None:
            return
        with self.device_context:
            for plan in self._plans.values():
                self._drop(plan)
            self._plans.clear()
            self._to_capture.clear()
            self._engine.close()
        self._engine = self._stream = self._incoming = self._outgoing = None

    def _plan(self, shapes: Shapes, bank: int) -> _Plan:
        plan = self._plans.get((shapes, bank))
        if plan is None:
            plan = self._plans[shapes, bank] = self._new_plan(shapes, bank)
            if len(self._plans) > MAX_PLANS:  # the oldest is none of those that run now
                self._drop(self._plans.popitem(last=False)[1])
        else:
            self._plans.move_to_end((shapes, bank))
        plan.runs += 1
        enough = GRAPH_AT_RUN if self._captured < FEW_GRAPHS else LATER_GRAPH_AT_RUN
        if plan.runs >= enough and self._use_graphs and self._turn not in plan.graphs:
            self._to_capture[shapes, bank] = plan
        return plan

    def _make_room_for_graph(self) -> None:
        if self._captured < MAX_GRAPHS:
            return
        oldest = next(plan for plan in self._plans.values() if plan.graphs)
        oldest.runs = 0
        self._drop(oldest)

    def _new_plan(self, shapes: Shapes, bank: int) -> _Plan:
        engine = self._engine
        assert engine is not None  # noqa: S101 - run() has refused a closed session
        profile = engine.profile_for(shapes)
        if profile is None:
            raise InputError(
                f"no profile of the engine takes the shapes {[list(shape) for shape in shapes]}; "
                "build it with a wider profile"
            )
        event, inputs = self._cuda.Event, engine.banks[bank].inputs
        untimed = self._cuda.event_flags.DISABLE_TIMING
        return _Plan(
            shapes=shapes,
            bank=bank,
            profile=profile,
            arrived=event(untimed),
            done=event(untimed),
            feeds=[b.staged(shape) for b, shape in zip(inputs, shapes, strict=True)],
            answers=engine.answers(bank, profile, shapes),
        )

    def _enqueue(self, plan: _Plan, context: Context) -> None:
        engine = self._engine
        assert engine is not None  # noqa: S101
        engine.use_bank(context, plan.bank)
        engine.set_shapes(context, plan.shapes)
        engine.set_states(context, self._turn)
        for answer in plan.answers:
            if isinstance(answer, GrowingOutput):
                answer.ensure(context.handle.get_max_output_size(answer.name))
        for staged in plan.feeds:
            staged.send(self._stream)
        if not context.handle.execute_async_v3(self._stream.handle):
            raise InferenceError(f"TensorRT failed to run: {engine.library.last_error()}")
        for answer in plan.answers:
            if isinstance(answer, Staged):  # another is copied when its size is known
                answer.fetch(self._stream)

    def _drop(self, plan: _Plan) -> None:
        self._to_capture.pop((plan.shapes, plan.bank), None)
        for graph in plan.graphs.values():
            graph.close()
        self._captured -= len(plan.graphs)
        plan.graphs.clear()
        plan.contexts.clear()

    def _capture(self, plan: _Plan) -> None:
        """Make a graph of a frequent shape, or stop trying.

        A context must not change its shape under a graph that was captured from it. All contexts
        share the activation memory, because runs take turns.
        """
        engine = self._engine
        assert engine is not None  # noqa: S101
        try:
            context = engine.graph_context(plan.profile)
            if context is None:
                return
            self._enqueue(plan, context)  # a context's first run does work no graph can hold
            self._stream.synchronize()
            plan.graphs[self._turn] = CudaGraph.capture(
                self._stream.handle, lambda: self._enqueue(plan, context)
            )
            plan.contexts.append(context)
            self._captured += 1
        except (EdgeError, self._cuda.Error) as error:
            self._use_graphs = False
            logger.warning("runs without CUDA graphs shapes=%s: %s", plan.shapes, error)


def _check_range(spec: TensorSpec, feed: AnyArray, staged: Staged) -> None:
    """Refuse integers that the engine cannot hold: TensorRT 8 computes INT64 as INT32."""
    if staged.dtype == feed.dtype or feed.dtype.kind != "i" or not feed.size:
        return
    limits = np.iinfo(staged.dtype)
    if feed.min() < limits.min or feed.max() > limits.max:
        raise InputError(
            f"input {spec.name!r}: this engine computes {spec.datatype} as {staged.dtype}; "
            f"values must lie in {limits.min}..{limits.max}"
        )
