"""Build a TensorRT engine from an ONNX file, the same way on a workstation and on a device.

Two paths: up to TensorRT 10.11 precision is asked for with flags ("flags"); from 10.12, and with
TensorRT-RTX, it is what the ONNX says ("typed"): Cast for FP16, Q/DQ for INT8.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import BuildError
from edge.manifest import Precision
from edge.spec import Profile, ShapeRange
from edge.tensorrt_library import Listener, TensorRT, takes_types

_CUDNN_8 = 8000
Progress = Callable[[str, int, int], bool]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What to build.

    profiles: optimisation profiles, the narrowest first; one for batch 1 alone pays at batch 1.
    workspace_bytes: memory that a tactic may use; None leaves it to TensorRT.
    optimization_level: 0 to 5; 3 is TensorRT's own default (8.6 and later).
    compute_capabilities: such as ("SM86", "SM89"), TensorRT-RTX only; empty is this device.
    timing_cache: what an earlier build returned on the same device, version and flags.
    calibration_cache: int8 ranges for an ONNX without Q/DQ, up to TensorRT 10.
    dla_core: run on this deep learning accelerator what it can, the rest on the GPU.
    """

    onnx: Path
    precision: Precision
    profiles: tuple[Profile, ...]
    workspace_bytes: int | None = None
    optimization_level: int = 3
    tf32: bool = False
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: bytes = b""
    calibration_cache: bytes = b""
    dla_core: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """A serialized engine, the timing cache to keep, its plugin layers, the seconds it took."""

    plan: memoryview  # of TensorRT's own memory: an engine may be gigabytes
    timing_cache: bytes
    plugins: tuple[str, ...]
    seconds: float


def engine_from_onnx(
    request: EngineRequest,
    library: TensorRT,
    *,
    progress: Progress = lambda phase, done, total: True,
    clock: Callable[[], float] = time.monotonic,
) -> BuiltEngine:
    """Return the engine; progress returns False to cancel, where TensorRT can (10 and later).

    Raises BuildError if the parser or the builder refuses, naming what TensorRT said.
    """
    trt = library.module
    begun = clock()
    builder = trt.Builder(library.logger)
    network = builder.create_network(_network_flags(library))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(request.onnx)):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BuildError(f"TensorRT {library.version} cannot read {request.onnx}: {problems}")
    config = builder.create_builder_config()
    _set_precision(config, library, request)
    _set_limits(config, trt, request)
    calibrator = _set_ranges(config, library, request)
    _set_dla(config, library, request)
    for profile in request.profiles:
        config.add_optimization_profile(_profile(builder, network, profile))
    if calibrator is not None and request.profiles:
        config.set_calibration_profile(_profile(builder, network, request.profiles[-1]))
    cache = monitor = None
    if library.backend == "trt":
        cache = config.create_timing_cache(request.timing_cache)
        config.set_timing_cache(cache, ignore_mismatch=False)
    if hasattr(trt, "IProgressMonitor") and hasattr(config, "progress_monitor"):
        monitor = config.progress_monitor = _monitor(trt, progress)
    library.messages.clear()
    with _listening(library, None if monitor else _LogProgress(network, request, progress)):
        plan = builder.build_serialized_network(network, config)
    if plan is None and monitor is not None and monitor.is_cancelled:
        raise BuildError(f"the build of {request.onnx} was cancelled; nothing is kept")
    if plan is None:
        raise BuildError(
            f"TensorRT {library.version} cannot build {request.onnx}: {library.last_error()}"
            f"{_hint(library.last_error())}"
        )
    if calibrator is not None and calibrator.was_asked_for_samples:
        raise BuildError(
            f"TensorRT {library.version} does not read this calibration cache; write it again with "
            "`edge-kit calibrate --calibration-cache`"
        )
    return BuiltEngine(
        plan=memoryview(plan),
        plugins=_plugins(trt, network),
        timing_cache=b"" if cache is None else bytes(config.get_timing_cache().serialize()),
        seconds=clock() - begun,
    )


def engine_profiles(profile: Profile) -> tuple[Profile, ...]:
    """Return the optimisation profiles to build: one for batch 1 alone, then the whole one.

    At batch 1 the best kernels are others than those for a range of batches.
    """
    ranges = profile.ranges
    if not ranges or any(not r.max or not r.min[0] <= 1 < r.max[0] for r in ranges.values()):
        return (profile,)

    def one(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *shape[1:])

    single = {
        name: ShapeRange(min=one(r.min), opt=one(r.opt), max=one(r.max))
        for name, r in ranges.items()
    }
    return (Profile(ranges=single), profile)


def is_typed(library: TensorRT) -> bool:
    """Whether this TensorRT takes precision from the ONNX rather than from flags."""
    return takes_types(library.backend, library.version)


def _network_flags(library: TensorRT) -> int:
    flags = library.module.NetworkDefinitionCreationFlag
    if is_typed(library):
        return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    return 1 << int(flags.EXPLICIT_BATCH)


