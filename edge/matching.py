"""Does this variant fit this device? A pure function, with a stable code for every "no".

It is a filter: what passes here must still open, in a child process first (see `engine_child`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from edge.manifest import Backend, EngineFacts, Variant
from edge.target import Target
from edge.tensorrt_library import takes_types

# How a variant can be run, the best way first.
Means = Literal["engine", "compatible-engine", "build", "ort-cuda", "ort-cpu"]
MEANS: tuple[Means, ...] = ("engine", "compatible-engine", "build", "ort-cuda", "ort-cpu")
GPU_MEANS: frozenset[Means] = frozenset({"engine", "compatible-engine", "build", "ort-cuda"})

_INSTALL: Mapping[Backend, str] = {
    "trt": "TensorRT is not installed; on Jetson: apt install python3-libnvinfer and a venv with "
    "--system-site-packages, on a desktop: pip install 'edge-kit[tensorrt]'",
    "trt-rtx": "TensorRT-RTX is not installed; pip install 'edge-kit[rtx]'",
    "ort": "onnxruntime is not installed; pip install 'edge-kit[ort]'",
}
_LIBRARY: Mapping[Backend, str] = {
    "trt": "TensorRT",
    "trt-rtx": "TensorRT-RTX",
    "ort": "ONNX Runtime",
}
_BUILD = "build for this device with `edge-kit build`, or let the agent build from the graph"
_COMPARED_PARTS = 3  # some installations spell a version with its build number, some without


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """Why a variant does not fit: a key of `choice.REFUSAL_CODES`, and a sentence."""

    code: str
    reason: str


def ways_to_run(
    variant: Variant, target: Target, *, trusted: bool, may_build: bool
) -> tuple[tuple[Means, ...], Mismatch | None]:
    """Return how this variant may run on this target, best first, or why it may not at all.

    trusted: whether a trusted key signed the bundle. may_build: whether this agent builds engines.
    """
    if variant.backend == "ort":
        if target.onnxruntime is None:
            return (), Mismatch(code="backend-unavailable", reason=_INSTALL["ort"])
        on_gpu = target.onnxruntime_cuda and target.cuda is not None
        return (("ort-cuda", "ort-cpu") if on_gpu else ("ort-cpu",)), None
    problem = machine_problem(variant.backend, target)
    if variant.engine is None:
        problem = problem or _typing_problem(variant, target.runtimes[variant.backend])
        if problem is None and not may_build:
            problem = Mismatch(
                code="build-disabled",
                reason="no engine fits and building here is switched off; set build_on_device, or "
                "pack an engine for this device",
            )
        return ((), problem) if problem is not None else (("build",), None)
    if not trusted:
        return (), Mismatch(
            code="not-trusted",
            reason="no trusted key signed the bundle, and an engine is executable code; sign the "
            "bundle with `edge-kit sign`",
        )
    problem = engine_mismatch(variant.engine, variant.backend, target) or problem
    if problem is not None:
        return (), problem
    exact = target.device is not None and variant.engine.device in {target.device, target.name}
    return (("engine" if exact else "compatible-engine",), None)


def engine_mismatch(engine: EngineFacts, backend: Backend, target: Target) -> Mismatch | None:
    """Return the first property in which target is not what the engine was built for."""
    return next(filter(None, (check(engine, backend, target) for check in _CHECKS)), None)


def same_version(one: str, other: str) -> bool:
    """Whether two spellings name one release: equal as far as both go, three parts at least."""
    parts = list(zip(one.split("."), other.split("."), strict=False))
    return len(parts) >= _COMPARED_PARTS and all(a == b for a, b in parts)


def machine_problem(backend: Backend, target: Target) -> Mismatch | None:
    """Return why TensorRT cannot run on this machine at all, or None if it can."""
    if target.cuda is None:
        return Mismatch(
            code="driver-missing",
            reason=target.cuda_problem or "the CUDA driver sees no device; check nvidia-smi",
        )
    if target.runtimes[backend] is None:
        return Mismatch(code="backend-unavailable", reason=_INSTALL[backend])
    return None


def _typing_problem(variant: Variant, version: str | None) -> Mismatch | None:
    backend = variant.backend
    if backend == "ort" or version is None or variant.typed is None:
        return None
    wanted = takes_types(backend, version)
    if variant.typed == wanted:
        return None
    return Mismatch(
        code="version-mismatch",
        reason=f"{_LIBRARY[backend]} {version} takes precision from "
        f"{'the types in the graph' if wanted else 'flags'}, this graph is for the other way; "
        "pack the graph for both, as `edge-kit build` does for a Jetson",
    )


def _platform(engine: EngineFacts, backend: Backend, target: Target) -> Mismatch | None:
    here = (target.kind, target.arch)
    if target.kind == "cpu" or here == (engine.kind, engine.arch):
        return None
    return Mismatch(
        code="platform-mismatch",
        reason=f"built for {engine.kind} {engine.arch}, this is {target.kind} {target.arch}; "
        + _BUILD,
    )


def _sm(engine: EngineFacts, backend: Backend, target: Target) -> Mismatch | None:
    if target.sm is None or target.sm in engine.sms:
        return None
    return Mismatch(
        code="sm-mismatch",
        reason=f"built for SM {', '.join(engine.sms)} ({engine.device}), this GPU has SM "
        f"{target.sm}; {_BUILD}",
    )


def _device(engine: EngineFacts, backend: Backend, target: Target) -> Mismatch | None:
    here = target.device or target.name
    is_other = engine.device not in {target.device, target.name}
    counts = (engine.sm_count, target.sm_count)
    if target.kind == "cpu" or engine.portable:
        return None
    if is_other or (None not in counts and counts[0] != counts[1]):
        return Mismatch(
            code="device-mismatch",
            reason=f"built for {engine.device} ({_count(engine.sm_count)}), this is {here} "
            f"({_count(target.sm_count)}), and TensorRT warns against another module of the same "
            f"SM; {_BUILD}",
        )
    return None


def _version(engine: EngineFacts, backend: Backend, target: Target) -> Mismatch | None:
    installed = target.runtimes[backend]
    if installed in {None, "unknown"} or same_version(engine.runtime, str(installed)):
        return None
    return Mismatch(
        code="version-mismatch",
        reason=f"built with {_LIBRARY[backend]} {engine.runtime}, {installed} is installed here, "
        f"and engines open in the same version only; install {engine.runtime}, or {_BUILD}",
    )


def _driver(engine: EngineFacts, backend: Backend, target: Target) -> Mismatch | None:
    if engine.cuda is None or target.cuda is None or _number(target.cuda) >= _number(engine.cuda):
        return None
    return Mismatch(
        code="driver-too-old",
        reason=f"needs a driver that runs CUDA {engine.cuda}, this one runs {target.cuda}; update "
        "the NVIDIA driver or JetPack",
    )


def _memory(engine: EngineFacts, backend: Backend, target: Target) -> Mismatch | None:
    if target.memory_bytes is None or engine.memory_bytes <= target.memory_bytes:
        return None
    return Mismatch(
        code="memory",
        reason=f"takes {engine.memory_bytes >> 20} MiB, this device has "
        f"{target.memory_bytes >> 20} MiB; export with a smaller --shape maximum",
    )


def _dla(engine: EngineFacts, backend: Backend, target: Target) -> Mismatch | None:
    if engine.dla_cores == 0 or (target.dla_cores or 0) >= engine.dla_cores:
        return None
    return Mismatch(
        code="dla-missing",
        reason=f"uses {engine.dla_cores} DLA cores, this device has {target.dla_cores or 0}; "
        + _BUILD,
    )


def _plugin(engine: EngineFacts, backend: Backend, target: Target) -> Mismatch | None:
    missing = sorted(set(engine.plugins) - set(target.plugins or engine.plugins))
    if not missing:
        return None
    return Mismatch(
        code="plugin-missing",
        reason=f"needs the TensorRT layers {', '.join(missing)}, which are not registered here; "
        "export the model without custom operators",
    )


_Check = Callable[[EngineFacts, Backend, Target], "Mismatch | None"]
# What cannot be changed comes first: nobody should update a driver to learn of a wrong SM.
_CHECKS: tuple[_Check, ...] = (
    _platform, _sm, _device, _dla, _memory, _version, _driver, _plugin,
)  # fmt: skip


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _count(sm_count: int | None) -> str:
    return "SM count unknown" if sm_count is None else f"{sm_count} SMs"