def _set_precision(config: Any, library: TensorRT, request: EngineRequest) -> None:
    flag = library.module.BuilderFlag
    if not request.tf32 and hasattr(flag, "TF32"):
        config.clear_flag(flag.TF32)
    if is_typed(library):
        return
    if request.precision in {"fp16", "int8"}:
        config.set_flag(flag.FP16)
    if request.precision == "int8":
        config.set_flag(flag.INT8)


def _set_limits(config: Any, trt: Any, request: EngineRequest) -> None:
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = request.optimization_level
    if hasattr(trt.TacticSource, "CUDNN") and not _has_cudnn():
        # TensorRT 8 takes cuDNN for granted and fails where it is not.
        config.set_tactic_sources(config.get_tactic_sources() & ~(1 << int(trt.TacticSource.CUDNN)))
    if request.compute_capabilities:
        config.num_compute_capabilities = len(request.compute_capabilities)
        for index, name in enumerate(request.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    # Lets two contexts share a profile, which graphs of several shapes need; default from 10 on.
    sharing = getattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
    if sharing is not None:
        config.set_preview_feature(sharing, True)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _set_ranges(config: Any, library: TensorRT, request: EngineRequest) -> Any:
    """Give the builder the ranges of a calibration cache, and return what holds them."""
    if not request.calibration_cache:
        return None
    trt = library.module
    if is_typed(library) or not hasattr(trt, "IInt8EntropyCalibrator2"):
        raise BuildError(
            f"TensorRT {library.version} takes INT8 from Q/DQ alone; build from the file that "
            "`edge-kit calibrate` wrote, without --calibration-cache"
        )
    calibrator = _calibrator(trt, request.calibration_cache)
    config.int8_calibrator = calibrator
    return calibrator


def _set_dla(config: Any, library: TensorRT, request: EngineRequest) -> None:
    if request.dla_core is None:
        return
    trt = library.module
    if library.backend == "trt-rtx" or not hasattr(config, "DLA_core"):
        raise BuildError(
            f"TensorRT {library.version} cannot build for a DLA core; leave --dla-core out"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = request.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _calibrator(trt: Any, content: bytes) -> Any:
    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        """Has a cache and no samples."""

        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self.was_asked_for_samples = False

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            self.was_asked_for_samples = True

        def read_calibration_cache(self) -> bytes:
            return content

        def write_calibration_cache(self, cache: Any) -> None:
            pass

    return Calibrator()


def _has_cudnn() -> bool:
    """Whether there is a cuDNN 8, by the version that it gives itself."""
    try:
        return int(ctypes.CDLL("libcudnn.so.8").cudnnGetVersion()) >= _CUDNN_8
    except (OSError, AttributeError):
        return False


def _profile(builder: Any, network: Any, profile: Profile) -> Any:
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        bounds = profile.ranges.get(tensor.name)
        if bounds is not None:
            shapes.set_shape(tensor.name, bounds.min, bounds.opt, bounds.max)
        elif any(dim < 0 for dim in tensor.shape):
            raise BuildError(
                f"input {tensor.name!r} has the shape {list(tensor.shape)} and no profile; "
                "export it with --shape"
            )
    return shapes


def _hint(said: str) -> str:
    """Return the way out of refusals that are known."""
    if "Turing" in said and "FP32" in said:
        return "; cards of the RTX 20 series run fp16 engines: give --precision fp16"
    return ""


def _plugins(trt: Any, network: Any) -> tuple[str, ...]:
    """Return the types of layers that are not TensorRT's own, or their names where it has none."""
    found = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.PLUGIN_V2:
            # The bindings give the base class and document this way down.
            layer.__class__ = trt.IPluginV2Layer
            found.add(str(layer.plugin.plugin_type))
        elif layer.type == getattr(trt.LayerType, "PLUGIN_V3", None):
            found.add(str(layer.name))
    return tuple(sorted(found))


class _LogProgress:
    """Progress of TensorRT 8, which has no monitor: it names each layer whose kernels it times."""

    MARK = "Computing costs for"

    def __init__(self, network: Any, request: EngineRequest, progress: Progress) -> None:
        self._total = network.num_layers * len(request.profiles)  # before fusion: never too few
        self._done = 0
        self._progress = progress

    def __call__(self, message: str) -> None:
        if self.MARK in message:
            self._done = min(self._done + 1, self._total)
            self._progress("Timing kernels", self._done, self._total)


@contextlib.contextmanager
def _listening(library: TensorRT, listener: Listener | None) -> Iterator[None]:
    if listener is None:
        yield
        return
    library.listeners.append(listener)
    try:
        yield
    finally:
        library.listeners.remove(listener)


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._totals: dict[str, int] = {}
            self.is_cancelled = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._totals[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            total = self._totals.get(phase, step + 1)
            self.is_cancelled |= not progress(phase, min(step + 1, total), total)
            return not self.is_cancelled

        def phase_finish(self, phase: str) -> None:
            self._totals.pop(phase, None)

    return Monitor()
